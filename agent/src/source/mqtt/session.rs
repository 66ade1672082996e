//! What the source decides, without sockets: which messages are new, in which order they are answered, when to ask for
//! an early commit, what to subscribe to, when to ping.

use std::time::Duration;

use super::wire::{Publish, Writer};
use crate::{
    config::Qos,
    env::Monotonic,
    intake::{Acknowledgement, Ticket, Unacknowledged},
    log::CRC_32C,
    source::{
        answered::Answered,
        window::{Noted, PartChange, Window},
    },
};

/// Unacknowledged messages at which a broker with MQTT 3.1.1 may hold back: Mosquitto's `max_inflight_messages`.
const IN_FLIGHT_GUESS: usize = 20;

/// Silence after which a broker with [`IN_FLIGHT_GUESS`] messages in flight is taken to hold back.
const STALL_AFTER: Duration = Duration::from_millis(3);

/// Silence before an acknowledgement after which the broker is taken to have held back all the while.
const HELD_BACK_AFTER: Duration = Duration::from_millis(10);

/// What it takes to answer a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    packet_id: u16,
    qos: Qos,
    digest: u32,
}

/// Whether a message must be handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Yes; and answer it, unless it has QoS 0.
    New(Option<Answer>),
    /// No, it was handed on before; only answer it.
    Known(Answer),
}

/// Messages between their PUBLISH and the end of their handshake.
#[derive(Debug)]
pub(super) struct Deliveries {
    receive_maximum: usize,
    /// To be answered on this connection, in PUBLISH order.
    waiting: Unacknowledged<Answer>,
    /// QoS 2 messages of this connection whose PUBREL is outstanding: they count against the broker's limit.
    unreleased: Window,
    /// QoS 1 messages of this connection that were answered: the broker may not have read it.
    answered: Answered,
    /// What the connections before, or a life before, left of these three.
    before: Window,
    /// Most in flight since the broker last held back: its limit is taken to be no lower.
    peak: usize,
    last_ticket: Ticket,
    last_acknowledgement: Option<Acknowledgement>,
    arrived_at: Monotonic,
    urged: bool,
    /// What is noted of all these.
    noted: Noted,
}

impl Deliveries {
    /// Nothing in flight but what a life before has `noted` as its window, which is `before`. `receive_maximum` as sent in CONNECT.
    pub(super) fn new(receive_maximum: u16, before: Window, noted: Noted) -> Self {
        Self {
            receive_maximum: usize::from(receive_maximum),
            waiting: Unacknowledged::default(),
            unreleased: Window::new(),
            answered: Answered::new(receive_maximum.into()),
            before,
            peak: 0,
            last_ticket: Ticket::default(),
            last_acknowledgement: None,
            arrived_at: Monotonic::default(),
            urged: false,
            noted,
        }
    }

    /// The connection is gone: its packet ids must not be answered on another.
    pub(super) fn disconnected(&mut self) {
        self.before.append(&mut self.answered.take());
        self.before.append(&mut self.unreleased);
        self.before.extend(self.waiting.abandon().map(|answer| (answer.packet_id, answer.digest)));
        self.peak = 0;
        self.urged = false;
    }

    /// The broker has no session of ours, or it is another broker: its packet ids mean new messages.
    pub(super) fn session_lost(&mut self) {
        self.before.clear();
        self.answered = Answered::new(self.receive_maximum);
        self.noted.rewrite();
    }

    /// The broker has read all that was sent to it.
    pub(super) fn all_arrived(&mut self) {
        self.answered.take();
        self.noted.rewrite();
    }

    /// Judges a message. Called in PUBLISH order; the answers go back to [`Deliveries::submitted`] in that order.
    pub(super) fn arrive(&mut self, now: Monotonic, publish: &Publish) -> Arrival {
        self.arrived_at = now;
        if publish.qos == Qos::AtMostOnce {
            return Arrival::New(None);
        }
        let packet_id = publish.packet_id;
        let digest = digest(publish);
        let answer = Answer { packet_id, qos: publish.qos, digest };
        if !publish.dup {
            // What was to come again comes before all else (MQTT-4.4.0-1, MQTT-4.6.0-1): this session's has come.
            let is_last_of_before = !std::mem::take(&mut self.before).is_empty();
            if self.answered.is_given_anew(packet_id, digest) || is_last_of_before {
                self.noted.rewrite();
            }
            return Arrival::New(Some(answer));
        }
        // The id alone proves nothing if the broker went back to an old state of its own: only a message that claims to
        // be a repetition and is equal to the one handed on is held back.
        let seen = [self.before.remove(&packet_id), self.answered.get(packet_id)];
        if seen.contains(&Some(digest)) || self.unreleased.get(&packet_id) == Some(&digest) {
            Arrival::Known(answer)
        } else {
            Arrival::New(Some(answer))
        }
    }

