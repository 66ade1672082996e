//! Vehicles on the network: car following, signals, and who may enter a link next.
//!
//! Each link is one lane whose vehicles are kept in order, so that the only thing one can hit is the vehicle ahead: on the lane, on the
//! lane that one is about to enter, or one whose tail still stands in the lane it left. Approaches that lead into the same link take turns: at
//! any time the entrance of a link belongs to one approach, and it stays so until the last vehicle from there has its tail in.

use std::collections::VecDeque;

use rand::Rng as _;

use super::idm::Idm;
use super::road::Network;
use crate::chance::Rng;

/// Longest step of the integration, s. The ballistic update stays stable for IDM up to about half a second.
const MAX_STEP_S: f64 = 0.25;
/// From here on a vehicle claims the entrance of its next link, m before the stop line.
const CLAIM_M: f64 = 60.0;
/// A vehicle that would need more than this to halt at the stop line drives on, m/s².
const COMMITTED_BRAKING: f64 = 2.0;
/// How far before its stop a bus may come to rest, m, beyond the standstill gap.
const STOP_TOLERANCE_M: f64 = 1.5;
/// Share of drivers who go straight on where the junction has other ways.
const STRAIGHT_SHARE: f64 = 0.6;

/// A vehicle and where it is.
#[derive(Debug, Clone)]
pub struct Vehicle {
    /// The driver.
    pub idm: Idm,
    /// Bumper to bumper, m.
    pub length: f64,
    /// Whether it halts at bus stops.
    pub is_bus: bool,
    /// The link that its front is on.
    pub link: usize,
    /// Its front, m from the link's start.
    pub x: f64,
    /// Speed, m/s, never negative.
    pub speed: f64,
    /// Acceleration over the last step, m/s².
    pub acceleration: f64,
    /// Distance travelled, m.
    pub odometer: f64,
    /// Seconds that it still stands at a bus stop.
    pub dwell: f64,
    next: usize,
    /// Whether it drives on although the signal turns red: settled while the signal is green.
    committed: bool,
    stop_ahead: bool,
}

impl Vehicle {
    /// A vehicle at rest; [`World::new`] puts it on the road.
    pub fn new(idm: Idm, length: f64, is_bus: bool) -> Self {
        Self {
            idm,
            length,
            is_bus,
            link: 0,
            x: 0.0,
            speed: 0.0,
            acceleration: 0.0,
            odometer: 0.0,
            dwell: 0.0,
            next: 0,
            committed: false,
            stop_ahead: false,
        }
    }
}

/// Who may enter a link.
#[derive(Debug, Clone, Copy, Default)]
struct Entrance {
    /// The approach that it belongs to.
    holder: Option<usize>,
    /// Earliest arrival among the claims of this step, as (s, approach).
    best: Option<(f64, usize)>,
    /// The holder has a vehicle that can no longer halt.
    keep: bool,
}

/// The network with its traffic.
#[derive(Debug)]
pub struct World {
    network: Network,
    vehicles: Vec<Vehicle>,
    /// Per link its vehicles, the first one foremost.
    lanes: Vec<VecDeque<usize>>,
    entrances: Vec<Entrance>,
    /// Per link the vehicle that has left it but for its tail.
    tail_left: Vec<Option<usize>>,
    time: f64,
    rng: Rng,
}

impl World {
    /// Spreads the vehicles over the network at equal distances, at rest.
    ///
    /// # Panics
    /// If the vehicles do not fit: a caller makes the network large enough ([`Network::lane_metres`]).
    pub fn new(network: Network, vehicles: Vec<Vehicle>, mut rng: Rng) -> Self {
        let links = network.links.len();
        let mut world = Self {
            lanes: vec![VecDeque::new(); links],
            entrances: vec![Entrance::default(); links],
            tail_left: vec![None; links],
            time: 0.0,
            vehicles,
            rng: rng.clone(),
            network,
        };
        // The longest vehicle needs its length and a gap.
        let longest = world.vehicles.iter().map(|vehicle| vehicle.length).fold(0.0, f64::max);
        let mut spacing = world.network.lane_metres() / (world.vehicles.len().max(1) as f64);
        let places = |spacing: f64, network: &Network| -> Vec<(usize, f64)> {
            let on_link = |(link, road): (usize, &super::road::Link)| {
                let mut at = Vec::new();
                let mut x = road.length - 3.0;
                while x - longest > 0.0 {
                    at.push((link, x));
                    x -= spacing;
                }
                at
            };
            network.links.iter().enumerate().flat_map(on_link).collect()
        };
        let mut free = places(spacing, &world.network);
        while free.len() < world.vehicles.len() {
            spacing *= 0.95;
            assert!(spacing > longest + 1.0, "{} vehicles do not fit the network", world.vehicles.len());
            free = places(spacing, &world.network);
        }
        for index in 0..world.vehicles.len() {
            // Evenly through the list of places, so that no quarter of the town stays empty.
            let (link, x) = free[index * free.len() / world.vehicles.len()];
            let next = choose_next(&world.network, link, &mut rng);
            let vehicle = &mut world.vehicles[index];
            (vehicle.link, vehicle.x, vehicle.next) = (link, x, next);
            world.lanes[link].push_back(index);
        }
        world.rng = rng;
        world
    }

