//! The wire format between microcontrollers and the Wayside agent, for both ends: `no_std`, no heap, no I/O, no panics.
//!
//! `SPEC.md` beside this crate is the format as a book, for authors of firmware in any language. This crate is its first
//! implementation, and the one that the agent uses.
//!
//! # Layout
//!
//! - [`frame`]: one frame, `00 COBS(header | extension | body | CRC-32C) 00`.
//! - [`decoder`]: finds frames in a stream of bytes, whatever else is in it.
//! - [`link`]: both ends of a serial line as state machines that are given the time: [`link::device::Device`] keeps readings
//!   until they are durable, [`link::gateway::Gateway`] passes each on once and in order.
//! - [`payload`]: what a frame carries.
//! - [`partition`]: which Kafka partition a key goes to.
//! - [`cobs`], [`crc`], [`error`]: what these are made of.
//!
//! # A device and a gateway
//!
//! Neither end reads a clock or a port. A driver calls `receive` with the bytes that came, `poll_transmit` when the line is
//! free, and both again at `next_deadline` at the latest.
//!
//! ```
//! use wayside_protocol::link::device::{Config, Device, Overflow};
//! use wayside_protocol::link::gateway::{Event, Gateway};
//! use wayside_protocol::payload::{Presence, Reading, RoomOccupancyV1};
//!
//! let config = Config { uid: 0x1122_3344_5566_7788, firmware: 0x0100_0000, overflow: Overflow::DropOldest };
//! let mut device: Device = Device::new(config, 0x5eed_0001);
//! let mut gateway: Gateway = Gateway::new();
//!
//! let reading = RoomOccupancyV1 {
//!     zone: 0,
//!     presence: Presence::OCCUPIED,
//!     people: Some(3),
//!     motion_events: 1,
//!     entered_total: 12,
//!     left_total: 9,
//! };
//! device.send_payload(0, &reading)?;
//!
//! let mut wire = [0; 320];
//! let (mut durable, mut to_accept, mut to_commit) = (0, None, None);
//! for now_us in (0..200_000).step_by(1000) {
//!     while let Some(len) = device.poll_transmit(now_us, &mut wire) {
//!         gateway.receive(now_us, &wire[..len], |event| match event {
//!             Event::Hello(info) if info.needs_accept => to_accept = Some((info.uid, info.boot)),
//!             Event::Data(data) => {
//!                 let reading = Reading::decode(data.schema, data.rev, data.body).expect("a known schema");
//!                 assert!(matches!(reading, Reading::RoomOccupancy(room) if room.people == Some(3)));
//!                 to_commit = Some((data.uid, data.boot, data.seq));
//!             }
//!             _ => {}
//!         });
//!     }
//!     if let Some((uid, boot)) = to_accept.take() {
//!         gateway.accept(uid, boot, None); // A real host looks up what it has of this device.
//!     }
//!     if let Some((uid, boot, seq)) = to_commit.take() {
//!         gateway.committed(now_us, uid, boot, seq); // A real host calls fdatasync first.
//!         durable += 1;
//!     }
//!     while let Some(len) = gateway.poll_transmit(now_us, &mut wire) {
//!         device.receive(now_us, &wire[..len], |_code, _args| {});
//!     }
//! }
//! assert_eq!((durable, device.pending()), (1, 0));
//! # Ok::<(), wayside_protocol::error::SendError>(())
//! ```

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod cobs;
pub mod crc;
pub mod decoder;
pub mod error;
pub mod frame;
pub mod link;
pub mod partition;
pub mod payload;
