//! A real Apache Kafka: three nodes in KRaft mode, each broker and controller at once.
//!
//! One cluster serves all tests of a process: [`shared`] for tests that only use it, [`exclusive`] for those that stop
//! or kill nodes. Tests keep apart by the environment in their topics' names.

mod reader;
mod secure;

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};

pub use reader::{Reader, Record};
pub use secure::SecureKafka;

use crate::link::Link;
use crate::process::{self, Process, Signal};
use crate::{PATIENCE, ports, root, wait_until};

/// The nodes' ids. All three are voters and brokers; two are needed for anything to be written.
pub const NODES: [usize; 3] = [1, 2, 3];

static SHARED: LazyLock<RwLock<Cluster>> = LazyLock::new(|| RwLock::new(Cluster::start()));

/// The cluster, for a test that does it no harm.
pub fn shared() -> RwLockReadGuard<'static, Cluster> {
    // Poisoned by a failed test: `Exclusive` healed the cluster nevertheless.
    SHARED.read().unwrap_or_else(PoisonError::into_inner)
}

/// The cluster, for a test that stops nodes: no other test uses it meanwhile, and it is whole again afterwards.
pub fn exclusive() -> Exclusive {
    Exclusive(SHARED.write().unwrap_or_else(PoisonError::into_inner))
}

/// See [`exclusive`].
pub struct Exclusive(RwLockWriteGuard<'static, Cluster>);

impl std::ops::Deref for Exclusive {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl std::ops::DerefMut for Exclusive {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.0
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nodes that do not come back are the next test's finding; a second panic here would end the process.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.0.heal()));
        } else {
            self.0.heal();
        }
    }
}

/// The ports of a node.
struct Ports {
    broker: u16,
    controller: u16,
    /// The broker's second one, and where it tells clients to find that: see [`Cluster::uplinks`].
    far: u16,
    uplink: u16,
}

struct Node {
    id: usize,
    ports: Ports,
    properties: PathBuf,
    process: Option<Process>,
}

/// Three nodes and their directory, which is removed when the test process ends.
pub struct Cluster {
    nodes: Vec<Node>,
    _janitor: ChildStdin,
}

impl Cluster {
    /// Starts three empty nodes and waits until all have joined.
    pub fn start() -> Self {
        assert!(
            libraries().join(".complete").exists(),
            "Kafka's jars are not in {}: run `tests/run`, or `tests/kafka/kafka fetch`",
            libraries().display()
        );
        let directory = tempfile::Builder::new()
            .prefix("wayside-kafka-")
            .tempdir()
            .expect("the directory for temporary files is writable")
            .keep();
        let ports = NODES.map(|_| Ports {
            broker: ports::free(),
            controller: ports::free(),
            far: ports::free(),
            uplink: ports::free(),
        });
        let properties = NODES.map(|id| node_properties(id, &directory, &ports));
        let nodes = NODES.into_iter().zip(ports).zip(properties);
        let nodes = nodes
            .map(|((id, ports), text)| {
                let properties = directory.join(format!("node{id}.properties"));
                std::fs::write(&properties, text).expect("the cluster's directory is writable");
                Node { id, ports, properties, process: None }
            })
            .collect();
        let mut cluster = Self { nodes, _janitor: janitor(&directory) };
        cluster.heal();
        cluster
    }

