//! The listener without sockets in [`broker`], [`sessions`], [`restarts`] and [`access`], with them in [`sockets`], [`secure`] and, in part, [`access`].

mod access;
mod broker;
mod memory;
mod restarts;
mod secure;
mod sessions;
mod sockets;

use std::time::Duration;

use super::{
    access::{Access, Configured},
    broker::{Broker, ConnectionKey, Incoming, Store},
    connection::Connection,
    packet::TOPIC_BYTES_MAX,
};
use crate::{
    config::{Anonymous, CertificateUser, Listener, Route, RouteDecode, Value},
    env::{Entropy, Monotonic},
    intake::{Acknowledgement, Ticket},
    record::StreamName,
};

/// What the tests listen with.
fn config() -> Listener {
    let stream = StreamName::new("readings").expect("a name");
    Listener {
        local_topic_filters: vec!["home/#".into()],
        routes: vec![Route {
            topic_filter: "room/+".into(),
            decode: RouteDecode::Raw { stream, device_topic: "room/{device}".into() },
            value: Value::Raw,
        }],
        ..Listener::for_test()
    }
}

/// A packet with first byte `first`.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let length = u8::try_from(body.len()).expect("short packets");
    assert!(length < 0x80, "short packets");
    [&[first, length], body].concat()
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("a text").to_be_bytes();
    [&length, text.as_bytes()].concat()
}

/// CONNECT of MQTT 5 with a session that lives for 300 s, keep-alive 60 s.
fn connect(id: &str, clean: bool) -> Vec<u8> {
    connect_with(id, if clean { 2 } else { 0 }, &[0x11, 0, 0, 1, 0x2c], &[])
}

fn connect_with(id: &str, flags: u8, properties: &[u8], behind: &[u8]) -> Vec<u8> {
    let head = [&[0, 4][..], b"MQTT", &[5, flags, 0, 60]].concat();
    let length = [u8::try_from(properties.len()).expect("few")];
    packet(0x10, &[&head, &length[..], properties, &text(id), behind].concat())
}

/// CONNECT of MQTT 3.1.1.
fn connect_v3(id: &str, clean: bool) -> Vec<u8> {
    let head = [&[0, 4][..], b"MQTT", &[4, if clean { 2 } else { 0 }, 0, 60]].concat();
    packet(0x10, &[head, text(id)].concat())
}

/// PUBLISH of MQTT 5; `first` has the flags.
fn publish(first: u8, topic: &str, id: u16, payload: &str) -> Vec<u8> {
    let id = if first & 6 == 0 { vec![] } else { id.to_be_bytes().to_vec() };
    packet(first, &[text(topic), id, vec![0], payload.as_bytes().to_vec()].concat())
}

/// PUBLISH of MQTT 3.1.1.
fn publish_v3(first: u8, topic: &str, id: u16, payload: &str) -> Vec<u8> {
    packet(first, &[text(topic), id.to_be_bytes().to_vec(), payload.as_bytes().to_vec()].concat())
}

/// SUBSCRIBE of MQTT 5 with id 1.
fn subscribe(filters: &[(&str, u8)]) -> Vec<u8> {
    let filters: Vec<u8> =
        filters.iter().flat_map(|(f, options)| [text(f), vec![*options]].concat()).collect();
    packet(0x82, &[&[0, 1, 0][..], &filters].concat())
}

/// A pipeline that commits when it is told to.
#[derive(Default)]
struct Taken {
    messages: Vec<(String, String)>,
    /// Messages of them that were submitted, in so many commits.
    submitted_messages: usize,
    submitted: u64,
}

impl Store for Taken {
    fn store(&mut self, message: Incoming<'_>) -> Option<super::broker::Taken> {
        if message.topic.starts_with("home/") {
            return None;
        }
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        let is_invalid = payload == "invalid";
        self.messages.push((message.topic.to_owned(), payload));
        let place = (Ticket(self.submitted + 1), self.messages.len() - 1);
        Some(super::broker::Taken { place, is_invalid })
    }

    fn last_ticket(&self) -> Ticket {
        Ticket(self.submitted + u64::from(self.messages.len() > self.submitted_messages))
    }
}

struct Counter(u64);

impl Entropy for Counter {
    fn next_u64(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }
}

/// A broker with its store and a clock that stands.
struct Bench {
    broker: Broker,
    taken: Taken,
    now: Monotonic,
}

impl Bench {
    fn new(config: Listener) -> Self {
        Self::with(config, Box::new(Configured::from(Anonymous::Loopback)))
    }

    fn with(config: Listener, access: Box<dyn Access>) -> Self {
        let broker = Broker::new(config, access, Box::new(Counter(0)));
        Self { broker, taken: Taken::default(), now: Monotonic::default() }
    }

    /// A connection that has sent nothing.
    fn open(&mut self) -> ConnectionKey {
        self.broker.open(self.now, [127, 0, 0, 1].into(), &mut self.taken).expect("a place")
    }

    /// A connection whose CONNECT was accepted; whether the session was there before.
    fn connect(&mut self, connect: &[u8]) -> (ConnectionKey, bool) {
        let key = self.open();
        let answer = self.send(key, connect);
        assert_eq!((answer[0], answer[3]), (0x20, 0), "{answer:?}");
        (key, answer[2] == 1)
    }

    /// A new connection to the session of `id`, and what comes behind its CONNACK.
    fn resume(&mut self, id: &str) -> (ConnectionKey, Vec<u8>) {
        let key = self.open();
        let mut answer = self.send(key, &connect(id, false));
        let missed = answer.split_off(usize::from(answer[1]) + 2);
        (key, missed)
    }

    /// What is answered to `bytes`, at once.
    fn send(&mut self, key: ConnectionKey, bytes: &[u8]) -> Vec<u8> {
        self.broker.received(self.now, key, bytes, &mut self.taken);
        self.output(key)
    }

    /// What is to be sent, which the client reads.
    fn output(&mut self, key: ConnectionKey) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(out) = self.broker.output(self.now, key)
            && !out.is_empty()
        {
            all.extend(out.split());
        }
        all
    }

    /// All that was taken becomes durable.
    fn commit(&mut self) {
        self.commit_but(&[]);
    }

    /// All but these becomes durable; a policy has dropped them. By their place among all messages.
    fn commit_but(&mut self, dropped: &[usize]) {
        self.taken.submitted += 1;
        self.taken.submitted_messages = self.taken.messages.len();
        let ticket = Ticket(self.taken.submitted);
        let dropped = dropped.iter().map(|index| (ticket, *index)).collect();
        self.broker.acknowledged(Acknowledgement::for_test(ticket), &dropped);
    }

    /// The socket broke.
    fn lose(&mut self, key: ConnectionKey) {
        self.broker.remove(self.now, key, &mut self.taken);
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        self.broker.expire(self.now, &mut self.taken);
    }

    fn payloads(&self) -> Vec<&str> {
        self.taken.messages.iter().map(|(_, payload)| payload.as_str()).collect()
    }

    /// Why the last connection was ended.
    fn refusal(&mut self) -> Option<&'static str> {
        self.broker.refusals().pop().map(|(_, error)| error.what)
    }
}
