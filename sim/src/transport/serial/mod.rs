//! Devices on serial lines: pseudo-terminals on which the native protocol is spoken.

mod line;
mod noise;
mod pty;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::ensure;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use self::line::{LineTask, Node};
use self::noise::Noise;
use self::pty::Pty;
use crate::chance;
use crate::ledger::unix_micros;
use crate::load::Outgoing;
use crate::tally::Tally;

/// Readings that a device holds until they are durable; then the generator waits.
const MAX_UNACKED: usize = 256;

/// Arguments of the serial transport.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Serial")]
pub struct SerialArgs {
    /// Devices that share a line, as on RS-485; a gateway knows four. More lines are LINK.1, LINK.2 and so on
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16))]
    per_line: u32,
    /// Bits per second of a line; a byte takes ten
    #[arg(long, default_value_t = 115_200, value_parser = clap::value_parser!(u32).range(300..))]
    baud: u32,
    /// Probability that a bit is flipped on its way, in both directions
    #[arg(long, default_value_t = 0.0)]
    noise: f64,
    /// Probability that a byte is lost on its way, and that a stray one comes before it
    #[arg(long, default_value_t = 0.0)]
    slips: f64,
}

/// The Kafka keys of native devices: their uids, 16 hex digits. They differ between streams and seeds, so that several simulators can load one gateway.
pub fn device_ids(stream: &str, seed: u64, devices: usize) -> Vec<String> {
    (0..devices).map(|index| format!("{:016x}", uid(stream, seed, index))).collect()
}

fn uid(stream: &str, seed: u64, index: usize) -> u64 {
    // "WS", the seed's low half word, the stream's first letter, the index.
    let stream = u64::from(stream.bytes().next().unwrap_or(0));
    0x5753 << 48 | (seed & 0xffff) << 32 | stream << 24 | (index as u64 + 1)
}

/// All lines of a run.
#[derive(Debug)]
pub struct Lines {
    queues: Vec<mpsc::UnboundedSender<(usize, Outgoing)>>,
    permits: Vec<Arc<Semaphore>>,
    per_line: usize,
    tasks: JoinSet<()>,
    tally: Tally,
}

impl Lines {
    /// Makes the pseudo-terminals and switches their devices on.
    ///
    /// # Errors
    /// A pseudo-terminal or its link cannot be made; a probability is none.
    pub fn start(
        link: &Path,
        args: &SerialArgs,
        stream: &str,
        devices: usize,
        tally: Tally,
        seed: u64,
    ) -> anyhow::Result<Self> {
        for rate in [args.noise, args.slips] {
            ensure!((0.0..=1.0).contains(&rate), "--noise and --slips are probabilities");
        }
        let per_line = args.per_line as usize;
        let permits: Vec<_> = (0..devices).map(|_| Arc::new(Semaphore::new(MAX_UNACKED))).collect();
        // A device's boot number must be new at each start: not the seed's, but the clock's, with steps of a millisecond.
        let boot = u32::try_from(unix_micros() / 1000 & u64::from(u32::MAX)).unwrap_or(0);
        let mut queues = Vec::new();
        let mut tasks = JoinSet::new();
        for first in (0..devices).step_by(per_line) {
            let number = first / per_line;
            let node = |index: usize| {
                let device = u32::try_from(index).expect("the number of devices is bounded by the arguments");
                Node::new(device, uid(stream, seed, index), boot, permits[index].clone())
            };
            // Parts 2^32 and up of the seed, which the models do not use.
            let noise = [0, 1].map(|direction| {
                Noise::new(
                    args.noise,
                    args.slips,
                    chance::rng(seed, (1 << 32) + 2 * number as u64 + direction),
                )
            });
            let (queue, receiver) = mpsc::unbounded_channel();
            let line = LineTask {
                pty: Pty::open(&numbered(link, number))?,
                nodes: (first..devices.min(first + per_line)).map(node).collect(),
                queue: receiver,
                bits_per_second: args.baud.into(),
                noise,
                tally: tally.clone(),
            };
            queues.push(queue);
            tasks.spawn(line.run());
        }
        Ok(Self { queues, permits, per_line, tasks, tally })
    }

    /// The counters of the run.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// See [`super::Transport::try_send`].
    pub fn try_send(&mut self, outgoing: &Outgoing) -> bool {
        let device = outgoing.device as usize;
        match self.permits[device].try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => return false,
        }
        // A line ends after its queue is closed; one that failed says so in the log, and its readings go missing in the summary.
        let _ = self.queues[device / self.per_line].send((device % self.per_line, *outgoing));
        true
    }

    /// See [`super::Transport::ready`].
    pub async fn ready(&mut self, device: u32) {
        // The semaphore is never closed. The permit goes back at once and is taken again by `try_send`.
        let _ = self.permits[device as usize].acquire().await;
    }

    /// Waits until every device has all its acknowledgements. Dropped before that, it ends the lines.
    pub async fn drain(mut self) {
        self.queues.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// `LINK`, `LINK.1`, `LINK.2` and so on.
fn numbered(link: &Path, number: usize) -> PathBuf {
    if number == 0 {
        return link.to_owned();
    }
    let mut numbered = link.as_os_str().to_owned();
    numbered.push(format!(".{number}"));
    numbered.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_differ_between_devices_streams_and_seeds() {
        let mut all: Vec<String> = [("occupancy", 1), ("occupancy", 2), ("vehicle-positions", 1)]
            .into_iter()
            .flat_map(|(stream, seed)| device_ids(stream, seed, 100))
            .collect();
        assert!(all.iter().all(|id| id.len() == 16));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 300);
    }

    #[test]
    fn lines_after_the_first_are_numbered() {
        assert_eq!(numbered(Path::new("/tmp/tty"), 0), Path::new("/tmp/tty"));
        assert_eq!(numbered(Path::new("/tmp/tty"), 2), Path::new("/tmp/tty.2"));
    }
}
