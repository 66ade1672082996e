//! [`Cluster`] over librdkafka's producer.

use std::{
    collections::BTreeMap,
    num::NonZeroU16,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
    types::RDKafkaErrorCode,
};
use serde::Deserialize;

use super::{
    cluster::{Cluster, ClusterEvent, DeliveryError, DropReason, Outgoing, ProduceError, Refusal, Token},
    properties,
    topics::Topics,
};
use crate::config::Replicate;

/// librdkafka serves one event a poll; a poll of ours takes what is there, up to so many.
const EVENTS_PER_POLL: usize = 64;

/// An idempotent producer of librdkafka, polled by its owner.
pub struct KafkaCluster {
    config: ClientConfig,
    gateway: String,
    producer: Option<BaseProducer<Reports>>,
    topics: Topics,
}

impl KafkaCluster {
    /// Connects in the background; a cluster that is away is no error.
    ///
    /// # Errors
    /// librdkafka's words about the configuration. The caller stops: it will not get better.
    pub fn new(config: &Replicate, gateway: &str) -> Result<Self, String> {
        let client_id = format!("wayside-{gateway}");
        let mut cluster = Self {
            config: properties::producer(config, &client_id),
            gateway: gateway.to_owned(),
            producer: None,
            topics: Topics::new(
                properties::admin(config, &client_id),
                config.replication_factor,
                config.min_insync_replicas,
            ),
        };
        cluster.restart()?;
        Ok(cluster)
    }

    fn headers(&self, out: &Outgoing<'_>) -> OwnedHeaders {
        let record = out.record;
        let mut decimal = itoa::Buffer::new();
        let mut headers = OwnedHeaders::new_with_capacity(5 + record.headers.len())
            .insert(header("wayside.gateway", self.gateway.as_bytes()));
        if let Some(offset) = out.offset {
            headers = headers.insert(header("wayside.offset", decimal.format(offset.0).as_bytes()));
        }
        headers = headers
            .insert(header("wayside.received", decimal.format(record.received.at.0).as_bytes()))
            .insert(header("content-type", record.content_type.as_str().as_bytes()));
        if let Some(seq) = record.device_seq {
            headers = headers.insert(header("wayside.seq", decimal.format(seq).as_bytes()));
        }
        if let Some(at) = out.refused_event_time {
            headers = headers.insert(header("wayside.event-time", decimal.format(at.0).as_bytes()));
        }
        for further in &record.headers {
            headers = headers.insert(header(&further.name, &further.value));
        }
        headers
    }
}

fn header<'a>(key: &'a str, value: &'a [u8]) -> Header<'a, &'a [u8]> {
    Header { key, value: Some(value) }
}

impl Cluster for KafkaCluster {
    fn produce(&mut self, out: &Outgoing<'_>) -> Result<(), ProduceError> {
        let Some(producer) = &self.producer else {
            return Err(ProduceError::Failed("there is no producer".into()));
        };
        let record = BaseRecord::with_opaque_to(out.topic, out.token)
            .partition(out.partition.0)
            .key(out.record.device.as_bytes())
            .payload(&out.record.value[..])
            // librdkafka takes 0 for "now", brokers take -1 for "none": Kafka's time begins at 1.
            .timestamp(out.timestamp_ms.max(1))
            .headers(self.headers(out));
        producer.send(record).map_err(|(error, _)| match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::QueueFull) => ProduceError::QueueFull,
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => ProduceError::Undeliverable(DropReason::TooLarge),
            Some(
                RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicOrPartition,
            ) => ProduceError::NoTopic,
            _ => ProduceError::Failed(fatal_reason(producer).unwrap_or_else(|| error.to_string())),
        })
    }

    fn poll(&mut self, timeout: Duration, events: &mut Vec<ClusterEvent>) {
        self.topics.poll(events);
        let Some(producer) = &self.producer else { return };
        producer.poll(timeout);
        for _ in 0..EVENTS_PER_POLL {
            let mut reports = producer.context().lock();
            if reports.is_empty() {
                return;
            }
            events.append(&mut reports);
            drop(reports);
            producer.poll(Duration::ZERO);
        }
    }

    fn ensure_topic(&mut self, topic: &str, partitions: NonZeroU16) {
        self.topics.ensure(topic, partitions);
    }

    fn restart(&mut self) -> Result<(), String> {
        // The old one goes first, and with it the queue of its reports.
        self.producer = None;
        let producer = self.config.create_with_context(Reports::default()).map_err(|e| e.to_string())?;
        self.producer = Some(producer);
        Ok(())
    }
}

