//! The sending half of an MQTT session: packet identifiers, the window, and what must be sent again.
//!
//! No I/O and no clock. Readings stay in order in one queue until acknowledged; after a reconnect all of them go again in that order
//! (MQTT-4.6.0-1), with the packet identifiers they had. rumqttc's own client resends in the order of identifiers, which is
//! another one once they have wrapped, and forgets what is unacknowledged when the broker has lost the session.

use std::collections::VecDeque;

use bytes::Bytes;

/// Packet identifiers are 1..=65535 and each open reading has its own, so that many may be open.
pub const MAX_OPEN: usize = 65_535;

/// A reading in the hands of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Index of the device.
    pub device: u32,
    /// Sequence of the reading.
    pub seq: u64,
    /// What is published.
    pub payload: Bytes,
    /// When it was first sent, Unix microseconds; `None` before.
    pub sent_micros: Option<u64>,
}

#[derive(Debug)]
struct Open {
    item: Item,
    /// QoS 2: PUBREC has come, PUBREL is due or sent.
    received: bool,
}

/// What to put on the wire next.
#[derive(Debug, PartialEq, Eq)]
pub enum Send<'a> {
    /// PUBLISH; `item.sent_micros` tells whether it is a repetition, and the caller sets it.
    Publish {
        /// Packet identifier.
        packet_id: u16,
        /// The reading.
        item: &'a mut Item,
    },
    /// PUBREL of a reading that the broker has already received.
    Release {
        /// Packet identifier.
        packet_id: u16,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub struct Session {
    open: VecDeque<Option<Open>>,
    /// Running number of the front of `open`; a reading's packet identifier is its number modulo 65535, plus 1.
    base: u64,
    /// How many of `open` have been written on this connection.
    written: usize,
    inflight: usize,
    window: usize,
}

impl Session {
    /// Appends a reading. The caller keeps [`len`](Self::len) within [`MAX_OPEN`].
    pub fn push(&mut self, item: Item) {
        assert!(self.open.len() < MAX_OPEN, "more readings than packet identifiers");
        self.open.push_back(Some(Open { item, received: false }));
    }

    /// How many packet identifiers are taken, from the oldest open reading on; acknowledged ones behind it still count.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether all readings are acknowledged.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Starts over on a new connection. `window` is the broker's receive maximum.
    pub fn connected(&mut self, session_present: bool, window: u16) {
        (self.written, self.inflight, self.window) = (0, 0, usize::from(window));
        if !session_present {
            // The broker no longer knows that it received them.
            for open in self.open.iter_mut().flatten() {
                open.received = false;
            }
        }
    }

    /// The next packet that the window allows.
    pub fn next_send(&mut self) -> Option<Send<'_>> {
        if self.inflight >= self.window {
            return None;
        }
        while let Some(None) = self.open.get(self.written) {
            self.written += 1;
        }
        let packet_id = packet_id(self.base + self.written as u64);
        let open = self.open.get_mut(self.written)?.as_mut()?;
        self.written += 1;
        self.inflight += 1;
        Some(if open.received {
            Send::Release { packet_id }
        } else {
            Send::Publish { packet_id, item: &mut open.item }
        })
    }

    /// PUBACK or PUBCOMP: the reading is done with. `None` for an identifier that is not in flight, which is to be ignored.
    pub fn acknowledged(&mut self, packet_id: u16) -> Option<Item> {
        let at = self.in_flight(packet_id)?;
        let open = self.open[at].take()?;
        self.inflight -= 1;
        while let Some(None) = self.open.front() {
            self.open.pop_front();
            self.base += 1;
            self.written -= 1;
        }
        Some(open.item)
    }

    /// PUBREC. Whether the identifier is in flight, so that PUBREL is the answer.
    pub fn received(&mut self, packet_id: u16) -> bool {
        let open = self.in_flight(packet_id).and_then(|at| self.open[at].as_mut());
        open.map(|open| open.received = true).is_some()
    }

    fn in_flight(&self, packet_id: u16) -> Option<usize> {
        let ids = MAX_OPEN as u64;
        let at = (u64::from(packet_id.checked_sub(1)?) + ids - self.base % ids) % ids;
        usize::try_from(at).ok().filter(|&at| at < self.written)
    }
}

