//! What the sensors of a room make of the people in it.

use rand::Rng as _;

use super::people::RoomKind;
use crate::chance::{self, Rng};

/// Movements per second that a motion sensor sees of one person at a desk. Calibrated to UCI Room Occupancy Estimation: motion in 35 % of
/// half minutes with one person; the rest of the time people sit still and are not seen.
const MOTION_RATE: f64 = 0.0145;
/// Motion seen in an empty room, 1/s: sun patches and air, 0.3 % of half minutes in the same data.
const FALSE_MOTION_RATE: f64 = 1e-4;
/// How long after the last motion the room counts as occupied, s.
const HOLD_S: f64 = 60.0;
/// Share of door crossings that the counter misses: a good thermal counter.
const COUNTER_MISS: f64 = 0.02;
/// Share of crossings counted twice.
const COUNTER_DOUBLE: f64 = 0.005;
/// CO2 of the outside air, ppm.
const CO2_OUTSIDE: f64 = 420.0;
/// CO2 that a seated adult gives off, m³/s (ASHRAE; 0.0052 L/s).
const CO2_PER_PERSON: f64 = 5.2e-6;
/// Air volume per planned person, m³.
const VOLUME_PER_PERSON: f64 = 45.0;
/// Response of the CO2 sensor, s: air must diffuse into it.
const CO2_LAG_S: f64 = 90.0;
/// Standard deviation of the CO2 noise, ppm: nearly all readings within ±30.
const CO2_NOISE: f64 = 10.0;
/// Lights go out this long after the last motion, s.
const LIGHTS_S: f64 = 600.0;

/// The sensors of one room.
#[derive(Debug, Clone)]
pub struct Sensors {
    volume: f64,
    /// Air changes, 1/s.
    ventilation: f64,
    since_motion: f64,
    motion_events: u16,
    entered_total: u32,
    left_total: u32,
    people: i32,
    co2: f64,
    co2_sensed: f64,
    temperature: f64,
    lamps_lux: f64,
}

/// What the room unit reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoomReading {
    /// Floor, from 1.
    pub floor: u16,
    /// Motion within the hold time.
    pub occupied: bool,
    /// Motion events since the last reading.
    pub motion_events: u16,
    /// People by the door counter since its nightly reset: its errors add up, and it may be negative.
    pub people: i32,
    /// Counted into the room since the start.
    pub entered_total: u32,
    /// Counted out of the room since the start.
    pub left_total: u32,
    /// Carbon dioxide, ppm.
    pub co2_ppm: u16,
    /// Air temperature, 0.01 °C.
    pub temperature_centi_c: i16,
    /// Light, lux.
    pub illuminance_lux: u32,
}

impl Sensors {
    /// The sensors of an empty room after a night.
    pub fn new(kind: RoomKind, rng: &mut Rng) -> Self {
        let planned = match kind {
            RoomKind::Meeting => 6,
            RoomKind::Kitchen => 5,
            RoomKind::Office | RoomKind::OpenPlan => kind.desks(),
        };
        Self {
            volume: planned as f64 * VOLUME_PER_PERSON * rng.random_range(0.9..1.1),
            // UCI's rooms decay with 0.35 to 0.63 per hour after work.
            ventilation: rng.random_range(0.4..0.6) / 3600.0,
            since_motion: f64::INFINITY,
            motion_events: 0,
            entered_total: 0,
            left_total: 0,
            people: 0,
            co2: CO2_OUTSIDE,
            co2_sensed: CO2_OUTSIDE,
            temperature: rng.random_range(20.0..22.0),
            lamps_lux: rng.random_range(420.0..560.0),
        }
    }

    /// Someone goes through the door: seen by the motion sensor for sure, by the counter mostly.
    pub fn crossing(&mut self, rng: &mut Rng, inwards: bool) {
        self.motion();
        let counted = match rng.random::<f64>() {
            chance if chance < COUNTER_MISS => 0,
            chance if chance < COUNTER_MISS + COUNTER_DOUBLE => 2,
            _ => 1,
        };
        let (total, sign) = if inwards { (&mut self.entered_total, 1) } else { (&mut self.left_total, -1) };
        *total = total.wrapping_add(counted);
        self.people += sign * i32::try_from(counted).expect("two at most");
    }

    fn motion(&mut self) {
        self.since_motion = 0.0;
        self.motion_events = self.motion_events.saturating_add(1);
    }

    /// The counter starts from zero, whatever its errors have left.
    pub fn reset_counter(&mut self) {
        self.people = 0;
    }

