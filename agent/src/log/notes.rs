//! Notes: what sources remember over restarts, beside records. A note is a key of its source with a value; one without a
//! value forgets the key. It becomes durable in the same commit as the records that it was handed over with, of which a
//! start finds all or nothing: "this message was stored" must be known if and only if it was.
//!
//! The log keeps the last value of each key as a table. Each epoch's checkpoint has the table as it was there, the entries
//! behind it have what was noted since: the newest epoch alone is enough to know all. Where that is damaged the sources
//! begin with nothing, as on their first day.
//!
//! # Format
//! postcard (see [`super::group`] for its types): a list of
//! | field | type | meaning |
//! |-------|------|---------|
//! | source | string | name of the source |
//! | key | bytes | what the source calls it by |
//! | value | option of bytes | what it remembers; `00` forgets it |
//!
//! In an entry of kind 4 it stands in front of a group's body, in a checkpoint it is section 1, of values alone.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    LogBatch,
    entry::EntryError,
    group::{self, Names},
};
use crate::record::Timeline;

/// Largest note, key and value together, in bytes.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;

/// Most bytes of all notes of all sources, as [`Note::size_bytes`] counts them. Each epoch begins with them.
pub const NOTES_BYTES_MAX: usize = 4 << 20;

/// Most bytes that a note takes in a list beside its name, key and value: three lengths and the option.
const FIXED_BYTES_MAX: usize = 16;

/// What a source remembers by key.
pub type Remembered = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What a note is to say: its key, and its value or that it goes.
pub type Change = (Box<[u8]>, Option<Box<[u8]>>);

/// Key and value together are larger than [`NOTE_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a note of {0} bytes; at most {NOTE_BYTES_MAX} are remembered")]
pub struct NoteTooLarge(pub usize);

/// One key of one source, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    source: Arc<str>,
    key: Box<[u8]>,
    value: Option<Box<[u8]>>,
}

impl Note {
    /// Of the source named; without a value it forgets the key.
    ///
    /// # Errors
    /// [`NoteTooLarge`]: the source goes on without it.
    pub fn new(
        source: Arc<str>,
        key: impl Into<Box<[u8]>>,
        value: Option<Box<[u8]>>,
    ) -> Result<Self, NoteTooLarge> {
        let note = Self { source, key: key.into(), value };
        let bytes = note.key.len() + note.value.as_ref().map_or(0, |value| value.len());
        if bytes <= NOTE_BYTES_MAX { Ok(note) } else { Err(NoteTooLarge(bytes)) }
    }

    /// Does to `remembered` what the log does.
    #[cfg(test)]
    pub(crate) fn apply(self, remembered: &mut Remembered) {
        remembered.remove(&self.key);
        remembered.extend(self.value.map(|value| (self.key, value)));
    }

    /// What it is counted with in every bound.
    pub fn size_bytes(&self) -> usize {
        size_bytes(&self.source, &self.key, self.value.as_deref().unwrap_or_default())
    }
}

fn size_bytes(source: &str, key: &[u8], value: &[u8]) -> usize {
    FIXED_BYTES_MAX + source.len() + key.len() + value.len()
}

/// Notes that wait for their commit: the last of each key.
#[derive(Debug, Default)]
pub struct NoteBatch(BTreeMap<Place, Option<Box<[u8]>>>);

/// Source and key.
type Place = (Arc<str>, Box<[u8]>);

impl NoteBatch {
    /// Adds a note in place of an earlier one of its key.
    pub fn push(&mut self, note: Note) {
        self.0.insert((note.source, note.key), note.value);
    }

    /// Takes them all.
    pub fn take(&mut self) -> Vec<Note> {
        let notes = std::mem::take(&mut self.0).into_iter();
        notes.map(|((source, key), value)| Note { source, key, value }).collect()
    }
}

/// The last value of every key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NoteTable {
    by_source: BTreeMap<Arc<str>, Remembered>,
    size_bytes: usize,
}

