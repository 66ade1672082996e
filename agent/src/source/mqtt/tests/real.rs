//! The source against a real Mosquitto, both versions of MQTT, all QoS.

use std::sync::atomic::{AtomicU32, Ordering};

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};

use super::*;
use crate::source::testing::{Mosquitto, on_one_thread, within};

/// A device that publishes with MQTT 3.1.1.
pub(super) struct Device {
    client: AsyncClient,
    events: EventLoop,
}

impl Device {
    pub(super) fn new(port: u16) -> Self {
        let (client, events) = AsyncClient::new(MqttOptions::new("device", "127.0.0.1", port), 100);
        Self { client, events }
    }

    /// Publishes with QoS 1 and waits until the broker has it.
    pub(super) async fn publish(&mut self, topic: &str, retain: bool, payload: String) {
        self.client.publish(topic, QoS::AtLeastOnce, retain, payload).await.expect("takes it");
        within("the broker's PUBACK", async {
            while !matches!(self.events.poll().await, Ok(Event::Incoming(Packet::PubAck(_)))) {}
        })
        .await;
    }
}

const CONNECTED: &str = "wayside_source_connected{source=\"test\"} 1";

/// Waits until the subscriptions work: a broker may take SUBSCRIBE after the device's first message.
pub(super) async fn subscribed(pipeline: &mut FakePipeline, device: &mut Device) {
    // A session may still hold an earlier call's messages.
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let (probe, end) = (format!("probe {call}"), format!("end {call}"));
    within("a message through the broker", async {
        while !pipeline.rest().iter().any(|record| record.value == probe) {
            device.publish("vehicle/probe", false, probe.clone()).await;
            // The broker's in-flight limit must not end the probing.
            pipeline.acknowledge_all();
            tokio::task::yield_now().await;
        }
    })
    .await;
    // What ended the probing may be as much as the broker lets be in flight.
    pipeline.acknowledge_all();
    // Probes on their way come before this one.
    device.publish("vehicle/probe", false, end.clone()).await;
    while pipeline.record().await.1.value != end {
        pipeline.acknowledge_all();
    }
    pipeline.acknowledge_all();
}

#[test]
fn every_message_comes_once_and_in_order_with_any_version_and_qos() {
    on_one_thread(async {
        let Some(broker) = Mosquitto::start("") else { return };
        for version in [MqttVersion::V3, MqttVersion::V5] {
            for qos in [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce] {
                let mut config = config(version, qos, &[broker.port()]);
                config.client_id = format!("{version:?}-{qos:?}");
                let mut pipeline = start(config);
                let mut device = Device::new(broker.port());
                subscribed(&mut pipeline, &mut device).await;
                for n in 0..200 {
                    device.publish("vehicle/7", false, n.to_string()).await;
                }
                for n in 0..200 {
                    let record = within("a record", async {
                        // The broker's in-flight limit is less than what is to come.
                        pipeline.acknowledge_all();
                        pipeline.record().await.1
                    });
                    assert_eq!(record.await.value, n.to_string(), "{version:?} {qos:?}");
                }
                pipeline.shut_down();
                pipeline.acknowledge_all();
                pipeline.ended().await;
            }
        }
    });
}

#[test]
fn a_broker_that_holds_back_is_answered_early() {
    on_one_thread(async {
        let Some(broker) = Mosquitto::start("") else { return };
        let mut pipeline = start(config(MqttVersion::V3, Qos::AtLeastOnce, &[broker.port()]));
        let mut device = Device::new(broker.port());
        subscribed(&mut pipeline, &mut device).await;
        // On a busy machine Mosquitto had more in flight while it was probed; having waited once at its limit, it is known.
        for round in 0..20 {
            for n in 0..30 {
                device.publish("vehicle/7", false, format!("{round} {n}")).await;
            }
            let urged = timeout(Duration::from_millis(100), pipeline.urge()).await.is_ok();
            pipeline.acknowledge_all();
            while pipeline.record().await.1.value != format!("{round} 29") {
                pipeline.acknowledge_all();
            }
            pipeline.acknowledge_all();
            if urged {
                return;
            }
        }
        panic!("never asked for an early commit");
    });
}

#[test]
fn what_was_not_acknowledged_comes_again_after_a_restart_of_the_agent() {
    on_one_thread(async {
        let Some(broker) = Mosquitto::start("") else { return };
        for version in [MqttVersion::V3, MqttVersion::V5] {
            let mut config = config(version, Qos::AtLeastOnce, &[broker.port()]);
            config.client_id = format!("{version:?}");
            let mut device = Device::new(broker.port());
            let mut pipeline = start(config.clone());
            subscribed(&mut pipeline, &mut device).await;
            device.publish("vehicle/7", false, "answered".into()).await;
            let (answered, _) = pipeline.record().await;
            pipeline.acknowledge(answered);
            pipeline.metric("wayside_source_unacknowledged{source=\"test\"} 0").await;
            device.publish("vehicle/7", false, "not answered".into()).await;
            pipeline.record().await;
            // The process ends without a word.
            pipeline.abort().await;
            device.publish("vehicle/7", false, "while away".into()).await;
            let mut pipeline = start(config);
            assert_eq!(pipeline.record().await.1.value, "not answered");
            assert_eq!(pipeline.record().await.1.value, "while away");
            pipeline.abort().await;
        }
    });
}

#[test]
fn a_broker_that_lost_the_session_is_subscribed_again() {
    on_one_thread(async {
        let Some(mut broker) = Mosquitto::start("") else { return };
        for version in [MqttVersion::V3, MqttVersion::V5] {
            let mut pipeline = start(config(version, Qos::AtLeastOnce, &[broker.port()]));
            let mut device = Device::new(broker.port());
            subscribed(&mut pipeline, &mut device).await;
            broker.down();
            pipeline.metric("wayside_source_connected{source=\"test\"} 0").await;
            assert!(pipeline.health.state().error.is_some());
            broker.up();
            let mut device = Device::new(broker.port());
            subscribed(&mut pipeline, &mut device).await;
            pipeline.metric("wayside_source_connections_total{source=\"test\"} 2").await;
        }
    });
}

#[test]
fn a_second_broker_takes_over() {
    on_one_thread(async {
        let (Some(mut first), Some(second)) = (Mosquitto::start(""), Mosquitto::start("")) else { return };
        let mut pipeline = start(config(MqttVersion::V5, Qos::AtLeastOnce, &[first.port(), second.port()]));
        pipeline.metric(CONNECTED).await;
        first.down();
        let mut device = Device::new(second.port());
        subscribed(&mut pipeline, &mut device).await;
    });
}

#[test]
fn retained_messages_are_marked_and_live_ones_are_not() {
    on_one_thread(async {
        let Some(broker) = Mosquitto::start("") else { return };
        let mut device = Device::new(broker.port());
        device.publish("room/1/state", true, "old".into()).await;
        for version in [MqttVersion::V3, MqttVersion::V5] {
            let mut config = config(version, Qos::AtLeastOnce, &[broker.port()]);
            config.client_id = format!("{version:?}");
            let mut pipeline = start(config);
            let (_, record) = pipeline.record().await;
            assert_eq!((&record.value[..], record.headers.len()), (&b"old"[..], 1), "{version:?}");
            assert_eq!(&*record.headers[0].name, header::RETAINED);
            device.publish("room/1/state", true, "old".into()).await;
            assert_eq!(pipeline.record().await.1.headers, [], "{version:?}");
        }
    });
}
