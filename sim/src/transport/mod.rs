//! Ways for readings to leave.

pub mod mqtt;
pub mod serial;

use std::time::Duration;

use crate::load::{Outgoing, StopSignal};
use crate::tally::Tally;

/// The transport of a run. Readings that were taken are held until acknowledged; how many, is bounded.
#[derive(Debug)]
pub enum Transport {
    /// Many MQTT clients on one broker.
    Mqtt(mqtt::Fleet),
    /// Native devices on serial lines.
    Serial(serial::Lines),
}

impl Transport {
    /// The counters of the run.
    pub fn tally(&self) -> Tally {
        match self {
            Self::Mqtt(fleet) => fleet.tally(),
            Self::Serial(lines) => lines.tally(),
        }
    }

    /// Takes the reading, or returns false when its device has too many outstanding; then wait for [`ready`](Self::ready).
    #[must_use]
    pub fn try_send(&mut self, outgoing: &Outgoing) -> bool {
        match self {
            Self::Mqtt(fleet) => fleet.try_send(outgoing),
            Self::Serial(lines) => lines.try_send(outgoing),
        }
    }

    /// Waits until the device can take a reading, or never will; cancel safe.
    pub async fn ready(&mut self, device: u32) {
        match self {
            Self::Mqtt(fleet) => fleet.ready(device).await,
            Self::Serial(lines) => lines.ready(device).await,
        }
    }

    /// Lets the readings taken since the last call go.
    pub fn flush(&mut self) {
        if let Self::Mqtt(fleet) = self {
            fleet.flush();
        }
    }

    /// Waits until everything is acknowledged, for `limit` at most or until the next signal.
    pub async fn drain(self, limit: Duration, stop: &mut StopSignal) {
        let drained = async {
            match self {
                Self::Mqtt(fleet) => fleet.drain().await,
                Self::Serial(lines) => lines.drain().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.wait() => {}
            _ = tokio::time::timeout(limit, drained) => {}
        }
    }
}
