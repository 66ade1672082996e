//! One connection to a broker: open, until CONNACK.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    time::timeout,
};

use super::{
    tls::{self, TlsError},
    wire::{ConnAck, Packet, Reader, Refusal, WireError, Writer},
};
use crate::{
    config::{Broker, MqttSource},
    secret::{Secret, SecretRef, Unreadable},
};

/// Longest time from the first SYN to CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Size of a read buffer. Payloads are slices of it until they are committed, so that it is filled before a new one is
/// begun; large enough for a few hundred readings in one system call.
const READ_BUFFER_BYTES: usize = 32 * 1024;

/// Room below which a new read buffer is begun.
const READ_BYTES_MIN: usize = 4 * 1024;

/// Why there is no connection. The source logs it and tries again.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// Name resolution or TCP connect.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    /// No CONNACK in time.
    #[error("no CONNACK within {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout,
    /// The password: the operator has to look.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// A password that does not fit a CONNECT: the operator has to look.
    #[error("the password is longer than the {} bytes that MQTT takes", u16::MAX)]
    PasswordTooLong,
    /// A certificate, ours or the broker's: the operator has to look.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The broker does not know us: the operator has to look.
    #[error("the broker does not let us in ({0}): are user and password of this source right?")]
    Login(String),
    /// The broker does not want us: the operator has to look.
    #[error("refused by the broker: {0}")]
    Refused(String),
    /// The broker closed the connection instead of an answer to CONNECT.
    #[error("closed by the broker before it answered: does this port want TLS (mqtts://)?")]
    ClosedUnanswered,
    /// TCP.
    #[error("connection broke: {0}")]
    Io(#[source] io::Error),
    /// The broker closed the connection without a word.
    #[error("closed by the broker")]
    Closed,
    /// The broker closed the connection and says why.
    #[error("disconnected by the broker: {0}")]
    Disconnected(String),
    /// Garbage, or a limit.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A packet that does not belong here.
    #[error("unexpected packet")]
    Unexpected,
    /// The broker is silent for a keep-alive interval.
    #[error("no answer to a ping")]
    NoPingResponse,
    /// The broker does not answer SUBSCRIBE.
    #[error("no SUBACK")]
    NoSubAck,
}

impl ConnectionError {
    /// It does not get better by itself.
    pub(super) fn needs_operator(&self) -> bool {
        matches!(
            self,
            Self::Unreadable(_) | Self::PasswordTooLong | Self::Tls(_) | Self::Login(_) | Self::Refused(_)
        )
    }

    /// The broker has hung up without a word.
    fn is_end(&self) -> bool {
        match self {
            Self::Closed => true,
            Self::Io(error) => error.kind() == io::ErrorKind::ConnectionReset,
            _ => false,
        }
    }
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        match TlsError::of(&error) {
            Some(error) => Self::Tls(error),
            // TLS that ends without a word.
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Io(error),
        }
    }
}

/// TCP, or TLS over it.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection after a CONNACK that accepts it.
pub(super) struct Connection {
    read: ReadHalf<Box<dyn Stream>>,
    write: WriteHalf<Box<dyn Stream>>,
    /// Something was written that TLS may still hold.
    unflushed: bool,
    inbound: BytesMut,
    reader: Reader,
    /// Packets to send; they leave with [`Connection::exchange`].
    pub(super) writer: Writer,
    /// What the broker said.
    pub(super) ack: ConnAck,
}

/// What [`Connection::exchange`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchanged {
    /// Sent something.
    Sent,
    /// Received something; `full` if there was more than the buffer took.
    Received {
        /// More is waiting in the socket.
        full: bool,
    },
}

impl Connection {
    /// Connects to `broker` with the session of `source`, or with `clean` to a new one.
    ///
    /// # Errors
    /// [`ConnectionError`]; the caller waits and tries the next broker.
    pub(super) async fn open(
        broker: &Broker,
        source: &MqttSource,
        clean: bool,
    ) -> Result<Self, ConnectionError> {
        timeout(CONNECT_TIMEOUT, Self::open_untimed(broker, source, clean))
            .await
            .unwrap_or(Err(ConnectionError::ConnectTimeout))
    }

