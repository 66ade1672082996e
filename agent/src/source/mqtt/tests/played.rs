//! Order and time of every packet, against a broker played by the test.

use bytes::BytesMut;
use rumqttc::v5::mqttbytes::{QoS, v5};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    config::{DEAD_LETTER_STREAM, GAPS_STREAM},
    source::testing::{free_address, on_one_thread, within},
};

/// The broker's side of one connection, MQTT 5.
struct Peer {
    stream: TcpStream,
    inbound: BytesMut,
}

impl Peer {
    /// Accepts a connection and answers CONNECT; returns the CONNECT.
    async fn accept(listener: &TcpListener, session_present: bool) -> (Self, v5::Connect) {
        let mut peer = Self::accept_silently(listener).await;
        let v5::Packet::Connect(connect, None, None) = peer.packet().await else { panic!("no CONNECT") };
        let code = v5::ConnectReturnCode::Success;
        peer.send(v5::Packet::ConnAck(v5::ConnAck { session_present, code, properties: None })).await;
        (peer, connect)
    }

    /// Accepts a connection, answers CONNECT and grants all filters.
    async fn accept_and_grant(listener: &TcpListener) -> Self {
        let (mut peer, _) = Self::accept(listener, false).await;
        peer.grant().await;
        peer
    }

    async fn accept_silently(listener: &TcpListener) -> Self {
        let (stream, _) = within("a connection", listener.accept()).await.expect("accepts");
        Self { stream, inbound: BytesMut::new() }
    }

    async fn grant(&mut self) {
        let v5::Packet::Subscribe(subscribe) = self.packet().await else { panic!("no SUBSCRIBE") };
        let filters: Vec<_> = subscribe.filters.iter().map(|filter| filter.path.as_str()).collect();
        assert_eq!(filters, ["room/+/state", "vehicle/+"]);
        let granted = v5::SubscribeReasonCode::Success(QoS::ExactlyOnce);
        self.answer_subscribe(subscribe.pkid, vec![granted; 2]).await;
    }

    async fn answer_subscribe(&mut self, pkid: u16, return_codes: Vec<v5::SubscribeReasonCode>) {
        self.send(v5::Packet::SubAck(v5::SubAck { pkid, return_codes, properties: None })).await;
    }

    async fn packet(&mut self) -> v5::Packet {
        within("a packet", async {
            loop {
                match v5::Packet::read(&mut self.inbound, None) {
                    Ok(packet) => return packet,
                    Err(rumqttc::v5::mqttbytes::Error::InsufficientBytes(_)) => {}
                    // The codec cannot read what it writes itself: DISCONNECT without reason.
                    Err(rumqttc::v5::mqttbytes::Error::PayloadRequired) => {
                        return v5::Packet::Disconnect(v5::Disconnect::new(
                            v5::DisconnectReasonCode::NormalDisconnection,
                        ));
                    }
                    Err(error) => panic!("{error}"),
                }
                let read = self.stream.read_buf(&mut self.inbound).await.expect("reads");
                assert_ne!(read, 0, "the source has hung up");
            }
        })
        .await
    }

    async fn send(&mut self, packet: v5::Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).expect("fits");
        self.stream.write_all(&bytes).await.expect("writes");
    }

    async fn publish(&mut self, qos: QoS, pkid: u16, dup: bool, payload: &str) {
        self.publish_to("vehicle/7", qos, pkid, dup, payload).await;
    }

    async fn publish_to(&mut self, topic: &str, qos: QoS, pkid: u16, dup: bool, payload: &str) {
        let mut publish = v5::Publish::new(topic, qos, payload.to_owned(), None);
        (publish.pkid, publish.dup) = (pkid, dup);
        self.send(v5::Packet::Publish(publish)).await;
    }

    async fn release(&mut self, pkid: u16) {
        self.send(v5::Packet::PubRel(v5::PubRel::new(pkid, None))).await;
    }
}

fn puback(pkid: u16) -> v5::Packet {
    v5::Packet::PubAck(v5::PubAck::new(pkid, None))
}

fn pubrec(pkid: u16) -> v5::Packet {
    v5::Packet::PubRec(v5::PubRec::new(pkid, None))
}

fn pubcomp(pkid: u16) -> v5::Packet {
    v5::Packet::PubComp(v5::PubComp::new(pkid, None))
}

