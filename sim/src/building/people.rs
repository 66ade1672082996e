//! Who is where: people with a day's plan, meetings, breaks and walks between rooms.
//!
//! Nobody appears or vanishes: at every step the rooms, the corridor and the outside add up to the population.

use rand::Rng as _;
use rand::seq::IndexedRandom as _;

use crate::chance::{self, Rng};

const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
const DAY: f64 = 86_400.0;

/// Longest step, s: shorter than any walk.
pub const MAX_STEP_S: f64 = 10.0;
/// Share of workers who come on a workday, and on a weekend.
const PRESENT: [f64; 2] = [0.88, 0.01];
/// Meetings are settled this long before they begin: some come early.
const MEETING_NOTICE_S: f64 = 5.0 * MINUTE;
/// Share of meeting rooms taken at each half hour.
const MEETING_SHARE: f64 = 0.35;
/// Share of the invited who do not come.
const NO_SHOW: f64 = 0.15;
/// Mean time at the desk between breaks, s.
const WORK_MEAN_S: f64 = 100.0 * MINUTE;
/// How often a given visitor comes during office hours, 1/s: about every second day.
const VISIT_RATE: f64 = 1.0 / (14.0 * HOUR);

/// Where a person is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Not in the building.
    Outside,
    /// On the way between rooms.
    Corridor,
    /// In the room with this index.
    Room(usize),
}

/// What a room is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoomKind {
    /// Two desks.
    Office,
    /// Six desks.
    OpenPlan,
    /// No desks, meetings at :00 and :30.
    Meeting,
    /// No desks, breaks and lunch.
    Kitchen,
}

impl RoomKind {
    /// The mix of a floor, by room index.
    pub fn of_index(index: usize) -> Self {
        match index % 10 {
            0..=5 => Self::Office,
            6 => Self::OpenPlan,
            7 | 8 => Self::Meeting,
            _ => Self::Kitchen,
        }
    }

    /// Desks in the room.
    pub fn desks(self) -> usize {
        match self {
            Self::Office => 2,
            Self::OpenPlan => 6,
            Self::Meeting | Self::Kitchen => 0,
        }
    }
}

/// Someone went through a door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crossing {
    /// The room's index.
    pub room: usize,
    /// Into the room, or out of it.
    pub inwards: bool,
}

#[derive(Debug, Clone)]
struct Person {
    desk: usize,
    visitor: bool,
    place: Place,
    /// Where the walk leads, and when it ends.
    walk: Option<(Place, f64)>,
    arrive: f64,
    leave: f64,
    lunch: (f64, f64, Place),
    /// From, to, room; in the order of settling.
    meetings: Vec<(f64, f64, usize)>,
    away: (f64, Place),
}

impl Person {
    /// Where the plan has the person at `now`.
    fn wanted(&self, now: f64) -> Place {
        if now < self.arrive || now >= self.leave {
            Place::Outside
        } else if let Some(&(_, _, room)) =
            self.meetings.iter().find(|(from, to, _)| (*from..*to).contains(&now))
        {
            Place::Room(room)
        } else if (self.lunch.0..self.lunch.1).contains(&now) {
            self.lunch.2
        } else if now < self.away.0 {
            self.away.1
        } else {
            Place::Room(self.desk)
        }
    }

    fn is_free(&self, from: f64, to: f64) -> bool {
        !self.visitor
            && self.arrive < from
            && self.leave > to
            && (self.lunch.1 <= from || self.lunch.0 >= to)
            && self.meetings.iter().all(|meeting| meeting.1 <= from || meeting.0 >= to)
    }
}

/// The building's rooms and all the people who may ever be in them.
#[derive(Debug)]
pub struct Population {
    kinds: Vec<RoomKind>,
    kitchens: Vec<usize>,
    /// Per meeting room until when it is taken.
    taken: Vec<(usize, f64)>,
    people: Vec<Person>,
    counts: Vec<u32>,
    crossings: Vec<Crossing>,
    /// Seconds since a Monday's midnight.
    now: f64,
    rng: Rng,
}

impl Population {
    /// An empty building with `rooms` rooms at midnight of `weekday` (0 is Monday), and everyone at home.
    pub fn new(rooms: usize, weekday: u8, rng: Rng) -> Self {
        let kinds: Vec<RoomKind> = (0..rooms).map(RoomKind::of_index).collect();
        let of_kind = |kind| (0..rooms).filter(|&room| kinds[room] == kind).collect::<Vec<usize>>();
        let person = |desk, visitor| Person {
            desk,
            visitor,
            place: Place::Outside,
            walk: None,
            arrive: f64::INFINITY,
            leave: f64::INFINITY,
            lunch: (0.0, 0.0, Place::Outside),
            meetings: Vec::new(),
            away: (0.0, Place::Corridor),
        };
        let mut people: Vec<Person> = Vec::new();
        for (room, kind) in kinds.iter().enumerate() {
            people.extend((0..kind.desks()).map(|_| person(room, false)));
        }
        let visitors = people.len().div_ceil(8);
        people.extend((0..visitors).map(|_| person(0, true)));
        let mut population = Self {
            kitchens: of_kind(RoomKind::Kitchen),
            taken: of_kind(RoomKind::Meeting).into_iter().map(|room| (room, 0.0)).collect(),
            counts: vec![0; rooms],
            kinds,
            people,
            crossings: Vec::new(),
            now: f64::from(weekday) * DAY,
            rng,
        };
        population.plan_day();
        population
    }

