//! TLS of one connection whose socket somebody else reads and writes: records in, plaintext and records out. No socket, no clock,
//! and no buffer while nothing is under way: rustls' own connections keep one of 4 KiB each.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::BytesMut;
use tokio_rustls::rustls::{
    Error, ServerConfig,
    pki_types::CertificateDer,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus},
};

/// Most plaintext of one record, in bytes (RFC 8446 section 5.1).
pub(crate) const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What a record needs beside its plaintext in either version, in bytes.
const OVERHEAD_BYTES_MAX: usize = 256;

/// Most bytes of records and handshake messages that have not come whole. The certificates of a client fit.
pub(crate) const INCOMPLETE_BYTES_MAX: usize = 2 * RECORD_BYTES_MAX;

/// Why a connection has to end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// What the client sent, or showed.
    #[error(transparent)]
    Tls(#[from] Error),
    /// More than [`INCOMPLETE_BYTES_MAX`].
    #[error("a handshake message larger than allowed")]
    TooLarge,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// The client has more to send before it has a session.
    Handshaking,
    /// Both can send.
    Open,
    /// The client sends no more.
    Closed,
}

/// One end of a session.
pub(crate) struct Session {
    connection: UnbufferedServerConnection,
    progress: Progress,
    /// It is of no use any more, but for what is to be sent.
    has_failed: bool,
    /// What has not come whole.
    tail: Vec<u8>,
    /// Records that are to be sent.
    pub(crate) out: BytesMut,
}

impl Session {
    /// A session that the client begins.
    ///
    /// # Errors
    /// rustls does not take `config`.
    pub(crate) fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        let (tail, out) = (Vec::new(), BytesMut::new());
        Ok(Self { connection, progress: Progress::Handshaking, has_failed: false, tail, out })
    }

    /// How far it is.
    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }

    /// Bytes of what has not come whole.
    pub(crate) fn incomplete_bytes(&self) -> usize {
        self.tail.len()
    }

    /// The client's certificate, verified, once the session is open.
    pub(crate) fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates()?.first()
    }

    /// Takes `bytes` that came, which it overwrites, and appends their plaintext to `plain`.
    ///
    /// # Errors
    /// The connection ends when what is in `out` was sent: it tells the client why.
    pub(crate) fn receive(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<(), SessionError> {
        if self.has_failed {
            return Ok(());
        }
        // What it is asked here comes from strangers, and the listener has one task for all. No input is known to panic.
        catch_unwind(AssertUnwindSafe(|| {
            if self.tail.is_empty() {
                let (taken, outcome) = self.process(bytes, plain, &[]);
                self.tail.extend_from_slice(&bytes[taken..]);
                outcome
            } else {
                self.tail.extend_from_slice(bytes);
                self.process_tail(plain, &[])
            }
        }))
        .unwrap_or_else(|_| {
            self.has_failed = true;
            Err(Error::General("a panic".into()))
        })?;
        if self.tail.len() > INCOMPLETE_BYTES_MAX { Err(SessionError::TooLarge) } else { Ok(()) }
    }

    /// Appends `plain` to what is to be sent. There is a session; what comes behind its end is dropped.
    ///
    /// # Errors
    /// No more can be sent in this session.
    pub(crate) fn send(&mut self, plain: &[u8]) -> Result<(), SessionError> {
        if self.has_failed {
            return Ok(());
        }
        Ok(self.process_tail(&mut Vec::new(), plain)?)
    }

    /// Appends the end of what is sent, if there is a session.
    pub(crate) fn close(&mut self) {
        if self.progress == Progress::Handshaking || self.has_failed {
            return;
        }
        let mut tail = std::mem::take(&mut self.tail);
        let status = self.connection.process_tls_records(&mut tail);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state {
            // Who hangs up without a word does so.
            let _ = append(&mut self.out, OVERHEAD_BYTES_MAX, |out| traffic.queue_close_notify(out));
        }
        self.progress = Progress::Closed;
    }

    fn process_tail(&mut self, plain: &mut Vec<u8>, send: &[u8]) -> Result<(), Error> {
        let mut tail = std::mem::take(&mut self.tail);
        let (taken, outcome) = self.process(&mut tail, plain, send);
        if taken < tail.len() {
            tail.drain(..taken);
            self.tail = tail;
        }
        outcome
    }

    /// Takes what is whole of `input`, and sends `send`. Returns how many bytes were taken, and how it went.
    fn process(&mut self, input: &mut [u8], plain: &mut Vec<u8>, send: &[u8]) -> (usize, Result<(), Error>) {
        let mut taken = 0;
        let mut outcome = Ok(());
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.connection.process_tls_records(&mut input[taken..]);
            let goes_on = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(Ok(record)) = traffic.next_record() {
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    append(&mut self.out, 0, |out| data.encode(out)).is_ok()
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    if self.progress == Progress::Handshaking {
                        self.progress = Progress::Open;
                    }
                    if !send.is_empty() {
                        let size_bytes = send.len() + OVERHEAD_BYTES_MAX;
                        if append(&mut self.out, size_bytes, |out| traffic.encrypt(send, out)).is_err() {
                            outcome = Err(Error::EncryptError);
                        }
                    }
                    false
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.progress = Progress::Closed;
                    false
                }
                // BlockedHandshake; early data, which we do not offer.
                Ok(_) => false,
                Err(error) => {
                    outcome = Err(error);
                    self.tell();
                    false
                }
            };
            taken += discard;
            if !goes_on {
                return (taken, outcome);
            }
        }
    }
    /// Appends the alert that tells the client of an error. Behind one rustls panics when it is asked for more.
    fn tell(&mut self) {
        self.has_failed = true;
        while self.connection.wants_write() {
            let status = self.connection.process_tls_records(&mut []);
            let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else { return };
            if append(&mut self.out, 0, |out| data.encode(out)).is_err() {
                return;
            }
        }
    }
}

