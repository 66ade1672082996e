//! [`Cluster`] over librdkafka's producer.

use std::{
    collections::BTreeMap,
    error::Error,
    num::NonZeroU16,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{DeliveryResult, Header, Message as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext},
    types::RDKafkaErrorCode,
};
use serde::Deserialize;

use super::{
    access::{self, Access},
    cluster::{
        Cluster, ClusterEvent, DeliveryError, DropReason, GroupOffset, Outgoing, ProduceError, Refusal,
        Token, TopicOutcome,
    },
    coordinator::{Coordinator, SharedProducer, is_fencing},
    cursor::LastRecord,
    properties, token,
    topics::{Topics, UNREACHABLE},
};
use crate::{
    config::{Delivery, Replicate, Sasl, TokenSource},
    env::{Clock as _, SystemClock},
    record::{ClockQuality, PartitionId},
};

/// librdkafka serves one event a poll; a poll of ours takes what is there, up to so many.
const EVENTS_PER_POLL: usize = 64;

/// An idempotent producer of librdkafka, transactional or not, polled by its owner.
pub struct KafkaCluster {
    settings: Replicate,
    /// Without what [`Access`] adds.
    config: ClientConfig,
    gateway: String,
    producer: Option<SharedProducer>,
    /// Of a transactional producer.
    coordinator: Option<Coordinator>,
    /// What the producer was made with.
    access: Option<Access>,
    /// Why there was no first producer, until somebody is told.
    no_producer: Option<String>,
    topics: Topics,
    /// What keeps the producer from its brokers, as far as it says so.
    trouble: Option<String>,
}

impl KafkaCluster {
    /// Connects in the background; a cluster that is away is no error, and neither is a secret or certificate that cannot be
    /// read: the producer is made when it can.
    ///
    /// # Errors
    /// librdkafka's words about the configuration. The caller stops: it will not get better.
    pub fn new(config: &Replicate, gateway: &str) -> Result<Self, String> {
        let client_id = format!("wayside-{gateway}");
        let mut cluster = Self {
            settings: config.clone(),
            config: properties::producer(config, gateway),
            gateway: gateway.to_owned(),
            producer: None,
            coordinator: (config.delivery == Delivery::ExactlyOnce)
                .then(|| Coordinator::new(config, gateway)),
            access: None,
            no_producer: None,
            topics: Topics::new(config.clone(), properties::admin(config, &client_id)),
            trouble: None,
        };
        cluster.config.create_native_config().map_err(|error| error.to_string())?;
        match cluster.restart() {
            Err(reason) if config.tls.is_none() && config.sasl.is_none() => return Err(reason),
            started => cluster.no_producer = started.err(),
        }
        Ok(cluster)
    }

    fn poll_producer(&mut self, timeout: Duration, events: &mut Vec<ClusterEvent>) {
        let Some(producer) = &self.producer else {
            events.extend(self.no_producer.take().map(ClusterEvent::Fatal));
            return;
        };
        producer.poll(timeout);
        let reports = producer.context();
        for _ in 0..EVENTS_PER_POLL {
            if !take(&reports.served) {
                break;
            }
            events.append(&mut reports.lock());
            producer.poll(Duration::ZERO);
        }
        if take(&reports.refused)
            && self.access.as_ref().is_some_and(|access| access.is_outdated(&self.settings))
        {
            let reason = "refused; connecting with new secrets or certificates";
            events.push(ClusterEvent::Fatal(reason.into()));
        }
    }

    fn headers(&self, out: &Outgoing<'_>) -> OwnedHeaders {
        let record = out.record;
        let mut decimal = itoa::Buffer::new();
        let mut headers = OwnedHeaders::new_with_capacity(6 + record.headers.len())
            .insert(header("wayside.gateway", self.gateway.as_bytes()));
        if let Some(offset) = out.offset {
            headers = headers.insert(header("wayside.offset", decimal.format(offset.0).as_bytes()));
        }
        headers = headers
            .insert(header("wayside.received", decimal.format(out.received.at.0).as_bytes()))
            .insert(header("content-type", record.content_type.as_str().as_bytes()));
        if out.received.quality != ClockQuality::Synced {
            headers = headers.insert(header("wayside.clock", out.received.quality.as_str().as_bytes()));
        }
        if out.received.at != record.received.at {
            let shown = decimal.format(record.received.at.0);
            headers = headers.insert(header("wayside.clock.corrected", shown.as_bytes()));
        }
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
        let first = events.len();
        self.topics.poll(events);
        self.poll_producer(timeout, events);
        events.extend(self.coordinator.as_mut().and_then(Coordinator::poll));
        for event in &mut events[first..] {
            match event {
                ClusterEvent::Trouble(reason) => {
                    let hint = access::hint(reason);
                    // Once per cause; librdkafka tries for ever.
                    if hint.is_some() && hint != self.trouble.as_deref().and_then(access::hint) {
                        tracing::error!(reason, "Kafka waits for an operator");
                    }
                    self.trouble = Some(reason.clone());
                }
                ClusterEvent::Delivered { .. } => self.trouble = None,
                ClusterEvent::Topic { outcome: TopicOutcome::Failed(reason), .. }
                    if reason == UNREACHABLE =>
                {
                    if let Some(trouble) = &self.trouble {
                        reason.clone_from(trouble);
                    }
                }
                _ => {}
            }
        }
    }

