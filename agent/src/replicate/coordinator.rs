//! What a transactional producer asks of Kafka's coordinators. librdkafka's calls wait for the answer, so each is made on a
//! short-lived thread, one at a time, which is not joined: given up, it ends by itself within [`STEP`].

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, TryRecvError, channel},
    },
    thread,
    time::Duration,
};

use rdkafka::{
    Message as _, Offset as KafkaOffset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata},
    error::{KafkaError, KafkaResult},
    message::Headers as _,
    producer::{BaseProducer, Producer as _},
    types::RDKafkaErrorCode,
};

use super::{
    access,
    cluster::{ClusterEvent, GroupOffset, Presence},
    cursor::{LastRecord, LogId},
    kafka::{LogContext, Reports},
    properties,
    topics::{TIMEOUT, Worker},
};
use crate::{
    config::Replicate,
    record::{Offset, PartitionId},
};

/// A call that is not answered is made again after this, which goes on with it, unless it was given up.
const STEP: Duration = Duration::from_secs(1);

/// Between two tries of what Kafka says is to be tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// The producer, shared with the thread that waits for an answer.
pub(super) type SharedProducer = Arc<BaseProducer<Reports>>;

impl ConsumerContext for LogContext {}

/// Asks, one thing at a time.
pub(super) struct Coordinator {
    asker: Asker,
    job: Option<Job>,
}

struct Job {
    answer: Receiver<ClusterEvent>,
    given_up: Arc<AtomicBool>,
}

/// What a thread needs to ask.
#[derive(Clone)]
struct Asker {
    worker: Worker,
    gateway: String,
    /// Names the group in a transaction; made by the first consumer.
    group: Arc<OnceLock<ConsumerGroupMetadata>>,
    given_up: Arc<AtomicBool>,
}

impl Coordinator {
    pub(super) fn new(settings: &Replicate, gateway: &str) -> Self {
        let worker = Worker::new(settings.clone(), properties::consumer(settings, gateway));
        let (group, given_up) = (Arc::default(), Arc::default());
        let asker = Asker { worker, gateway: gateway.to_owned(), group, given_up };
        Self { asker, job: None }
    }

    /// Waits for no answer any more.
    pub(super) fn give_up(&mut self) {
        if let Some(job) = self.job.take() {
            job.given_up.store(true, Ordering::Relaxed);
        }
    }

    /// The answer, once, when it is there.
    pub(super) fn poll(&mut self) -> Option<ClusterEvent> {
        let answer = match self.job.as_ref()?.answer.try_recv() {
            Err(TryRecvError::Empty) => return None,
            Ok(answer) => answer,
            Err(TryRecvError::Disconnected) => ClusterEvent::Fatal("a transaction has no answer".into()),
        };
        self.job = None;
        Some(answer)
    }

    /// As [`Cluster::init_transactions`](super::Cluster::init_transactions).
    pub(super) fn init(&mut self, producer: SharedProducer, partitions: Vec<(String, PartitionId)>) {
        self.ask(move |asker| match asker.until_answered(|step| producer.init_transactions(step)) {
            Ok(()) => asker.group_offsets(&partitions).unwrap_or_else(ClusterEvent::Fatal),
            Err(error) => told(&error, &producer),
        });
    }

    /// As [`Cluster::commit_transaction`](super::Cluster::commit_transaction).
    pub(super) fn commit(&mut self, producer: SharedProducer, offsets: Vec<GroupOffset>) {
        self.ask(move |asker| match asker.commit(&producer, &offsets) {
            Ok(()) => ClusterEvent::Committed,
            Err(error) => told(&error, &producer),
        });
    }

    /// As [`Cluster::find`](super::Cluster::find).
    pub(super) fn find(&mut self, record: LastRecord) {
        self.ask(move |asker| match asker.find(&record) {
            Ok(presence) => ClusterEvent::Found(presence),
            Err(reason) => ClusterEvent::Fatal(reason),
        });
    }

