//! The way from the sources into the commit stage, and back: records in, acknowledgements out.
//!
//! Each source numbers what it submits with [`Ticket`]s. An [`Acknowledgement`] covers all of them up to one, and nothing
//! but a completed sync can make it.

use std::{collections::VecDeque, fmt, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use crate::{
    log::{Change, CommitReceipt, NOTE_BYTES_MAX, Note},
    record::{Offset, Record},
};

/// Every submission of a source up to a ticket is durable: the source may answer its device.
///
/// Made from the log's [`CommitReceipt`] alone, so that an answer before the sync does not compile:
/// ```compile_fail,E0451
/// let forged = wayside::intake::Acknowledgement { through: wayside::intake::Ticket::default() };
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

    /// An acknowledgement without a sync, for tests of what waits for one.
    #[cfg(test)]
    pub(crate) fn for_test(through: Ticket) -> Self {
        Self { through }
    }

    /// The last ticket covered.
    pub fn through(self) -> Ticket {
        self.through
    }
}

/// Number of a submission of one source: 1, 2, 3, ... in the order of [`Intake::submit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub(crate) u64);

/// Which source, by its place in the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceIndex(pub(crate) usize);

/// The pipeline has ended; the source stops reading and returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pipeline takes no more records")]
pub struct IntakeClosed;

/// The offsets of a submission's records, in their order; none for one that its stream's policy has dropped
/// (`drop-newest`), which is told by a gap record that is as durable as the others.
pub type Places = Vec<Option<Offset>>;

/// Room in the intake for records that are not handed over yet.
#[derive(Debug)]
pub struct Reservation(OwnedSemaphorePermit);

/// Records of one frame on their way to the batch stage. Its bytes stay counted until the commit has them.
#[derive(Debug)]
pub struct Submission {
    pub(crate) source: SourceIndex,
    pub(crate) ticket: Ticket,
    pub(crate) records: Vec<Record>,
    /// What the source remembers once the records are durable.
    pub(crate) notes: Vec<Note>,
    /// Who wants to know where the records are.
    pub(crate) placed: Option<oneshot::Sender<Places>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What a source sends to the batch stage.
#[derive(Debug)]
pub(crate) enum IntakeEvent {
    /// Records to commit.
    Submission(Submission),
    /// A source has reached its in-flight limit and waits: commit early.
    Urge,
}

/// A source's way into the pipeline. Bounded in bytes over all sources.
pub struct Intake {
    source: SourceIndex,
    name: Arc<str>,
    next: u64,
    events: mpsc::UnboundedSender<IntakeEvent>,
    bytes: Arc<Semaphore>,
    limit_bytes: usize,
    acknowledged: watch::Receiver<Option<Acknowledgement>>,
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake")
            .field("source", &self.source)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}

impl Intake {
    pub(crate) fn new(
        source: SourceIndex,
        name: &str,
        events: mpsc::UnboundedSender<IntakeEvent>,
        bytes: Arc<Semaphore>,
        limit_bytes: usize,
        acknowledged: watch::Receiver<Option<Acknowledgement>>,
    ) -> Self {
        Self { source, name: name.into(), next: 1, events, bytes, limit_bytes, acknowledged }
    }

    /// Notes for [`submit_noting`](Self::submit_noting), of what the source remembers over restarts. A key whose value is too
    /// large is forgotten: better than what was before.
    pub fn notes(&self, changes: impl IntoIterator<Item = Change>) -> Vec<Note> {
        let note = |(key, value): Change| {
            let value = value.filter(|value| key.len() + value.len() <= NOTE_BYTES_MAX);
            Note::new(Arc::clone(&self.name), key, value).ok()
        };
        changes.into_iter().filter_map(note).collect()
    }

    /// The bound of the intake, in bytes over all sources.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Hands over the records of one frame (at least one); waits while the pipeline holds as many bytes as it may.
    /// Cancel-safe: a cancelled call has submitted nothing.
    ///
    /// # Errors
    /// [`IntakeClosed`] once the pipeline shuts down: nothing was taken, nothing will be acknowledged.
    pub async fn submit(&mut self, records: Vec<Record>) -> Result<Ticket, IntakeClosed> {
        let room = self.reserve(size_bytes(&records)).await?;
        self.submit_reserved(room, records)
    }

    /// Takes room for `size_bytes` of records and notes, if it is there now and nobody waits for it.
    pub fn try_reserve(&self, size_bytes: usize) -> Option<Reservation> {
        Arc::clone(&self.bytes).try_acquire_many_owned(self.share(size_bytes)).ok().map(Reservation)
    }

    /// Waits for room for `size_bytes` of records and notes. The future owns all it needs, so that a source can wait for room and for
    /// acknowledgements at once; dropping it gives the place in the queue back.
    ///
    /// # Errors
    /// [`IntakeClosed`] once the pipeline shuts down.
    pub fn reserve(
        &self,
        size_bytes: usize,
    ) -> impl Future<Output = Result<Reservation, IntakeClosed>> + Send + use<> {
        let (bytes, share) = (Arc::clone(&self.bytes), self.share(size_bytes));
        async move { bytes.acquire_many_owned(share).await.map(Reservation).map_err(|_| IntakeClosed) }
    }

