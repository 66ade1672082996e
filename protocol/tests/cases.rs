//! The link's rules one by one, each where the random lines of `link.rs` would forgive its absence.

#![allow(clippy::unwrap_used)]

use wayside_protocol::frame::{Flags, Frame, Header, Kind};
use wayside_protocol::link::control::{DataExtension, HelloAck};
use wayside_protocol::link::device::{Config, Device, Overflow};
use wayside_protocol::link::gateway::{CommandError, Event, Gateway, Lost};

const UID: u64 = 7;
const MS: u64 = 1_000;

fn device(boot: u32) -> Device<8, 64> {
    Device::new(Config { uid: UID, firmware: 1, overflow: Overflow::DropOldest }, boot)
}

/// A gateway and what it told its host.
struct Host {
    gateway: Gateway<254, 2, 8>,
    data: Vec<(u32, u32)>,
    lost: Vec<Lost>,
}

impl Host {
    fn new() -> Self {
        Self { gateway: Gateway::new(), data: Vec::new(), lost: Vec::new() }
    }

    fn receive(&mut self, now_us: u64, bytes: &[u8]) {
        let mut greeted = None;
        self.gateway.receive(now_us, bytes, |event| match event {
            Event::Hello(info) if info.needs_accept => greeted = Some((info.uid, info.boot)),
            Event::Data(data) => self.data.push((data.boot, data.seq)),
            Event::Lost(lost) => self.lost.push(lost),
            _ => {}
        });
        if let Some((uid, boot)) = greeted {
            self.gateway.accept(uid, boot, Some(0));
        }
    }

    /// Frames that the gateway wants to send now.
    fn frames(&mut self, now_us: u64) -> Vec<Vec<u8>> {
        let mut out = [0; 160];
        std::iter::from_fn(|| self.gateway.poll_transmit(now_us, &mut out).map(|len| out[..len].to_vec()))
            .collect()
    }
}

fn frames(device: &mut Device<8, 64>, now_us: u64) -> Vec<Vec<u8>> {
    let mut out = [0; 160];
    std::iter::from_fn(|| device.poll_transmit(now_us, &mut out).map(|len| out[..len].to_vec())).collect()
}

/// Both ways until both are silent.
fn exchange(device: &mut Device<8, 64>, host: &mut Host, now_us: u64) {
    loop {
        let (up, down) = (frames(device, now_us), host.frames(now_us));
        if up.is_empty() && down.is_empty() {
            return;
        }
        for frame in up {
            host.receive(now_us, &frame);
        }
        for frame in down {
            device.receive(now_us, &frame, |_, _| {});
        }
    }
}

fn connected() -> (Device<8, 64>, Host) {
    let (mut device, mut host) = (device(1), Host::new());
    exchange(&mut device, &mut host, 0);
    assert!(device.is_up());
    (device, host)
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let (mut device, mut host) = connected();
    device.send(0, 1, 1, b"x").unwrap();
    exchange(&mut device, &mut host, 0);
    assert_eq!((host.data.len(), device.pending()), (1, 1));
    host.gateway.committed(MS, UID, 1, 0);
    assert_eq!(host.gateway.next_deadline(), Some(21 * MS), "a single commit waits for others");
    exchange(&mut device, &mut host, 21 * MS);
    assert_eq!((device.pending(), device.counters().durable), (0, 1));
}

#[test]
fn four_commits_are_acknowledged_at_once() {
    let (mut device, mut host) = connected();
    for _ in 0..4 {
        device.send(0, 1, 1, b"x").unwrap();
    }
    exchange(&mut device, &mut host, 0);
    host.gateway.committed(MS, UID, 1, 3);
    assert_eq!(host.frames(MS).len(), 1);
}

#[test]
fn duplicate_of_a_durable_reading_is_acknowledged_again_and_of_another_not() {
    let (mut device, mut host) = connected();
    device.send(0, 1, 1, b"x").unwrap();
    let sent = frames(&mut device, 0).concat();
    host.receive(0, &sent);
    host.receive(0, &sent);
    assert_eq!((host.data.len(), host.gateway.counters().duplicates), (1, 1));
    assert!(host.frames(0).is_empty(), "it is on its way to the disk");
    host.gateway.committed(0, UID, 1, 0);
    assert_eq!(host.frames(20 * MS).len(), 1);
    host.receive(30 * MS, &sent);
    assert_eq!((host.data.len(), host.frames(30 * MS).len()), (1, 1));
}

