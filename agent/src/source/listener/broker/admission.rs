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

/// What came of a CONNECT.
pub(super) enum Admission {
    /// Let in, as this user.
    In(Option<Box<str>>),
    /// Its password is checked.
    Asked,
}

impl Broker {
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
