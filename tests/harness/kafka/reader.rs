//! Reads a topic as a consumer of committed records sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};

use crate::wait_until;

/// One record in Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The partition that it lies in.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// The key as text: Wayside's device id.
    pub key: String,
    /// The value's bytes; empty for a tombstone.
    pub value: Vec<u8>,
    /// The headers, whose values are text by Wayside's contract.
    pub headers: BTreeMap<String, String>,
    /// The timestamp, in Unix milliseconds.
    pub timestamp_ms: Option<i64>,
}

impl Record {
    /// The device's sequence number, from the header `wayside.seq`.
    pub fn seq(&self) -> Option<u64> {
        self.headers.get("wayside.seq").map(|seq| seq.parse().expect("wayside.seq is a decimal number"))
    }

    /// The value as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.value)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.value)))
    }
}

impl From<&BorrowedMessage<'_>> for Record {
    fn from(message: &BorrowedMessage<'_>) -> Self {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned();
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            partition: message.partition(),
            offset: message.offset(),
            key: text(message.key()),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: headers.map(|header| (header.key.to_owned(), text(header.value))).collect(),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }
}

/// Follows one topic from its beginning.
pub struct Reader {
    consumer: BaseConsumer,
    topic: String,
    /// Partitions that are read, and of these the ones whose end was reached.
    partitions: BTreeSet<i32>,
    ended: BTreeSet<i32>,
    records: Vec<Record>,
}

impl Reader {
    pub(super) fn new(consumer: BaseConsumer, topic: &str) -> Self {
        Self {
            consumer,
            topic: topic.to_owned(),
            partitions: BTreeSet::new(),
            ended: BTreeSet::new(),
            records: Vec::new(),
        }
    }

    /// What was read so far: in order within each partition.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// What was read, for keeps.
    pub fn into_records(self) -> Vec<Record> {
        self.records
    }

    /// Reads on until there are `count` records.
    ///
    /// # Panics
    /// When there are fewer after `deadline`.
    #[track_caller]
    pub fn wait_for(&mut self, count: usize, deadline: Duration) -> &[Record] {
        let started = Instant::now();
        while self.records.len() < count {
            assert!(
                started.elapsed() < deadline,
                "{} of {count} records in {} after {deadline:?}",
                self.records.len(),
                self.topic
            );
            self.poll(Duration::from_millis(100));
        }
        &self.records
    }

    /// Reads on to the end of every partition; of a topic that does not exist there is nothing to read.
    ///
    /// # Panics
    /// When Kafka does not answer before `deadline`.
    #[track_caller]
    pub fn read_to_end(&mut self, deadline: Duration) -> &[Record] {
        let what = format!("metadata of {}", self.topic);
        let exists = wait_until(deadline, &what, || self.assign());
        self.ended.clear();
        let started = Instant::now();
        while exists && self.ended != self.partitions {
            assert!(started.elapsed() < deadline, "the end of {} not reached after {deadline:?}", self.topic);
            self.poll(Duration::from_millis(100));
        }
        &self.records
    }

    fn poll(&mut self, timeout: Duration) {
        if self.assign() != Some(true) {
            // Not created yet, or nobody is there to ask: `fetch_metadata` has waited already.
            std::thread::sleep(Duration::from_millis(20));
            return;
        }
        match self.consumer.poll(timeout) {
            Some(Ok(message)) => {
                self.ended.remove(&message.partition());
                self.records.push(Record::from(&message));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                self.ended.insert(partition);
            }
            // Nodes come and go under these tests and the client reconnects by itself: the caller's deadline decides.
            Some(Err(_)) | None => {}
        }
    }

    /// Whether the topic exists and is being read; `None` when Kafka did not say.
    fn assign(&mut self) -> Option<bool> {
        if !self.partitions.is_empty() {
            return Some(true);
        }
        let metadata = self.consumer.fetch_metadata(Some(&self.topic), Duration::from_secs(5)).ok()?;
        let topic = metadata.topics().first()?;
        match topic.error().map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => return Some(false),
            Some(_) => return None,
            None => {}
        }
        let mut wanted = TopicPartitionList::new();
        for partition in topic.partitions() {
            self.partitions.insert(partition.id());
            wanted
                .add_partition_offset(&self.topic, partition.id(), Offset::Beginning)
                .expect("the beginning is an offset");
        }
        self.consumer.assign(&wanted).expect("these partitions exist");
        Some(true)
    }
}