async fn listen() -> (TcpListener, MqttSource) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("has an address").port();
    (listener, config(MqttVersion::V5, Qos::AtLeastOnce, &[port]))
}

#[test]
fn connect_asks_for_a_persistent_session_with_limits() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let _pipeline = start(config);
        let (_peer, connect) = Peer::accept(&listener, false).await;
        assert_eq!(connect.client_id, "wayside-test");
        assert!(!connect.clean_start);
        let properties = connect.properties.expect("properties");
        assert_eq!(properties.session_expiry_interval, Some(3600));
        assert_eq!(properties.receive_maximum, Some(100));
        assert_eq!(properties.max_packet_size, Some(4096));
        assert_eq!(properties.topic_alias_max, None);
    });
}

#[test]
fn pubacks_leave_in_publish_order_and_only_after_the_commit() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        let mut tickets = Vec::new();
        for pkid in [9, 4, 6] {
            peer.publish(QoS::AtLeastOnce, pkid, false, &pkid.to_string()).await;
            let (ticket, record) = pipeline.record().await;
            assert_eq!(record.value, pkid.to_string());
            tickets.push(ticket);
        }
        pipeline.acknowledge(tickets[1]);
        assert_eq!(peer.packet().await, puback(9));
        assert_eq!(peer.packet().await, puback(4));
        // PUBREL is answered at once: a PUBACK that came too early would come before the PUBCOMP.
        peer.release(1).await;
        assert_eq!(peer.packet().await, pubcomp(1));
        pipeline.acknowledge(tickets[2]);
        assert_eq!(peer.packet().await, puback(6));
    });
}

#[test]
fn acknowledgements_of_one_window_leave_in_one_write() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        for pkid in 1..=90 {
            peer.publish(QoS::AtLeastOnce, pkid, false, "x").await;
        }
        for _ in 1..=90 {
            pipeline.record().await;
        }
        pipeline.acknowledge_all();
        let mut bytes = BytesMut::with_capacity(4096);
        within("PUBACKs", peer.stream.read_buf(&mut bytes)).await.expect("reads");
        let mut expected = BytesMut::new();
        for pkid in 1..=90 {
            puback(pkid).write(&mut expected, None).expect("fits");
        }
        assert_eq!(bytes, expected, "one read takes them all");
    });
}

#[test]
fn a_repetition_after_a_reconnect_is_answered_and_not_stored_again() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::AtLeastOnce, 5, false, "five").await;
        pipeline.record().await;
        drop(peer);
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.publish(QoS::AtLeastOnce, 5, true, "five").await;
        peer.publish(QoS::AtLeastOnce, 6, false, "six").await;
        assert_eq!(pipeline.record().await.1.value, "six");
        pipeline.acknowledge_all();
        assert_eq!(peer.packet().await, puback(5));
        assert_eq!(peer.packet().await, puback(6));
        assert_eq!(pipeline.rest(), []);
    });
}

#[test]
fn an_acknowledgement_that_comes_while_disconnected_answers_the_repetition() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::AtLeastOnce, 5, false, "five").await;
        pipeline.record().await;
        drop(peer);
        pipeline.metric("wayside_source_connected{source=\"test\"} 0").await;
        pipeline.acknowledge_all();
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.publish(QoS::AtLeastOnce, 5, true, "five").await;
        assert_eq!(peer.packet().await, puback(5));
    });
}

#[test]
fn an_id_of_another_message_or_of_a_lost_session_is_a_new_message() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::AtLeastOnce, 5, false, "five").await;
        pipeline.record().await;
        drop(peer);
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.publish(QoS::AtLeastOnce, 5, true, "another").await;
        assert_eq!(pipeline.record().await.1.value, "another");
        drop(peer);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::AtLeastOnce, 5, true, "another").await;
        assert_eq!(pipeline.record().await.1.value, "another");
    });
}

