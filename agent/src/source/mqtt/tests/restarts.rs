//! A broker, what the source knows of its session, and a log, under random schedules of connections that break and agents that
//! crash: each message is stored once.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::{
    intake::{Acknowledgement, Ticket},
    log::{Change, Remembered},
    source::{
        mqtt::{
            session::{Answer, Arrival, Deliveries},
            wire::{Publish, Writer},
        },
        window::{Noted, Window},
    },
};

/// Messages that the broker has in flight at most.
const RECEIVE_MAXIMUM: u16 = 6;

#[derive(Clone, Debug)]
enum Operation {
    /// A device publishes.
    Publish { exactly_once: bool },
    /// The broker sends up to so many packets, the agent reads them at once.
    Send(usize),
    /// What was submitted first becomes durable.
    Commit,
    /// The broker reads up to so many answers.
    Answer(usize),
    /// The connection breaks, and what was under way is gone; the agent lives on for a commit.
    Break,
    /// The agent is killed; what it has sent arrives.
    Kill,
    /// The power fails: of what was sent for the last so many acknowledgements nothing arrives.
    PowerCut(u64),
    /// The broker forgets the session.
    Forget,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => any::<bool>().prop_map(|exactly_once| Operation::Publish { exactly_once }),
        6 => (1..5_usize).prop_map(Operation::Send),
        5 => Just(Operation::Commit),
        5 => (1..5_usize).prop_map(Operation::Answer),
        1 => Just(Operation::Break),
        1 => Just(Operation::Kill),
        1 => (1..8_u64).prop_map(Operation::PowerCut),
    ]
}

/// How a broker gives out packet ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ids {
    /// Counting up, as Mosquitto, EMQX and HiveMQ do.
    CountUp,
    /// The lowest that is free.
    LowestFree,
}

/// A message at the broker.
#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    message: usize,
    exactly_once: bool,
    /// PUBREC has come.
    received: bool,
    /// PUBLISH or PUBREL is on its way.
    is_sent: bool,
    dup: bool,
}

struct World {
    ids: Ids,
    /// All messages say the same.
    equal: bool,
    last_id: u16,
    published: usize,
    in_flight: Vec<InFlight>,
    /// Messages that the broker has done with.
    finished: BTreeSet<usize>,
    /// What the agent has sent, with the acknowledgement that it was sent for.
    answers: VecDeque<(u64, [u8; 4])>,
    deliveries: Deliveries,
    memory: Memory,
    submitted: VecDeque<(Ticket, Vec<usize>, Vec<Change>)>,
    tickets: u64,
    acknowledgements: u64,
    stored: Vec<usize>,
    remembered: Remembered,
}

impl World {
    fn new(ids: Ids, equal: bool) -> Self {
        Self {
            ids,
            equal,
            last_id: 0,
            published: 0,
            in_flight: Vec::new(),
            finished: BTreeSet::new(),
            answers: VecDeque::new(),
            deliveries: Deliveries::new(RECEIVE_MAXIMUM, Window::new(), Noted::default()),
            memory: Memory::default(),
            submitted: VecDeque::new(),
            tickets: 0,
            acknowledgements: 0,
            stored: Vec::new(),
            remembered: Remembered::new(),
        }
    }

    fn run(&mut self, operation: &Operation) {
        match *operation {
            Operation::Publish { exactly_once } => self.publish(exactly_once),
            Operation::Send(packets) => self.send(packets),
            Operation::Commit => self.commit(),
            Operation::Answer(packets) => self.answer(packets),
            Operation::Break => {
                self.disconnect();
                while !self.submitted.is_empty() {
                    self.commit();
                }
            }
            Operation::Kill => self.crash(|_| true),
            Operation::PowerCut(acknowledgements) => {
                let latest = self.acknowledgements;
                self.crash(|acknowledgement| acknowledgement + acknowledgements <= latest);
            }
            Operation::Forget => self.forget(),
        }
    }

    fn publish(&mut self, exactly_once: bool) {
        if self.in_flight.len() == usize::from(RECEIVE_MAXIMUM) {
            return;
        }
        let is_free = |id: &u16| self.in_flight.iter().all(|other| other.packet_id != *id);
        let after = if self.ids == Ids::CountUp { self.last_id } else { 0 };
        let packet_id = (after + 1..).find(is_free).expect("a free id");
        self.last_id = packet_id;
        let message = self.published;
        self.published += 1;
        let (received, is_sent, dup) = (false, false, false);
        self.in_flight.push(InFlight { packet_id, message, exactly_once, received, is_sent, dup });
    }

