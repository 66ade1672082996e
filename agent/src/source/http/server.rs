//! The connections: heads and bodies within their bounds, and answers in the dialect of the path.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, HttpBody as _},
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    Job, Stored,
    api::{Admitted, Api},
    produce,
    refusal::{Flaw, Refusal},
};
use crate::{
    config::HttpSource,
    record::{Offset, PartitionId},
    source::metrics::SourceCounters,
};

/// Takes records of a stream.
pub(super) const RECORDS: &str = "/v1/streams/{stream}/records";
/// The produce call of the Confluent REST Proxy, version 2.
pub(super) const TOPICS: &str = "/topics/{topic}";
/// Describes the others.
pub(super) const OPENAPI: &str = "/openapi.json";

/// The description, in OpenAPI 3.1.
pub(super) const DESCRIPTION: &str = include_str!("openapi.json");

/// Longest head of a request, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Most bytes of a refused body that are read and thrown away, so that its sender comes to reading the answer.
const DISCARD_BYTES_MAX: usize = 1024 * 1024;

/// Who is told to come again is told so for 1 s to this many, in turn: a fleet must not come at one moment.
const RETRY_SPREAD_S: u32 = 8;

/// On top of that comes how long the backlog has waited, to this many seconds: Kafka or the disk may be away for long.
const RETRY_BACKLOG_S_MAX: u64 = 60;

/// Where a request goes in.
pub(super) struct Door {
    api: Arc<Api>,
    jobs: mpsc::Sender<Job>,
    /// Bytes of bodies that may be on their way.
    room: Arc<Semaphore>,
    max_body_bytes: usize,
    body_timeout: Duration,
    commit_timeout: Duration,
    counters: SourceCounters,
    /// Answers with a `Retry-After` so far.
    retries: AtomicU32,
}

impl Door {
    /// The door of a source; `jobs` is its way in.
    pub(super) fn new(
        config: &HttpSource,
        api: Arc<Api>,
        jobs: mpsc::Sender<Job>,
        counters: SourceCounters,
    ) -> Self {
        Self {
            api,
            jobs,
            room: Arc::new(Semaphore::new(config.body_buffer_bytes)),
            max_body_bytes: config.max_body_bytes,
            body_timeout: config.body_timeout,
            commit_timeout: config.commit_timeout,
            counters,
            retries: AtomicU32::new(0),
        }
    }

    /// Stores the body of a request, or says why not.
    async fn store(
        &self,
        admitted: Result<Admitted, Refusal>,
        mut body: Body,
    ) -> Result<Arc<Stored>, (Refusal, HeaderMap)> {
        let outcome = match admitted {
            Ok(admitted) => self.submit(admitted, &mut body).await,
            Err(refusal) => Err(refusal),
        };
        let refusal = match outcome {
            Ok(stored) => return Ok(stored),
            Err(refusal) => refusal,
        };
        self.counters.rejected(refusal.reason(), 1);
        if !matches!(refusal, Refusal::Slow(_)) {
            // A body that does not end: the connection is closed.
            let _ = timeout(self.body_timeout, discard(&mut body)).await;
        }
        let mut headers = HeaderMap::new();
        match refusal.status() {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                let turn = self.retries.fetch_add(1, Ordering::Relaxed);
                let waited = if let Refusal::Full(waited) = refusal { waited } else { Duration::ZERO };
                headers.insert(header::RETRY_AFTER, retry_after_s(turn, waited).into());
            }
            _ => {}
        }
        Err((refusal, headers))
    }

    async fn submit(&self, admitted: Admitted, body: &mut Body) -> Result<Arc<Stored>, Refusal> {
        let declared = body.size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        let most = declared.unwrap_or(self.max_body_bytes);
        if most > self.max_body_bytes {
            return Err(Refusal::TooLarge(self.max_body_bytes));
        }
        let share = u32::try_from(most).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room)
            .try_acquire_many_owned(share)
            .map_err(|_| Refusal::Full(Duration::ZERO))?;
        let body = timeout(self.body_timeout, read(body, self.max_body_bytes));
        let body = body.await.map_err(|_| Refusal::Slow(self.body_timeout.as_millis()))??;
        let (answer, answered) = oneshot::channel();
        let job = Job { admitted, body, room, answer };
        self.jobs.send(job).await.map_err(|_| Refusal::Stopping)?;
        // Too late, or the other end is gone with what it had submitted.
        let answered = timeout(self.commit_timeout, answered).await.map_err(|_| Refusal::Late)?;
        answered.map_err(|_| Refusal::Late)?
    }
}

/// When the client of the answer number `turn` comes again, with a backlog that has `waited` so long.
pub(super) fn retry_after_s(turn: u32, waited: Duration) -> u64 {
    u64::from(1 + turn % RETRY_SPREAD_S) + waited.as_secs().min(RETRY_BACKLOG_S_MAX)
}