    /// The vehicles, in the order given to [`World::new`].
    pub fn vehicles(&self) -> &[Vehicle] {
        &self.vehicles
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Advances the traffic by `dt` seconds.
    pub fn step(&mut self, dt: f64) {
        let mut left = dt;
        while left > 0.0 {
            let h = left.min(MAX_STEP_S);
            self.settle_claims();
            self.accelerate();
            self.advance(h);
            self.time += h;
            left -= h;
        }
    }

    fn is_green(&self, link: usize) -> bool {
        self.network.links[link].signal.is_none_or(|signal| signal.is_green(self.time))
    }

    /// Settles who passes the signals, and which approach may enter each link.
    fn settle_claims(&mut self) {
        for link in 0..self.lanes.len() {
            let green = self.is_green(link);
            let length = self.network.links[link].length;
            for &index in &self.lanes[link] {
                let vehicle = &mut self.vehicles[index];
                let to_line = (length - vehicle.x).max(0.1);
                let braking = vehicle.speed * vehicle.speed / (2.0 * to_line);
                let cannot_halt = braking > COMMITTED_BRAKING;
                vehicle.committed = if green { cannot_halt } else { vehicle.committed && braking > 1.0 };
                if to_line > CLAIM_M || !(green || vehicle.committed) {
                    continue;
                }
                let entrance = &mut self.entrances[vehicle.next];
                let arrival = to_line / (vehicle.speed + 1.0);
                if entrance.best.is_none_or(|(earliest, _)| arrival < earliest) {
                    entrance.best = Some((arrival, link));
                }
                entrance.keep |= cannot_halt && entrance.holder == Some(link);
            }
        }
        for link in 0..self.entrances.len() {
            let tail_outside = self.lanes[link].back().is_some_and(|&last| {
                let vehicle = &self.vehicles[last];
                vehicle.x < vehicle.length
            });
            let entrance = &mut self.entrances[link];
            if !entrance.keep && !tail_outside {
                entrance.holder = entrance.best.map(|(_, approach)| approach);
            }
            (entrance.best, entrance.keep) = (None, false);
        }
    }

    fn accelerate(&mut self) {
        for link in 0..self.lanes.len() {
            let green = self.is_green(link);
            let mut ahead: Option<usize> = None;
            for &index in &self.lanes[link] {
                let mut acceleration = self.behind_road_ahead(link, index, ahead.is_none(), green);
                if let Some(leader) = ahead {
                    let leader = &self.vehicles[leader];
                    let vehicle = &self.vehicles[index];
                    let gap = leader.x - leader.length - vehicle.x;
                    acceleration =
                        acceleration.min(vehicle.idm.acceleration(vehicle.speed, gap, leader.speed));
                }
                self.vehicles[index].acceleration = acceleration;
                ahead = Some(index);
            }
        }
    }

    /// The acceleration that signal, junction, bus stop and the vehicles beyond the stop line allow.
    fn behind_road_ahead(&self, link: usize, index: usize, is_first: bool, green: bool) -> f64 {
        let vehicle = &self.vehicles[index];
        let road = &self.network.links[link];
        let to_line = road.length - vehicle.x;
        let follow = |gap, speed| vehicle.idm.acceleration(vehicle.speed, gap, speed);
        let mut acceleration = follow(f64::INFINITY, 0.0);

        let may_pass = (green || vehicle.committed) && self.entrances[vehicle.next].holder == Some(link);
        if !may_pass && (to_line <= CLAIM_M || !green) {
            acceleration = acceleration.min(follow(to_line, 0.0));
        }
        if is_first {
            if may_pass && let Some(&last) = self.lanes[vehicle.next].back() {
                let leader = &self.vehicles[last];
                acceleration = acceleration.min(follow(to_line + leader.x - leader.length, leader.speed));
            }
            // Whoever turned off still blocks the lane with its tail.
            if let Some(leader) = self.tail_left[link].map(|leader| &self.vehicles[leader])
                && leader.link != link
            {
                acceleration = acceleration.min(follow(to_line + leader.x - leader.length, leader.speed));
            }
        }
        if vehicle.dwell > 0.0 {
            acceleration = acceleration.min(follow(vehicle.idm.standstill_gap, 0.0));
        } else if vehicle.stop_ahead
            && let Some(stop) = road.bus_stop
        {
            acceleration = acceleration.min(follow(stop + vehicle.idm.standstill_gap - vehicle.x, 0.0));
        }
        acceleration
    }

    /// Ballistic update: constant acceleration over the step, no driving backwards.
    fn advance(&mut self, h: f64) {
        for vehicle in &mut self.vehicles {
            let speed = vehicle.speed + vehicle.acceleration * h;
            let travelled = if speed < 0.0 {
                // It halts within the step.
                -vehicle.speed * vehicle.speed / (2.0 * vehicle.acceleration)
            } else {
                (vehicle.speed + speed) / 2.0 * h
            };
            vehicle.speed = speed.max(0.0);
            vehicle.x += travelled;
            vehicle.odometer += travelled;
            if vehicle.dwell > 0.0 {
                vehicle.dwell -= h;
            } else if vehicle.stop_ahead
                && vehicle.speed < 0.3
                && let Some(stop) = self.network.links[vehicle.link].bus_stop
                && vehicle.x > stop - STOP_TOLERANCE_M
            {
                vehicle.stop_ahead = false;
                vehicle.dwell = self.rng.random_range(10.0..30.0);
            }
        }
        for link in 0..self.lanes.len() {
            // Links are longer than vehicles, so this is seen before the vehicle is at the next junction.
            self.tail_left[link] =
                self.tail_left[link].filter(|&left| self.vehicles[left].x < self.vehicles[left].length);
            while let Some(&first) = self.lanes[link].front()
                && self.vehicles[first].link == link
                && self.vehicles[first].x >= self.network.links[link].length
            {
                self.lanes[link].pop_front();
                self.tail_left[link] = Some(first);
                self.enter_next(first);
            }
        }
    }

    fn enter_next(&mut self, index: usize) {
        let vehicle = &mut self.vehicles[index];
        vehicle.x -= self.network.links[vehicle.link].length;
        vehicle.link = vehicle.next;
        vehicle.committed = false;
        vehicle.stop_ahead = vehicle.is_bus && self.network.links[vehicle.link].bus_stop.is_some();
        vehicle.next = choose_next(&self.network, vehicle.link, &mut self.rng);
        self.lanes[vehicle.link].push_back(index);
    }

    /// The smallest distance in m between a vehicle and the tail ahead of it on its lane; negative is a collision.
    #[cfg(test)]
    fn smallest_gap(&self) -> f64 {
        let mut smallest = f64::INFINITY;
        for (link, lane) in self.lanes.iter().enumerate() {
            for (&leader, &follower) in lane.iter().zip(lane.iter().skip(1)) {
                let leader = &self.vehicles[leader];
                smallest = smallest.min(leader.x - leader.length - self.vehicles[follower].x);
            }
            if let (Some(left), Some(&first)) = (self.tail_left[link], lane.front()) {
                let leader = &self.vehicles[left];
                if leader.link != link {
                    let to_line = self.network.links[link].length - self.vehicles[first].x;
                    smallest = smallest.min(to_line + leader.x - leader.length);
                }
            }
        }
        smallest
    }
}

fn choose_next(network: &Network, link: usize, rng: &mut Rng) -> usize {
    let next = &network.links[link].next;
    let straight = next.len() == 1 || rng.random_bool(STRAIGHT_SHARE);
    if straight { next[0] } else { next[rng.random_range(1..next.len())] }
}

#[cfg(test)]
mod tests {
    use super::super::idm::MAX_BRAKING;
    use super::*;
    use crate::chance;

