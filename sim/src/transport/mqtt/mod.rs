//! Devices behind MQTT: many client connections on one broker, each device bound to one of them.

mod client;
pub mod session;
pub mod wire;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use self::client::Client;
use self::session::Item;
use self::wire::{Login, Qos, Version};
use crate::chance;
use crate::load::{Device, Outgoing};
use crate::stamp::Stamps;
use crate::tally::Tally;

/// Arguments of the MQTT transport.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "MQTT")]
pub struct MqttArgs {
    /// Connections; devices are dealt out among them [default: one per device, 20 at most]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: Option<u32>,
    /// Quality of service
    #[arg(long, value_enum, default_value = "1")]
    qos: Qos,
    /// Protocol version; 3 is 3.1.1
    #[arg(long, value_enum, default_value = "5")]
    mqtt_version: Version,
    /// Unacknowledged readings that a connection holds, also while the broker is away; then the generator waits
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u16).range(1..))]
    max_unacked: u16,
}

/// Where the broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// User and password, if the URL has them.
    pub login: Option<Login>,
}

impl FromStr for BrokerUrl {
    type Err = &'static str;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let rest = url.strip_prefix("mqtt://").ok_or("the URL does not begin with mqtt://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                (Some(Login { user: user.to_owned(), password: password.to_owned() }), address)
            }
            None => (None, rest),
        };
        // A colon within brackets belongs to an IPv6 address.
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| "the port is no number")?)
            }
            _ => (address, 1883),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains('/') {
            return Err("the URL has no host, or a path");
        }
        Ok(Self { host: host.to_owned(), port, login })
    }
}

impl fmt::Display for BrokerUrl {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mqtt://{}:{}", self.host, self.port)
    }
}

/// All connections of a run.
#[derive(Debug)]
pub struct Fleet {
    clients: Vec<Handle>,
    tasks: JoinSet<()>,
    device_ids: Vec<String>,
    tally: Tally,
    stamps: Stamps,
    json: Vec<u8>,
}

/// The generator's end of a connection.
#[derive(Debug)]
struct Handle {
    queue: mpsc::UnboundedSender<Vec<Item>>,
    /// Readings taken since the last flush: one message through the channel for all of a tick.
    taken: Vec<Item>,
    /// Bounds the queue and the session together: a reading holds a permit until it is done with.
    permits: Arc<Semaphore>,
}

impl Handle {
    fn flush(&mut self) {
        if !self.taken.is_empty() {
            // A client ends after its queue is closed, not before; only an abort at the end of a drain loses this.
            let _ = self.queue.send(std::mem::take(&mut self.taken));
        }
    }
}

impl Fleet {
    /// Checks that the broker answers and starts the connections.
    ///
    /// # Errors
    /// The broker cannot be reached. Once started, a lost broker is waited for.
    pub async fn start(
        url: &BrokerUrl,
        args: &MqttArgs,
        devices: &[Device],
        tally: Tally,
        seed: u64,
    ) -> anyhow::Result<Self> {
        TcpStream::connect((url.host.as_str(), url.port))
            .await
            .with_context(|| format!("cannot reach {url}"))?;
        let clients =
            args.clients.map_or(devices.len().min(20), |clients| clients as usize).min(devices.len());
        let mqtt_topics: Arc<[Bytes]> =
            devices.iter().map(|device| Bytes::copy_from_slice(device.mqtt_topic.as_bytes())).collect();
        let mut tasks = JoinSet::new();
        let handles = (0..clients).map(|index| {
            let (queue, receiver) = mpsc::unbounded_channel();
            let permits = Arc::new(Semaphore::new(usize::from(args.max_unacked)));
            let client = Client {
                url: url.clone(),
                // Several simulators may load one broker.
                client_id: format!("wayside-sim-{}-{index}", std::process::id()),
                version: args.mqtt_version,
                qos: args.qos,
                mqtt_topics: mqtt_topics.clone(),
                tally: tally.clone(),
                rng: chance::rng(seed, u64::MAX - index as u64),
                queue: receiver,
                permits: permits.clone(),
            };
            tasks.spawn(client.run());
            Handle { queue, taken: Vec::new(), permits }
        });
        let clients = handles.collect();
        let device_ids = devices.iter().map(|device| device.id.clone()).collect();
        Ok(Self {
            clients,
            tasks,
            device_ids,
            tally,
            stamps: Stamps::default(),
            json: Vec::with_capacity(512),
        })
    }

    /// The counters of the run.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    fn client_of(&mut self, device: u32) -> &mut Handle {
        let index = device as usize % self.clients.len();
        &mut self.clients[index]
    }

    /// See [`super::Transport::try_send`].
    pub fn try_send(&mut self, outgoing: &Outgoing) -> bool {
        match self.client_of(outgoing.device).permits.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => return false,
        }
        self.json.clear();
        let time = self.stamps.format(outgoing.time_micros);
        let device_id = &self.device_ids[outgoing.device as usize];
        outgoing.reading.write_json(device_id, outgoing.seq, time, &mut self.json);
        let payload = Bytes::copy_from_slice(&self.json);
        let item = Item { device: outgoing.device, seq: outgoing.seq, payload, sent_micros: None };
        self.client_of(outgoing.device).taken.push(item);
        true
    }

    /// See [`super::Transport::ready`].
    pub async fn ready(&mut self, device: u32) {
        // What is not flushed is never acknowledged.
        self.flush();
        // The semaphore is never closed. The permit goes back at once and is taken again by `try_send`.
        let _ = self.client_of(device).permits.acquire().await;
    }

    /// See [`super::Transport::flush`].
    pub fn flush(&mut self) {
        self.clients.iter_mut().for_each(Handle::flush);
    }

    /// Waits until every client has all its acknowledgements. Dropped before that, it ends the clients.
    pub async fn drain(mut self) {
        self.flush();
        self.clients.clear();
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broker_urls_name_host_port_and_login() {
        let check = |url: &str, host: &str, port, login: Option<(&str, &str)>| {
            let login = login.map(|(user, password)| Login { user: user.into(), password: password.into() });
            assert_eq!(url.parse(), Ok(BrokerUrl { host: host.into(), port, login }), "{url}");
        };
        check("mqtt://localhost", "localhost", 1883, None);
        check("mqtt://10.0.0.7:1884/", "10.0.0.7", 1884, None);
        check("mqtt://[::1]:1884", "::1", 1884, None);
        check("mqtt://[fe80::1]", "fe80::1", 1883, None);
        check("mqtt://me:p@ss@host:1", "host", 1, Some(("me", "p@ss")));
        for wrong in ["localhost", "mqtts://host", "mqtt://", "mqtt://host:port", "mqtt://host/path"] {
            assert!(wrong.parse::<BrokerUrl>().is_err(), "{wrong}");
        }
    }
}
