//! Connections: frames in, requests answered in order, frames out.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use bytes::{Buf, Bytes, BytesMut};
use kafka_protocol::{
    ResponseError,
    messages::{
        AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiKey, ApiVersionsResponse, CreateTopicsRequest,
        DescribeConfigsRequest, EndTxnRequest, FetchRequest, InitProducerIdRequest, ListOffsetsRequest,
        MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, ProduceRequest, RequestHeader,
        ResponseHeader, TxnOffsetCommitRequest, api_versions_response::ApiVersion,
    },
    protocol::{Decodable, Encodable},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    time::{Instant, timeout_at},
};
use tracing::debug;

use super::cluster::Cluster;
use crate::ledger::unix_micros;

/// The requests that are answered, with the first and last version of each. Later versions need topic ids, or answer for
/// several groups or transactions at once.
const APIS: [(ApiKey, i16, i16); 15] = [
    (ApiKey::Produce, 3, 9),
    (ApiKey::Fetch, 4, 11),
    (ApiKey::ListOffsets, 1, 6),
    (ApiKey::Metadata, 1, 9),
    (ApiKey::OffsetCommit, 2, 8),
    (ApiKey::OffsetFetch, 1, 7),
    (ApiKey::FindCoordinator, 0, 2),
    (ApiKey::ApiVersions, 0, 3),
    (ApiKey::CreateTopics, 2, 5),
    (ApiKey::InitProducerId, 0, 4),
    (ApiKey::AddPartitionsToTxn, 0, 3),
    (ApiKey::AddOffsetsToTxn, 0, 3),
    (ApiKey::EndTxn, 0, 3),
    (ApiKey::TxnOffsetCommit, 0, 3),
    (ApiKey::DescribeConfigs, 1, 4),
];
/// A frame beyond this is an error of the client: librdkafka's largest message is a tenth.
const FRAME_SIZE_MAX: usize = 10 << 20;

#[derive(Debug)]
struct Shared {
    /// Held for one request, never across an await.
    cluster: Mutex<Cluster>,
    /// Wakes fetches that wait for records.
    appended: Notify,
}

impl Shared {
    fn with<T>(&self, f: impl FnOnce(&mut Cluster, i64) -> T) -> T {
        let now_ms = i64::try_from(unix_micros() / 1000).unwrap_or(i64::MAX);
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        cluster.expire_transactions(now_ms);
        f(&mut cluster, now_ms)
    }
}

/// A running broker. It runs on a thread of its own and ends when this is dropped.
#[derive(Debug)]
pub struct EmbeddedKafka {
    address: SocketAddr,
    /// Whether it can be reached; closed when the broker is to end.
    up: watch::Sender<bool>,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EmbeddedKafka {
    /// Starts one on a free port of the loopback.
    ///
    /// # Errors
    /// No port or no thread is to be had.
    pub fn start() -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared =
            Arc::new(Shared { cluster: Mutex::new(Cluster::new(address.port())), appended: Notify::new() });
        let (up, is_up) = watch::channel(true);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("embedded-kafka".into()).spawn(move || {
            runtime.block_on(async {
                if let Err(error) = accept(listener, served, is_up).await {
                    tracing::error!(%error, "the embedded Kafka cannot accept connections");
                }
            });
        })?;
        Ok(Self { address, up, shared, thread: Some(thread) })
    }

    /// Where it is, for `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// Cuts all connections and hangs up on every new one, until [`come_back`](Self::come_back). Data stays.
    pub fn go_away(&self) {
        self.up.send_replace(false);
    }

    /// Takes connections again.
    pub fn come_back(&self) {
        self.up.send_replace(true);
    }

    /// Records that it holds, whether committed or not.
    pub fn record_count(&self) -> u64 {
        self.shared.with(|cluster, _| cluster.record_count())
    }

    /// Whether it takes connections.
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }
}

impl Drop for EmbeddedKafka {
    fn drop(&mut self) {
        // With its only sender gone the channel ends, and with it the broker.
        self.up = watch::channel(false).0;
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

/// Serves until the sender of `is_up` is gone.
async fn accept(
    listener: std::net::TcpListener,
    shared: Arc<Shared>,
    mut is_up: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = tokio::select! {
            biased;
            // Never true: it ends when the sender is gone.
            _ = is_up.wait_for(|_| false) => return Ok(()),
            accepted = listener.accept() => accepted?,
        };
        if !*is_up.borrow() {
            continue; // Dropped: hung up. The port stays ours.
        }
        let (shared, mut is_up) = (Arc::clone(&shared), is_up.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                // Away, or dropped altogether.
                _ = is_up.wait_for(|up| !up) => {}
                served = serve(stream, &shared) => if let Err(error) = served {
                    debug!(%error, "a client of the embedded Kafka was cut off");
                },
            }
        });
    }
}

/// Answers one client's requests in their order.
async fn serve(mut stream: TcpStream, shared: &Shared) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let size = match stream.read_u32().await {
            Ok(size) => usize::try_from(size)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        anyhow::ensure!(size <= FRAME_SIZE_MAX, "a frame of {size} bytes");
        let mut frame = BytesMut::zeroed(size);
        stream.read_exact(&mut frame).await?;
        if let Some(response) = answer(frame.freeze(), shared).await? {
            stream.write_u32(u32::try_from(response.len())?).await?;
            stream.write_all(&response).await?;
        }
    }
}

