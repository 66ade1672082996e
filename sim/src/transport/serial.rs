//! Placeholder until the link protocol is merged.
use std::path::Path;

use crate::load::Outgoing;
use crate::tally::Tally;

/// Arguments of the serial transport.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Kafka keys.
pub fn device_ids(_stream: &str, devices: usize) -> Vec<String> {
    vec![String::new(); devices]
}

/// Serial line.
#[derive(Debug)]
pub struct Line {
    tally: Tally,
}

impl Line {
    /// Fails.
    pub fn start(_link: &Path, _args: &Args, _tally: Tally, _seed: u64) -> anyhow::Result<Self> {
        anyhow::bail!("not built yet")
    }
    /// Counters.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }
    /// Refuses.
    pub fn try_send(&mut self, _outgoing: &Outgoing) -> bool {
        false
    }
    /// Waits.
    pub async fn ready(&mut self, _device: u32) {}
    /// Ends.
    pub async fn drain(self) {}
}
