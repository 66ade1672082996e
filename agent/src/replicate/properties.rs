//! librdkafka's configuration: what the promises need, what the config says, and what an operator may add.

use std::collections::BTreeMap;

use rdkafka::ClientConfig;

use super::TRANSACTION_TIMEOUT;
use crate::config::{Compression, Delivery, Replicate};

/// Properties that `[replicate] properties` may not set: they carry the promises, or have a key of their own.
pub const PROTECTED_PROPERTIES: &[&str] = &[
    "acks",
    "allow.auto.create.topics",
    "bootstrap.servers",
    "compression.codec",
    "compression.type",
    "delivery.report.only.error",
    "delivery.timeout.ms",
    "enable.gapless.guarantee",
    "enable.idempotence",
    "group.id",
    "isolation.level",
    "linger.ms",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "message.send.max.retries",
    "message.timeout.ms",
    "metadata.broker.list",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "queue.buffering.max.ms",
    "queuing.strategy",
    "request.required.acks",
    "retries",
    "test.mock.num.brokers",
    "transaction.timeout.ms",
    "transactional.id",
];

/// Beginnings of properties that have keys of their own in `[replicate.tls]` and `[replicate.sasl]`: what they hold, or where
/// it is, must not get into an error.
const PROTECTED_SECRETS: &[&str] = &[
    "enable.sasl.oauthbearer",
    "https.",
    "sasl.",
    "security.protocol",
    "ssl.ca",
    "ssl.cert",
    "ssl.engine",
    "ssl.key",
    "ssl_",
];

/// Why a property cannot be set. The config's check reports it with the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertyError {
    /// It is one of [`PROTECTED_PROPERTIES`].
    #[error("`{0}` is set by the agent and cannot be overridden")]
    Protected(String),
    /// It is about the brokers' or our identity.
    #[error("`{0}` cannot be set here: see [replicate.tls] and [replicate.sasl]")]
    Secret(String),
    /// librdkafka does not know the property, or not its value.
    #[error("`{property}`: {reason}")]
    Refused {
        /// The property's name.
        property: String,
        /// librdkafka's words.
        reason: String,
    },
}

/// Checks `[replicate] properties` as librdkafka would, one by one.
///
/// # Errors
/// The first property that cannot be set.
pub fn check_properties(properties: &BTreeMap<String, String>) -> Result<(), PropertyError> {
    for (property, value) in properties {
        if PROTECTED_PROPERTIES.contains(&property.as_str()) {
            return Err(PropertyError::Protected(property.clone()));
        }
        if PROTECTED_SECRETS.iter().any(|start| property.starts_with(start)) {
            return Err(PropertyError::Secret(property.clone()));
        }
        let mut config = ClientConfig::new();
        config.set(property, value);
        if let Err(error) = config.create_native_config() {
            return Err(PropertyError::Refused { property: property.clone(), reason: error.to_string() });
        }
    }
    Ok(())
}

/// What every client of this agent has in common.
fn common(config: &Replicate, client_id: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    for (property, value) in &config.properties {
        client.set(property, value);
    }
    client
        .set("client.id", client_id)
        .set("bootstrap.servers", config.bootstrap_servers.join(","))
        // A topic that a broker makes by itself has the broker's partitions, not ours.
        .set("allow.auto.create.topics", "false");
    // Idle connections are closed by brokers; that is no news.
    default(&mut client, "log.connection.close", "false");
    default(&mut client, "socket.keepalive.enable", "true");
    client
}

fn default(client: &mut ClientConfig, property: &str, value: &str) {
    if client.get(property).is_none() {
        client.set(property, value);
    }
}