/// The whole body, if it has `bytes_max` at most.
async fn read(body: &mut Body, bytes_max: usize) -> Result<Bytes, Refusal> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::Broken)?.into_data() else { continue };
        if bytes.len() + data.len() > bytes_max {
            return Err(Refusal::TooLarge(bytes_max));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// Reads what is left of a body, as far as that is little.
async fn discard(body: &mut Body) {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > DISCARD_BYTES_MAX {
            return;
        }
    }
}

/// The routes.
pub(super) fn router(door: Door) -> Router {
    Router::new()
        .route(RECORDS, post(records))
        .route(TOPICS, post(topics))
        .route(OPENAPI, get(openapi))
        .with_state(Arc::new(door))
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DESCRIPTION).into_response()
}

/// The answer to stored records.
#[derive(Serialize)]
struct Answer {
    records: usize,
    /// Of these, those that their stream's policy has dropped (`drop-newest`).
    #[serde(skip_serializing_if = "is_zero")]
    dropped: usize,
    /// Where they are; not known of a request that was stored before a restart.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    offsets: Vec<Span>,
    /// The records of the request that are none, where it asked for each by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Wrong>,
}

/// What is wrong with a record.
#[derive(Serialize)]
struct Wrong {
    record: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    detail: String,
}

impl Wrong {
    fn new(flaw: &Flaw) -> Self {
        let Flaw { record, line, column, what } = flaw.clone();
        Self { record, line, column, detail: what }
    }
}

/// Records of one partition: as `wayside.offset` says in Kafka.
#[derive(Serialize)]
struct Span {
    partition: i32,
    first: i64,
    last: i64,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl Answer {
    fn new(stored: &Stored) -> Self {
        let mut spans: BTreeMap<PartitionId, (Offset, Offset)> = BTreeMap::new();
        let places = stored.places.as_deref().unwrap_or_default();
        for (partition, place) in stored.partitions.iter().zip(places) {
            let Some(offset) = *place else { continue };
            let (first, last) = spans.entry(*partition).or_insert((offset, offset));
            (*first, *last) = (offset.min(*first), offset.max(*last));
        }
        let span = |(partition, (first, last)): (PartitionId, (Offset, Offset))| Span {
            partition: partition.0,
            first: first.0,
            last: last.0,
        };
        Self {
            records: stored.partitions.len(),
            dropped: places.iter().filter(|place| place.is_none()).count(),
            offsets: spans.into_iter().map(span).collect(),
            errors: stored.flaws.iter().map(Wrong::new).collect(),
        }
    }
}

async fn records(State(door): State<Arc<Door>>, Path(stream): Path<String>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let admitted = door.api.records(&stream, head.uri.query(), &head.headers);
    match door.store(admitted, body).await {
        Ok(stored) => Json(Answer::new(&stored)).into_response(),
        Err((refusal, headers)) => (refusal.status(), headers, problem(&refusal)).into_response(),
    }
}

/// A refusal as RFC 9457 has it.
#[derive(Serialize)]
struct Problem<'a> {
    title: &'a str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
}

fn problem(refusal: &Refusal) -> Response {
    let status = refusal.status();
    let flaw = refusal.flaw();
    let problem = Problem {
        title: status.canonical_reason().unwrap_or_default(),
        status: status.as_u16(),
        detail: refusal.to_string(),
        record: flaw.and_then(|flaw| flaw.record),
        line: flaw.and_then(|flaw| flaw.line),
        column: flaw.and_then(|flaw| flaw.column),
    };
    json("application/problem+json", &problem)
}

async fn topics(State(door): State<Arc<Door>>, Path(topic): Path<String>, request: Request) -> Response {
    const CONTENT_TYPE: &str = "application/vnd.kafka.v2+json";
    let (head, body) = request.into_parts();
    let admitted = door.api.topic(&topic, &head.headers);
    match door.store(admitted, body).await {
        Ok(stored) => json(CONTENT_TYPE, &produce::Answer::new(&stored)),
        Err((refusal, headers)) => {
            let error = produce::Error::new(&refusal);
            (error.status(), headers, json(CONTENT_TYPE, &error)).into_response()
        }
    }
}

fn json(content_type: &'static str, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("names and numbers are JSON");
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// Sets how a socket behaves: answers leave at once, and a client that does not read them for `unread` is gone.
pub(super) fn prepare(socket: &TcpStream, unread: Duration) {
    // Both fail only where the connection is gone already.
    let _ = socket.set_nodelay(true);
    let unread_ms = u32::try_from(unread.as_millis()).unwrap_or(u32::MAX);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(socket, unread_ms);
}

/// Serves one connection until it ends, is idle for too long, or the source stops and its request is answered.
pub(super) async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    idle_timeout: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // How it ends is its client's concern: what was answered is stored, and nothing else was promised.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
