//! Messages: taken, stored, handed to those who want them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};

use super::{Broker, ConnectionKey, End, Incoming, Store, refused};
use crate::{
    config::{MqttVersion, Qos},
    env::Monotonic,
    intake::Ticket,
    source::listener::{
        connection::Arrival,
        outbox::Delivery,
        packet::{self, Packet, Property, Publish, Reason, RetainHandling, Subscribe, Unsubscribe},
        subscriptions::{Message, SessionKey},
    },
};

impl Broker {
    pub(super) fn publish(
        &mut self,
        now: Monotonic,
        key: ConnectionKey,
        session: SessionKey,
        publish: &Publish<'_>,
        payload: Bytes,
        store: &mut dyn Store,
    ) -> Result<(), End> {
        let connection = &mut self.connections[key];
        let known = &mut self.sessions[session].known;
        let arrival = connection.arrive(publish, known)?;
        let topic: Box<str>;
        let topic = if publish.alias.is_some() {
            topic = connection.topic(publish)?.into();
            &*topic
        } else {
            publish.topic
        };
        let is_known = matches!(arrival, Arrival::Known(_));
        let (ticket, answer) = match arrival {
            Arrival::UnderWay => return Ok(()),
            Arrival::Known(answer) => {
                *self.drops.entry("redelivered").or_default() += 1;
                // Where nothing was taken yet it was stored in a life before, and no commit is to come.
                let ticket = Some(store.last_ticket()).filter(|ticket| *ticket > Ticket::default());
                (ticket, Some(answer))
            }
            Arrival::New(answer) if self.access.publish(self.sessions[session].client(), topic) => {
                let message = Incoming { topic, payload: payload.clone(), properties: publish.properties };
                let taken = store.store(message);
                self.deliver(now, Some(session), topic, publish, payload);
                (taken.map(|taken| taken.place.0), answer.map(|answer| answer.to(taken)))
            }
            Arrival::New(answer) => {
                *self.drops.entry("not_authorized").or_default() += 1;
                (None, answer.map(|answer| answer.with_reason(Reason::NotAuthorized)))
            }
        };
        if let Some(answer) = answer {
            self.unacknowledged += 1;
            let connection = &mut self.connections[key];
            connection.answer(ticket, answer, &mut self.sessions[session].known);
            self.unacknowledged -= usize::from(connection.unacknowledged() == 0);
            if is_known || ticket.is_some() {
                let (packet_id, digest) = answer.message();
                self.sessions[session].known.noted.take(packet_id, digest);
                self.note_window(session);
            }
            if let Some(ticket) = ticket {
                if self.due.back() != Some(&(ticket, key)) {
                    self.due.push_back((ticket, key));
                }
                // What is repeated may be durable already.
                if let Some(acknowledgement) = self.last_acknowledgement.filter(|a| a.through() >= ticket) {
                    self.answer_due(key, acknowledgement, &BTreeSet::new());
                }
            }
        }
        Ok(())
    }

