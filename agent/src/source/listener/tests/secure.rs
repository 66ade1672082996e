//! The listener behind TLS, on a socket.

use std::sync::Arc;

use rcgen::KeyPair;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, pki_types::ServerName},
};

use super::*;
use crate::{
    source::{
        listener::{reach, run},
        testing::{FakePipeline, free_address, on_one_thread, within},
    },
    testing::{Age, Files},
};

struct Device(TlsStream<TcpStream>);

impl Device {
    /// A connection that has sent nothing.
    async fn open(config: &Listener, tls: &Arc<ClientConfig>) -> std::io::Result<Self> {
        let stream = within("a connection", async {
            loop {
                if let Ok(stream) = TcpStream::connect(config.listen).await {
                    return stream;
                }
                tokio::task::yield_now().await;
            }
        });
        let name = ServerName::try_from("gateway.example").expect("a name");
        let connecting = TlsConnector::from(Arc::clone(tls)).connect(name, stream.await);
        within("a handshake", connecting).await.map(Self)
    }

    async fn connect(config: &Listener, tls: &Arc<ClientConfig>, id: &str) -> Self {
        let mut device = Self::open(config, tls).await.expect("agrees");
        device.send(&connect_v3(id, true)).await;
        assert_eq!(device.read::<4>().await, [0x20, 2, 0, 0]);
        device
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("writes");
    }

    async fn read<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        within("an answer", self.0.read_exact(&mut bytes)).await.expect("reads");
        bytes
    }

    /// What was still said, until the end.
    async fn ended(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // Who is refused by its certificate has an alert for an end.
        let _ = within("the end", self.0.read_to_end(&mut rest)).await;
        rest
    }
}

/// Files with the CA `ca` and the certificate `server`, and a listener that shows it.
fn start(change: impl FnOnce(&Files, &mut Listener)) -> (Files, Listener, FakePipeline) {
    let files = Files::new();
    files.certificate(&files.authority("ca"), "server", "gateway.example", Age::Good);
    let tls = Some(files.server_tls("server", None));
    let mut config = Listener { listen: free_address(), tls, max_packet_bytes: 256 * 1024, ..config() };
    change(&files, &mut config);
    let running = config.clone();
    let pipeline = FakePipeline::start(1 << 20, |context| run(running, 512 * 1024, context));
    (files, config, pipeline)
}

#[test]
fn messages_come_through_tls_and_so_do_their_answers() {
    on_one_thread(async {
        let (files, config, mut pipeline) = start(|_, _| {});
        let mut device = Device::connect(&config, &files.client_tls("ca", None), "c").await;
        let long = "x".repeat(100_000);
        let body = [text("room/1"), vec![0, 1], long.clone().into_bytes()].concat();
        let length = [(body.len() & 0x7f | 0x80), (body.len() >> 7 & 0x7f | 0x80), (body.len() >> 14)];
        let length = length.map(|digit| u8::try_from(digit).expect("7 bits"));
        device.send(&[&[0x32], &length[..], &body].concat()).await;
        let (ticket, record) = pipeline.record().await;
        assert_eq!(record.value, long);
        pipeline.acknowledge(ticket);
        assert_eq!(device.read::<4>().await, [0x40, 2, 0, 1]);
        // And back, to a subscriber.
        device.send(&packet(0x82, &[vec![0, 2], text("room/#"), vec![0]].concat())).await;
        assert_eq!(device.read::<5>().await, [0x90, 3, 0, 2, 0]);
        device.send(&publish_v3(0x32, "room/2", 3, "y")).await;
        assert_eq!(device.read::<11>().await, packet(0x30, &[text("room/2"), vec![b'y']].concat())[..]);
        pipeline.shut_down();
        pipeline.acknowledge_all();
        pipeline.record().await;
        pipeline.acknowledge_all();
        assert_eq!(device.ended().await, [0x40, 2, 0, 3], "and the end is said");
        pipeline.ended().await;
    });
}

