//! Clients of the test's own.

use std::fs;

use axum::http::StatusCode;
use serde_json::Value as Json;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    task::JoinHandle,
};

use super::*;
use crate::source::testing::{FakePipeline, on_one_thread, within};

pub(super) const TOKEN: &str = "0123456789abcdef";

pub(super) fn start(config: HttpSource) -> FakePipeline {
    FakePipeline::start(INTAKE_BYTES, |context| run(config, RECORD_BYTES_MAX, context))
}

/// A source that listens.
pub(super) async fn started(config: HttpSource) -> FakePipeline {
    let pipeline = start(config);
    pipeline.state("it listens", |state| state.connected).await;
    pipeline
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    pub(super) fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Sends `request` on a connection of its own and reads until the other end closes.
pub(super) async fn send(address: SocketAddr, request: &[u8]) -> Answer {
    send_on(TcpStream::connect(address).await.expect("it listens"), request).await
}

/// The same over a connection that is there.
pub(super) async fn send_on(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Answer {
    within("an answer", async {
        stream.write_all(request).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers in text");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Answer { status, head: head.into(), body: body.into() }
    })
    .await
}

pub(super) fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A POST; `content_type` may have further headers behind it.
pub(super) fn post(address: SocketAddr, path: &str, content_type: &str, body: &[u8]) -> JoinHandle<Answer> {
    let request = request("POST", path, &format!("Content-Type: {content_type}\r\n"), body);
    tokio::spawn(async move { send(address, &request).await })
}

/// Stores one request in a source, which has answered when this returns.
pub(super) async fn stored(
    pipeline: &mut FakePipeline,
    address: SocketAddr,
    path: &str,
    content_type: &str,
    body: &[u8],
) -> (Answer, Vec<Record>) {
    let answer = post(address, path, content_type, body);
    let (ticket, first) = pipeline.record().await;
    let records = std::iter::once(first).chain(pipeline.rest()).collect();
    pipeline.acknowledge(ticket);
    (within("an answer", answer).await.expect("no panic"), records)
}

#[test]
fn a_200_leaves_only_after_the_acknowledgement() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        let path = "/v1/streams/rooms/records";
        let body = format!("{OBJECT}\n{OBJECT}\n");
        let first = post(address, path, "application/x-ndjson", body.as_bytes());
        let (ticket, _) = pipeline.record().await;
        let second = post(address, path, "application/json", OBJECT.as_bytes());
        let _ = pipeline.record().await;
        let _ = pipeline.record().await;
        pipeline.metric("wayside_source_unacknowledged{source=\"test\"} 2").await;
        assert!(!first.is_finished(), "nothing is durable yet");
        pipeline.acknowledge(ticket);
        let first = within("the first answer", first).await.expect("no panic");
        let offsets = |first: i64, last: i64| {
            let partition =
                partition_of(&DeviceId::new("r1").expect("an id"), NonZeroU16::new(4).expect("not 0"));
            serde_json::json!([{"partition": partition.0, "first": first, "last": last}])
        };
        assert_eq!(first.status, 200);
        assert_eq!(first.json(), serde_json::json!({"records": 2, "offsets": offsets(100, 101)}));
        pipeline.metric("wayside_source_unacknowledged{source=\"test\"} 1").await;
        assert!(!second.is_finished(), "the second is not durable yet");
        pipeline.acknowledge_all();
        let second = within("the second answer", second).await.expect("no panic");
        assert_eq!(second.json(), serde_json::json!({"records": 1, "offsets": offsets(100, 100)}));
        pipeline.metric("wayside_source_records_total{source=\"test\",stream=\"rooms\"} 3").await;
    });
}

#[test]
fn the_produce_call_is_answered_in_the_proxys_words() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        let body = br#"{"records":[{"key":"k","value":1},{"key":"k","value":2}]}"#;
        let (answer, records) =
            stored(&mut pipeline, address, "/topics/prod.doors", PRODUCE_JSON.1, body).await;
        assert_eq!((answer.status, records.len()), (200, 2));
        let partition = partition_of(&records[0].device, NonZeroU16::new(4).expect("not 0")).0;
        let offsets = answer.json()["offsets"].clone();
        for place in 0..2 {
            assert_eq!(offsets[place]["partition"], partition);
            assert_eq!(
                (&offsets[place]["offset"], &offsets[place]["error_code"]),
                (&Json::from(-1), &Json::Null)
            );
        }
        for (path, body, status, code) in
            [("/topics/other", &body[..], 404, 40401), ("/topics/prod.doors", b"{", 422, 422)]
        {
            let answer =
                within("an answer", post(address, path, PRODUCE_JSON.1, body)).await.expect("no panic");
            assert_eq!((answer.status, answer.json()["error_code"].as_u64()), (status, Some(code)));
            assert_eq!(answer.header("content-type"), Some("application/vnd.kafka.v2+json"));
        }
    });
}

