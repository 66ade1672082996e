//! What must hold for the body of any request.

use std::num::NonZeroU16;

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;

use super::{api::Api, refusal::Refusal};
use crate::{
    config::{HttpRoute, HttpSource, Value},
    log::RECORD_BYTES_MAX,
    record::{Received, Record, StreamName},
};

/// A source with one stream, `s`.
fn api() -> Api {
    let route = HttpRoute {
        stream: StreamName::new("s").expect("a name"),
        partitions: NonZeroU16::MIN,
        device_pointer: Some("/device".into()),
        time_pointer: Some("/time".into()),
        seq_pointer: Some("/seq".into()),
        value: Value::Json,
    };
    let config = HttpSource {
        name: "web".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        token_file: None,
        tls: None,
        max_connections: 1,
        max_body_bytes: 1,
        body_buffer_bytes: 1,
        idle_timeout: Default::default(),
        body_timeout: Default::default(),
        commit_timeout: Default::default(),
        environment: "e".into(),
        routes: vec![route],
    };
    Api::new(&config, None, RECORD_BYTES_MAX, usize::MAX).expect("a route")
}

fn decode(content_type: &'static str, body: &[u8]) -> Result<Vec<Record>, Refusal> {
    let api = api();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    let admitted = if content_type.contains("kafka") {
        api.topic("e.s", &headers)
    } else {
        api.records("s", None, &headers)
    };
    let decoded =
        api.decode(&admitted.expect("a good head"), &Bytes::copy_from_slice(body), Received::default());
    decoded.map(|decoded| decoded.records)
}

/// HTTP: `data` is a body. Whatever it is taken for, it becomes records within the limit, or is refused with a place that it
/// has; and lines are what each of them is alone, up to the first that is wrong.
pub fn http(data: &[u8]) {
    let kinds =
        ["application/json", "application/vnd.kafka.json.v2+json", "application/vnd.kafka.binary.v2+json"];
    for kind in kinds {
        check(data, decode(kind, data).as_ref());
    }
    let whole = decode("application/x-ndjson", data);
    check(data, whole.as_ref());
    let lines =
        (1..).zip(data.split(|byte| *byte == b'\n')).filter(|(_, line)| !line.trim_ascii().is_empty());
    let alone: Vec<_> =
        lines.map(|(number, line)| (number, decode("application/json", line.trim_ascii()))).collect();
    match alone.iter().find(|(_, alone)| matches!(alone, Err(Refusal::Malformed(_)))) {
        Some((number, _)) => {
            let refusal = whole.expect_err("a wrong line");
            assert_eq!(refusal.flaw().and_then(|flaw| flaw.line), Some(*number), "{refusal}");
        }
        None => {
            let alone: Result<Vec<_>, _> = alone.into_iter().map(|(_, alone)| alone).collect();
            let alone = alone.ok().map(|records| records.concat()).filter(|records| !records.is_empty());
            assert_eq!(whole.ok(), alone);
        }
    }
}

fn check(body: &[u8], outcome: Result<&Vec<Record>, &Refusal>) {
    match outcome {
        Ok(records) => {
            assert!(!records.is_empty());
            assert!(records.iter().all(|record| record.size_bytes() <= RECORD_BYTES_MAX));
        }
        Err(refusal) => {
            assert!(refusal.status().is_client_error(), "{refusal}");
            let line = refusal.flaw().and_then(|flaw| flaw.line).unwrap_or(1);
            assert!((1..=body.split(|byte| *byte == b'\n').count()).contains(&line), "{refusal}");
        }
    }
}
