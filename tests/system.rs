//! The system tests: Wayside's binaries between real servers. `tests/run` gives them what they need.
#![allow(clippy::disallowed_methods, reason = "the system tests run on the machine's own clock")]
#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

mod access;
mod ack_order;
mod campaign;
mod catch_up;
mod check;
mod clients;
mod clock;
mod crash;
mod delivery;
mod demo;
mod disk;
mod drive;
mod hostile;
mod http;
mod journey;
mod listener;
mod noise;
mod policies;
mod redelivery;
mod secure;
mod servers;
mod service;