/// What rustls needs more room for.
trait Insufficient {
    /// How much, if that is all.
    fn required_bytes(&self) -> Option<usize>;
}

impl Insufficient for EncodeError {
    fn required_bytes(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
            Self::AlreadyEncoded => None,
        }
    }
}

impl Insufficient for EncryptError {
    fn required_bytes(&self) -> Option<usize> {
        match self {
            Self::InsufficientSize(InsufficientSizeError { required_size }) => Some(*required_size),
            Self::EncryptExhausted => None,
        }
    }
}

/// Appends to `out` what `write` writes into `room_bytes`, or what it says that it needs.
fn append<E: Insufficient>(
    out: &mut BytesMut,
    room_bytes: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, E>,
) -> Result<(), E> {
    let start = out.len();
    out.resize(start + room_bytes, 0);
    let mut written = write(&mut out[start..]);
    if let Err(Some(required_bytes)) = written.as_ref().map_err(E::required_bytes) {
        out.resize(start + required_bytes, 0);
        written = write(&mut out[start..]);
    }
    out.truncate(start + written.as_ref().copied().unwrap_or_default());
    written.map(drop)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        sync::OnceLock,
    };

    use proptest::prelude::*;
    use tokio_rustls::rustls::{ClientConfig, ClientConnection, pki_types::ServerName};

    use super::*;
    use crate::{
        testing::{Age, Files},
        tls,
    };

    /// Both ends, and what each has received.
    struct Bench {
        client: ClientConnection,
        session: Session,
        said: Vec<u8>,
        heard: Vec<u8>,
    }

    impl Bench {
        fn new(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Self {
            let name = ServerName::try_from("gateway.example").expect("a name");
            Self {
                client: ClientConnection::new(client, name).expect("a client"),
                session: Session::new(server).expect("a session"),
                said: Vec::new(),
                heard: Vec::new(),
            }
        }

        /// Carries all that either has to say, `piece_bytes` at a time towards the session, until both are silent.
        fn exchange(&mut self, piece_bytes: usize) -> Result<(), SessionError> {
            loop {
                let mut records = Vec::new();
                while self.client.wants_write() {
                    self.client.write_tls(&mut records).expect("a vector takes all");
                }
                let mut outcome = Ok(());
                for piece in records.chunks_mut(piece_bytes) {
                    if outcome.is_ok() {
                        outcome = self.session.receive(piece, &mut self.heard);
                    }
                }
                let silent = records.is_empty() && self.session.out.is_empty();
                while !self.session.out.is_empty() {
                    let mut out = &self.session.out[..];
                    let read = self.client.read_tls(&mut out).expect("bytes are there");
                    drop(self.session.out.split_to(read));
                    if self.client.process_new_packets().is_ok() {
                        // What is not there yet comes with the next record.
                        let _ = self.client.reader().read_to_end(&mut self.said);
                    }
                }
                outcome?;
                if silent {
                    return Ok(());
                }
            }
        }

        fn open(files: &Files) -> Self {
            let server = tls::server(&files.server_tls("server", None)).expect("good");
            let mut bench = Self::new(Arc::new(server), files.client_tls("ca", None));
            bench.exchange(usize::MAX).expect("agree");
            bench
        }
    }

    fn files() -> Files {
        let files = Files::new();
        files.certificate(&files.authority("ca"), "server", "gateway.example", Age::Good);
        files
    }

    #[test]
    fn records_in_any_pieces_are_what_was_said() {
        let files = files();
        for piece_bytes in [1, 7, 4000, usize::MAX] {
            let server = tls::server(&files.server_tls("server", None)).expect("good");
            let mut bench = Bench::new(Arc::new(server), files.client_tls("ca", None));
            bench.exchange(piece_bytes).expect("agree");
            assert_eq!(bench.session.progress(), Progress::Open);
            let long: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[0]).collect();
            bench.client.set_buffer_limit(None);
            bench.client.writer().write_all(&long).expect("takes all");
            for piece in long.chunks(RECORD_BYTES_MAX) {
                bench.session.send(piece).expect("open");
            }
            bench.exchange(piece_bytes).expect("go on");
            assert_eq!((bench.heard == long, bench.said == long), (true, true), "{piece_bytes}");
        }
    }

    #[test]
    fn a_silent_session_has_no_buffer() {
        let mut bench = Bench::open(&files());
        bench.client.writer().write_all(&[1; 5000]).expect("takes all");
        bench.session.send(&[2; 5000]).expect("open");
        bench.exchange(100).expect("go on");
        assert_eq!(bench.heard.len(), 5000);
        assert_eq!(bench.session.tail.capacity(), 0);
    }

    #[test]
    fn a_client_that_is_not_let_in_by_its_certificate_is_told_so() {
        let files = files();
        let authority = files.authority("client-ca");
        files.certificate(&authority, "good", "bus-17", Age::Good);
        files.certificate(&authority, "old", "bus-17", Age::Expired);
        files.certificate(&files.authority("other-ca"), "other", "bus-17", Age::Good);
        let server = Arc::new(tls::server(&files.server_tls("server", Some("client-ca"))).expect("good"));
        let outcome = |name: Option<&str>| {
            let mut bench = Bench::new(Arc::clone(&server), files.client_tls("ca", name));
            let outcome = bench.exchange(usize::MAX).map_err(|error| error.to_string());
            let alert = bench.client.process_new_packets().err().map(|error| error.to_string());
            (outcome, alert.unwrap_or_default(), bench.session.certificate().is_some())
        };
        assert_eq!(outcome(Some("good")), (Ok(()), String::new(), true));
        for (name, alert) in
            [(None, "CertificateRequired"), (Some("old"), "CertificateExpired"), (Some("other"), "")]
        {
            let (outcome, said, has_certificate) = outcome(name);
            assert!(outcome.is_err() && said.contains("alert") && said.contains(alert), "{name:?}: {said}");
            assert!(!has_certificate);
        }
    }

    #[test]
    fn an_end_is_an_end_to_both() {
        let mut bench = Bench::open(&files());
        bench.client.send_close_notify();
        bench.exchange(usize::MAX).expect("go on");
        assert_eq!(bench.session.progress(), Progress::Closed);
        let mut bench = Bench::open(&files());
        bench.session.close();
        bench.exchange(usize::MAX).expect("go on");
        assert!(bench.client.process_new_packets().expect("good").peer_has_closed());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn damaged_records_end_the_session_or_not_and_never_panic(
            // Which of the client's flights, where, and what is there instead.
            flight in 0_usize..3,
            damages in prop::collection::vec((0_usize..600, any::<u8>()), 0..4),
            piece_bytes in 1_usize..700,
            ends in any::<bool>(),
        ) {
            let (server, client) = MUTUAL.get_or_init(|| {
                let files = files();
                files.certificate(&files.authority("client-ca"), "good", "bus-17", Age::Good);
                let server = tls::server(&files.server_tls("server", Some("client-ca"))).expect("good");
                (Arc::new(server), files.client_tls("ca", Some("good")))
            });
            let mut bench = Bench::new(Arc::clone(server), Arc::clone(client));
            for n in 0..3 {
                let mut records = Vec::new();
                while bench.client.wants_write() {
                    bench.client.write_tls(&mut records).expect("a vector takes all");
                }
                for (at, byte) in damages.iter().filter(|_| n == flight) {
                    if let Some(there) = records.get_mut(*at) {
                        *there = *byte;
                    }
                }
                // What comes behind an error is read by nobody, and does no harm.
                for piece in records.chunks_mut(piece_bytes) {
                    let _ = bench.session.receive(piece, &mut bench.heard);
                }
                if bench.session.progress() != Progress::Handshaking {
                    bench.session.send(b"out").expect("room");
                }
                let out = bench.session.out.split();
                if bench.client.read_tls(&mut &out[..]).is_ok() {
                    let _ = bench.client.process_new_packets();
                }
                // It refuses more than it can hold.
                let _ = bench.client.writer().write(b"in");
            }
            if ends {
                bench.session.close();
            }
            prop_assert!(bench.session.incomplete_bytes() <= 3 * RECORD_BYTES_MAX);
        }
    }

    /// What the property starts from.
    static MUTUAL: OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = OnceLock::new();

    #[test]
    fn bytes_that_are_no_tls_end_the_session_and_what_never_comes_whole_is_bounded() {
        let server = Arc::new(tls::server(&files().server_tls("server", None)).expect("good"));
        let mut plain = Vec::new();
        let mut session = Session::new(Arc::clone(&server)).expect("a session");
        assert!(session.receive(&mut b"\x10\x0c\0\x04MQTT\x04\x02\0\x3c".to_vec(), &mut plain).is_err());
        // A ClientHello of 16 MiB, in records of 16 KiB.
        let mut session = Session::new(server).expect("a session");
        let record = |first: &[u8]| {
            let mut record = vec![0; 5 + RECORD_BYTES_MAX];
            record[..5].copy_from_slice(&[0x16, 3, 1, 0x40, 0]);
            record[5..5 + first.len()].copy_from_slice(first);
            record
        };
        let mut records =
            std::iter::once(record(&[1, 0xff, 0xff, 0xff])).chain(std::iter::repeat(record(&[])));
        let refused = records.by_ref().take(16).any(|mut record| {
            assert!(session.incomplete_bytes() <= INCOMPLETE_BYTES_MAX);
            session.receive(&mut record, &mut plain).is_err()
        });
        assert!(refused && plain.is_empty());
    }
}
