//! Messages of an MQTT session that must not be stored again when they come again: packet id and CRC-32C, of what of the
//! message is for the source to say. What is known of them in memory is known after a crash too, at a few bytes of flash for each:
//! a note of the whole now and then, and beside it, in numbered pieces, what the window has gained since.
//!
//! A message that is not needed any more stays in the notes until the whole is noted again, which is when the pieces have outgrown
//! it. It does no harm: another message with its packet id takes its place. Only where an *equal* one may come with that id it
//! has to go at once, and the source says so.
//!
//! # Format in notes
//! 6 bytes for each: packet id (u16 BE), CRC-32C (u32 BE), in the order in which they came. Packet id 0, which no message has, takes
//! out the one whose id follows, as u32. The whole comes first, then the pieces by their numbers; a later one replaces an earlier
//! one with its packet id.

use std::collections::BTreeMap;

/// By packet id.
pub(super) type Window = BTreeMap<u16, u32>;

/// The number of a piece; the whole has none.
pub(super) type Part = Option<u8>;

/// What a note of a part is to say; `None` if it goes.
pub(super) type PartChange = (Part, Option<Box<[u8]>>);

/// Most messages that are noted: the newest, as many as a note has room for.
const MESSAGES_MAX: usize = 10_000;

/// Messages at which a piece is full, and the next one is begun. Until then it is noted again with what is added, which within one
/// commit costs nothing.
const PIECE_MESSAGES: usize = 4;

/// What a note takes beside its value, about, in bytes: to weigh many small ones against a large one.
const NOTE_BYTES: usize = 32;

const MESSAGE_BYTES: usize = 6;

/// In place of a packet id: the message whose id follows is taken out.
const TAKEN_OUT: u16 = 0;

/// What is noted of a window, and what is to be.
#[derive(Debug)]
pub(super) struct Noted {
    /// What the window has gained and lost since.
    gained: Vec<(u16, u32)>,
    has_whole: bool,
    pieces: u16,
    pieces_bytes: usize,
    /// The last piece, unless it is full.
    last_piece: Vec<u8>,
    is_stale: bool,
}

impl Default for Noted {
    /// Nothing is known of what is noted: the whole comes first.
    fn default() -> Self {
        Self {
            gained: Vec::new(),
            has_whole: false,
            pieces: 0,
            pieces_bytes: 0,
            last_piece: Vec::new(),
            is_stale: true,
        }
    }
}

impl Noted {
    /// A life before has noted `part`.
    pub(super) fn restore(&mut self, part: Part) {
        match part {
            None => self.has_whole = true,
            Some(number) => self.pieces = self.pieces.max(u16::from(number) + 1),
        }
    }

    /// A message was taken: to be noted together with it.
    pub(super) fn take(&mut self, packet_id: u16, digest: u32) {
        self.gained.push((packet_id, digest));
    }

    /// The handshake of a message has ended, and its id is free.
    pub(super) fn release(&mut self, packet_id: u16) {
        self.gained.push((TAKEN_OUT, packet_id.into()));
    }

    /// Messages have left the window that must not be known any more: it is noted whole next time.
    pub(super) fn rewrite(&mut self) {
        self.is_stale = true;
    }

    /// Nobody asks for a note.
    pub(super) fn skip(&mut self) {
        self.gained.clear();
    }

    /// Whether the window, which has `messages`, is to be noted whole: no dearer than what was noted since the last time.
    pub(super) fn is_due(&self, messages: usize) -> bool {
        let numbers = usize::from(u8::MAX) + 1;
        let is_used_up = usize::from(self.pieces) == numbers && self.last_piece.is_empty();
        let is_outgrown = self.pieces_bytes > NOTE_BYTES + messages * MESSAGE_BYTES;
        self.is_stale
            || !self.gained.is_empty() && (is_used_up || is_outgrown || self.gained.len() > MESSAGES_MAX)
    }

    /// Notes the whole `window`, with what it has gained.
    pub(super) fn whole(&mut self, window: &[(u16, u32)]) -> Vec<PartChange> {
        let newest = &window[window.len().saturating_sub(MESSAGES_MAX)..];
        let whole = (!newest.is_empty()).then(|| encode(newest).into());
        let mut changes = Vec::new();
        let has_whole = whole.is_some();
        if has_whole || self.has_whole {
            changes.push((None, whole));
        }
        changes.extend(self.pieces().map(|piece| (piece, None)));
        *self = Self { has_whole, is_stale: false, ..Self::default() };
        changes
    }

    /// Notes what the window has gained.
    pub(super) fn further(&mut self) -> Vec<PartChange> {
        if self.gained.is_empty() {
            return Vec::new();
        }
        if self.last_piece.is_empty() {
            self.pieces += 1;
            self.pieces_bytes += NOTE_BYTES;
        }
        self.pieces_bytes += self.gained.len() * MESSAGE_BYTES;
        self.last_piece.extend(encode(&std::mem::take(&mut self.gained)));
        let change = (self.pieces().last().flatten(), Some(self.last_piece.as_slice().into()));
        if self.last_piece.len() >= PIECE_MESSAGES * MESSAGE_BYTES {
            self.last_piece = Vec::new();
        }
        vec![change]
    }

