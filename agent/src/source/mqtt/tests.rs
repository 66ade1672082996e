//! The source against a broker that the test plays itself, packet by packet, and against a real Mosquitto.

mod played;
mod real;
mod restarts;
mod secure;

use std::{sync::LazyLock, time::Duration};

use super::*;
use crate::{
    config::{Backoff, Broker, MqttTls, MqttVersion, Qos, Route, RouteDecode, Value},
    log::Remembered,
    record::{StreamName, header},
    source::testing::FakePipeline,
};

const INTAKE_BYTES: usize = 1 << 20;
const RECORD_BYTES_MAX: usize = 64 * 1024;

static STREAM: LazyLock<StreamName> = LazyLock::new(|| StreamName::new("readings").expect("a name"));

fn config(version: MqttVersion, qos: Qos, ports: &[u16]) -> MqttSource {
    let route = |filter: &str, device_topic: &str| Route {
        topic_filter: filter.into(),
        decode: RouteDecode::Raw { stream: STREAM.clone(), device_topic: device_topic.into() },
        value: Value::Raw,
    };
    MqttSource {
        name: "test".into(),
        brokers: ports
            .iter()
            .map(|port| Broker { host: "127.0.0.1".into(), port: *port, tls: false })
            .collect(),
        login: None,
        tls: MqttTls::default(),
        version,
        client_id: "wayside-test".into(),
        qos,
        keep_alive: Duration::from_secs(30),
        session_expiry_s: 3600,
        receive_maximum: 100,
        max_packet_bytes: 4096,
        reconnect: Backoff { min: Duration::from_millis(1), max: Duration::from_millis(20) },
        routes: vec![route("room/+/state", "room/{device}/state"), route("vehicle/+", "vehicle/{device}")],
    }
}

fn start(config: MqttSource) -> FakePipeline {
    start_again(config, Remembered::new())
}

/// As `start`, after a life that noted `remembered`.
fn start_again(config: MqttSource, remembered: Remembered) -> FakePipeline {
    FakePipeline::start_again(INTAKE_BYTES, remembered, |context| run(config, RECORD_BYTES_MAX, context))
}
