//! `source.serial`: a serial port, with the link protocol or NMEA 0183 on it.
//!
//! # Rules
//! * **Coming and going**: a port that cannot be opened, or ends, is opened again by its path after a jittered delay. The
//!   link's state outlives the port: a cable that was out for a minute costs no reading and repeats none.
//! * **Repetition**: a device sends again what it has no ACK for. What is stored of each is noted in the log ([`devices`]), so that
//!   it is acknowledged and not stored again, also after a crash of the agent.
//! * **Acknowledgement**: the link's ACK tells a device only what an
//!   [`Acknowledgement`](crate::intake::Acknowledgement) covers. All frames that are due leave in one write.
//! * **Back-pressure**: while the intake has no room, devices of the link protocol get no credit and keep their readings;
//!   the window that still comes waits here. NMEA receivers cannot wait: what exceeds 64 KiB is dropped and counted.
//! * **Pace**: while bytes come in a stream, the port is read every 2 ms and not for each of them.
//! * **Noise** costs its port alone: rejected frames are counted by reason, and logged once a minute.
//! * **Shutdown**: read no more, wait for the acknowledgements of what was taken (at most 5 s), send them.

mod devices;
mod line;
mod native;
mod nmea;
mod reach;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;

use std::{io, pin::Pin, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    time::{sleep, timeout},
};
use tokio_serial::{SerialPortBuilder, SerialStream};
use tracing::{debug, info, warn};
use wayside_protocol::link::ACK_DELAY_US;

pub use self::reach::reach;
use self::{
    line::{Frames, Line, Now},
    native::{NativeConfig, NativeLine},
    nmea::NmeaLine,
};
use super::{SourceContext, backoff::Backoff};
use crate::{
    config::{FlowControl, Parity, SerialProtocol, SerialSource},
    decode::nmea::NmeaRoute,
    env::Monotonic,
    intake::{self, IntakeClosed, Reservation},
    log::Note,
    record::Record,
};

/// Longest time that a shutdown waits for acknowledgements, and for the port to take them.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads that follow each other faster than this are spaced by [`READ_PAUSE`].
const BUSY_INTERVAL: Duration = Duration::from_millis(5);

/// Pause between reads while bytes stream in. A terminal buffers 4 KiB: enough for this at 3 Mbit/s.
const READ_PAUSE: Duration = Duration::from_millis(2);

/// Size of a read: what a terminal buffers.
const READ_BYTES: usize = 4096;

/// Rejected frames are logged no more often than this.
const NOISE_INTERVAL: Duration = Duration::from_secs(60);

/// Upper bound of a wait that has no deadline.
const IDLE: Duration = Duration::from_secs(3600);

/// Runs the source until `context.shutdown`, or until the pipeline ends. Records larger than `record_bytes_max` become
/// dead letters.
pub async fn run(config: SerialSource, record_bytes_max: usize, context: SourceContext) {
    let port = config.path.display().to_string();
    let line: Box<dyn Line> = match &config.protocol {
        SerialProtocol::Native => Box::new(NativeLine::new(
            NativeConfig {
                source: config.name.clone(),
                port: port.clone(),
                value: config.value,
                record_bytes_max,
            },
            &context.remembered,
        )),
        SerialProtocol::Nmea { stream, raw_stream, device } => Box::new(NmeaLine::new(NmeaRoute {
            port: port.clone().into(),
            stream: stream.clone(),
            raw_stream: raw_stream.clone(),
            device: device.clone(),
            value: config.value,
        })),
    };
    let source = Source {
        builder: builder(&config, &port),
        reopen: Backoff::new(config.reopen),
        port,
        line,
        context,
        room: None,
        noise: Noise::default(),
        config,
    };
    Box::pin(source.run()).await;
}

fn builder(config: &SerialSource, port: &str) -> SerialPortBuilder {
    let parity = match config.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Even => tokio_serial::Parity::Even,
        Parity::Odd => tokio_serial::Parity::Odd,
    };
    let flow_control = match config.flow_control {
        FlowControl::None => tokio_serial::FlowControl::None,
        FlowControl::Hardware => tokio_serial::FlowControl::Hardware,
        FlowControl::Software => tokio_serial::FlowControl::Software,
    };
    // Two readers of one port would each get half of the bytes.
    tokio_serial::new(port, config.baud).parity(parity).flow_control(flow_control).exclusive(true)
}

