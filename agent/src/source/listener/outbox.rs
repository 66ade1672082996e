//! What waits for one subscriber: bounded in bytes, so that a slow one loses its own messages and nobody else's.

use std::{collections::VecDeque, sync::Arc};

use bytes::BytesMut;

use super::{
    packet::{self, Outgoing},
    subscriptions::Message,
};
use crate::{
    config::{MqttVersion, Qos},
    env::Monotonic,
};

/// Bytes of packets that are encoded ahead of the socket.
const ENCODED_BYTES: usize = 16 * 1024;

/// What a subscriber takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capacity {
    /// Version that it speaks.
    pub(super) version: MqttVersion,
    /// Messages of QoS 1 unacknowledged at once.
    pub(super) receive_maximum: u16,
    /// Largest packet, in bytes.
    pub(super) packet_bytes_max: usize,
}

/// A message for one subscriber.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    /// The message.
    pub(super) message: Arc<Message>,
    /// QoS 0 or 1.
    pub(super) qos: Qos,
    /// RETAIN of the packet.
    pub(super) retain: bool,
    /// Given when it is first sent; 0 until then.
    packet_id: u16,
    /// What it is counted with: a retained message that is kept anyway costs its place in the queue alone.
    cost_bytes: usize,
}

impl Delivery {
    /// A message that was just published.
    pub(super) fn live(message: Arc<Message>, qos: Qos, retain: bool) -> Self {
        let cost_bytes = size_of::<Self>() + message.size_bytes();
        Self { message, qos, retain, packet_id: 0, cost_bytes }
    }

    /// A retained message for a new subscription (section 3.3.1.3).
    pub(super) fn retained(message: Arc<Message>, qos: Qos) -> Self {
        Self { message, qos, retain: true, packet_id: 0, cost_bytes: size_of::<Self>() }
    }
}

/// Messages that a subscriber has not got, and those that it has not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Delivery>,
    in_flight: VecDeque<Delivery>,
    size_bytes: usize,
    last_id: u16,
}

impl Outbox {
    /// Queues `delivery` behind the others. Returns how many of the oldest had to go to stay within `limit_bytes`.
    pub(super) fn push(&mut self, delivery: Delivery, limit_bytes: usize) -> u64 {
        let mut lost = 0;
        if delivery.cost_bytes > limit_bytes {
            return 1;
        }
        while self.size_bytes + delivery.cost_bytes > limit_bytes {
            // What is in flight stays: its packet id is the subscriber's to release.
            let Some(oldest) = self.queue.pop_front() else { return lost + 1 };
            self.size_bytes -= oldest.cost_bytes;
            lost += 1;
        }
        self.size_bytes += delivery.cost_bytes;
        self.queue.push_back(delivery);
        lost
    }

    /// Moves messages to `out` as far as the subscriber takes them. Returns how many were larger than it takes.
    pub(super) fn fill(&mut self, now: Monotonic, capacity: &Capacity, out: &mut BytesMut) -> u64 {
        let mut lost = 0;
        while out.len() < ENCODED_BYTES {
            let full = self.in_flight.len() >= usize::from(capacity.receive_maximum);
            let Some(mut delivery) = self.queue.pop_front_if(|next| !full || next.qos == Qos::AtMostOnce)
            else {
                break;
            };
            self.size_bytes -= delivery.cost_bytes;
            let Some(outgoing) = delivery.message.outgoing(now) else { continue };
            let dup = delivery.packet_id != 0;
            if delivery.qos != Qos::AtMostOnce && !dup {
                delivery.packet_id = self.next_id();
            }
            let packet_id = delivery.packet_id;
            let packet = Outgoing { dup, qos: delivery.qos, retain: delivery.retain, packet_id, ..outgoing };
            if packet.size_bytes(capacity.version) > capacity.packet_bytes_max {
                lost += 1; // MQTT-3.1.2-25: as if it had been sent
                continue;
            }
            packet::publish(out, capacity.version, &packet);
            if delivery.qos != Qos::AtMostOnce {
                self.size_bytes += delivery.cost_bytes;
                self.in_flight.push_back(delivery);
            }
        }
        if self.queue.is_empty() && self.in_flight.is_empty() {
            // No buffer for one who has all.
            (self.queue, self.in_flight) = (VecDeque::new(), VecDeque::new());
        }
        lost
    }

