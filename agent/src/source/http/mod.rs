//! `source.http`: takes records by POST, and answers 200 when they are durable.
//!
//! # Rules
//! * **Acknowledgement**: 200 is made of an [`Acknowledgement`] alone, which covers all records of the request. With any other
//!   answer nothing of it is stored, but for the 503 that says so: the commit took too long, or the agent ended meanwhile.
//! * **Repetition**: a request whose `Idempotency-Key` is known is answered as it was ([`keys`]).
//! * **All or nothing**: a body in which one record is wrong is refused as a whole, with the place.
//! * **Back-pressure**: nothing waits for room. Where there is none, for the body or for its records in the intake, the answer is
//!   503 with a `Retry-After`, by how long the backlog has waited, and spread so that a thousand devices do not come back at once.
//! * **Bounds**: connections, bytes of a body, of its records and of all bodies together, time of a TLS handshake, without a request's head, of a body,
//!   until the commit, and that a client leaves its answer unread.
//! * **Shutdown**: no more connections; what was taken is answered (at most 5 s).
//!
//! One task owns the intake: it decodes, submits, and answers in the order of the tickets. A task for each connection reads and
//! writes ([`server`]). What requests mean is in [`api`], without sockets.

mod api;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod keys;
mod produce;
mod reach;
mod refusal;
mod server;
#[cfg(test)]
mod tests;

use std::{
    io,
    num::NonZeroU16,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};
use tracing::{debug, info, warn};

pub use self::reach::reach;
use self::{
    api::{Admitted, Api, Decoded},
    keys::{Key, Keys, Seen},
    refusal::{Flaw, Refusal},
    server::Door,
};
use super::{SourceContext, backoff::Backoff, metrics::SourceCounters};
use crate::{
    access::{load, tokens::TokenFile},
    config::{self, HttpSource},
    env::Monotonic,
    intake::{self, Acknowledgement, IntakeClosed, Places, Reservation, Unacknowledged},
    kept::Kept,
    partition::partition_of,
    record::PartitionId,
};

