//! The simulator: believable buildings and traffic that load Wayside, and the ledger and verifier that prove what arrived.
//!
//! # Layout
//! - [`cli`]: the commands of `wayside-sim`; each is one module with `Args` and `run`.
//! - [`building`], [`traffic`]: the models. They know neither clock nor I/O: the same seed and steps give the same readings.
//! - [`load`]: steps a model, spreads its readings over time and hands them to a transport.
//! - [`transport`]: many MQTT clients, or native devices on serial lines.
//! - [`tally`], [`ledger`]: what was sent and acknowledged; the ledger is read by the verifier.
//! - [`replay`]: plays recordings of real devices.
//! - [`verify`]: holds Kafka against the ledgers.
//! - [`demo`]: the whole journey on one machine, with an outage and a crash, and the verdict.
//! - [`embedded`]: MQTT and Kafka without a server, for the demo and tests.

// Real clocks are meant here: the simulator is outside of the system whose time is simulated.
#![allow(clippy::disallowed_methods)]

pub mod building;
pub mod chance;
pub mod cli;
pub mod demo;
pub mod embedded;
pub mod ledger;
pub mod load;
pub mod replay;
pub mod stamp;
pub mod tally;
pub mod traffic;
pub mod transport;
pub mod verify;
