//! A device, a line that does everything wrong, a gateway and its host, in virtual time.
//!
//! The world draws every decision from [`Chance`], so a run repeats from its seed, and a fuzzer steers it by the bytes of its
//! input. While it runs, [`World`] checks what the link promises:
//!
//! - the device forgets a reading only if it is durable at the host, or was dropped for want of room;
//! - the host is given every number of a boot once and in order, as the reading that was sent or as lost;
//! - lost is only what the device dropped, or what it held when it restarted;
//! - neither end talks without end, and once the line is sound, everything arrives.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use wayside_protocol::error::SendError;
use wayside_protocol::link::device::{Config, Device, Overflow};
use wayside_protocol::link::gateway::{Event, Gateway};

const UID: u64 = 0x7061_7468;
const SCHEMA: u16 = 0x8001;
const BODY: usize = 40;
/// The faults end after this time, or when all readings were made.
const FAULTS_US: u64 = 30_000_000;
/// No plan takes longer, however slow its disk.
const END_US: u64 = 900_000_000;
/// Time between two decisions whether something restarts: enough for a conversation to begin.
const RESTART_EVERY_US: u64 = 20_000;
/// Longest virtual time that a sound line may need to bring everything over.
const PATIENCE_US: u64 = 60_000_000;

/// Decisions: first the bytes given, then a generator seeded by them.
pub(crate) struct Chance<'a> {
    script: std::slice::Iter<'a, u8>,
    state: u64,
}

