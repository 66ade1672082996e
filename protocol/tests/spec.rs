//! The examples of SPEC.md are what the crate reads and writes. They were computed by other code than this crate.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use wayside_protocol::decoder::Decoder;
use wayside_protocol::frame::{Flags, Frame, Header, Kind, max_wire_len};
use wayside_protocol::link::control::{Ack, CMD_SAY_HELLO, DataExtension, Hello, HelloAck, TimeReq, TimeRsp};
use wayside_protocol::link::device::Device;
use wayside_protocol::link::gateway::Gateway;
use wayside_protocol::payload::{CATALOG_HASH, Payload, Presence, RoomOccupancyV1};

const SPEC: &str = include_str!("../SPEC.md");
const UID: u64 = 0x1122_3344_5566_7788;
const BOOT: u32 = 0x5eed_0001;
const DEVICE: u16 = 0x0a1b;

/// The ```` ```hex NAME ```` blocks.
fn examples() -> BTreeMap<&'static str, Vec<u8>> {
    let mut examples = BTreeMap::new();
    for block in SPEC.split("```hex ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (hex, _) = rest.split_once("```").unwrap();
        let bytes = hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        assert!(examples.insert(name, bytes).is_none(), "two examples {name}");
    }
    examples
}

#[test]
fn examples_of_the_specification_are_read_and_written() {
    let mut examples = examples();
    let mut check = |name: &str, header: Header, extension: &[u8], body: &[u8]| {
        let wire = examples.remove(name).unwrap_or_else(|| panic!("no example {name}"));
        let frame = Frame { header, extension, body };
        let mut decoder = Decoder::<254>::new();
        assert_eq!(decoder.next(&mut &wire[..]), Some(Ok(frame)), "{name}");
        let mut written = vec![0; max_wire_len(frame.len())];
        let len = frame.encode(&mut written).unwrap();
        assert_eq!(&written[..len], wire, "{name}");
    };
    let control = |kind| Header::control(kind, DEVICE, BOOT);

    let hello = Hello {
        uid: UID,
        firmware: 0x0100_0000,
        catalog_hash: CATALOG_HASH,
        next_seq: 1,
        oldest_unacked: 0,
        lost: 0,
        max_frame: 254,
        window: 8,
        versions: 0x11,
    };
    check("hello", Header::control(Kind::Hello, 0, BOOT), &[], &hello.to_bytes());
    let hello_ack = HelloAck {
        uid: UID,
        unix_us: 1_785_909_154_000_000,
        resume_seq: 0,
        device: DEVICE,
        max_frame: 254,
        window: 8,
        credit: 8,
        version: 1,
    };
    check("hello_ack", control(Kind::HelloAck), &[], &hello_ack.to_bytes());
    let room = RoomOccupancyV1 {
        zone: 2,
        presence: Presence::OCCUPIED,
        people: Some(3),
        motion_events: 130,
        entered_total: 1200,
        left_total: 1197,
    };
    let mut body = [0; 64];
    let len = room.encode(&mut body).unwrap();
    let flags = Flags::NEEDS_ACK.with_if(Flags::TIME_UNSYNCED, true);
    let header = Header { kind: Kind::Data, flags, device: DEVICE, boot: BOOT, seq: 0, schema: 2, rev: 1 };
    check(
        "data",
        header,
        &DataExtension { device_time_us: 1_500_000, oldest_unacked: 0 }.to_bytes(),
        &body[..len],
    );
    check("ack", control(Kind::Ack), &[], &Ack { next_expected: 1, held: 0b110, credit: 8 }.to_bytes());
    check(
        "time_req",
        control(Kind::TimeReq),
        &[],
        &TimeReq { t1_us: 2_000_000, offset_us: 0, rtt_us: 0 }.to_bytes(),
    );
    let response = TimeRsp { t1_us: 2_000_000, t2_us: 90_000_000, t3_us: 90_000_150, unix_us: 0 };
    check("time_rsp", control(Kind::TimeRsp), &[], &response.to_bytes());
    check("log", control(Kind::Log), &[], b"\x02low battery");
    check("say_hello", control(Kind::Cmd), &[], &CMD_SAY_HELLO.to_le_bytes());
    assert!(examples.is_empty(), "examples without a test: {:?}", examples.keys());
}

#[test]
fn memory_is_what_the_specification_says() {
    assert!(size_of::<Device<8, 64>>() <= 8 * (64 + 56) + 128 + 600, "{}", size_of::<Device<8, 64>>());
    assert!(size_of::<Gateway<1024, 4, 8>>() <= 1024 * 36, "{}", size_of::<Gateway<1024, 4, 8>>());
}
