//! Groups the sentences of one moment, and makes one position of them.
//!
//! Receivers send a burst of sentences per fix, in an order of their own, and all with the time of that fix; VTG has none.
//! A new moment begins with another time, or with a sentence (talker and type) that the open moment already has. How far
//! two times are apart does not matter: at 10 Hz, a tenth of a second is the next fix.
//!
//! The last one of a burst is complete after [`SILENCE`].

use std::time::Duration;

use super::{
    super::reading::{Fix, VehiclePosition, rfc3339, rounded},
    calendar::Calendar,
    sentence::{Kind, Part, Sentence},
};
use crate::{
    env::Monotonic,
    record::{Received, UnixMicros},
};

/// No sentence for this long ends a moment. Within a burst there is at most a read of the port between two sentences; the
/// fastest common rate that sends in bursts at all, 1 Hz, leaves more.
const SILENCE: Duration = Duration::from_millis(300);

/// Bytes of sentences at which a moment ends whatever comes, so that a line of GSV alone does not grow one for ever.
const EPOCH_BYTES_MAX: usize = 8 * 1024;

/// The open moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Epochs {
    open: Option<Epoch>,
}

/// The sentences of one moment.
#[derive(Clone, Debug)]
pub(super) struct Epoch {
    /// When its first sentence came.
    pub(super) received: Received,
    first_at: Monotonic,
    last_at: Monotonic,
    /// As they came, each with CR LF.
    sentences: Vec<u8>,
    /// What the sentences of each kind say together.
    parts: [Option<Part>; Kind::COUNT],
    /// Talker and type of what makes up `parts`.
    addresses: Vec<([u8; 2], Kind)>,
}

/// What an epoch comes to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Position {
    pub(super) reading: VehiclePosition,
    /// When, if there was a fix: a receiver without one runs on its own clock, or on a made-up date.
    pub(super) event_time: Option<UnixMicros>,
}

impl Epochs {
    /// Adds a sentence; returns the epoch that ends with it coming. [`Sentence::Other`] belongs to none and is not added.
    pub(super) fn push(
        &mut self,
        now: Monotonic,
        received: Received,
        sentence: Sentence,
        text: &str,
    ) -> Option<Epoch> {
        let part = match sentence {
            Sentence::Part(part) => Some(*part),
            Sentence::Support => None,
            Sentence::Other => return None,
        };
        let complete = self.open.take_if(|open| {
            open.sentences.len() + text.len() + 2 > EPOCH_BYTES_MAX
                || part.as_ref().is_some_and(|part| open.ends_with(part))
        });
        let open = self.open.get_or_insert_with(|| Epoch {
            received,
            first_at: now,
            last_at: now,
            sentences: Vec::new(),
            parts: [None; Kind::COUNT],
            addresses: Vec::new(),
        });
        open.add(now, part, text);
        complete
    }

    /// Returns the open epoch if the line has been silent since.
    pub(super) fn expire(&mut self, now: Monotonic) -> Option<Epoch> {
        self.open.take_if(|open| now >= open.last_at + SILENCE)
    }

    /// When [`Self::expire`] has something to return.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.open.as_ref().map(|open| open.last_at + SILENCE)
    }

    /// Returns the open epoch.
    pub(super) fn finish(&mut self) -> Option<Epoch> {
        self.open.take()
    }
}

impl Epoch {
    /// The sentences as they came, each with CR LF.
    pub(super) fn sentences(&self) -> &[u8] {
        &self.sentences
    }

    /// Whether `part` is of another moment.
    fn ends_with(&self, part: &Part) -> bool {
        let other_time = |before: &Part| before.time_ms != part.time_ms;
        self.addresses.contains(&(part.talker, part.kind))
            || self.part(part.kind).is_some_and(other_time)
            || self.time_ms().zip(part.time_ms).is_some_and(|(open, new)| open != new)
    }

    fn add(&mut self, now: Monotonic, part: Option<Part>, text: &str) {
        self.last_at = now;
        self.sentences.extend_from_slice(text.as_bytes());
        self.sentences.extend_from_slice(b"\r\n");
        let Some(part) = part else { return };
        self.addresses.push((part.talker, part.kind));
        // Of several systems' sentences of one kind, the first that has a fix counts.
        let has_fix = |part: &Part| part.fix.is_some_and(|fix| fix != Fix::None);
        let slot = &mut self.parts[part.kind as usize];
        if slot.as_ref().is_none_or(|before| !has_fix(before) && has_fix(&part)) {
            *slot = Some(part);
        }
    }

    fn part(&self, kind: Kind) -> Option<&Part> {
        self.parts[kind as usize].as_ref()
    }

    /// The parts, best place first.
    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().flatten()
    }

    fn time_ms(&self) -> Option<u32> {
        self.parts().find_map(|part| part.time_ms)
    }

    /// The position; `None` if no sentence speaks of one. `calendar` learns the date.
    ///
    /// There is a fix only if no kind of sentence denies it: an RMC with V is a warning, even beside a GGA with a place.
    pub(super) fn position(&self, calendar: &mut Calendar) -> Option<Position> {
        // ZDA has the year in full, RMC in two digits.
        for part in [self.part(Kind::Rmc), self.part(Kind::Zda)].into_iter().flatten() {
            if let (Some(date), Some(time_ms)) = (part.date, part.time_ms) {
                calendar.set(self.first_at, date, time_ms);
            }
        }
        let said = |part: &&Part| part.fix.is_some();
        let first = self.parts().find(said)?;
        let placed = self.parts().filter(said).find(|part| part.place.is_some());
        let denied = self.parts().any(|part| part.fix == Some(Fix::None));
        let here = placed.filter(|_| !denied);
        let stale = placed.filter(|_| denied).and_then(|part| part.place);

        let time_ms = here.and_then(|part| part.time_ms).or(self.time_ms());
        let time = time_ms.and_then(|time_ms| calendar.moment(self.first_at, time_ms));

        let degrees = |angle: f64| rounded(angle, 9);
        let moving = |value: fn(&Part) -> Option<f64>| here.and_then(|_| self.parts().find_map(value));
        let reading = VehiclePosition {
            time: time.and_then(rfc3339),
            fix: here.map_or(Fix::None, |_| first.fix.unwrap_or_default()),
            lat_deg: here.and_then(|part| part.place).map(|(lat, _)| degrees(lat)),
            lon_deg: here.and_then(|part| part.place).map(|(_, lon)| degrees(lon)),
            stale_lat_deg: stale.map(|(lat, _)| degrees(lat)),
            stale_lon_deg: stale.map(|(_, lon)| degrees(lon)),
            altitude_m: moving(|part| part.altitude_m).map(|m| rounded(m, 3)),
            speed_mps: moving(|part| part.speed_mps).map(|mps| rounded(mps, 3)),
            course_deg: moving(|part| part.course_deg).map(|course| rounded(course, 3)),
            satellites: self.parts().find_map(|part| part.satellites),
            hdop: here.and_then(|_| self.parts().find_map(|part| part.hdop)).map(|hdop| rounded(hdop, 2)),
            accuracy_m: None,
            odometer_m: None,
        };
        Some(Position { reading, event_time: time.filter(|_| here.is_some()) })
    }
}
