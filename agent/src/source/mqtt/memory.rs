//! What a restart brings back: at which broker the session is, and which of its messages are stored and may come again.
//!
//! # Format of the notes
//! | key | value |
//! |-----|-------|
//! | `s` | the session, in postcard: client identifier (string), host and port of the broker (string) |
//! | `w` | its messages that must not be stored again, by the CRC-32C of topic and payload: see [`window`] |
//! | `w` and a number, u8 | a piece, of what came since `w` was noted |
//!
//! The window is noted with the messages in it, so that it is durable if and only if they are. Those that were answered stay in
//! it, since a PUBACK may have got lost with the gateway: as many as the broker may have without an answer. So a message that the broker
//! sends with the packet id, the DUP flag, the topic and the very payload of another one shortly before, and that a crash took
//! before it was stored, passes for a repetition of that: possible where a broker gives out its packet ids anew at once.
//! More than 10 000 messages at a time are not noted.

use crate::{
    log::{Change, Remembered},
    source::window::{self, Noted, PartChange, Window},
};

const SESSION: &[u8] = b"s";
const WINDOW: &[u8] = b"w";

/// Client identifier, broker.
type SessionNote<'a> = (&'a str, &'a str);

/// What was noted last of the session, but for its window.
#[derive(Debug, Default)]
pub(super) struct Memory {
    session: Option<Box<[u8]>>,
}

impl Memory {
    /// Goes on with what a life before has noted. The window is that of the session, whoever has it.
    pub(super) fn restore(remembered: &Remembered) -> (Self, Window, Noted) {
        let (mut window, mut noted) = (Window::new(), Noted::default());
        for (key, value) in remembered {
            let part = match key.strip_prefix(WINDOW) {
                Some([]) => None,
                Some([number]) => Some(*number),
                _ => continue,
            };
            noted.restore(part);
            window::decode(&mut window, value);
        }
        (Self { session: remembered.get(SESSION).cloned() }, window, noted)
    }

    /// The broker that has the session of `client_id`.
    pub(super) fn broker(&self, client_id: &str) -> Option<&str> {
        let (id, broker) = postcard::from_bytes::<SessionNote<'_>>(self.session.as_deref()?).ok()?;
        (id == client_id).then_some(broker)
    }

    /// What is to be noted of the session, as far as that is not what was noted last, and of its `window`.
    pub(super) fn changes(&mut self, client_id: &str, broker: &str, window: Vec<PartChange>) -> Vec<Change> {
        let session: Box<[u8]> =
            postcard::to_stdvec(&(client_id, broker)).expect("memory is the only limit").into();
        let mut changes = Vec::new();
        if self.session.as_ref() != Some(&session) {
            changes.push((SESSION.into(), Some(session.clone())));
            self.session = Some(session);
        }
        let key = |part: Option<u8>| [WINDOW, part.as_slice()].concat().into();
        changes.extend(window.into_iter().map(|(part, value)| (key(part), value)));
        changes
    }
}