/// Longest time that a shutdown waits for acknowledgements, and for clients to take their answers.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest time of a TLS handshake, if connections may be idle for as long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Delays between attempts to listen.
const RELISTEN: config::Backoff =
    config::Backoff { min: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Pause after a connection could not be taken, which is for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A body on its way to the intake.
struct Job {
    admitted: Admitted,
    body: Bytes,
    /// Counts `body` until its records count in the intake.
    room: OwnedSemaphorePermit,
    answer: oneshot::Sender<Result<Arc<Stored>, Refusal>>,
}

/// A request whose records are durable: what 200 is made of.
#[derive(Debug, PartialEq, Eq)]
struct Stored {
    /// The partition of each record.
    partitions: Vec<PartitionId>,
    /// The offset of each, none where its stream's policy has dropped it; `None` where it is not known any more.
    places: Option<Places>,
    /// What is wrong with other records of the request, which asked for each by itself.
    flaws: Vec<Flaw>,
}

impl Stored {
    /// `_acknowledgement` covers the ticket of the request.
    fn new(
        _acknowledgement: Acknowledgement,
        partitions: Vec<PartitionId>,
        places: Option<Places>,
        flaws: Vec<Flaw>,
    ) -> Self {
        Self { partitions, places, flaws }
    }

    /// A life before has noted it with its records.
    fn before_a_restart(partitions: Vec<PartitionId>) -> Self {
        Self { partitions, places: None, flaws: Vec::new() }
    }
}

/// Who waits for a commit.
struct Waiting {
    request: Submitted,
    answer: oneshot::Sender<Result<Arc<Stored>, Refusal>>,
}

/// What a commit is to make durable.
enum Submitted {
    /// The records of a request.
    Records {
        partitions: Vec<PartitionId>,
        places: oneshot::Receiver<Places>,
        flaws: Vec<Flaw>,
        key: Option<Key>,
        /// When it was submitted.
        at: Monotonic,
    },
    /// Those of an earlier one with the same key.
    Again(Key),
}

/// Runs the source until `context.shutdown`, or until the pipeline ends. Records larger than `record_bytes_max` are refused.
pub async fn run(config: HttpSource, record_bytes_max: usize, context: SourceContext) {
    let keys = Keys::restore(&context.remembered);
    let source = Source { config, record_bytes_max, waiting: Unacknowledged::default(), keys, context };
    Box::pin(source.run()).await;
}

struct Source {
    config: HttpSource,
    record_bytes_max: usize,
    waiting: Unacknowledged<Waiting>,
    keys: Keys,
    context: SourceContext,
}

impl Source {
    async fn run(mut self) {
        let mut shutdown = self.context.shutdown.clone();
        let mut delays = Backoff::new(RELISTEN);
        while !*shutdown.borrow() {
            let error = match self.open().await {
                Ok(open) => return self.serve(open).await,
                Err(error) => error,
            };
            self.context.counters.failures.inc();
            if self.context.health.down(&error) {
                warn!(source = self.config.name, error, "not listening");
            }
            let delay = delays.next(&mut *self.context.entropy);
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|asked| *asked) => {}
                () = sleep(delay) => {}
            }
        }
    }

    async fn open(&self) -> Result<Open, String> {
        let tokens = self.config.token_file.clone().map(|file| {
            let (key, files) = (file.key.clone(), vec![file.path.clone()]);
            self.context.keep(&key, files, move || load(&file, TokenFile::parse))
        });
        let tokens = tokens.transpose().map_err(|error| error.to_string())?;
        let tls = self.config.tls.as_ref().map(|tls| self.context.keep_tls(tls));
        let tls = tls.transpose().map_err(|error| error.to_string())?;
        let api = Api::new(&self.config, tokens, self.record_bytes_max, self.context.intake.limit_bytes());
        let api = Arc::new(api.map_err(|error| error.to_string())?);
        let listener = TcpListener::bind(self.config.listen).await;
        let listener =
            listener.map_err(|error| format!("cannot listen on {}: {error}", self.config.listen))?;
        Ok(Open { listener, api, tls })
    }

    /// Serves until the source ends; then answers what it took.
    async fn serve(mut self, Open { listener, api, tls }: Open) {
        info!(source = self.config.name, listen = %self.config.listen, "taking HTTP requests");
        self.context.counters.connected.set(1);
        self.context.health.healthy();
        // A connection has one request at a time: there is always room.
        let (jobs, mut taken) = mpsc::channel(self.config.max_connections);
        let door = Door::new(&self.config, Arc::clone(&api), jobs, self.context.counters.clone());
        let (stop, stopping) = watch::channel(false);
        let connections = Connections {
            router: server::router(door),
            tls,
            counters: self.context.counters.clone(),
            idle_timeout: self.config.idle_timeout,
            stopping,
            tasks: JoinSet::new(),
        };
        let mut tasks = self.exchange(&listener, &api, &mut taken, connections, &stop).await;
        self.context.counters.connected.set(0);
        self.context.counters.unacknowledged.set(0);
        // What is not answered by now is told that nobody knows.
        drop((listener, taken));
        self.waiting.abandon().for_each(drop);
        let _ = timeout(DRAIN_TIMEOUT, async { while tasks.join_next().await.is_some() {} }).await;
        info!(source = self.config.name, "takes no more HTTP requests");
    }

    /// Takes connections and requests, and answers them, until shutdown has drained them or the pipeline is gone.
    async fn exchange(
        &mut self,
        listener: &TcpListener,
        api: &Api,
        taken: &mut mpsc::Receiver<Job>,
        mut connections: Connections,
        stop: &watch::Sender<bool>,
    ) -> JoinSet<()> {
        let mut shutdown = self.context.shutdown.clone();
        let mut accept_at = Monotonic::default();
        let mut drained_at: Option<Monotonic> = None;
        loop {
            let now = self.context.clock.monotonic();
            if drained_at.is_some_and(|deadline| connections.tasks.is_empty() || now >= deadline) {
                return connections.tasks;
            }
            let unacknowledged = i64::try_from(self.waiting.len()).unwrap_or(i64::MAX);
            self.context.counters.unacknowledged.set(unacknowledged);
            let accepts = drained_at.is_none() && connections.tasks.len() < self.config.max_connections;
            tokio::select! {
                biased;
                _ = shutdown.wait_for(|asked| *asked), if drained_at.is_none() => {
                    drained_at = Some(now + DRAIN_TIMEOUT);
                    stop.send_replace(true);
                    self.context.intake.urge();
                }
                acknowledgement = self.context.intake.acknowledged() => match acknowledgement {
                    Ok(acknowledgement) => self.acknowledge(acknowledgement),
                    Err(IntakeClosed) => break,
                },
                Some(job) = taken.recv() => {
                    if self.take(api, job).is_err() {
                        break;
                    }
                    if drained_at.is_some() {
                        self.context.intake.urge();
                    }
                }
                Some(_) = connections.tasks.join_next(), if !connections.tasks.is_empty() => {}
                accepted = accept(listener, accept_at.since(now)), if accepts => match accepted {
                    Ok(stream) => {
                        self.context.counters.connections.inc();
                        connections.add(stream);
                    }
                    Err(error) => {
                        debug!(source = self.config.name, %error, "cannot take a connection");
                        self.context.counters.failures.inc();
                        accept_at = now + ACCEPT_PAUSE;
                    }
                },
                () = sleep(drained_at.unwrap_or_default().since(now)), if drained_at.is_some() => {}
            }
        }
        stop.send_replace(true);
        connections.tasks
    }

    /// Submits the records of a body, or answers it at once.
    fn take(&mut self, api: &Api, job: Job) -> Result<(), IntakeClosed> {
        let Job { admitted, body, room, answer } = job;
        let key = admitted.key();
        let seen = key.as_ref().map_or(Seen::New, |key| self.keys.look(key, &body));
        let answered = match (seen, key) {
            (Seen::UnderWay, Some(key)) => {
                let request = Submitted::Again(key);
                self.waiting.push(self.context.intake.last_ticket(), Waiting { request, answer });
                return Ok(());
            }
            (Seen::Stored(stored), _) => Ok(stored),
            (Seen::Other, _) => Err(Refusal::KeyReused),
            (_, key) => match self.decode(api, &admitted, &body) {
                Ok((decoded, reservation)) => {
                    drop(room);
                    return self.submit(api.partitions(&admitted), decoded, reservation, key, &body, answer);
                }
                Err(refusal) => Err(refusal),
            },
        };
        // Who asked may be gone.
        let _ = answer.send(answered);
        Ok(())
    }

    /// The records of a body, and room for them.
    fn decode(
        &mut self,
        api: &Api,
        admitted: &Admitted,
        body: &Bytes,
    ) -> Result<(Decoded, Reservation), Refusal> {
        let received = self.context.clock.wall();
        // Decoders do not panic; if one does nevertheless, its request alone is hit. They keep no state to be torn.
        let decoded = catch_unwind(AssertUnwindSafe(|| api.decode(admitted, body, received)));
        let decoded = decoded.unwrap_or_else(|_| Err(Refusal::panicked()))?;
        match self.context.intake.try_reserve(intake::size_bytes(&decoded.records)) {
            Some(room) => Ok((decoded, room)),
            None => Err(Refusal::Full(self.backlog_waits())),
        }
    }

    /// How long the oldest request that is not durable has waited.
    fn backlog_waits(&self) -> Duration {
        let submitted = self.waiting.iter().find_map(|waiting| match waiting.request {
            Submitted::Records { at, .. } => Some(at),
            Submitted::Again(_) => None,
        });
        submitted.map_or(Duration::ZERO, |at| self.context.clock.monotonic().since(at))
    }

    fn submit(
        &mut self,
        partitions: NonZeroU16,
        decoded: Decoded,
        room: Reservation,
        key: Option<Key>,
        body: &[u8],
        answer: oneshot::Sender<Result<Arc<Stored>, Refusal>>,
    ) -> Result<(), IntakeClosed> {
        let Decoded { records, flaws } = decoded;
        let at = self.context.clock.monotonic();
        let intake = &mut self.context.intake;
        let partitions: Vec<_> =
            records.iter().map(|record| partition_of(&record.device, partitions)).collect();
        records.iter().for_each(|record| self.context.counters.record(record));
        let changes = key.as_ref().map(|key| self.keys.begin(key, body, &partitions)).unwrap_or_default();
        // A request of so many records that its note is too large is remembered until a restart.
        let notes = intake.notes(changes);
        let (ticket, places) = intake.submit_asking(room, records, notes)?;
        let request = Submitted::Records { partitions, places, flaws, key, at };
        self.waiting.push(ticket, Waiting { request, answer });
        Ok(())
    }

    /// Answers all requests that `acknowledgement` covers.
    fn acknowledge(&mut self, acknowledgement: Acknowledgement) {
        for Waiting { request, answer } in self.waiting.release(acknowledgement) {
            let stored = match request {
                Submitted::Records { partitions, mut places, flaws, key, .. } => {
                    let stored = Stored::new(acknowledgement, partitions, places.try_recv().ok(), flaws);
                    let stored = Arc::new(stored);
                    key.iter().for_each(|key| self.keys.stored(key, &stored));
                    Ok(stored)
                }
                // One that was forgotten meanwhile, for many others: nobody knows.
                Submitted::Again(key) => self.keys.get(&key).ok_or(Refusal::Late),
            };
            // Who asked may be gone.
            let _ = answer.send(stored);
        }
    }
}

