//! One connection to a broker: open, until CONNACK.

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::wire::{ConnAck, Packet, Reader, WireError, Writer};
use crate::config::{Broker, MqttSource};

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
    /// The broker does not want us: the operator has to look.
    #[error("refused by the broker: {0}")]
    Refused(String),
    /// TCP.
    #[error("connection broke: {0}")]
    Io(#[from] io::Error),
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

/// A connection after a CONNACK that accepts it.
#[derive(Debug)]
pub(super) struct Connection {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
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
        let stream = TcpStream::connect((broker.host.as_str(), broker.port))
            .await
            .map_err(ConnectionError::Connect)?;
        // Answers are gathered here, per window; the kernel shall not hold them back once more.
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        let mut connection = Self {
            read,
            write,
            inbound: BytesMut::new(),
            reader: Reader::new(source),
            writer: Writer::new(source.version),
            ack: ConnAck::default(),
        };
        connection.writer.connect(source, clean);
        connection.write.write_all_buf(connection.writer.buffer()).await?;
        let packet = loop {
            if let Some(packet) = connection.packet()? {
                break packet;
            }
            connection.receive().await?;
        };
        let Packet::ConnAck(ack) = packet else { return Err(ConnectionError::Unexpected) };
        if let Some(refusal) = ack.refusal {
            return Err(ConnectionError::Refused(refusal));
        }
        connection.ack = ack;
        Ok(connection)
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
        let sending = !self.writer.is_empty();
        let before = self.make_room();
        tokio::select! {
            biased;
            sent = self.write.write_buf(self.writer.buffer()), if sending => match sent? {
                0 => Err(ConnectionError::Closed),
                _ => Ok(Exchanged::Sent),
            },
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
        self.write.write_all_buf(self.writer.buffer()).await?;
        Ok(())
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
