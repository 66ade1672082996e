//! The source against a real Mosquitto with TLS and passwords: certificates, names and passwords that are right, wrong,
//! and changed while the source runs.

use std::{fs, process::Command};

use rcgen::KeyPair;

use super::*;
use crate::{
    config::{Certificate, Login},
    secret::{FileRef, SecretRef},
    source::testing::{Mosquitto, free_address, on_one_thread, within},
    testing::{Age, Files},
};

impl Files {
    fn file(&self, name: &str) -> Option<FileRef> {
        Some(FileRef { key: format!("source.mqtt[0].tls.{name}"), path: self.path(name) })
    }

    fn secret(&self, name: &str) -> SecretRef {
        let place = format!("file:{}", self.path(name).display());
        SecretRef::parse(&format!("source.mqtt[0].{name}"), &place).expect("a place")
    }

    /// Options of a broker with the certificate `broker.crt`.
    fn tls(&self) -> String {
        let path = |name| self.path(name).display().to_string();
        format!("user root\ncertfile {}\nkeyfile {}\n", path("broker.crt"), path("broker.key"))
    }

    /// Options of a broker that knows the user `agent` by `password` alone.
    fn passwords(&self, password: &str) -> String {
        let file = self.path("passwd");
        let mut tool = Command::new("mosquitto_passwd");
        tool.args(["-b", "-c"]).arg(&file).args(["agent", password]);
        assert!(tool.output().expect("mosquitto_passwd comes with mosquitto").status.success());
        format!("user root\nallow_anonymous false\npassword_file {}\n", file.display())
    }

    /// A source that trusts the CA in `ca` and connects to `host`.
    fn source(&self, host: &str, port: u16) -> MqttSource {
        let mut config = config(MqttVersion::V5, Qos::AtLeastOnce, &[]);
        config.brokers = vec![Broker { host: host.into(), port, tls: true }];
        config.tls.ca_file = self.file("ca");
        config
    }
}

