//! What the tests of this stage share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    config,
    log::{BatchGroup, EntrySeq, LogBatch},
    record::{
        ClockQuality, ContentType, DeviceId, Offset, PartitionId, Received, Record, StreamName, UnixMicros,
    },
};

/// `[replicate]` for tests: no linger, no replicas, no transactions.
pub(crate) fn config() -> config::Replicate {
    config::Replicate {
        bootstrap_servers: vec!["127.0.0.1:1".into()],
        replication_factor: 1,
        min_insync_replicas: 1,
        compression: config::Compression::None,
        delivery: config::Delivery::AtLeastOnce,
        transaction_interval: Duration::ZERO,
        linger: Duration::ZERO,
        in_flight_bytes: 1024 * 1024,
        catch_up_bytes_per_second: 0,
        cursor_interval: Duration::from_millis(20),
        shutdown_flush: Duration::from_secs(20),
        tls: None,
        sasl: None,
        properties: BTreeMap::new(),
    }
}

pub(crate) fn stream(name: &str) -> StreamName {
    StreamName::new(name).unwrap()
}

/// A record whose value says where it is.
pub(crate) fn record(stream_name: &str, partition: i32, offset: i64) -> Record {
    Record {
        stream: stream(stream_name),
        device: DeviceId::new(&format!("device-{partition}")).unwrap(),
        value: Bytes::from(format!("{stream_name}/{partition}/{offset}")),
        content_type: ContentType::Json,
        event_time: Some(UnixMicros(1_700_000_000_000_000 + offset * 1_000)),
        received: Received {
            at: UnixMicros(1_700_000_001_000_000),
            quality: ClockQuality::Synced,
            ..Received::default()
        },
        device_seq: u64::try_from(offset + 1).ok(),
        headers: Vec::new(),
    }
}

/// An entry: (stream, partition, base offset, record count) each.
pub(crate) fn group(seq: u64, batches: &[(&str, i32, i64, i64)]) -> Arc<BatchGroup> {
    let batches = batches.iter().map(|&(name, partition, base, count)| LogBatch {
        stream: stream(name),
        partition: PartitionId(partition),
        base_offset: Offset(base),
        records: (base..base + count).map(|offset| record(name, partition, offset)).collect(),
    });
    Arc::new(BatchGroup { seq: EntrySeq(seq), batches: batches.collect(), dropped: Vec::new() })
}