#[test]
fn qos_2_is_answered_after_the_commit_and_survives_a_reconnect_at_every_step() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::ExactlyOnce, 5, false, "five").await;
        pipeline.record().await;
        pipeline.acknowledge_all();
        assert_eq!(peer.packet().await, pubrec(5));
        drop(peer);
        // The PUBREC was lost: the message comes again.
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.publish(QoS::ExactlyOnce, 5, true, "five").await;
        assert_eq!(peer.packet().await, pubrec(5));
        drop(peer);
        // The PUBREC arrived: PUBREL comes on the next connection.
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.release(5).await;
        assert_eq!(peer.packet().await, pubcomp(5));
        drop(peer);
        // The PUBCOMP was lost: PUBREL comes again, for an id that nobody knows any more.
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.release(5).await;
        assert_eq!(peer.packet().await, pubcomp(5));
        assert_eq!(pipeline.rest(), []);
        // The id is free for the next message.
        peer.publish(QoS::ExactlyOnce, 5, false, "five").await;
        pipeline.record().await;
    });
}

#[test]
fn what_was_stored_before_a_crash_is_answered_and_not_stored_again() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config.clone());
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::AtLeastOnce, 5, false, "five").await;
        peer.publish(QoS::ExactlyOnce, 6, false, "six").await;
        pipeline.record().await;
        pipeline.record().await;
        pipeline.abort().await;
        drop(peer);
        let mut pipeline = start_again(config.clone(), pipeline.remembered.clone());
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.grant().await;
        peer.publish(QoS::AtLeastOnce, 5, true, "five").await;
        assert_eq!(peer.packet().await, puback(5));
        peer.publish(QoS::ExactlyOnce, 6, true, "six").await;
        assert_eq!(peer.packet().await, pubrec(6));
        let dropped = "wayside_source_dropped_total{source=\"test\",reason=\"redelivered\"} 2";
        pipeline.metric(dropped).await;
        // The next one is noted without what the broker has not sent again; PUBREL comes in a third life.
        peer.publish(QoS::AtLeastOnce, 7, false, "seven").await;
        assert_eq!(pipeline.record().await.1.value, "seven");
        pipeline.abort().await;
        drop(peer);
        let mut pipeline = start_again(config, pipeline.remembered.clone());
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.grant().await;
        peer.release(6).await;
        assert_eq!(peer.packet().await, pubcomp(6));
        peer.publish(QoS::AtLeastOnce, 7, true, "seven").await;
        assert_eq!(peer.packet().await, puback(7));
        assert_eq!(pipeline.rest(), []);
    });
}

#[test]
fn after_a_crash_the_broker_that_has_the_session_is_tried_first_and_a_lost_session_is_forgotten() {
    on_one_thread(async {
        let (first, mut config) = listen().await;
        let second = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let port = second.local_addr().expect("has an address").port();
        config
            .brokers
            .insert(0, Broker { host: "127.0.0.1".into(), port: free_address().port(), tls: false });
        config.brokers.push(Broker { host: "127.0.0.1".into(), port, tls: false });
        let mut pipeline = start(config.clone());
        let mut peer = Peer::accept_and_grant(&first).await;
        peer.publish(QoS::AtLeastOnce, 5, false, "five").await;
        pipeline.record().await;
        pipeline.abort().await;
        drop(peer);
        let mut pipeline = start_again(config.clone(), pipeline.remembered.clone());
        // At once: no failure is counted.
        let mut peer = Peer::accept_and_grant(&first).await;
        pipeline.metric("wayside_source_connections_total{source=\"test\"} 1").await;
        pipeline.metric("wayside_source_failures_total{source=\"test\"} 0").await;
        peer.publish(QoS::AtLeastOnce, 5, true, "five").await;
        assert_eq!(pipeline.record().await.1.value, "five", "of a new session");
        pipeline.abort().await;
        drop((peer, first));
        // It is gone; the other one has an old session of ours, in which the id is another message.
        let mut pipeline = start_again(config, pipeline.remembered.clone());
        let (mut peer, _) = Peer::accept(&second, true).await;
        peer.publish(QoS::AtLeastOnce, 5, true, "five").await;
        assert_eq!(pipeline.record().await.1.value, "five", "of another broker");
    });
}