    /// `answers` wait for `ticket`; `None` if nothing of what they came with was new, then for what was submitted last.
    pub(super) fn submitted(&mut self, ticket: Option<Ticket>, answers: impl IntoIterator<Item = Answer>) {
        self.last_ticket = ticket.unwrap_or(self.last_ticket);
        for answer in answers {
            self.waiting.push(self.last_ticket, answer);
        }
        self.peak = self.peak.max(self.in_flight());
        self.urged = false;
    }

    /// What is to be noted with `taken`, which is not submitted yet.
    pub(super) fn noting(&mut self, taken: &[Answer]) -> Vec<PartChange> {
        taken.iter().for_each(|answer| self.noted.take(answer.packet_id, answer.digest));
        let known = self.before.len() + self.unreleased.len() + self.answered.iter().len();
        if self.noted.is_due(known + self.waiting.len() + taken.len()) {
            let window = self.window(taken);
            self.noted.whole(&window)
        } else {
            self.noted.further()
        }
    }

    /// What must be known as stored after a crash once `taken` is: what has no answer, and what has one that may not have reached
    /// the broker. The oldest come first.
    fn window(&self, taken: &[Answer]) -> Vec<(u16, u32)> {
        let known =
            self.before.iter().chain(&self.unreleased).map(|(packet_id, digest)| (*packet_id, *digest));
        let unanswered = self.waiting.iter().chain(taken).map(|answer| (answer.packet_id, answer.digest));
        known.chain(self.answered.iter()).chain(unanswered).collect()
    }

    /// Answers what `acknowledgement` covers.
    pub(super) fn acknowledged(
        &mut self,
        now: Monotonic,
        acknowledgement: Acknowledgement,
        writer: &mut Writer,
    ) {
        if now.since(self.arrived_at) >= HELD_BACK_AFTER {
            self.peak = self.in_flight();
        }
        self.last_acknowledgement = Some(acknowledgement);
        self.answered.begin();
        self.answer(writer);
    }

    /// Answers what is covered by acknowledgements that have already come.
    pub(super) fn answer(&mut self, writer: &mut Writer) {
        let due: Vec<Answer> = match self.last_acknowledgement {
            Some(acknowledgement) => self.waiting.release(acknowledgement).collect(),
            // Nothing was ever submitted: what waits was stored in a life before.
            None if self.last_ticket == Ticket::default() => self.waiting.abandon().collect(),
            None => return,
        };
        for Answer { packet_id, qos, digest } in due {
            match qos {
                Qos::AtMostOnce => {}
                Qos::AtLeastOnce => {
                    writer.puback(packet_id);
                    if !self.answered.push(packet_id, digest) {
                        self.noted.rewrite();
                    }
                }
                Qos::ExactlyOnce => {
                    writer.pubrec(packet_id);
                    self.unreleased.insert(packet_id, digest);
                }
            }
        }
    }

    /// PUBREL came. It is always answered, also for an id that nobody knows any more: a broker that missed our PUBCOMP
    /// would else ask for ever.
    pub(super) fn release(&mut self, now: Monotonic, packet_id: u16, writer: &mut Writer) {
        self.arrived_at = now;
        if self.unreleased.remove(&packet_id).or(self.before.remove(&packet_id)).is_some() {
            self.noted.release(packet_id);
        }
        writer.pubcomp(packet_id);
    }

    /// When the broker has to be taken as holding back, so that the commit should not wait for its window. `None` while
    /// it has no reason to, or was already told so.
    pub(super) fn urge_at(&self) -> Option<Monotonic> {
        if self.urged || self.waiting.is_empty() {
            return None;
        }
        if self.in_flight() >= self.receive_maximum {
            return Some(self.arrived_at);
        }
        (self.in_flight() >= self.peak.max(IN_FLIGHT_GUESS)).then(|| self.arrived_at + STALL_AFTER)
    }

    /// The commit was asked for.
    pub(super) fn urged(&mut self) {
        self.urged = true;
    }

    /// Messages that have no answer yet.
    pub(super) fn unacknowledged(&self) -> usize {
        self.waiting.len()
    }

    fn in_flight(&self) -> usize {
        self.waiting.len() + self.unreleased.len()
    }
}

/// CRC-32C of topic and payload.
fn digest(publish: &Publish) -> u32 {
    let mut digest = CRC_32C.digest();
    digest.update(&publish.topic);
    // No topic has it.
    digest.update(&[0xff]);
    digest.update(&publish.payload);
    digest.finalize()
}

