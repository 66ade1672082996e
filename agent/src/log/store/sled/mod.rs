//! The engine `sled`: one sled Db for each epoch, in a layout in which sled only ever appends.
//!
//! Plain sled 0.34.7 is not fit for a log: its `flush` is no fsync, it writes three to six bytes for each byte kept,
//! its memory grows with what was read, and its files never shrink. With a Db for each epoch (deleted as a directory),
//! at most nine entries in a tree and values below a quarter of a segment, none of that happens; the rest is guarded
//! (`guard`). An epoch at rest is read without sled, which at damage throws away what is whole (`file`). All of it leans on
//! internals of exactly this release, which is why it is pinned.

mod epoch;
mod file;
mod guard;
#[cfg(test)]
mod tests;

use super::ENTRY_BYTES_MAX;
pub(super) use epoch::SledWriter;
pub(super) use file::SledReader;

// A larger value would become a blob file, which sled never syncs.
const _: () = assert!(ENTRY_BYTES_MAX + 4096 <= guard::SEGMENT_BYTES / 4);

/// The file that holds the entries.
pub(super) const FILE: &str = "db";