    /// `host:port` of all nodes, separated by commas.
    pub fn bootstrap_servers(&self) -> String {
        let addresses: Vec<String> =
            self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.ports.broker)).collect();
        addresses.join(",")
    }

    /// A link to each node, for the one client that is to have no other way: the nodes tell who comes over one that the
    /// others are behind theirs.
    pub fn uplinks(&self) -> Vec<Link> {
        self.nodes.iter().map(|node| Link::new(node.ports.uplink, node.ports.far)).collect()
    }

    /// SIGKILL to node `id`.
    pub fn kill(&mut self, id: usize) {
        self.node(id).process = None;
    }

    /// SIGKILL to all nodes: nothing answers and nothing more is written.
    pub fn kill_all(&mut self) {
        for node in &mut self.nodes {
            node.process = None;
        }
    }

    /// SIGSTOP to node `id`: its connections stay open and it answers no more.
    pub fn pause(&mut self, id: usize) {
        self.node(id).process.as_mut().expect("a node that runs can be paused").signal(Signal::STOP);
    }

    /// SIGKILL to node `id`, and the disk with its records is new. Who it is stays, and the log of the metadata: a voter must not
    /// forget whom it has voted for, and Kafka's nodes end when one does.
    pub fn wipe(&mut self, id: usize) {
        self.kill(id);
        let directory = self.node(id).properties.with_extension("");
        for entry in std::fs::read_dir(directory).expect("a node has its directory") {
            let path = entry.expect("a directory that is there can be read").path();
            let name = path.file_name().unwrap_or_default();
            if name == "meta.properties" || name == "__cluster_metadata-0" {
                continue;
            }
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.expect("it is ours");
        }
    }

    /// Starts the nodes that do not run, resumes those that are paused, and waits until every partition is on all its
    /// replicas again.
    pub fn heal(&mut self) {
        for node in &mut self.nodes {
            node.process.take_if(|process| process.exit_status().is_some());
            match &mut node.process {
                Some(process) => process.signal(Signal::CONT),
                None => node.start(),
            }
        }
        wait_until(PATIENCE, "all Kafka nodes joined and all replicas are in sync", || {
            for node in &mut self.nodes {
                let process = node.process.as_mut().expect("started above");
                if let Some(status) = process.exit_status() {
                    panic!("Kafka node {} ended, {status}\n{}", node.id, process.log_tail());
                }
            }
            self.is_whole().then_some(())
        });
    }

    /// The leader of a partition, as a node's id.
    #[track_caller]
    pub fn leader(&self, topic: &str, partition: i32) -> usize {
        let what = format!("{topic}-{partition} has a leader");
        wait_until(PATIENCE, &what, || {
            let metadata = self.consumer().fetch_metadata(Some(topic), Duration::from_secs(5)).ok()?;
            let partition =
                metadata.topics().first()?.partitions().iter().find(|found| found.id() == partition)?;
            usize::try_from(partition.leader()).ok().filter(|leader| NODES.contains(leader))
        })
    }

    /// Creates `topic` as the agent would: on all three nodes, two of them needed for a write.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        let admin: AdminClient<_> =
            client_config(&self.bootstrap_servers()).create().expect("an admin client can be made");
        let replicas = TopicReplication::Fixed(3);
        let new_topic = NewTopic::new(topic, partitions, replicas).set("min.insync.replicas", "2");
        let answer = block_on(admin.create_topics([&new_topic], &AdminOptions::new()));
        answer
            .expect("Kafka answers")
            .remove(0)
            .unwrap_or_else(|(topic, error)| panic!("topic {topic}: {error}"));
    }

    /// Follows `topic` from its beginning, as a `read_committed` consumer sees it.
    pub fn reader(&self, topic: &str) -> Reader {
        Reader::new(self.consumer(), topic)
    }

    /// All that a `read_committed` consumer finds in `topic` now; nothing where there is no such topic.
    pub fn read(&self, topic: &str) -> Vec<Record> {
        let mut reader = self.reader(topic);
        reader.read_to_end(PATIENCE);
        reader.into_records()
    }

    /// Runs one of Kafka's own tools (see `tests/kafka/kafka`) and returns what it printed.
    ///
    /// # Panics
    /// When the tool fails or has not ended within [`PATIENCE`].
    #[track_caller]
    pub fn tool(&self, tool: &str, arguments: &[&str], input: &str) -> String {
        run_tool(&self.bootstrap_servers(), tool, arguments, input)
    }

    fn node(&mut self, id: usize) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.id == id).expect("node ids are those in NODES")
    }

    /// Each node is asked: one that was started again answers once the controller has taken it in anew, and knows by then what
    /// its absence cost. The others may not have noticed yet that it was away. Taken for whole too early, a cluster would lose a
    /// second disk before it has made up for the first, and with it what it has acknowledged.
    fn is_whole(&self) -> bool {
        let in_sync = |partition: &rdkafka::metadata::MetadataPartition| {
            partition.leader() > 0 && partition.isr().len() == partition.replicas().len()
        };
        self.nodes.iter().all(|node| {
            let node = consumer(&format!("127.0.0.1:{}", node.ports.broker));
            node.fetch_metadata(None, Duration::from_secs(5)).is_ok_and(|metadata| {
                metadata.brokers().len() == NODES.len()
                    && metadata.topics().iter().all(|topic| topic.partitions().iter().all(in_sync))
            })
        })
    }

    fn consumer(&self) -> BaseConsumer {
        consumer(&self.bootstrap_servers())
    }
}

