//! What a GPS receiver makes of a true position.

use crate::chance::{self, Rng};

/// Standard deviation of the slow error per axis, m: a good receiver under an open sky.
pub const SLOW_ERROR_M: f64 = 2.5;
/// Correlation time of the slow error, s (satellite geometry and atmosphere).
const CORRELATION_S: f64 = 80.0;
/// Standard deviation of the noise from fix to fix per axis, m.
const WHITE_ERROR_M: f64 = 0.3;
/// Standard deviation of the Doppler speed, m/s.
const SPEED_ERROR: f64 = 0.1;
/// Below this speed a course over ground means nothing, m/s.
const MIN_COURSE_SPEED: f64 = 0.5;
/// Metres of one degree of latitude on the sphere with the mean radius of WGS84.
const METRES_PER_DEGREE: f64 = 111_195.0;

/// One receiver: its error is a first-order Gauss-Markov process per axis, with white noise on top.
#[derive(Debug, Clone)]
pub struct Receiver {
    slow: [f64; 2],
}

/// A fix, quantised as receivers do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fix {
    /// Latitude, 1e-7 degree.
    pub latitude_e7: i32,
    /// Longitude, 1e-7 degree.
    pub longitude_e7: i32,
    /// Speed over ground, cm/s.
    pub speed_cm_s: u16,
    /// Course over ground, 0.01 degree clockwise from north, `0..36000`; `None` when too slow to tell.
    pub heading_cdeg: Option<u16>,
}

impl Receiver {
    /// A receiver that has been on for long: its error has the stationary distribution.
    pub fn new(rng: &mut Rng) -> Self {
        Self { slow: [SLOW_ERROR_M * chance::normal(rng), SLOW_ERROR_M * chance::normal(rng)] }
    }

    /// A fix `dt` s after the last one, at `position` (m east and north of `origin`, which is latitude and longitude in degrees).
    pub fn fix(
        &mut self,
        rng: &mut Rng,
        dt: f64,
        origin: [f64; 2],
        position: [f64; 2],
        speed: f64,
        heading: f64,
    ) -> Fix {
        let keep = (-dt / CORRELATION_S).exp();
        let fresh = SLOW_ERROR_M * (1.0 - keep * keep).sqrt();
        for axis in &mut self.slow {
            *axis = *axis * keep + fresh * chance::normal(rng);
        }
        let east = position[0] + self.slow[0] + WHITE_ERROR_M * chance::normal(rng);
        let north = position[1] + self.slow[1] + WHITE_ERROR_M * chance::normal(rng);
        let speed = (speed + SPEED_ERROR * chance::normal(rng)).max(0.0);
        // The faster, the steadier: 0.1 m/s of sideways noise turns the course by 6 degrees at 1 m/s.
        let course = heading + (SPEED_ERROR / speed.max(MIN_COURSE_SPEED)).to_degrees() * chance::normal(rng);
        Fix {
            latitude_e7: e7(origin[0] + north / METRES_PER_DEGREE),
            longitude_e7: e7(origin[1] + east / (METRES_PER_DEGREE * origin[0].to_radians().cos())),
            speed_cm_s: rounded(speed * 100.0),
            heading_cdeg: (speed >= MIN_COURSE_SPEED)
                .then(|| rounded(course.rem_euclid(360.0) * 100.0) % 36_000),
        }
    }
}

/// Degrees to 1e-7 degree; the caller keeps within a degree of a valid origin, so the value is below 1.81e9.
#[allow(clippy::cast_possible_truncation, reason = "float casts saturate")]
fn e7(degrees: f64) -> i32 {
    (degrees * 1e7).round() as i32
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
fn rounded(value: f64) -> u16 {
    value.round() as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_has_the_stated_size_and_memory() {
        let mut rng = chance::rng(7, 0);
        let mut receiver = Receiver::new(&mut rng);
        let origin = [60.17, 24.94];
        let metres = |fix: Fix| (f64::from(fix.latitude_e7) / 1e7 - origin[0]) * METRES_PER_DEGREE;
        let errors: Vec<f64> =
            (0..200_000).map(|_| metres(receiver.fix(&mut rng, 1.0, origin, [0.0; 2], 0.0, 0.0))).collect();
        let mean_product = |lag: usize| {
            errors.iter().zip(&errors[lag..]).map(|(a, b)| a * b).sum::<f64>() / (errors.len() - lag) as f64
        };
        let variance = SLOW_ERROR_M.powi(2) + WHITE_ERROR_M.powi(2);
        assert!((mean_product(0) / variance - 1.0).abs() < 0.15);
        // After one correlation time 1/e of the slow part is left.
        assert!((mean_product(80) / SLOW_ERROR_M.powi(2) - 0.368).abs() < 0.12);
    }

    #[test]
    fn heading_is_absent_when_standing_and_true_when_driving() {
        let mut rng = chance::rng(7, 0);
        let mut receiver = Receiver::new(&mut rng);
        let mut fix = |speed| receiver.fix(&mut rng, 1.0, [60.17, 24.94], [0.0; 2], speed, 90.0);
        assert_eq!(fix(0.0).heading_cdeg, None);
        let driving = fix(12.0);
        assert!((8700..9300).contains(&driving.heading_cdeg.unwrap()));
        assert!((1150..1250).contains(&driving.speed_cm_s));
    }
}
