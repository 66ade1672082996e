//! What the log dropped by a stream's policy, as the body of an entry tells of it.
//!
//! # Format, versions 1 and 2 (of the entry)
//! A compacted group is postcard (see [`super::group`] for its types), and a group behind it, which may be empty:
//! | field | type | meaning |
//! |-------|------|---------|
//! | first | u64 | this entry stands for all from `first` to its own position |
//! | dropped | list | what was dropped of them: one element for each device, stream, partition and policy |
//!
//! An element of the list:
//! | field | type | meaning |
//! |-------|------|---------|
//! | stream | string | name of the stream |
//! | partition | i32 | its partition |
//! | device | option of string | whose records; none where they were too many devices' to tell |
//! | policy | u8 | 1 drop-oldest, 2 latest-per-device |
//! | first_offset, last_offset | i64 | of the first and the last record dropped; not all between need be dropped |
//! | count | u64 | records dropped, at least 1 |

use std::collections::{BTreeMap, btree_map::Entry};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    LogBatch,
    entry::{EntryError, RAW_BYTES_MAX},
    group::{self, Names},
    store::EntrySeq,
};
use crate::{
    config::Policy,
    record::{DeviceId, Offset, PartitionId, StreamName, Timeline},
};

/// Records that the log has dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The stream.
    pub stream: StreamName,
    /// Its partition.
    pub partition: PartitionId,
    /// Whose they were; `None` where they were too many devices' to tell.
    pub device: Option<DeviceId>,
    /// Why.
    pub policy: Policy,
    /// Offset of the first.
    pub first: Offset,
    /// Offset of the last. What lies between need not be all dropped, nor of this device.
    pub last: Offset,
    /// How many.
    pub count: u64,
}

impl Dropped {
    /// Most bytes that it takes in an entry: the names, their lengths, and varints of 5, 10, 10 and 10 bytes.
    pub(super) fn bytes_max(&self) -> usize {
        self.stream.as_str().len() + self.device.as_ref().map_or(0, |device| device.as_bytes().len() + 2) + 40
    }
}

/// What was dropped, as few elements.
#[derive(Debug, Default)]
pub(super) struct DroppedTable {
    elements: BTreeMap<(StreamName, PartitionId, Option<DeviceId>, u8), Dropped>,
    bytes: usize,
}

/// The fields in front of the elements.
const HEAD_BYTES_MAX: usize = 10 + 5;

impl DroppedTable {
    pub(super) fn add(&mut self, dropped: Dropped) {
        let Dropped { stream, partition, device, policy, .. } = &dropped;
        match self.elements.entry((stream.clone(), *partition, device.clone(), code(*policy))) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                known.first = known.first.min(dropped.first);
                known.last = known.last.max(dropped.last);
                known.count = known.count.saturating_add(dropped.count);
            }
            Entry::Vacant(vacant) => {
                self.bytes += dropped.bytes_max();
                vacant.insert(dropped);
            }
        }
    }

    /// Keeps the counts and gives up whose they are.
    pub(super) fn forget_devices(&mut self) {
        for dropped in self.take() {
            self.add(Dropped { device: None, ..dropped });
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// Most bytes that it takes in an entry.
    pub(super) fn bytes_max(&self) -> usize {
        HEAD_BYTES_MAX + self.bytes
    }

    pub(super) fn take(&mut self) -> Vec<Dropped> {
        std::mem::take(self).elements.into_values().collect()
    }
}

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    first: u64,
    #[serde(borrow)]
    dropped: Vec<Element<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Element<'a> {
    stream: &'a str,
    partition: i32,
    device: Option<&'a str>,
    policy: u8,
    first_offset: i64,
    last_offset: i64,
    count: u64,
}

/// Encodes a compacted group into `raw`, which is cleared first. The caller has seen to it that it fits an entry.
pub(super) fn encode(first: EntrySeq, dropped: &[Dropped], batches: &[LogBatch], raw: &mut Vec<u8>) {
    let elements = dropped.iter().map(|dropped| Element {
        stream: dropped.stream.as_str(),
        partition: dropped.partition.0,
        device: dropped.device.as_ref().map(DeviceId::as_str),
        policy: code(dropped.policy),
        first_offset: dropped.first.0,
        last_offset: dropped.last.0,
        count: dropped.count,
    });
    let head = Head { first: first.0, dropped: elements.collect() };
    raw.clear();
    postcard::to_io(&head, &mut *raw).expect("memory is the only limit");
    group::encode(batches, raw);
    assert!(raw.len() <= RAW_BYTES_MAX, "a compacted group of {} bytes", raw.len());
}

/// A compacted group as it is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Compacted {
    /// The first entry that it stands for.
    pub(super) first: EntrySeq,
    pub(super) dropped: Vec<Dropped>,
    pub(super) batches: Vec<LogBatch>,
}

/// Reads a compacted group, whose records have the timeline `timeline`. Their values are slices of `raw`.
pub(super) fn decode(raw: &Bytes, timeline: Timeline, names: &mut Names) -> Result<Compacted, EntryError> {
    let (head, rest) =
        postcard::take_from_bytes::<Head>(raw).map_err(|_| EntryError::Body("what was dropped"))?;
    let dropped = head.dropped.iter().map(|element| read(element, names)).collect::<Result<_, _>>()?;
    let group = raw.slice_ref(rest);
    Ok(Compacted { first: EntrySeq(head.first), dropped, batches: group::decode(&group, timeline, names)? })
}

/// The first entry that a compacted group stands for.
pub(super) fn first(raw: &[u8]) -> Option<EntrySeq> {
    postcard::take_from_bytes::<u64>(raw).ok().map(|(first, _)| EntrySeq(first))
}

fn read(element: &Element<'_>, names: &mut Names) -> Result<Dropped, EntryError> {
    const BAD: EntryError = EntryError::Body("what was dropped");
    let (first, last) = (element.first_offset, element.last_offset);
    let span = u64::try_from(last.checked_sub(first).ok_or(BAD)?).map_err(|_| BAD)?;
    if first < 0 || last == i64::MAX || element.count == 0 || element.count > span + 1 {
        return Err(BAD);
    }
    Ok(Dropped {
        stream: names.get(element.stream)?,
        partition: PartitionId(element.partition),
        device: element.device.map(DeviceId::new).transpose().map_err(|_| BAD)?,
        policy: [Policy::DropOldest, Policy::LatestPerDevice]
            .into_iter()
            .find(|policy| code(*policy) == element.policy)
            .ok_or(BAD)?,
        first: Offset(first),
        last: Offset(last),
        count: element.count,
    })
}

/// The number of a policy on disk; 0 of those that drop nothing here.
fn code(policy: Policy) -> u8 {
    match policy {
        Policy::Block | Policy::DropNewest => 0,
        Policy::DropOldest => 1,
        Policy::LatestPerDevice => 2,
    }
}
