//! One serial line: the devices on it, the pace of its bytes, and its noise.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};
use wayside_protocol::error::SendError;
use wayside_protocol::link::WINDOW_MAX;
use wayside_protocol::link::device::{Config, Device, Overflow};
use wayside_protocol::payload::{FixQuality, Presence, RoomOccupancy, VehiclePosition};

use super::noise::Noise;
use super::pty::Pty;
use crate::load::{Outgoing, Reading};
use crate::tally::Tally;

/// Room for any frame that a device sends.
const FRAME_BUFFER: usize = 1100;
/// A UART sends a start and a stop bit with each byte.
const BITS_PER_BYTE: u64 = 10;
/// How far the pace may be made up after the task was late, µs: timers are no finer than a millisecond.
const PACE_SLACK_US: u64 = 20_000;

/// A device on the line, and its readings from the first sending to the acknowledgement.
pub(super) struct Node {
    /// Index in the model.
    index: u32,
    device: Box<Device<WINDOW_MAX>>,
    waiting: VecDeque<Outgoing>,
    /// Sequence and time of sending, Unix microseconds.
    sent: VecDeque<(u32, u64)>,
    permits: Arc<Semaphore>,
}

impl Node {
    pub(super) fn new(index: u32, uid: u64, boot: u32, permits: Arc<Semaphore>) -> Self {
        let config = Config { uid, firmware: 1 << 24, overflow: Overflow::Refuse };
        let device = Box::new(Device::new(config, boot));
        Self { index, device, waiting: VecDeque::new(), sent: VecDeque::new(), permits }
    }

    fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty()
    }

    /// Gives the device as many readings as it takes. A reading is in the ledger before its frame exists.
    fn feed(&mut self, now_us: u64, tally: &Tally) {
        while let Some(outgoing) = self.waiting.front() {
            match send(&mut self.device, now_us, outgoing) {
                Ok(seq) => self.sent.push_back((seq, tally.sent(self.index, seq.into()))),
                Err(SendError::Full) => return,
                // The gateway allows frames that are too short for the reading.
                Err(_) => {
                    tally.refused();
                    self.permits.add_permits(1);
                }
            }
            self.waiting.pop_front();
        }
    }

    /// Takes bytes from the line; what the device no longer holds after them is durable at the gateway.
    fn receive(&mut self, now_us: u64, bytes: &[u8], tally: &Tally) {
        let lost_before = self.device.counters().lost;
        self.device.receive(now_us, bytes, |_, _| {});
        let lost = self.device.counters().lost.wrapping_sub(lost_before);
        for dropped in 0..self.sent.len().saturating_sub(self.device.pending()) {
            let Some((seq, sent_micros)) = self.sent.pop_front() else { return };
            if dropped < lost as usize {
                tally.refused();
            } else {
                tally.acked(self.index, seq.into(), sent_micros);
            }
            self.permits.add_permits(1);
        }
    }
}

fn send(device: &mut Device<WINDOW_MAX>, now_us: u64, outgoing: &Outgoing) -> Result<u32, SendError> {
    match outgoing.reading {
        Reading::Room(room) => device.send_payload(
            now_us,
            &RoomOccupancy {
                zone: 0,
                presence: if room.occupied { Presence::OCCUPIED } else { Presence::VACANT },
                people: None,
                motion_events: room.motion_events,
                entered_total: room.entered_total,
                left_total: room.left_total,
                co2_ppm: Some(room.co2_ppm),
                temperature_centi_c: Some(room.temperature_centi_c),
                humidity_centi_percent: None,
                illuminance_lux: Some(room.illuminance_lux),
                supply_mv: None,
            },
        ),
        Reading::Vehicle(vehicle) => device.send_payload(
            now_us,
            &VehiclePosition {
                latitude_1e7_deg: vehicle.fix.latitude_e7,
                longitude_1e7_deg: vehicle.fix.longitude_e7,
                fix: FixQuality::GNSS,
                satellites: 9,
                speed_mm_s: Some(u32::from(vehicle.fix.speed_cm_s) * 10),
                heading_centi_deg: vehicle.fix.heading_cdeg,
                altitude_cm: None,
                accuracy_cm: Some(crate::traffic::VehicleReading::ACCURACY_CM),
                odometer_m: Some(vehicle.odometer_m),
                fix_unix_ms: Some(outgoing.time_micros / 1000),
            },
        ),
    }
}

/// The task of one line.
pub(super) struct LineTask {
    pub pty: Pty,
    pub nodes: Vec<Node>,
    /// Readings with the index of their node; closed when there will be no more.
    pub queue: mpsc::UnboundedReceiver<(usize, Outgoing)>,
    pub bits_per_second: u64,
    /// Towards the gateway, and from it.
    pub noise: [Noise; 2],
    pub tally: Tally,
}

impl LineTask {
    /// Runs the devices until the queue is closed and all is acknowledged.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.run_devices().await {
            tracing::error!(%error, "the serial line failed");
        }
        let resent = self.nodes.iter().map(|node| u64::from(node.device.counters().resent)).sum();
        self.tally.resent(resent);
    }

    async fn run_devices(&mut self) -> io::Result<()> {
        let epoch = Instant::now();
        let now_us = || u64::try_from(epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        let [mut outbound, mut inbound] = [vec![0; FRAME_BUFFER], vec![0; FRAME_BUFFER]];
        let mut damaged = Vec::with_capacity(2 * FRAME_BUFFER);
        // When the line has carried what was sent so far, and whose turn it is.
        let (mut free_us, mut turn) = (0, 0);
        let mut more = true;
        while more || !self.nodes.iter().all(Node::is_done) {
            for node in &mut self.nodes {
                node.feed(now_us(), &self.tally);
            }
            let nodes = self.nodes.len();
            while free_us <= now_us() {
                // From the node after the last one that sent: nobody is shut out.
                let found = (0..nodes)
                    .map(|offset| (turn + offset) % nodes)
                    .find_map(|at| Some((at, self.nodes[at].device.poll_transmit(now_us(), &mut outbound)?)));
                let Some((at, length)) = found else { break };
                turn = at + 1;
                damaged.clear();
                self.noise[0].pass(&outbound[..length], &mut damaged);
                self.pty.write(&damaged)?;
                let duration_us = length as u64 * BITS_PER_BYTE * 1_000_000 / self.bits_per_second;
                free_us = free_us.max(now_us().saturating_sub(PACE_SLACK_US)) + duration_us;
            }
            let due_us = self.nodes.iter().map(|node| node.device.next_deadline()).min().unwrap_or(u64::MAX);
            // A minute is for ever here, and keeps the sum within range.
            let wake_us = due_us.max(free_us).min(now_us() + 60_000_000);
            tokio::select! {
                biased;
                read = self.pty.read(&mut inbound) => {
                    let length = read?;
                    damaged.clear();
                    self.noise[1].pass(&inbound[..length], &mut damaged);
                    for node in &mut self.nodes {
                        node.receive(now_us(), &damaged, &self.tally);
                    }
                }
                next = self.queue.recv(), if more => match next {
                    Some((node, outgoing)) => self.nodes[node].waiting.push_back(outgoing),
                    None => more = false,
                },
                () = sleep_until(epoch + Duration::from_micros(wake_us)) => {}
            }
        }
        Ok(())
    }
}
