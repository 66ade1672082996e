//! The road network: one-lane links between junctions, and the signals at them.

use rand::Rng as _;

use crate::chance::Rng;

/// Shortest link of a grid, m. A vehicle at town speed stops comfortably within 60 m, so whoever enters a link can still stop at its end.
const MIN_LINK_M: f64 = 90.0;
const MAX_LINK_M: f64 = 260.0;
/// Signal cycle, s: green for one axis, yellow and all-red, then the other axis.
const CYCLE_S: f64 = 64.0;
const GREEN_S: f64 = 27.0;

/// A directed lane between the stop lines of two junctions.
#[derive(Debug, Clone)]
pub struct Link {
    /// Where it starts, m east and north of the origin.
    pub start: [f64; 2],
    /// Where it ends.
    pub end: [f64; 2],
    /// Length, m.
    pub length: f64,
    /// The links that one may take at its end, straight on first.
    pub next: Vec<usize>,
    /// The signal at its end.
    pub signal: Option<Signal>,
    /// Where buses halt, m from the start.
    pub bus_stop: Option<f64>,
}

impl Link {
    /// The point at `x` metres from the start, half a lane right of the middle of the road, m east and north.
    pub fn point(&self, x: f64) -> [f64; 2] {
        let [east, north] = self.direction();
        [self.start[0] + east * x + north * 2.0, self.start[1] + north * x - east * 2.0]
    }

    /// Unit vector along the link, east and north.
    pub fn direction(&self) -> [f64; 2] {
        let [dx, dy] = [self.end[0] - self.start[0], self.end[1] - self.start[1]];
        let norm = dx.hypot(dy).max(1e-9);
        [dx / norm, dy / norm]
    }

    /// Degrees clockwise from north, `[0, 360)`.
    pub fn heading(&self) -> f64 {
        let [east, north] = self.direction();
        east.atan2(north).to_degrees().rem_euclid(360.0)
    }
}

/// A fixed-cycle signal as one approach sees it.
#[derive(Debug, Clone, Copy)]
pub struct Signal {
    /// Seconds by which its green is later than the network's cycle.
    pub offset: f64,
}

impl Signal {
    /// Whether one may drive at `time` s.
    pub fn is_green(self, time: f64) -> bool {
        (time - self.offset).rem_euclid(CYCLE_S) < GREEN_S
    }
}

/// All links. Links are named by their index.
#[derive(Debug, Clone)]
pub struct Network {
    /// The links.
    pub links: Vec<Link>,
}

impl Network {
    /// A town grid of `side` x `side` signalled junctions (at least 2), with streets at uneven distances.
    pub fn grid(side: usize, rng: &mut Rng) -> Self {
        let side = side.max(2);
        let mut streets = || {
            let mut at = 0.0;
            (0..side)
                .map(|_| {
                    let here = at;
                    at += rng.random_range(MIN_LINK_M..MAX_LINK_M);
                    here
                })
                .collect::<Vec<f64>>()
        };
        let (east, north) = (streets(), streets());
        let offsets: Vec<f64> = (0..side * side).map(|_| rng.random_range(0.0..CYCLE_S)).collect();

        let mut links = Vec::new();
        let mut ends = Vec::new();
        for row in 0..side {
            for column in 0..side {
                let neighbours = [
                    (row + 1 < side).then(|| (row + 1, column)),
                    (column + 1 < side).then(|| (row, column + 1)),
                    row.checked_sub(1).map(|row| (row, column)),
                    column.checked_sub(1).map(|column| (row, column)),
                ];
                for (axis, (to_row, to_column)) in
                    neighbours.into_iter().enumerate().filter_map(|(axis, to)| Some((axis, to?)))
                {
                    let (start, end) = ([east[column], north[row]], [east[to_column], north[to_row]]);
                    let length = (end[0] - start[0]).hypot(end[1] - start[1]);
                    // North and south share one half of the cycle, east and west the other.
                    let half = if axis % 2 == 0 { 0.0 } else { CYCLE_S / 2.0 };
                    let offset = offsets[to_row * side + to_column] + half;
                    let bus_stop = (links.len() % 3 == 0).then_some(length * 0.6);
                    links.push(Link {
                        start,
                        end,
                        length,
                        next: Vec::new(),
                        signal: Some(Signal { offset }),
                        bus_stop,
                    });
                    ends.push(((row, column), (to_row, to_column)));
                }
            }
        }
        for (index, &(from, at)) in ends.iter().enumerate() {
            let straight = links[index].direction();
            let mut next: Vec<usize> =
                (0..ends.len()).filter(|&other| ends[other].0 == at && ends[other].1 != from).collect();
            // Straight on first: the largest cosine.
            let cosine = |other: usize| {
                let [east, north] = links[other].direction();
                east * straight[0] + north * straight[1]
            };
            next.sort_by(|&a, &b| cosine(b).total_cmp(&cosine(a)).then(a.cmp(&b)));
            links[index].next = next;
        }
        Self { links }
    }

    /// A single lane that closes on itself, without signals, to hold the model against the theory of one lane.
    #[cfg(test)]
    pub(super) fn ring(length: f64) -> Self {
        let link =
            Link { start: [0.0; 2], end: [length, 0.0], length, next: vec![0], signal: None, bus_stop: None };
        Self { links: vec![link] }
    }

    /// Sum of the lengths of all lanes, m.
    pub fn lane_metres(&self) -> f64 {
        self.links.iter().map(|link| link.length).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance;

    #[test]
    fn every_link_of_a_grid_leads_on_and_nobody_turns_back() {
        for side in [2, 3, 7] {
            let network = Network::grid(side, &mut chance::rng(1, 0));
            assert_eq!(network.links.len(), 4 * side * (side - 1));
            for link in &network.links {
                assert!(!link.next.is_empty() && link.length >= MIN_LINK_M);
                for &next in &link.next {
                    assert_eq!(network.links[next].start, link.end);
                    assert_ne!(network.links[next].end, link.start);
                }
            }
        }
    }

    #[test]
    fn crossing_approaches_are_never_green_together() {
        let network = Network::grid(3, &mut chance::rng(1, 0));
        for a in &network.links {
            for b in network.links.iter().filter(|b| b.end == a.end) {
                let crossing = a.direction()[0].abs() > 0.5 && b.direction()[1].abs() > 0.5;
                let both = |second: i32| {
                    let time = f64::from(second);
                    a.signal.unwrap().is_green(time) && b.signal.unwrap().is_green(time)
                };
                assert!(!(crossing && (0..64).any(both)));
            }
        }
    }
}