    fn ask(&mut self, question: impl FnOnce(&Asker) -> ClusterEvent + Send + 'static) {
        let given_up = Arc::<AtomicBool>::default();
        let asker = Asker { given_up: Arc::clone(&given_up), ..self.asker.clone() };
        let (sender, answer) = channel();
        let failed = sender.clone();
        let thread = thread::Builder::new().name("transaction".into()).spawn(move || {
            // Nobody waits for it after a restart.
            let _ = sender.send(question(&asker));
        });
        if let Err(error) = thread {
            let _ = failed.send(no_thread(&error));
        }
        self.job = Some(Job { answer, given_up });
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.give_up();
    }
}

fn no_thread(error: &io::Error) -> ClusterEvent {
    ClusterEvent::Fatal(format!("no thread: {error}"))
}

impl Asker {
    /// Calls until there is an answer, or nobody waits for one.
    fn until_answered(&self, mut call: impl FnMut(Duration) -> KafkaResult<()>) -> KafkaResult<()> {
        loop {
            match call(STEP) {
                Err(error) if !self.given_up.load(Ordering::Relaxed) => {
                    let timed_out = error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut);
                    let again = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
                    match (timed_out, again) {
                        (true, _) => {}
                        (false, true) => thread::sleep(PAUSE),
                        (false, false) => return Err(error),
                    }
                }
                answered => return answered,
            }
        }
    }

    fn consumer(&self) -> Result<BaseConsumer<LogContext>, String> {
        self.worker.client(LogContext, BaseConsumer::client)
    }

    /// What the group holds for `partitions`.
    fn group_offsets(&self, partitions: &[(String, PartitionId)]) -> Result<ClusterEvent, String> {
        if self.group.get().is_some() && partitions.is_empty() {
            return Ok(ClusterEvent::Initialized(Vec::new()));
        }
        let consumer = self.consumer()?;
        if let Some(group) = consumer.group_metadata() {
            let _ = self.group.set(group);
        }
        if partitions.is_empty() {
            return Ok(ClusterEvent::Initialized(Vec::new()));
        }
        let mut asked = TopicPartitionList::with_capacity(partitions.len());
        for (topic, partition) in partitions {
            asked.add_partition(topic, partition.0);
        }
        let held = consumer
            .committed_offsets(asked, TIMEOUT)
            .map_err(|error| access::explain(&error.to_string()))?;
        let offsets = held.elements().into_iter().filter_map(|held| {
            let KafkaOffset::Offset(offset) = held.offset() else { return None };
            let (log, transaction) = parse_metadata(held.metadata())?;
            let (topic, partition) = (held.topic().to_owned(), PartitionId(held.partition()));
            Some(GroupOffset { topic, partition, offset: Offset(offset), log, transaction })
        });
        Ok(ClusterEvent::Initialized(offsets.collect()))
    }

    fn commit(&self, producer: &SharedProducer, offsets: &[GroupOffset]) -> KafkaResult<()> {
        if let Some(group) = self.group.get().filter(|_| !offsets.is_empty()) {
            let mut list = TopicPartitionList::with_capacity(offsets.len());
            for offset in offsets {
                let mut element = list.add_partition(&offset.topic, offset.partition.0);
                element.set_offset(KafkaOffset::Offset(offset.offset.0))?;
                element.set_metadata(metadata(offset.log, offset.transaction));
            }
            self.until_answered(|step| producer.send_offsets_to_transaction(&list, group, step))?;
        }
        self.until_answered(|step| producer.commit_transaction(step))
    }

    /// Whether `read_committed` consumers see a record.
    fn find(&self, record: &LastRecord) -> Result<Presence, String> {
        let LastRecord { topic, partition, kafka_offset, .. } = record;
        let consumer = self.consumer()?;
        let ends = || consumer.fetch_watermarks(topic, partition.0, TIMEOUT);
        loop {
            let (first, stable) = match ends() {
                Ok(ends) => ends,
                Err(error) => return unreadable(&error),
            };
            if *kafka_offset < first {
                return Ok(Presence::Unknown);
            }
            if *kafka_offset < stable {
                return self.read(&consumer, record);
            }
            // Behind what is stable: others have transactions open. Or it was never there for good.
            let all = self.worker.with("isolation.level", "read_uncommitted");
            let all: BaseConsumer<LogContext> = all.client(LogContext, BaseConsumer::client)?;
            match all.fetch_watermarks(topic, partition.0, TIMEOUT) {
                Ok((_, end)) if end <= *kafka_offset => return Ok(Presence::Unknown),
                Ok(_) => thread::sleep(STEP),
                Err(error) => return unreadable(&error),
            }
            if self.given_up.load(Ordering::Relaxed) {
                return Err("given up".into());
            }
        }
    }

    /// Reads at the place of a record that lies before what is not stable.
    fn read(&self, consumer: &BaseConsumer<LogContext>, record: &LastRecord) -> Result<Presence, String> {
        let mut place = TopicPartitionList::new();
        place
            .add_partition_offset(&record.topic, record.partition.0, KafkaOffset::Offset(record.kafka_offset))
            .and_then(|()| consumer.assign(&place))
            .map_err(|error| error.to_string())?;
        while !self.given_up.load(Ordering::Relaxed) {
            match consumer.poll(STEP) {
                None => {}
                Some(Ok(found)) if found.offset() > record.kafka_offset => return Ok(Presence::Absent),
                Some(Ok(found)) => {
                    // In a topic that was made anew there may be another.
                    let value_of = |key| {
                        found.headers()?.iter().find(|header| header.key == key)?.value.map(<[u8]>::to_vec)
                    };
                    let offset = record.offset.map(|offset| offset.0.to_string().into_bytes());
                    let is_it = value_of("wayside.gateway").as_deref() == Some(self.gateway.as_bytes())
                        && value_of("wayside.offset") == offset;
                    return Ok(if is_it { Presence::Committed } else { Presence::Unknown });
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(Presence::Absent),
                Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                    return Ok(Presence::Unknown);
                }
                Some(Err(error)) => return unreadable(&error),
            }
        }
        Err("given up".into())
    }
}

