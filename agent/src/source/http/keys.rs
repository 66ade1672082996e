//! `Idempotency-Key`: a request that comes again is answered as it was, and stored once.
//!
//! A key is of one stream. The latest ones are remembered that fit [`KEYS_BYTES_MAX`], over restarts too: each is noted with
//! the records of its request, so that it is known if and only if they are stored. After a restart the answer says how many
//! records there are, and not where.
//!
//! # References
//! draft-ietf-httpapi-idempotency-key-header-07
//!
//! # Format of the notes
//! Key: `k`, the stream's name, 0, the idempotency key. Value, in postcard: number of the request (u64, ascending), CRC-32C of
//! its body (u32), partition of each record (list of i32).

use std::{collections::BTreeMap, sync::Arc};

use super::Stored;
use crate::{
    log::{CRC_32C, Change, Remembered},
    record::{PartitionId, StreamName},
};

/// Most bytes of the keys of a source, each counted with [`KEY_FIXED_BYTES`] and 4 for each record: some 2 000 UUIDs.
const KEYS_BYTES_MAX: usize = 512 * 1024;

/// What a key is counted with beside its bytes and records.
const KEY_FIXED_BYTES: usize = 200;

const KIND: u8 = b'k';

/// A key of a stream, as it is noted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(Box<[u8]>);

impl Key {
    /// `key` came with a request to `stream`.
    pub(super) fn new(stream: &StreamName, key: &[u8]) -> Self {
        Self([&[KIND], stream.as_str().as_bytes(), &[0], key].concat().into())
    }
}

/// What is known of a request with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing: it is new.
    New,
    /// Its records are on their way to the disk.
    UnderWay,
    /// They are stored.
    Stored(Arc<Stored>),
    /// The key came with another body.
    Other,
}

#[derive(Debug)]
struct Request {
    digest: u32,
    size_bytes: usize,
    /// Once it is durable.
    stored: Option<Arc<Stored>>,
}

/// The keys of a source.
#[derive(Debug, Default)]
pub(super) struct Keys {
    requests: BTreeMap<Key, Request>,
    order: BTreeMap<u64, Key>,
    size_bytes: usize,
}

impl Keys {
    /// Goes on with what a life before has noted. What is not understood is passed over.
    pub(super) fn restore(remembered: &Remembered) -> Self {
        let mut keys = Self::default();
        for (key, value) in remembered.iter().filter(|(key, _)| key.first() == Some(&KIND)) {
            let Ok((number, digest, partitions)) = postcard::from_bytes::<(u64, u32, Vec<i32>)>(value) else {
                continue;
            };
            let stored = Stored::before_a_restart(partitions.into_iter().map(PartitionId).collect());
            let records = stored.partitions.len();
            keys.insert(Key(key.clone()), number, records, digest, Some(Arc::new(stored)));
        }
        keys
    }

    /// What is known of a request with `key` and `body`.
    pub(super) fn look(&self, key: &Key, body: &[u8]) -> Seen {
        match self.requests.get(key) {
            None => Seen::New,
            Some(request) if request.digest != CRC_32C.checksum(body) => Seen::Other,
            Some(Request { stored: None, .. }) => Seen::UnderWay,
            Some(Request { stored: Some(stored), .. }) => Seen::Stored(Arc::clone(stored)),
        }
    }

    /// A new request is submitted: what is to be noted with its records, which go to `partitions`.
    pub(super) fn begin(&mut self, key: &Key, body: &[u8], partitions: &[PartitionId]) -> Vec<Change> {
        let number = self.order.last_key_value().map_or(0, |(number, _)| number + 1);
        let digest = CRC_32C.checksum(body);
        let numbers: Vec<i32> = partitions.iter().map(|partition| partition.0).collect();
        let value = postcard::to_stdvec(&(number, digest, numbers)).expect("memory is the only limit");
        self.insert(key.clone(), number, partitions.len(), digest, None);
        let mut changes = vec![(key.0.clone(), Some(value.into()))];
        while self.size_bytes > KEYS_BYTES_MAX
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some(request) = self.requests.remove(&oldest) {
                self.size_bytes -= request.size_bytes;
            }
            changes.push((oldest.0, None));
        }
        changes
    }

    /// The request of `key`, if it is known and durable.
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.requests.get(key)?.stored.clone()
    }

    /// The records of a request are durable.
    pub(super) fn stored(&mut self, key: &Key, stored: &Arc<Stored>) {
        if let Some(request) = self.requests.get_mut(key) {
            request.stored = Some(Arc::clone(stored));
        }
    }

    fn insert(&mut self, key: Key, number: u64, records: usize, digest: u32, stored: Option<Arc<Stored>>) {
        let size_bytes = KEY_FIXED_BYTES + 2 * key.0.len() + 4 * records;
        self.size_bytes += size_bytes;
        self.order.insert(number, key.clone());
        self.requests.insert(key, Request { digest, size_bytes, stored });
    }
}
