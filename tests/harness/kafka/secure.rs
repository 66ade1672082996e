//! A Kafka that wants to know who it speaks to: one node, so that it starts soon.

use std::path::Path;
use std::process::ChildStdin;
use std::time::Duration;

use super::{Reader, consumer, janitor, kafka, run_tool};
use crate::certificates::Certificates;
use crate::process::Process;
use crate::{PATIENCE, ports, wait_until};

/// The node, with a listener for each way to prove who one is, and one for the test alone, where everything is allowed.
pub struct SecureKafka {
    open_port: u16,
    sasl_ssl_port: u16,
    ssl_port: u16,
    process: Process,
    _janitor: ChildStdin,
}

impl SecureKafka {
    /// Starts an empty node with the certificate `kafka.pem`. It knows the user `user` by PLAIN with `password`, takes
    /// unsigned tokens for OAUTHBEARER, and allows nobody anything.
    pub fn start(certificates: &Certificates, user: &str, password: &str) -> Self {
        certificates.issue("kafka");
        let directory = tempfile::Builder::new()
            .prefix("wayside-kafka-")
            .tempdir()
            .expect("the directory for temporary files is writable")
            .keep();
        let (open_port, sasl_ssl_port, ssl_port) = (ports::free(), ports::free(), ports::free());
        let (controller, certificates) = (ports::free(), certificates.directory().display());
        let properties = format!(
            "\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{open_port},SASL_SSL://127.0.0.1:{sasl_ssl_port},SSL://127.0.0.1:{ssl_port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{open_port},SASL_SSL://127.0.0.1:{sasl_ssl_port},SSL://127.0.0.1:{ssl_port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}=\"{password}\";
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl_ssl.oauthbearer.sasl.jaas.config=org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub=\"broker\";
ssl.keystore.type=PEM
ssl.keystore.location={certificates}/kafka.pem
ssl.truststore.type=PEM
ssl.truststore.location={certificates}/ca.crt
listener.name.ssl.ssl.client.auth=required
ssl.principal.mapping.rules=RULE:^.*CN=([^,]*).*$/$1/
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
log.dirs={}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
log.cleaner.dedupe.buffer.size=4194304
log.retention.ms=-1
",
            directory.join("node").display()
        );
        let file = directory.join("node.properties");
        std::fs::write(&file, properties).expect("our directory is writable");
        let process = serve(&file);
        let mut node = Self { open_port, sasl_ssl_port, ssl_port, process, _janitor: janitor(&directory) };
        node.wait_ready();
        node
    }

    /// Makes `password` the one of `user` for `mechanism`, which is one of SCRAM's.
    pub fn set_password(&self, mechanism: &str, user: &str, password: &str) {
        let config = format!("{mechanism}=[password={password}]");
        let arguments = ["--alter", "--add-config", &config, "--entity-type", "users", "--entity-name", user];
        run_tool(&self.open(), "configs", &arguments, "");
    }

    /// Allows `user` everything with what `kind` and `prefix` name: `--topic`, `--group`, `--transactional-id` and how the
    /// names begin.
    pub fn allow(&self, user: &str, kind: &str, prefix: &str) {
        let principal = format!("User:{user}");
        let arguments = "--add --force --operation All --resource-pattern-type prefixed --allow-principal";
        let arguments: Vec<&str> = arguments.split(' ').chain([&*principal, kind, prefix]).collect();
        run_tool(&self.open(), "acls", &arguments, "");
    }

    /// Address of the listener with TLS and SASL.
    pub fn sasl_ssl(&self) -> String {
        format!("127.0.0.1:{}", self.sasl_ssl_port)
    }

    /// Address of the listener with TLS that wants a certificate, whose common name is the user.
    pub fn ssl(&self) -> String {
        format!("127.0.0.1:{}", self.ssl_port)
    }

    /// Follows `topic` from its beginning.
    pub fn reader(&self, topic: &str) -> Reader {
        Reader::new(consumer(&self.open()), topic)
    }

    fn open(&self) -> String {
        format!("127.0.0.1:{}", self.open_port)
    }

    fn wait_ready(&mut self) {
        use rdkafka::consumer::Consumer as _;
        let open = self.open();
        wait_until(PATIENCE, "the Kafka node answers", || {
            if let Some(status) = self.process.exit_status() {
                panic!("the Kafka node ended, {status}\n{}", self.process.log_tail());
            }
            let metadata = consumer(&open).fetch_metadata(None, Duration::from_secs(5)).ok()?;
            (!metadata.brokers().is_empty()).then_some(())
        });
    }
}

fn serve(properties: &Path) -> Process {
    let mut command = kafka("serve");
    command.arg(properties);
    Process::start("secure Kafka node", command, &properties.with_extension("log"))
}