    fn send(&mut self, packets: usize) {
        let (now, mut writer) = (Monotonic::default(), Writer::new(MqttVersion::V3));
        let (mut records, mut answers): (Vec<usize>, Vec<Answer>) = (Vec::new(), Vec::new());
        for sent in self.in_flight.iter_mut().filter(|sent| !sent.is_sent).take(packets) {
            sent.is_sent = true;
            if sent.received {
                self.deliveries.release(now, sent.packet_id, &mut writer);
                continue;
            }
            let payload = if self.equal { "equal".to_owned() } else { sent.message.to_string() };
            let publish = Publish {
                topic: Bytes::from_static(b"t"),
                payload: payload.into(),
                qos: if sent.exactly_once { Qos::ExactlyOnce } else { Qos::AtLeastOnce },
                packet_id: sent.packet_id,
                dup: std::mem::replace(&mut sent.dup, true),
                retain: false,
            };
            match self.deliveries.arrive(now, &publish) {
                Arrival::New(answer) => {
                    answers.extend(answer);
                    records.push(sent.message);
                }
                Arrival::Known(answer) => answers.push(answer),
            }
        }
        if !records.is_empty() {
            let noting = self.deliveries.noting(&answers);
            let changes = self.memory.changes("agent", "broker", noting);
            self.submit(records, changes, answers);
        } else if !answers.is_empty() {
            self.deliveries.submitted(None, answers);
            self.deliveries.answer(&mut writer);
        }
        self.take_answers(&mut writer);
    }

    fn submit(&mut self, records: Vec<usize>, changes: Vec<Change>, answers: Vec<Answer>) {
        self.tickets += 1;
        self.deliveries.submitted(Some(Ticket(self.tickets)), answers);
        self.submitted.push_back((Ticket(self.tickets), records, changes));
    }

    fn take_answers(&mut self, writer: &mut Writer) {
        let (packets, rest) = writer.buffer().as_chunks();
        assert!(rest.is_empty(), "each has four bytes");
        self.answers.extend(packets.iter().map(|packet| (self.acknowledgements, *packet)));
    }

    fn commit(&mut self) {
        let Some((ticket, records, changes)) = self.submitted.pop_front() else { return };
        self.stored.extend(records);
        for (key, value) in changes {
            self.remembered.remove(&key);
            self.remembered.extend(value.map(|value| (key, value)));
        }
        self.acknowledgements += 1;
        let mut writer = Writer::new(MqttVersion::V3);
        self.deliveries.acknowledged(Monotonic::default(), Acknowledgement::for_test(ticket), &mut writer);
        self.take_answers(&mut writer);
    }

    fn answer(&mut self, packets: usize) {
        for _ in 0..packets {
            let Some((_, [kind, _, high, low])) = self.answers.pop_front() else { return };
            let packet_id = u16::from_be_bytes([high, low]);
            let Some(index) = self.in_flight.iter().position(|sent| sent.packet_id == packet_id) else {
                continue;
            };
            let message = self.in_flight[index].message;
            assert!(self.stored.contains(&message), "message {message} is answered and not stored");
            if kind == 0x50 {
                self.in_flight[index].received = true;
                self.in_flight[index].is_sent = false;
            } else {
                self.in_flight.remove(index);
                self.finished.insert(message);
            }
        }
    }

    fn disconnect(&mut self) {
        self.answers.clear();
        self.in_flight.iter_mut().for_each(|sent| sent.is_sent = false);
        self.deliveries.disconnected();
    }

    /// Ends the agent; of its answers those arrive whose acknowledgement `arrives`.
    fn crash(&mut self, arrives: impl Fn(u64) -> bool) {
        self.answers.retain(|(acknowledgement, _)| arrives(*acknowledgement));
        self.answer(usize::MAX);
        self.disconnect();
        self.submitted.clear();
        let (memory, window, noted) = Memory::restore(&self.remembered);
        self.memory = memory;
        self.deliveries = Deliveries::new(RECEIVE_MAXIMUM, window, noted);
    }

    fn forget(&mut self) {
        self.disconnect();
        self.in_flight.clear();
        self.last_id = 0;
        self.deliveries.session_lost();
        self.note();
    }

    fn note(&mut self) {
        let noting = self.deliveries.noting(&[]);
        let changes = self.memory.changes("agent", "broker", noting);
        self.submit(Vec::new(), changes, Vec::new());
    }