    /// The subscriber has the message `packet_id`.
    pub(super) fn acknowledged(&mut self, packet_id: u16) {
        if let Some(at) = self.in_flight.iter().position(|delivery| delivery.packet_id == packet_id)
            && let Some(delivery) = self.in_flight.remove(at)
        {
            self.size_bytes -= delivery.cost_bytes;
        }
    }

    /// The connection is gone: what was in flight goes first on the next one, in order and with its packet ids
    /// (MQTT-4.4.0-1). QoS 0 does not wait for a subscriber that is away.
    pub(super) fn disconnected(&mut self) {
        while let Some(delivery) = self.in_flight.pop_back() {
            self.queue.push_front(delivery);
        }
        self.queue.retain(|delivery| delivery.qos != Qos::AtMostOnce);
        self.size_bytes = self.queue.iter().map(|delivery| delivery.cost_bytes).sum();
    }

    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let in_use = |delivery: &Delivery| delivery.packet_id == self.last_id;
            // Ends: far fewer than 65 535 are in flight.
            if !self.in_flight.iter().chain(&self.queue).any(in_use) {
                return self.last_id;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const CAPACITY: Capacity =
        Capacity { version: MqttVersion::V3, receive_maximum: 2, packet_bytes_max: 1000 };

    fn delivery(payload: &'static str, qos: Qos) -> Delivery {
        let message = Message {
            topic: "t".into(),
            payload: Bytes::from_static(payload.as_bytes()),
            qos,
            retain: false,
            properties: Box::default(),
            expires_at: None,
        };
        Delivery::live(Arc::new(message), qos, false)
    }

    fn filled(outbox: &mut Outbox) -> Vec<u8> {
        let mut out = BytesMut::new();
        outbox.fill(Monotonic::default(), &CAPACITY, &mut out);
        out.to_vec()
    }

    #[test]
    fn a_subscriber_that_is_slow_loses_its_oldest_messages() {
        let mut outbox = Outbox::default();
        let limit_bytes = 2 * delivery("1", Qos::AtMostOnce).cost_bytes;
        for (payload, lost) in [("1", 0), ("2", 0), ("3", 1)] {
            assert_eq!(outbox.push(delivery(payload, Qos::AtMostOnce), limit_bytes), lost);
        }
        assert_eq!(filled(&mut outbox), b"\x30\x04\0\x01t2\x30\x04\0\x01t3");
        assert_eq!(outbox.size_bytes, 0);
        assert_eq!(outbox.push(delivery("larger than all", Qos::AtMostOnce), 10), 1);
    }

    #[test]
    fn no_more_is_in_flight_than_the_subscriber_takes_and_a_new_connection_gets_it_again() {
        let mut outbox = Outbox::default();
        for payload in ["1", "2", "3"] {
            outbox.push(delivery(payload, Qos::AtLeastOnce), 10_000);
        }
        assert_eq!(filled(&mut outbox), b"\x32\x06\0\x01t\0\x011\x32\x06\0\x01t\0\x022");
        outbox.acknowledged(1);
        assert_eq!(filled(&mut outbox), b"\x32\x06\0\x01t\0\x033");
        outbox.disconnected();
        assert_eq!(filled(&mut outbox), b"\x3a\x06\0\x01t\0\x022\x3a\x06\0\x01t\0\x033", "with DUP");
        outbox.acknowledged(2);
        outbox.acknowledged(3);
        outbox.acknowledged(4);
        assert_eq!((outbox.size_bytes, filled(&mut outbox)), (0, vec![]));
    }

    #[test]
    fn qos_0_does_not_wait_for_a_subscriber_that_went_away() {
        let mut outbox = Outbox::default();
        outbox.push(delivery("1", Qos::AtMostOnce), 10_000);
        outbox.disconnected();
        assert_eq!((outbox.size_bytes, filled(&mut outbox)), (0, vec![]));
    }

    #[test]
    fn a_message_that_is_too_large_or_has_expired_is_passed_over() {
        let mut outbox = Outbox::default();
        let long = delivery("0123456789", Qos::AtMostOnce);
        outbox.push(long, 10_000);
        let capacity = Capacity { packet_bytes_max: 10, ..CAPACITY };
        assert_eq!(outbox.fill(Monotonic::default(), &capacity, &mut BytesMut::new()), 1);
        let mut late = delivery("1", Qos::AtMostOnce);
        let message = Arc::get_mut(&mut late.message).expect("one owner");
        message.expires_at = Some(Monotonic::default());
        outbox.push(late, 10_000);
        assert_eq!(filled(&mut outbox), b"");
    }
}
