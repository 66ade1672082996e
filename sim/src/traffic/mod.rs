//! `wayside-sim traffic`: cars and buses on a town's streets, as their GPS receivers see them.

pub mod gps;
pub mod idm;
pub mod road;
pub mod world;

use std::io::Write as _;
use std::process::ExitCode;

use rand::Rng as _;

use self::gps::{Fix, Receiver, SLOW_ERROR_M};
use self::idm::Idm;
use self::road::Network;
use self::world::{Vehicle, World};
use crate::chance::{self, Rng};
use crate::load::{self, Device, LoadArgs, Model, Reading};

/// Every tenth vehicle is a bus.
const BUS_EVERY: usize = 10;
/// Driven before the first reading, s: queues have formed at the signals.
const WARM_UP_S: f64 = 90.0;

/// Arguments of `traffic`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    load: LoadArgs,
    /// South-west corner of the town, degrees
    #[arg(long, value_name = "LAT,LON", default_value = "60.1699,24.9384", value_parser = origin, allow_hyphen_values = true)]
    origin: [f64; 2],
    /// Vehicles per kilometre of lane: 5 flows, 15 queues at signals, 40 is a jam
    #[arg(long, default_value_t = 12.0)]
    density: f64,
}

/// Runs the command; see [`load::run`].
///
/// # Errors
/// As [`load::run`], and for a density outside of 0.1 to 60.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::ensure!((0.1..=60.0).contains(&args.density), "--density must be from 0.1 to 60");
    let town = Town::new(args.load.devices as usize, args.load.seed, args.density, args.origin);
    load::run(args.load, town).await
}

/// Parses a latitude and a longitude that leave room for a town.
fn origin(text: &str) -> Result<[f64; 2], String> {
    let parse = || {
        let (latitude, longitude) = text.split_once(',')?;
        let place = [latitude.trim().parse::<f64>().ok()?, longitude.trim().parse::<f64>().ok()?];
        (place[0].abs() <= 80.0 && place[1].abs() <= 179.0).then_some(place)
    };
    parse().ok_or_else(|| format!("{text:?} is not LAT,LON within 80 and 179 degrees"))
}

/// What a vehicle reports.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VehicleReading {
    /// A bus, or a car.
    pub is_bus: bool,
    /// Where its receiver thinks it is.
    pub fix: Fix,
    /// Distance driven, m.
    pub odometer_m: u32,
}

impl VehicleReading {
    /// Standard deviation of the position that receivers state, cm.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small constant")]
    pub const ACCURACY_CM: u16 = (SLOW_ERROR_M * 100.0) as u16;

    /// See [`Reading::write_json`].
    pub fn write_json(&self, device: &str, seq: u64, time: &str, out: &mut Vec<u8>) {
        let kind = if self.is_bus { "bus" } else { "car" };
        let Fix { latitude_e7, longitude_e7, speed_cm_s, heading_cdeg } = self.fix;
        let (latitude, longitude) = (f64::from(latitude_e7) / 1e7, f64::from(longitude_e7) / 1e7);
        let speed = f64::from(speed_cm_s) / 100.0;
        // Writing to a Vec cannot fail.
        let _ = write!(
            out,
            r#"{{"device":"{device}","seq":{seq},"time":"{time}","kind":"{kind}","latitude":{latitude:.7},"longitude":{longitude:.7},"speed_mps":{speed:.2},"heading_deg":"#
        );
        let _ = match heading_cdeg {
            Some(heading) => write!(out, "{}.{:02}", heading / 100, heading % 100),
            None => write!(out, "null"),
        };
        let _ = write!(out, r#","accuracy_m":{SLOW_ERROR_M:.1},"odometer_m":{}}}"#, self.odometer_m);
    }
}

/// The town and the receivers in its vehicles. One device a vehicle.
#[derive(Debug)]
pub struct Town {
    world: World,
    receivers: Vec<Receiver>,
    devices: Vec<Device>,
    origin: [f64; 2],
    since_fix: f64,
    rng: Rng,
}

impl Town {
    /// A grid that is large enough for the vehicles at `density` per km of lane, with traffic that has settled.
    pub fn new(vehicles: usize, seed: u64, density: f64, origin: [f64; 2]) -> Self {
        let lane_metres = vehicles as f64 / density * 1000.0;
        let network = (2..)
            .map(|side| Network::grid(side, &mut chance::rng(seed, 0)))
            .find(|network| network.lane_metres() >= lane_metres)
            .expect("grids grow without end");
        let mut rng = chance::rng(seed, 1);
        let is_bus = |index: usize| index % BUS_EVERY == BUS_EVERY - 1;
        let vehicle = |index| {
            let idm = Idm {
                desired_speed: Idm::TOWN.desired_speed * rng.random_range(0.85..1.1),
                headway: rng.random_range(1.2..1.8),
                ..Idm::TOWN
            };
            Vehicle::new(idm, if is_bus(index) { 12.0 } else { 5.0 }, is_bus(index))
        };
        let fleet = (0..vehicles).map(vehicle).collect();
        let mut world = World::new(network, fleet, chance::rng(seed, 2));
        world.step(WARM_UP_S);
        let receivers = (0..vehicles).map(|_| Receiver::new(&mut rng)).collect();
        let device = |index| {
            let id = format!("{}-{:05}", if is_bus(index) { "bus" } else { "car" }, index + 1);
            Device { mqtt_topic: format!("traffic/{id}/position"), id }
        };
        let devices = (0..vehicles).map(device).collect();
        Self { world, receivers, devices, origin, since_fix: 0.0, rng }
    }
}

impl Model for Town {
    const STREAM: &'static str = "vehicle-positions";

