//! What must hold for any bytes at all; the bodies of the fuzz targets.

use wayside_protocol::decoder::Decoder;
use wayside_protocol::frame::{Frame, Header, Kind};
use wayside_protocol::link::device::{Config, Device, Overflow};
use wayside_protocol::link::gateway::{Event, Gateway};
use wayside_protocol::payload::{Payload, Raw, Reading, RoomOccupancy, VehiclePosition};

/// Chunks of 1 to 64 bytes, chosen by the bytes themselves.
fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let len = usize::from(bytes.first()? % 64 + 1).min(bytes.len());
        let (chunk, rest) = bytes.split_at(len);
        bytes = rest;
        Some(chunk)
    })
}

/// The decoder takes `data`, and frames made of it, in pieces as it takes them at once, and then finds a sound frame.
pub(crate) fn decoder_survives(data: &[u8]) {
    decoder_takes(data);
    decoder_takes(&frames(data));
}

fn decoder_takes(data: &[u8]) {
    let mut at_once = Decoder::<64>::new();
    let mut rest = data;
    let mut expected = Vec::new();
    while let Some(outcome) = at_once.next(&mut rest) {
        expected.push(outcome.map(|frame| frame.body.to_vec()));
    }
    assert!(expected.len() <= data.len(), "each outcome takes at least a byte");

    let mut decoder = Decoder::<64>::new();
    let mut found = Vec::new();
    for mut chunk in chunks(data) {
        while let Some(outcome) = decoder.next(&mut chunk) {
            if let Ok(frame) = &outcome {
                assert!(frame.len() <= 64);
                let mut wire = [0; 80];
                let len = frame.encode(&mut wire).expect("what was decoded is no longer");
                let mut again = Decoder::<64>::new();
                assert_eq!(again.next(&mut &wire[..len]), Some(outcome), "written again");
                reading_survives(frame);
            }
            found.push(outcome.map(|frame| frame.body.to_vec()));
        }
    }
    assert_eq!(found, expected);
    assert_eq!(decoder.counters(), at_once.counters());

    let mut wire = [0; 80];
    let frame = Frame { header: Header::control(Kind::Log, 1, 2), extension: &[], body: &[0, 1, 0, 2] };
    let len = frame.encode(&mut wire).expect("it fits");
    let (mut rest, mut last) = (&wire[..len], None);
    while let Some(outcome) = decoder.next(&mut rest) {
        last = Some(outcome.is_ok_and(|found| found == frame));
    }
    assert_eq!(last, Some(true), "a sound frame after anything");
}

/// What a frame carries is the same after it was written again.
fn reading_survives(frame: &Frame<'_>) {
    let Ok(reading) = Reading::decode(frame.header.schema, frame.header.rev, frame.body) else { return };
    let mut body = [0; 128];
    let (rev, len) = match reading {
        Reading::Raw(raw) => (Raw::REV, raw.encode(&mut body)),
        Reading::RoomOccupancy(room) => (RoomOccupancy::REV, room.encode(&mut body)),
        Reading::VehiclePosition(position) => (VehiclePosition::REV, position.encode(&mut body)),
        other => panic!("{other:?} is not known here"),
    };
    let len = len.expect("it fits");
    assert_eq!(Reading::decode(frame.header.schema, rev, &body[..len]), Ok(reading));
}

/// A frame with a right checksum around each piece of `data`, so that it gets past the decoder.
fn frames(data: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    for piece in chunks(data) {
        let mut header = [0; 16];
        let len = piece.len().min(16);
        header[..len].copy_from_slice(&piece[..len]);
        header[0] = 0x10 | (header[0] & 0x0f);
        header[1] &= 0x0f;
        // Near the numbers in use, where the interesting cases are.
        header[2..12].copy_from_slice(&[0, 0, 1, 0, 0, 0, piece[0] % 40, 0, 0, 0]);
        let Ok((header, _)) = Header::from_bytes(&header) else { continue };
        let (extension, body) = piece[len..].split_at((piece.len() - len).min(12));
        let mut out = [0; 128];
        let len = Frame { header, extension, body }.encode(&mut out).expect("it fits");
        wire.extend_from_slice(&out[..len]);
    }
    wire
}

/// Neither end panics, or talks without end, whatever comes; the gateway gives numbers in order all the same.
pub(crate) fn ends_survive(data: &[u8]) {
    let config = Config { uid: 0, firmware: 0, overflow: Overflow::DropOldest };
    let mut device = Device::<4, 32>::new(config, 1);
    let mut gateway = Gateway::<254, 2, 4>::new();
    let mut next = std::collections::BTreeMap::<(u64, u32), u32>::new();
    let mut out = [0; 320];
    for (turn, bytes) in [data.to_vec(), frames(data)].iter().enumerate() {
        for (step, chunk) in chunks(bytes).enumerate() {
            let now_us = ((turn + 1) * 1_000_000 + step * 7_000) as u64;
            let _ = device.send(now_us, 1, 1, &chunk[..chunk.len().min(32)]);
            device.receive(now_us, chunk, |_, _| {});
            let (mut greeted, mut durable) = (Vec::new(), Vec::new());
            let mut on_event = |event: Event<'_>| match event {
                Event::Hello(info) => greeted.push((info.uid, info.boot)),
                Event::Data(data) => {
                    let expected = next.insert((data.uid, data.boot), data.seq.wrapping_add(1));
                    assert!(expected.is_none_or(|seq| seq == data.seq));
                    durable.push((data.uid, data.boot, data.seq));
                }
                Event::Lost(lost) => {
                    let expected = next.insert((lost.uid, lost.boot), lost.last.wrapping_add(1));
                    assert!(expected.is_none_or(|seq| seq == lost.first));
                    durable.push((lost.uid, lost.boot, lost.last));
                }
                _ => {}
            };
            gateway.receive(now_us, chunk, &mut on_event);
            let mut turns = 0;
            while let Some(len) = device.poll_transmit(now_us, &mut out) {
                gateway.receive(now_us, &out[..len], &mut on_event);
                turns += 1;
                assert!(turns < 40, "the device talks without end");
            }
            for (uid, boot) in greeted {
                gateway.accept(uid, boot, next.get(&(uid, boot)).copied());
            }
            for (uid, boot, seq) in durable {
                gateway.committed(now_us, uid, boot, seq);
            }
            turns = 0;
            while let Some(len) = gateway.poll_transmit(now_us, &mut out) {
                device.receive(now_us, &out[..len], |_, _| {});
                turns += 1;
                assert!(turns < 40, "the gateway talks without end");
            }
        }
    }
}
