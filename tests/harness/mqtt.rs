//! A publisher that does one thing at a time, for tests that must know what happens when.

use std::time::Duration;

use rumqttc::{Client, Connection, Event, Incoming, MqttOptions, QoS};

/// A connection to the broker.
pub struct Publisher {
    client: Client,
    connection: Connection,
}

impl Publisher {
    /// Connects as `client_id` to the broker on `port`.
    pub fn connect(port: u16, client_id: &str) -> Self {
        let options = MqttOptions::new(client_id, "127.0.0.1", port);
        let (client, connection) = Client::new(options, 16);
        let mut publisher = Self { client, connection };
        publisher.wait_for(|packet| matches!(packet, Incoming::ConnAck(_)));
        publisher
    }

    /// Publishes at QoS 1 and returns when the broker has acknowledged.
    #[track_caller]
    pub fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client.try_publish(topic, QoS::AtLeastOnce, false, payload).expect("one request fits the queue");
        self.wait_for(|packet| matches!(packet, Incoming::PubAck(_)));
    }

    #[track_caller]
    fn wait_for(&mut self, wanted: impl Fn(&Incoming) -> bool) {
        loop {
            let event = self.connection.recv_timeout(Duration::from_secs(30)).expect("the broker answers");
            if let Event::Incoming(packet) = event.expect("the broker stays connected")
                && wanted(&packet)
            {
                return;
            }
        }
    }
}
