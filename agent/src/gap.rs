//! Gap records: what was dropped, told in Kafka on the stream `gaps`. A drop is never silent.
//!
//! A gap that a source knows of is a record of the log like any other, durable before the source acknowledges. A gap
//! that shows when the log is read is told by the replicator in the place of what is missing: its cursor does not pass
//! the place before Kafka has the gap. So a gap is told at least once, as data is; the same gap has the same value.
//!
//! # Value: a JSON object
//! | field | type | meaning |
//! |-------|------|---------|
//! | `reason` | string | a [`Reason`] |
//! | `count` | integer or null | records that are missing; null where nobody can know |
//! | `device` | string or null | whose they are, where one device is known; then also the key |
//! | `stream` | string or null | where they would have been, as far as known |
//! | `boot`, `first_seq`, `last_seq` | integer | the device's own numbers of them, where it has some |
//! | `partition`, `first_offset`, `last_offset` | integer | their places in this gateway's log (`wayside.offset`), where they had some; where one device is known, others' records may lie between |
//!
//! Fields of the last two rows are left out where they do not apply. The gateway is in the header `wayside.gateway`.

use bytes::Bytes;
use serde::Serialize;

use crate::{
    config::{GAPS_STREAM, Policy},
    decode::source_device,
    log::Dropped,
    record::{ContentType, DeviceId, Offset, PartitionId, Received, Record, StreamName},
};

/// Why records are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The device says so: its memory was full while nobody answered it.
    DeviceLost,
    /// An MQTT message was larger than `max_packet_bytes`.
    Oversize,
    /// The log has no more what it had: a damaged disk.
    Damaged,
    /// Kafka takes no record so large.
    TooLarge,
    /// Kafka's validation refuses the record, for instance on a compacted topic.
    Invalid,
    /// The log was at its limit, and the stream's policy gives up what is oldest.
    DropOldest,
    /// The log was at its limit, and the stream's policy gives up what comes.
    DropNewest,
    /// The log was at its limit, and the stream's policy keeps the last record of each device.
    LatestPerDevice,
}

/// Where the missing records were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Place {
    /// By their device.
    Device {
        /// Restart epoch of the device.
        boot: u32,
        /// The first that is missing.
        first_seq: u32,
        /// The last that is missing.
        last_seq: u32,
    },
    /// By the log.
    Log {
        /// Partition of the stream.
        partition: i32,
        /// The first that is missing.
        first_offset: i64,
        /// The last that is missing, where known.
        #[serde(skip_serializing_if = "Option::is_none")]
        last_offset: Option<i64>,
    },
    /// By nobody.
    Unknown {},
}

/// Records that are missing, of one device or one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Why.
    pub reason: Reason,
    /// How many; `None` if nobody can know.
    pub count: Option<u64>,
    /// Whose, if one device is known.
    #[serde(serialize_with = "name")]
    pub device: Option<DeviceId>,
    /// Where they would have been, as far as known.
    #[serde(serialize_with = "name")]
    pub stream: Option<StreamName>,
    /// Where they were counted.
    #[serde(flatten)]
    pub place: Place,
}

fn name<T: std::fmt::Display, S: serde::Serializer>(name: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
    match name {
        Some(name) => to.collect_str(name),
        None => to.serialize_none(),
    }
}

impl Gap {
    /// `count` readings that a device lost before it could send them.
    pub fn of_device(device: DeviceId, boot: u32, first_seq: u32, last_seq: u32) -> Self {
        Self {
            reason: Reason::DeviceLost,
            // Sequence numbers go around.
            count: Some(u64::from(last_seq.wrapping_sub(first_seq)) + 1),
            device: Some(device),
            stream: None,
            place: Place::Device { boot, first_seq, last_seq },
        }
    }

    /// A message that no device is known of, since nobody read it.
    pub fn of_oversize() -> Self {
        Self {
            reason: Reason::Oversize,
            count: Some(1),
            device: None,
            stream: None,
            place: Place::Unknown {},
        }
    }