#[test]
fn a_full_intake_stops_the_reading_and_neither_pings_nor_acknowledgements() {
    on_one_thread(async {
        let (listener, mut config) = listen().await;
        config.keep_alive = Duration::from_secs(1);
        let mut pipeline = FakePipeline::start(1000, |context| run(config, RECORD_BYTES_MAX, context));
        let mut peer = Peer::accept_and_grant(&listener).await;
        pipeline.keep_room();
        peer.publish(QoS::AtLeastOnce, 1, false, &"x".repeat(900)).await;
        pipeline.record().await;
        assert_eq!(pipeline.room_bytes(), 0);
        peer.publish(QoS::AtLeastOnce, 2, false, &"y".repeat(900)).await;
        for _ in 0..2 {
            assert!(matches!(peer.packet().await, v5::Packet::PingReq(_)), "pings go on");
        }
        // What is not read is not answered.
        peer.release(7).await;
        pipeline.acknowledge_all();
        assert_eq!(peer.packet().await, puback(1));
        assert_eq!(pipeline.rest(), [], "no room");
        pipeline.free_room();
        assert_eq!(pipeline.record().await.1.value, "y".repeat(900));
        within("PUBCOMP", async { while peer.packet().await != pubcomp(7) {} }).await;
    });
}

#[test]
fn at_receive_maximum_the_commit_is_asked_for() {
    on_one_thread(async {
        let (listener, mut config) = listen().await;
        config.receive_maximum = 3;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        for pkid in 1..=3 {
            assert_eq!(pipeline.urges, 0);
            peer.publish(QoS::AtLeastOnce, pkid, false, "x").await;
            pipeline.record().await;
        }
        pipeline.urge().await;
    });
}

#[test]
fn a_message_beyond_the_limit_is_answered_when_its_gap_is_durable_and_harms_no_other() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::AtLeastOnce, 1, false, &"x".repeat(100_000)).await;
        let (_, gap) = pipeline.record().await;
        assert_eq!(gap.stream.as_str(), GAPS_STREAM);
        assert!(gap.value.starts_with(br#"{"reason":"oversize","count":1"#), "{:?}", gap.value);
        pipeline.acknowledge_all();
        assert_eq!(peer.packet().await, puback(1));
        peer.publish(QoS::AtLeastOnce, 2, false, "small").await;
        assert_eq!(pipeline.record().await.1.value, "small");
        pipeline.metric("wayside_source_dropped_total{source=\"test\",reason=\"oversize\"} 1").await;
    });
}

#[test]
fn a_topic_with_a_nul_is_a_dead_letter_that_is_answered_in_its_turn() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish_to("vehicle/\0", QoS::AtLeastOnce, 1, false, "x").await;
        peer.publish(QoS::AtLeastOnce, 2, false, "y").await;
        let (_, letter) = pipeline.record().await;
        assert_eq!((letter.stream.as_str(), &letter.value[..]), (DEAD_LETTER_STREAM, &b"x"[..]));
        assert_eq!(pipeline.record().await.1.value, "y");
        pipeline.acknowledge_all();
        assert_eq!(peer.packet().await, puback(1));
        assert_eq!(peer.packet().await, puback(2));
        let counted = "wayside_source_records_total{source=\"test\",stream=\"dead-letter\"} 1";
        pipeline.metric(counted).await;
    });
}

#[test]
fn a_broker_that_is_not_there_is_named_and_counted() {
    on_one_thread(async {
        let address = free_address();
        let mut config = config(MqttVersion::V5, Qos::AtLeastOnce, &[address.port()]);
        config.reconnect = Backoff { min: Duration::from_secs(3600), max: Duration::from_secs(3600) };
        let pipeline = start(config);
        let said = format!("{address}: cannot connect: Connection refused (os error 111)");
        pipeline.state("the failure", |state| state.error.as_ref() == Some(&said)).await;
        pipeline.metric("wayside_source_connected{source=\"test\"} 0").await;
        pipeline.metric("wayside_source_failures_total{source=\"test\"} 1").await;
    });
}

#[test]
fn a_refused_filter_is_reported_and_the_others_work() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let (mut peer, _) = Peer::accept(&listener, false).await;
        let v5::Packet::Subscribe(subscribe) = peer.packet().await else { panic!("no SUBSCRIBE") };
        let codes =
            vec![v5::SubscribeReasonCode::NotAuthorized, v5::SubscribeReasonCode::Success(QoS::AtLeastOnce)];
        peer.answer_subscribe(subscribe.pkid, codes).await;
        pipeline
            .state("the refusal in the health", |state| {
                state.connected && state.error.as_deref() == Some("subscription refused: room/+/state")
            })
            .await;
        pipeline.metric("wayside_source_failures_total{source=\"test\"} 1").await;
        peer.publish(QoS::AtMostOnce, 0, false, "x").await;
        pipeline.record().await;
        drop(peer);
        // The session is there, but one filter is missing.
        let (mut peer, _) = Peer::accept(&listener, true).await;
        let v5::Packet::Subscribe(subscribe) = peer.packet().await else { panic!("no SUBSCRIBE") };
        assert_eq!(subscribe.filters.len(), 1);
        assert_eq!(subscribe.filters[0].path, "room/+/state");
    });
}