    fn town(side: usize, vehicles: usize, seed: u64) -> World {
        let mut rng = chance::rng(seed, 0);
        let network = Network::grid(side, &mut rng);
        let vehicle = |index: usize| match index % 10 {
            0 => Vehicle::new(Idm::TOWN, 12.0, true),
            _ => Vehicle::new(Idm::TOWN, 5.0, false),
        };
        World::new(network, (0..vehicles).map(vehicle).collect(), rng)
    }

    #[test]
    fn nobody_ever_collides_and_acceleration_stays_in_bounds() {
        // From free flow to a town that is close to gridlock, at uneven step lengths.
        for (seed, vehicles) in [(1, 10), (2, 100), (3, 200), (4, 300)] {
            let mut world = town(4, vehicles, seed);
            for step in 0..9000 {
                world.step([0.2, 0.25, 0.07, 0.5][step % 4]);
                assert!(world.smallest_gap() > 0.0, "seed {seed}, step {step}: {}", world.smallest_gap());
                for vehicle in world.vehicles() {
                    assert!((-MAX_BRAKING..=vehicle.idm.acceleration).contains(&vehicle.acceleration));
                }
            }
            assert_eq!(world.lanes.iter().map(VecDeque::len).sum::<usize>(), vehicles);
        }
    }

