//! What a restart brings back: at which broker the session is, and which of its messages are stored and may come again.
//!
//! # Format of the notes
//! | key | value |
//! |-----|-------|
//! | `s` | the session, in postcard: client identifier (string), host and port of the broker (string) |
//! | `w` | its messages that must not be stored again, by the CRC-32C of topic and payload: see [`window`] |
//! | `w` and a number, u8 | further ones, that came since `w` was noted: 0, 1, ... |
//!
//! The window is noted whole once messages have left it, which is once in a commit, and what comes until then beside it: a read of a
//! few messages costs a few. It is noted with the messages in it, so that it is durable if and only if they are. Those of the commit before stay in it,
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

/// What is to be noted of the window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Noting {
    /// All of it.
    Whole(Window),
    /// What came since, packet id and digest.
    Further(Vec<(u16, u32)>),
}

/// What was noted last.
#[derive(Debug, Default)]
pub(super) struct Memory {
    session: Option<Box<[u8]>>,
    window: Option<Box<[u8]>>,
    /// What came since, each under its number.
    further: Vec<Box<[u8]>>,
}

impl Memory {
    /// Goes on with what a life before has noted.
    pub(super) fn restore(remembered: &Remembered) -> Self {
        let further = (0..=u8::MAX).map_while(|number| remembered.get(&further_key(number)[..]).cloned());
        Self {
            session: remembered.get(SESSION).cloned(),
            window: remembered.get(WINDOW).cloned(),
            further: further.collect(),
        }
    }

    /// The broker that has the session of `client_id`, and the messages that it may send again.
    pub(super) fn session(&self, client_id: &str) -> Option<(&str, Window)> {
        let (id, broker) = postcard::from_bytes::<SessionNote<'_>>(self.session.as_deref()?).ok()?;
        let parts = self.window.iter().chain(&self.further);
        (id == client_id).then(|| (broker, parts.flat_map(|part| window::decode(part)).collect()))
    }

    /// Whether what comes must be noted with all of the window: there is no number left for it.
    pub(super) fn is_full(&self) -> bool {
        self.further.len() > usize::from(u8::MAX)
    }

    /// What is to be noted of the session, as far as that is not what was noted last.
    pub(super) fn changes(&mut self, client_id: &str, broker: &str, noting: Noting) -> Vec<Change> {
        let session: Box<[u8]> =
            postcard::to_stdvec(&(client_id, broker)).expect("memory is the only limit").into();
        let mut changes = Vec::new();
        if self.session.as_ref() != Some(&session) {
            changes.push((SESSION.into(), Some(session.clone())));
            self.session = Some(session);
        }
        match noting {
            Noting::Whole(window) => {
                let window = (!window.is_empty()).then(|| window::encode(window.into_iter()));
                if self.window != window {
                    changes.push((WINDOW.into(), window.clone()));
                    self.window = window;
                }
                let further = (0..=u8::MAX).zip(self.further.drain(..));
                changes.extend(further.map(|(number, _)| (further_key(number).into(), None)));
            }
            Noting::Further(messages) => {
                if let Ok(number) = u8::try_from(self.further.len())
                    && !messages.is_empty()
                {
                    let messages = window::encode(messages.into_iter());
                    changes.push((further_key(number).into(), Some(messages.clone())));
                    self.further.push(messages);
                }
            }
        }
        changes
    }
}

fn further_key(number: u8) -> [u8; 2] {
    [b'w', number]
}