/// A filter that the broker does not grant as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The topic filter.
    pub(super) filter: String,
    /// The broker's reason.
    pub(super) reason: String,
}

/// Which filters the broker's session has.
#[derive(Debug)]
pub(super) struct Subscriptions {
    filters: Vec<(String, bool)>,
    asked: Option<(u16, Vec<usize>)>,
    last_id: u16,
}

impl Subscriptions {
    /// None granted. Filters that occur twice are subscribed once.
    pub(super) fn new<'a>(filters: impl IntoIterator<Item = &'a str>) -> Self {
        let mut unique: Vec<(String, bool)> = Vec::new();
        for filter in filters {
            if !unique.iter().any(|(known, _)| known == filter) {
                unique.push((filter.to_owned(), false));
            }
        }
        Self { filters: unique, asked: None, last_id: 0 }
    }

    /// The broker's session is new to us.
    pub(super) fn session_lost(&mut self) {
        self.filters.iter_mut().for_each(|(_, granted)| *granted = false);
    }

    /// An unanswered SUBSCRIBE went with the connection.
    pub(super) fn disconnected(&mut self) {
        self.asked = None;
    }

    /// Whether filters are missing and nothing was asked.
    pub(super) fn is_incomplete(&self) -> bool {
        self.asked.is_none() && self.filters.iter().any(|(_, granted)| !granted)
    }

    /// Whether a SUBSCRIBE waits for its SUBACK.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Asks for all that are missing.
    pub(super) fn ask(&mut self, qos: Qos, writer: &mut Writer) {
        let missing: Vec<usize> =
            self.filters.iter().enumerate().filter(|(_, (_, granted))| !granted).map(|(i, _)| i).collect();
        if missing.is_empty() {
            return;
        }
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        writer.subscribe(self.last_id, missing.iter().map(|i| self.filters[*i].0.as_str()), qos);
        self.asked = Some((self.last_id, missing));
    }

    /// Takes a SUBACK and returns what it refuses. One for no SUBSCRIBE of ours is ignored; a filter without a code
    /// counts as refused.
    pub(super) fn answered(&mut self, packet_id: u16, granted: Vec<Result<Qos, String>>) -> Vec<Refusal> {
        let Some((_, asked)) = self.asked.take_if(|(id, _)| *id == packet_id) else { return Vec::new() };
        let missing = std::iter::repeat_with(|| Err("SUBACK without a code".to_owned()));
        let mut refusals = Vec::new();
        for (index, code) in asked.into_iter().zip(granted.into_iter().chain(missing)) {
            let (filter, is_granted) = &mut self.filters[index];
            match code {
                Ok(_) => *is_granted = true,
                Err(reason) => refusals.push(Refusal { filter: filter.clone(), reason }),
            }
        }
        refusals
    }
}

/// When to ping, and when the broker is dead.
#[derive(Debug)]
pub(super) struct KeepAlive {
    interval: Duration,
    sent_at: Monotonic,
    pinged_at: Option<Monotonic>,
}

impl KeepAlive {
    /// For a connection that was made `now`. An interval of 0 means that the broker wants no pings.
    pub(super) fn new(interval: Duration, now: Monotonic) -> Self {
        Self { interval, sent_at: now, pinged_at: None }
    }

    /// Something was sent.
    pub(super) fn sent(&mut self, now: Monotonic) {
        self.sent_at = now;
    }

    /// Something was received: the broker lives.
    pub(super) fn received(&mut self) {
        self.pinged_at = None;
    }

    /// When to send a ping: a quarter of the interval before the broker would lose patience.
    pub(super) fn ping_at(&self) -> Option<Monotonic> {
        (!self.interval.is_zero()).then(|| self.sent_at + self.interval * 3 / 4)
    }

    /// A ping was sent. It is not the last, though nothing came: while reading is held back, nothing can come.
    pub(super) fn pinged(&mut self, now: Monotonic) {
        self.pinged_at.get_or_insert(now);
        self.sent_at = now;
    }

    /// When the broker is dead unless something comes.
    pub(super) fn dead_at(&self) -> Option<Monotonic> {
        self.pinged_at.map(|at| at + self.interval)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::MqttVersion;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_start(Duration::from_millis(ms))
    }

    fn publish(packet_id: u16) -> Publish {
        let (topic, payload) = (Bytes::from_static(b"t"), Bytes::from_static(b"p"));
        Publish { topic, payload, qos: Qos::AtLeastOnce, packet_id, dup: false, retain: false }
    }

