//! One frame: `00 COBS(header | extension | body | CRC-32C) 00`.
//!
//! The header, 16 bytes, little-endian. It is not postcard: every later version must be able to read this one.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 | version (high 4 bits), kind (low 4 bits) |
//! | 1 | u8 | flags: 1 needs ack, 2 retransmit, 4 backlog, 8 time unsynced; high 4 bits "must understand" |
//! | 2 | u16 | device: short id given in HELLO_ACK, 0 before |
//! | 4 | u32 | boot: new at each restart of the device |
//! | 8 | u32 | seq: +1 per DATA within a boot, from 0; 0 in other kinds |
//! | 12 | u16 | schema of the body, 0 in kinds other than DATA |
//! | 14 | u8 | rev of the schema, 0 in kinds other than DATA |
//! | 15 | u8 | length of the extension that follows |
//!
//! The CRC covers header, extension and body, and stands little-endian behind them.

use crate::cobs;
use crate::crc::{Running, crc32c};
use crate::error::{DecodeError, EncodeError};

/// The format version that this crate writes and reads.
pub const VERSION: u8 = 1;
/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 16;
/// Bytes of the checksum.
pub const CRC_LEN: usize = 4;
/// Longest frame before COBS that both ends take without having agreed on anything: the longest that COBS stuffs with one
/// byte, so that a buffer of 256 bytes holds it with its closing delimiter.
pub const FRAME_LEN_DEFAULT: usize = 254;
/// Longest frame before COBS that HELLO can agree on.
pub const FRAME_LEN_MAX: usize = 1024;
/// Longest extension.
pub const EXTENSION_LEN_MAX: usize = 255;

const _: () = assert!(
    cobs::max_encoded_len(FRAME_LEN_DEFAULT) == FRAME_LEN_DEFAULT + 2,
    "the bound counts a full run's next code"
);
const _: () = assert!(FRAME_LEN_DEFAULT <= FRAME_LEN_MAX);
const _: () = assert!(HEADER_LEN + CRC_LEN < FRAME_LEN_DEFAULT);

/// Bytes on the line, with both delimiters, of a frame of `frame_len` bytes, at most.
#[must_use]
pub const fn max_wire_len(frame_len: usize) -> usize {
    cobs::max_encoded_len(frame_len) + 2
}

/// What a frame is for. The numbers are on the wire: never changed, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Device to gateway: here I am.
    Hello = 1,
    /// Gateway to device: you are known, go on from here.
    HelloAck = 2,
    /// Device to gateway: a reading.
    Data = 3,
    /// Gateway to device: what is durable.
    Ack = 4,
    /// Device to gateway: what time is it.
    TimeReq = 5,
    /// Gateway to device: this time.
    TimeRsp = 6,
    /// Device to gateway: a line for people. Not acknowledged.
    Log = 7,
    /// Gateway to device: do something. Not acknowledged.
    Cmd = 8,
}

impl Kind {
    fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::HelloAck,
            3 => Self::Data,
            4 => Self::Ack,
            5 => Self::TimeReq,
            6 => Self::TimeRsp,
            7 => Self::Log,
            8 => Self::Cmd,
            _ => return None,
        })
    }
}

/// The flag byte. The low four bits may be ignored by who does not know them, the high four may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// The sender keeps the frame until it is acknowledged. Every DATA has it.
    pub const NEEDS_ACK: Self = Self(1);
    /// Not the first transmission.
    pub const RETRANSMIT: Self = Self(2);
    /// The reading waited: it is history, not the present state.
    pub const BACKLOG: Self = Self(4);
    /// The device does not know the wall-clock time.
    pub const TIME_UNSYNCED: Self = Self(8);
    /// Flags of which a receiver that does not know one must reject the frame. This version defines none.
    pub const MUST_UNDERSTAND: Self = Self(0xf0);

    /// The flags of a byte on the wire.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// The byte on the wire.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether all flags of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`, if `condition` holds.
    #[must_use]
    pub const fn with_if(self, other: Self, condition: bool) -> Self {
        if condition { Self(self.0 | other.0) } else { self }
    }
}

