//! The Intelligent Driver Model: how hard a driver accelerates, given speed, gap and the vehicle ahead.
//!
//! `v' = a [1 - (v/v0)^4 - (s*/s)^2]` with `s* = s0 + v T + v dv / (2 sqrt(a b))`
//! (Treiber, Hennecke, Helbing, Phys. Rev. E 62 (2000) 1805).

/// The hardest braking that a vehicle is capable of here, m/s²: three times what is comfortable, well within dry grip.
pub const MAX_BRAKING: f64 = 5.0;

/// A driver and the vehicle, SI units.
#[derive(Debug, Clone, Copy)]
pub struct Idm {
    /// Desired speed v0, m/s.
    pub desired_speed: f64,
    /// Desired time headway T, s.
    pub headway: f64,
    /// Gap at standstill s0, m.
    pub standstill_gap: f64,
    /// Largest acceleration a, m/s².
    pub acceleration: f64,
    /// Comfortable braking b, m/s².
    pub braking: f64,
}

impl Idm {
    /// The parameters of the original paper for a motorway.
    pub const MOTORWAY: Self =
        Self { desired_speed: 30.0, headway: 1.5, standstill_gap: 2.0, acceleration: 0.73, braking: 1.67 };
    /// The same driver in a town at 50 km/h.
    pub const TOWN: Self = Self { desired_speed: 13.89, ..Self::MOTORWAY };

    /// Acceleration in m/s² within `[-MAX_BRAKING, acceleration]`, at `speed` behind something `gap` metres ahead
    /// that moves at `leader_speed`. An infinite gap is a free road.
    pub fn acceleration(&self, speed: f64, gap: f64, leader_speed: f64) -> f64 {
        let closing = speed - leader_speed;
        let interaction =
            speed * self.headway + speed * closing / (2.0 * (self.acceleration * self.braking).sqrt());
        let desired_gap = self.standstill_gap + interaction.max(0.0);
        let free = 1.0 - (speed / self.desired_speed).powi(4);
        let wanted = self.acceleration * (free - (desired_gap / gap.max(0.01)).powi(2));
        wanted.clamp(-MAX_BRAKING, self.acceleration)
    }

    /// The gap in m at which a column travels steadily at `speed`, below the desired speed.
    pub fn equilibrium_gap(&self, speed: f64) -> f64 {
        (self.standstill_gap + speed * self.headway) / (1.0 - (speed / self.desired_speed).powi(4)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_that_of_the_literature() {
        // Values computed independently from the paper's equations, with 5 m vehicles.
        let capacity = |idm: Idm| {
            (1..3000)
                .map(|step| idm.desired_speed * f64::from(step) / 3000.0)
                .map(|speed| 3600.0 * speed / (idm.equilibrium_gap(speed) + 5.0))
                .fold(0.0, f64::max)
        };
        assert!((capacity(Idm::MOTORWAY) - 1798.0).abs() < 2.0);
        assert!((capacity(Idm::TOWN) - 1468.0).abs() < 2.0);
    }

    #[test]
    fn acceleration_is_zero_at_the_equilibrium_gap_and_bounded_everywhere() {
        let idm = Idm::TOWN;
        for speed in [0.0, 2.0, 7.0, 13.0] {
            assert!(idm.acceleration(speed, idm.equilibrium_gap(speed), speed).abs() < 1e-9);
            for gap in [0.0, 0.5, 10.0, f64::INFINITY] {
                for leader in [0.0, 5.0, 30.0] {
                    let acceleration = idm.acceleration(speed, gap, leader);
                    assert!((-MAX_BRAKING..=idm.acceleration).contains(&acceleration));
                }
            }
        }
    }
}