impl<'a> Chance<'a> {
    pub(crate) fn new(seed: u64, script: &'a [u8]) -> Self {
        Self { script: script.iter(), state: seed }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        if let Some(&byte) = self.script.next() {
            // Spread, so that one byte can choose from the whole range.
            return u64::from(byte) * 0x0101_0101_0101_0101;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..=max`.
    pub(crate) fn up_to(&mut self, max: u64) -> u64 {
        let wide = u128::from(self.next()) * (u128::from(max) + 1);
        u64::try_from(wide >> 64).unwrap()
    }

    pub(crate) fn per_mille(&mut self, chance: u16) -> bool {
        chance > 0 && self.up_to(999) < u64::from(chance)
    }
}

/// How bad the line and the machines are; chances are per frame in 1/1000.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lose: u16,
    pub(crate) flip_bits: u16,
    pub(crate) drop_byte: u16,
    pub(crate) insert_byte: u16,
    pub(crate) cut: u16,
    pub(crate) noise: u16,
    pub(crate) duplicate: u16,
    pub(crate) delay: u16,
    pub(crate) reset_device: u16,
    pub(crate) restart_gateway: u16,
    pub(crate) change_credit: u16,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) readings: u32,
    pub(crate) every_us: u64,
    pub(crate) commit_us_max: u64,
    pub(crate) overflow: Overflow,
    pub(crate) faults: Faults,
}

/// One direction of the line.
#[derive(Debug, Default)]
struct Line {
    /// What is on the way, by arrival and order of leaving.
    bytes: BTreeMap<(u64, u64), Vec<u8>>,
    left: u64,
    /// The last byte of the last frame leaves at this time.
    free_us: u64,
}

impl Line {
    fn put(&mut self, now_us: u64, late_us: u64, bytes: Vec<u8>) {
        // 87 us per byte at 115200 baud, then what drivers take.
        self.free_us = self.free_us.max(now_us) + 87 * bytes.len() as u64;
        self.left += 1;
        self.bytes.insert((self.free_us + 1_000 + late_us, self.left), bytes);
    }

    fn take(&mut self, now_us: u64) -> Option<Vec<u8>> {
        let first = self.bytes.first_entry().filter(|entry| entry.key().0 <= now_us)?;
        Some(first.remove())
    }

    fn next_us(&self) -> Option<u64> {
        self.bytes.keys().next().map(|(at, _)| *at)
    }
}

/// What the host knows of one boot.
#[derive(Debug, Default)]
struct Boot {
    /// Bodies by number, as sent.
    sent: BTreeMap<u32, Vec<u8>>,
    /// Numbers that the device dropped for want of room.
    dropped: BTreeSet<u32>,
    /// The numbers at or above this one died with the device.
    died_from: Option<u32>,
    /// The next number that the host expects of its own disk.
    durable_next: u32,
    /// The device may have forgotten everything before this.
    forgotten: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    boot: u32,
    first: u32,
    last: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) delivered: u32,
    pub(crate) lost: u32,
    pub(crate) died: u32,
    pub(crate) resent: u32,
    pub(crate) duplicates: u32,
    pub(crate) damaged: u32,
    pub(crate) finished_us: u64,
}

pub(crate) struct World<'a, const RING: usize> {
    chance: Chance<'a>,
    plan: Plan,
    now_us: u64,
    device: Device<RING, BODY>,
    gateway: Gateway<254, 4, 8>,
    /// Bytes on the way, by arrival and order of leaving.
    to_gateway: Line,
    to_device: Line,
    boot: u32,
    boots: BTreeMap<u32, Boot>,
    /// Passed to the host, not durable: when it will be.
    pipeline: VecDeque<(u64, Entry)>,
    produced: u32,
    next_reading_us: u64,
    next_restart_us: u64,
    faulty: bool,
    outcome: Outcome,
}

impl<'a, const RING: usize> World<'a, RING> {
    pub(crate) fn new(chance: Chance<'a>, plan: Plan) -> Self {
        let config = Config { uid: UID, firmware: 1, overflow: plan.overflow };
        Self {
            chance,
            plan,
            now_us: 1,
            device: Device::new(config, 100),
            gateway: Gateway::new(),
            to_gateway: Line::default(),
            to_device: Line::default(),
            boot: 100,
            boots: BTreeMap::from([(100, Boot::default())]),
            pipeline: VecDeque::new(),
            produced: 0,
            next_reading_us: 1,
            next_restart_us: 0,
            faulty: true,
            outcome: Outcome::default(),
        }
    }

    /// Runs until everything has arrived, and panics if a promise is broken.
    pub(crate) fn run(mut self) -> Outcome {
        let mut deadline = None;
        loop {
            self.step();
            let produced = self.produced == self.plan.readings;
            if self.faulty && (produced || self.now_us > FAULTS_US) {
                self.faulty = false;
                self.gateway.set_credit(self.now_us, u8::MAX);
            }
            if produced && self.device.pending() == 0 && self.pipeline.is_empty() {
                break;
            }
            let until = *deadline.get_or_insert(self.now_us + PATIENCE_US);
            if self.faulty || !produced {
                deadline = None;
            }
            assert!(self.now_us < END_US, "no end in sight: {self:#?}");
            assert!(self.now_us < until, "the line is sound, but {} wait: {self:#?}", self.device.pending());
            self.now_us = self.next_event().max(self.now_us + 1);
        }
        self.check_end()
    }

    fn step(&mut self) {
        self.restart_something();
        while self.produced < self.plan.readings && self.next_reading_us <= self.now_us {
            self.produce();
        }
        while let Some(bytes) = self.to_gateway.take(self.now_us) {
            self.feed_gateway(&bytes);
        }
        self.commit();
        while let Some(bytes) = self.to_device.take(self.now_us) {
            for chunk in self.chunks(&bytes) {
                self.device.receive(self.now_us, &chunk, |code, _| panic!("nobody sent command {code}"));
            }
        }
        self.transmit();
        self.check_forgotten();
    }

    fn next_event(&self) -> u64 {
        let reading = (self.produced < self.plan.readings).then_some(self.next_reading_us);
        let arrivals = [self.to_gateway.next_us(), self.to_device.next_us()];
        let commit = self.pipeline.front().map(|(at, _)| *at);
        [reading, commit, Some(self.device.next_deadline()), self.gateway.next_deadline()]
            .into_iter()
            .chain(arrivals)
            .flatten()
            .min()
            .unwrap()
    }

    fn restart_something(&mut self) {
        let faults = self.plan.faults;
        if !self.faulty || self.now_us < self.next_restart_us {
            return;
        }
        self.next_restart_us = self.now_us + RESTART_EVERY_US;
        if self.chance.per_mille(faults.reset_device) {
            let next = self.next_seq();
            let base = next - u32::try_from(self.device.pending()).unwrap();
            let boot = self.boots.get_mut(&self.boot).unwrap();
            boot.died_from = Some(base);
            self.boot += 1;
            self.boots.insert(self.boot, Boot::default());
            let config = Config { uid: UID, firmware: 1, overflow: self.plan.overflow };
            self.device = Device::new(config, self.boot);
            // What was on the line is there before anything of the new boot; the last frame may be cut.
            let on_line = std::mem::take(&mut self.to_gateway);
            for (_, mut bytes) in on_line.bytes {
                let keep = self.chance.up_to(bytes.len() as u64);
                bytes.truncate(usize::try_from(keep).unwrap());
                self.feed_gateway(&bytes);
            }
        }
        if self.chance.per_mille(faults.restart_gateway) {
            self.gateway = Gateway::new();
            self.pipeline.clear();
        }
        if self.chance.per_mille(faults.change_credit) {
            let credit = self.chance.up_to(9);
            self.gateway.set_credit(self.now_us, u8::try_from(credit).unwrap());
        }
    }

    fn next_seq(&self) -> u32 {
        u32::try_from(self.boots[&self.boot].sent.len()).unwrap()
    }

    fn produce(&mut self) {
        self.next_reading_us = self.now_us + self.chance.up_to(2 * self.plan.every_us);
        let mut body = self.produced.to_le_bytes().to_vec();
        let len = self.chance.up_to((BODY - 4) as u64);
        // Many zeros: they are what COBS is about.
        body.resize(4 + usize::try_from(len).unwrap(), u8::try_from(self.produced % 3).unwrap());
        let full = self.device.pending() == RING;
        match self.device.send(self.now_us, SCHEMA, 1, &body) {
            Ok(seq) => {
                assert_eq!(seq, self.next_seq());
                let boot = self.boots.get_mut(&self.boot).unwrap();
                boot.sent.insert(seq, body);
                if full {
                    boot.dropped.insert(seq - u32::try_from(RING).unwrap());
                }
                self.produced += 1;
            }
            Err(error) => {
                assert_eq!((error, full, self.plan.overflow), (SendError::Full, true, Overflow::Refuse));
                self.next_reading_us = self.now_us + self.plan.every_us.max(1_000);
            }
        }
    }

    /// Cuts bytes into what single reads return.
    fn chunks(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let size = 1 + usize::try_from(self.chance.up_to(20)).unwrap();
        bytes.chunks(size).map(<[u8]>::to_vec).collect()
    }

    fn feed_gateway(&mut self, bytes: &[u8]) {
        for chunk in self.chunks(bytes) {
            let (mut entries, mut greeted) = (Vec::new(), Vec::new());
            let boots = &self.boots;
            self.gateway.receive(self.now_us, &chunk, |event| match event {
                Event::Hello(info) => {
                    assert_eq!(info.uid, UID);
                    greeted.extend(info.needs_accept.then_some(info.boot));
                }
                Event::Data(data) => {
                    assert_eq!((data.uid, data.schema, data.rev), (UID, SCHEMA, 1));
                    assert_eq!(
                        boots[&data.boot].sent.get(&data.seq).map(Vec::as_slice),
                        Some(data.body),
                        "{}",
                        data.seq
                    );
                    entries.push(Entry { boot: data.boot, first: data.seq, last: data.seq });
                }
                Event::Lost(lost) => {
                    for seq in lost.first..=lost.last {
                        let boot = &boots[&lost.boot];
                        let dead = boot.died_from.is_some_and(|from| seq >= from);
                        assert!(
                            dead || boot.dropped.contains(&seq),
                            "{seq} was reported lost, but the device has it"
                        );
                    }
                    entries.push(Entry { boot: lost.boot, first: lost.first, last: lost.last });
                }
                other => panic!("{other:?}"),
            });
            for entry in entries {
                let delay = self.chance.up_to(self.plan.commit_us_max);
                let not_before = self.pipeline.back().map_or(0, |(at, _)| *at);
                self.pipeline.push_back(((self.now_us + delay).max(not_before), entry));
                assert!(self.pipeline.len() <= 64, "more than the credit of every session");
            }
            for boot in greeted {
                let waits = self.pipeline.iter().any(|(_, entry)| entry.boot == boot);
                if !waits {
                    self.gateway.accept(UID, boot, Some(self.boots[&boot].durable_next));
                }
            }
        }
    }

    fn commit(&mut self) {
        while let Some((_, entry)) = self.pipeline.pop_front_if(|(at, _)| *at <= self.now_us) {
            let boot = self.boots.get_mut(&entry.boot).unwrap();
            assert_eq!(entry.first, boot.durable_next, "every number once and in order");
            boot.durable_next = entry.last + 1;
            self.gateway.committed(self.now_us, UID, entry.boot, entry.last);
        }
    }

    fn transmit(&mut self) {
        let mut wire = [0; 320];
        for turn in 0.. {
            assert!(turn < 64, "the device talks without end: {:#?}", self.device);
            let Some(len) = self.device.poll_transmit(self.now_us, &mut wire) else { break };
            for (late_us, bytes) in self.spoil(&wire[..len]) {
                self.to_gateway.put(self.now_us, late_us, bytes);
            }
        }
        assert!(self.device.next_deadline() > self.now_us, "the device is late: {:#?}", self.device);
        for turn in 0.. {
            assert!(turn < 64, "the gateway talks without end");
            let Some(len) = self.gateway.poll_transmit(self.now_us, &mut wire) else { break };
            for (late_us, bytes) in self.spoil(&wire[..len]) {
                self.to_device.put(self.now_us, late_us, bytes);
            }
        }
        assert!(self.gateway.next_deadline().is_none_or(|at| at > self.now_us), "the gateway is late");
    }

    /// What the line makes of a frame: none, one or two runs of bytes, and how late each is.
    fn spoil(&mut self, frame: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        let faults = if self.faulty { self.plan.faults } else { Faults::default() };
        let copies = if self.chance.per_mille(faults.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            if self.chance.per_mille(faults.lose) {
                continue;
            }
            let mut bytes = frame.to_vec();
            let at = usize::try_from(self.chance.up_to(bytes.len() as u64 - 1)).unwrap();
            if self.chance.per_mille(faults.flip_bits) {
                bytes[at] ^= 1 << self.chance.up_to(7);
            }
            if self.chance.per_mille(faults.drop_byte) {
                bytes.remove(at);
            }
            if self.chance.per_mille(faults.insert_byte) {
                bytes.insert(at.min(bytes.len()), u8::try_from(self.chance.up_to(255)).unwrap());
            }
            if self.chance.per_mille(faults.cut) {
                bytes.truncate(at);
            }
            if self.chance.per_mille(faults.noise) {
                let len = self.chance.up_to(600);
                bytes.extend((0..len).map(|_| u8::try_from(self.chance.up_to(255)).unwrap()));
            }
            let late = if self.chance.per_mille(faults.delay) { self.chance.up_to(5_000_000) } else { 0 };
            out.push((late, bytes));
        }
        out
    }

    fn check_forgotten(&mut self) {
        let base = self.next_seq() - u32::try_from(self.device.pending()).unwrap();
        assert_eq!(self.device.boot(), self.boot);
        let boot = self.boots.get_mut(&self.boot).unwrap();
        for seq in boot.forgotten..base {
            assert!(
                seq < boot.durable_next || boot.dropped.contains(&seq),
                "{seq} is forgotten, and not durable"
            );
        }
        boot.forgotten = base;
    }

    fn check_end(mut self) -> Outcome {
        for (number, boot) in &self.boots {
            let sent = u32::try_from(boot.sent.len()).unwrap();
            match boot.died_from {
                None => assert_eq!(boot.durable_next, sent, "boot {number}"),
                Some(from) => {
                    let missing = (boot.durable_next..sent)
                        .filter(|seq| *seq < from && !boot.dropped.contains(seq))
                        .count();
                    assert_eq!(missing, 0, "boot {number}");
                    self.outcome.died += sent - boot.durable_next;
                }
            }
        }
        let (device, gateway) = (self.device.counters(), self.gateway.counters());
        Outcome {
            delivered: gateway.delivered,
            lost: gateway.lost,
            resent: device.resent,
            duplicates: gateway.duplicates,
            damaged: self.gateway.decode_counters().errors(),
            finished_us: self.now_us,
            ..self.outcome
        }
    }
}

impl<const RING: usize> std::fmt::Debug for World<'_, RING> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("now_us", &self.now_us)
            .field("plan", &self.plan)
            .field("device", &self.device.counters())
            .field("deadline", &self.device.next_deadline())
            .field("gateway", &self.gateway.counters())
            .field("pipeline", &self.pipeline)
            .finish_non_exhaustive()
    }
}

/// A conversation whose faults `data` chooses: first how bad the line is, then when.
#[allow(dead_code)] // The fuzz target and tests/fuzz.rs use it; tests/link.rs has strategies of its own.
pub(crate) fn steered_by(data: &[u8]) {
    let (settings, script) = data.split_at(data.len().min(16));
    let setting = |at: usize| u64::from(settings.get(at).copied().unwrap_or(0));
    let chance = |at: usize| u16::try_from(setting(at)).unwrap();
    let faults = Faults {
        lose: chance(0),
        flip_bits: chance(1),
        drop_byte: chance(2),
        insert_byte: chance(3),
        cut: chance(4),
        noise: chance(5),
        duplicate: chance(6),
        delay: chance(7),
        reset_device: chance(8) / 8,
        restart_gateway: chance(9) / 8,
        change_credit: chance(10),
    };
    let overflow = if setting(11) % 2 == 0 { Overflow::Refuse } else { Overflow::DropOldest };
    let plan = Plan {
        readings: 40,
        every_us: 1 + setting(12) * 200,
        commit_us_max: setting(13) * 1_000,
        overflow,
        faults,
    };
    World::<8>::new(Chance::new(setting(14), script), plan).run();
}