#[test]
fn hole_is_filled_without_waiting_for_the_timeout() {
    let (mut device, mut host) = connected();
    for _ in 0..3 {
        device.send(0, 1, 1, b"x").unwrap();
    }
    let sent = frames(&mut device, 0);
    host.receive(0, &sent[0]);
    host.receive(0, &sent[2]);
    exchange(&mut device, &mut host, MS);
    assert_eq!(host.data, [(1, 0), (1, 1), (1, 2)]);
    assert_eq!((device.counters().resent, device.counters().timeouts), (1, 0));
}

#[test]
fn lost_last_reading_is_sent_again_after_one_timeout() {
    let (mut device, mut host) = connected();
    device.send(0, 1, 1, b"x").unwrap();
    let _lost = frames(&mut device, 0);
    assert_eq!(device.next_deadline(), 500 * MS);
    exchange(&mut device, &mut host, 500 * MS);
    assert_eq!((host.data.len(), device.counters().hellos), (1, 1));
}

#[test]
fn round_trip_of_a_resent_reading_is_not_measured() {
    let (mut device, mut host) = connected();
    device.send(0, 1, 1, b"x").unwrap();
    let _lost = frames(&mut device, 0);
    exchange(&mut device, &mut host, 500 * MS);
    host.gateway.committed(501 * MS, UID, 1, 0);
    exchange(&mut device, &mut host, 521 * MS);
    assert_eq!(device.pending(), 0);
    device.send(600 * MS, 1, 1, b"x").unwrap();
    let _lost = frames(&mut device, 600 * MS);
    assert_eq!(device.next_deadline(), 1000 * MS, "the next request for the time");
    let _lost = frames(&mut device, 1000 * MS);
    assert_eq!(device.next_deadline(), 1600 * MS, "the doubled timeout holds until a measurement");
}

#[test]
fn credit_is_announced_at_once_and_kept_by_both_ends() {
    let (mut device, mut host) = connected();
    host.gateway.set_credit(0, 0);
    exchange(&mut device, &mut host, 0);
    device.send(0, 1, 1, b"x").unwrap();
    assert!(frames(&mut device, 0).is_empty(), "no credit");
    // The first window was granted before: the question of a held-back device is answered by taking its reading ..
    exchange(&mut device, &mut host, 500 * MS);
    assert_eq!(host.data.len(), 1);
    // .. and what was never granted is not taken.
    let header =
        Header { kind: Kind::Data, flags: Flags::NEEDS_ACK, seq: 8, ..header_of(&mut device, 500 * MS) };
    host.receive(501 * MS, &data_frame(header, 1));
    assert_eq!((host.data.len(), host.gateway.counters().beyond_credit), (1, 1));
    host.gateway.committed(501 * MS, UID, 1, 0);
    host.gateway.set_credit(502 * MS, 8);
    device.send(502 * MS, 1, 1, b"y").unwrap();
    exchange(&mut device, &mut host, 502 * MS);
    assert_eq!(host.data, [(1, 0), (1, 1)]);
}

fn data_frame(header: Header, oldest_unacked: u32) -> Vec<u8> {
    let extension = DataExtension { device_time_us: 0, oldest_unacked }.to_bytes();
    let mut out = [0; 160];
    let len = Frame { header, extension: &extension, body: b"z" }.encode(&mut out).unwrap();
    out[..len].to_vec()
}

/// Short id and boot of the device, from a frame of its own.
fn header_of(device: &mut Device<8, 64>, now_us: u64) -> Header {
    assert!(device.log(1, "here"));
    let wire = frames(device, now_us).pop().unwrap();
    let mut decoder = wayside_protocol::decoder::Decoder::<254>::new();
    decoder.next(&mut &wire[..]).unwrap().unwrap().header
}

#[test]
fn stranger_is_asked_to_greet_and_not_more_often_than_every_100_ms() {
    let (mut device, _) = connected();
    let mut host = Host::new();
    device.send(0, 1, 1, b"x").unwrap();
    let sent = frames(&mut device, 0).concat();
    host.receive(0, &sent);
    let asked = host.frames(0);
    assert_eq!(asked.len(), 1);
    host.receive(50 * MS, &sent);
    assert!(host.frames(50 * MS).is_empty());
    assert_eq!(host.gateway.next_deadline(), Some(100 * MS));
    device.receive(50 * MS, &asked.concat(), |_, _| {});
    assert!(!device.is_up());
    exchange(&mut device, &mut host, 51 * MS);
    assert_eq!(host.data, [(1, 0)]);
}

#[test]
fn restart_of_the_device_ends_what_waited_for_a_hole() {
    let (mut old, mut host) = connected();
    for _ in 0..3 {
        old.send(0, 1, 1, b"x").unwrap();
    }
    host.receive(0, &frames(&mut old, 0)[2]);
    assert_eq!(host.data, []);
    exchange(&mut device(2), &mut host, MS);
    assert_eq!(host.lost, [Lost { uid: UID, boot: 1, first: 0, last: 1 }]);
    assert_eq!(host.data, [(1, 2)]);
}

