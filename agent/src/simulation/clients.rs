//! Devices that connect to the listener, with MQTT 3.1.1 and sessions that outlive their connections.

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};
use rand::{Rng, rngs::SmallRng};

use super::checker::Ledger;
use crate::{env::Clock, source::listener::simulated::SimulatedListener};

/// Messages that wait at a device.
const QUEUE_MAX: usize = 16;

/// Messages that a device has unanswered at most.
const IN_FLIGHT_MAX: usize = 6;

/// Messages that the listener remembers to have answered on a connection: more than a device has unanswered.
pub(super) const RECEIVE_MAXIMUM: u16 = 8;

/// Vehicles of the broker have lower numbers.
const FIRST_VEHICLE: u32 = 100;

#[derive(Debug)]
struct InFlight {
    packet_id: u16,
    number: u32,
    exactly_once: bool,
    /// PUBREC has come.
    received: bool,
    is_sent: bool,
    dup: bool,
}

#[derive(Debug)]
struct Client {
    vehicle: u32,
    /// Messages that have no packet id yet: number, QoS 2.
    queue: VecDeque<(u32, bool)>,
    published: u32,
    last_id: u16,
    in_flight: Vec<InFlight>,
    /// Its connection, and whether CONNACK has come.
    connection: Option<(usize, bool)>,
    to_agent: BytesMut,
    to_client: BytesMut,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Clients(Vec<Client>);

impl Clients {
    pub(super) fn new(rng: &mut SmallRng) -> Self {
        let count = rng.random_range(0..=3);
        Self((0..count).map(|n| Client::new(FIRST_VEHICLE + n)).collect())
    }

    /// Devices have something to say.
    pub(super) fn load(&mut self, rng: &mut SmallRng) {
        for client in &mut self.0 {
            if rng.random_bool(0.3) && client.queue.len() < QUEUE_MAX {
                client.queue.push_back((client.published, rng.random_bool(0.3)));
                client.published += 1;
            }
        }
    }

    /// Bytes go both ways.
    pub(super) fn talk(
        &mut self,
        rng: &mut SmallRng,
        clock: &dyn Clock,
        listener: &mut SimulatedListener,
        ledger: &mut Ledger,
    ) {
        for client in &mut self.0 {
            client.send(clock, listener);
            let (key, _) = client.connection.expect("it has connected");
            if listener.reads(clock, key) {
                let count = rng.random_range(0..=client.to_agent.len());
                listener.received(clock, key, &client.to_agent.split_to(count));
            }
        }
        listener.turn(clock);
        for client in &mut self.0 {
            let (key, _) = client.connection.expect("it has connected");
            let (sent, is_done) = listener.sent(clock, key);
            client.to_client.extend_from_slice(&sent);
            let count = rng.random_range(0..=client.to_client.len());
            client.take(count, ledger);
            if is_done {
                // A CONNECT that took too long.
                client.disconnect(rng, ledger);
                listener.close(clock, key);
            }
        }
    }

    /// The connection of one of them breaks while the agent lives: of what the agent has sent, some does not arrive.
    pub(super) fn break_connection(
        &mut self,
        rng: &mut SmallRng,
        clock: &dyn Clock,
        listener: &mut SimulatedListener,
        ledger: &mut Ledger,
    ) {
        if self.0.is_empty() {
            return;
        }
        let index = rng.random_range(0..self.0.len());
        let client = &mut self.0[index];
        if let Some((key, _)) = client.connection {
            client.disconnect(rng, ledger);
            listener.close(clock, key);
        }
    }

    /// The agent is gone: of what it has sent, some does not arrive.
    pub(super) fn disconnect(&mut self, rng: &mut SmallRng, ledger: &mut Ledger) {
        self.0.iter_mut().for_each(|client| client.disconnect(rng, ledger));
    }

    /// Whether all that was said is acknowledged.
    pub(super) fn is_quiet(&self) -> bool {
        self.0.iter().all(|client| client.in_flight.is_empty() && client.queue.is_empty())
    }
}

impl Client {
    fn new(vehicle: u32) -> Self {
        Self {
            vehicle,
            queue: VecDeque::new(),
            published: 0,
            last_id: 0,
            in_flight: Vec::new(),
            connection: None,
            to_agent: BytesMut::new(),
            to_client: BytesMut::new(),
        }
    }

    fn send(&mut self, clock: &dyn Clock, listener: &mut SimulatedListener) {
        let Some((_, is_accepted)) = self.connection else {
            self.connection = Some((listener.open(clock), false));
            // A session that stays, no keep-alive.
            let mut body = b"\0\x04MQTT\x04\0\0\0".to_vec();
            text(&mut body, &format!("client-{}", self.vehicle));
            return self.packet(0x10, &body);
        };
        if !is_accepted {
            return;
        }
        while self.in_flight.len() < IN_FLIGHT_MAX
            && let Some((number, exactly_once)) = self.queue.pop_front()
        {
            self.last_id = self.last_id % 1000 + 1;
            let (received, is_sent, dup) = (false, false, false);
            let packet_id = self.last_id;
            self.in_flight.push(InFlight { packet_id, number, exactly_once, received, is_sent, dup });
        }
        let topic = format!("vehicle/{}", self.vehicle);
        for index in 0..self.in_flight.len() {
            let sent = &mut self.in_flight[index];
            let (id, received) = (sent.packet_id.to_be_bytes(), sent.received);
            if std::mem::replace(&mut sent.is_sent, true) {
                continue;
            }
            if received {
                self.packet(0x62, &id);
                continue;
            }
            let (number, qos) = (sent.number, if sent.exactly_once { 0x04 } else { 0x02 });
            let dup = if std::mem::replace(&mut sent.dup, true) { 0x08 } else { 0 };
            let mut body = Vec::new();
            text(&mut body, &topic);
            body.extend(id);
            body.extend(number.to_string().bytes());
            self.packet(0x30 | qos | dup, &body);
        }
    }

    fn packet(&mut self, first: u8, body: &[u8]) {
        let length = u8::try_from(body.len()).expect("short packets");
        assert!(length < 0x80, "short packets");
        self.to_agent.extend_from_slice(&[first, length]);
        self.to_agent.extend_from_slice(body);
    }

    /// Takes the packets in the first `count` bytes of what has come. Each that comes has four bytes.
    fn take(&mut self, count: usize, ledger: &mut Ledger) {
        for _ in 0..count / 4 {
            let [kind, _, high, low] = self.to_client.get_u32().to_be_bytes();
            if kind == 0x20 {
                assert_eq!(low, 0, "CONNACK refuses");
                self.connection = self.connection.map(|(key, _)| (key, true));
                continue;
            }
            let packet_id = u16::from_be_bytes([high, low]);
            let Some(index) = self.in_flight.iter().position(|sent| sent.packet_id == packet_id) else {
                continue;
            };
            ledger.acknowledged_message(self.vehicle, self.in_flight[index].number);
            if kind == 0x50 {
                self.in_flight[index].received = true;
                self.in_flight[index].is_sent = false;
            } else {
                self.in_flight.remove(index);
            }
        }
    }

    fn disconnect(&mut self, rng: &mut SmallRng, ledger: &mut Ledger) {
        let count = rng.random_range(0..=self.to_client.len());
        self.take(count, ledger);
        self.connection = None;
        self.to_agent.clear();
        self.to_client.clear();
        self.in_flight.iter_mut().for_each(|sent| sent.is_sent = false);
    }
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.extend(u16::try_from(text.len()).expect("a text").to_be_bytes());
    body.extend(text.bytes());
}