#[test]
fn a_certificate_is_the_user_name_and_those_that_are_not_good_are_refused() {
    on_one_thread(async {
        let (files, config, pipeline) = start(|files, config| {
            let authority = files.authority("client-ca");
            files.certificate(&authority, "good", "alice", Age::Good);
            files.certificate(&authority, "old", "alice", Age::Expired);
            files.certificate(&files.authority("other-ca"), "other", "alice", Age::Good);
            config.tls = Some(files.server_tls("server", Some("client-ca")));
            config.certificate_user = CertificateUser::CommonName;
            config.anonymous = Anonymous::Nowhere;
            files.write("acl", "user alice\ntopic write room/1");
            config.acl_file = Some(crate::secret::FileRef { key: "k".into(), path: files.path("acl") });
        });
        let mut device = Device::connect(&config, &files.client_tls("ca", Some("good")), "c").await;
        device.send(&publish_v3(0x32, "room/2", 1, "denied")).await;
        assert_eq!(device.read::<4>().await, [0x40, 2, 0, 1]);
        pipeline.metric("wayside_source_dropped_total{source=\"test\",reason=\"not_authorized\"} 1").await;
        for (count, name) in [(1, None), (2, Some("old")), (3, Some("other"))] {
            // TLS 1.3: the client is done before the server has seen its certificate.
            let mut device = Device::open(&config, &files.client_tls("ca", name)).await.expect("its side");
            assert_eq!(device.ended().await, [0_u8; 0]);
            let line = "wayside_source_rejected_total{source=\"test\",reason=\"tls_handshake\"}";
            pipeline.metric(&format!("{line} {count}")).await;
        }
        device.send(&publish_v3(0x32, "room/2", 2, "still there")).await;
        assert_eq!(device.read::<4>().await, [0x40, 2, 0, 2]);
    });
}

#[test]
fn a_new_certificate_is_for_new_connections_and_a_bad_one_changes_nothing() {
    on_one_thread(async {
        let (files, config, pipeline) = start(|_, _| {});
        let before = files.client_tls("ca", None);
        let mut old = Device::connect(&config, &before, "old").await;
        files.certificate(&files.authority("new-ca"), "server", "gateway.example", Age::Good);
        let after = files.client_tls("new-ca", None);
        pipeline.reread();
        within("the new certificate", async { while Device::open(&config, &after).await.is_err() {} }).await;
        assert!(Device::open(&config, &before).await.is_err());
        old.send(&[0xc0, 0]).await;
        assert_eq!(old.read::<2>().await, [0xd0, 0], "it keeps its session");

        files.write("server.key", &KeyPair::generate().expect("a key").serialize_pem());
        pipeline.reread();
        let cause = "server.crt does not fit the private key";
        pipeline.state("the fault", |state| state.error.as_deref().is_some_and(|e| e.contains(cause))).await;
        assert!(reach(&config).await.is_err_and(|error| error.contains(cause)));
        Device::connect(&config, &after, "new").await;
    });
}

#[test]
fn a_handshake_that_does_not_come_whole_is_ended_and_counted() {
    on_one_thread(async {
        let (files, config, pipeline) =
            start(|_, config| config.connect_timeout = Duration::from_millis(100));
        Device::connect(&config, &files.client_tls("ca", None), "c").await;
        let mut half = TcpStream::connect(config.listen).await.expect("connects");
        half.write_all(&[0x16, 3, 1, 0x40, 0]).await.expect("writes");
        let mut rest = Vec::new();
        let _ = within("the end", half.read_to_end(&mut rest)).await;
        assert_eq!(rest, [0_u8; 0], "nobody can read a CONNACK yet");
        let line = "wayside_source_rejected_total{source=\"test\",reason=\"tls_handshake\"}";
        pipeline.metric(&format!("{line} 1")).await;
        let mut plain = TcpStream::connect(config.listen).await.expect("connects");
        plain.write_all(&connect_v3("c", true)).await.expect("writes");
        let _ = within("the end", plain.read_to_end(&mut rest)).await;
        pipeline.metric(&format!("{line} 2")).await;
    });
}
