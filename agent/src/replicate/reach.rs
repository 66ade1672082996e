//! `wayside check --connect` at Kafka: what the cluster says to the configuration. Creates nothing.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rdkafka::{
    ClientContext,
    error::KafkaError,
    message::DeliveryResult,
    producer::{BaseProducer, Producer, ProducerContext},
    types::RDKafkaErrorCode,
};

use super::{
    access,
    kafka::LogContext,
    properties,
    topics::{Admin, TIMEOUT, Wanted, Worker},
};
use crate::config::Config;

/// What was tried, and what came of it.
pub type Finding = (String, Result<String, String>);

/// Asks the cluster for its brokers and for the topic of every stream: whether it has the partitions that the
/// configuration says, or may be created with them. A cluster that is away costs one finding and 10 s. The right to
/// write a topic shows only when a record is sent.
pub fn reach(config: &Config) -> Vec<Finding> {
    let servers = format!("Kafka {}", config.replicate.bootstrap_servers.join(","));
    let client_id = format!("wayside-{}-check", config.gateway.id);
    let worker = Worker::new(config.replicate.clone(), properties::admin(&config.replicate, &client_id));
    // A producer, since it alone can be asked why it does not come through; it sends nothing.
    let clients = worker
        .client(LastWords::default(), BaseProducer::client)
        .and_then(|producer| Ok((producer, worker.client(LogContext, Admin::inner)?)));
    let (producer, admin) = match clients {
        Ok(clients) => clients,
        Err(reason) => return vec![(servers, Err(reason))],
    };
    let mut findings = Vec::new();
    for stream in config.stream_names() {
        let wanted = Wanted {
            topic: format!("{}.{stream}", config.gateway.environment),
            partitions: config.partitions(stream),
        };
        match topic(&producer, &admin, &worker, &wanted, stream) {
            Ok((brokers, found)) => {
                if findings.is_empty() {
                    findings.push((servers.clone(), Ok(format!("{brokers} brokers"))));
                }
                findings.push((format!("topic {}", wanted.topic), found));
            }
            Err(reason) => {
                // The next ones would only wait for the same cluster.
                findings.push((servers, Err(last_words(&producer).unwrap_or(reason))));
                break;
            }
        }
    }
    findings
}

/// The number of brokers, and what is known of the topic. `Err` where the cluster does not answer.
fn topic(
    producer: &BaseProducer<LastWords>,
    admin: &Admin,
    worker: &Worker,
    wanted: &Wanted,
    stream: &str,
) -> Result<(usize, Result<String, String>), String> {
    let metadata =
        producer.client().fetch_metadata(Some(&wanted.topic), TIMEOUT).map_err(|error| error.to_string())?;
    let brokers = metadata.brokers().len();
    let Some(found) = metadata.topics().iter().find(|topic| topic.name() == wanted.topic) else {
        return Ok((brokers, Err("no answer about it".into())));
    };
    let partitions = found.partitions();
    let replicas = partitions.first().map_or(0, |partition| partition.replicas().len());
    let result = match found.error().map(RDKafkaErrorCode::from) {
        None if partitions.len() == usize::from(wanted.partitions.get()) => {
            Ok(format!("{} partitions, {replicas} replicas", partitions.len()))
        }
        None => Err(format!(
            "has {} partitions, the configuration wants {}: set `partitions = {0}` in [[stream]] name = \"{stream}\", \
             or change the topic",
            partitions.len(),
            wanted.partitions,
        )),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            let replication_factor = worker.settings.replication_factor;
            match worker.request(admin, wanted, true)? {
                Ok(()) => Ok(format!(
                    "is not there; the agent may create it with {} partitions and {replication_factor} replicas",
                    wanted.partitions
                )),
                Err(code) => Err(format!(
                    "is not there, and the agent cannot create it with {} partitions and {replication_factor} replicas \
                     on {brokers} brokers: {}",
                    wanted.partitions,
                    access::explain(&code.to_string()),
                )),
            }
        }
        Some(code) => Err(access::explain(&code.to_string())),
    };
    Ok((brokers, result))
}

/// Why librdkafka does not come through: the error of a request says no more than that something timed out.
#[derive(Default)]
struct LastWords(
    /// Written and read by the one thread that polls; librdkafka's trait wants it shareable.
    Mutex<Option<String>>,
);

/// Polls that take what librdkafka had to say; it says one thing a poll.
const POLLS: usize = 16;

fn last_words(producer: &BaseProducer<LastWords>) -> Option<String> {
    (0..POLLS).for_each(|_| {
        producer.poll(Duration::ZERO);
    });
    producer.context().0.lock().unwrap_or_else(PoisonError::into_inner).take()
}

impl ClientContext for LastWords {
    fn error(&self, error: KafkaError, reason: &str) {
        // That all brokers are down says less than why.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(access::explain(reason));
        }
    }
}

impl ProducerContext for LastWords {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

#[cfg(test)]
mod tests {
    use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext};

    use super::*;
    use crate::{
        config::{Sasl, SaslMechanism, check},
        secret::SecretRef,
    };

    fn config(servers: &str) -> Config {
        let text = format!(
            "gateway.id = \"g\"\n[replicate]\nbootstrap_servers = [{servers:?}]\n[[source.serial]]\nname = \"s\"\n\
             path = \"/dev/null\"\nprotocol = \"nmea\"\nstream = \"a\"\nraw_stream = \"b\"\n[[stream]]\nname = \"b\"\n\
             partitions = 7"
        );
        check::parse(&text, &[]).expect("good").config
    }

    #[test]
    fn a_topic_has_the_partitions_or_not_or_may_be_created() {
        let mock: MockCluster<'_, DefaultProducerContext> = MockCluster::new(3).unwrap();
        mock.create_topic("prod.a", 4, 1).unwrap();
        mock.create_topic("prod.b", 4, 1).unwrap();
        mock.create_topic("prod.dead-letter", 4, 3).unwrap();
        mock.create_topic("prod.gaps", 4, 3).unwrap();
        let servers = mock.bootstrap_servers();
        let findings = reach(&config(&servers));
        let said: Vec<_> = findings.iter().map(|(item, found)| (item.as_str(), found.is_ok())).collect();
        let kafka = format!("Kafka {servers}");
        assert_eq!(
            said,
            [
                (kafka.as_str(), true),
                ("topic prod.a", true),
                ("topic prod.b", false),
                ("topic prod.dead-letter", true),
                ("topic prod.gaps", true)
            ]
        );
        assert!(
            findings[2].1.as_ref().is_err_and(|cause| cause.contains("set `partitions = 4`")),
            "{findings:?}"
        );
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_one_finding_that_names_its_key() {
        let mut config = config("127.0.0.1:9");
        let password = SecretRef::parse("replicate.sasl.password", "file:/no/such/file");
        config.replicate.sasl = password.map(|password| Sasl::Password {
            mechanism: SaslMechanism::ScramSha512,
            user: "agent".into(),
            password,
        });
        let findings = reach(&config);
        let [(_, Err(cause))] = findings.as_slice() else { panic!("{findings:?}") };
        assert!(cause.starts_with("replicate.sasl.password: /no/such/file cannot be read"), "{cause}");
    }

    #[test]
    fn a_cluster_that_is_away_is_one_finding_that_says_why() {
        let findings = reach(&config("127.0.0.1:9"));
        let [(_, Err(cause))] = findings.as_slice() else { panic!("{findings:?}") };
        assert!(cause.contains("Connection refused"), "{cause}");
    }
}