    /// `dt` seconds with `count` people in the room.
    pub fn step(&mut self, rng: &mut Rng, dt: f64, count: u32) {
        self.since_motion += dt;
        if chance::happens(rng, MOTION_RATE * f64::from(count) + FALSE_MOTION_RATE, dt) {
            self.motion();
        }
        let approach = |from: &mut f64, to: f64, rate: f64| *from += (to - *from) * -(-rate * dt).exp_m1();
        let given_off = f64::from(count) * CO2_PER_PERSON * 1e6 / (self.volume * self.ventilation);
        approach(&mut self.co2, CO2_OUTSIDE + given_off, self.ventilation);
        approach(&mut self.co2_sensed, self.co2, 1.0 / CO2_LAG_S);
        // People warm a room by some tenths of a degree within the hour.
        approach(&mut self.temperature, 21.0 + 0.4 * f64::from(count), 1.0 / 3600.0);
    }

    /// A reading at `hour` of the day, `[0, 24)`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    pub fn read(&mut self, rng: &mut Rng, floor: u16, hour: f64) -> RoomReading {
        let daylight = 200.0 * (std::f64::consts::PI * (hour - 6.0) / 14.0).sin().max(0.0);
        let lamps = if self.since_motion < LIGHTS_S { self.lamps_lux } else { 0.0 };
        RoomReading {
            floor,
            occupied: self.since_motion < HOLD_S,
            motion_events: std::mem::take(&mut self.motion_events),
            people: self.people,
            entered_total: self.entered_total,
            left_total: self.left_total,
            co2_ppm: (self.co2_sensed + CO2_NOISE * chance::normal(rng)).round() as u16,
            temperature_centi_c: (100.0 * self.temperature + 3.0 * chance::normal(rng)).round() as i16,
            illuminance_lux: (daylight + lamps + 4.0 * chance::normal(rng)).round() as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn office(seed: u64) -> (Sensors, Rng) {
        let mut rng = chance::rng(seed, 0);
        (Sensors::new(RoomKind::Office, &mut rng), rng)
    }

    #[test]
    fn motion_grows_with_the_number_of_people_as_measured() {
        // P(motion in 30 s | people) of UCI Room Occupancy Estimation.
        for (count, expected) in [(0, 0.003), (1, 0.353), (2, 0.639), (3, 0.769)] {
            let (mut sensors, mut rng) = office(1);
            let windows = 20_000;
            let seen = (0..windows)
                .filter(|_| {
                    (0..30).for_each(|_| sensors.step(&mut rng, 1.0, count));
                    sensors.read(&mut rng, 1, 12.0).motion_events > 0
                })
                .count();
            let share = seen as f64 / f64::from(windows);
            assert!((share - expected).abs() < 0.1, "{count} people: {share} instead of {expected}");
        }
    }

    #[test]
    fn counter_errors_walk_randomly_until_the_nightly_reset() {
        let squares: f64 = (0..200)
            .map(|seed| {
                let (mut sensors, mut rng) = office(seed);
                for crossing in 0..400 {
                    sensors.crossing(&mut rng, crossing % 2 == 0);
                }
                let error = f64::from(sensors.read(&mut rng, 1, 12.0).people);
                sensors.reset_counter();
                assert_eq!(sensors.read(&mut rng, 1, 12.0).people, 0);
                error * error
            })
            .sum();
        // 400 crossings with 2.5 % errors: a standard deviation of sqrt(10), and negatives among them.
        let deviation = (squares / 200.0).sqrt();
        assert!((2.5..3.9).contains(&deviation), "{deviation}");
    }

    #[test]
    fn carbon_dioxide_rises_with_people_and_decays_after_work() {
        let (mut sensors, mut rng) = office(2);
        let mut after = |sensors: &mut Sensors, hours: u32, count| {
            (0..hours * 360).for_each(|_| sensors.step(&mut rng, 10.0, count));
            f64::from(sensors.read(&mut rng, 1, 12.0).co2_ppm)
        };
        let morning = after(&mut sensors, 1, 0);
        let busy = after(&mut sensors, 6, 2);
        let evening = after(&mut sensors, 1, 0);
        assert!((380.0..460.0).contains(&morning), "{morning}");
        assert!((900.0..1500.0).contains(&busy), "{busy}");
        let decay = ((busy - CO2_OUTSIDE) / (evening - CO2_OUTSIDE)).ln();
        assert!((0.3..0.7).contains(&decay), "{decay}");
    }
}