    fn devices(&self) -> &[Device] {
        &self.devices
    }

    fn step(&mut self, dt: f64) {
        self.world.step(dt);
        self.since_fix = dt;
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    fn read(&mut self, device: usize) -> Reading {
        let vehicle = &self.world.vehicles()[device];
        let link = &self.world.network().links[vehicle.link];
        let (position, heading) = (link.point(vehicle.x), link.heading());
        let receiver = &mut self.receivers[device];
        let fix = receiver.fix(&mut self.rng, self.since_fix, self.origin, position, vehicle.speed, heading);
        Reading::Vehicle(VehicleReading { is_bus: vehicle.is_bus, fix, odometer_m: vehicle.odometer as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_json_with_null_for_an_unknown_heading() {
        let fix = Fix { latitude_e7: -335_000_001, longitude_e7: 5, speed_cm_s: 7, heading_cdeg: None };
        let mut reading = VehicleReading { is_bus: true, fix, odometer_m: 42 };
        let json = |reading: VehicleReading| -> serde_json::Value {
            let mut out = Vec::new();
            reading.write_json("bus-00010", 3, "2026-01-01T00:00:00.000000Z", &mut out);
            serde_json::from_slice(&out).unwrap()
        };
        let value = json(reading);
        assert_eq!((&value["device"], &value["seq"]), (&"bus-00010".into(), &3.into()));
        assert_eq!((&value["latitude"], &value["longitude"]), (&(-33.500_000_1).into(), &0.000_000_5.into()));
        assert!(value["heading_deg"].is_null());
        reading.fix.heading_cdeg = Some(9_005);
        assert_eq!(json(reading)["heading_deg"], 90.05);
    }

    #[test]
    fn vehicles_move_as_fast_as_they_say() {
        let mut town = Town::new(50, 3, 8.0, [60.0, 24.0]);
        let position = |town: &mut Town| {
            let Reading::Vehicle(reading) = town.read(7) else { unreachable!() };
            reading
        };
        let mut before = position(&mut town);
        let (mut driven, mut said) = (0.0, 0.0);
        for _ in 0..300 {
            town.step(1.0);
            let now = position(&mut town);
            let north = f64::from(now.fix.latitude_e7 - before.fix.latitude_e7) * 0.011_119_5;
            let east = f64::from(now.fix.longitude_e7 - before.fix.longitude_e7) * 0.011_119_5 * 0.5;
            driven += north.hypot(east);
            said += f64::from(now.fix.speed_cm_s) / 100.0;
            before = now;
        }
        // The receiver's noise adds to the distance; corners are cut by half a lane.
        assert!(said > 300.0 && (0.9..1.3).contains(&(driven / said)), "{driven} m against {said} m");
    }
}
