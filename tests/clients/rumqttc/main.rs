//! rumqttc behind the protocol of tests/harness/client.rs.

use std::io::BufRead as _;
use std::sync::mpsc::{self, Sender};

/// What the event loop tells.
#[derive(Debug)]
enum Told {
    Connected { session_present: bool },
    Refused(String),
    Published,
    Subscribed,
    Ended,
}

/// Where to connect, and as whom.
#[derive(Debug, Default)]
struct Server {
    host: String,
    port: u16,
    ca: Option<Vec<u8>>,
    user: String,
    password: String,
}

trait Client {
    fn publish(&self, qos: &str, retain: bool, topic: &str, payload: &str);
    fn subscribe(&self, qos: &str, topic_filter: &str);
    fn disconnect(&self);
}

/// rumqttc has the same client twice, once for each version of the protocol; what differs is given.
macro_rules! client {
    ($version:ident, $($module:ident)::+, $keep:expr, $will:expr, $topic:expr) => {
        mod $version {
            use super::{Client, Sender, Server, Told};
            use rumqttc::{Outgoing, Transport};
            use $($module)::+::mqttbytes::{QoS, $version::*};
            use $($module)::+::{ConnectionError, Event, MqttOptions};

            pub(super) fn connect(server: &Server, words: &[&str], told: Sender<Told>) -> Box<dyn Client> {
                let mut options = MqttOptions::new(words[0], server.host.clone(), server.port);
                $keep(&mut options, words[1] == "keep");
                if let [_, _, topic, payload] = words {
                    options.set_last_will($will(*topic, *payload));
                }
                if !server.user.is_empty() {
                    options.set_credentials(server.user.clone(), server.password.clone());
                }
                if let Some(ca) = &server.ca {
                    options.set_transport(Transport::tls(ca.clone(), None, None));
                }
                let (client, mut connection) = $($module)::+::Client::new(options, 16);
                std::thread::spawn(move || {
                    for event in connection.iter() {
                        let news = match event {
                            Ok(Event::Incoming(Packet::ConnAck(answer))) => {
                                Told::Connected { session_present: answer.session_present }
                            }
                            Ok(Event::Incoming(Packet::SubAck(_))) => Told::Subscribed,
                            Ok(Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => Told::Published,
                            // QoS 0 has no packet id and no answer.
                            Ok(Event::Outgoing(Outgoing::Publish(0))) => Told::Published,
                            Ok(Event::Incoming(Packet::Publish(message))) => {
                                let (qos, retain) = (message.qos as u8, u8::from(message.retain));
                                let payload = String::from_utf8_lossy(&message.payload);
                                println!("message {qos} {retain} {} {payload}", $topic(&message.topic));
                                continue;
                            }
                            Ok(_) => continue,
                            Err(error @ ConnectionError::ConnectionRefused(_)) => {
                                Told::Refused(error.to_string())
                            }
                            Err(_) => Told::Ended,
                        };
                        let last = matches!(news, Told::Refused(_) | Told::Ended);
                        if told.send(news).is_err() || last {
                            return;
                        }
                    }
                });
                Box::new(client)
            }

            fn qos(digit: &str) -> QoS {
                match digit {
                    "0" => QoS::AtMostOnce,
                    "1" => QoS::AtLeastOnce,
                    _ => QoS::ExactlyOnce,
                }
            }

            impl Client for $($module)::+::Client {
                fn publish(&self, digit: &str, retain: bool, topic: &str, payload: &str) {
                    self.publish(topic, qos(digit), retain, payload.to_owned()).expect("its event loop runs");
                }

                fn subscribe(&self, digit: &str, topic_filter: &str) {
                    self.subscribe(topic_filter, qos(digit)).expect("its event loop runs");
                }

                fn disconnect(&self) {
                    self.disconnect().expect("its event loop runs");
                }
            }
        }
    };
}

client!(
    v4,
    rumqttc,
    |options: &mut MqttOptions, keep: bool| {
        options.set_clean_session(!keep);
    },
    |topic, payload| LastWill::new(topic, payload, QoS::AtLeastOnce, false),
    |topic: &String| topic.clone()
);
client!(
    v5,
    rumqttc::v5,
    |options: &mut MqttOptions, keep: bool| {
        let properties =
            ConnectProperties { session_expiry_interval: keep.then_some(300), ..ConnectProperties::new() };
        options.set_clean_start(!keep).set_connect_properties(properties);
    },
    |topic, payload| LastWill::new(topic, payload, QoS::AtLeastOnce, false, None),
    |topic: &[u8]| String::from_utf8_lossy(topic).into_owned()
);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, port, version, options @ ..] = &arguments[..] else { panic!("HOST PORT VERSION") };
    let port = port.parse().expect("a port");
    let mut server = Server { host: host.clone(), port, ..Server::default() };
    for option in options {
        match option.split_once('=') {
            Some(("ca", path)) => server.ca = Some(std::fs::read(path).expect("a CA")),
            Some(("user", user)) => server.user = user.to_owned(),
            Some(("password", password)) => server.password = password.to_owned(),
            _ => panic!("not understood: {option}"),
        }
    }
    let mut connection = None;
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split(' ').collect();
        if let ["connect", words @ ..] = &words[..] {
            let (sender, told) = mpsc::channel();
            let client = if version == "3" {
                v4::connect(&server, words, sender)
            } else {
                v5::connect(&server, words, sender)
            };
            match told.recv().expect("connected or not") {
                Told::Connected { session_present } => println!("connected {}", u8::from(session_present)),
                Told::Refused(reason) => println!("refused {reason}"),
                other => panic!("{other:?} instead of CONNACK"),
            }
            connection = Some((client, told));
            continue;
        }
        let (client, told) = connection.as_ref().expect("`connect` comes first");
        let (wanted, answer) = match &words[..] {
            ["publish", qos, retain, topic, payload] => {
                client.publish(qos, *retain == "1", topic, payload);
                (Told::Published, "published")
            }
            ["subscribe", qos, topic_filter] => {
                client.subscribe(qos, topic_filter);
                (Told::Subscribed, "subscribed")
            }
            ["disconnect"] => {
                client.disconnect();
                (Told::Ended, "disconnected")
            }
            ["die"] => std::process::exit(0),
            _ => panic!("not understood: {line}"),
        };
        let news = told.recv().expect("the event loop answers");
        assert!(std::mem::discriminant(&news) == std::mem::discriminant(&wanted), "{line}: {news:?}");
        println!("{answer}");
    }
}