    /// Lets the broker have done with all messages.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.send(usize::MAX);
            self.commit();
            self.answer(usize::MAX);
        }
        assert!(self.in_flight.is_empty(), "{:?}", self.in_flight);
    }

    /// Messages that were stored more than once.
    fn repeated(&self) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        self.stored.iter().copied().filter(|message| !seen.insert(*message)).collect()
    }
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    proptest::collection::vec(operation(), 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    /// Also where all of them say the same.
    #[test]
    fn a_message_is_stored_once_whatever_breaks(operations in operations(), equal in any::<bool>()) {
        let mut world = World::new(Ids::CountUp, equal);
        operations.iter().for_each(|operation| world.run(operation));
        world.settle();
        assert_eq!(world.finished.len(), world.published);
        assert_eq!(world.stored, (0..world.published).collect::<Vec<_>>(), "once and in order");
    }

    #[test]
    fn a_session_that_the_broker_lost_hides_no_message_of_the_next(
        operations in proptest::collection::vec(
            prop_oneof![12 => operation(), 1 => Just(Operation::Forget)], 1..150)
    ) {
        let mut world = World::new(Ids::CountUp, false);
        operations.iter().for_each(|operation| world.run(operation));
        world.settle();
        assert_eq!(world.repeated(), [] as [usize; 0]);
        assert!(world.finished.iter().all(|message| world.stored.contains(message)));
    }

    #[test]
    fn ids_that_are_given_anew_at_once_hide_no_message(operations in operations()) {
        let mut world = World::new(Ids::LowestFree, false);
        operations.iter().for_each(|operation| world.run(operation));
        world.settle();
        let stored: BTreeSet<_> = world.stored.iter().copied().collect();
        assert_eq!(stored.len(), world.published);
    }
}

/// Nobody can tell whether the broker has read a PUBACK: with ids that count up a message of before is one that it has not.
#[test]
fn a_puback_that_was_lost_with_the_connection_is_sent_again_and_the_message_not_stored() {
    let mut world = World::new(Ids::CountUp, true);
    for _ in 0..3 {
        world.publish(false);
    }
    for _ in 0..3 {
        world.send(1);
        world.commit();
    }
    assert_eq!(world.answers.len(), 3);
    world.disconnect();
    world.settle();
    assert_eq!(world.stored, [0, 1, 2]);
}

#[test]
fn an_id_that_comes_back_at_once_makes_an_equal_message_a_new_one() {
    let mut world = World::new(Ids::LowestFree, true);
    for _ in 0..2 {
        world.publish(false);
        world.send(1);
        world.commit();
        world.answer(1);
    }
    // Sent, and lost on its way.
    world.publish(false);
    world.in_flight[0].dup = true;
    world.disconnect();
    world.settle();
    assert_eq!(world.stored, [0, 1, 2]);
}

#[test]
fn a_note_of_another_client_id_or_of_a_later_release_is_no_memory() {
    let mut memory = Memory::default();
    let piece = || vec![(Some(7), Some([0, 7, 0, 0, 0, 1].into()))];
    let changes = memory.changes("a", "broker:1883", piece());
    assert_eq!(changes.len(), 2);
    assert_eq!(memory.changes("a", "broker:1883", Vec::new()), [], "as noted");
    assert_eq!(memory.changes("a", "broker:1883", piece())[0].0[..], *b"w\x07");
    assert_eq!(memory.broker("a"), Some("broker:1883"));
    assert_eq!(memory.broker("b"), None);
    let mut remembered: Remembered =
        changes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    assert_eq!(Memory::restore(&remembered).1, Window::from([(7, 1)]));
    remembered.values_mut().for_each(|value| *value = [0xff].into());
    let (memory, window, _) = Memory::restore(&remembered);
    assert_eq!((memory.broker("a"), window), (None, Window::new()));
}

#[test]
fn a_session_that_was_lost_and_an_id_of_two_equal_messages_leave_the_notes_at_once() {
    let known = |world: &World| Memory::restore(&world.remembered).1.into_keys().collect::<Vec<_>>();
    let mut world = World::new(Ids::LowestFree, true);
    for _ in 0..3 {
        world.publish(false);
    }
    world.send(3);
    world.commit();
    assert_eq!(known(&world), [1, 2, 3]);
    world.answer(1);
    for id in [1, 4] {
        world.publish(false);
        world.send(1);
        world.commit();
        assert_eq!(known(&world), [id], "of what was answered nothing");
    }
    world.forget();
    world.commit();
    assert_eq!(known(&world), [0; 0]);
}
