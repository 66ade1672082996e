//! Who a client is: what is known at once, and passwords, which somebody else checks.
//!
//! A connection whose password is checked keeps its CONNECT as if it had not come whole, and is not read. [`Broker::question`]
//! is the next to be checked, [`Broker::answered`] takes the answer.

use std::time::Duration;

use super::{Broker, ConnectionKey, End, Store, refused};
use crate::{
    env::Monotonic,
    source::listener::{
        access::{Check, Credentials, Denied, Verdict},
        connection::{Connection, Phase, WRONG_PASSWORD},
        packet::{self, Connect, Packet, Reason},
        questions::QuestionId,
    },
};

/// Time that a wrong password is left without its answer.
const WRONG_PASSWORD_DELAY: Duration = Duration::from_secs(1);

/// Time that a connection has for its CONNECT, however many others have none.
const HALF_OPEN_MIN: Duration = Duration::from_secs(1);

/// What came of a CONNECT.
pub(super) enum Admission {
    /// Let in, as this user.
    In(Option<Box<str>>),
    /// Its password is checked.
    Asked,
}

impl Broker {
    /// When the next connection may be accepted: at the limit of those without a CONNECT, not before the oldest had its time.
    pub(in super::super) fn accept_at(&self) -> Monotonic {
        let is_full = self.half_open.len() >= self.config.max_half_open;
        self.half_open.first().filter(|_| is_full).map_or(Monotonic::default(), |(until, _)| {
            let opened = until.since_start().saturating_sub(self.config.connect_timeout);
            Monotonic::from_start(opened) + HALF_OPEN_MIN.min(self.config.connect_timeout)
        })
    }

    /// Ends the oldest connection without a CONNECT, if there are as many as allowed.
    pub(super) fn make_room(&mut self, now: Monotonic, store: &mut dyn Store) {
        if self.half_open.len() >= self.config.max_half_open
            && let Some((_, oldest)) = self.half_open.pop_first()
        {
            let what = "the oldest of too many connections without CONNECT";
            self.end(now, oldest, refused(Reason::QuotaExceeded, what), store);
        }
    }

    /// `key` was `before` and may have its CONNECT now, or be at its end.
    pub(super) fn moved_on(&mut self, key: ConnectionKey, before: Phase) {
        if let Phase::Connecting(until) = before
            && self.connections[key].phase != before
        {
            self.half_open.remove(&(until, key));
        }
    }

    /// TLS is agreed on with `key`, whose certificate says `user`.
    pub(in super::super) fn identified(&mut self, key: ConnectionKey, user: Option<Box<str>>) {
        if let Some(connection) = self.connections.get_mut(key) {
            connection.certificate_user = user;
        }
    }

    /// Lets the client of `connect` in, or asks for its password to be checked.
    ///
    /// # Errors
    /// It is not let in.
    pub(super) fn admit(
        &mut self,
        key: ConnectionKey,
        connect: &Connect<'_>,
        client_id: &str,
    ) -> Result<Admission, End> {
        let connection = &mut self.connections[key];
        if connection.phase == Phase::Vouched {
            return Ok(Admission::In(connect.user.map(Box::from)));
        }
        match self.access.connect(&credentials(connection, connect, client_id)) {
            Verdict::Anonymous => Ok(Admission::In(None)),
            Verdict::Certified => Ok(Admission::In(connection.certificate_user.clone())),
            Verdict::Check(_) => {
                connection.phase = Phase::Asking(self.questions.push(connection.address, key));
                Ok(Admission::Asked)
            }
            Verdict::Denied(Denied::BadUserNameOrPassword) => Err(WRONG_PASSWORD.into()),
            Verdict::Denied(Denied::NotAuthorized) => Err(refused(Reason::NotAuthorized, "not let in")),
        }
    }

    /// The next password to be checked, not on this thread.
    pub(in super::super) fn question(&mut self) -> Option<(ConnectionKey, QuestionId, Check)> {
        while let Some((id, key)) = self.questions.pop() {
            let Some(connection) = self.connections.get(key) else { continue };
            let Some(packet) = connection.kept_packet() else { continue };
            let Ok(Packet::Connect(connect)) = packet::decode(connection.version, packet) else { continue };
            let credentials = credentials(connection, &connect, connect.client_id);
            if let Verdict::Check(check) = self.access.connect(&credentials) {
                return Some((key, id, check));
            }
        }
        None
    }

    /// The check of `id` says whether the password is its user's. What came behind the CONNECT is looked at now.
    pub(in super::super) fn answered(
        &mut self,
        now: Monotonic,
        key: ConnectionKey,
        id: QuestionId,
        passes: bool,
        store: &mut dyn Store,
    ) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        if connection.phase != Phase::Asking(id) {
            return;
        }
        if passes {
            connection.phase = Phase::Vouched;
            self.received(now, key, &[], store);
        } else {
            connection.phase = Phase::Denied(now + WRONG_PASSWORD_DELAY);
        }
    }
}

fn credentials<'a>(connection: &'a Connection, connect: &Connect<'a>, client_id: &'a str) -> Credentials<'a> {
    let (user, password) = (connect.user, connect.password);
    let certificate_user = connection.certificate_user.as_deref();
    Credentials { address: connection.address, certificate_user, client_id, user, password }
}