/// The configuration of the producer of a gateway.
pub(super) fn producer(config: &Replicate, gateway: &str) -> ClientConfig {
    let mut client = common(config, &format!("wayside-{gateway}"));
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("max.in.flight.requests.per.connection", "5")
        .set("compression.type", compression(config.compression))
        // A gateway has more bandwidth than CPU. lz4's levels above 0 are slow ones, and "none" has none.
        .set("compression.level", if config.compression == Compression::Zstd { "1" } else { "0" })
        .set("delivery.report.only.error", "false")
        // Wider than the replicator's own bound, which counts more than librdkafka does per record.
        .set("queue.buffering.max.kbytes", (config.in_flight_bytes / 1024 * 2 + 1024).to_string())
        .set("queue.buffering.max.messages", (config.in_flight_bytes / 64 + 10_000).to_string());
    match config.delivery {
        Delivery::ExactlyOnce => {
            client
                .set("transactional.id", group(gateway))
                // And with it `message.timeout.ms`: what is not delivered by then is sent again in another transaction.
                .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
                // All records of a transaction are handed over at once.
                .set("linger.ms", "5");
            // A transaction that follows another closely is told to come again until Kafka has ended that one: with 2 000
            // records each, 17 500 records/s at the default of 100 ms, 20 700 with this.
            default(&mut client, "retry.backoff.ms", "20");
        }
        Delivery::AtLeastOnce => {
            client
                // A batch that failed for good stops the producer; else later batches would overtake its repetition.
                .set("enable.gapless.guarantee", "true")
                // No time limit: the length of an outage does not matter.
                .set("message.timeout.ms", "0")
                .set("linger.ms", config.linger.as_millis().to_string());
        }
    }
    // Batches are closed by bytes and linger; 10 000 records of a short stream would close them early.
    default(&mut client, "batch.num.messages", "100000");
    // Whether a broker throttles is said in the statistics alone.
    default(&mut client, "statistics.interval.ms", "10000");
    client
}

/// The name of a gateway's group and of its transactions.
pub(super) fn group(gateway: &str) -> String {
    format!("wayside.{gateway}")
}

/// The configuration of the short-lived consumer that asks for the offsets of a gateway's group, or for one record.
pub(super) fn consumer(config: &Replicate, gateway: &str) -> ClientConfig {
    let mut client = common(config, &format!("wayside-{gateway}"));
    client
        .set("group.id", group(gateway))
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed");
    client
}

/// The configuration of the short-lived client that looks for topics and creates them.
pub(super) fn admin(config: &Replicate, client_id: &str) -> ClientConfig {
    common(config, client_id)
}

fn compression(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(property: &str, value: &str) -> Result<(), PropertyError> {
        check_properties(&BTreeMap::from([(property.to_owned(), value.to_owned())]))
    }

    #[test]
    fn a_protected_property_is_refused() {
        for property in PROTECTED_PROPERTIES {
            assert_eq!(check(property, "1"), Err(PropertyError::Protected((*property).to_owned())));
        }
    }

    #[test]
    fn a_secret_among_the_properties_is_refused_and_not_repeated() {
        for property in ["sasl.password", "ssl.key.pem", "ssl.keystore.password", "sasl.oauthbearer.config"] {
            let error = check(property, "hunter2").unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert_eq!(error, PropertyError::Secret(property.to_owned()));
        }
        assert_eq!(check("ssl.endpoint.identification.algorithm", "https"), Ok(()));
    }

    #[test]
    fn an_unknown_property_or_value_is_refused_with_librdkafkas_words() {
        assert!(matches!(check("no.such.property", "1"), Err(PropertyError::Refused { .. })));
        assert!(matches!(check("socket.timeout.ms", "soon"), Err(PropertyError::Refused { .. })));
    }

    #[test]
    fn an_operators_property_is_taken_over_the_agents_default() {
        assert_eq!(check("batch.num.messages", "500"), Ok(()));
        let mut config = super::super::tests::config();
        config.properties.insert("batch.num.messages".into(), "500".into());
        assert_eq!(producer(&config, "gw").get("batch.num.messages"), Some("500"));
    }
}
