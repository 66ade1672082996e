//! What requests mean, without sockets; and the source with clients of the test's own, byte by byte, and a pipeline that stores
//! when the test says so.

mod connections;
mod keys;
mod requests;
mod secure;

use std::{net::SocketAddr, num::NonZeroU16};

use super::*;
use crate::{
    config::{HttpRoute, Value},
    record::{DeviceId, Record, StreamName},
    secret::FileRef,
    source::testing::free_address,
};

const INTAKE_BYTES: usize = 64 * 1024;
const RECORD_BYTES_MAX: usize = 4096;
const OBJECT: &str = r#"{"device":"r1","time":1700000000,"seq":7,"x":1.50}"#;

fn config(listen: SocketAddr) -> HttpSource {
    let route = |name: &str, device_pointer: Option<&str>| HttpRoute {
        stream: StreamName::new(name).expect("a name"),
        partitions: NonZeroU16::new(4).expect("not 0"),
        device_pointer: device_pointer.map(str::to_owned),
        time_pointer: Some("/time".into()),
        seq_pointer: Some("/seq".into()),
        value: Value::Raw,
    };
    HttpSource {
        name: "test".into(),
        listen,
        token_file: None,
        tls: None,
        max_connections: 8,
        max_body_bytes: 8 * 1024,
        body_buffer_bytes: 16 * 1024,
        idle_timeout: Duration::from_secs(20),
        body_timeout: Duration::from_secs(20),
        commit_timeout: Duration::from_secs(20),
        environment: "prod".into(),
        routes: vec![route("rooms", Some("/device")), route("doors", None)],
    }
}

const PRODUCE_JSON: (&str, &str) = ("content-type", "application/vnd.kafka.json.v2+json");
