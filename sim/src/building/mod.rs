//! `wayside-sim occupancy`: a building whose rooms report motion, door counts and air.

pub mod people;
pub mod sensors;

use std::io::Write as _;
use std::process::ExitCode;

use self::people::{MAX_STEP_S, Population, RoomKind};
pub use self::sensors::RoomReading;
use self::sensors::Sensors;
use crate::chance::{self, Rng};
use crate::load::{self, Device, LoadArgs, Model, Reading};

const HOUR: f64 = 3600.0;
const DAY: f64 = 86_400.0;
/// Rooms of a floor.
const FLOOR_ROOMS: usize = 20;
/// When door counters are set to zero, s after midnight.
const COUNTER_RESET_S: f64 = 3.0 * HOUR;
const WEEKDAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Arguments of `occupancy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    load: LoadArgs,
    /// What the clock in the building shows at the start, whatever the time stamps say
    #[arg(long, value_name = "DAY HH:MM", default_value = "mon 08:30", value_parser = building_clock)]
    clock: f64,
    /// How much faster than real time life in the building goes
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,
}

/// Runs the command; see [`load::run`].
///
/// # Errors
/// As [`load::run`], and for a time scale that is not above zero.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(args.time_scale.is_finite() && args.time_scale > 0.0, "--time-scale must be above zero");
    let building = Building::new(args.load.devices as usize, args.load.seed, args.clock, args.time_scale);
    load::run(args.load, building).await
}

/// Parses `mon 08:30` into seconds since Monday's midnight.
fn building_clock(text: &str) -> Result<f64, String> {
    let parse = || {
        let (day, time) = text.split_once(' ')?;
        let day = u8::try_from(WEEKDAYS.iter().position(|&name| name == day)?).ok()?;
        let (hour, minute) = time.split_once(':')?;
        let (hour, minute): (u8, u8) = (hour.parse().ok()?, minute.parse().ok()?);
        let seconds = f64::from(hour) * HOUR + f64::from(minute) * 60.0;
        (hour < 24 && minute < 60).then_some(f64::from(day) * DAY + seconds)
    };
    parse().ok_or_else(|| format!("{text:?} is not a day and time such as \"mon 08:30\""))
}

/// The building: people, and the sensors in its rooms. One device a room.
#[derive(Debug)]
pub struct Building {
    population: Population,
    sensors: Vec<Sensors>,
    devices: Vec<Device>,
    time_scale: f64,
    rng: Rng,
}

impl Building {
    /// `clock` in seconds since Monday's midnight, below a week; the day up to then is lived through, so that people are where they would be.
    pub fn new(rooms: usize, seed: u64, clock: f64, time_scale: f64) -> Self {
        let weekday = (0..7).rev().find(|&day| f64::from(day) * DAY <= clock).unwrap_or(0);
        let population = Population::new(rooms, weekday, chance::rng(seed, 0));
        let mut rng = chance::rng(seed, 1);
        let sensors = (0..rooms).map(|room| Sensors::new(RoomKind::of_index(room), &mut rng)).collect();
        let device = |room: usize| {
            let (floor, room) = (floor(room), room % FLOOR_ROOMS + 1);
            let id = format!("f{floor:02}-r{room:02}");
            Device { mqtt_topic: format!("building/{floor}/{id}/occupancy"), id }
        };
        let devices = (0..rooms).map(device).collect();
        let mut building = Self { population, sensors, devices, time_scale: 1.0, rng };
        let midnight = f64::from(weekday) * DAY;
        building.step(clock - midnight);
        building.time_scale = time_scale;
        building
    }
}

/// Floor of a room, from 1.
fn floor(room: usize) -> u16 {
    u16::try_from(room / FLOOR_ROOMS + 1).expect("the number of devices is bounded by the arguments")
}

impl Model for Building {
    const STREAM: &'static str = "occupancy";

    fn devices(&self) -> &[Device] {
        &self.devices
    }

    fn step(&mut self, dt: f64) {
        let mut left = dt * self.time_scale;
        while left > 0.0 {
            let h = left.min(MAX_STEP_S);
            left -= h;
            let before = self.population.now();
            for crossing in self.population.step(h) {
                self.sensors[crossing.room].crossing(&mut self.rng, crossing.inwards);
            }
            let reset = people::passed(before, self.population.now(), DAY, COUNTER_RESET_S);
            for (sensors, &count) in self.sensors.iter_mut().zip(self.population.counts()) {
                sensors.step(&mut self.rng, h, count);
                if reset {
                    sensors.reset_counter();
                }
            }
        }
    }

    fn read(&mut self, device: usize) -> Reading {
        let hour = self.population.now().rem_euclid(DAY) / HOUR;
        Reading::Room(self.sensors[device].read(&mut self.rng, floor(device), hour))
    }
}

impl RoomReading {
    /// See [`Reading::write_json`].
    pub fn write_json(&self, device: &str, seq: u64, time: &str, out: &mut Vec<u8>) {
        let Self { floor, occupied, motion_events, people, entered_total, left_total, co2_ppm, .. } = self;
        let celsius = f64::from(self.temperature_centi_c) / 100.0;
        let lux = self.illuminance_lux;
        // Writing to a Vec cannot fail.
        let _ = write!(
            out,
            r#"{{"device":"{device}","seq":{seq},"time":"{time}","floor":{floor},"occupied":{occupied},"motion_events":{motion_events},"people":{people},"entered_total":{entered_total},"left_total":{left_total},"co2_ppm":{co2_ppm},"temperature_c":{celsius:.2},"illuminance_lux":{lux}}}"#
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_a_weekday_and_a_time() {
        assert_eq!(building_clock("mon 00:00"), Ok(0.0));
        assert_eq!(building_clock("tue 08:30"), Ok(DAY + 8.5 * HOUR));
        for wrong in ["", "08:30", "mon 24:00", "mon 08:60", "day 08:00"] {
            assert!(building_clock(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn people_are_there_when_the_clock_says_so() {
        let inside = |clock| Building::new(40, 9, clock, 1.0).population.counts().iter().sum::<u32>();
        assert_eq!(inside(2.0 * HOUR), 0);
        assert!(inside(10.5 * HOUR) > 20);
        assert!(inside(5.0 * DAY + 10.5 * HOUR) < 5);
    }

    #[test]
    fn light_and_carbon_dioxide_tell_presence() {
        let mut building = Building::new(20, 10, 8.0 * HOUR, 1.0);
        let (mut ppm, mut samples) = ([0.0; 2], [0.0; 2]);
        let mut agree = 0.0;
        for _ in 0..5 * 1440 {
            building.step(60.0);
            let occupied = building.population.counts()[0] > 0;
            let Reading::Room(reading) = building.read(0) else { unreachable!() };
            ppm[usize::from(occupied)] += f64::from(reading.co2_ppm);
            samples[usize::from(occupied)] += 1.0;
            agree += f64::from(u8::from((reading.illuminance_lux > 365) == occupied));
        }
        // UCI Occupancy Detection: 904 to 1038 ppm against 490 to 713, light tells in 98 to 99 %.
        let [empty, occupied] = [ppm[0] / samples[0], ppm[1] / samples[1]];
        assert!((700.0..1040.0).contains(&occupied), "{occupied}");
        assert!((410.0..713.0).contains(&empty), "{empty}");
        assert!(agree / (samples[0] + samples[1]) > 0.93, "{}", agree / (samples[0] + samples[1]));
    }
}