#[test]
fn of_a_body_with_one_wrong_record_nothing_is_stored() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        let body = format!("{OBJECT}\n{{}}\n{OBJECT}\n");
        let answer = post(address, "/v1/streams/rooms/records", "application/x-ndjson", body.as_bytes());
        let answer = within("an answer", answer).await.expect("no panic");
        assert_eq!(answer.status, 400);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let problem = answer.json();
        assert_eq!((problem["status"].as_u64(), problem["line"].as_u64()), (Some(400), Some(2)));
        assert_eq!(problem["detail"], "line 2: no device at \"/device\"");
        pipeline.metric("wayside_source_rejected_total{source=\"test\",reason=\"malformed\"} 1").await;
        assert_eq!(pipeline.rest(), []);
    });
}

#[test]
fn limits_are_answered_with_their_status() {
    on_one_thread(async {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens");
        fs::write(&path, format!("{TOKEN}\n")).expect("writable");
        let address = free_address();
        let config = HttpSource {
            token_file: Some(FileRef { key: "k".into(), path }),
            body_timeout: Duration::from_millis(50),
            commit_timeout: Duration::from_millis(50),
            ..config(address)
        };
        let mut pipeline = started(config).await;
        let rooms = "/v1/streams/rooms/records";
        let json = format!("application/json\r\nAuthorization: Bearer {TOKEN}");
        let answer = within("an answer", post(address, rooms, "application/json", OBJECT.as_bytes())).await;
        let answer = answer.expect("no panic");
        assert_eq!((answer.status, answer.header("www-authenticate")), (401, Some("Bearer")));
        // Declared, and found out while it comes.
        let large = vec![b' '; 300 * 1024];
        let answer = within("an answer", post(address, rooms, &json, &large)).await.expect("no panic");
        assert_eq!(answer.status, 413, "{answer:?}");
        let head =
            format!("POST {rooms} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {json}\r\n");
        let chunked =
            format!("{head}Transfer-Encoding: chunked\r\n\r\n3000\r\n{}\r\n0\r\n\r\n", " ".repeat(0x3000));
        assert_eq!(send(address, chunked.as_bytes()).await.status, 413);
        let unfinished = format!("{head}Content-Length: 5\r\n\r\n{{");
        assert_eq!(send(address, unfinished.as_bytes()).await.status, 408);
        // Taken, and not durable in time: sent again it may come twice.
        let late =
            within("an answer", post(address, rooms, &json, OBJECT.as_bytes())).await.expect("no panic");
        assert_eq!(late.status, 503);
        assert!(late.body.contains("sent again it may arrive twice"), "{late:?}");
        let _ = pipeline.record().await;
        pipeline.acknowledge_all();
        pipeline.metric("wayside_source_unacknowledged{source=\"test\"} 0").await;
    });
}

#[test]
fn with_a_result_for_each_record_the_good_ones_are_stored_and_the_others_named() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        let path = "/v1/streams/rooms/records?results=each";
        let large = format!("{{\"device\":\"r1\",\"x\":\"{}\"}}", "x".repeat(RECORD_BYTES_MAX));
        let body = format!("{OBJECT}\n{{\"device\":}}\n{large}\n{OBJECT}\n");
        let (answer, records) =
            stored(&mut pipeline, address, path, "application/x-ndjson", body.as_bytes()).await;
        assert_eq!((answer.status, records.len()), (200, 2));
        let errors = answer.json()["errors"].clone();
        assert_eq!(
            (&errors[0]["record"], &errors[0]["line"], &errors[0]["column"]),
            (&1.into(), &2.into(), &11.into())
        );
        assert_eq!((&errors[1]["record"], errors.as_array().map(Vec::len)), (&2.into(), Some(2)));
        assert!(errors[1]["detail"].as_str().is_some_and(|why| why.contains("4096")), "{errors}");
        for (path, why) in [(path, "line 1"), ("/v1/streams/rooms/records?results=some", "all or each")] {
            let answer = within("an answer", post(address, path, "application/x-ndjson", b"{\n{"))
                .await
                .expect("no panic");
            assert_eq!(answer.status, 400);
            assert!(answer.body.contains(why), "{answer:?}");
        }
        assert_eq!(pipeline.rest(), []);
    });
}

#[test]
fn the_longer_the_backlog_waits_the_later_a_client_comes_again() {
    let after_s = |turn, waited_s| server::retry_after_s(turn, Duration::from_secs(waited_s));
    assert_eq!([after_s(0, 0), after_s(7, 0), after_s(8, 0)], [1, 8, 1]);
    assert_eq!([after_s(0, 20), after_s(3, 3600)], [21, 64]);
}