impl NoteTable {
    /// Takes a note. False where there is no room for it: then its key is forgotten.
    pub(super) fn set(&mut self, note: Note) -> bool {
        let Note { source, key, value } = note;
        let remembered = self.by_source.entry(Arc::clone(&source)).or_default();
        if let Some(old) = remembered.remove(&key) {
            self.size_bytes -= size_bytes(&source, &key, &old);
        }
        let Some(value) = value else { return true };
        let bytes = size_bytes(&source, &key, &value);
        let fits = self.size_bytes + bytes <= NOTES_BYTES_MAX;
        if fits {
            self.size_bytes += bytes;
            remembered.insert(key, value);
        }
        fits
    }

    /// What each source remembers.
    pub(super) fn by_source(&self) -> &BTreeMap<Arc<str>, Remembered> {
        &self.by_source
    }

    /// Forgets the sources that are not named.
    pub(super) fn retain(&mut self, is_named: impl Fn(&str) -> bool) {
        self.by_source.retain(|source, remembered| {
            let stays = is_named(source);
            if !stays {
                self.size_bytes -=
                    remembered.iter().map(|(key, value)| size_bytes(source, key, value)).sum::<usize>();
            }
            stays
        });
    }

    /// The table as a list of notes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let elements = self.by_source.iter().flat_map(|(source, remembered)| {
            remembered.iter().map(|(key, value)| Element { source, key, value: Some(Value(value)) })
        });
        encode_elements(&elements.collect::<Vec<_>>())
    }

    /// The table that a list of notes gives.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        let (notes, rest) = decode(bytes)?;
        let mut table = Self::default();
        // One that does not fit was written by a release with a higher bound.
        let _ = notes.into_iter().all(|note| table.set(note));
        if rest.is_empty() { Ok(table) } else { Err(EntryError::Body("bytes behind the notes")) }
    }
}

#[derive(Serialize, Deserialize)]
struct Element<'a> {
    source: &'a str,
    #[serde(with = "serde_bytes")]
    key: &'a [u8],
    #[serde(borrow)]
    value: Option<Value<'a>>,
}

#[derive(Serialize, Deserialize)]
struct Value<'a>(#[serde(with = "serde_bytes")] &'a [u8]);

fn encode_elements(elements: &[Element<'_>]) -> Vec<u8> {
    postcard::to_stdvec(elements).expect("memory is the only limit")
}

/// Encodes notes as a list.
pub(super) fn encode(notes: &[Note]) -> Vec<u8> {
    let elements = notes.iter().map(|note| Element {
        source: &note.source,
        key: &note.key,
        value: note.value.as_deref().map(Value),
    });
    encode_elements(&elements.collect::<Vec<_>>())
}

/// Reads a list of notes off the front of `bytes`; returns what is behind it too.
pub(super) fn decode(bytes: &[u8]) -> Result<(Vec<Note>, &[u8]), EntryError> {
    const BAD: EntryError = EntryError::Body("the notes");
    let (elements, rest) = postcard::take_from_bytes::<Vec<Element<'_>>>(bytes).map_err(|_| BAD)?;
    let notes = elements.into_iter().map(|element| {
        let value = element.value.map(|Value(value)| value.into());
        Note::new(element.source.into(), element.key, value).map_err(|_| BAD)
    });
    Ok((notes.collect::<Result<_, _>>()?, rest))
}

/// Splits the body of an entry of kind 4 into its notes and the body of its group.
pub(super) fn split(raw: &Bytes) -> Result<(Vec<Note>, Bytes), EntryError> {
    decode(raw).map(|(notes, rest)| (notes, raw.slice_ref(rest)))
}

/// The batches of an entry of kind 4.
pub(super) fn decode_batches(
    raw: &Bytes,
    timeline: Timeline,
    names: &mut Names,
) -> Result<Vec<LogBatch>, EntryError> {
    split(raw).and_then(|(_, group)| group::decode(&group, timeline, names))
}