    /// `count` records of a device that were not taken since the log was at its limit.
    pub fn of_newest(stream: StreamName, device: DeviceId, count: u64) -> Self {
        Self {
            reason: Reason::DropNewest,
            count: Some(count),
            device: Some(device),
            stream: Some(stream),
            place: Place::Unknown {},
        }
    }

    /// Records that the log has dropped.
    pub fn of_dropped(dropped: &Dropped) -> Self {
        Self {
            reason: match dropped.policy {
                Policy::LatestPerDevice => Reason::LatestPerDevice,
                Policy::DropNewest => Reason::DropNewest,
                Policy::DropOldest | Policy::Block => Reason::DropOldest,
            },
            count: Some(dropped.count),
            device: dropped.device.clone(),
            stream: Some(dropped.stream.clone()),
            place: Place::Log {
                partition: dropped.partition.0,
                first_offset: dropped.first.0,
                last_offset: Some(dropped.last.0),
            },
        }
    }

    /// Records of a partition of the log from `first` on, up to but not including `end`; `None` if the end is not known.
    pub fn of_log(
        reason: Reason,
        stream: StreamName,
        partition: PartitionId,
        first: Offset,
        end: Option<Offset>,
    ) -> Self {
        Self {
            reason,
            count: end.and_then(|end| u64::try_from(end.0.saturating_sub(first.0)).ok()),
            device: None,
            stream: Some(stream),
            place: Place::Log {
                partition: partition.0,
                first_offset: first.0,
                last_offset: end.map(|end| end.0.saturating_sub(1)),
            },
        }
    }

    /// The record that tells it. Where no device is known, the key is the stream, or else `origin`.
    pub fn record(&self, received: Received, origin: &str) -> Record {
        let stream = self.stream.as_ref().map(StreamName::as_str);
        Record {
            stream: StreamName::new(GAPS_STREAM).expect("a constant that is a stream name"),
            device: self.device.clone().unwrap_or_else(|| source_device(stream.unwrap_or(origin))),
            value: Bytes::from(serde_json::to_vec(self).expect("names and numbers are JSON")),
            content_type: ContentType::Json,
            event_time: None,
            received,
            device_seq: None,
            headers: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(gap: &Gap) -> String {
        String::from_utf8(gap.record(Received::default(), "broker").value.to_vec()).expect("JSON is UTF-8")
    }

    #[test]
    fn values_have_the_fields_of_the_table() {
        let device = DeviceId::new("00000000000000a1").expect("a name");
        let gap = Gap::of_device(device, 3, u32::MAX, 1);
        assert_eq!(
            text(&gap),
            r#"{"reason":"device_lost","count":3,"device":"00000000000000a1","stream":null,"boot":3,"first_seq":4294967295,"last_seq":1}"#
        );
        let stream = StreamName::new("occupancy").expect("a name");
        let lost = |end| Gap::of_log(Reason::Damaged, stream.clone(), PartitionId(2), Offset(7), end);
        assert_eq!(
            text(&lost(Some(Offset(9)))),
            r#"{"reason":"damaged","count":2,"device":null,"stream":"occupancy","partition":2,"first_offset":7,"last_offset":8}"#
        );
        assert_eq!(
            text(&lost(None)),
            r#"{"reason":"damaged","count":null,"device":null,"stream":"occupancy","partition":2,"first_offset":7}"#
        );
        assert_eq!(
            text(&Gap::of_oversize()),
            r#"{"reason":"oversize","count":1,"device":null,"stream":null}"#
        );
    }

    #[test]
    fn key_is_the_device_the_stream_or_the_origin() {
        let device = DeviceId::new("bus").expect("a name");
        let stream = StreamName::new("occupancy").expect("a name");
        let key = |gap: Gap| gap.record(Received::default(), "broker").device.to_string();
        assert_eq!(key(Gap::of_device(device, 1, 2, 3)), "bus");
        assert_eq!(key(Gap::of_log(Reason::Damaged, stream, PartitionId(0), Offset(0), None)), "occupancy");
        assert_eq!(key(Gap::of_oversize()), "broker");
    }
}