/// The response frame, or none for a producer that wants no acknowledgement.
async fn answer(mut frame: Bytes, shared: &Shared) -> anyhow::Result<Option<BytesMut>> {
    let mut start = frame.clone();
    anyhow::ensure!(start.remaining() >= 8, "a frame of {} bytes", start.remaining());
    let (key, version) = (start.get_i16(), start.get_i16());
    let api = APIS.iter().find(|(api, ..)| *api as i16 == key);
    let &(api, first, last) = api.with_context(|| format!("request {key} is not answered here"))?;
    let known = (first..=last).contains(&version);
    // A client that starts with a later version of ApiVersions is told so in version 0.
    anyhow::ensure!(known || api == ApiKey::ApiVersions, "{api:?} version {version} is not answered here");
    let header = RequestHeader::decode(&mut frame, api.request_header_version(version))?;
    let version = if known { version } else { 0 };
    let mut response = BytesMut::new();
    ResponseHeader::default()
        .with_correlation_id(header.correlation_id)
        .encode(&mut response, api.response_header_version(version))?;
    let out = &mut response;
    match api {
        ApiKey::ApiVersions => api_versions(known).encode(out, version)?,
        ApiKey::Produce => {
            let request = ProduceRequest::decode(&mut frame, version)?;
            let wants_response = request.acks != 0;
            let produced = shared.with(|cluster, _| cluster.produce(request));
            shared.appended.notify_waiters();
            if !wants_response {
                return Ok(None);
            }
            produced.encode(out, version)?;
        }
        ApiKey::Fetch => {
            let request = FetchRequest::decode(&mut frame, version)?;
            fetch(&request, shared).await.encode(out, version)?;
        }
        ApiKey::EndTxn => {
            let request = EndTxnRequest::decode(&mut frame, version)?;
            shared.with(|cluster, now| cluster.end_txn(&request, now)).encode(out, version)?;
            // A commit shows records.
            shared.appended.notify_waiters();
        }
        ApiKey::InitProducerId => {
            let request = InitProducerIdRequest::decode(&mut frame, version)?;
            shared.with(|cluster, now| cluster.init_producer_id(&request, now)).encode(out, version)?;
            shared.appended.notify_waiters();
        }
        ApiKey::ListOffsets => {
            let request = ListOffsetsRequest::decode(&mut frame, version)?;
            shared.with(|cluster, _| cluster.list_offsets(request)).encode(out, version)?;
        }
        ApiKey::Metadata => {
            let request = MetadataRequest::decode(&mut frame, version)?;
            shared.with(|cluster, _| cluster.metadata(&request)).encode(out, version)?;
        }
        ApiKey::OffsetCommit => {
            let request = OffsetCommitRequest::decode(&mut frame, version)?;
            shared.with(|cluster, _| cluster.offset_commit(request)).encode(out, version)?;
        }
        ApiKey::OffsetFetch => {
            let request = OffsetFetchRequest::decode(&mut frame, version)?;
            shared.with(|cluster, _| cluster.offset_fetch(request)).encode(out, version)?;
        }
        ApiKey::FindCoordinator => {
            shared.with(|cluster, _| cluster.find_coordinator()).encode(out, version)?;
        }
        ApiKey::CreateTopics => {
            let request = CreateTopicsRequest::decode(&mut frame, version)?;
            shared.with(|cluster, _| cluster.create_topics(request)).encode(out, version)?;
        }
        ApiKey::DescribeConfigs => {
            let request = DescribeConfigsRequest::decode(&mut frame, version)?;
            shared.with(|cluster, _| cluster.describe_configs(request)).encode(out, version)?;
        }
        ApiKey::AddPartitionsToTxn => {
            let request = AddPartitionsToTxnRequest::decode(&mut frame, version)?;
            shared.with(|cluster, now| cluster.add_partitions_to_txn(request, now)).encode(out, version)?;
        }
        ApiKey::AddOffsetsToTxn => {
            let request = AddOffsetsToTxnRequest::decode(&mut frame, version)?;
            shared.with(|cluster, now| cluster.add_offsets_to_txn(&request, now)).encode(out, version)?;
        }
        ApiKey::TxnOffsetCommit => {
            let request = TxnOffsetCommitRequest::decode(&mut frame, version)?;
            shared.with(|cluster, now| cluster.txn_offset_commit(request, now)).encode(out, version)?;
        }
        other => anyhow::bail!("{other:?} is not answered here"),
    }
    Ok(Some(response))
}

fn api_versions(known: bool) -> ApiVersionsResponse {
    let keys = APIS.iter().map(|(api, first, last)| {
        ApiVersion::default().with_api_key(*api as i16).with_min_version(*first).with_max_version(*last)
    });
    let error_code = if known { 0 } else { ResponseError::UnsupportedVersion.code() };
    ApiVersionsResponse::default().with_error_code(error_code).with_api_keys(keys.collect())
}

/// Answers when there are `min_bytes`, or after `max_wait_ms`.
async fn fetch(request: &FetchRequest, shared: &Shared) -> kafka_protocol::messages::FetchResponse {
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0));
    let deadline = Instant::now() + wait;
    let wanted = usize::try_from(request.min_bytes).unwrap_or(0);
    loop {
        // Listens before it looks, or it would miss what is appended in between.
        let appended = shared.appended.notified();
        tokio::pin!(appended);
        appended.as_mut().enable();
        let (response, size) = shared.with(|cluster, _| cluster.fetch(request));
        if size >= wanted || timeout_at(deadline, appended).await.is_err() {
            return response;
        }
    }
}
