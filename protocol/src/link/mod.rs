//! Both ends of the serial link as state machines without I/O: bytes and the time go in, bytes, events and a deadline come out.
//!
//! [`device::Device`] keeps readings until they are durable; [`gateway::Gateway`] puts them back in order, passes each on once and
//! acknowledges what its host has made durable. `SPEC.md` describes the conversation.
//!
//! Times are microseconds of each end's own monotonic clock, from any start. Sequence numbers wrap around at 2^32 and are
//! compared by their distance.

pub mod control;
pub mod device;
pub mod gateway;

use crate::frame::{CRC_LEN, EXTENSION_LEN_MAX, FRAME_LEN_DEFAULT, FRAME_LEN_MAX, HEADER_LEN};

/// Most frames that can be in flight: the bits of the bitmap in ACK.
pub const WINDOW_MAX: usize = 32;
/// Frames in flight unless the ends agree on fewer. At 115200 baud 8 position frames take 50 ms, about one commit of the gateway.
pub const WINDOW_DEFAULT: usize = 8;
/// Bytes of the extension of DATA that every receiver of this version knows.
pub const DATA_EXTENSION_LEN: usize = 12;
/// Bytes that DATA adds to its body, before COBS.
pub const DATA_OVERHEAD: usize = HEADER_LEN + DATA_EXTENSION_LEN + CRC_LEN;
/// Longest body of DATA that fits into a frame of the default size.
pub const BODY_LEN_DEFAULT: usize = FRAME_LEN_DEFAULT - DATA_OVERHEAD;
/// Longest frame from gateway to device, before COBS: a device needs no larger buffer to listen with.
pub const TO_DEVICE_LEN_MAX: usize = 128;
/// Longest arguments of a command.
pub const COMMAND_ARGS_MAX: usize = 64;
/// Longest text of a LOG frame, in bytes.
pub const LOG_TEXT_MAX: usize = 120;

const _: () = assert!(WINDOW_DEFAULT <= WINDOW_MAX);
const _: () = assert!(DATA_EXTENSION_LEN <= EXTENSION_LEN_MAX);
const _: () = assert!(BODY_LEN_DEFAULT == 222 && DATA_OVERHEAD < FRAME_LEN_MAX);
const _: () = assert!(HEADER_LEN + control::CMD_CODE_LEN + COMMAND_ARGS_MAX + CRC_LEN <= TO_DEVICE_LEN_MAX);
const _: () = assert!(HEADER_LEN + control::HelloAck::LEN + CRC_LEN <= TO_DEVICE_LEN_MAX);
const _: () = assert!(HEADER_LEN + control::TimeRsp::LEN + CRC_LEN <= TO_DEVICE_LEN_MAX);

/// A gateway acknowledges after this many commits ..
pub const ACK_EVERY: u32 = 4;
/// .. or this long after the first of them, whichever comes first.
pub const ACK_DELAY_US: u64 = 20_000;

const _: () = assert!(
    ACK_EVERY as usize * 2 <= WINDOW_DEFAULT,
    "the device must never wait for an acknowledgement that waits for it"
);

/// Whether `a` comes before `b`, as the nearer way around says.
#[must_use]
pub const fn is_before(a: u32, b: u32) -> bool {
    let ahead = b.wrapping_sub(a);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_are_compared_across_the_wrap() {
        assert!(is_before(1, 2) && !is_before(2, 1) && !is_before(2, 2));
        assert!(is_before(u32::MAX, 0) && !is_before(0, u32::MAX));
        assert!(is_before(u32::MAX - 5, 5));
    }
}
