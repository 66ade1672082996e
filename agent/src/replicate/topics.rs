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
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest value of Kafka's type `long`: no limit.
const NO_LIMIT: &str = "9223372036854775807";

/// A topic that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) topic: String,
    pub(super) partitions: NonZeroU16,
}

/// Ensures topics, one worker at a time.
pub(super) struct Topics {
    template: Worker,
    wanted: Vec<Wanted>,
    worker: Option<Receiver<ClusterEvent>>,
}

impl Topics {
    pub(super) fn new(config: ClientConfig, replication_factor: i32, min_insync_replicas: i32) -> Self {
        Self {
            template: Worker::new(config, replication_factor, min_insync_replicas),
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
        let worker = self.template.clone();
        // Not joined: it ends by itself within some timeouts, and at a shutdown nobody waits for its answer.
        thread::Builder::new().name("topics".into()).spawn(move || worker.run(wanted, &answers)).map(drop)
    }
}

/// Asks the cluster for topics and creates them.
#[derive(Clone)]
pub(super) struct Worker {
    config: ClientConfig,
    pub(super) replication_factor: i32,
    min_insync_replicas: String,
}

impl Worker {
    pub(super) fn new(config: ClientConfig, replication_factor: i32, min_insync_replicas: i32) -> Self {
        Self { config, replication_factor, min_insync_replicas: min_insync_replicas.to_string() }
    }

    fn run(&self, wanted: Vec<Wanted>, answers: &Sender<ClusterEvent>) {
        let admin: KafkaResult<AdminClient<LogContext>> = self.config.create_with_context(LogContext);
        let mut unreachable = admin.as_ref().err().map(ToString::to_string);
        for wanted in wanted {
            let outcome = match (&admin, &unreachable) {
                (Ok(admin), None) => self.ensure(admin, &wanted).unwrap_or_else(|reason| {
                    // The next ones would only wait for the same cluster.
                    unreachable = Some(reason.clone());
                    TopicOutcome::Failed(reason)
                }),
                (_, reason) => TopicOutcome::Failed(reason.clone().unwrap_or_default()),
            };
            if answers.send(ClusterEvent::Topic { topic: wanted.topic, outcome }).is_err() {
                return;
            }
        }
    }

    /// `Err` where the cluster does not answer.
    fn ensure(&self, admin: &AdminClient<LogContext>, wanted: &Wanted) -> Result<TopicOutcome, String> {
        let Wanted { topic, partitions } = wanted;
        let metadata = admin.inner().fetch_metadata(Some(topic), TIMEOUT).map_err(|e| e.to_string())?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(TopicOutcome::Failed("no answer about the topic".into()));
        };
        match found.error().map(RDKafkaErrorCode::from) {
            None if found.partitions().len() == usize::from(partitions.get()) => Ok(TopicOutcome::Ready),
            None => Ok(TopicOutcome::PartitionMismatch { found: found.partitions().len() }),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.create(admin, wanted)
            }
            Some(code) => Ok(TopicOutcome::Failed(code.to_string())),
        }
    }

    /// Asks for a new topic, or with `validate_only` whether it could be had. The outer error is that of the request, the
    /// inner one that of the topic.
    pub(super) fn request(
        &self,
        admin: &AdminClient<LogContext>,
        wanted: &Wanted,
        validate_only: bool,
    ) -> Result<Result<(), RDKafkaErrorCode>, String> {
        let new = NewTopic::new(
            &wanted.topic,
            i32::from(wanted.partitions.get()),
            TopicReplication::Fixed(self.replication_factor),
        )
        .set("min.insync.replicas", &self.min_insync_replicas);
        // Since 4.0 brokers refuse timestamps of more than an hour ahead, and with them the whole batch; a device whose
        // clock is wrong is the consumer's to judge. Brokers before 3.6 do not know the setting.
        let unlimited = new.set("message.timestamp.after.max.ms", NO_LIMIT);
        let result = submit(admin, &unlimited, validate_only)?;
        if result != Err(RDKafkaErrorCode::InvalidConfig) {
            return Ok(result);
        }
        let mut plain = unlimited;
        plain.config.pop();
        submit(admin, &plain, validate_only)
    }

    fn create(&self, admin: &AdminClient<LogContext>, wanted: &Wanted) -> Result<TopicOutcome, String> {
        let Wanted { topic, partitions } = wanted;
        let result = self.request(admin, wanted, false)?;
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

fn submit(
    admin: &AdminClient<LogContext>,
    topic: &NewTopic<'_>,
    validate_only: bool,
) -> Result<Result<(), RDKafkaErrorCode>, String> {
    let options = AdminOptions::new()
        .request_timeout(Some(TIMEOUT))
        .operation_timeout(Some(TIMEOUT))
        .validate_only(validate_only);
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| e.to_string())?;
    let results = runtime.block_on(admin.create_topics([topic], &options)).map_err(|e| e.to_string())?;
    match results.into_iter().next() {
        Some(Err((_, code))) => Ok(Err(code)),
        Some(Ok(_)) => Ok(Ok(())),
        None => Err("no answer about the new topic".into()),
    }
}