/// A frame's fixed header, without the extension's length, which the extension itself gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is for.
    pub kind: Kind,
    /// Its flags.
    pub flags: Flags,
    /// The device's short id, 0 before the gateway gave one.
    pub device: u16,
    /// The device's boot number, in both directions.
    pub boot: u32,
    /// The number of a DATA frame within its boot; 0 in other kinds.
    pub seq: u32,
    /// Schema of the body of DATA; 0 in other kinds.
    pub schema: u16,
    /// Revision of the schema; 0 in other kinds.
    pub rev: u8,
}

impl Header {
    /// The header of a frame that is not DATA.
    #[must_use]
    pub const fn control(kind: Kind, device: u16, boot: u32) -> Self {
        Self { kind, flags: Flags::NONE, device, boot, seq: 0, schema: 0, rev: 0 }
    }

    /// The 16 bytes on the wire of a frame whose extension has `extension_len` bytes.
    #[must_use]
    pub fn to_bytes(&self, extension_len: u8) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = VERSION << 4 | self.kind as u8;
        bytes[1] = self.flags.bits();
        bytes[2..4].copy_from_slice(&self.device.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.boot.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.seq.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.schema.to_le_bytes());
        bytes[14] = self.rev;
        bytes[15] = extension_len;
        bytes
    }

    /// Reads the 16 bytes on the wire; also returns the extension's length.
    ///
    /// # Errors
    /// [`DecodeError::Version`], [`DecodeError::Kind`] or [`DecodeError::MustUnderstand`]: drop the frame.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Result<(Self, u8), DecodeError> {
        let [first, flags, d0, d1, b0, b1, b2, b3, s0, s1, s2, s3, schema0, schema1, rev, extension_len] =
            *bytes;
        if first >> 4 != VERSION {
            return Err(DecodeError::Version(first >> 4));
        }
        let kind = Kind::from_wire(first & 0x0f).ok_or(DecodeError::Kind(first & 0x0f))?;
        let unknown = flags & Flags::MUST_UNDERSTAND.bits();
        if unknown != 0 {
            return Err(DecodeError::MustUnderstand(unknown));
        }
        let header = Self {
            kind,
            flags: Flags::from_bits(flags),
            device: u16::from_le_bytes([d0, d1]),
            boot: u32::from_le_bytes([b0, b1, b2, b3]),
            seq: u32::from_le_bytes([s0, s1, s2, s3]),
            schema: u16::from_le_bytes([schema0, schema1]),
            rev,
        };
        Ok((header, extension_len))
    }
}

