//! A broker of MQTT with a session of the agent's.

use std::collections::{BTreeSet, VecDeque};

use rand::{Rng, rngs::SmallRng};

use super::{agent::RECEIVE_MAXIMUM, checker::Ledger};
use crate::{
    env::Clock,
    source::mqtt::simulated::{SimulatedPacket, SimulatedSession},
};

/// Messages that wait at the broker.
const QUEUE_MAX: usize = 64;

/// Devices that publish.
const VEHICLES: u32 = 3;

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    vehicle: u32,
    number: u32,
    exactly_once: bool,
    /// PUBREC has come.
    received: bool,
    /// PUBLISH or PUBREL is on its way.
    is_sent: bool,
    dup: bool,
}

/// The broker's end of the session.
#[derive(Debug, Default)]
pub(super) struct Broker {
    /// Messages that have no packet id yet: vehicle, number, QoS 2.
    queue: VecDeque<(u32, u32, bool)>,
    published: u32,
    last_id: u16,
    in_flight: Vec<InFlight>,
    to_agent: VecDeque<SimulatedPacket>,
    /// What the agent has sent, with the number of the turn.
    to_broker: VecDeque<(u64, [u8; 4])>,
    turns: u64,
    is_connected: bool,
    has_session: bool,
}

impl Broker {
    /// Devices publish.
    pub(super) fn load(&mut self, rng: &mut SmallRng) {
        if rng.random_bool(0.4) && self.queue.len() < QUEUE_MAX && self.has_session {
            let vehicle = rng.random_range(0..VEHICLES);
            self.queue.push_back((vehicle, self.published, rng.random_bool(0.3)));
            self.published += 1;
        }
    }

    /// Packets go both ways.
    pub(super) fn talk(
        &mut self,
        rng: &mut SmallRng,
        clock: &dyn Clock,
        session: &mut SimulatedSession,
        ledger: &mut Ledger,
    ) {
        if !self.is_connected && session.reads() {
            session.connected(std::mem::replace(&mut self.has_session, true));
            self.is_connected = true;
        }
        if self.is_connected {
            self.send();
        }
        let count = if session.reads() { rng.random_range(0..=self.to_agent.len()) } else { 0 };
        let packets = self.to_agent.drain(..count).collect();
        let sent = session.turn(clock, packets);
        let (answers, rest) = sent.as_chunks();
        assert!(rest.is_empty(), "each answer has four bytes");
        if self.is_connected {
            self.turns += u64::from(!answers.is_empty());
            self.to_broker.extend(answers.iter().map(|answer| (self.turns, *answer)));
        }
        // A busy broker leaves the answers of many turns unread.
        let count = if rng.random_bool(0.5) { rng.random_range(0..=self.to_broker.len()) } else { 0 };
        self.take_answers(count, ledger);
    }

    fn send(&mut self) {
        while self.in_flight.len() < usize::from(RECEIVE_MAXIMUM)
            && let Some((vehicle, number, exactly_once)) = self.queue.pop_front()
        {
            let used: BTreeSet<u16> = self.in_flight.iter().map(|sent| sent.packet_id).collect();
            let packet_id = (self.last_id % 1000 + 1..).find(|id| !used.contains(id)).expect("few are used");
            self.last_id = packet_id;
            let (received, is_sent, dup) = (false, false, false);
            let sent = InFlight { packet_id, vehicle, number, exactly_once, received, is_sent, dup };
            self.in_flight.push(sent);
        }
        for sent in self.in_flight.iter_mut().filter(|sent| !sent.is_sent) {
            sent.is_sent = true;
            self.to_agent.push_back(if sent.received {
                SimulatedPacket::Release(sent.packet_id)
            } else {
                SimulatedPacket::Publish {
                    topic: format!("vehicle/{}", sent.vehicle),
                    payload: sent.number.to_string().into(),
                    packet_id: sent.packet_id,
                    exactly_once: sent.exactly_once,
                    dup: std::mem::replace(&mut sent.dup, true),
                }
            });
        }
    }

    fn take_answers(&mut self, count: usize, ledger: &mut Ledger) {
        for (_, [kind, _, high, low]) in self.to_broker.drain(..count) {
            let packet_id = u16::from_be_bytes([high, low]);
            let Some(index) = self.in_flight.iter().position(|sent| sent.packet_id == packet_id) else {
                continue;
            };
            if kind == 0x50 {
                self.in_flight[index].received = true;
                self.in_flight[index].is_sent = false;
            }
            // With PUBREC or PUBACK the broker gives the message away.
            let sent = &self.in_flight[index];
            ledger.acknowledged_message(sent.vehicle, sent.number);
            if kind != 0x50 {
                self.in_flight.remove(index);
            }
        }
    }

    /// The connection is gone, with what was on it.
    pub(super) fn disconnect(&mut self) {
        self.is_connected = false;
        self.to_agent.clear();
        self.to_broker.clear();
        self.in_flight.iter_mut().for_each(|sent| sent.is_sent = false);
    }

    /// The connection breaks while the agent lives.
    pub(super) fn break_connection(
        &mut self,
        lost_turns: u64,
        session: &mut SimulatedSession,
        ledger: &mut Ledger,
    ) {
        if self.is_connected {
            session.disconnected();
            self.lose_last(lost_turns, ledger);
        }
    }

    /// The agent is killed: what it has sent arrives.
    pub(super) fn kill(&mut self, ledger: &mut Ledger) {
        self.take_answers(self.to_broker.len(), ledger);
        self.disconnect();
    }

    /// The connection ends, and what the agent has sent in its last so many `turns` does not arrive.
    pub(super) fn lose_last(&mut self, turns: u64, ledger: &mut Ledger) {
        let arrived = self.to_broker.partition_point(|(turn, _)| turn + turns <= self.turns);
        self.take_answers(arrived, ledger);
        self.disconnect();
    }

    /// The session is lost with all that is in flight.
    pub(super) fn forget_session(&mut self) {
        self.has_session = false;
        self.in_flight.clear();
        self.queue.clear();
    }

    /// Whether the broker has given everything away.
    pub(super) fn is_quiet(&self) -> bool {
        self.in_flight.is_empty() && self.queue.is_empty()
    }
}
