//! What the [`Replicator`] does about failures and refusals: it gives the producer up and goes back.

use std::time::Duration;

use super::Replicator;
use crate::{
    config::Backoff,
    env::Monotonic,
    log::EntrySeq,
    replicate::{
        cluster::{DeliveryError, Refusal, Token},
        lane::Settled,
        stamp::StampLimits,
        topic::TopicState,
    },
};

/// Delays between attempts at a topic and between restarts of the producer.
pub(super) const RETRY: Backoff = Backoff { min: Duration::from_millis(250), max: Duration::from_secs(30) };

impl Replicator {
    pub(super) fn on_failed(&mut self, now: Monotonic, token: Token, error: DeliveryError) {
        let Some((index, position)) = self.tokens.try_remove(token) else { return };
        match error {
            DeliveryError::Refused(refusal) => {
                let goes_on = self.on_refused(index, position, refusal);
                let stream = &self.lanes[index].stream;
                if goes_on {
                    self.give_up_producer(now, 0, format!("Kafka refused a batch of {stream}: {refusal}"));
                } else {
                    let reason =
                        format!("Kafka refuses even the present time for {stream}: is the clock right?");
                    self.fail(now, reason);
                }
            }
            DeliveryError::NoTopic => self.no_topic(now, index),
            DeliveryError::Other(reason) => self.fail(now, reason),
        }
    }

    /// A whole batch is refused for one bad record in it. So its records are sent again in smaller parts, and only one
    /// that is refused alone is given up, or has the next of its times tried. False if there is nothing to do but to
    /// wait.
    fn on_refused(&mut self, index: usize, position: u64, refusal: Refusal) -> bool {
        let Self { lanes, topics, .. } = self;
        let lane = &mut lanes[index];
        let Some(sent) = lane.at(position) else { return true };
        let (offset, alone, stamp, skew_us) = (sent.offset, sent.alone, sent.stamp, sent.skew_us);
        if !alone {
            lane.refused_with_others();
            return true;
        }
        match refusal {
            Refusal::Contents(reason) => {
                sent.settled = Some(Settled::Dropped(reason));
                self.advance(index);
                true
            }
            Refusal::Timestamp => {
                let limits = &mut topics[lane.topic].limits;
                lane.restamp = stamp.next().map(|next| (offset, next));
                if lane.restamp.is_some() {
                    limits.refused(skew_us);
                } else {
                    // What was learnt by a wrong clock is wrong; and the other times come of age while it waits.
                    *limits = StampLimits::default();
                }
                lane.restamp.is_some()
            }
        }
    }

    pub(super) fn no_topic(&mut self, now: Monotonic, lane: usize) {
        let topic = &mut self.topics[self.lanes[lane].topic];
        topic.state = TopicState::Wanted;
        let reason = format!("topic {} is not there", topic.name);
        self.fail(now, reason);
    }

    /// A failure that may come again at once: unless the producer has lived long, the next one waits longer. That it
    /// delivered something says nothing, since one topic may refuse everything while others take it.
    pub(super) fn fail(&mut self, now: Monotonic, reason: String) {
        if self.restart_at.is_none() {
            if now.since(self.started) >= RETRY.max {
                self.failures = 0;
            }
            self.failures = self.failures.saturating_add(1);
        }
        self.give_up_producer(now, self.failures.saturating_sub(1), reason);
    }

    /// The producer's threads may sleep for as long as the clock was set back. Nobody but those who wait knows them: new ones.
    pub(super) fn clock_set_back(&mut self, now: Monotonic) {
        self.give_up_producer(now, 0, "the clock was set back, which librdkafka sleeps through".into());
    }

    /// After a failure everything under way is given up and sent again by a new producer: whatever the old one still
    /// held could otherwise arrive behind its own repetition.
    fn give_up_producer(&mut self, now: Monotonic, failures: u32, reason: String) {
        if self.restart_at.is_none() {
            let delay = self.backoff(failures);
            tracing::warn!(reason, delay_ms = delay.as_millis(), "the Kafka producer is restarted");
            self.restart_at = Some(now + delay);
            // What fails from now on, fails for that.
            self.show_error(reason);
        }
    }

    pub(super) fn show_error(&mut self, reason: String) {
        self.shows_error = true;
        self.metrics.error(reason);
    }

    /// Whether the producer is to be restarted now.
    pub fn restart_due(&self, now: Monotonic) -> bool {
        self.restart_at.is_some_and(|at| at <= now)
    }

    /// Goes back to the first entry that is not fully acknowledged, after the producer was restarted or was not.
    pub fn restarted(&mut self, now: Monotonic, result: Result<(), String>) {
        self.restart_at = None;
        self.started = now;
        self.metrics.producer_restarts.inc();
        self.give_up_transaction(now);
        self.go_back(self.acknowledged());
        if let Err(reason) = result {
            self.fail(now, reason);
        }
    }

    /// Begins anew at `next`: nothing is under way any more.
    pub(super) fn go_back(&mut self, next: EntrySeq) {
        let ahead = self.entries.range(self.next..).next().map(|(seq, _)| *seq);
        self.next = next;
        // What was under way before its turn is so again.
        ahead.into_iter().for_each(|seq| self.miss(seq));
        self.recent.look_again();
        self.pace.fell_behind(self.lanes.iter().map(|lane| lane.in_flight_bytes).sum());
        self.tokens.clear();
        self.entries.clear();
        self.tell_again();
        self.pinned_bytes = 0;
        self.sent_bytes = 0;
        for lane in &mut self.lanes {
            lane.rewind();
        }
    }

    /// Exponential, between half and all of its step, so that a fleet does not come back in one moment.
    pub(super) fn backoff(&mut self, attempts: u32) -> Duration {
        let step = RETRY.min.saturating_mul(1 << attempts.min(16)).min(RETRY.max);
        step / 2 + self.entropy.jitter(step / 2)
    }
}
