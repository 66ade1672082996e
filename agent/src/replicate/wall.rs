//! Steps of the wall clock. librdkafka's threads wait until a time of day (`timespec_get` in its rdtime.h): where the clock
//! is set back meanwhile, they sleep until that time comes again, and nothing more is sent.

use crate::record::UnixMicros;

/// What is slept through without new threads: less than a second is slewed, a little more is over soon.
const STEP_US: i64 = 1_000_000;

/// The wall clock as it was seen last.
#[derive(Debug, Default)]
pub(super) struct Wall {
    last: Option<UnixMicros>,
}

impl Wall {
    /// Whether the clock, at `wall` now, was set back since the last call. A step smaller than the time between the calls,
    /// which are seconds apart at most, passes for none.
    pub(super) fn was_set_back(&mut self, wall: UnixMicros) -> bool {
        self.last.replace(wall).is_some_and(|last| wall.0 < last.0.saturating_sub(STEP_US))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_step_back_counts() {
        let mut wall = Wall::default();
        let steps = [
            (i64::MIN, false),
            (5_000_000, false),
            (4_500_000, false),
            (3_000_000, true),
            (3_000_000, false),
        ];
        for (at_us, expected) in steps {
            assert_eq!(wall.was_set_back(UnixMicros(at_us)), expected, "{at_us}");
        }
    }
}
