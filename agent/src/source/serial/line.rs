//! What the driver of a port needs of the protocol that is spoken on it.

use bytes::BytesMut;

use crate::{
    env::Monotonic,
    intake::{Acknowledgement, Ticket},
    log::Change,
    record::{Received, Record},
    source::metrics::SourceCounters,
};

/// A moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// For decisions.
    pub(super) monotonic: Monotonic,
    /// For labels.
    pub(super) received: Received,
}

/// What frames have become.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// Their records.
    pub(super) records: Vec<Record>,
    /// What is to be remembered once these are durable.
    pub(super) changes: Vec<Change>,
}

/// One protocol on one port: bytes and the time go in, records, bytes and a deadline come out. It outlives the port's
/// comings and goings.
pub(super) trait Line: Send {
    /// Takes bytes from the port.
    fn receive(&mut self, now: Now, bytes: &[u8]);

    /// Does what is due without bytes.
    fn expire(&mut self, now: Now);

    /// When to call [`Line::expire`] or [`Line::transmit`] even if nothing comes.
    fn next_deadline(&self) -> Option<Monotonic>;

    /// Takes out what has come and was not taken yet, as one submission; without records if there are none. Until
    /// [`Line::submitted`] was called for it, it is not called again.
    fn take(&mut self) -> Frames;

    /// What was taken last has `ticket`.
    fn submitted(&mut self, ticket: Ticket);

    /// Answers what `acknowledgement` covers.
    fn acknowledged(&mut self, now: Now, acknowledgement: Acknowledgement);

    /// Whether the intake takes what comes. While it does not, the line slows its senders down, or counts what it drops.
    fn set_room(&mut self, now: Now, room: bool);

    /// Appends what is to be sent to `out`, which is empty: the line is free.
    fn transmit(&mut self, now: Now, out: &mut BytesMut);

    /// The port is gone.
    fn closed(&mut self, now: Now);

    /// Frames taken whose sender has no acknowledgement yet.
    fn unacknowledged(&self) -> usize;

    /// Adds what was counted since the last call, and returns how many frames, or bytes that are no frames, were rejected.
    fn count(&mut self, counters: &mut SourceCounters) -> u64;
}
