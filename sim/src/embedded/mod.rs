//! Servers inside this process, each on a free port of the loopback, with nothing on disk: what the demo and the tests
//! need to run anywhere.

pub mod kafka;
pub mod mqtt;
