//! What a bad cable does to bytes.

use rand::Rng as _;

use crate::chance::Rng;

/// Damages bytes at random, the same way for the same seed and bytes.
#[derive(Debug)]
pub(super) struct Noise {
    /// Probability that a byte has one bit flipped.
    flip: f64,
    /// Probability that a byte is dropped, and that one is inserted before it.
    slip: f64,
    rng: Rng,
}

impl Noise {
    /// `bit_flips` per bit and `slips` per byte, from 0 to 1.
    pub(super) fn new(bit_flips: f64, slips: f64, rng: Rng) -> Self {
        // Two flips in one byte are rarer than what a checksum could tell apart.
        Self { flip: 1.0 - (1.0 - bit_flips).powi(8), slip: slips, rng }
    }

    /// Appends to `out` what is left of `bytes`.
    pub(super) fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.flip == 0.0 && self.slip == 0.0 {
            out.extend_from_slice(bytes);
            return;
        }
        for &byte in bytes {
            if self.rng.random::<f64>() < self.slip {
                out.push(self.rng.random());
            }
            if self.rng.random::<f64>() < self.slip {
                continue;
            }
            let flipped = self.rng.random::<f64>() < self.flip;
            out.push(if flipped { byte ^ (1 << self.rng.random_range(0..8u8)) } else { byte });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance;

    fn pass(bit_flips: f64, slips: f64, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Noise::new(bit_flips, slips, chance::rng(1, 0)).pass(bytes, &mut out);
        out
    }

    #[test]
    fn noise_damages_as_often_as_it_says() {
        let bytes = [0u8; 100_000];
        assert_eq!(pass(0.0, 0.0, &bytes), bytes);
        let flipped: u32 = pass(0.001, 0.0, &bytes).iter().map(|byte| byte.count_ones()).sum();
        assert!((700..900).contains(&flipped), "{flipped}");
        let slipped = pass(0.0, 0.01, &bytes);
        assert!(slipped.len().abs_diff(bytes.len()) < 300);
        assert!((900..1100).contains(&slipped.iter().filter(|&&byte| byte != 0).count()));
    }
}
