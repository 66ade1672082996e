//! Which Kafka partition a key goes to, bit for bit as Kafka's own Java client decides.
//!
//! The vectors in `testdata/murmur2.tsv` come from that client.

use core::num::NonZeroU32;

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;
const R: u32 = 24;

/// The 32-bit murmur2 of `key` as `org.apache.kafka.common.utils.Utils.murmur2` computes it, as the same signed number.
#[must_use]
pub fn murmur2(key: &[u8]) -> i32 {
    // Java keeps the length in an int, so a key beyond 4 GiB does not exist there; the low 32 bits are what it would use.
    #[allow(clippy::cast_possible_truncation)]
    let mut hash = SEED ^ key.len() as u32;
    let (words, tail) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (shift, &byte) in tail.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * shift);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^= hash >> 15;
    hash.cast_signed()
}

/// The partition of `key` in a topic of `partitions` partitions: `(murmur2(key) & 0x7fff_ffff) % partitions`.
///
/// Kafka counts partitions in an `i32`, so the result is one and never negative.
#[must_use]
pub fn partition(key: &[u8], partitions: NonZeroU32) -> i32 {
    // Below 2^31 after the mask, so neither the remainder nor the cast can change the number.
    let positive = murmur2(key).cast_unsigned() & 0x7fff_ffff;
    (positive % partitions).cast_signed()
}
