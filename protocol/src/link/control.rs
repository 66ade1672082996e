//! Bodies of the frames that run the link, and the extension of DATA: fixed, little-endian.
//!
//! They are not postcard because version negotiation must be readable before a version is agreed on. They only ever grow at the
//! end: a reader takes the bytes that it knows and skips the rest.

/// Lengths and codes of CMD bodies: `u16 code | arguments`.
pub const CMD_CODE_LEN: usize = 2;
/// Command: the gateway does not know the sender (it restarted, or the line was plugged elsewhere); say HELLO.
pub const CMD_SAY_HELLO: u16 = 1;
/// First command code that belongs to the application. Those below are the link's own.
pub const CMD_APPLICATION_FIRST: u16 = 0x0100;

/// Declares a body: its struct, its length, and both directions, field by field in the order given.
macro_rules! body {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl $name {
            /// Bytes of the body.
            pub const LEN: usize = 0 $(+ size_of::<$type>())*;

            /// The bytes on the wire.
            #[must_use]
            pub fn to_bytes(&self) -> [u8; Self::LEN] {
                let mut bytes = [0; Self::LEN];
                let rest = &mut bytes[..];
                $(let (place, rest) = rest.split_at_mut(size_of::<$type>());
                place.copy_from_slice(&self.$field.to_le_bytes());)*
                let _: &mut [u8] = rest;
                bytes
            }

            /// Reads the front of `bytes`; `None` if they are too few.
            #[must_use]
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                $(let (field, bytes) = bytes.split_first_chunk()?;
                let $field = <$type>::from_le_bytes(*field);)*
                let _: &[u8] = bytes;
                Some(Self { $($field,)* })
            }
        }
    };
}

body! {
    /// The first bytes of the extension of DATA.
    DataExtension {
        /// When the reading was made, in us of the device's monotonic clock.
        device_time_us: u64,
        /// The oldest sequence number that the device still keeps. What is older and was not received is lost.
        oldest_unacked: u32,
    }
}

body! {
    /// Body of HELLO. The header has the boot number, and 0 for the short id.
    Hello {
        /// The device's own number for life, unique in the fleet.
        uid: u64,
        /// Firmware version: major, minor, patch in 8, 8 and 16 bits.
        firmware: u32,
        /// [`crate::payload::CATALOG_HASH`] of the firmware.
        catalog_hash: u32,
        /// The sequence number that the next new reading gets.
        next_seq: u32,
        /// The oldest one that the device still keeps; equal to `next_seq` if none.
        oldest_unacked: u32,
        /// Readings that the device dropped in this boot because its ring was full.
        lost: u32,
        /// Longest frame that the device can send, before COBS.
        max_frame: u16,
        /// Frames that the device can have in flight.
        window: u8,
        /// Oldest format version that it speaks (high 4 bits) and newest (low 4 bits).
        versions: u8,
    }
}

body! {
    /// Body of HELLO_ACK. The header has the device's boot number.
    HelloAck {
        /// Whom it is for: the short id is not known yet.
        uid: u64,
        /// Unix time in us when this was sent; 0 if the gateway does not know it.
        unix_us: u64,
        /// Everything before it is durable: go on from here.
        resume_seq: u32,
        /// The short id from now on.
        device: u16,
        /// Longest frame from now on, before COBS.
        max_frame: u16,
        /// Frames in flight from now on.
        window: u8,
        /// As in ACK.
        credit: u8,
        /// The format version from now on.
        version: u8,
    }
}

body! {
    /// Body of ACK.
    Ack {
        /// Every DATA before it is durable: the device may forget it.
        next_expected: u32,
        /// Bit `i`: `next_expected + i` has arrived, but is not durable. Do not send it again for now, and keep it.
        held: u32,
        /// How many frames from `next_expected` on the gateway takes. 0 holds the device back.
        credit: u8,
    }
}

body! {
    /// Body of TIME_REQ.
    TimeReq {
        /// The device's clock when this was sent.
        t1_us: u64,
        /// What to add to the device's clock to get the gateway's, as found so far. Meaningless while `rtt_us` is 0.
        offset_us: i64,
        /// Round trip of the exchange that `offset_us` comes from: it is right to half of this. 0 before the first one.
        rtt_us: u32,
    }
}

body! {
    /// Body of TIME_RSP.
    TimeRsp {
        /// `t1_us` of the request.
        t1_us: u64,
        /// The gateway's monotonic clock when the request arrived.
        t2_us: u64,
        /// The gateway's monotonic clock when this was sent.
        t3_us: u64,
        /// Unix time in us at `t3_us`; 0 if the gateway does not know it.
        unix_us: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_the_bytes_of_the_specification() {
        assert_eq!(DataExtension::LEN, super::super::DATA_EXTENSION_LEN);
        assert_eq!((Hello::LEN, HelloAck::LEN, Ack::LEN, TimeReq::LEN, TimeRsp::LEN), (32, 27, 9, 20, 32));
        let ack = Ack { next_expected: 0x0403_0201, held: 0x0807_0605, credit: 9 };
        assert_eq!(ack.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn bodies_may_grow_at_the_end_but_not_shrink() {
        let ack = Ack { next_expected: 1, held: 2, credit: 3 };
        let mut longer = ack.to_bytes().to_vec();
        longer.push(99);
        assert_eq!(Ack::from_bytes(&longer), Some(ack));
        assert_eq!(Ack::from_bytes(&longer[..8]), None);
    }
}
