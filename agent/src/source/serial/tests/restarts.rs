//! Devices, the gateway's end of their line, and a log, under random schedules of losses, restarts and crashes: each reading is
//! stored once and in order, or told as lost.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::{
    decode::native::uid_device,
    intake::{Acknowledgement, Ticket},
    log::Change,
    record::Received,
    source::serial::devices::{DEVICES_MAX, Devices},
};

/// Few slots, so that they run over.
const RING: usize = 6;

#[derive(Clone, Debug)]
enum Operation {
    /// A device has a new reading.
    Reading(usize),
    /// Time passes, and frames: these of the device are lost, as bits say.
    Talk(u64, u8),
    /// What was submitted first becomes durable.
    Commit,
    /// The agent ends without a word.
    Crash,
    /// A device restarts and has nothing.
    Restart(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => (0..2_usize).prop_map(Operation::Reading),
        8 => (1..400_u64, prop_oneof![3 => Just(0), 1 => any::<u8>()])
            .prop_map(|(ms, lost)| Operation::Talk(ms, lost)),
        4 => Just(Operation::Commit),
        1 => Just(Operation::Crash),
        1 => (0..2_usize).prop_map(Operation::Restart),
    ]
}

fn line(remembered: &Remembered) -> NativeLine {
    let config = NativeConfig {
        source: "test".into(),
        port: "port".into(),
        value: Value::Raw,
        record_bytes_max: RECORD_BYTES_MAX,
    };
    NativeLine::new(config, remembered)
}

/// A microcontroller, and how many readings it had in this boot.
struct Mcu {
    device: Device<RING, 64>,
    uid: u64,
    boot: u32,
    next: u32,
}

impl Mcu {
    fn new(uid: u64, boot: u32) -> Self {
        let config = Config { uid, firmware: 1, overflow: Overflow::DropOldest };
        Self { device: Device::new(config, boot), uid, boot, next: 0 }
    }
}

/// First and last number of readings, and whether they are missing.
type Run = (u32, u32, bool);

struct World {
    now: Duration,
    devices: [Mcu; 2],
    boots: u32,
    line: NativeLine,
    submitted: VecDeque<(Ticket, Vec<Record>, Vec<Change>)>,
    tickets: u64,
    /// What the log has: by device and boot, in its order; and what it remembers.
    stored: BTreeMap<(String, u32), Vec<Run>>,
    remembered: Remembered,
}

impl World {
    fn new() -> Self {
        let remembered = Remembered::new();
        Self {
            now: Duration::from_secs(1),
            devices: [Mcu::new(1, 1), Mcu::new(2, 2)],
            boots: 2,
            line: line(&remembered),
            submitted: VecDeque::new(),
            tickets: 0,
            stored: BTreeMap::new(),
            remembered,
        }
    }

    fn moment(&self) -> Now {
        Now { monotonic: Monotonic::from_start(self.now), received: Received::default() }
    }

    fn now_us(&self) -> u64 {
        self.moment().monotonic.as_micros()
    }

    fn reading(&mut self, device: usize) {
        let now_us = self.now_us();
        let Mcu { device, next, .. } = &mut self.devices[device];
        device.send_payload(now_us, &Raw { port: 3, bytes: &next.to_be_bytes() }).expect("the oldest goes");
        *next += 1;
    }

    /// Frames go both ways; the first eight of the devices are lost where `lost` has a bit.
    fn talk(&mut self, ms: u64, mut lost: u8) {
        self.now += Duration::from_millis(ms);
        let (now, now_us) = (self.moment(), self.now_us());
        let mut frame = [0; max_wire_len(FRAME_LEN_DEFAULT)];
        for Mcu { device, .. } in &mut self.devices {
            while let Some(size) = device.poll_transmit(now_us, &mut frame) {
                if lost & 1 == 0 {
                    self.line.receive(now, &frame[..size]);
                }
                lost >>= 1;
            }
        }
        let Frames { records, changes } = self.line.take();
        if !records.is_empty() {
            self.tickets += 1;
            self.line.submitted(Ticket(self.tickets));
            self.submitted.push_back((Ticket(self.tickets), records, changes));
        }
        let mut out = BytesMut::new();
        self.line.transmit(now, &mut out);
        for Mcu { device, .. } in &mut self.devices {
            device.receive(now_us, &out, |_, _| {});
        }
    }

    fn commit(&mut self) {
        let Some((ticket, records, changes)) = self.submitted.pop_front() else { return };
        for record in records {
            self.store(&record);
        }
        for (key, value) in changes {
            self.remembered.remove(&key);
            self.remembered.extend(value.map(|value| (key, value)));
        }
        self.line.acknowledged(self.moment(), Acknowledgement::for_test(ticket));
    }

    fn store(&mut self, record: &Record) {
        let run = if record.stream.as_str() == GAPS_STREAM {
            let gap: serde_json::Value = serde_json::from_slice(&record.value).expect("JSON");
            let number = |name: &str| u32::try_from(gap[name].as_u64().expect("a number")).expect("small");
            let device = gap["device"].as_str().expect("a device").to_owned();
            ((device, number("boot")), (number("first_seq"), number("last_seq"), true))
        } else {
            let boot = record.headers.iter().find(|h| &*h.name == crate::record::header::BOOT);
            let boot = std::str::from_utf8(&boot.expect("a boot").value).expect("digits").parse();
            let seq = u32::from_be_bytes(record.value[..].try_into().expect("four bytes"));
            assert_eq!(record.device_seq, Some(seq.into()));
            ((record.device.as_str().to_owned(), boot.expect("a number")), (seq, seq, false))
        };
        self.stored.entry(run.0).or_default().push(run.1);
    }