#[test]
fn a_full_intake_is_answered_with_503_and_retry_after() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        pipeline.keep_room();
        let mut taken = 0;
        let mut waits = Vec::new();
        // Some go in, then there is no room for another until something is durable.
        while waits.len() < 3 {
            let body = [format!("\"{}\"", "x".repeat(2000)).as_str(); 4].join("\n");
            let answer =
                post(address, "/v1/streams/doors/records?device=d", "application/x-ndjson", body.as_bytes());
            tokio::select! {
                biased;
                answer = answer => {
                    let answer = answer.expect("no panic");
                    assert_eq!(answer.status, 503, "{answer:?}");
                    waits.push(answer.header("retry-after").expect("when to come again").to_owned());
                }
                _ = pipeline.record() => {
                    taken += 1;
                    pipeline.rest();
                }
            }
        }
        assert!((1..8).contains(&taken), "{taken}");
        assert_eq!(waits, ["1", "2", "3"], "spread");
        pipeline.metric("wayside_source_rejected_total{source=\"test\",reason=\"full\"} 3").await;
        pipeline.free_room();
        let answer = post(address, "/v1/streams/rooms/records", "application/json", OBJECT.as_bytes());
        let _ = pipeline.record().await;
        pipeline.acknowledge_all();
        assert_eq!(within("an answer", answer).await.expect("no panic").status, 200);
    });
}

#[test]
fn bodies_on_their_way_are_bounded_over_all_connections() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        let head = "POST /v1/streams/rooms/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
        let mut slow = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            let request = format!("{head}Expect: 100-continue\r\nContent-Length: 8192\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("it reads");
            let mut answer = [0; 25];
            within("it asks for the body", stream.read_exact(&mut answer)).await.expect("an answer");
            assert_eq!(answer, *b"HTTP/1.1 100 Continue\r\n\r\n");
            slow.push(stream);
        }
        let answer = post(address, "/v1/streams/rooms/records", "application/json", OBJECT.as_bytes());
        assert_eq!(within("an answer", answer).await.expect("no panic").status, 503);
        drop(slow);
        // What their bodies held is free again when the source has seen that they are gone.
        loop {
            let answer = post(address, "/v1/streams/rooms/records", "application/json", OBJECT.as_bytes());
            tokio::select! {
                answer = answer => assert_eq!(answer.expect("no panic").status, 503),
                _ = pipeline.record() => return,
            }
        }
    });
}

#[test]
fn a_head_that_does_not_come_costs_its_connection_alone() {
    on_one_thread(async {
        let address = free_address();
        let config =
            HttpSource { idle_timeout: Duration::from_millis(50), max_connections: 1, ..config(address) };
        let mut pipeline = started(config).await;
        let mut slow = TcpStream::connect(address).await.expect("it listens");
        slow.write_all(b"POST /v1/streams").await.expect("it reads");
        // The only connection: the next is taken when it is closed.
        let (answer, _) = stored(
            &mut pipeline,
            address,
            "/v1/streams/rooms/records",
            "application/json",
            OBJECT.as_bytes(),
        )
        .await;
        assert_eq!(answer.status, 200);
        let mut rest = Vec::new();
        within("the slow one is closed", slow.read_to_end(&mut rest)).await.expect("closed");
        let mut long = TcpStream::connect(address).await.expect("it listens");
        let _ = long.write_all(&[b'x'; 64 * 1024]).await;
        let closed = within("the long one is closed", long.read_to_end(&mut rest)).await;
        assert!(closed.is_err() || rest.starts_with(b"HTTP/1.1 4"));
    });
}

#[test]
fn a_client_that_does_not_read_costs_its_connection_alone() {
    on_one_thread(async {
        let address = free_address();
        let config =
            HttpSource { idle_timeout: Duration::from_millis(200), max_connections: 1, ..config(address) };
        let mut pipeline = started(config).await;
        let mut deaf = TcpStream::connect(address).await.expect("it listens");
        let requests = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", server::OPENAPI).repeat(10_000);
        // Answers of 100 MB: more than anybody buffers.
        within("requests are sent", deaf.write_all(requests.as_bytes())).await.expect("it reads");
        // The only connection: the next is taken when it is closed.
        let (answer, _) = stored(
            &mut pipeline,
            address,
            "/v1/streams/rooms/records",
            "application/json",
            OBJECT.as_bytes(),
        )
        .await;
        assert_eq!(answer.status, 200);
    });
}

#[test]
fn a_shutdown_answers_what_was_taken_and_takes_no_more() {
    on_one_thread(async {
        let address = free_address();
        let mut pipeline = started(config(address)).await;
        let mut idle = TcpStream::connect(address).await.expect("it listens");
        let answer = post(address, "/v1/streams/rooms/records", "application/json", OBJECT.as_bytes());
        let _ = pipeline.record().await;
        pipeline.shut_down();
        pipeline.urge().await;
        let mut rest = Vec::new();
        within("the idle one is closed", idle.read_to_end(&mut rest)).await.expect("closed");
        pipeline.acknowledge_all();
        assert_eq!(within("an answer", answer).await.expect("no panic").status, 200);
        pipeline.ended().await;
        assert!(TcpStream::connect(address).await.is_err());
    });
}

