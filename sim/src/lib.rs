//! The simulator: believable buildings and traffic that load Wayside, and the ledger and verifier that prove what arrived.
//!
//! # Layout
//! - [`cli`]: the commands of `wayside-sim`; each is one module with `Args` and `run`.
//! - [`ledger`]: what was sent and acknowledged, written here and read by the verifier.
//! - [`demo`]: the whole journey on one machine, with an outage and a crash, and the verdict.
//! - [`embedded`]: MQTT and Kafka without a server, for the demo and tests.
//! - [`verify`]: holds Kafka against the ledgers.

// Real clocks are meant here: the simulator is outside of the system whose time is simulated.
#![allow(clippy::disallowed_methods)]

pub mod building;
pub mod cli;
pub mod demo;
pub mod embedded;
pub mod ledger;
pub mod traffic;
pub mod units;
pub mod verify;