    /// Takes `count` messages in one submission with ticket `ticket`.
    fn take(deliveries: &mut Deliveries, now: Monotonic, ticket: u64, count: u16) {
        let answers: Vec<_> = (1..=count)
            .map(|id| match deliveries.arrive(now, &publish(id)) {
                Arrival::New(Some(answer)) => answer,
                other => panic!("{other:?}"),
            })
            .collect();
        deliveries.submitted(Some(Ticket(ticket)), answers);
    }

    #[test]
    fn a_broker_that_falls_silent_at_its_limit_is_answered_early() {
        let mut deliveries = Deliveries::new(2048, Window::new(), Noted::default());
        take(&mut deliveries, at(0), 1, 19);
        assert_eq!(deliveries.urge_at(), None, "no broker has so low a limit");
        take(&mut deliveries, at(10), 2, 1);
        assert_eq!(deliveries.urge_at(), Some(at(13)), "after a silence");
        deliveries.urged();
        assert_eq!(deliveries.urge_at(), None, "asked once");
    }

    #[test]
    fn a_limit_that_was_passed_before_is_no_reason_to_hurry_until_the_broker_held_back_at_it() {
        let acknowledge = |deliveries: &mut Deliveries, now, ticket| {
            let acknowledgement = Acknowledgement::for_test(Ticket(ticket));
            deliveries.acknowledged(now, acknowledgement, &mut Writer::new(MqttVersion::V3));
        };
        let mut deliveries = Deliveries::new(2048, Window::new(), Noted::default());
        take(&mut deliveries, at(0), 1, 50);
        acknowledge(&mut deliveries, at(1), 1);
        take(&mut deliveries, at(10), 2, 30);
        assert_eq!(deliveries.urge_at(), None, "it went on at 30 before");
        acknowledge(&mut deliveries, at(25), 2);
        take(&mut deliveries, at(30), 3, 30);
        assert_eq!(deliveries.urge_at(), Some(at(33)), "it waited at 30 for the last answer");
    }

    #[test]
    fn at_receive_maximum_there_is_nothing_to_wait_for() {
        let mut deliveries = Deliveries::new(5, Window::new(), Noted::default());
        take(&mut deliveries, at(7), 1, 5);
        assert_eq!(deliveries.urge_at(), Some(at(7)));
    }

    #[test]
    fn an_acknowledgement_of_an_old_connection_answers_nothing_on_a_new_one() {
        let mut deliveries = Deliveries::new(100, Window::new(), Noted::default());
        take(&mut deliveries, at(0), 1, 3);
        deliveries.disconnected();
        let mut writer = Writer::new(MqttVersion::V3);
        deliveries.acknowledged(at(1), Acknowledgement::for_test(Ticket(1)), &mut writer);
        assert!(writer.is_empty());
    }

    #[test]
    fn pings_come_before_the_broker_loses_patience_and_silence_is_noticed() {
        let mut keep_alive = KeepAlive::new(Duration::from_secs(4), at(0));
        assert_eq!((keep_alive.ping_at(), keep_alive.dead_at()), (Some(at(3000)), None));
        keep_alive.sent(at(1000));
        assert_eq!(keep_alive.ping_at(), Some(at(4000)), "an acknowledgement is a sign of life");
        keep_alive.pinged(at(4000));
        assert_eq!((keep_alive.ping_at(), keep_alive.dead_at()), (Some(at(7000)), Some(at(8000))));
        keep_alive.received();
        assert_eq!((keep_alive.ping_at(), keep_alive.dead_at()), (Some(at(7000)), None));
    }

    #[test]
    fn a_broker_without_keep_alive_is_not_pinged() {
        assert_eq!(KeepAlive::new(Duration::ZERO, at(0)).ping_at(), None);
    }

    #[test]
    fn filters_are_asked_for_once_and_until_granted() {
        let mut writer = Writer::new(MqttVersion::V5);
        let mut subscriptions = Subscriptions::new(["a", "b", "a"]);
        subscriptions.ask(Qos::AtLeastOnce, &mut writer);
        assert!(subscriptions.is_asked() && !subscriptions.is_incomplete());
        assert_eq!(subscriptions.answered(99, vec![]), [], "not the answer to ours");
        let refusals = subscriptions.answered(1, vec![Ok(Qos::AtLeastOnce)]);
        assert_eq!(refusals[0].filter, "b", "no code is no grant");
        assert!(subscriptions.is_incomplete());
        subscriptions.ask(Qos::AtLeastOnce, &mut writer);
        assert_eq!(subscriptions.answered(2, vec![Ok(Qos::AtMostOnce)]), []);
        assert!(!subscriptions.is_incomplete());
        subscriptions.session_lost();
        assert!(subscriptions.is_incomplete());
    }
}
