//! The least firmware that speaks the link: a room sensor whose board supplies a clock, a port and a sensor.

#![no_std]

use core::panic::PanicInfo;
use wayside_protocol::frame::max_wire_len;
use wayside_protocol::link::DATA_OVERHEAD;
use wayside_protocol::link::device::{Config, Device, Overflow};
use wayside_protocol::payload::RoomOccupancyV1;

/// Longest body that this device sends, and readings that it keeps while the gateway is away.
const BODY: usize = 64;
const RING: usize = 8;

/// What the board supplies.
pub struct Board {
    /// Microseconds since the start.
    pub now_us: fn() -> u64,
    /// 32 random bits, or a counter in flash.
    pub boot: u32,
    /// The microcontroller's unique number.
    pub uid: u64,
    /// Takes what the port has received, without waiting.
    pub read: fn(&mut [u8]) -> usize,
    /// Sends, and waits until the port has taken all of it.
    pub write: fn(&[u8]),
    /// The next reading, if there is one.
    pub sense: fn() -> Option<RoomOccupancyV1>,
}

/// The main loop.
#[unsafe(no_mangle)]
pub fn wayside_firmware(board: &Board) -> ! {
    let config = Config { uid: board.uid, firmware: 0x0100_0000, overflow: Overflow::DropOldest };
    let mut device = Device::<RING, BODY>::new(config, board.boot);
    let mut input = [0; 32];
    let mut output = [0; max_wire_len(BODY + DATA_OVERHEAD + 64)];
    loop {
        let now_us = (board.now_us)();
        let len = (board.read)(&mut input);
        device.receive(now_us, input.get(..len).unwrap_or_default(), |_code, _args| {});
        if let Some(reading) = (board.sense)() {
            // Drops the oldest one when the ring is full, so there is always room; the body is far below the limit.
            let _ = device.send_payload(now_us, &reading);
        }
        if let Some(frame) = device.poll_transmit(now_us, &mut output).and_then(|len| output.get(..len)) {
            (board.write)(frame);
        }
    }
}

#[panic_handler]
fn panic(_info: &PanicInfo<'_>) -> ! {
    loop {}
}
