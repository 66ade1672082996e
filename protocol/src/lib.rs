//! Wayside wire protocol.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
pub mod cobs;
pub mod crc;
pub mod decoder;
pub mod error;
pub mod frame;
pub mod partition;
pub mod payload;
