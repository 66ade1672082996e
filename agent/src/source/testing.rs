//! The other end of an [`Intake`], and real brokers, for the tests of the sources.

#![allow(clippy::disallowed_methods, reason = "tests of sockets run in real time")]

use std::{
    collections::VecDeque,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    SourceContext,
    metrics::{SourceHealth, SourceMetrics},
};
use crate::{
    env::{SystemClock, SystemEntropy},
    intake::{Acknowledgement, Intake, IntakeEvent, SourceIndex, Ticket},
    log::Remembered,
    record::{Offset, Record},
    testing::left_out,
};

/// Longest wait for anything that must happen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for `future`; panics with `what` after [`DEADLINE`].
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: did not happen within {DEADLINE:?}"))
}

/// A pipeline that stores nothing and acknowledges when the test says so.
pub(crate) struct FakePipeline {
    events: mpsc::UnboundedReceiver<IntakeEvent>,
    records: VecDeque<(Ticket, Record)>,
    last_ticket: Ticket,
    /// What the source has noted.
    pub(crate) remembered: Remembered,
    /// Each record is dropped by its stream's policy.
    pub(crate) drops: bool,
    /// Urges seen so far.
    pub(crate) urges: usize,
    acknowledge: watch::Sender<Option<Acknowledgement>>,
    shutdown: watch::Sender<bool>,
    reread: watch::Sender<()>,
    /// State that the source publishes.
    pub(crate) health: SourceHealth,
    /// Registry of the source's metrics.
    pub(crate) registry: Registry,
    room: Arc<Semaphore>,
    keeps_room: bool,
    held: Vec<tokio::sync::OwnedSemaphorePermit>,
    task: Option<JoinHandle<()>>,
}

