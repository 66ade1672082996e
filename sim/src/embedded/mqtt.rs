//! An MQTT broker inside this process: rumqttd on a free port.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

/// How long the broker may take until it takes connections.
const START_MAX: Duration = Duration::from_secs(10);

/// A running MQTT broker for versions 3.1.1 and 5. Its threads have no end but the process's: rumqttd knows no shutdown.
#[derive(Debug)]
pub struct EmbeddedMqtt {
    v4: SocketAddr,
    v5: SocketAddr,
}

impl EmbeddedMqtt {
    /// Starts one on free ports of the loopback, and returns when it takes connections. Blocks.
    ///
    /// # Errors
    /// No port or no thread is to be had.
    pub fn start() -> anyhow::Result<Self> {
        let [v4, v5] = free_ports().context("no free port for the MQTT broker")?;
        let config = Config {
            id: 0,
            router: RouterConfig {
                max_connections: 1_000,
                max_outgoing_packet_count: 200,
                // Segments are the broker's memory per topic filter: what a slow or absent subscriber may leave unread.
                max_segment_size: 16 << 20,
                max_segment_count: 16,
                ..RouterConfig::default()
            },
            v4: Some(HashMap::from([("v4".to_owned(), server("mqtt-v4", v4))])),
            v5: Some(HashMap::from([("v5".to_owned(), server("mqtt-v5", v5))])),
            ..Config::default()
        };
        let mut broker = Broker::new(config);
        std::thread::Builder::new().name("embedded-mqtt".into()).spawn(move || {
            if let Err(error) = broker.start() {
                tracing::error!(%error, "the embedded MQTT broker cannot start");
            }
        })?;
        let deadline = Instant::now() + START_MAX;
        for address in [v4, v5] {
            while TcpStream::connect_timeout(&address, START_MAX).is_err() {
                if Instant::now() >= deadline {
                    bail!("the embedded MQTT broker does not answer at {address}");
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(Self { v4, v5 })
    }

    /// URL for clients of MQTT 3.1.1.
    pub fn url_v4(&self) -> String {
        format!("mqtt://{}", self.v4)
    }

    /// URL for clients of MQTT 5.
    pub fn url_v5(&self) -> String {
        format!("mqtt://{}", self.v5)
    }
}

fn server(name: &str, listen: SocketAddr) -> ServerSettings {
    ServerSettings {
        name: name.to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections: ConnectionSettings {
            connection_timeout_ms: 5_000,
            max_payload_size: 1 << 20,
            max_inflight_count: 200,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    }
}

/// Two ports that were free just now; rumqttd wants numbers and binds them itself.
fn free_ports() -> io::Result<[SocketAddr; 2]> {
    // Both are bound before either is given back, so that they differ.
    let listeners = [TcpListener::bind(("127.0.0.1", 0))?, TcpListener::bind(("127.0.0.1", 0))?];
    let [a, b] = &listeners;
    Ok([a.local_addr()?, b.local_addr()?])
}

#[cfg(test)]
mod tests {
    use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS};

    use super::*;

    async fn client(broker: &EmbeddedMqtt, id: &str) -> (AsyncClient, EventLoop) {
        let mut options = MqttOptions::new(id, "127.0.0.1", broker.v4.port());
        options.set_clean_session(false).set_manual_acks(true);
        AsyncClient::new(options, 1_000)
    }

    /// The next `count` publications; they are not acknowledged.
    async fn receive(events: &mut EventLoop, count: usize) -> Vec<Publish> {
        let mut received = Vec::new();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while received.len() < count {
            let event = tokio::time::timeout_at(deadline, events.poll()).await;
            let Ok(event) = event else { panic!("{} of {count} arrived", received.len()) };
            if let Event::Incoming(Packet::Publish(publish)) = event.unwrap() {
                received.push(publish);
            }
        }
        received
    }

    async fn wait_for(events: &mut EventLoop, wanted: impl Fn(&Packet) -> bool) {
        while !matches!(events.poll().await.unwrap(), Event::Incoming(packet) if wanted(&packet)) {}
    }

    #[tokio::test]
    async fn an_absent_subscriber_finds_everything_in_order_when_it_returns() {
        let broker = EmbeddedMqtt::start().unwrap();
        let (subscriber, mut events) = client(&broker, "subscriber").await;
        subscriber.subscribe("t/+", QoS::AtLeastOnce).await.unwrap();
        wait_for(&mut events, |packet| matches!(packet, Packet::SubAck(_))).await;
        let (publisher, mut published) = client(&broker, "publisher").await;
        for i in 0..50 {
            publisher.publish("t/a", QoS::AtLeastOnce, false, i.to_string()).await.unwrap();
        }
        let driver = tokio::spawn(async move { while published.poll().await.is_ok() {} });
        let first = receive(&mut events, 50).await;
        // Half is acknowledged, then it is gone without a word.
        for publish in &first[..25] {
            subscriber.ack(publish).await.unwrap();
        }
        let _ =
            tokio::time::timeout(Duration::from_millis(200), async { while events.poll().await.is_ok() {} })
                .await;
        drop((subscriber, events));
        for i in 50..600 {
            publisher.publish("t/a", QoS::AtLeastOnce, false, i.to_string()).await.unwrap();
        }
        let (subscriber, mut events) = client(&broker, "subscriber").await;
        let mut values = Vec::new();
        while values.len() < 575 {
            for publish in receive(&mut events, 1).await {
                values.push(String::from_utf8(publish.payload.to_vec()).unwrap().parse::<u32>().unwrap());
                subscriber.ack(&publish).await.unwrap();
            }
        }
        assert_eq!(values, (25..600).collect::<Vec<_>>());
        driver.abort();
    }
}
