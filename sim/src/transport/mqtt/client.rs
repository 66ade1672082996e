//! One MQTT connection: the task that moves bytes between a session and a socket, and connects again when it breaks.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rand::Rng as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::BrokerUrl;
use super::session::{Item, Send, Session};
use super::wire::{Incoming, Qos, Version};
use crate::chance::Rng;
use crate::tally::Tally;

const KEEP_ALIVE_S: u16 = 30;
/// Pings leave at half the keep-alive; two unanswered ones mean that the broker is gone.
const PING_EVERY: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bounds of the delay between attempts: short, since a test restarts brokers in a second; jittered, so that clients spread.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// No more is encoded while this much waits for the socket, bytes.
const OUT_BUFFER: usize = 64 * 1024;

/// What the task needs; [`run`](Self::run) is the task.
pub(super) struct Client {
    pub url: BrokerUrl,
    pub client_id: String,
    pub version: Version,
    pub qos: Qos,
    /// By device index.
    pub mqtt_topics: Arc<[Bytes]>,
    pub tally: Tally,
    pub rng: Rng,
    /// Readings to send; closed when there will be no more.
    pub queue: mpsc::UnboundedReceiver<Vec<Item>>,
    /// One permit goes back for each packet identifier that is free again.
    pub permits: Arc<Semaphore>,
}

/// Why a connection was served to its end.
enum End {
    /// All is acknowledged and there will be no more.
    Finished,
    /// It broke.
    Lost(io::Error),
}

impl Client {
    /// Sends what the queue brings until it is closed and all is acknowledged, over as many connections as it takes.
    pub(super) async fn run(mut self) {
        let mut session = Session::default();
        let mut delay = RETRY_MIN;
        // A client id of an earlier process may have left a session; later connections resume ours.
        let mut clean = true;
        loop {
            let began = Instant::now();
            let lost = match timeout(CONNECT_TIMEOUT, self.connect(&mut session, clean)).await {
                Ok(Ok((stream, input))) => {
                    clean = false;
                    match self.serve(stream, input, &mut session).await {
                        End::Finished => return,
                        End::Lost(error) => error,
                    }
                }
                Ok(Err(error)) => error,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            self.tally.reconnecting();
            tracing::warn!(client_id = self.client_id, error = %lost, "lost the broker");
            if began.elapsed() > RETRY_MAX {
                delay = RETRY_MIN;
            }
            sleep(delay.mul_f64(self.rng.random_range(0.5..1.5))).await;
            delay = (delay * 2).min(RETRY_MAX);
        }
    }

    async fn connect(&self, session: &mut Session, clean: bool) -> io::Result<(TcpStream, BytesMut)> {
        let mut stream = TcpStream::connect((self.url.host.as_str(), self.url.port)).await?;
        stream.set_nodelay(true)?;
        let mut bytes = BytesMut::new();
        // 3.1.1 would end a clean session with the connection, and then resend without the broker knowing.
        let clean = clean && self.version == Version::V5;
        self.version.connect(&self.client_id, self.url.login.as_ref(), clean, KEEP_ALIVE_S, &mut bytes);
        stream.write_all_buf(&mut bytes).await?;
        loop {
            match self.version.read(&mut bytes)? {
                Some(Incoming::Connected { session_present, receive_maximum }) => {
                    session.connected(session_present, receive_maximum);
                    return Ok((stream, bytes));
                }
                Some(Incoming::Refused(reason)) => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason));
                }
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => read_some(&mut stream, &mut bytes).await?,
            }
        }
    }

    async fn serve(&mut self, mut stream: TcpStream, mut input: BytesMut, session: &mut Session) -> End {
        match self.serve_until_finished(&mut stream, &mut input, session).await {
            Ok(()) => {
                let mut bytes = BytesMut::new();
                self.version.disconnect(&mut bytes);
                // All is acknowledged: whether the broker hears the goodbye changes nothing.
                let _ = stream.write_all_buf(&mut bytes).await;
                let _ = stream.shutdown().await;
                End::Finished
            }
            Err(error) => End::Lost(error),
        }
    }

    async fn serve_until_finished(
        &mut self,
        stream: &mut TcpStream,
        input: &mut BytesMut,
        session: &mut Session,
    ) -> io::Result<()> {
        let (mut reader, mut writer) = stream.split();
        let mut output = BytesMut::with_capacity(OUT_BUFFER);
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        let mut more = true;
        loop {
            while let Some(incoming) = self.version.read(input)? {
                self.take(incoming, session, &mut output)?;
            }
            self.fill(session, &mut output);
            if !more && session.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                read = read_some(&mut reader, input) => {
                    read?;
                    heard = Instant::now();
                }
                written = writer.write_buf(&mut output), if output.has_remaining() => {
                    written?;
                }
                items = self.queue.recv(), if more => match items {
                    Some(items) => items.into_iter().for_each(|item| session.push(item)),
                    None => more = false,
                },
                _ = pings.tick() => {
                    if heard.elapsed() > 2 * PING_EVERY {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.version.ping(&mut output);
                }
            }
        }
    }

    /// Encodes what the session has to send. A reading is in the ledger before its bytes are in the buffer.
    fn fill(&mut self, session: &mut Session, output: &mut BytesMut) {
        while output.len() < OUT_BUFFER
            && let Some(next) = session.next_send()
        {
            match next {
                Send::Publish { packet_id, item } => {
                    let dup = item.sent_micros.is_some();
                    if dup {
                        self.tally.resent(1);
                    } else {
                        item.sent_micros = Some(self.tally.sent(item.device, item.seq));
                    }
                    let mqtt_topic = &self.mqtt_topics[item.device as usize];
                    self.version.publish(mqtt_topic, self.qos, packet_id, dup, &item.payload, output);
                }
                Send::Release { packet_id } => self.version.release(packet_id, output),
            }
        }
    }

    fn take(&self, incoming: Incoming, session: &mut Session, output: &mut BytesMut) -> io::Result<()> {
        let before = session.len();
        match incoming {
            Incoming::Acknowledged(packet_id) => {
                if let Some(item) = session.acknowledged(packet_id) {
                    let sent = item.sent_micros.expect("a reading in flight was sent");
                    self.tally.acked(item.device, item.seq, sent);
                }
            }
            Incoming::Rejected(packet_id) => {
                if session.acknowledged(packet_id).is_some() {
                    self.tally.refused();
                }
            }
            Incoming::Received(packet_id) => {
                session.received(packet_id);
                // Also for an unknown identifier: the broker may hold one of an earlier process, and waits for its release.
                self.version.release(packet_id, output);
            }
            Incoming::Pong => {}
            Incoming::Disconnected(reason) => {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason));
            }
            Incoming::Connected { .. } | Incoming::Refused(_) => {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        // By identifiers, not by readings: should a broker forget one, the generator waits before identifiers run out.
        self.permits.add_permits(before - session.len());
        Ok(())
    }
}

/// Reads once; the end of the stream is an error. Cancel safe.
async fn read_some(reader: &mut (impl AsyncReadExt + Unpin), bytes: &mut BytesMut) -> io::Result<()> {
    bytes.reserve(4096);
    match reader.read_buf(bytes).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