#[test]
fn session_with_readings_on_their_way_to_the_disk_is_not_forgotten() {
    let (mut device, mut host) = connected();
    device.send(0, 1, 1, b"x").unwrap();
    exchange(&mut device, &mut host, 0);
    let greet = |uid: u64, host: &mut Host, now_us: u64| {
        let mut other: Device<8, 64> =
            Device::new(Config { uid, firmware: 1, overflow: Overflow::Refuse }, 1);
        exchange(&mut other, host, now_us);
        other.is_up()
    };
    assert!(greet(8, &mut host, MS), "the second place");
    assert!(greet(9, &mut host, 2 * MS), "the place of the second");
    host.gateway.committed(3 * MS, UID, 1, 0);
    exchange(&mut device, &mut host, 23 * MS);
    assert_eq!(device.pending(), 0, "its session was there all the time");
}

#[test]
fn sequence_numbers_wrap_around() {
    let mut gateway = Gateway::<254, 2, 8>::new();
    let (mut wire, mut seqs) = ([0; 160], Vec::new());
    let len = device(1).poll_transmit(0, &mut wire).unwrap();
    gateway.receive(0, &wire[..len], |_| {});
    gateway.accept(UID, 1, Some(u32::MAX - 1));
    let len = gateway.poll_transmit(0, &mut wire).unwrap();
    let mut decoder = wayside_protocol::decoder::Decoder::<254>::new();
    let ack = HelloAck::from_bytes(decoder.next(&mut &wire[..len]).unwrap().unwrap().body).unwrap();
    for seq in [u32::MAX - 1, 0, 1, u32::MAX] {
        let header = Header {
            kind: Kind::Data,
            flags: Flags::NEEDS_ACK,
            device: ack.device,
            boot: 1,
            seq,
            schema: 1,
            rev: 1,
        };
        gateway.receive(0, &data_frame(header, u32::MAX - 1), |event| match event {
            Event::Data(data) => seqs.push(data.seq),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seqs, [u32::MAX - 1, u32::MAX, 0, 1]);
}

#[test]
fn device_whose_boot_number_is_not_new_takes_another() {
    let (mut first, mut host) = connected();
    first.send(0, 1, 1, b"x").unwrap();
    exchange(&mut first, &mut host, 0);
    host.gateway.committed(0, UID, 1, 0);
    let mut again = device(1);
    exchange(&mut again, &mut host, MS);
    assert_eq!((again.boot(), again.is_up()), (2, true));
    again.send(MS, 1, 1, b"y").unwrap();
    exchange(&mut again, &mut host, MS);
    assert_eq!(host.data, [(1, 0), (2, 0)]);
}

#[test]
fn readings_are_dated_by_the_gateways_clock_once_timestamps_were_exchanged() {
    let (mut device, mut host) = (device(1), Host::new());
    // The gateway's clock is 60 s ahead; each way takes no time.
    let ahead = 60_000 * MS;
    let mut made = None;
    for now_us in [0, 1000 * MS, 2000 * MS] {
        device.send(now_us, 1, 1, b"x").unwrap();
        for _ in 0..4 {
            for frame in frames(&mut device, now_us) {
                let mut greeted = false;
                host.gateway.receive(now_us + ahead, &frame, |event| match event {
                    Event::Hello(_) => greeted = true,
                    Event::Data(data) => made = data.made,
                    _ => {}
                });
                if greeted {
                    host.gateway.accept(UID, 1, None);
                }
            }
            for frame in host.frames(now_us + ahead) {
                device.receive(now_us, &frame, |_, _| {});
            }
        }
    }
    let made = made.expect("a second exchange told the gateway");
    assert_eq!((made.at_us, made.error_us), (2000 * MS + ahead, 0));
}

#[test]
fn command_reaches_its_device_once() {
    let (mut device, mut host) = connected();
    assert_eq!(host.gateway.command(99, 0x100, &[]), Err(CommandError::UnknownDevice));
    assert_eq!(host.gateway.command(UID, 0x100, &[0; 65]), Err(CommandError::TooLong));
    host.gateway.command(UID, 0x100, &[1, 2]).unwrap();
    assert_eq!(host.gateway.command(UID, 0x100, &[]), Err(CommandError::Busy));
    let mut got = Vec::new();
    for frame in host.frames(0) {
        device.receive(0, &frame, |code, args| got.push((code, args.to_vec())));
    }
    assert_eq!(got, [(0x100, vec![1, 2])]);
}
