//! Publishes a recording, and waits for every acknowledgement.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::time::Instant;
use tracing::warn;

use super::{HfpMessage, Pacer, Speed};
use crate::{
    ledger::{Id, LedgerWriter, unix_micros},
    transport::mqtt::BrokerUrl,
};

/// Publications that wait for the client, and those that wait for their acknowledgement.
const QUEUE: usize = 100;
/// A broker that acknowledges nothing for so long will not.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Before the first connection; afterwards the client tries for ever.
const CONNECT_ATTEMPTS: u32 = 5;
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// What became of a recording.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    pub(super) published: u64,
    pub(super) acknowledged: u64,
    pub(super) bad_lines: u64,
}

/// Publishes `files` one after the other.
///
/// # Errors
/// A file that cannot be read, a broker that is not there at the start, or that goes silent.
pub(super) async fn play(
    files: &[PathBuf],
    url: &BrokerUrl,
    speed: Speed,
    stream: &str,
    ledger: Option<&LedgerWriter>,
) -> anyhow::Result<Outcome> {
    let mut options = MqttOptions::new(format!("wayside-replay-{}", std::process::id()), &url.host, url.port);
    if let Some(login) = &url.login {
        options.set_credentials(&login.user, &login.password);
    }
    // A clean session would forget on the broker's side what is resent on ours.
    options.set_keep_alive(Duration::from_secs(30)).set_clean_session(false);
    options.set_inflight(u16::try_from(QUEUE).expect("a small constant"));
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, events) = AsyncClient::new(options, QUEUE);
    let flight = Flight { stream: stream.to_owned(), ledger: ledger.cloned(), state: Arc::default() };
    let broker = tokio::spawn(drive(events, flight.clone()));

    let mut outcome = Outcome::default();
    let mut pacer = Pacer::new(speed);
    let start = Instant::now();
    for file in files {
        pacer.next_recording();
        let publish = publish_file(file, &client, &mut pacer, start, &flight, &mut outcome);
        tokio::pin!(publish);
        tokio::select! {
            biased;
            published = &mut publish => published?,
            // Only ever an error: without one it goes on for ever.
            () = async { while !broker.is_finished() { tokio::time::sleep(RECONNECT_DELAY).await } } => break,
        }
    }
    let mut seen = (0, Instant::now());
    while !broker.is_finished() {
        outcome.acknowledged = flight.acknowledged();
        if outcome.acknowledged == outcome.published || seen.1.elapsed() > SILENCE_MAX {
            broker.abort();
            return Ok(outcome);
        }
        if outcome.acknowledged != seen.0 {
            seen = (outcome.acknowledged, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    broker.await.context("the MQTT client panicked")??;
    bail!("the MQTT client ended");
}

async fn publish_file(
    path: &Path,
    client: &AsyncClient,
    pacer: &mut Pacer,
    start: Instant,
    flight: &Flight,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if lines.read_until(b'\n', &mut line).with_context(|| format!("cannot read {}", path.display()))? == 0
        {
            break;
        }
        let text = line.trim_ascii_end();
        if text.is_empty() {
            continue;
        }
        let message = match str::from_utf8(text).map_err(|_| "not UTF-8").and_then(HfpMessage::parse) {
            Ok(message) => message,
            Err(reason) => {
                outcome.bad_lines += 1;
                warn!(file = %path.display(), line = number, reason, "left out");
                continue;
            }
        };
        tokio::time::sleep_until(start + pacer.due(message.received_micros)).await;
        flight.sent(message.device(), Id::of_payload(message.payload.as_bytes()));
        outcome.published += 1;
        client.publish(message.topic, QoS::AtLeastOnce, false, message.payload).await?;
    }
    Ok(())
}

/// Publications under way. The client numbers them in the order in which they were handed to it.
#[derive(Clone)]
struct Flight {
    stream: String,
    ledger: Option<LedgerWriter>,
    /// Held for one step, never across an await.
    state: Arc<Mutex<FlightState>>,
}

#[derive(Default)]
struct FlightState {
    unnumbered: VecDeque<(String, Id)>,
    numbered: HashMap<u16, (String, Id)>,
    acknowledged: u64,
}

impl Flight {
    fn state(&self) -> std::sync::MutexGuard<'_, FlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self, device: String, id: Id) {
        if let Some(ledger) = &self.ledger {
            ledger.sent(&self.stream, &device, id, unix_micros());
        }
        self.state().unnumbered.push_back((device, id));
    }

    /// The client gave a publication its packet id, or sent that one again.
    fn numbered(&self, packet_id: u16) {
        let mut state = self.state();
        if !state.numbered.contains_key(&packet_id)
            && let Some(publication) = state.unnumbered.pop_front()
        {
            state.numbered.insert(packet_id, publication);
        }
    }

    fn acked(&self, packet_id: u16) {
        let mut state = self.state();
        if let Some((device, id)) = state.numbered.remove(&packet_id) {
            state.acknowledged += 1;
            if let Some(ledger) = &self.ledger {
                ledger.acked(&self.stream, &device, id, unix_micros());
            }
        }
    }

    fn acknowledged(&self) -> u64 {
        self.state().acknowledged
    }
}

/// Runs the client. It comes back to a broker that went away, but not to one that never was there.
async fn drive(mut events: EventLoop, flight: Flight) -> anyhow::Result<()> {
    let mut attempts_left = CONNECT_ATTEMPTS;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => attempts_left = u32::MAX,
            Ok(Event::Incoming(Packet::PubAck(ack))) => flight.acked(ack.pkid),
            Ok(Event::Outgoing(Outgoing::Publish(packet_id))) => flight.numbered(packet_id),
            Ok(_) => {}
            Err(error) => {
                attempts_left = attempts_left.saturating_sub(1);
                if attempts_left == 0 {
                    return Err(error).context("cannot connect to the MQTT broker");
                }
                warn!(%error, "no connection to the MQTT broker");
                tokio::time::sleep(RECONNECT_DELAY).await;
            }
        }
    }
}
