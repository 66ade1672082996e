//! What a restart brings back: at which broker the session is, and which of its messages are stored and may come again.
//!
//! # Format of the notes
//! | key | value |
//! |-----|-------|
//! | `s` | the session, in postcard: client identifier (string), host and port of the broker (string) |
//! | `w` | its messages that must not be stored again, by the CRC-32C of topic and payload: see [`window`] |
//!
//! The window is noted with the messages in it, so that it is durable if and only if they are. Those of the commit before stay in it,
//! since a PUBACK may have got lost with the gateway. So a message that the broker sends with the packet id, the DUP flag, the
//! topic and the very payload of another one shortly before, and that a crash took before it was stored, passes for a repetition
//! of that: possible where a broker gives out its packet ids anew at once. More than 10 000 messages at a time are not noted.

use crate::{
    log::{Change, Remembered},
    source::window::{self, Window},
};

const SESSION: &[u8] = b"s";
const WINDOW: &[u8] = b"w";

/// Client identifier, broker.
type SessionNote<'a> = (&'a str, &'a str);

/// What was noted last.
#[derive(Debug, Default)]
pub(super) struct Memory {
    session: Option<Box<[u8]>>,
    window: Option<Box<[u8]>>,
}

impl Memory {
    /// Goes on with what a life before has noted.
    pub(super) fn restore(remembered: &Remembered) -> Self {
        Self { session: remembered.get(SESSION).cloned(), window: remembered.get(WINDOW).cloned() }
    }

    /// The broker that has the session of `client_id`, and the messages that it may send again.
    pub(super) fn session(&self, client_id: &str) -> Option<(&str, Window)> {
        let (id, broker) = postcard::from_bytes::<SessionNote<'_>>(self.session.as_deref()?).ok()?;
        (id == client_id).then(|| (broker, window::decode(self.window.as_deref().unwrap_or_default())))
    }

    /// What is to be noted of the session, as far as that is not what was noted last.
    pub(super) fn changes(&mut self, client_id: &str, broker: &str, window: &Window) -> Vec<Change> {
        let session = postcard::to_stdvec(&(client_id, broker)).expect("memory is the only limit");
        let window =
            (!window.is_empty()).then(|| window::encode(window.iter().map(|(id, digest)| (*id, *digest))));
        let mut changes = Vec::new();
        for (key, noted, value) in
            [(SESSION, &mut self.session, Some(session.into())), (WINDOW, &mut self.window, window)]
        {
            if *noted != value {
                noted.clone_from(&value);
                changes.push((key.into(), value));
            }
        }
        changes
    }
}