    /// Hands a message to those who want it, and keeps it if it is to be retained. They may see it before it is durable.
    fn deliver(
        &mut self,
        now: Monotonic,
        from: Option<SessionKey>,
        topic: &str,
        publish: &Publish<'_>,
        payload: Bytes,
    ) {
        let wanted =
            if self.subscriptions.is_empty() { BTreeMap::new() } else { self.subscriptions.matches(topic) };
        if wanted.is_empty() && !publish.retain {
            return;
        }
        let handed_on = |property: &Property<'_>| {
            !matches!(property.id, Property::ALIAS | Property::MESSAGE_EXPIRY | Property::WILL_DELAY)
        };
        let properties = publish.properties.iter().filter(handed_on).flat_map(|property| property.raw);
        let expiry_s = publish.properties.number(Property::MESSAGE_EXPIRY);
        let message = Arc::new(Message {
            topic: topic.into(),
            payload: Bytes::copy_from_slice(&payload), // a slice would keep all that came with it
            qos: publish.qos,
            retain: publish.retain,
            properties: properties.copied().collect(),
            expires_at: expiry_s.map(|s| now + Duration::from_secs(s.into())),
        });
        for (session, options) in wanted {
            let is_own = options.no_local && from == Some(session);
            if is_own || !self.access.receive(self.sessions[session].client(), topic) {
                continue;
            }
            let qos = publish.qos.min(options.qos);
            let retain = options.retain_as_published && publish.retain;
            self.push(session, Delivery::live(Arc::clone(&message), qos, retain));
        }
        if publish.retain {
            self.memory.retained(topic);
            if self.retained.set(message).is_err() {
                *self.drops.entry("retained_full").or_default() += 1;
            }
        }
    }

    fn push(&mut self, session: SessionKey, delivery: Delivery) {
        let state = &mut self.sessions[session];
        if state.connection.is_none() && delivery.qos == Qos::AtMostOnce {
            return;
        }
        let lost = state.outbox.push(delivery, self.config.queue_bytes);
        if lost > 0 {
            *self.drops.entry("slow_subscriber").or_default() += lost;
        }
        self.touched.extend(state.connection);
    }

    pub(super) fn subscribe(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        subscribe: &Subscribe<'_>,
    ) -> Result<(), End> {
        if subscribe.has_identifier {
            let what = "a subscription identifier";
            return Err(refused(Reason::SubscriptionIdentifiersNotSupported, what));
        }
        let (mut reasons, mut retained) = (Vec::new(), Vec::new());
        for (filter, mut options) in subscribe.filters() {
            options.qos = options.qos.min(Qos::AtLeastOnce);
            let granted = if options.qos == Qos::AtMostOnce { Reason::Success } else { Reason::GrantedQos1 };
            let reason = if filter.starts_with("$share/") {
                Reason::SharedSubscriptionsNotSupported
            } else if !self.access.subscribe(self.sessions[session].client(), filter) {
                Reason::NotAuthorized
            } else {
                match self.subscriptions.insert(filter, session, options) {
                    Ok(is_new) => {
                        self.sessions[session].filters.insert(filter.into());
                        let wanted = match options.retain_handling {
                            RetainHandling::Always => true,
                            RetainHandling::IfNew => is_new,
                            RetainHandling::Never => false,
                        };
                        if wanted {
                            let client = self.sessions[session].client();
                            let readable = self
                                .retained
                                .matching(filter)
                                .filter(|message| self.access.receive(client, &message.topic));
                            retained.extend(readable.map(|message| {
                                Delivery::retained(Arc::clone(message), message.qos.min(options.qos))
                            }));
                        }
                        granted
                    }
                    Err(_) => Reason::QuotaExceeded,
                }
            };
            reasons.push(reason);
        }
        self.note_session(session);
        let connection = &mut self.connections[key];
        packet::suback(&mut connection.out, connection.version, subscribe.packet_id, &reasons);
        for delivery in retained {
            self.push(session, delivery);
        }
        Ok(())
    }

    pub(super) fn unsubscribe(
        &mut self,
        key: ConnectionKey,
        session: SessionKey,
        unsubscribe: &Unsubscribe<'_>,
    ) {
        let mut reasons = Vec::new();
        for filter in unsubscribe.filters() {
            self.sessions[session].filters.remove(filter);
            let removed = self.subscriptions.remove(filter, session);
            reasons.push(if removed { Reason::Success } else { Reason::NoSubscriptionExisted });
        }
        self.note_session(session);
        let connection = &mut self.connections[key];
        packet::unsuback(&mut connection.out, connection.version, unsubscribe.packet_id, &reasons);
    }

    pub(super) fn publish_will(&mut self, now: Monotonic, key: SessionKey, store: &mut dyn Store) {
        let session = &mut self.sessions[key];
        session.will_at = None;
        let Some(will) = session.will.take() else { return };
        if let Ok(Packet::Publish(publish)) = packet::decode(MqttVersion::V5, &will.packet) {
            // It was allowed at CONNECT; the rules may be others now.
            if !self.access.publish(session.client(), publish.topic) {
                *self.drops.entry("not_authorized").or_default() += 1;
                return;
            }
            let payload = will.packet.slice_ref(publish.payload);
            let message =
                Incoming { topic: publish.topic, payload: payload.clone(), properties: publish.properties };
            store.store(message);
            self.deliver(now, Some(key), publish.topic, &publish, payload);
        }
    }
}

/// A will as the packet that it will be: QoS 2 as 1, since nobody is there to be answered.
pub(super) fn will_packet(publish: &Publish<'_>) -> Bytes {
    let properties = publish.properties.iter().filter(|property| property.id != Property::WILL_DELAY);
    let properties: Vec<u8> = properties.flat_map(|property| property.raw).copied().collect();
    let mut packet = BytesMut::new();
    let outgoing = packet::Outgoing {
        dup: false,
        qos: publish.qos.min(Qos::AtLeastOnce),
        retain: publish.retain,
        topic: publish.topic,
        packet_id: 1,
        expiry_s: None,
        properties: &properties,
        payload: publish.payload,
    };
    packet::publish(&mut packet, MqttVersion::V5, &outgoing);
    packet.freeze()
}
