//! A device, what the listener knows of its session, and a log, under random schedules of connections that break and agents that
//! crash: each message is stored once.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::{
    memory::{note, restart},
    *,
};
use crate::log::Remembered;

#[derive(Clone, Debug)]
enum Operation {
    /// The device publishes, if it may.
    Publish { exactly_once: bool },
    /// What was taken becomes durable.
    Commit,
    /// The device reads up to so many answers.
    Read(usize),
    /// The connection breaks, and what was under way is gone.
    Break,
    /// The agent is killed; what it has sent arrives.
    Kill,
    /// The power fails: nothing arrives of what was sent and not read, for however many commits.
    PowerCut,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        8 => any::<bool>().prop_map(|exactly_once| Operation::Publish { exactly_once }),
        5 => Just(Operation::Commit),
        5 => (1..5_usize).prop_map(Operation::Read),
        1 => Just(Operation::Break),
        1 => Just(Operation::Kill),
        1 => Just(Operation::PowerCut),
    ]
}

/// A message at the device.
#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    message: usize,
    exactly_once: bool,
    /// PUBREC has come.
    received: bool,
}

struct World {
    /// All messages say the same.
    equal: bool,
    bench: Bench,
    key: ConnectionKey,
    published: usize,
    in_flight: Vec<InFlight>,
    finished: usize,
    /// Packets that the device has not read.
    answers: VecDeque<[u8; 4]>,
    /// Which message each that the agent has taken in this life is.
    taken: Vec<usize>,
    committed: usize,
    stored: Vec<usize>,
    remembered: Remembered,
}

impl World {
    fn new(equal: bool) -> Self {
        let mut bench = Bench::new(config());
        let (key, _) = bench.connect(&connect_v3("device", false));
        Self {
            equal,
            bench,
            key,
            published: 0,
            in_flight: Vec::new(),
            finished: 0,
            answers: VecDeque::new(),
            taken: Vec::new(),
            committed: 0,
            stored: Vec::new(),
            remembered: Remembered::new(),
        }
    }

    fn run(&mut self, operation: &Operation) {
        match *operation {
            Operation::Publish { exactly_once } => self.publish(exactly_once),
            Operation::Commit => self.commit(),
            Operation::Read(packets) => self.read(packets),
            Operation::Break => {
                self.answers.clear();
                self.bench.lose(self.key);
                self.connect();
            }
            Operation::Kill => {
                self.read(usize::MAX);
                self.crash();
            }
            Operation::PowerCut => self.crash(),
        }
    }

    fn publish(&mut self, exactly_once: bool) {
        if self.in_flight.len() == usize::from(config().receive_maximum) {
            return;
        }
        let message = self.published;
        self.published += 1;
        let packet_id = u16::try_from(self.published).expect("few");
        self.in_flight.push(InFlight { packet_id, message, exactly_once, received: false });
        self.send(self.in_flight.len() - 1, false);
    }

    fn send(&mut self, index: usize, dup: bool) {
        let InFlight { packet_id, message, exactly_once, received } = self.in_flight[index];
        let packet = if received {
            let [high, low] = packet_id.to_be_bytes();
            vec![0x62, 2, high, low]
        } else {
            let first = if exactly_once { 0x34 } else { 0x32 } | u8::from(dup) << 3;
            let payload = if self.equal { "equal".to_owned() } else { message.to_string() };
            publish_v3(first, "room/1", packet_id, &payload)
        };
        let out = self.bench.send(self.key, &packet);
        self.taken.resize(self.bench.payloads().len(), message);
        self.take_answers(&out);
    }

    fn take_answers(&mut self, out: &[u8]) {
        let (packets, rest) = out.as_chunks();
        assert!(rest.is_empty(), "each has four bytes: {out:?}");
        self.answers.extend(packets);
    }

    fn commit(&mut self) {
        note(&mut self.bench, &mut self.remembered);
        self.stored.extend(&self.taken[self.committed..]);
        self.committed = self.taken.len();
        self.bench.commit();
        let out = self.bench.output(self.key);
        self.take_answers(&out);
    }

    fn read(&mut self, packets: usize) {
        for _ in 0..packets {
            let Some([kind, _, high, low]) = self.answers.pop_front() else { return };
            let packet_id = u16::from_be_bytes([high, low]);
            let Some(index) = self.in_flight.iter().position(|sent| sent.packet_id == packet_id) else {
                continue;
            };
            let message = self.in_flight[index].message;
            assert!(self.stored.contains(&message), "message {message} is answered and not stored");
            if kind == 0x50 {
                self.in_flight[index].received = true;
                self.send(index, false);
            } else {
                self.in_flight.remove(index);
                self.finished += 1;
            }
        }
    }

    fn crash(&mut self) {
        self.answers.clear();
        self.taken.clear();
        self.committed = 0;
        self.bench = restart(&self.remembered);
        self.connect();
    }

    /// Connects, and sends again what has no answer.
    fn connect(&mut self) {
        (self.key, _) = self.bench.connect(&connect_v3("device", false));
        (0..self.in_flight.len()).for_each(|index| self.send(index, true));
    }

    /// Lets the device have done with all messages.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.commit();
            self.read(usize::MAX);
        }
        assert!(self.in_flight.is_empty(), "{:?}", self.in_flight);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    /// Also where all of them say the same.
    #[test]
    fn a_message_is_stored_once_whatever_breaks(
        operations in proptest::collection::vec(operation(), 1..150), equal in any::<bool>()
    ) {
        let mut world = World::new(equal);
        operations.iter().for_each(|operation| world.run(operation));
        world.settle();
        assert_eq!(world.finished, world.published);
        assert_eq!(world.stored.len(), world.published, "{:?}", world.stored);
        assert_eq!(world.stored.iter().collect::<BTreeSet<_>>().len(), world.published);
    }
}
