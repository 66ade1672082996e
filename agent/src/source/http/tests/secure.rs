//! Behind TLS, and with files that change.

use std::fs;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};

use super::{
    connections::{TOKEN, request, send_on, started},
    *,
};
use crate::{
    source::testing::{FakePipeline, on_one_thread, within},
    testing::{Age, Files},
};

async fn connect(address: SocketAddr, tls: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.expect("it listens");
    let name = ServerName::try_from("gateway.example").expect("a name");
    within("a handshake", TlsConnector::from(Arc::clone(tls)).connect(name, stream)).await
}

/// The status of a POST with `token`, which `pipeline` stores.
async fn post(
    pipeline: &mut FakePipeline,
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    token: &str,
) -> u16 {
    let headers = format!("Content-Type: application/json\r\nAuthorization: Bearer {token}\r\n");
    let request = request("POST", "/v1/streams/rooms/records", &headers, OBJECT.as_bytes());
    let asked = send_on(stream, &request);
    let stored = async {
        pipeline.record().await;
        pipeline.acknowledge_all();
        std::future::pending().await
    };
    tokio::select! { answer = asked => answer.status, never = stored => never }
}

#[test]
fn requests_come_through_tls_from_clients_with_a_certificate() {
    on_one_thread(async {
        let files = Files::new();
        files.certificate(&files.authority("ca"), "server", "gateway.example", Age::Good);
        let authority = files.authority("client-ca");
        files.certificate(&authority, "good", "room-1", Age::Good);
        files.certificate(&authority, "old", "room-1", Age::Expired);
        let address = free_address();
        let tls = Some(files.server_tls("server", Some("client-ca")));
        let idle_timeout = Duration::from_millis(200);
        let mut pipeline = started(HttpSource { tls, idle_timeout, ..config(address) }).await;
        let stream = connect(address, &files.client_tls("ca", Some("good"))).await.expect("agrees");
        assert_eq!(post(&mut pipeline, stream, "").await, 200);
        let line = "wayside_source_rejected_total{source=\"test\",reason=\"tls_handshake\"}";
        for (count, name) in [(1, None), (2, Some("old"))] {
            let mut stream = connect(address, &files.client_tls("ca", name)).await.expect("its side");
            assert!(within("the alert", stream.read_to_end(&mut Vec::new())).await.is_err());
            pipeline.metric(&format!("{line} {count}")).await;
        }
        let mut half = TcpStream::connect(address).await.expect("it listens");
        half.write_all(&[0x16, 3, 1]).await.expect("writes");
        let _ = within("the end", half.read_to_end(&mut Vec::new())).await;
        pipeline.metric(&format!("{line} 3")).await;
    });
}

#[test]
fn new_tokens_and_certificates_need_no_restart_and_bad_ones_change_nothing() {
    on_one_thread(async {
        let files = Files::new();
        files.certificate(&files.authority("ca"), "server", "gateway.example", Age::Good);
        files.write("tokens", TOKEN);
        let address = free_address();
        let token_file = FileRef { key: "source.http[0].token_file".into(), path: files.path("tokens") };
        let tls = Some(files.server_tls("server", None));
        let config = HttpSource { token_file: Some(token_file), tls, ..config(address) };
        let mut pipeline = started(config.clone()).await;
        let client = files.client_tls("ca", None);
        let status = async |pipeline: &mut FakePipeline, client, token| {
            let stream = connect(address, client).await.expect("agrees");
            post(pipeline, stream, token).await
        };
        assert_eq!(status(&mut pipeline, &client, TOKEN).await, 200);
        files.write("tokens", "short");
        pipeline.reread();
        let cause = "tokens line 1: the token has less than 16 characters";
        pipeline.state("the fault", |state| state.error.as_deref().is_some_and(|e| e.contains(cause))).await;
        assert_eq!(status(&mut pipeline, &client, TOKEN).await, 200);
        assert!(reach(&config).is_err_and(|error| error.contains(cause)));

        let new = TOKEN.replace('0', "f");
        files.write("tokens", &new);
        files.certificate(&files.authority("new-ca"), "server", "gateway.example", Age::Good);
        pipeline.reread();
        let client = files.client_tls("new-ca", None);
        within("the new certificate", async { while connect(address, &client).await.is_err() {} }).await;
        pipeline.state("health", |state| state.connected && state.error.is_none()).await;
        assert_eq!(status(&mut pipeline, &client, TOKEN).await, 401);
        assert_eq!(status(&mut pipeline, &client, &new).await, 200);
        fs::remove_file(files.path("server.crt")).expect("removes");
        assert!(reach(&config).is_err_and(|error| error.contains("tls.cert_file: ")));
    });
}
