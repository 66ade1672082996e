//! What the device knows of the gateway's clock: NTP's four timestamps, the best of the last eight exchanges.

use crate::link::control::{TimeReq, TimeRsp};

/// Exchanges that are remembered. The one with the shortest round trip had the least waiting in it, so its offset is the best.
const SAMPLES: usize = 8;
/// Pause between the first exchanges of a session ..
const QUICK_US: u64 = 1_000_000;
/// .. of which there are as many as samples; then a crystal of 50 ppm drifts by 3 ms between two.
const SLOW_US: u64 = 60_000_000;

#[derive(Debug, Clone, Copy)]
struct Sample {
    rtt_us: u32,
    /// Gateway's clock minus the device's.
    offset_us: i64,
}

#[derive(Debug)]
pub(super) struct Clock {
    samples: heapless::Vec<Sample, SAMPLES>,
    /// Where the next sample goes when all places are taken.
    replace: usize,
    requests: u32,
    due_us: u64,
    /// `t1_us` of the request that waits for its answer.
    asked_us: Option<u64>,
    /// Unix time minus the device's clock.
    unix_offset_us: Option<i64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            samples: heapless::Vec::new(),
            replace: 0,
            requests: 0,
            due_us: 0,
            asked_us: None,
            unix_offset_us: None,
        }
    }

    /// A new session: another gateway, or one whose clock began anew.
    pub(super) fn restart(&mut self, now_us: u64, unix_us: u64) {
        let unix_offset_us =
            if unix_us == 0 { self.unix_offset_us } else { Some(difference(unix_us, now_us)) };
        *self = Self { due_us: now_us, unix_offset_us, ..Self::new() };
    }

    pub(super) fn request_due_us(&self) -> u64 {
        self.due_us
    }

    pub(super) fn request(&mut self, now_us: u64) -> TimeReq {
        self.requests = self.requests.saturating_add(1);
        let quick = usize::try_from(self.requests).is_ok_and(|requests| requests < SAMPLES);
        self.due_us = now_us.saturating_add(if quick { QUICK_US } else { SLOW_US });
        self.asked_us = Some(now_us);
        let (offset_us, rtt_us) = self.best().map_or((0, 0), |best| (best.offset_us, best.rtt_us.max(1)));
        TimeReq { t1_us: now_us, offset_us, rtt_us }
    }

    pub(super) fn on_response(&mut self, now_us: u64, response: &TimeRsp) {
        let TimeRsp { t1_us, t2_us, t3_us, unix_us } = *response;
        // Only the answer to the last question, and only once: a late or doubled one would make the round trip look long.
        if self.asked_us != Some(t1_us) {
            return;
        }
        self.asked_us = None;
        let rtt = now_us.saturating_sub(t1_us).saturating_sub(t3_us.saturating_sub(t2_us));
        // Half of each difference, so that the sum cannot overflow.
        let offset_us = (difference(t2_us, t1_us) / 2).saturating_add(difference(t3_us, now_us) / 2);
        let sample = Sample { rtt_us: u32::try_from(rtt).unwrap_or(u32::MAX), offset_us };
        if let Err(sample) = self.samples.push(sample) {
            if let Some(place) = self.samples.get_mut(self.replace) {
                *place = sample;
            }
            self.replace = (self.replace + 1) % SAMPLES;
        }
        if unix_us != 0 {
            let best = self.best().map_or(offset_us, |best| best.offset_us);
            self.unix_offset_us = Some(difference(unix_us, t3_us).saturating_add(best));
        }
    }

    fn best(&self) -> Option<Sample> {
        self.samples.iter().copied().min_by_key(|sample| sample.rtt_us)
    }

    pub(super) fn unix_us(&self, now_us: u64) -> Option<u64> {
        self.unix_offset_us.and_then(|offset| now_us.checked_add_signed(offset))
    }
}

/// `a - b`. Clocks of microseconds are far from the half of 2^64.
fn difference(a: u64, b: u64) -> i64 {
    a.wrapping_sub(b).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One exchange with a gateway whose clock is `offset` ahead, `there` us to it, 10 us in it, `back` us from it.
    fn exchange(clock: &mut Clock, t1: u64, offset: u64, there: u64, back: u64) {
        let request = clock.request(t1);
        let t2 = request.t1_us + offset + there;
        let response = TimeRsp { t1_us: t1, t2_us: t2, t3_us: t2 + 10, unix_us: 5_000_000 + t2 + 10 };
        clock.on_response(t1 + there + 10 + back, &response);
    }

    #[test]
    fn clock_takes_the_exchange_with_the_shortest_round_trip() {
        let mut clock = Clock::new();
        exchange(&mut clock, 1_000, 70_000, 9_000, 100);
        exchange(&mut clock, 20_000, 70_000, 300, 300);
        exchange(&mut clock, 40_000, 70_000, 100, 4_000);
        let request = clock.request(60_000);
        assert_eq!((request.offset_us, request.rtt_us), (70_000, 600));
        assert_eq!(clock.unix_us(60_000), Some(60_000 + 70_000 + 5_000_000));
    }

    #[test]
    fn clock_ignores_an_answer_that_it_did_not_ask_for() {
        let mut clock = Clock::new();
        let response = TimeRsp { t1_us: 7, t2_us: 9, t3_us: 9, unix_us: 1 };
        clock.on_response(10, &response);
        clock.request(7);
        clock.request(8);
        clock.on_response(10, &response);
        assert_eq!(clock.unix_us(10), None);
    }

    #[test]
    fn clock_forgets_the_oldest_exchange() {
        let mut clock = Clock::new();
        exchange(&mut clock, 0, 1_000, 10, 10);
        for turn in 1..=8 {
            exchange(&mut clock, turn * 1_000, 2_000, 50, 50);
        }
        assert_eq!(clock.request(99_000).offset_us, 2_000);
    }
}