/// Why [`Source::serve`] returned.
enum Ended {
    /// Shutdown, or the pipeline is gone.
    ForGood,
    /// The port is gone.
    Lost(io::Error),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl From<IntakeClosed> for Ended {
    fn from(_: IntakeClosed) -> Self {
        Self::ForGood
    }
}

/// What waits for room, and the wait.
struct Waiting {
    records: Vec<Record>,
    notes: Vec<Note>,
    reservation: Pin<Box<dyn Future<Output = Result<Reservation, IntakeClosed>> + Send>>,
}

/// Rejected frames that the log has not been told of. It is told once in [`NOISE_INTERVAL`].
#[derive(Debug, Default)]
struct Noise {
    count: u64,
    quiet_until: Monotonic,
}

impl Noise {
    /// Adds `rejected` frames; returns how many are to be told now, if any.
    fn due(&mut self, now: Monotonic, rejected: u64) -> Option<u64> {
        self.count += rejected;
        if self.count == 0 || now < self.quiet_until {
            return None;
        }
        self.quiet_until = now + NOISE_INTERVAL;
        Some(std::mem::take(&mut self.count))
    }
}

struct Source {
    config: SerialSource,
    port: String,
    builder: SerialPortBuilder,
    reopen: Backoff,
    line: Box<dyn Line>,
    context: SourceContext,
    room: Option<Waiting>,
    noise: Noise,
}

impl Source {
    async fn run(mut self) {
        let mut shutdown = self.context.shutdown.clone();
        let mut cause = String::new();
        while !*shutdown.borrow() {
            let error = match SerialStream::open(&self.builder) {
                Ok(stream) => {
                    let since = self.now().monotonic;
                    info!(source = self.config.name, port = self.port, "port opened");
                    self.context.counters.connections.inc();
                    self.context.counters.connected.set(1);
                    self.context.health.healthy();
                    let ended = self.serve(stream).await;
                    self.context.counters.connected.set(0);
                    let now = self.now();
                    self.line.closed(now);
                    self.reopen.lived(since, now.monotonic);
                    cause.clear();
                    match ended {
                        Ended::ForGood => {
                            // What the line still held. Bounded, since the intake may be full.
                            let _ = timeout(DRAIN_TIMEOUT, self.submit_rest()).await;
                            return;
                        }
                        Ended::Lost(error) => error.to_string(),
                    }
                }
                Err(error) => reach::cause(&self.config, &error),
            };
            self.context.counters.failures.inc();
            self.context.health.down(&format!("{}: {error}", self.port));
            if cause == error {
                debug!(source = self.config.name, port = self.port, error, "no port");
            } else {
                warn!(source = self.config.name, port = self.port, error, "no port");
            }
            cause = error;
            let delay = self.reopen.next(&mut *self.context.entropy);
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|asked| *asked) => return,
                closed = self.submit_rest() => if closed.is_err() { return },
            }
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|asked| *asked) => return,
                () = sleep(delay) => {}
            }
        }
    }

    fn now(&self) -> Now {
        Now { monotonic: self.context.clock.monotonic(), received: self.context.clock.wall() }
    }

    /// Serves the port until it or the source ends.
    async fn serve(&mut self, stream: SerialStream) -> Ended {
        let (mut read, mut write) = tokio::io::split(stream);
        match self.exchange(&mut read, &mut write).await {
            Ok(()) => Ended::ForGood,
            Err(ended) => ended,
        }
    }

    async fn exchange(
        &mut self,
        read: &mut ReadHalf<SerialStream>,
        write: &mut WriteHalf<SerialStream>,
    ) -> Result<(), Ended> {
        let mut shutdown = self.context.shutdown.clone();
        let mut inbound = BytesMut::with_capacity(READ_BYTES);
        let mut outbound = BytesMut::new();
        let mut drained_at: Option<Monotonic> = None;
        let mut read_at = Monotonic::default();
        let mut received_at = Monotonic::default();
        loop {
            let now = self.now();
            self.line.expire(now);
            self.submit_queue()?;
            self.line.set_room(now, self.room.is_none());
            if outbound.is_empty() {
                self.line.transmit(now, &mut outbound);
            }
            self.count(now);
            let mut wake_at = now.monotonic + IDLE;
            if drained_at.is_some() && self.room.is_none() && self.line.unacknowledged() == 0 {
                let last_answers_at = now.monotonic + Duration::from_micros(2 * ACK_DELAY_US);
                drained_at = drained_at.min(Some(last_answers_at));
            }
            if let Some(deadline) = drained_at {
                if now.monotonic >= deadline {
                    // A port that does not take them is no reason to stay: the device sends its readings again.
                    let _ = timeout(DRAIN_TIMEOUT, write.write_all_buf(&mut outbound)).await;
                    info!(source = self.config.name, port = self.port, "port closed");
                    return Ok(());
                }
                wake_at = wake_at.min(deadline);
            }
            let reading = drained_at.is_none() && now.monotonic >= read_at;
            if drained_at.is_none() && !reading {
                wake_at = wake_at.min(read_at);
            }
            // While the port is busy with the last frames, more of them cannot be due.
            if let Some(deadline) = self.line.next_deadline().filter(|_| outbound.is_empty()) {
                wake_at = wake_at.min(deadline);
            }
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|asked| *asked), if drained_at.is_none() => {
                    drained_at = Some(now.monotonic + DRAIN_TIMEOUT);
                    self.context.intake.urge();
                }
                acknowledgement = self.context.intake.acknowledged() => {
                    let now = self.now();
                    self.line.acknowledged(now, acknowledgement?);
                }
                reservation = reserved(&mut self.room) => self.submit_waiting(reservation?)?,
                written = write.write_buf(&mut outbound), if !outbound.is_empty() => {
                    if written? == 0 {
                        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
                    }
                }
                received = read.read_buf(&mut inbound), if reading => {
                    if received? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    let now = self.now();
                    self.line.receive(now, &inbound);
                    let full = inbound.len() == inbound.capacity();
                    inbound.clear();
                    if now.monotonic.since(received_at) < BUSY_INTERVAL && !full {
                        read_at = now.monotonic + READ_PAUSE;
                    }
                    received_at = now.monotonic;
                }
                () = sleep(wake_at.since(now.monotonic)) => {}
            }
        }
    }

    /// Submits what has come, or begins to wait for room for it.
    fn submit_queue(&mut self) -> Result<(), IntakeClosed> {
        if self.room.is_some() {
            return Ok(());
        }
        let Frames { records, changes } = self.line.take();
        if records.is_empty() {
            return Ok(());
        }
        let notes = self.context.intake.notes(changes);
        let size_bytes = intake::size_bytes(&records) + notes.iter().map(Note::size_bytes).sum::<usize>();
        if let Some(reservation) = self.context.intake.try_reserve(size_bytes) {
            return self.submit(reservation, records, notes);
        }
        let reservation = Box::pin(self.context.intake.reserve(size_bytes));
        self.room = Some(Waiting { records, notes, reservation });
        Ok(())
    }

    /// Submits what had to wait.
    fn submit_waiting(&mut self, reservation: Reservation) -> Result<(), IntakeClosed> {
        match self.room.take() {
            Some(waiting) => self.submit(reservation, waiting.records, waiting.notes),
            None => Ok(()),
        }
    }

    fn submit(
        &mut self,
        reservation: Reservation,
        records: Vec<Record>,
        notes: Vec<Note>,
    ) -> Result<(), IntakeClosed> {
        records.iter().for_each(|record| self.context.counters.record(record));
        let ticket = self.context.intake.submit_noting(reservation, records, notes)?;
        self.line.submitted(ticket);
        Ok(())
    }

    /// Submits what came before the port went.
    async fn submit_rest(&mut self) -> Result<(), IntakeClosed> {
        loop {
            self.submit_queue()?;
            if self.room.is_none() {
                return Ok(());
            }
            let reservation = reserved(&mut self.room).await?;
            self.submit_waiting(reservation)?;
        }
    }

    fn count(&mut self, now: Now) {
        let rejected = self.line.count(&mut self.context.counters);
        if let Some(count) = self.noise.due(now.monotonic, rejected) {
            warn!(
                source = self.config.name,
                port = self.port,
                count,
                baud = self.config.baud,
                "the line brings what is no frame: do baud, parity and protocol fit the device?"
            );
        }
        let unacknowledged = i64::try_from(self.line.unacknowledged()).unwrap_or(i64::MAX);
        self.context.counters.unacknowledged.set(unacknowledged);
    }
}

/// Waits for room; for ever if nothing needs it.
async fn reserved(room: &mut Option<Waiting>) -> Result<Reservation, IntakeClosed> {
    match room {
        Some(waiting) => waiting.reservation.as_mut().await,
        None => std::future::pending().await,
    }
}