    /// All parts that are noted.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        self.has_whole.then_some(None).into_iter().chain(self.pieces())
    }

    fn pieces(&self) -> impl Iterator<Item = Part> + use<> {
        (0..=u8::MAX).take(self.pieces.into()).map(Some)
    }
}

fn encode(messages: &[(u16, u32)]) -> Vec<u8> {
    let item = |(id, digest): &(u16, u32)| {
        let ([id_high, id_low], [a, b, c, d]) = (id.to_be_bytes(), digest.to_be_bytes());
        [id_high, id_low, a, b, c, d]
    };
    messages.iter().map(item).collect::<Vec<_>>().into_flattened()
}

/// Adds to `window` what was noted in a part of it; the parts come in their order. A rest that is no whole message is passed over.
pub(super) fn decode(window: &mut Window, part: &[u8]) {
    let (messages, _) = part.as_chunks::<MESSAGE_BYTES>();
    for [id_high, id_low, digest @ ..] in messages {
        match (u16::from_be_bytes([*id_high, *id_low]), u32::from_be_bytes(*digest)) {
            (TAKEN_OUT, id) => {
                u16::try_from(id).ok().and_then(|id| window.remove(&id));
            }
            (id, digest) => {
                window.insert(id, digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The notes of a window with the latest `max` messages.
    struct Notes {
        noted: Noted,
        window: Vec<(u16, u32)>,
        parts: BTreeMap<Part, Box<[u8]>>,
        bytes: usize,
    }

    impl Notes {
        fn new() -> Self {
            Self { noted: Noted::default(), window: Vec::new(), parts: BTreeMap::new(), bytes: 0 }
        }

        fn take(&mut self, messages: impl Iterator<Item = u16>, max: usize) {
            for id in messages {
                self.noted.take(id, id.into());
                self.window.push((id, id.into()));
            }
            self.window.drain(..self.window.len().saturating_sub(max));
            self.note();
        }

        fn note(&mut self) {
            let changes = if self.noted.is_due(self.window.len()) {
                self.noted.whole(&self.window)
            } else {
                self.noted.further()
            };
            for (part, value) in changes {
                self.bytes += value.as_ref().map_or(0, |value| value.len());
                self.parts.remove(&part);
                self.parts.extend(value.map(|value| (part, value)));
            }
        }

        fn known(&self) -> Vec<u16> {
            let mut window = Window::new();
            self.parts.values().for_each(|part| decode(&mut window, part));
            window.into_keys().collect()
        }
    }

    #[test]
    fn a_message_is_noted_in_some_bytes_and_a_window_does_not_grow_beyond_twice_what_is_needed() {
        // Messages in a read, and the bytes that each may cost.
        for (read, bytes_max) in [(1_u16, 45), (20, 16)] {
            let mut notes = Notes::new();
            for first in (1..40_000).step_by(read.into()) {
                notes.take(first..first + read, 2_000);
                let known = notes.known();
                let needed = notes.window.iter().map(|(id, _)| *id);
                assert!(known.iter().copied().rev().take(2_000).eq(needed.rev()));
                assert!(known.len() <= 4_100, "{}", known.len());
            }
            assert!(notes.bytes < 40_000 * bytes_max, "{} bytes", notes.bytes);
        }
    }

    #[test]
    fn what_must_not_be_known_leaves_at_once() {
        let mut notes = Notes::new();
        notes.take(1..4, 10);
        notes.take(4..5, 10);
        notes.noted.release(2);
        notes.take(5..6, 10);
        assert_eq!(notes.known(), [1, 3, 4, 5], "a handshake has ended");
        notes.noted.release(5);
        notes.take(5..6, 10);
        assert_eq!(notes.known(), [1, 3, 4, 5], "its id is used again");
        notes.noted.rewrite();
        notes.window.clear();
        notes.note();
        assert_eq!(notes.parts, BTreeMap::new(), "nothing is to be known");
    }

    #[test]
    fn a_window_that_a_life_before_noted_in_pieces_is_replaced_as_a_whole() {
        let mut notes = Notes::new();
        notes.take(1..100, 1000);
        (100..110).for_each(|id| notes.take(id..id + 1, 1000));
        assert_eq!(notes.parts.len(), 4, "the whole, and pieces");
        notes.noted = Noted::default();
        notes.parts.keys().for_each(|part| notes.noted.restore(*part));
        notes.window = vec![(7, 7)];
        notes.take(8..9, 10);
        assert_eq!((notes.known(), notes.parts.len()), (vec![7, 8], 1));
        assert!(notes.noted.parts().eq([None]));
    }
}
