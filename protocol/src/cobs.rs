//! Consistent Overhead Byte Stuffing: takes every zero out of a frame, so that a zero on the line can only mean "frame ends".
//!
//! Each block is one code byte `n` in 1..=255, then `n - 1` bytes other than zero. A block stands for its bytes, then one
//! zero if `n < 255` and the block is not the last. The cost is one byte per started run of 254 bytes: a frame of up to
//! 254 bytes grows by exactly one.
//!
//! # References
//! S. Cheshire, M. Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.

use crate::error::EncodeError;

/// Longest run of bytes behind one code byte.
const RUN_MAX: u8 = 254;

/// Bytes that `len` bytes take after stuffing, at most. Delimiters are not counted.
#[must_use]
pub const fn max_encoded_len(len: usize) -> usize {
    len + len / RUN_MAX as usize + 1
}

/// Stuffs bytes that come in pieces into a buffer of the caller.
pub(crate) struct Encoder<'a> {
    out: &'a mut [u8],
    /// Where the code byte of the open block goes.
    code_at: usize,
    /// Where the next byte goes.
    end: usize,
    /// The code byte of the open block: 1 + the bytes in it.
    code: u8,
}

impl<'a> Encoder<'a> {
    /// Begins at `start` of `out`. Bytes before `start` are left alone.
    pub(crate) fn new(out: &'a mut [u8], start: usize) -> Self {
        Self { out, code_at: start, end: start + 1, code: 1 }
    }

    fn put(&mut self, at: usize, byte: u8) -> Result<(), EncodeError> {
        *self.out.get_mut(at).ok_or(EncodeError::BufferTooSmall)? = byte;
        Ok(())
    }

    fn close_block(&mut self) -> Result<(), EncodeError> {
        self.put(self.code_at, self.code)?;
        self.code_at = self.end;
        self.end += 1;
        self.code = 1;
        Ok(())
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        for &byte in bytes {
            // A full block is closed when the next byte comes, not before: a frame that ends with it needs no empty block.
            if self.code == RUN_MAX + 1 {
                self.close_block()?;
            }
            if byte == 0 {
                self.close_block()?;
            } else {
                self.put(self.end, byte)?;
                self.end += 1;
                self.code += 1;
            }
        }
        Ok(())
    }

    /// Closes the last block and returns where the stuffed bytes end.
    pub(crate) fn finish(mut self) -> Result<usize, EncodeError> {
        self.put(self.code_at, self.code)?;
        self.end = self.end.max(self.code_at + 1);
        Ok(self.end)
    }
}

/// What is still missing of the open block when unstuffing a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Unstuffer {
    /// Bytes that the open block still owes.
    owed: u8,
    /// A zero stands between the open block and the next one.
    zero_follows: bool,
}

impl Unstuffer {
    /// Takes a code byte (never 0) and says whether a zero precedes its block.
    pub(crate) fn open_block(&mut self, code: u8) -> bool {
        let zero = self.zero_follows;
        self.owed = code.saturating_sub(1);
        self.zero_follows = code <= RUN_MAX;
        zero
    }

    /// Bytes that can be copied as they are before the next code byte.
    pub(crate) fn owed(self) -> usize {
        usize::from(self.owed)
    }

    /// Notes that `len` bytes of the open block were copied; `len` is at most [`Self::owed`].
    pub(crate) fn take(&mut self, len: usize) {
        let left = self.owed().saturating_sub(len);
        self.owed = u8::try_from(left).expect("not more than the u8 that it came from");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stuff(bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; max_encoded_len(bytes.len())];
        let mut encoder = Encoder::new(&mut out, 0);
        encoder.push(bytes).unwrap();
        let len = encoder.finish().unwrap();
        out.truncate(len);
        out
    }

    fn unstuff(bytes: &[u8]) -> Vec<u8> {
        let (mut state, mut out, mut rest) = (Unstuffer::default(), Vec::new(), bytes);
        while let Some((&code, tail)) = rest.split_first() {
            if state.open_block(code) {
                out.push(0);
            }
            let (run, tail) = tail.split_at(state.owed());
            out.extend_from_slice(run);
            state.take(run.len());
            rest = tail;
        }
        out
    }

    #[test]
    fn stuffing_matches_the_examples_of_the_paper() {
        for (plain, stuffed) in [
            (&[][..], &[1][..]),
            (&[0], &[1, 1]),
            (&[0, 0], &[1, 1, 1]),
            (&[0x11, 0x22, 0, 0x33], &[3, 0x11, 0x22, 2, 0x33]),
            (&[0x11, 0, 0, 0], &[2, 0x11, 1, 1, 1]),
        ] {
            assert_eq!(stuff(plain), stuffed);
        }
    }

    #[test]
    fn stuffing_costs_one_byte_per_254() {
        for (len, stuffed_len) in [(253, 254), (254, 255), (255, 257), (508, 510), (1024, 1029)] {
            assert_eq!(stuff(&vec![7; len]).len(), stuffed_len, "{len} bytes");
            assert!(stuffed_len <= max_encoded_len(len));
        }
    }

    #[test]
    fn stuffing_into_a_short_buffer_is_an_error() {
        let mut out = [0; 4];
        let mut encoder = Encoder::new(&mut out, 0);
        assert_eq!(encoder.push(&[1, 2, 3, 4]), Err(EncodeError::BufferTooSmall));
    }

    proptest! {
        #[test]
        fn stuffed_bytes_hold_no_zero_and_come_back(bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 0..1100)) {
            let stuffed = stuff(&bytes);
            prop_assert!(!stuffed.contains(&0));
            prop_assert!(stuffed.len() <= max_encoded_len(bytes.len()));
            prop_assert_eq!(unstuff(&stuffed), bytes);
        }
    }
}
