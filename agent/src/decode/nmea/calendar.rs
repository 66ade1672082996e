//! The day to a time of day: GGA and GLL have no date, RMC and ZDA do.

use std::time::Duration;

use chrono::NaiveDate;

use crate::{env::Monotonic, record::UnixMicros};

const HALF_DAY_MS: i64 = 12 * 3600 * 1000;

/// How long a date is carried on. Up to half a day, a time of day that goes back means midnight and nothing else.
const CARRY: Duration = Duration::from_secs(12 * 3600);

/// The last moment that is known in full.
#[derive(Clone, Debug, Default)]
pub(super) struct Calendar {
    last: Option<Moment>,
}

#[derive(Clone, Copy, Debug)]
struct Moment {
    date: NaiveDate,
    /// Milliseconds of the day; over 86 400 000 in a leap second.
    time_ms: u32,
    seen: Monotonic,
}

impl Calendar {
    /// The receiver says that it is `time_ms` of `date`.
    pub(super) fn set(&mut self, now: Monotonic, date: NaiveDate, time_ms: u32) {
        self.last = Some(Moment { date, time_ms, seen: now });
    }

    /// The moment that `time_ms` of the day is, the nearest one to the last known. `None` before the first date, and when
    /// the last one is too long ago.
    ///
    /// A leap second 23:59:60 is the second after, as in Unix time.
    pub(super) fn moment(&mut self, now: Monotonic, time_ms: u32) -> Option<UnixMicros> {
        let last = self.last.filter(|last| now.since(last.seen) < CARRY)?;
        let ahead_ms = i64::from(time_ms) - i64::from(last.time_ms);
        let date = match ahead_ms {
            ahead_ms if ahead_ms < -HALF_DAY_MS => last.date.succ_opt()?,
            ahead_ms if ahead_ms > HALF_DAY_MS => last.date.pred_opt()?,
            _ => last.date,
        };
        self.last = Some(Moment { date, time_ms, seen: now });
        let midnight = date.and_hms_opt(0, 0, 0)?.and_utc().timestamp_millis();
        Some(UnixMicros((midnight + i64::from(time_ms)) * 1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENING_MS: u32 = 86_399_900;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_start(Duration::from_secs(seconds))
    }

    fn set_on_a_leap_day() -> Calendar {
        let mut calendar = Calendar::default();
        calendar.set(at(0), NaiveDate::from_ymd_opt(2024, 2, 28).unwrap(), EVENING_MS);
        calendar
    }

    #[test]
    fn date_goes_on_at_midnight_and_back_for_a_straggler() {
        let mut calendar = set_on_a_leap_day();
        let day = 1_709_078_400_000_000;
        assert_eq!(calendar.moment(at(1), EVENING_MS), Some(UnixMicros(day + 86_399_900_000)));
        assert_eq!(calendar.moment(at(1), 100), Some(UnixMicros(day + 86_400_100_000)));
        assert_eq!(calendar.moment(at(2), EVENING_MS), Some(UnixMicros(day + 86_399_900_000)));
        assert_eq!(calendar.moment(at(2), 1100), Some(UnixMicros(day + 86_401_100_000)));
        assert_eq!(calendar.moment(at(3), 86_400_500), Some(UnixMicros(day + 86_400_500_000)), "leap second");
    }

    #[test]
    fn date_is_not_guessed() {
        assert_eq!(Calendar::default().moment(at(0), 0), None);
        assert_eq!(set_on_a_leap_day().moment(at(13 * 3600), 0), None, "how many midnights were there?");
    }
}