    /// Seconds since a Monday's midnight.
    pub fn now(&self) -> f64 {
        self.now
    }

    /// People in each room.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// What the rooms are.
    pub fn kinds(&self) -> &[RoomKind] {
        &self.kinds
    }

    /// Advances by `dt` seconds, [`MAX_STEP_S`] at most, and returns who went through which door.
    pub fn step(&mut self, dt: f64) -> &[Crossing] {
        debug_assert!(dt <= MAX_STEP_S);
        let before = self.now;
        self.now += dt;
        self.crossings.clear();
        if passed(before, self.now, DAY, 0.0) {
            self.plan_day();
        }
        if passed(before, self.now, 30.0 * MINUTE, -MEETING_NOTICE_S) {
            self.settle_meetings();
        }
        for index in 0..self.people.len() {
            self.decide(index, dt);
        }
        &self.crossings
    }

    fn is_workday(&self) -> bool {
        (self.now / DAY).rem_euclid(7.0) < 5.0
    }

    fn plan_day(&mut self) {
        let midnight = (self.now / DAY).floor() * DAY;
        let present = PRESENT[usize::from(!self.is_workday())];
        let rng = &mut self.rng;
        for person in self.people.iter_mut().filter(|person| !person.visitor) {
            person.meetings.clear();
            person.away = (0.0, Place::Corridor);
            if !rng.random_bool(present) {
                (person.arrive, person.leave) = (f64::INFINITY, f64::INFINITY);
                continue;
            }
            person.arrive = midnight + (8.4 + 0.5 * chance::normal(rng)).clamp(5.0, 12.0) * HOUR;
            person.leave = (midnight + (17.3 + 0.6 * chance::normal(rng)).clamp(13.0, 22.0) * HOUR)
                .max(person.arrive + HOUR);
            let lunch = midnight + (12.7 + 0.25 * chance::normal(rng)) * HOUR;
            let place = match self.kitchens.choose(rng) {
                Some(&kitchen) if rng.random_bool(0.25) => Place::Room(kitchen),
                _ => Place::Outside,
            };
            person.lunch = (lunch, lunch + rng.random_range(30.0..60.0) * MINUTE, place);
        }
    }

    /// Fills meeting rooms for the next half hour mark.
    fn settle_meetings(&mut self) {
        let start = self.now + MEETING_NOTICE_S;
        let hour = start.rem_euclid(DAY) / HOUR;
        if !self.is_workday() || !(9.0..17.0).contains(&hour) || (12.0..13.4).contains(&hour) {
            return;
        }
        for at in 0..self.taken.len() {
            let (room, until) = self.taken[at];
            if until > start || !self.rng.random_bool(MEETING_SHARE) {
                continue;
            }
            let end = start + if self.rng.random_bool(0.5) { 30.0 } else { 60.0 } * MINUTE;
            self.taken[at].1 = end;
            let free: Vec<usize> =
                (0..self.people.len()).filter(|&index| self.people[index].is_free(start, end)).collect();
            let size = self.rng.random_range(2..=8);
            let invited: Vec<usize> = free.choose_multiple(&mut self.rng, size).copied().collect();
            for index in invited {
                if !self.rng.random_bool(NO_SHOW) {
                    let from = start + self.rng.random_range(-3.0..5.0) * MINUTE;
                    let to = end + self.rng.random_range(-4.0..4.0) * MINUTE;
                    self.people[index].meetings.push((from, to, room));
                }
            }
        }
    }

