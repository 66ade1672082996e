//! Packets of MQTT 3.1.1 and 5 as a server meets them: bytes in, borrowed packets out, and back.
//!
//! A codec of our own, since whatever this listener takes it answers for (`agent/ARCHITECTURE.md` has the comparison). Every
//! packet is checked whole before anything of it is used: a packet that the specification calls malformed or a protocol error
//! is a [`PacketError`] with the reason code that MQTT 5 has for it. Nothing is allocated: texts, payloads and lists are slices
//! of the frame, walked again where they are used.
//!
//! Section numbers are those of MQTT 5.0; 3.1.1 has the same rules unless said.

mod properties;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use self::{
    properties::{Properties, Property, Value, varint_size},
    read::{decode, frame},
    write::{
        ConnAck, Outgoing, connack, disconnect, pingresp, puback, pubcomp, publish, pubrec, suback, unsuback,
    },
};

use crate::config::{MqttVersion, Qos};

/// Longest topic or filter in bytes. The specification allows 65 535; what is kept per client (aliases, subscriptions) is
/// bounded by this, and the large cloud brokers allow 256.
pub(crate) const TOPIC_BYTES_MAX: usize = 1024;

/// Why a packet ends its connection: a reason code of section 2.4 and the rule that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct PacketError {
    /// For MQTT 5's DISCONNECT or CONNACK.
    pub(crate) reason: Reason,
    /// For the log.
    pub(crate) what: &'static str,
}

impl PacketError {
    /// Cannot be parsed (section 4.13).
    pub(crate) const fn malformed(what: &'static str) -> Self {
        Self { reason: Reason::MalformedPacket, what }
    }

    /// Can be parsed and must not be sent (section 4.13).
    pub(crate) const fn protocol(what: &'static str) -> Self {
        Self { reason: Reason::ProtocolError, what }
    }
}

/// Reason codes of section 2.4 that a server sends or looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub(crate) enum Reason {
    Success = 0x00,
    GrantedQos1 = 0x01,
    NoSubscriptionExisted = 0x11,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerShuttingDown = 0x8b,
    BadAuthenticationMethod = 0x8c,
    KeepAliveTimeout = 0x8d,
    SessionTakenOver = 0x8e,
    TopicNameInvalid = 0x90,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    PayloadFormatInvalid = 0x99,
    SharedSubscriptionsNotSupported = 0x9e,
    SubscriptionIdentifiersNotSupported = 0xa1,
}

impl Reason {
    /// The code of MQTT 5.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    /// As a label of metrics.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::GrantedQos1 => "granted_qos_1",
            Self::NoSubscriptionExisted => "no_subscription_existed",
            Self::MalformedPacket => "malformed_packet",
            Self::ProtocolError => "protocol_error",
            Self::UnsupportedProtocolVersion => "unsupported_protocol_version",
            Self::ClientIdentifierNotValid => "client_identifier_not_valid",
            Self::BadUserNameOrPassword => "bad_user_name_or_password",
            Self::NotAuthorized => "not_authorized",
            Self::ServerShuttingDown => "server_shutting_down",
            Self::BadAuthenticationMethod => "bad_authentication_method",
            Self::KeepAliveTimeout => "keep_alive_timeout",
            Self::SessionTakenOver => "session_taken_over",
            Self::TopicNameInvalid => "topic_name_invalid",
            Self::PacketIdentifierNotFound => "packet_identifier_not_found",
            Self::ReceiveMaximumExceeded => "receive_maximum_exceeded",
            Self::TopicAliasInvalid => "topic_alias_invalid",
            Self::PacketTooLarge => "packet_too_large",
            Self::QuotaExceeded => "quota_exceeded",
            Self::PayloadFormatInvalid => "payload_format_invalid",
            Self::SharedSubscriptionsNotSupported => "shared_subscriptions_not_supported",
            Self::SubscriptionIdentifiersNotSupported => "subscription_identifiers_not_supported",
        }
    }

    /// The CONNACK return code of MQTT 3.1.1 (its table 3.1); `None` where it has none and the server hangs up without a word.
    pub(crate) const fn v3_connack(self) -> Option<u8> {
        match self {
            Self::Success => Some(0),
            Self::UnsupportedProtocolVersion => Some(1),
            Self::ClientIdentifierNotValid => Some(2),
            Self::ServerShuttingDown | Self::QuotaExceeded => Some(3),
            Self::BadUserNameOrPassword => Some(4),
            Self::NotAuthorized => Some(5),
            _ => None,
        }
    }
}

