//! The topic of a stream, and whether it may be produced to.

use std::num::NonZeroU16;

use prometheus_client::metrics::counter::Counter;

use super::{
    cluster::TopicOutcome,
    metrics::{ReplicateMetrics, StreamLabel},
    stamp::StampLimits,
};
use crate::{env::Monotonic, record::StreamName};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum TopicState {
    /// No record for it yet.
    Unused,
    /// To be asked for.
    Wanted,
    /// The answer is under way.
    Asked,
    /// There, with the partitions that the config says.
    Ready,
    /// Not so; to be asked for again.
    RetryAt(Monotonic),
}

pub(super) struct Topic {
    pub(super) name: String,
    pub(super) stream: StreamName,
    /// What the config says.
    pub(super) partitions: NonZeroU16,
    pub(super) state: TopicState,
    /// Answers since it was ready that it is not.
    pub(super) attempts: u32,
    /// The last answer was a mismatch of so many partitions; it is logged once.
    mismatch: Option<usize>,
    /// Timestamps that it takes.
    pub(super) limits: StampLimits,
    /// Some lanes were written when the config said more partitions: they share Kafka partitions with others.
    pub(super) lanes_share_partitions: bool,
    pub(super) acknowledged_records: Counter,
    pub(super) acknowledged_bytes: Counter,
}

impl Topic {
    pub(super) fn new(
        name: String,
        stream: StreamName,
        partitions: NonZeroU16,
        metrics: &ReplicateMetrics,
    ) -> Self {
        let label = StreamLabel { stream: stream.as_str().to_owned() };
        Self {
            name,
            stream,
            partitions,
            state: TopicState::Unused,
            attempts: 0,
            mismatch: None,
            limits: StampLimits::default(),
            lanes_share_partitions: false,
            acknowledged_records: metrics.acknowledged_records.get_or_create_owned(&label),
            acknowledged_bytes: metrics.acknowledged_bytes.get_or_create_owned(&label),
        }
    }

    /// Whether the cluster is to be asked for it now.
    pub(super) fn is_due(&self, now: Monotonic) -> bool {
        match self.state {
            TopicState::Wanted => true,
            TopicState::RetryAt(at) => at <= now,
            TopicState::Unused | TopicState::Asked | TopicState::Ready => false,
        }
    }

    /// Takes the cluster's answer; if it is not ready, it is asked for again at `retry_at`.
    pub(super) fn answered(
        &mut self,
        outcome: TopicOutcome,
        retry_at: Monotonic,
        metrics: &ReplicateMetrics,
    ) {
        let Self { name, stream, partitions: wanted, .. } = &*self;
        match outcome {
            TopicOutcome::Ready => {
                metrics.topic_waits(name, None);
                tracing::info!(topic = name, partitions = wanted.get(), "topic is ready");
                self.state = TopicState::Ready;
                self.attempts = 0;
                self.mismatch = None;
                return;
            }
            TopicOutcome::PartitionMismatch { found } => {
                let advice = format!(
                    "topic {name} has {found} partitions, the config wants {wanted}: set `partitions = {found}` in \
                     [[stream]] name = \"{stream}\" and restart the agent, or change the topic"
                );
                if self.mismatch != Some(found) {
                    tracing::error!(
                        %stream, topic = name, found, wanted = wanted.get(), advice,
                        "the stream waits: its topic has another number of partitions than the config says"
                    );
                }
                metrics.topic_waits(name, Some(advice));
                self.mismatch = Some(found);
            }
            TopicOutcome::Failed(reason) => {
                // Usual while Kafka is away; an operator looks at the health.
                tracing::warn!(topic = name, reason, "topic is not ready");
                metrics.error(format!("topic {name}: {reason}"));
            }
        }
        self.attempts = self.attempts.saturating_add(1);
        self.state = TopicState::RetryAt(retry_at);
    }
}