fn packet_id(number: u64) -> u16 {
    u16::try_from(number % MAX_OPEN as u64 + 1).expect("1..=65535 by the modulus")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(seq: u64) -> Item {
        Item { device: 0, seq, payload: Bytes::new(), sent_micros: None }
    }

    fn send_all(session: &mut Session) -> Vec<(u16, u64)> {
        let mut sent = Vec::new();
        while let Some(next) = session.next_send() {
            match next {
                Send::Publish { packet_id, item } => sent.push((packet_id, item.seq)),
                Send::Release { packet_id } => sent.push((packet_id, 0)),
            }
        }
        sent
    }

    #[test]
    fn what_is_not_acknowledged_goes_again_in_order_even_after_identifiers_wrapped() {
        let mut session = Session::default();
        session.connected(false, u16::MAX);
        for seq in 1..=65_533 {
            session.push(item(seq));
        }
        for (packet_id, seq) in send_all(&mut session) {
            assert_eq!(session.acknowledged(packet_id).unwrap().seq, seq);
        }
        for seq in 1..=5 {
            session.push(item(seq));
        }
        assert_eq!(send_all(&mut session), [(65_534, 1), (65_535, 2), (1, 3), (2, 4), (3, 5)]);
        session.acknowledged(65_535).unwrap();
        session.connected(false, u16::MAX);
        assert_eq!(send_all(&mut session), [(65_534, 1), (1, 3), (2, 4), (3, 5)]);
    }

    #[test]
    fn the_window_bounds_what_is_in_flight() {
        let mut session = Session::default();
        session.connected(false, 2);
        (1..=4).for_each(|seq| session.push(item(seq)));
        assert_eq!(send_all(&mut session), [(1, 1), (2, 2)]);
        session.acknowledged(1).unwrap();
        assert_eq!(send_all(&mut session), [(3, 3)]);
    }

    #[test]
    fn a_received_reading_is_released_in_its_session_and_published_again_in_a_new_one() {
        let mut session = Session::default();
        session.connected(false, 10);
        session.push(item(1));
        assert_eq!(send_all(&mut session), [(1, 1)]);
        assert!(session.received(1));
        session.connected(true, 10);
        assert_eq!(send_all(&mut session), [(1, 0)]);
        session.connected(false, 10);
        assert_eq!(send_all(&mut session), [(1, 1)]);
        assert_eq!(session.acknowledged(1).unwrap().seq, 1);
        assert!(session.is_empty());
    }

    #[test]
    fn identifiers_that_are_not_in_flight_are_ignored() {
        let mut session = Session::default();
        session.connected(false, 10);
        session.push(item(1));
        assert_eq!(session.acknowledged(1), None);
        send_all(&mut session);
        for packet_id in [0, 2, u16::MAX] {
            assert_eq!(session.acknowledged(packet_id), None);
            assert!(!session.received(packet_id));
        }
    }

    proptest! {
        #[test]
        fn every_reading_is_acknowledged_once_whatever_the_broker_does(
            steps in proptest::collection::vec((0..4u8, any::<u16>(), any::<bool>()), 1..300)
        ) {
            let mut session = Session::default();
            session.connected(false, 20);
            let (mut pushed, mut acknowledged) = (0u64, std::collections::BTreeSet::new());
            let mut in_flight: Vec<u16> = Vec::new();
            for (action, pick, flag) in steps {
                match action {
                    0 => { pushed += 1; session.push(item(pushed)); }
                    1 => in_flight.extend(send_all(&mut session).into_iter().map(|(packet_id, _)| packet_id)),
                    2 if !in_flight.is_empty() => {
                        let packet_id = in_flight.swap_remove(usize::from(pick) % in_flight.len());
                        if flag { prop_assert!(session.received(packet_id)); }
                        prop_assert!(acknowledged.insert(session.acknowledged(packet_id).unwrap().seq));
                    }
                    3 => { session.connected(flag, 20); in_flight.clear(); }
                    _ => {}
                }
                prop_assert!(in_flight.len() <= 20);
            }
            session.connected(false, 1000);
            for (packet_id, _) in send_all(&mut session) {
                prop_assert!(acknowledged.insert(session.acknowledged(packet_id).unwrap().seq));
            }
            prop_assert!(session.is_empty());
            prop_assert_eq!(acknowledged.len() as u64, pushed);
        }
    }
}