fn client_config(bootstrap_servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap_servers).set("reconnect.backoff.max.ms", "500");
    // Refused connections while nodes start are what the tests are about.
    config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
    config
}

fn consumer(bootstrap_servers: &str) -> BaseConsumer {
    client_config(bootstrap_servers)
        .set("group.id", "wayside-tests")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()
        .expect("a consumer can be made")
}

/// See [`Cluster::tool`].
#[track_caller]
fn run_tool(bootstrap_servers: &str, tool: &str, arguments: &[&str], input: &str) -> String {
    let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
    let stdin = directory.path().join("in");
    std::fs::write(&stdin, input).expect("the temporary directory is writable");
    let mut command = kafka(tool);
    command.args(["--bootstrap-server", bootstrap_servers]).args(arguments);
    command.stdin(File::open(&stdin).expect("written above"));
    let mut process = Process::start(tool, command, &directory.path().join("tool.log"));
    let status = process.wait(PATIENCE);
    assert!(status.success(), "{tool} {arguments:?}: {status}\n{}", process.log_tail());
    process.stdout()
}

impl Node {
    fn start(&mut self) {
        let mut command = kafka("serve");
        command.arg(&self.properties);
        let log = self.properties.with_extension("log");
        self.process = Some(Process::start(&format!("Kafka node {}", self.id), command, &log));
    }
}

/// Where the jars are: `$KAFKA_LIBS`, which `tests/run` sets, or in the target directory.
fn libraries() -> PathBuf {
    std::env::var_os("KAFKA_LIBS").map_or_else(|| root().join("target/kafka-libs"), PathBuf::from)
}

fn kafka(tool: &str) -> Command {
    let mut command = process::command(root().join("tests/kafka/kafka"));
    command.arg(tool).env("KAFKA_LIBS", libraries());
    command
}

/// Removes `directory` when the test process has ended: a `static` is never dropped.
///
/// Waits for the end of its standard input, whose other end the cluster holds.
fn janitor(directory: &Path) -> ChildStdin {
    let script = "trap '' INT TERM; read -r _; until rm -rf \"$1\"; do sleep 0.1; done 2>/dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", script, "janitor"]).arg(directory).stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    process::spawn(command).stdin.take().expect("it was asked for a pipe")
}

fn node_properties(id: usize, directory: &Path, ports: &[Ports]) -> String {
    let mut voters = String::new();
    for (node, Ports { controller, .. }) in NODES.iter().zip(ports) {
        let comma = if voters.is_empty() { "" } else { "," };
        write!(voters, "{comma}{node}@127.0.0.1:{controller}").expect("a string takes all");
    }
    let Ports { broker, controller, far, uplink } = &ports[id - 1];
    let log_directory = directory.join(format!("node{id}"));
    let log_directory = log_directory.display();
    // Recordings are older than a week, the default retention. Few threads and few internal partitions: three nodes
    // share two cores with the agent under test. Topics are the agent's to create. The short session makes a killed leader's partitions move within seconds, and the short socket
    // timeout makes the others notice soon that a paused controller does not answer. Topics that are to keep little are looked at often.
    format!(
        "\
process.roles=broker,controller
node.id={id}
controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{broker},UPLINK://127.0.0.1:{far},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{broker},UPLINK://127.0.0.1:{uplink}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,UPLINK:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={log_directory}
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=3
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=4194304
log.retention.ms=-1
log.retention.check.interval.ms=10000
broker.session.timeout.ms=6000
controller.socket.timeout.ms=5000
"
    )
}

/// Runs `future` to its end on this thread.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        std::thread::park();
    }
}
