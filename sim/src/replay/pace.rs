//! When the next part of a recording is due.

use std::{str::FromStr, time::Duration};

/// How fast a recording is played.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// This many times real time, above 0.
    Times(f64),
    /// Without a pause.
    Max,
}

impl FromStr for Speed {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            _ if text == "max" => Ok(Self::Max),
            Ok(times) if f64::is_finite(times) && times > 0.0 => Ok(Self::Times(times)),
            _ => Err("is neither a number above 0 nor \"max\""),
        }
    }
}

impl Speed {
    /// How long something takes that took `recorded`.
    pub fn scale(self, recorded: Duration) -> Duration {
        match self {
            // Slower than 585 billion years is an overflow, and as good as never.
            Self::Times(times) => {
                Duration::try_from_secs_f64(recorded.as_secs_f64() / times).unwrap_or(Duration::MAX)
            }
            Self::Max => Duration::ZERO,
        }
    }
}

/// Turns the times of a recording's parts into times since the start of playing.
#[derive(Debug)]
pub struct Pacer {
    speed: Speed,
    last_micros: Option<i64>,
    due: Duration,
}

impl Pacer {
    /// At the start of playing.
    pub fn new(speed: Speed) -> Self {
        Self { speed, last_micros: None, due: Duration::ZERO }
    }

    /// When the part that was recorded at `micros` is due. A recording that steps back, or begins anew in the next file,
    /// goes on without a pause.
    pub fn due(&mut self, micros: i64) -> Duration {
        let last = self.last_micros.replace(micros).unwrap_or(micros);
        let step = u64::try_from(micros.saturating_sub(last)).unwrap_or(0);
        self.due = self.due.saturating_add(self.speed.scale(Duration::from_micros(step)));
        self.due
    }

    /// Begins the next recording: it follows at once, whatever its times.
    pub fn next_recording(&mut self) {
        self.last_micros = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_due_by_their_distance_in_the_recording() {
        let mut pacer = Pacer::new(Speed::Times(10.0));
        let due = [5_000_000, 6_000_000, 5_500_000, 7_500_000].map(|micros| pacer.due(micros).as_millis());
        assert_eq!(due, [0, 100, 100, 300]);
        pacer.next_recording();
        assert_eq!(pacer.due(1_000_000_000).as_millis(), 300);
        assert_eq!(Pacer::new(Speed::Max).due(7), Duration::ZERO);
    }

    #[test]
    fn speeds_are_positive_numbers_or_max() {
        assert_eq!("2.5".parse(), Ok(Speed::Times(2.5)));
        assert_eq!("max".parse(), Ok(Speed::Max));
        for text in ["0", "-1", "inf", "NaN", "", "fast"] {
            assert!(text.parse::<Speed>().is_err(), "{text}");
        }
    }
}