    fn ensure_topic(&mut self, topic: &str, partitions: NonZeroU16) {
        self.topics.ensure(topic, partitions);
    }

    fn restart(&mut self) -> Result<(), String> {
        self.coordinator.iter_mut().for_each(Coordinator::give_up);
        // The old one goes first, and with it the queue of its reports.
        self.producer = None;
        let access = Access::read(&self.settings).map_err(|error| error.to_string())?;
        let reports = Reports { token: token_source(&self.settings).cloned(), ..Reports::default() };
        let client = access.applied_to(&self.config);
        let producer = client.create_with_context(reports).map_err(|error| client_error(&error))?;
        self.producer = Some(Arc::new(producer));
        self.access = Some(access);
        self.trouble = None;
        Ok(())
    }

    fn init_transactions(&mut self, partitions: Vec<(String, PartitionId)>) {
        if let (Some(coordinator), Some(producer)) = (&mut self.coordinator, &self.producer) {
            coordinator.init(Arc::clone(producer), partitions);
        }
    }

    fn begin_transaction(&mut self) -> Result<(), String> {
        let producer = self.producer.as_ref().ok_or("there is no producer")?;
        producer.begin_transaction().map_err(|error| fatal_reason(producer).unwrap_or(error.to_string()))
    }

    fn commit_transaction(&mut self, offsets: Vec<GroupOffset>) {
        if let (Some(coordinator), Some(producer)) = (&mut self.coordinator, &self.producer) {
            coordinator.commit(Arc::clone(producer), offsets);
        }
    }

    fn find(&mut self, record: &LastRecord) {
        self.coordinator.iter_mut().for_each(|coordinator| coordinator.find(record.clone()));
    }
}

fn fatal_reason(producer: &BaseProducer<Reports>) -> Option<String> {
    producer.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
}

/// Why there is no client, without the value of a property, which librdkafka's binding adds.
pub(super) fn client_error(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, reason, property, _) => format!("{property}: {reason}"),
        other => other.to_string(),
    }
}

/// Where tokens come from, if they are wanted.
pub(super) fn token_source(config: &Replicate) -> Option<&TokenSource> {
    match &config.sasl {
        Some(Sasl::OauthBearer(source)) => Some(source),
        _ => None,
    }
}

/// Gathers what librdkafka calls back with, and gives it tokens.
#[derive(Default)]
pub(super) struct Reports {
    /// Filled and taken by the thread that polls, and by one that commits, which may serve a late statistic.
    events: Mutex<Vec<ClusterEvent>>,
    /// Something was called back with; librdkafka does not say when its queue is empty.
    served: AtomicBool,
    /// A broker did not take what it was shown, or we did not take the broker's certificate.
    refused: AtomicBool,
    /// The last statistics had a broker that throttles.
    throttled: AtomicBool,
    token: Option<TokenSource>,
}

impl Reports {
    fn lock(&self) -> MutexGuard<'_, Vec<ClusterEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: ClusterEvent) {
        self.served.store(true, Ordering::Relaxed);
        self.lock().push(event);
    }
}

fn take(flag: &AtomicBool) -> bool {
    flag.swap(false, Ordering::Relaxed)
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
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.served.store(true, Ordering::Relaxed);
        let source = self.token.as_ref().ok_or("no token is configured")?;
        Ok(token::get(source, SystemClock::new().wall().at)?)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.served.store(true, Ordering::Relaxed);
        LogContext.log(level, facility, line);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        match throttle(statistics) {
            Ok(time) => {
                let throttled = !time.is_zero();
                if self.throttled.swap(throttled, Ordering::Relaxed) || throttled {
                    self.push(ClusterEvent::Throttled(time));
                }
            }
            Err(error) => tracing::debug!(target: "librdkafka", %error, "statistics cannot be read"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let event = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => ClusterEvent::Fatal(access::explain(reason)),
            Some(code) if is_fencing(code) => ClusterEvent::Fenced(reason.to_owned()),
            code => {
                let refused = matches!(code, Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL));
                self.refused.fetch_or(refused, Ordering::Relaxed);
                ClusterEvent::Trouble(access::explain(reason))
            }
        };
        self.push(event);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Token;

    fn delivery(&self, result: &DeliveryResult<'_>, token: Token) {
        let event = match result {
            Ok(record) => ClusterEvent::Delivered { token, kafka_offset: record.offset() },
            Err((error, record)) => {
                ClusterEvent::Failed { token, error: delivery_error(error, record.topic()) }
            }
        };
        self.push(event);
    }
}

fn delivery_error(error: &KafkaError, topic: &str) -> DeliveryError {
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
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
            DeliveryError::Other(format!("topic {topic}: {NO_PERMISSION}"))
        }
        _ => DeliveryError::Other(error.to_string()),
    }
}

/// What brokers say with `TOPIC_AUTHORIZATION_FAILED`, and what to do about it.
pub(super) const NO_PERMISSION: &str =
    "no permission: the agent's user needs DESCRIBE and WRITE on the topic, and CREATE where it is missing";

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
