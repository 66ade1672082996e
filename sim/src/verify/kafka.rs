//! The consumer: every record of one topic, from the beginning to where it ends now, and on from there.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
};

use super::core::Delivery;
use crate::ledger::{Id, unix_micros};

/// How long one request for metadata may take.
const METADATA_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one poll waits for a record: short, for topics are read in turn.
const POLL: Duration = Duration::from_millis(100);

/// Where the cluster is, and how to speak to it.
#[derive(Clone, Debug, Default)]
pub struct ConsumerOptions {
    /// `host:port`, several separated by commas.
    pub bootstrap: String,
    /// Further settings of librdkafka.
    pub properties: Vec<(String, String)>,
}

impl ConsumerOptions {
    fn consumer(&self) -> anyhow::Result<BaseConsumer> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            // librdkafka wants one even where, as here, partitions are assigned by hand and nothing is committed.
            .set("group.id", "wayside-sim-verify")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("allow.auto.create.topics", "false")
            // The verifier's memory is its ledger's; the queues in front of it stay small.
            .set("queued.max.messages.kbytes", "8192")
            .set("fetch.wait.max.ms", "50");
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        config.create().context("cannot make a Kafka consumer")
    }
}

/// The streams that have a topic in `environment`.
///
/// # Errors
/// The cluster does not answer.
pub(super) fn streams_of(options: &ConsumerOptions, environment: &str) -> anyhow::Result<Vec<String>> {
    let consumer = options.consumer()?;
    let metadata = consumer
        .fetch_metadata(None, METADATA_TIMEOUT)
        .with_context(|| format!("no answer from Kafka at {}", options.bootstrap))?;
    let stream = |topic: &str| topic.strip_prefix(environment)?.strip_prefix('.').map(str::to_owned);
    Ok(metadata.topics().iter().filter_map(|topic| stream(topic.name())).collect())
}

/// Which moment is a record's arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// When the gateway received it: header `wayside.received`.
    Received,
    /// When this consumer received it.
    Consumed,
}

/// Reads one topic. A topic that does not exist yet is empty.
pub struct TopicReader {
    consumer: BaseConsumer,
    stream: Arc<str>,
    topic: String,
    arrival: Arrival,
    /// Partition count, once the topic is there.
    partitions: Option<i32>,
    /// Partitions that are read to their end.
    ended: BTreeSet<i32>,
    /// Every device's key once.
    devices: HashSet<Arc<str>>,
}

impl TopicReader {
    /// Of the topic of `stream` in `environment`.
    ///
    /// # Errors
    /// A setting that librdkafka does not know.
    pub fn new(
        options: &ConsumerOptions,
        environment: &str,
        stream: &str,
        arrival: Arrival,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            consumer: options.consumer()?,
            stream: stream.into(),
            topic: format!("{environment}.{stream}"),
            arrival,
            partitions: None,
            ended: BTreeSet::new(),
            devices: HashSet::new(),
        })
    }

    /// The stream.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// How many partitions the topic has; `None` before it was found.
    pub fn partitions(&self) -> Option<i32> {
        self.partitions
    }

    /// Hands over records until every partition is at its end; none when the topic was not found so far.
    ///
    /// The end is where the broker says that nothing committed follows. It is not asked for beforehand: offsets count
    /// transaction markers and aborted records too.
    ///
    /// # Errors
    /// Nothing heard for `silence`, a fatal error, or a record that the agent cannot have written (no key).
    pub fn read_to_end(&mut self, silence: Duration, mut found: impl FnMut(Delivery)) -> anyhow::Result<()> {
        if self.partitions.is_none() {
            // Not a busy loop where the topic is waited for.
            std::thread::sleep(POLL);
            return Ok(());
        }
        let mut heard_at = Instant::now();
        let mut last_error = None;
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    heard_at = Instant::now();
                    self.ended.remove(&message.partition());
                    let delivery = delivery(&message, &self.stream, self.arrival, &mut self.devices)
                        .with_context(|| {
                            format!("{} {} offset {}", self.topic, message.partition(), message.offset())
                        })?;
                    found(delivery);
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    heard_at = Instant::now();
                    self.ended.insert(partition);
                }
                // librdkafka reconnects by itself.
                Some(Err(error)) if error.rdkafka_error_code() != Some(RDKafkaErrorCode::Fatal) => {
                    last_error = Some(error);
                }
                Some(Err(error)) => return Err(error).with_context(|| self.topic.clone()),
                None if self.partitions == i32::try_from(self.ended.len()).ok() => return Ok(()),
                None => {}
            }
            if heard_at.elapsed() > silence {
                match last_error {
                    Some(error) => return Err(error).with_context(|| format!("cannot read {}", self.topic)),
                    None => bail!("Kafka says nothing about {} for {silence:?}", self.topic),
                }
            }
        }
    }

    /// Takes all partitions from their beginning and says how many; `None` when there is no such topic.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub fn open(&mut self) -> anyhow::Result<Option<i32>> {
        let metadata = self
            .consumer
            .fetch_metadata(Some(&self.topic), METADATA_TIMEOUT)
            .with_context(|| format!("no answer from Kafka about {}", self.topic))?;
        let partitions: Vec<i32> = metadata
            .topics()
            .iter()
            .filter(|topic| topic.name() == self.topic && topic.error().is_none())
            .flat_map(|topic| topic.partitions().iter().map(|p| p.id()))
            .collect();
        if partitions.is_empty() {
            return Ok(None);
        }
        let mut assignment = TopicPartitionList::with_capacity(partitions.len());
        for partition in &partitions {
            assignment.add_partition_offset(&self.topic, *partition, Offset::Beginning)?;
        }
        self.consumer.assign(&assignment).with_context(|| format!("cannot read {}", self.topic))?;
        self.partitions = i32::try_from(partitions.len()).ok();
        Ok(self.partitions)
    }
}

fn delivery(
    message: &BorrowedMessage<'_>,
    stream: &Arc<str>,
    arrival: Arrival,
    devices: &mut HashSet<Arc<str>>,
) -> anyhow::Result<Delivery> {
    let key = message.key().context("has no key")?;
    let key = str::from_utf8(key).context("has a key that is not UTF-8")?;
    let device = match devices.get(key) {
        Some(device) => Arc::clone(device),
        None => {
            let device = Arc::<str>::from(key);
            devices.insert(Arc::clone(&device));
            device
        }
    };
    let seq = header(message, "wayside.seq").map(Id::Seq);
    let arrived_micros = match arrival {
        Arrival::Received => header(message, "wayside.received"),
        Arrival::Consumed => Some(unix_micros()),
    };
    Ok(Delivery {
        stream: Arc::clone(stream),
        device,
        partition: message.partition(),
        ids: [seq, Some(Id::of_payload(message.payload().unwrap_or_default()))],
        arrived_micros,
    })
}

/// The number in a header; `None` where there is no such header, or no number in it.
fn header(message: &BorrowedMessage<'_>, name: &str) -> Option<u64> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    str::from_utf8(header.value?).ok()?.parse().ok()
}
