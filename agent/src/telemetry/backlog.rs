//! What waits for Kafka, in bytes: worked out from what log and replication say, when somebody asks.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
    registry::Unit,
};

use crate::{log::LogMetrics, replicate::ReplicateHealth};

/// Gauge `replicate_lag_bytes`, beside the records and entries that replication counts itself.
#[derive(Debug)]
pub struct BacklogCollector {
    /// Size of the log.
    pub log: LogMetrics,
    /// How many entries wait.
    pub replicate: ReplicateHealth,
}

impl BacklogCollector {
    /// Bytes on the disk of the entries that are not fully acknowledged, an estimate.
    pub fn size_bytes(&self) -> u64 {
        self.log.size_bytes_of(self.replicate.snapshot().lag_entries)
    }
}

impl Collector for BacklogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from(self.size_bytes()).unwrap_or(i64::MAX));
        let help = "Bytes of the log that Kafka has not acknowledged, an estimate";
        let metric =
            encoder.encode_descriptor("replicate_lag", help, Some(&Unit::Bytes), gauge.metric_type())?;
        gauge.encode(metric)
    }
}
