//! The system tests: Wayside's binaries between real servers. `tests/run` gives them what they need.
#![allow(clippy::disallowed_methods, reason = "the system tests run on the machine's own clock")]

mod servers;