#[test]
fn an_address_in_use_or_a_wrong_token_file_is_told_and_tried_again() {
    on_one_thread(async {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("tokens");
        let other = std::net::TcpListener::bind(free_address()).expect("free");
        let address = other.local_addr().expect("bound");
        let config = HttpSource {
            token_file: Some(FileRef { key: "k".into(), path: path.clone() }),
            ..config(address)
        };
        let pipeline = start(config.clone());
        let says = |what: &'static str| {
            move |state: &crate::source::metrics::SourceState| {
                state.error.as_deref().is_some_and(|error| error.contains(what))
            }
        };
        pipeline.state("no file", says("No such file")).await;
        assert!(reach(&config).expect_err("no file").contains("No such file"));
        fs::write(&path, "hush\n").expect("writable");
        pipeline.state("a short token", says("line 1: the token has less than 16 characters")).await;
        assert!(!pipeline.health.state().error.unwrap_or_default().contains("hush"));
        fs::write(&path, format!("{TOKEN}\n")).expect("writable");
        pipeline.state("in use", says("Address already in use")).await;
        assert!(reach(&config).expect_err("in use").contains("Address already in use"));
        pipeline.metric_like("wayside_source_failures_total{source=\"test\"}").await;
        drop(other);
        pipeline.state("it listens", |state| state.connected && state.error.is_none()).await;
    });
}

#[test]
fn a_check_tells_a_free_address_from_that_of_the_agent_that_runs() {
    on_one_thread(async {
        let config = config(free_address());
        assert_eq!(reach(&config), Ok("is free, no tokens".into()));
        let _pipeline = started(config.clone()).await;
        let found = within("a check", tokio::task::spawn_blocking(move || reach(&config))).await;
        assert_eq!(found.expect("no panic"), Ok("is served by the agent that runs, no tokens".into()));
    });
}

#[test]
fn the_description_has_all_routes_and_every_answer_of_theirs() {
    let description: Json = serde_json::from_str(server::DESCRIPTION).expect("JSON");
    let paths = description["paths"].as_object().expect("paths");
    let routes = [(server::RECORDS, "post"), (server::TOPICS, "post"), (server::OPENAPI, "get")];
    let described = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().into_iter().flatten().map(move |(method, _)| (path.as_str(), method.as_str()))
    });
    let mut described: Vec<_> = described.collect();
    let mut expected = routes.to_vec();
    described.sort_unstable();
    expected.sort_unstable();
    assert_eq!(described, expected);
    on_one_thread(async {
        let address = free_address();
        let _pipeline = started(config(address)).await;
        for (path, method) in routes {
            let filled = path.replace("{stream}", "rooms").replace("{topic}", "prod.rooms");
            let answer = send(address, &request(&method.to_uppercase(), &filled, "", b"")).await;
            let documented = &paths[path][method]["responses"][answer.status.to_string()]["content"];
            let content_type = answer.header("content-type").expect("a body");
            assert!(documented[content_type].is_object(), "{method} {path}: {answer:?}");
            let answer = send(address, &request("DELETE", &filled, "", b"")).await;
            assert_eq!(answer.status, 405, "{path}");
        }
        let answer = send(address, &request("GET", server::OPENAPI, "", b"")).await;
        assert_eq!(answer.json(), description);
        assert_eq!(send(address, &request("GET", "/", "", b"")).await.status, 404);
    });
    // Every refusal that there is has its answer in the description, in both dialects.
    let flaw = refusal::Flaw::default;
    let refusals = [
        Refusal::Malformed(flaw()),
        Refusal::Broken,
        Refusal::Device(crate::record::NameError::Empty),
        Refusal::DeviceMissing,
        Refusal::IdempotencyKey,
        Refusal::KeyReused,
        Refusal::Unauthorized,
        Refusal::Forbidden,
        Refusal::NotFound(String::new()),
        Refusal::Slow(1),
        Refusal::TooLarge(1),
        Refusal::TooMany(1),
        Refusal::RecordTooLarge(flaw()),
        Refusal::MediaType(""),
        Refusal::Results,
        Refusal::Full(Duration::ZERO),
        Refusal::Late,
        Refusal::Stopping,
    ];
    for refusal in refusals {
        let status = |path: &str, status: StatusCode| {
            assert!(paths[path]["post"]["responses"][status.as_str()].is_object(), "{path}: {refusal:?}");
        };
        status(server::RECORDS, refusal.status());
        status(server::TOPICS, produce::Error::new(&refusal).status());
    }
}