fn fatal_reason(producer: &BaseProducer<Reports>) -> Option<String> {
    producer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
}

/// Gathers what librdkafka calls back with.
#[derive(Default)]
pub(super) struct Reports {
    /// Filled and taken by the one thread that polls; librdkafka's trait wants it shareable, so the lock is never
    /// contended.
    events: Mutex<Vec<ClusterEvent>>,
    /// The last statistics had a broker that throttles.
    throttled: AtomicBool,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Vec<ClusterEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wanted of librdkafka's statistics.
///
/// # References
/// <https://github.com/confluentinc/librdkafka/blob/master/STATISTICS.md>
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: BTreeMap<String, BrokerStatistics>,
}

#[derive(Deserialize)]
struct BrokerStatistics {
    throttle: Option<Window>,
}

#[derive(Deserialize)]
struct Window {
    max: i64,
}

/// The longest throttle time that a broker answered with since the statistics before.
fn throttle(statistics: &[u8]) -> serde_json::Result<Duration> {
    let Statistics { brokers } = serde_json::from_slice(statistics)?;
    let max_ms = brokers.values().filter_map(|broker| Some(broker.throttle.as_ref()?.max)).max();
    Ok(Duration::from_millis(max_ms.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)))
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        LogContext.log(level, facility, line);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match throttle(statistics) {
            Ok(time) => {
                let throttled = !time.is_zero();
                if self.throttled.swap(throttled, Ordering::Relaxed) || throttled {
                    self.lock().push(ClusterEvent::Throttled(time));
                }
            }
            Err(error) => tracing::debug!(target: "librdkafka", %error, "statistics cannot be read"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let event = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => ClusterEvent::Fatal(reason.to_owned()),
            _ => ClusterEvent::Trouble(reason.to_owned()),
        };
        self.lock().push(event);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Token;

    fn delivery(&self, result: &DeliveryResult<'_>, token: Token) {
        let event = match result {
            Ok(_) => ClusterEvent::Delivered(token),
            Err((error, _)) => ClusterEvent::Failed { token, error: delivery_error(error) },
        };
        self.lock().push(event);
    }
}

fn delivery_error(error: &KafkaError) -> DeliveryError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
            DeliveryError::Refused(Refusal::Contents(DropReason::TooLarge))
        }
        Some(RDKafkaErrorCode::InvalidTimestamp) => DeliveryError::Refused(Refusal::Timestamp),
        Some(RDKafkaErrorCode::InvalidRecord) => {
            DeliveryError::Refused(Refusal::Contents(DropReason::Invalid))
        }
        Some(
            RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::UnknownTopicOrPartition,
        ) => DeliveryError::NoTopic,
        _ => DeliveryError::Other(error.to_string()),
    }
}

/// librdkafka's log in ours, a level lower than it thinks: to it a broker that is away is an error, to us a Tuesday.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LogContext;

impl ClientContext for LogContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(target: "librdkafka", facility, "{line}");
            }
            RDKafkaLogLevel::Error => tracing::warn!(target: "librdkafka", facility, "{line}"),
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
                tracing::info!(target: "librdkafka", facility, "{line}");
            }
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(target: "librdkafka", facility, "{line}");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

#[cfg(test)]
#[path = "kafka_tests.rs"]
mod tests;