#[test]
fn a_session_that_is_there_is_not_subscribed_again() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::AtMostOnce, 0, false, "x").await;
        pipeline.record().await;
        drop(peer);
        let (mut peer, _) = Peer::accept(&listener, true).await;
        peer.release(3).await;
        assert_eq!(peer.packet().await, pubcomp(3), "no SUBSCRIBE before it");
        drop(peer);
        Peer::accept_and_grant(&listener).await;
    });
}

#[test]
fn a_refusal_names_its_reason_and_the_next_broker_is_tried() {
    on_one_thread(async {
        let (listener, mut config) = listen().await;
        let second = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let nobody = free_address();
        let port = second.local_addr().expect("has an address").port();
        config.brokers.push(Broker { host: "127.0.0.1".into(), port: nobody.port(), tls: false });
        config.brokers.push(Broker { host: "127.0.0.1".into(), port, tls: false });
        let mut pipeline = start(config);
        let mut peer = Peer::accept_silently(&listener).await;
        peer.packet().await;
        let properties = v5::ConnAckProperties {
            reason_string: Some("ask the plant office".into()),
            ..rumqttc_properties()
        };
        let code = v5::ConnectReturnCode::NotAuthorized;
        let ack = v5::ConnAck { session_present: false, code, properties: Some(properties) };
        let health = pipeline.health.clone();
        peer.send(v5::Packet::ConnAck(ack)).await;
        within("the reason", async {
            while !health.state().error.is_some_and(|e| e.contains("NotAuthorized (ask the plant office)")) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let mut peer = Peer::accept_and_grant(&second).await;
        peer.publish(QoS::AtMostOnce, 0, false, "x").await;
        pipeline.record().await;
    });
}

#[test]
fn a_shutdown_answers_what_was_taken_and_leaves_the_session() {
    on_one_thread(async {
        let (listener, config) = listen().await;
        let mut pipeline = start(config);
        let mut peer = Peer::accept_and_grant(&listener).await;
        peer.publish(QoS::AtLeastOnce, 1, false, "x").await;
        pipeline.record().await;
        pipeline.shut_down();
        pipeline.urge().await;
        pipeline.acknowledge_all();
        assert_eq!(peer.packet().await, puback(1));
        assert!(matches!(peer.packet().await, v5::Packet::Disconnect(_)));
        pipeline.ended().await;
    });
}

#[test]
fn a_shutdown_ends_the_wait_for_a_broker() {
    on_one_thread(async {
        let port = free_address().port();
        let mut config = config(MqttVersion::V5, Qos::AtLeastOnce, &[port]);
        config.reconnect = Backoff { min: Duration::from_secs(3600), max: Duration::from_secs(3600) };
        let mut pipeline = start(config);
        pipeline.state("the failure", |state| state.error.is_some()).await;
        pipeline.shut_down();
        pipeline.ended().await;
    });
}

fn rumqttc_properties() -> v5::ConnAckProperties {
    v5::ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}

#[test]
fn a_check_takes_no_session_away_and_leaves_none() {
    on_one_thread(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let config =
            config(MqttVersion::V5, Qos::AtLeastOnce, &[listener.local_addr().expect("bound").port()]);
        let broker = async {
            let (mut peer, connect) = Peer::accept(&listener, false).await;
            let left = peer.packet().await;
            (connect, left)
        };
        let (found, (connect, left)) = tokio::join!(reach(&config.brokers[0], &config), broker);
        assert_eq!(found, Ok("accepts us as client wayside-test-check".into()));
        assert_eq!(connect.client_id, "wayside-test-check", "not the agent's own");
        assert!(connect.clean_start);
        assert_eq!(connect.properties.expect("properties").session_expiry_interval, Some(0));
        assert!(matches!(left, v5::Packet::Disconnect(_)), "{left:?}");
    });
}
