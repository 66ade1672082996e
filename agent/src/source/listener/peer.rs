//! The socket of a connection, with TLS over it or without.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
};

use super::ready::KeyWaker;
use crate::{
    config::CertificateUser,
    tls::{
        session::{Progress, RECORD_BYTES_MAX, Session, SessionError},
        subject,
    },
};

/// The buffers that all sockets are read into.
const READ_BYTES: usize = 64 * 1024;

/// What came and what it says.
pub(super) struct Buffers {
    received: Box<[u8]>,
    plain: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { received: vec![0; READ_BYTES].into(), plain: Vec::new() }
    }
}

/// A connection's socket.
pub(super) struct Peer {
    stream: TcpStream,
    tls: Option<Box<Session>>,
    /// Where it comes from.
    pub(super) address: IpAddr,
    /// Notes that there is something to do.
    pub(super) waker: Arc<KeyWaker>,
    /// Something came that was not read yet.
    pub(super) unread: bool,
}

/// What reading brought.
pub(super) enum Came<'b> {
    /// Nothing for now.
    Nothing,
    /// Bytes; none if they were TLS' own.
    Bytes(&'b [u8]),
    /// The end.
    End,
    /// What is no TLS, or a client that is not let in by its certificate.
    Refused(SessionError),
}

/// What became of what was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is with the kernel.
    All,
    /// The socket takes no more for now.
    Part,
    /// The connection is gone.
    Broken,
}

impl Peer {
    pub(super) fn new(
        stream: TcpStream,
        tls: Option<Box<Session>>,
        address: IpAddr,
        waker: Arc<KeyWaker>,
    ) -> Self {
        Self { stream, tls, address, waker, unread: true }
    }

    /// Whether TLS is not agreed on yet.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.progress() == Progress::Handshaking)
    }

    /// Bytes of TLS records that have not come whole.
    pub(super) fn incomplete_bytes(&self) -> usize {
        self.tls.as_ref().map_or(0, |tls| tls.incomplete_bytes())
    }

    /// The user that the client's certificate says, if it has one.
    pub(super) fn certificate_user(&self, from: CertificateUser) -> Option<String> {
        let certificate = self.tls.as_ref()?.certificate()?;
        match from {
            CertificateUser::None => None,
            CertificateUser::CommonName => subject::common_name(certificate),
            CertificateUser::Subject => subject::subject(certificate),
        }
    }

    /// Reads once what came.
    pub(super) fn read<'b>(&mut self, buffers: &'b mut Buffers) -> Came<'b> {
        let waker = self.waker.rearm();
        let mut buffer = ReadBuf::new(&mut buffers.received);
        let polled = Pin::new(&mut self.stream).poll_read(&mut Context::from_waker(&waker), &mut buffer);
        let size_bytes = match polled {
            Poll::Pending => {
                self.unread = false;
                return Came::Nothing;
            }
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => buffer.filled().len(),
            Poll::Ready(_) => return Came::End,
        };
        let Buffers { received, plain } = buffers;
        let received = &mut received[..size_bytes];
        let Some(tls) = &mut self.tls else { return Came::Bytes(received) };
        plain.clear();
        let was_handshaking = tls.progress() == Progress::Handshaking;
        let outcome = tls.receive(received, plain);
        if was_handshaking && tls.progress() != Progress::Handshaking {
            // The kernel would wait 40 ms for an answer to send its ACK with, and the client's for that ACK before it sends CONNECT.
            // A socket that does not take the option serves all the same.
            let _ = sockopt::set_tcp_quickack(&self.stream, true);
        }
        match outcome {
            Ok(()) if plain.is_empty() && tls.progress() == Progress::Closed => Came::End,
            // The end behind them is found when the socket is read again.
            Ok(()) => Came::Bytes(plain),
            Err(error) => Came::Refused(error),
        }
    }

    /// Sends what there is of `out`, and of TLS' own. Leaves nothing behind in `out` but what the socket does not take.
    pub(super) fn send(&mut self, out: &mut BytesMut) -> Sent {
        let waker = self.waker.rearm();
        let mut context = Context::from_waker(&waker);
        loop {
            let records = match &mut self.tls {
                None => &mut *out,
                Some(tls) => {
                    if tls.out.is_empty() && tls.progress() != Progress::Handshaking && !out.is_empty() {
                        let size_bytes = out.len().min(RECORD_BYTES_MAX);
                        if tls.send(&out[..size_bytes]).is_err() {
                            return Sent::Broken;
                        }
                        consume(out, size_bytes);
                    }
                    &mut tls.out
                }
            };
            if records.is_empty() {
                return Sent::All;
            }
            match Pin::new(&mut self.stream).poll_write(&mut context, records) {
                Poll::Ready(Ok(sent)) if sent > 0 => consume(records, sent),
                Poll::Ready(_) => return Sent::Broken,
                Poll::Pending => return Sent::Part,
            }
        }
    }

    /// Says that nothing more is sent, and reads what the client still says until it hangs up: left unread, that would make the
    /// kernel reset the connection, and take from the client the answers that it has not read.
    pub(super) async fn read_to_end(mut self) {
        let mut nobody_reads = [0; 256];
        // A client that is gone already is none to wait for.
        if self.stream.shutdown().await.is_ok() {
            while matches!(self.stream.read(&mut nobody_reads).await, Ok(1..)) {}
        }
    }

    /// Says that nothing more is sent, as far as the socket takes it.
    pub(super) fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.close();
            // The socket is closed in any case.
            let _ = self.send(&mut BytesMut::new());
        }
    }
}

/// Takes `size_bytes` off the front. An idle connection has no buffer.
fn consume(out: &mut BytesMut, size_bytes: usize) {
    out.advance(size_bytes);
    if out.is_empty() {
        *out = BytesMut::new();
    }
}
