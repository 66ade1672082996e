//! Looks for topics and creates the missing ones, on a short-lived thread, since every step may wait for the network.

use std::{
    io,
    num::NonZeroU16,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    error::KafkaResult,
    types::RDKafkaErrorCode,
};

use super::{
    cluster::{ClusterEvent, TopicOutcome},
    kafka::LogContext,
};

/// Longest wait for each answer. While a worker waits, replication of the ready topics goes on.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest value of Kafka's type `long`: no limit.
const NO_LIMIT: &str = "9223372036854775807";

/// A topic that is wanted.
#[derive(Clone, Debug)]
struct Wanted {
    topic: String,
    partitions: NonZeroU16,
}

/// Ensures topics, one worker at a time.
pub(super) struct Topics {
    config: ClientConfig,
    replication_factor: i32,
    min_insync_replicas: String,
    wanted: Vec<Wanted>,
    worker: Option<Receiver<ClusterEvent>>,
}

impl Topics {
    pub(super) fn new(config: ClientConfig, replication_factor: i32, min_insync_replicas: i32) -> Self {
        Self {
            config,
            replication_factor,
            min_insync_replicas: min_insync_replicas.to_string(),
            wanted: Vec::new(),
            worker: None,
        }
    }

    pub(super) fn ensure(&mut self, topic: &str, partitions: NonZeroU16) {
        self.wanted.push(Wanted { topic: topic.to_owned(), partitions });
    }

    /// Takes answers, and starts the next worker when the one before has ended.
    pub(super) fn poll(&mut self, events: &mut Vec<ClusterEvent>) {
        if let Some(answers) = &self.worker {
            loop {
                match answers.try_recv() {
                    Ok(event) => events.push(event),
                    Err(std::sync::mpsc::TryRecvError::Empty) => return,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => break,
                }
            }
            self.worker = None;
        }
        if self.wanted.is_empty() {
            return;
        }
        let (sender, answers) = channel();
        let wanted = std::mem::take(&mut self.wanted);
        match self.spawn(wanted.clone(), sender) {
            Ok(()) => self.worker = Some(answers),
            Err(error) => events.extend(wanted.into_iter().map(|w| ClusterEvent::Topic {
                topic: w.topic,
                outcome: TopicOutcome::Failed(format!("no thread: {error}")),
            })),
        }
    }

    fn spawn(&self, wanted: Vec<Wanted>, answers: Sender<ClusterEvent>) -> io::Result<()> {
        let worker = Worker {
            config: self.config.clone(),
            replication_factor: self.replication_factor,
            min_insync_replicas: self.min_insync_replicas.clone(),
        };
        // Not joined: it ends by itself within some timeouts, and at a shutdown nobody waits for its answer.
        thread::Builder::new().name("topics".into()).spawn(move || worker.run(wanted, &answers)).map(drop)
    }
}

struct Worker {
    config: ClientConfig,
    replication_factor: i32,
    min_insync_replicas: String,
}

impl Worker {
    fn run(&self, wanted: Vec<Wanted>, answers: &Sender<ClusterEvent>) {
        let admin: KafkaResult<AdminClient<LogContext>> = self.config.create_with_context(LogContext);
        let mut unreachable = admin.as_ref().err().map(ToString::to_string);
        for Wanted { topic, partitions } in wanted {
            let outcome = match (&admin, &unreachable) {
                (Ok(admin), None) => self.ensure(admin, &topic, partitions).unwrap_or_else(|reason| {
                    // The next ones would only wait for the same cluster.
                    unreachable = Some(reason.clone());
                    TopicOutcome::Failed(reason)
                }),
                (_, reason) => TopicOutcome::Failed(reason.clone().unwrap_or_default()),
            };
            if answers.send(ClusterEvent::Topic { topic, outcome }).is_err() {
                return;
            }
        }
    }

    /// `Err` where the cluster does not answer.
    fn ensure(
        &self,
        admin: &AdminClient<LogContext>,
        topic: &str,
        partitions: NonZeroU16,
    ) -> Result<TopicOutcome, String> {
        let metadata = admin.inner().fetch_metadata(Some(topic), TIMEOUT).map_err(|e| e.to_string())?;
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else {
            return Ok(TopicOutcome::Failed("no answer about the topic".into()));
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None if found.partitions().len() == usize::from(partitions.get()) => Ok(TopicOutcome::Ready),
            None => Ok(TopicOutcome::PartitionMismatch { found: found.partitions().len() }),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.create(admin, topic, partitions)
            }
            Some(code) => Ok(TopicOutcome::Failed(code.to_string())),
        }
    }

    fn create(
        &self,
        admin: &AdminClient<LogContext>,
        topic: &str,
        partitions: NonZeroU16,
    ) -> Result<TopicOutcome, String> {
        let new = NewTopic::new(
            topic,
            i32::from(partitions.get()),
            TopicReplication::Fixed(self.replication_factor),
        )
        .set("min.insync.replicas", &self.min_insync_replicas);
        // Since 4.0 brokers refuse timestamps of more than an hour ahead, and with them the whole batch; a device whose
        // clock is wrong is the consumer's to judge. Brokers before 3.6 do not know the setting.
        let unlimited = new.set("message.timestamp.after.max.ms", NO_LIMIT);
        let mut result = submit(admin, &unlimited)?;
        if result == Err(RDKafkaErrorCode::InvalidConfig) {
            let mut plain = unlimited;
            plain.config.pop();
            result = submit(admin, &plain)?;
        }
        match result {
            Ok(()) => {
                tracing::info!(
                    topic,
                    partitions = partitions.get(),
                    replication_factor = self.replication_factor,
                    min_insync_replicas = self.min_insync_replicas,
                    "topic created"
                );
                Ok(TopicOutcome::Ready)
            }
            // Another gateway was faster: its number of partitions is checked at the next attempt.
            Err(RDKafkaErrorCode::TopicAlreadyExists) => {
                Ok(TopicOutcome::Failed("created by somebody else".into()))
            }
            Err(code) => Ok(TopicOutcome::Failed(format!("not created: {code}"))),
        }
    }
}

/// Creates a topic; the outer error is that of the request, the inner one that of the topic.
fn submit(
    admin: &AdminClient<LogContext>,
    topic: &NewTopic<'_>,
) -> Result<Result<(), RDKafkaErrorCode>, String> {
    let options = AdminOptions::new().request_timeout(Some(TIMEOUT)).operation_timeout(Some(TIMEOUT));
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| e.to_string())?;
    let results = runtime.block_on(admin.create_topics([topic], &options)).map_err(|e| e.to_string())?;
    match results.into_iter().next() {
        Some(Err((_, code))) => Ok(Err(code)),
        Some(Ok(_)) => Ok(Ok(())),
        None => Err("no answer about the new topic".into()),
    }
}