/// What it takes to serve.
struct Open {
    listener: TcpListener,
    api: Arc<Api>,
    tls: Option<Kept<ServerConfig>>,
}

/// The tasks of the connections, and what each is given.
struct Connections {
    router: Router,
    tls: Option<Kept<ServerConfig>>,
    counters: SourceCounters,
    idle_timeout: Duration,
    stopping: watch::Receiver<bool>,
    tasks: JoinSet<()>,
}

impl Connections {
    fn add(&mut self, stream: TcpStream) {
        server::prepare(&stream, self.idle_timeout);
        let (router, stopping) = (self.router.clone(), self.stopping.clone());
        let idle_timeout = self.idle_timeout;
        let Some(tls) = &self.tls else {
            self.tasks.spawn(server::connection(stream, router, idle_timeout, stopping));
            return;
        };
        let (accept, counters) = (TlsAcceptor::from(tls.get()).accept(stream), self.counters.clone());
        self.tasks.spawn(async move {
            let accepted = timeout(idle_timeout.min(HANDSHAKE_TIMEOUT), Box::pin(accept)).await;
            match accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    Box::pin(server::connection(stream, router, idle_timeout, stopping)).await;
                }
                Err(error) => {
                    info!(%error, "TLS ended");
                    counters.rejected("tls_handshake", 1);
                }
            }
        });
    }
}

/// The next connection after `pause`.
async fn accept(listener: &TcpListener, pause: Duration) -> io::Result<TcpStream> {
    sleep(pause).await;
    Ok(listener.accept().await?.0)
}
