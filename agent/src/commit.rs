//! Group commit: one thread owns the log; what a window gathered becomes durable with one sync.

use crate::{log::CommitReceipt, source::Ticket};

/// Every submission of a source up to a ticket is durable: the source may answer its device.
///
/// Made from the log's [`CommitReceipt`] alone, so that an answer before the sync does not compile:
/// ```compile_fail
/// let forged = wayside::commit::Acknowledgement { through: wayside::source::Ticket::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    through: Ticket,
}

impl Acknowledgement {
    /// `receipt` is the proof that the submission `through` and all before it are on stable storage.
    pub(crate) fn new(_receipt: &CommitReceipt, through: Ticket) -> Self {
        Self { through }
    }

    /// The last ticket covered.
    pub fn through(self) -> Ticket {
        self.through
    }
}