/// What to make of a partition that cannot be asked: no cluster is tried again later.
fn unreadable(error: &KafkaError) -> Result<Presence, String> {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::OffsetOutOfRange,
        ) => Ok(Presence::Unknown),
        _ => Err(access::explain(&error.to_string())),
    }
}

fn metadata(log: LogId, transaction: u64) -> String {
    format!("{:016x} {transaction}", log.0)
}

fn parse_metadata(text: &str) -> Option<(LogId, u64)> {
    let (log, transaction) = text.split_once(' ')?;
    let log = u64::from_str_radix(log, 16).ok().and_then(std::num::NonZeroU64::new)?;
    Some((LogId(log), transaction.parse().ok()?))
}

/// Whether an error says that another producer has our name, or that Kafka has ended our transaction.
pub(super) fn is_fencing(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(code, Fenced | ProducerFenced | InvalidProducerEpoch)
}

fn told(error: &KafkaError, producer: &SharedProducer) -> ClusterEvent {
    let fatal = producer.client().fatal_error();
    let codes = error.rdkafka_error_code().into_iter().chain(fatal.as_ref().map(|(code, _)| *code));
    let fenced = codes.into_iter().any(is_fencing);
    let reason = fatal.map_or_else(|| error.to_string(), |(_, reason)| reason);
    if fenced { ClusterEvent::Fenced(reason) } else { ClusterEvent::Fatal(access::explain(&reason)) }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn what_the_group_holds_is_read_back_and_nothing_else_is() {
        let log = LogId(NonZeroU64::new(0xfeed).unwrap());
        assert_eq!(metadata(log, 41), "000000000000feed 41");
        assert_eq!(parse_metadata("000000000000feed 41"), Some((log, 41)));
        for other in ["", "41", "0000000000000000 1", "feed", "feed -1", "feed 1 2", "somebody's own"] {
            assert_eq!(parse_metadata(other), None, "{other}");
        }
    }
}
