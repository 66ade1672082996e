//! CRC-32C (Castagnoli), the check at the end of every frame.
//!
//! 32 bits, because noise on a line is tried against the check all day: at one damaged frame per second a 16-bit check
//! lets one through about every 18 hours, this one about every 136 years.

use crc::{CRC_32_ISCSI, Crc, Digest, Table};

/// Entries of 256 words in the lookup table: 0 computes bit by bit, 1 is a table of 1 KiB (feature `crc-table`).
const TABLES: usize = if cfg!(feature = "crc-table") { 1 } else { 0 };

static CRC: Crc<u32, Table<TABLES>> = Crc::<u32, Table<TABLES>>::new(&CRC_32_ISCSI);

/// A running CRC-32C over bytes that come in pieces.
pub(crate) struct Running(Digest<'static, u32, Table<TABLES>>);

impl Running {
    pub(crate) fn new() -> Self {
        Self(CRC.digest())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> u32 {
        self.0.finalize()
    }
}

/// CRC-32C of `bytes`: reflected polynomial `0x82F63B78`, initial value and final xor `0xFFFF_FFFF`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    CRC.checksum(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_has_the_published_check_value() {
        // "123456789" is the check input of the CRC catalogue; 32 zero bytes are from RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    }

    #[test]
    fn crc32c_in_pieces_equals_crc32c_at_once() {
        let mut running = Running::new();
        running.update(b"1234");
        running.update(b"");
        running.update(b"56789");
        assert_eq!(running.finish(), crc32c(b"123456789"));
    }
}
