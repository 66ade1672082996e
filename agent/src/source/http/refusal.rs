//! Why a request is refused: its status, its words, and where in the body it went wrong.

use std::{fmt, time::Duration};

use axum::http::StatusCode;

use crate::record::NameError;

/// Nothing of the request is stored, but perhaps for [`Refusal::Late`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// Something in the body gives no record.
    #[error("{0}")]
    Malformed(Flaw),
    /// The body ended before its end, or was no HTTP.
    #[error("the body broke off")]
    Broken,
    /// `?device=` is no device id.
    #[error("?device= {0}")]
    Device(NameError),
    /// Raw bytes without a device.
    #[error("raw bytes need ?device=")]
    DeviceMissing,
    /// `?results=` is none.
    #[error("?results= must be all or each")]
    Results,
    /// The header `Idempotency-Key` is none.
    #[error("Idempotency-Key must be 1 to 255 visible ASCII characters")]
    IdempotencyKey,
    /// The `Idempotency-Key` came with another body before.
    #[error("the Idempotency-Key came with another body before")]
    KeyReused,
    /// No token, or nobody's.
    #[error("a bearer token is needed (Authorization: Bearer ...)")]
    Unauthorized,
    /// A token for other streams.
    #[error("the token is not for this stream")]
    Forbidden,
    /// No stream of that name, or nothing at all.
    #[error("there is no {0}")]
    NotFound(String),
    /// The body did not come in time.
    #[error("the body did not come within {0} ms")]
    Slow(u128),
    /// A body over the limit.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// More records than the intake holds.
    #[error("the records take more than {0} bytes in the gateway: send fewer at once")]
    TooMany(usize),
    /// A record over the limit.
    #[error("{0}")]
    RecordTooLarge(Flaw),
    /// A body of a kind that is not taken here.
    #[error("the Content-Type must be {0}")]
    MediaType(&'static str),
    /// No room: for the body, or for its records in the intake. The oldest request that is not durable has waited so long.
    #[error("the gateway takes no more at the moment")]
    Full(Duration),
    /// The commit takes too long, or the agent ended meanwhile. The only refusal after which records may be stored.
    #[error("not stored in time; it may be later, and sent again it may arrive twice")]
    Late,
    /// The agent ends.
    #[error("the gateway is stopping")]
    Stopping,
}

/// What is wrong in a body, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flaw {
    /// Record, from 0, where there are several.
    pub(super) record: Option<usize>,
    /// Line of the body, from 1.
    pub(super) line: Option<usize>,
    /// Byte in the line, from 1.
    pub(super) column: Option<usize>,
    /// In words.
    pub(super) what: String,
}

impl From<Flaw> for Refusal {
    fn from(flaw: Flaw) -> Self {
        Self::Malformed(flaw)
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = [("record", self.record), ("line", self.line), ("column", self.column)];
        let mut separator = "";
        for (name, number) in places {
            if let Some(number) = number {
                write!(f, "{separator}{name} {number}")?;
                separator = ", ";
            }
        }
        if !separator.is_empty() {
            f.write_str(": ")?;
        }
        f.write_str(&self.what)
    }
}

impl Refusal {
    /// Of a body that a decoder panicked at.
    pub(super) fn panicked() -> Self {
        Self::Malformed(Flaw { what: "the decoder panicked".into(), ..Flaw::default() })
    }

    /// The status of `POST /v1/streams/{stream}/records`.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_)
            | Self::Broken
            | Self::Device(_)
            | Self::DeviceMissing
            | Self::Results
            | Self::IdempotencyKey => StatusCode::BAD_REQUEST,
            Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Slow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) | Self::TooMany(_) | Self::RecordTooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Full(_) | Self::Late | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// As `wayside_source_rejected_total` has it.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Broken => "broken",
            Self::Device(_) | Self::DeviceMissing => "no_device",
            Self::Results => "results",
            Self::IdempotencyKey | Self::KeyReused => "idempotency_key",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NotFound(_) => "not_found",
            Self::Slow(_) => "slow",
            Self::TooLarge(_) | Self::TooMany(_) | Self::RecordTooLarge(_) => "too_large",
            Self::MediaType(_) => "media_type",
            Self::Full(_) => "full",
            Self::Late => "late",
            Self::Stopping => "stopping",
        }
    }

    /// Where in the body it is, if it is there.
    pub(super) fn flaw(&self) -> Option<&Flaw> {
        match self {
            Self::Malformed(flaw) | Self::RecordTooLarge(flaw) => Some(flaw),
            _ => None,
        }
    }
}
