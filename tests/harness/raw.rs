//! MQTT 3.1.1 byte by byte, for what no client library would send, and for more connections than one would hold.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::PATIENCE;

/// Threads that connect and publish in [`connect_all`] and [`publish_all`].
const THREADS: usize = 4;

/// A packet with its first byte and what is behind its length.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut rest = body.len();
    while rest > 127 {
        packet.push(u8::try_from(rest & 127).expect("seven bits") | 128);
        rest >>= 7;
    }
    packet.push(u8::try_from(rest).expect("seven bits"));
    packet.extend_from_slice(body);
    packet
}

/// A string with its length.
pub fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("short");
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// CONNECT with a clean session; a keep-alive of 0 is none.
pub fn connect(id: &str, keep_alive_s: u8) -> Vec<u8> {
    packet(0x10, &[&b"\0\x04MQTT\x04\x02\0"[..], &[keep_alive_s], &text(id)].concat())
}

/// PUBLISH at QoS 0.
pub fn publish_0(topic: &str, payload: &[u8]) -> Vec<u8> {
    packet(0x30, &[&text(topic), payload].concat())
}

/// PUBLISH at QoS 1.
pub fn publish_1(topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    packet(0x32, &[&text(topic), &id.to_be_bytes()[..], payload].concat())
}

/// A connection to the server on `port`, that has said nothing yet.
pub fn open(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the server accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes the option");
    stream
}

/// A client of TLS that trusts the CA in the PEM file `ca`, and makes a whole handshake for each connection.
pub fn tls(ca: &Path) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).expect("a file of ours") {
        roots.add(certificate.expect("PEM")).expect("a CA");
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A connection as of [`open`], over TLS.
pub fn open_tls(port: u16, config: &Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::from(Ipv4Addr::LOCALHOST);
    let tls = ClientConnection::new(Arc::clone(config), name).expect("the configuration is whole");
    StreamOwned::new(tls, open(port))
}

/// The answer of four bytes, CONNACK or PUBACK, has to come next.
#[track_caller]
pub fn expect(stream: &mut impl Read, expected: [u8; 4]) {
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("the server answers");
    assert_eq!(answer, expected);
}

/// Connects clients `c0`, `c1` ... all at once, each over what `open` returns; returns when all are served.
pub fn connect_all<S: Read + Write + Send>(open: impl Fn() -> S + Sync, clients: usize) -> Vec<S> {
    let connect_some = |thread: usize| {
        let client = |n: usize| {
            let mut stream = open();
            stream.write_all(&connect(&format!("c{n}"), 0)).expect("the server reads");
            stream
        };
        let mut streams: Vec<_> = (thread..clients).step_by(THREADS).map(client).collect();
        streams.iter_mut().for_each(|stream| expect(stream, [0x20, 2, 0, 0]));
        streams
    };
    std::thread::scope(|scope| {
        let connect_some = &connect_some;
        let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || connect_some(n))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("all are served")).collect()
    })
}

/// Each of `clients` publishes `packet`, at QoS 1 with packet id 1; returns when all are acknowledged.
pub fn publish_all<S: Read + Write>(clients: &mut [S], packet: impl Fn(usize) -> Vec<u8>) {
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_all(&packet(n)).expect("the server reads");
    }
    clients.iter_mut().for_each(|client| expect(client, [0x40, 2, 0, 1]));
}

/// Lets this process, and the agent that it starts, have as many open files as the hard limit allows. Returns how many clients
/// both can have, out of `wanted`.
pub fn raise_descriptors(wanted: usize) -> usize {
    const OTHERS: u64 = 500;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
    let descriptors = limit.maximum.unwrap_or(u64::MAX);
    usize::try_from(descriptors.saturating_sub(OTHERS)).unwrap_or(usize::MAX).min(wanted)
}
