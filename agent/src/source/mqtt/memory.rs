//! What a restart brings back: at which broker the session is, and which of its messages are stored and may come again.
//!
//! # Format of the note
//! Key: `w`. Value, in postcard: client identifier (string), host and port of the broker (string), messages (bytes, see
//! [`window`]).
//!
//! It is noted with the messages in it, so that it is durable if and only if they are. Those of the commit before stay in it,
//! since a PUBACK may have got lost with the gateway. So a message that the broker sends with the packet id, the DUP flag, the
//! topic and the very payload of another one shortly before, and that a crash took before it was stored, passes for a repetition
//! of that: possible where a broker gives out its packet ids anew at once. More than 10 000 messages at a time are not noted.

use crate::{
    log::{Change, Remembered},
    source::window::{self, Window},
};

const WINDOW: &[u8] = b"w";

/// Client identifier, broker, messages.
type SessionNote<'a> = (&'a str, &'a str, &'a [u8]);

/// What was noted last.
#[derive(Debug, Default)]
pub(super) struct Memory(Option<Box<[u8]>>);

impl Memory {
    /// Goes on with what a life before has noted.
    pub(super) fn restore(remembered: &Remembered) -> Self {
        Self(remembered.get(WINDOW).cloned())
    }

    /// The broker that has the session of `client_id`, and the messages that it may send again.
    pub(super) fn session(&self, client_id: &str) -> Option<(&str, Window)> {
        let (id, broker, messages) = postcard::from_bytes::<SessionNote<'_>>(self.0.as_deref()?).ok()?;
        (id == client_id).then(|| (broker, window::decode(messages)))
    }

    /// What is to be noted of the session, if that is not what was noted last.
    pub(super) fn change(&mut self, client_id: &str, broker: &str, window: &Window) -> Option<Change> {
        let messages = window::encode(window);
        let note: SessionNote<'_> = (client_id, broker, &messages);
        let note: Box<[u8]> = postcard::to_stdvec(&note).expect("memory is the only limit").into();
        if self.0.as_ref() == Some(&note) {
            return None;
        }
        self.0 = Some(note.clone());
        Some((WINDOW.into(), Some(note)))
    }
}