    #[test]
    fn a_town_moves_as_towns_do() {
        let mut world = town(6, 300, 5);
        let (mut speeds, mut standing, mut samples) = (0.0, 0, 0);
        for second in 0..1500 {
            world.step(1.0);
            if second >= 300 {
                speeds += world.vehicles().iter().map(|vehicle| vehicle.speed).sum::<f64>();
                standing += world.vehicles().iter().filter(|vehicle| vehicle.speed < 0.1).count();
                samples += world.vehicles().len();
            }
        }
        let (mean, standing) = (speeds / samples as f64, standing as f64 / samples as f64);
        // SUMO's reference run with signals: 7.06 m/s and 35 % standing; shorter blocks here make it slower.
        assert!((3.5..8.5).contains(&mean), "mean speed {mean}");
        assert!((0.15..0.55).contains(&standing), "standing share {standing}");
    }

    #[test]
    fn buses_halt_at_their_stops() {
        let mut world = town(4, 20, 6);
        let mut dwelled = 0;
        for _ in 0..3000 {
            world.step(0.25);
            dwelled += world.vehicles().iter().filter(|vehicle| vehicle.dwell > 0.0).count();
        }
        assert!(dwelled > 0);
        assert!(world.vehicles().iter().all(|vehicle| vehicle.odometer > 0.0));
    }

    #[test]
    fn a_ring_road_reproduces_the_fundamental_diagram_within_five_percent() {
        const LENGTH_M: f64 = 4000.0;
        let flow = |vehicles: usize| {
            let idm = Idm::MOTORWAY;
            let cars = (0..vehicles).map(|_| Vehicle::new(idm, 5.0, false)).collect();
            let mut world = World::new(Network::ring(LENGTH_M), cars, chance::rng(0, 0));
            world.step(1200.0);
            let before: f64 = world.vehicles().iter().map(|vehicle| vehicle.odometer).sum();
            world.step(600.0);
            let after: f64 = world.vehicles().iter().map(|vehicle| vehicle.odometer).sum();
            (after - before) / LENGTH_M / 600.0 * 3600.0
        };
        // The speed at which the equilibrium gap is what the density leaves.
        let expected = |vehicles: usize| {
            let gap = LENGTH_M / vehicles as f64 - 5.0;
            let (mut low, mut high) = (0.0, 30.0);
            for _ in 0..60 {
                let middle = f64::midpoint(low, high);
                if Idm::MOTORWAY.equilibrium_gap(middle) < gap { low = middle } else { high = middle }
            }
            3600.0 * low * vehicles as f64 / LENGTH_M
        };
        let densities = [20, 60, 100, 116, 160, 240, 360, 480];
        let flows: Vec<f64> = densities.iter().map(|&vehicles| flow(vehicles)).collect();
        for (&vehicles, &flow) in densities.iter().zip(&flows) {
            let expected = expected(vehicles);
            assert!(
                (flow / expected - 1.0).abs() < 0.05,
                "{vehicles} vehicles: {flow} instead of {expected}"
            );
        }
        // Unimodal: up to the capacity, then down.
        let top = flows.iter().position(|&flow| flow == flows.iter().copied().fold(0.0, f64::max)).unwrap();
        assert!(flows[..=top].is_sorted() && flows[top..].iter().rev().is_sorted());
    }
}