    fn share(&self, size_bytes: usize) -> u32 {
        // A frame larger than the whole bound passes alone instead of never.
        u32::try_from(size_bytes.min(self.limit_bytes)).unwrap_or(u32::MAX)
    }

    /// Hands over `records` in the room that [`Intake::reserve`] found for them.
    ///
    /// # Errors
    /// [`IntakeClosed`] once the pipeline shuts down: nothing was taken, nothing will be acknowledged.
    pub fn submit_reserved(
        &mut self,
        room: Reservation,
        records: Vec<Record>,
    ) -> Result<Ticket, IntakeClosed> {
        self.submit_noting(room, records, Vec::new())
    }

    /// As [`submit_noting`](Self::submit_noting), and tells where the records are: known when their acknowledgement comes.
    ///
    /// # Errors
    /// As [`submit_reserved`](Self::submit_reserved).
    pub fn submit_asking(
        &mut self,
        room: Reservation,
        records: Vec<Record>,
        notes: Vec<Note>,
    ) -> Result<(Ticket, oneshot::Receiver<Places>), IntakeClosed> {
        let (placed, places) = oneshot::channel();
        Ok((self.send(room, records, notes, Some(placed))?, places))
    }

    /// As [`submit_reserved`](Self::submit_reserved), with what the source remembers once all of it is durable: never
    /// without its records. Records or notes may be none, not both.
    ///
    /// # Errors
    /// As [`submit_reserved`](Self::submit_reserved).
    pub fn submit_noting(
        &mut self,
        room: Reservation,
        records: Vec<Record>,
        notes: Vec<Note>,
    ) -> Result<Ticket, IntakeClosed> {
        self.send(room, records, notes, None)
    }

    fn send(
        &mut self,
        room: Reservation,
        records: Vec<Record>,
        notes: Vec<Note>,
        placed: Option<oneshot::Sender<Places>>,
    ) -> Result<Ticket, IntakeClosed> {
        let ticket = Ticket(self.next);
        self.events
            .send(IntakeEvent::Submission(Submission {
                source: self.source,
                ticket,
                records,
                notes,
                placed,
                permit: room.0,
            }))
            .map_err(|_| IntakeClosed)?;
        self.next += 1;
        Ok(ticket)
    }

    /// The ticket that the next submission will have.
    pub fn next_ticket(&self) -> Ticket {
        Ticket(self.next)
    }

    /// The ticket of the last submission; that of none is below all others.
    pub fn last_ticket(&self) -> Ticket {
        Ticket(self.next - 1)
    }

    /// Asks for an early commit: the source cannot go on before it has answered what it submitted.
    pub fn urge(&self) {
        // A closed pipeline shows at the next submit.
        let _ = self.events.send(IntakeEvent::Urge);
    }

    /// Waits for the next acknowledgement. Cancel-safe. It covers every ticket up to [`Acknowledgement::through`].
    ///
    /// # Errors
    /// [`IntakeClosed`] when the commit stage has ended: what is not acknowledged by now never will be.
    pub async fn acknowledged(&mut self) -> Result<Acknowledgement, IntakeClosed> {
        loop {
            self.acknowledged.changed().await.map_err(|_| IntakeClosed)?;
            if let Some(acknowledgement) = *self.acknowledged.borrow_and_update() {
                return Ok(acknowledgement);
            }
        }
    }
}

/// Bytes of records, as [`Intake::reserve`] counts them.
pub fn size_bytes(records: &[Record]) -> usize {
    records.iter().map(Record::size_bytes).sum()
}

/// What waits for its acknowledgement, in ticket order. `T` is what the source needs to answer its device.
#[derive(Debug)]
pub struct Unacknowledged<T> {
    waiting: VecDeque<(Ticket, T)>,
}

impl<T> Default for Unacknowledged<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new() }
    }
}

impl<T> Unacknowledged<T> {
    /// Notes that `answer` waits for `ticket`, which is not earlier than any before; several answers may wait for one.
    pub fn push(&mut self, ticket: Ticket, answer: T) {
        debug_assert!(self.waiting.back().is_none_or(|(last, _)| *last <= ticket), "tickets ascend");
        self.waiting.push_back((ticket, answer));
    }

    /// Takes what `acknowledgement` covers, in the order of submission (MQTT-4.6.0-2 asks for it).
    pub fn release(&mut self, acknowledgement: Acknowledgement) -> impl Iterator<Item = T> {
        let covered = self.waiting.partition_point(|(ticket, _)| *ticket <= acknowledgement.through());
        self.waiting.drain(..covered).map(|(_, answer)| answer)
    }

    /// Those that wait, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|(_, answer)| answer)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes all out unanswered, because the connection that they would be answered on is gone.
    pub fn abandon(&mut self) -> impl Iterator<Item = T> {
        self.waiting.drain(..).map(|(_, answer)| answer)
    }
}