/// What a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packet<'a> {
    /// Section 3.1.
    Connect(Connect<'a>),
    /// Section 3.3.
    Publish(Publish<'a>),
    /// Section 3.4: a subscriber has a message. Whatever its reason code, the message is done with.
    PubAck(u16),
    /// Section 3.6: QoS 2, the publisher will not send the message of this id again.
    PubRel(u16),
    /// Section 3.8.
    Subscribe(Subscribe<'a>),
    /// Section 3.10.
    Unsubscribe(Unsubscribe<'a>),
    /// Section 3.12.
    PingReq,
    /// Section 3.14.
    Disconnect(Disconnect),
}

/// CONNECT, section 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Connect<'a> {
    /// Version that the client speaks.
    pub(crate) version: MqttVersion,
    /// MQTT 5's Clean Start, 3.1.1's Clean Session: nothing of an earlier session counts.
    pub(crate) clean: bool,
    /// Seconds between packets of the client at most; 0 is without end.
    pub(crate) keep_alive_s: u16,
    /// Seconds that the session outlives its connection, `u32::MAX` without end; MQTT 5 only.
    pub(crate) session_expiry_s: u32,
    /// Messages with QoS above 0 that the client takes unacknowledged, at least 1.
    pub(crate) receive_maximum: u16,
    /// Largest packet that the client takes, in bytes.
    pub(crate) maximum_packet_bytes: u32,
    /// Identifier, possibly empty.
    pub(crate) client_id: &'a str,
    /// What to publish when the connection breaks.
    pub(crate) will: Option<Will<'a>>,
    /// User name.
    pub(crate) user: Option<&'a str>,
    /// Password.
    pub(crate) password: Option<&'a [u8]>,
}

/// The will of a CONNECT, section 3.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Will<'a> {
    /// Seconds after the connection broke.
    pub(crate) delay_s: u32,
    /// The rest is a PUBLISH without packet id.
    pub(crate) publish: Publish<'a>,
}

/// PUBLISH, section 3.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    /// Sent before, perhaps.
    pub(crate) dup: bool,
    /// Quality of service.
    pub(crate) qos: Qos,
    /// To be kept for later subscribers.
    pub(crate) retain: bool,
    /// Topic; empty where `alias` stands for it.
    pub(crate) topic: &'a str,
    /// 0 with QoS 0, else at least 1.
    pub(crate) packet_id: u16,
    /// Topic alias, at least 1.
    pub(crate) alias: Option<u16>,
    /// Properties, none in MQTT 3.1.1.
    pub(crate) properties: Properties<'a>,
    /// Payload.
    pub(crate) payload: &'a [u8],
}

/// SUBSCRIBE, section 3.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subscribe<'a> {
    /// At least 1.
    pub(crate) packet_id: u16,
    /// Whether it has a subscription identifier, which CONNACK forbade.
    pub(crate) has_identifier: bool,
    /// Checked, at least one.
    filters: &'a [u8],
}

impl<'a> Subscribe<'a> {
    /// What is asked for, in order.
    pub(crate) fn filters(&self) -> impl Iterator<Item = (&'a str, SubscribeOptions)> + use<'a> {
        let mut rest = read::Cursor(self.filters);
        std::iter::from_fn(move || {
            let filter = rest.text().ok()?;
            Some((filter, SubscribeOptions::from_bits(rest.u8().ok()?)))
        })
    }
}

/// Options of one subscription, section 3.8.3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SubscribeOptions {
    /// Highest quality of service wanted.
    pub(crate) qos: Qos,
    /// Not the client's own messages.
    pub(crate) no_local: bool,
    /// RETAIN as the publisher set it.
    pub(crate) retain_as_published: bool,
    /// Which retained messages to send.
    pub(crate) retain_handling: RetainHandling,
}

/// When a subscription brings retained messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetainHandling {
    /// At each SUBSCRIBE.
    Always,
    /// If the subscription is new.
    IfNew,
    /// Never.
    Never,
}

impl SubscribeOptions {
    /// As SUBSCRIBE has them.
    pub(crate) fn bits(self) -> u8 {
        let flags = u8::from(self.no_local) << 2 | u8::from(self.retain_as_published) << 3;
        self.qos as u8 | flags | (self.retain_handling as u8) << 4
    }

    /// Of checked bits.
    pub(crate) const fn from_bits(bits: u8) -> Self {
        Self {
            qos: match bits & 3 {
                0 => Qos::AtMostOnce,
                1 => Qos::AtLeastOnce,
                _ => Qos::ExactlyOnce,
            },
            no_local: bits & 4 != 0,
            retain_as_published: bits & 8 != 0,
            retain_handling: match bits >> 4 & 3 {
                0 => RetainHandling::Always,
                1 => RetainHandling::IfNew,
                _ => RetainHandling::Never,
            },
        }
    }
}

/// UNSUBSCRIBE, section 3.10.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsubscribe<'a> {
    /// At least 1.
    pub(crate) packet_id: u16,
    /// Checked, at least one.
    filters: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    /// What to forget, in order.
    pub(crate) fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut rest = read::Cursor(self.filters);
        std::iter::from_fn(move || rest.text().ok())
    }
}

/// DISCONNECT, section 3.14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disconnect {
    /// The will is to be published nevertheless: any reason code but 0.
    pub(crate) with_will: bool,
    /// Another session expiry than that of CONNECT, in seconds.
    pub(crate) session_expiry_s: Option<u32>,
}
