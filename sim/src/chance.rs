//! Seeded chance for the models.

use rand::{Rng as _, SeedableRng as _};

/// ChaCha8: unlike `rand::SmallRng` its stream is fixed, so a seed means the same readings on every machine and release.
pub type Rng = rand_chacha::ChaCha8Rng;

/// The generator of one part of a model. Parts get streams of their own, so that a change in one leaves the others as they were.
pub fn rng(seed: u64, part: u64) -> Rng {
    let mut rng = Rng::seed_from_u64(seed);
    rng.set_stream(part);
    rng
}

/// A standard normal deviate (Box and Muller).
pub fn normal(rng: &mut Rng) -> f64 {
    // 1 - u is in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// An exponential deviate with this mean.
pub fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.random::<f64>()).ln()
}

/// Whether an event with this rate (1/s) happens at least once in `dt` seconds.
pub fn happens(rng: &mut Rng, rate: f64, dt: f64) -> bool {
    rng.random::<f64>() < -(-rate * dt).exp_m1()
}