/// A sound frame, lent from the buffer of who decoded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The fixed header.
    pub header: Header,
    /// The extension. A reader takes the first bytes that it knows and skips the rest.
    pub extension: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads unstuffed bytes: header, extension, body, CRC.
    ///
    /// # Errors
    /// Any [`DecodeError`] but `Cobs` and `TooLong`. The checksum is looked at before anything else is believed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (covered, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or(DecodeError::Truncated)?;
        let (header, rest) = covered.split_first_chunk::<HEADER_LEN>().ok_or(DecodeError::Truncated)?;
        if crc32c(covered) != u32::from_le_bytes(*crc) {
            return Err(DecodeError::Crc);
        }
        let (header, extension_len) = Header::from_bytes(header)?;
        let (extension, body) =
            rest.split_at_checked(usize::from(extension_len)).ok_or(DecodeError::Truncated)?;
        Ok(Self { header, extension, body })
    }

    /// Bytes before COBS.
    #[must_use]
    pub fn len(&self) -> usize {
        HEADER_LEN + self.extension.len() + self.body.len() + CRC_LEN
    }

    /// Never: a frame has a header. (Here because [`Self::len`] is.)
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the frame with both delimiters to the start of `out` and returns how many bytes it took.
    ///
    /// # Errors
    /// [`EncodeError::BufferTooSmall`] unless `out` has [`max_wire_len`] of [`Self::len`] bytes (fewer may do);
    /// [`EncodeError::ExtensionTooLong`]. What `out` holds then is of no use.
    pub fn encode(&self, out: &mut [u8]) -> Result<usize, EncodeError> {
        let extension_len = u8::try_from(self.extension.len()).map_err(|_| EncodeError::ExtensionTooLong)?;
        let header = self.header.to_bytes(extension_len);
        *out.first_mut().ok_or(EncodeError::BufferTooSmall)? = 0;
        let mut crc = Running::new();
        let mut encoder = cobs::Encoder::new(out, 1);
        for part in [&header[..], self.extension, self.body] {
            crc.update(part);
            encoder.push(part)?;
        }
        encoder.push(&crc.finish().to_le_bytes())?;
        let end = encoder.finish()?;
        *out.get_mut(end).ok_or(EncodeError::BufferTooSmall)? = 0;
        Ok(end + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        kind: Kind::Data,
        flags: Flags::NEEDS_ACK,
        device: 0x0102,
        boot: 0x0304_0506,
        seq: 0x0708_090a,
        schema: 0x0b0c,
        rev: 0x0d,
    };

    #[test]
    fn header_has_the_bytes_of_the_specification() {
        let bytes = HEADER.to_bytes(3);
        assert_eq!(bytes, [0x13, 1, 2, 1, 6, 5, 4, 3, 0x0a, 9, 8, 7, 0x0c, 0x0b, 0x0d, 3]);
        assert_eq!(Header::from_bytes(&bytes), Ok((HEADER, 3)));
    }

    #[test]
    fn header_of_another_version_kind_or_unknown_duty_is_rejected() {
        let change = |at: usize, value: u8| {
            let mut bytes = HEADER.to_bytes(0);
            bytes[at] = value;
            Header::from_bytes(&bytes).map(|_| ())
        };
        assert_eq!(change(0, 0x23), Err(DecodeError::Version(2)));
        assert_eq!(change(0, 0x1f), Err(DecodeError::Kind(15)));
        assert_eq!(change(0, 0x10), Err(DecodeError::Kind(0)));
        assert_eq!(change(1, 0x41), Err(DecodeError::MustUnderstand(0x40)));
        assert_eq!(change(1, 0x0f), Ok(()));
    }

    #[test]
    fn frame_with_an_unknown_extension_keeps_its_body() {
        let frame = Frame { header: HEADER, extension: &[0, 9, 0], body: b"body" };
        let mut wire = [0xff; 64];
        let len = frame.encode(&mut wire).unwrap();
        assert_eq!((wire[0], wire[len - 1]), (0, 0));
        assert!(!wire[1..len - 1].contains(&0));
        assert!(len <= max_wire_len(frame.len()));
    }

    #[test]
    fn parse_believes_nothing_before_the_checksum() {
        let mut bytes = [0u8; 24];
        bytes[..16].copy_from_slice(&HEADER.to_bytes(200));
        assert_eq!(Frame::parse(&bytes), Err(DecodeError::Crc));
        let crc = crc32c(&bytes[..20]).to_le_bytes();
        bytes[20..].copy_from_slice(&crc);
        assert_eq!(
            Frame::parse(&bytes),
            Err(DecodeError::Truncated),
            "the extension is longer than the frame"
        );
        assert_eq!(Frame::parse(&bytes[..19]), Err(DecodeError::Truncated));
        assert_eq!(Frame::parse(&[]), Err(DecodeError::Truncated));
    }

    #[test]
    fn encode_into_any_short_buffer_is_an_error() {
        let frame = Frame { header: HEADER, extension: &[], body: b"body" };
        let mut wire = [0; 64];
        let len = frame.encode(&mut wire).unwrap();
        for short in 0..len {
            assert_eq!(frame.encode(&mut wire[..short]), Err(EncodeError::BufferTooSmall), "{short} bytes");
        }
    }
}