impl FakePipeline {
    /// Starts the source that `run` makes of a context whose intake holds `intake_bytes`.
    pub(crate) fn start<F>(intake_bytes: usize, run: impl FnOnce(SourceContext) -> F) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        Self::start_again(intake_bytes, Remembered::default(), run)
    }

    /// As [`start`](Self::start), with what a source before it has noted.
    pub(crate) fn start_again<F>(
        intake_bytes: usize,
        remembered: Remembered,
        run: impl FnOnce(SourceContext) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let (sender, events) = mpsc::unbounded_channel();
        let (acknowledge, acknowledged) = watch::channel(None);
        let (shutdown, asked) = watch::channel(false);
        let (reread, asked_to_reread) = watch::channel(());
        let room = Arc::new(Semaphore::new(intake_bytes));
        let mut registry = Registry::with_prefix("wayside");
        let health = SourceHealth::default();
        let context = SourceContext {
            intake: Intake::new(
                SourceIndex(0),
                "source",
                sender,
                Arc::clone(&room),
                intake_bytes,
                acknowledged,
            ),
            remembered: remembered.clone(),
            clock: Arc::new(SystemClock::new()),
            entropy: Box::new(SystemEntropy::new()),
            counters: SourceMetrics::register(&mut registry).source("test"),
            health: health.clone(),
            shutdown: asked,
            reread: asked_to_reread,
        };
        let task = Some(tokio::task::spawn_local(run(context)));
        Self {
            events,
            records: VecDeque::new(),
            last_ticket: Ticket::default(),
            remembered,
            drops: false,
            urges: 0,
            acknowledge,
            shutdown,
            reread,
            health,
            registry,
            room,
            keeps_room: false,
            held: Vec::new(),
            task,
        }
    }

    /// From now on nothing that was submitted makes room again.
    pub(crate) fn keep_room(&mut self) {
        self.keeps_room = true;
    }

    /// Frees the room that was kept, and goes on freeing it.
    pub(crate) fn free_room(&mut self) {
        self.keeps_room = false;
        self.held.clear();
    }

    /// Room left in the intake, in bytes.
    pub(crate) fn room_bytes(&self) -> usize {
        self.room.available_permits()
    }

    /// The next record, with the ticket that it came with.
    pub(crate) async fn record(&mut self) -> (Ticket, Record) {
        within("a record", async {
            loop {
                if let Some(next) = self.records.pop_front() {
                    return next;
                }
                let event = self.events.recv().await.expect("the source lives");
                self.take(event);
            }
        })
        .await
    }

    /// Waits until the source asks for an early commit.
    pub(crate) async fn urge(&mut self) {
        within("an urge", async {
            while self.urges == 0 {
                let event = self.events.recv().await.expect("the source lives");
                self.take(event);
            }
        })
        .await;
        self.urges = 0;
    }

    /// Records that have come and were not asked for.
    pub(crate) fn rest(&mut self) -> Vec<Record> {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
        self.records.drain(..).map(|(_, record)| record).collect()
    }

    /// Acknowledges everything up to `ticket`.
    pub(crate) fn acknowledge(&mut self, ticket: Ticket) {
        self.acknowledge.send_replace(Some(Acknowledgement::for_test(ticket)));
    }

    /// Acknowledges everything that has come.
    pub(crate) fn acknowledge_all(&mut self) {
        self.acknowledge(self.last_ticket);
    }

    /// Asks the source to read its files again.
    pub(crate) fn reread(&self) {
        self.reread.send_replace(());
    }

    /// Asks the source to end.
    pub(crate) fn shut_down(&self) {
        self.shutdown.send_replace(true);
    }

    /// Waits until the source has ended.
    pub(crate) async fn ended(&mut self) {
        let task = self.task.take().expect("ended is called once");
        within("the source to end", task).await.expect("the source does not panic");
    }

    /// Ends the source as a crash does.
    pub(crate) async fn abort(&mut self) {
        let task = self.task.take().expect("ends once");
        task.abort();
        let outcome = within("the source to end", task).await;
        assert!(outcome.is_err_and(|error| error.is_cancelled()));
    }

    /// Waits until the source's metrics have the line `line`.
    pub(crate) async fn metric(&self, line: &str) {
        self.metric_where(line, |l| l == line).await;
    }

    /// Waits until the source's metrics have a line that starts with `start`.
    pub(crate) async fn metric_like(&self, start: &str) {
        self.metric_where(start, |l| l.starts_with(start)).await;
    }

    /// Waits until the source's metrics have a line for which `wanted` holds; `what` names it.
    pub(crate) async fn metric_where(&self, what: &str, wanted: impl Fn(&str) -> bool) {
        let mut text = String::new();
        let found = timeout(DEADLINE, async {
            loop {
                text.clear();
                prometheus_client::encoding::text::encode(&mut text, &self.registry).expect("encodes");
                if text.lines().any(&wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        if found.await.is_err() {
            panic!("no line {what} in\n{text}");
        }
    }

    /// Waits until the source's state is as `wanted` says.
    pub(crate) async fn state(&self, what: &str, wanted: impl Fn(&super::metrics::SourceState) -> bool) {
        within(what, async {
            while !wanted(&self.health.state()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    fn take(&mut self, event: IntakeEvent) {
        match event {
            IntakeEvent::Urge => self.urges += 1,
            IntakeEvent::Submission(submission) => {
                assert!(submission.ticket > self.last_ticket, "tickets ascend");
                self.last_ticket = submission.ticket;
                let ticket = submission.ticket;
                // Each record in a place of its own.
                let places = (100..)
                    .take(submission.records.len())
                    .map(|offset| (!self.drops).then_some(Offset(offset)));
                if let Some(placed) = submission.placed {
                    let _ = placed.send(places.collect());
                }
                submission.notes.into_iter().for_each(|note| note.apply(&mut self.remembered));
                self.records.extend(submission.records.into_iter().map(|record| (ticket, record)));
                if self.keeps_room {
                    self.held.push(submission.permit);
                }
            }
        }
    }
}

/// A source that outlived its test's pipeline would go on with the same client id, and the broker can have one alone.
impl Drop for FakePipeline {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Runs `test` where sources run: one thread.
pub(crate) fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// A Mosquitto of the test's own, killed when dropped.
pub(crate) struct Mosquitto {
    program: PathBuf,
    address: SocketAddr,
    dir: tempfile::TempDir,
    options: String,
    process: Option<Child>,
}

impl Mosquitto {
    /// Starts a broker with `options` added to its configuration; `None` (said on stderr) where Mosquitto is not
    /// installed.
    pub(crate) fn start(options: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
        dirs.push("/usr/sbin".into());
        let Some(program) = dirs.into_iter().map(|dir| dir.join("mosquitto")).find(|path| path.is_file())
        else {
            left_out("`mosquitto` in PATH or /usr/sbin");
            return None;
        };
        let address = free_address();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut broker = Self { program, address, dir, options: options.to_owned(), process: None };
        broker.up();
        Some(broker)
    }

    /// Port of the broker.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Starts it again after [`Mosquitto::down`]; it has forgotten every session, unless `options` say otherwise.
    pub(crate) fn up(&mut self) {
        let mut config = format!("listener {} 127.0.0.1\nallow_anonymous true\n", self.address.port());
        writeln!(config, "max_queued_messages 0\n{}", self.options).expect("writes to a string");
        let file = self.dir.path().join("mosquitto.conf");
        std::fs::write(&file, config).expect("writes the configuration");
        let mut process = Command::new(&self.program);
        process.arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        self.process = Some(process.spawn().expect("starts mosquitto"));
        let start = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            assert!(start.elapsed() < DEADLINE, "mosquitto does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it.
    pub(crate) fn down(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kills mosquitto");
            process.wait().expect("mosquitto ends");
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.down();
    }
}

/// An address on which nobody listens at the moment.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    listener.local_addr().expect("has an address")
}
