//! Everything that can go wrong, as small `Copy` types: firmware has neither a heap nor room for text.

use core::fmt;

/// Why a frame could not be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// The caller's buffer is too short: give one of [`crate::frame::max_wire_len`] bytes.
    BufferTooSmall,
    /// The header extension is longer than its length byte can say (255): make it shorter.
    ExtensionTooLong,
}

/// Why bytes between two delimiters were no frame. Nothing of them reaches the caller; the decoder has already moved on.
///
/// On a line that is sound, the first ones after opening the port are normal: reading began in the middle of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum DecodeError {
    /// A delimiter came inside a COBS block: bytes were lost, or it was noise.
    Cobs,
    /// More bytes without a delimiter than the longest frame has: noise, another baud rate, or a frame above the agreed size.
    TooLong,
    /// Shorter than header, extension and checksum.
    Truncated,
    /// The checksum does not fit: damaged on the line.
    Crc,
    /// Sound, but of a format version that this end does not speak (the version).
    Version(u8),
    /// Sound, but of a kind that this end does not know (the kind's number).
    Kind(u8),
    /// Sound, but it carries "must understand" flags that this end does not know (those flags).
    MustUnderstand(u8),
}

/// Why a reading was not taken by [`crate::link::device::Device::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// Every slot holds a frame that the gateway has not made durable yet. Keep the reading and try again after the next
    /// acknowledgement, or choose [`crate::link::device::Overflow::DropOldest`].
    Full,
    /// The body does not fit into a frame of the agreed size. Never retried: send it in parts.
    TooLong,
}

/// Why a body could not be read as the payload that its schema names. Keep the raw bytes and report it: the frame itself was sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayloadError {
    /// No such schema here: a newer device, or one of somebody else.
    UnknownSchema(u16),
    /// Revision 0 never exists.
    UnknownRev(u8),
    /// The bytes end early or are no postcard.
    Malformed,
    /// Bytes left over although the revision is known: sender and receiver do not mean the same type.
    Trailing,
    /// A value outside of the range that its field's documentation gives (the field).
    Range(&'static str),
    /// The caller's buffer is too short for the payload.
    BufferTooSmall,
}

macro_rules! impl_error {
    ($($type:ty: |$e:ident, $f:ident| $body:expr;)*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, $f: &mut fmt::Formatter<'_>) -> fmt::Result { let $e = self; $body }
        }
        impl core::error::Error for $type {}
    )*};
}

impl_error! {
    EncodeError: |e, f| f.write_str(match e {
        Self::BufferTooSmall => "buffer too small for the frame",
        Self::ExtensionTooLong => "header extension longer than 255 bytes",
    });
    DecodeError: |e, f| match e {
        Self::Cobs => f.write_str("delimiter inside a COBS block"),
        Self::TooLong => f.write_str("longer than the longest frame"),
        Self::Truncated => f.write_str("shorter than header and checksum"),
        Self::Crc => f.write_str("checksum mismatch"),
        Self::Version(version) => write!(f, "format version {version}"),
        Self::Kind(kind) => write!(f, "unknown kind {kind}"),
        Self::MustUnderstand(flags) => write!(f, "unknown must-understand flags {flags:#04x}"),
    };
    SendError: |e, f| f.write_str(match e {
        Self::Full => "no free slot",
        Self::TooLong => "body longer than a frame",
    });
    PayloadError: |e, f| match e {
        Self::UnknownSchema(schema) => write!(f, "unknown schema {schema}"),
        Self::UnknownRev(rev) => write!(f, "unknown revision {rev}"),
        Self::Malformed => f.write_str("malformed payload"),
        Self::Trailing => f.write_str("bytes after the payload"),
        Self::Range(field) => write!(f, "{field} out of range"),
        Self::BufferTooSmall => f.write_str("buffer too small for the payload"),
    };
}