/// Waits until the source has no connection and says why in words that contain `cause`.
async fn down_because(pipeline: &FakePipeline, cause: &str) {
    let said = || pipeline.health.state().error.unwrap_or_default();
    let wait = timeout(crate::source::testing::DEADLINE, async {
        while !said().contains(cause) {
            sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(wait.await.is_ok(), "wanted `{cause}`, got `{}`", said());
    assert!(!pipeline.health.state().connected);
}

async fn connected(pipeline: &FakePipeline) {
    pipeline.state("a connection", |state| state.connected).await;
}

#[test]
fn messages_come_through_tls() {
    on_one_thread(async {
        let files = Files::new();
        files.certificate(&files.authority("ca"), "broker", "127.0.0.1", Age::Good);
        let plain = free_address();
        let options = format!("{}listener {} 127.0.0.1\n", files.tls(), plain.port());
        let Some(broker) = Mosquitto::start(&options) else { return };
        let mut pipeline = start(files.source("127.0.0.1", broker.port()));
        let mut device = super::real::Device::new(plain.port());
        super::real::subscribed(&mut pipeline, &mut device).await;
        // Larger than what one TLS record takes, and than a read buffer.
        for n in 0..100 {
            device.publish("vehicle/7", false, format!("{n} {}", "x".repeat(4000))).await;
            let (ticket, record) = pipeline.record().await;
            assert!(record.value.starts_with(format!("{n} ").as_bytes()));
            pipeline.acknowledge(ticket);
        }
        pipeline.shut_down();
        pipeline.ended().await;
    });
}

#[test]
fn a_broker_that_cannot_be_trusted_is_refused_with_the_cause() {
    on_one_thread(async {
        let files = Files::new();
        let authority = files.authority("ca");
        files.certificate(&authority, "broker", "127.0.0.1", Age::Expired);
        let Some(mut broker) = Mosquitto::start(&files.tls()) else { return };
        let pipeline = start(files.source("127.0.0.1", broker.port()));
        down_because(&pipeline, "certificate has expired").await;

        files.certificate(&authority, "broker", "elsewhere.example", Age::Good);
        broker.down();
        broker.up();
        down_because(&pipeline, "not for this name").await;
        drop(pipeline);
        let mut config = files.source("127.0.0.1", broker.port());
        config.tls.server_name = Some("elsewhere.example".into());
        connected(&start(config)).await;

        // The system's bundle does not know our CA.
        let mut config = files.source("127.0.0.1", broker.port());
        config.tls.ca_file = None;
        down_because(&start(config), "not signed by a CA that we trust").await;
    });
}

#[test]
fn a_new_ca_of_the_same_name_needs_no_restart() {
    on_one_thread(async {
        let files = Files::new();
        files.certificate(&files.authority("ca"), "broker", "127.0.0.1", Age::Good);
        let Some(mut broker) = Mosquitto::start(&files.tls()) else { return };
        let pipeline = start(files.source("127.0.0.1", broker.port()));
        connected(&pipeline).await;
        files.certificate(&files.authority("ca.new"), "broker", "127.0.0.1", Age::Good);
        broker.down();
        broker.up();
        down_because(&pipeline, "not signed by a CA that we trust").await;
        fs::rename(files.path("ca.new"), files.path("ca")).expect("renames");
        connected(&pipeline).await;
    });
}

#[test]
fn a_client_certificate_is_shown_and_a_renewed_one_needs_no_restart() {
    on_one_thread(async {
        let files = Files::new();
        let authority = files.authority("ca");
        files.certificate(&authority, "broker", "127.0.0.1", Age::Good);
        files.certificate(&authority, "agent", "agent", Age::Expired);
        let options =
            format!("{}cafile {}\nrequire_certificate true\n", files.tls(), files.path("ca").display());
        let Some(broker) = Mosquitto::start(&options) else { return };
        let mut config = files.source("127.0.0.1", broker.port());
        down_because(&start(config.clone()), "the broker wants a client certificate").await;
        let cert_file = files.file("agent.crt").expect("it has a name");
        config.tls.client = Some(Certificate { cert_file, key: files.secret("agent.key") });
        let pipeline = start(config.clone());
        down_because(&pipeline, "the broker refuses our certificate").await;
        files.certificate(&authority, "agent", "agent", Age::Good);
        connected(&pipeline).await;
        drop(pipeline);

        files.write("agent.key", &KeyPair::generate().expect("a key").serialize_pem());
        let pipeline = start(config);
        down_because(&pipeline, "do not fit each other").await;
        files.write("agent.key", "no key");
        down_because(&pipeline, "holds no private key in PEM").await;
        fs::remove_file(files.path("agent.crt")).expect("removes");
        down_because(&pipeline, "source.mqtt[0].tls.agent.crt: ").await;
    });
}

#[test]
fn a_password_is_sent_and_a_new_one_needs_no_restart() {
    on_one_thread(async {
        let files = Files::new();
        let Some(broker) = Mosquitto::start(&files.passwords("correct horse")) else { return };
        for version in [MqttVersion::V3, MqttVersion::V5] {
            let mut config = config(version, Qos::AtLeastOnce, &[broker.port()]);
            down_because(&start(config.clone()), "the broker does not let us in").await;
            config.login = Some(Login { user: "agent".into(), password: Some(files.secret("password")) });
            let _ = fs::remove_file(files.path("password"));
            let pipeline = start(config);
            down_because(&pipeline, "source.mqtt[0].password: ").await;
            files.write("password", "battery staple\n");
            down_because(&pipeline, "the broker does not let us in").await;
            assert!(!pipeline.health.state().error.is_some_and(|error| error.contains("battery")));
            files.write("password", "correct horse\n");
            connected(&pipeline).await;
        }
    });
}

#[test]
fn tls_and_no_tls_at_the_wrong_port_say_so() {
    on_one_thread(async {
        let files = Files::new();
        files.certificate(&files.authority("ca"), "broker", "127.0.0.1", Age::Good);
        let (Some(plain), Some(secure)) = (Mosquitto::start(""), Mosquitto::start(&files.tls())) else {
            return;
        };
        let no_tls = config(MqttVersion::V5, Qos::AtLeastOnce, &[secure.port()]);
        down_because(&start(no_tls), "does this port want TLS").await;
        // Mosquitto hangs up without a word.
        let no_mqtt = start(files.source("127.0.0.1", plain.port()));
        within("a failure", async { no_mqtt.state("a failure", |state| state.error.is_some()).await }).await;
    });
}

#[test]
fn a_check_shows_certificate_and_password_and_says_which_of_them_is_wrong() {
    on_one_thread(async {
        let files = Files::new();
        files.certificate(&files.authority("ca"), "broker", "127.0.0.1", Age::Good);
        let options = files.tls() + &files.passwords("correct horse").replace("user root\n", "");
        let Some(broker) = Mosquitto::start(&options) else { return };
        let mut config = files.source("127.0.0.1", broker.port());
        config.login = Some(Login { user: "agent".into(), password: Some(files.secret("password")) });
        let found = reach(&config.brokers[0], &config).await.expect_err("no password yet");
        assert!(found.starts_with("source.mqtt[0].password: "), "{found}");
        files.write("password", "battery staple");
        let found = reach(&config.brokers[0], &config).await.expect_err("a wrong password");
        assert!(found.contains("the broker does not let us in"), "{found}");
        files.write("password", "correct horse");
        reach(&config.brokers[0], &config).await.expect("all is right");
        files.authority("ca");
        let found = reach(&config.brokers[0], &config).await.expect_err("another CA");
        assert!(found.contains("not signed by a CA that we trust"), "{found}");
    });
}