    async fn open_untimed(
        broker: &Broker,
        source: &MqttSource,
        clean: bool,
    ) -> Result<Self, ConnectionError> {
        // Read for each connection, so that a new password or certificate needs no restart.
        let tls = broker.tls.then(|| tls::connector(broker, &source.tls)).transpose()?;
        let password = source.login.as_ref().and_then(|login| login.password.as_ref());
        let password = password.map(SecretRef::load).transpose()?;
        if password.as_ref().is_some_and(|password| password.expose().len() > usize::from(u16::MAX)) {
            return Err(ConnectionError::PasswordTooLong);
        }
        let stream = TcpStream::connect((broker.host.as_str(), broker.port))
            .await
            .map_err(ConnectionError::Connect)?;
        // Answers are gathered here, per window; the kernel shall not hold them back once more.
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            Some((connector, name)) => Box::new(connector.connect(name, stream).await?),
            None => Box::new(stream),
        };
        let (read, write) = tokio::io::split(stream);
        let mut connection = Self {
            read,
            write,
            unflushed: false,
            inbound: BytesMut::new(),
            reader: Reader::new(source),
            writer: Writer::new(source.version),
            ack: ConnAck::default(),
        };
        let password = password.as_ref().map_or("", Secret::expose);
        let login = source.login.as_ref().map(|login| (&*login.user, password));
        connection.writer.connect(source, login, clean);
        connection.ack = match connection.conn_ack().await {
            Err(error) if !broker.tls && error.is_end() => return Err(ConnectionError::ClosedUnanswered),
            answer => answer?,
        };
        match connection.ack.refusal.take() {
            None => Ok(connection),
            Some(Refusal { reason, is_login: true }) => Err(ConnectionError::Login(reason)),
            Some(Refusal { reason, .. }) => Err(ConnectionError::Refused(reason)),
        }
    }

    /// Sends CONNECT and waits for the answer.
    async fn conn_ack(&mut self) -> Result<ConnAck, ConnectionError> {
        self.flush().await?;
        loop {
            match self.packet()? {
                Some(Packet::ConnAck(ack)) => return Ok(ack),
                Some(_) => return Err(ConnectionError::Unexpected),
                None => self.receive().await?,
            }
        }
    }

    /// The next packet that has arrived whole.
    ///
    /// # Errors
    /// [`ConnectionError::Wire`]: the connection cannot be understood any more.
    pub(super) fn packet(&mut self) -> Result<Option<Packet>, ConnectionError> {
        Ok(self.reader.next(&mut self.inbound)?)
    }

    /// Sends some of what is to be sent, or reads some of what has come, whichever can be done first. Waits for ever
    /// if there is nothing to send and `reading` is off. Cancel-safe.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is gone.
    pub(super) async fn exchange(&mut self, reading: bool) -> Result<Exchanged, ConnectionError> {
        let sending = !self.writer.is_empty() || self.unflushed;
        let before = self.make_room();
        tokio::select! {
            biased;
            sent = send(&mut self.write, self.writer.buffer(), &mut self.unflushed), if sending => {
                sent.map(|()| Exchanged::Sent)
            }
            received = self.read.read_buf(&mut self.inbound), if reading => match received? {
                0 => Err(ConnectionError::Closed),
                _ => Ok(Exchanged::Received { full: self.inbound.len() == before }),
            },
            else => std::future::pending().await,
        }
    }

    /// Sends all that is to be sent.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is gone.
    pub(super) async fn flush(&mut self) -> Result<(), ConnectionError> {
        while !self.writer.is_empty() || self.unflushed {
            send(&mut self.write, self.writer.buffer(), &mut self.unflushed).await?;
        }
        Ok(())
    }

    /// After DISCONNECT: waits until the broker has closed the connection, so that it has read all that was sent. What still
    /// comes is thrown away; left unread, it would make the kernel reset the connection, and take from the broker what it has
    /// not read.
    ///
    /// # Errors
    /// [`ConnectionError`]: nobody knows what the broker has read.
    pub(super) async fn closed(&mut self) -> Result<(), ConnectionError> {
        loop {
            self.inbound.clear();
            match self.receive().await {
                Ok(()) => {}
                Err(ConnectionError::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn receive(&mut self) -> Result<(), ConnectionError> {
        self.make_room();
        match self.read.read_buf(&mut self.inbound).await? {
            0 => Err(ConnectionError::Closed),
            _ => Ok(()),
        }
    }

    /// Returns the length at which the buffer is full.
    fn make_room(&mut self) -> usize {
        if self.inbound.capacity() - self.inbound.len() < READ_BYTES_MIN {
            self.inbound.reserve(READ_BUFFER_BYTES);
        }
        self.inbound.capacity()
    }
}

/// Writes some of `buffer`, and makes TLS give away what it holds when that was the last. Cancel-safe: what was written is
/// gone from `buffer`, and `unflushed` says whether more is to be done.
async fn send(
    write: &mut WriteHalf<Box<dyn Stream>>,
    buffer: &mut BytesMut,
    unflushed: &mut bool,
) -> Result<(), ConnectionError> {
    if !buffer.is_empty() {
        *unflushed = true;
        if write.write_buf(buffer).await? == 0 {
            return Err(ConnectionError::Closed);
        }
    }
    if buffer.is_empty() {
        write.flush().await?;
        *unflushed = false;
    }
    Ok(())
}
