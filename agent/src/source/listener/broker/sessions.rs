//! Sessions: what outlives connections, and for how long.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Broker, ConnectionKey, Store, refused};
use crate::{
    env::Monotonic,
    source::listener::{
        access::Client, connection::Known, outbox::Outbox, packet::Reason, subscriptions::SessionKey,
    },
};

/// What outlives connections.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client_id: Arc<str>,
    pub(super) user: Option<Box<str>>,
    pub(super) connection: Option<ConnectionKey>,
    /// How long it outlives its connection.
    pub(super) expiry: Duration,
    /// When it ends, while it has no connection.
    pub(super) ends_at: Option<Monotonic>,
    pub(super) known: Known,
    pub(super) filters: BTreeSet<Box<str>>,
    pub(super) outbox: Outbox,
    /// Its client finds it after a restart.
    pub(super) noted: bool,
    pub(super) will: Option<StoredWill>,
    /// When the will is due, once the connection is gone.
    pub(super) will_at: Option<Monotonic>,
}

impl Session {
    /// Whose it is.
    pub(super) fn client(&self) -> Client<'_> {
        Client { id: &self.client_id, user: self.user.as_deref() }
    }
}

/// A will that waits for the end of its connection.
#[derive(Debug)]
pub(super) struct StoredWill {
    pub(super) delay: Duration,
    /// A PUBLISH packet of MQTT 5 without packet id.
    pub(super) packet: Bytes,
}

impl Broker {
    /// Ends the connection that `client` has elsewhere (MQTT-3.1.4-3), and with `clean`, or if it was another user's, its session.
    /// Returns whether there is one to go on with.
    pub(super) fn prepare_session(
        &mut self,
        now: Monotonic,
        client: Client<'_>,
        clean: bool,
        store: &mut dyn Store,
    ) -> bool {
        let other = self.clients.get(client.id).and_then(|session| self.sessions[*session].connection);
        if let Some(other) = other {
            let what = "its client has connected again";
            self.end(now, other, refused(Reason::SessionTakenOver, what), store);
        }
        let Some(session) = self.clients.get(client.id).copied() else { return false };
        let clean = clean || self.sessions[session].user.as_deref() != client.user;
        if clean {
            self.publish_will(now, session, store);
            self.forget(session);
        }
        !clean
    }

    pub(super) fn new_session(&mut self, client_id: &str) -> SessionKey {
        let client_id: Arc<str> = client_id.into();
        let session = self.sessions.insert(Session {
            client_id: Arc::clone(&client_id),
            user: None,
            connection: None,
            expiry: Duration::ZERO,
            ends_at: None,
            known: Known::default(),
            filters: BTreeSet::new(),
            outbox: Outbox::default(),
            noted: false,
            will: None,
            will_at: None,
        });
        self.clients.insert(client_id, session);
        session
    }

    /// Keeps no more than twice as many sessions as there may be connections.
    pub(super) fn bound_sessions(&mut self, now: Monotonic, store: &mut dyn Store) {
        if self.sessions.len() <= 2 * self.config.max_connections {
            return;
        }
        let first = self.sessions.iter().filter_map(|(key, session)| Some((session.ends_at?, key))).min();
        if let Some((_, session)) = first {
            *self.drops.entry("too_many_sessions").or_default() += 1;
            self.publish_will(now, session, store);
            self.forget(session);
        }
    }

    /// Ends a session: nobody finds it again.
    pub(super) fn forget(&mut self, key: SessionKey) {
        let session = self.sessions.remove(key);
        for filter in &session.filters {
            self.subscriptions.remove(filter, key);
        }
        self.clients.remove(&session.client_id);
        if session.noted {
            self.memory.forget(key, &session.client_id, &session.known.noted);
        }
    }
}