    fn crash(&mut self) {
        self.submitted.clear();
        self.line = line(&self.remembered);
    }

    fn restart(&mut self, device: usize) {
        self.boots += 1;
        self.devices[device] = Mcu::new(self.devices[device].uid, self.boots);
    }

    fn run(&mut self, operation: &Operation) {
        match *operation {
            Operation::Reading(device) => self.reading(device),
            Operation::Talk(ms, lost) => self.talk(ms, lost),
            Operation::Commit => self.commit(),
            Operation::Crash => self.crash(),
            Operation::Restart(device) => self.restart(device),
        }
        self.check();
    }

    /// Numbers ascend without a hole and without a repetition.
    fn check(&self) {
        for ((device, boot), runs) in &self.stored {
            let follows = runs.windows(2).all(|pair| pair[1].0 == pair[0].1 + 1);
            assert!(follows, "device {device}, boot {boot}: {runs:?}");
        }
    }

    /// Lets all devices have their acknowledgements.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.talk(50, 0);
            self.commit();
        }
        self.check();
        for mcu in self.devices.iter().filter(|mcu| mcu.next > 0) {
            assert_eq!(mcu.device.pending(), 0, "acknowledged");
            let runs = &self.stored[&(uid_device(mcu.uid).as_str().to_owned(), mcu.boot)];
            assert_eq!(runs.last().map(|run| run.1), Some(mcu.next - 1), "stored or told");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_reading_is_stored_once_or_told_whatever_restarts(
        operations in proptest::collection::vec(operation(), 1..120)
    ) {
        let mut world = World::new();
        for operation in operations {
            world.run(&operation);
        }
        world.settle();
    }
}

/// Its ring ran over while the agent was down.
#[test]
fn what_a_device_dropped_while_the_agent_was_down_is_told() {
    let mut world = World::new();
    let run = |world: &mut World, operations: &[Operation]| operations.iter().for_each(|o| world.run(o));
    run(&mut world, &[Operation::Reading(0), Operation::Talk(1, 0), Operation::Talk(1, 0)]);
    run(&mut world, &[Operation::Commit, Operation::Crash]);
    for _ in 0..=RING {
        world.reading(0);
    }
    world.settle();
    let runs = &world.stored[&(uid_device(1).as_str().to_owned(), 1)];
    // The device does not know that number 0 is durable, and drops it with number 1.
    assert_eq!(runs[..3], [(0, 0, false), (1, 1, true), (2, 2, false)]);
}

/// What is missing between has an acknowledgement of another port.
#[test]
fn a_device_that_was_elsewhere_and_dropped_nothing_has_lost_nothing() {
    let mut world = World::new();
    for _ in 0..3 {
        world.reading(0);
        world.talk(1, 0);
        world.talk(1, 0);
        world.commit();
        world.talk(50, 0);
    }
    let mut other = World::new();
    std::mem::swap(&mut world.devices, &mut other.devices);
    other.reading(0);
    other.settle();
    std::mem::swap(&mut world.devices, &mut other.devices);
    world.crash();
    world.now = other.now;
    world.reading(0);
    for _ in 0..100 {
        world.talk(50, 0);
        world.commit();
    }
    let runs = &world.stored[&(uid_device(1).as_str().to_owned(), 1)];
    assert_eq!(runs[..], [(0, 0, false), (1, 1, false), (2, 2, false), (4, 4, false)]);
}

#[test]
fn the_device_that_was_silent_for_longest_makes_room_for_a_new_one() {
    let mut devices = Devices::restore(&Remembered::new());
    let mut remembered = Remembered::new();
    let mut note = |devices: &mut Devices| {
        for (key, value) in devices.changes() {
            remembered.remove(&key);
            remembered.extend(value.map(|value| (key, value)));
        }
        remembered.clone()
    };
    let places = u64::try_from(DEVICES_MAX).expect("small");
    for uid in 0..places {
        devices.delivered(uid, 1, 7);
        // The first one never becomes durable.
        if uid > 0 {
            devices.committed(uid, 1, 7);
        }
        note(&mut devices);
    }
    // Number 1 is heard of again; the order outlives a restart, after which all is durable.
    devices.delivered(1, 1, 8);
    devices.committed(1, 1, 8);
    devices.delivered(places, 1, 7);
    let noted = note(&mut devices);
    assert_eq!((devices.get(2).is_none(), noted.len()), (true, DEVICES_MAX));
    assert!(devices.get(0).is_some_and(|progress| progress.committed.is_none()), "under way");
    let mut devices = Devices::restore(&noted);
    devices.delivered(places + 1, 1, 7);
    assert!(devices.get(0).is_none() && devices.get(3).is_some());
    devices.delivered(places + 2, 1, 7);
    assert!(devices.get(3).is_none() && devices.get(1).is_some_and(|progress| progress.delivered == 8));
    assert_eq!(note(&mut devices).len(), DEVICES_MAX);
}

#[test]
fn notes_that_are_not_understood_are_passed_over() {
    let mut remembered = Remembered::new();
    for key in [&b""[..], b"d", b"d1234567x", b"d12345678", b"z"] {
        remembered.insert(key.into(), [0xff].into());
    }
    let devices = Devices::restore(&remembered);
    assert!(devices.get(u64::from_be_bytes(*b"12345678")).is_none());
}