    fn decide(&mut self, index: usize, dt: f64) {
        let now = self.now;
        let hour = now.rem_euclid(DAY) / HOUR;
        let open = self.is_workday() && (9.0..16.0).contains(&hour);
        let person = &mut self.people[index];
        if person.visitor
            && person.place == Place::Outside
            && now >= person.leave.min(person.arrive)
            && open
            && chance::happens(&mut self.rng, VISIT_RATE, dt)
        {
            // A visitor's host is at a desk; rooms without one cannot receive.
            let room = self.rng.random_range(0..self.kinds.len());
            if self.kinds[room].desks() > 0 {
                person.desk = room;
                (person.arrive, person.leave) = (now, now + self.rng.random_range(20.0..90.0) * MINUTE);
            }
        }
        if let Some((to, until)) = person.walk {
            if now < until {
                return;
            }
            person.walk = None;
            person.place = to;
            if let Place::Room(room) = to {
                self.counts[room] += 1;
                self.crossings.push(Crossing { room, inwards: true });
            }
        }
        if person.place == Place::Room(person.desk)
            && !person.visitor
            && chance::happens(&mut self.rng, 1.0 / WORK_MEAN_S, dt)
        {
            let length = chance::exponential(&mut self.rng, 6.0 * MINUTE).clamp(2.0 * MINUTE, 15.0 * MINUTE);
            let place = match self.kitchens.choose(&mut self.rng) {
                Some(&kitchen) if self.rng.random_bool(0.5) => Place::Room(kitchen),
                _ => Place::Corridor,
            };
            person.away = (now + length, place);
        }
        let wanted = person.wanted(now);
        if wanted == person.place {
            return;
        }
        if let Place::Room(room) = person.place {
            self.counts[room] -= 1;
            self.crossings.push(Crossing { room, inwards: false });
        }
        if wanted != Place::Corridor {
            person.walk = Some((wanted, now + self.rng.random_range(15.0..60.0)));
        }
        person.place = Place::Corridor;
    }

    /// Population, and how many of it are outside, in the corridor, and in rooms by their own word.
    #[cfg(test)]
    fn census(&self) -> [usize; 4] {
        let at =
            |wanted: fn(&Place) -> bool| self.people.iter().filter(|person| wanted(&person.place)).count();
        [
            self.people.len(),
            at(|place| *place == Place::Outside),
            at(|place| *place == Place::Corridor),
            at(|place| matches!(place, Place::Room(_))),
        ]
    }
}

/// Whether a mark of the raster `every` + `offset` lies in `(before, now]`.
pub fn passed(before: f64, now: f64, every: f64, offset: f64) -> bool {
    ((now - offset) / every).floor() > ((before - offset) / every).floor()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps through `days` days and shows the population to `look` every minute.
    fn live(days: u32, seed: u64, mut look: impl FnMut(&Population)) {
        let mut population = Population::new(30, 0, chance::rng(seed, 0));
        for step in 0..days * 8640 {
            population.step(10.0);
            if step % 6 == 0 {
                look(&population);
            }
        }
    }

    #[test]
    fn nobody_appears_or_vanishes() {
        live(7, 3, |population| {
            let [all, outside, corridor, rooms] = population.census();
            assert_eq!(outside + corridor + rooms, all);
            assert_eq!(population.counts().iter().sum::<u32>() as usize, rooms);
        });
    }

    #[test]
    fn the_building_dips_at_lunch_and_is_empty_at_night_and_on_weekends() {
        let mut hours = [[0.0; 24]; 2];
        live(28, 4, |population| {
            let hour = (population.now().rem_euclid(DAY) / HOUR) as usize;
            let inside: u32 = population.counts().iter().sum();
            hours[usize::from(!population.is_workday())][hour] += f64::from(inside);
        });
        let [work, weekend] = hours;
        let morning = f64::midpoint(work[10], work[11]);
        assert!(work[12].min(work[13]) < 0.75 * morning, "{work:?}");
        assert!(work[15] > 0.8 * morning);
        assert!(work[3] < 0.001 * morning && work[22] < 0.05 * morning, "{work:?}");
        // 20 workdays against 8 days.
        let per_day = |hours: [f64; 24], days: f64| hours.iter().sum::<f64>() / days;
        assert!(per_day(weekend, 8.0) < 0.05 * per_day(work, 20.0));
    }

    #[test]
    fn an_office_is_used_as_measured_offices_are() {
        let (mut occupied, mut minutes, mut changes) = (0, 0, 0);
        let mut was = false;
        live(28, 5, |population| {
            if population.is_workday() {
                let is = population.counts()[0] > 0;
                occupied += usize::from(is);
                changes += usize::from(is != was);
                minutes += 1;
                was = is;
            }
        });
        // UCI Occupancy Detection: 0.365 of a workday; 6 to 12 changes a day.
        let share = f64::from(u32::try_from(occupied).unwrap()) / f64::from(minutes);
        assert!((0.25..0.42).contains(&share), "{share}");
        let changes = changes as f64 / 20.0;
        assert!((5.0..13.0).contains(&changes), "{changes}");
    }

    #[test]
    fn meetings_gather_people_at_the_half_hours() {
        let mut largest = 0;
        let mut near_mark = [0u32; 2];
        live(5, 6, |population| {
            let count = population.counts()[7];
            largest = largest.max(count);
            let minute = (population.now() / MINUTE).rem_euclid(30.0);
            near_mark[usize::from((10.0..20.0).contains(&minute))] += count;
        });
        assert!((3..=8).contains(&largest), "{largest}");
        // The middle third of each half hour holds more than a third of the presence: people come and go at the marks.
        assert!(2 * near_mark[1] > near_mark[0]);
    }
}
