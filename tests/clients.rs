//! Clients as devices use them, of other people and in other languages, against the listener: each of them in each version
//! that it speaks is put through the same cases, and what it published is in Kafka and at a subscriber, in order and once.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use wayside_tests::agent::Agent;
use wayside_tests::certificates::Certificates;
use wayside_tests::client::{Client, Message, PROGRAMS, Program};
use wayside_tests::mqtt::Publisher;
use wayside_tests::{PATIENCE, kafka, note, ports};

/// What a client is put through, by its name.
type Case = (&'static str, fn(&mut Scene));

/// In their order; the agent is started anew between these and [`CASES_AFTER_A_RESTART`].
const CASES: &[Case] = &[
    ("publish", publishes_at_every_qos),
    ("subscribe at 0", |scene| subscribes_at(scene, 0)),
    ("subscribe at 1", |scene| subscribes_at(scene, 1)),
    ("retained", gets_what_is_retained),
    ("will", leaves_a_will),
    ("session", finds_its_session_again),
    ("leave", leaves_a_session_before_the_restart),
];

const CASES_AFTER_A_RESTART: &[Case] = &[
    ("restart", finds_its_session_after_a_restart),
    ("TLS", is_served_over_tls_with_its_password),
    ("wrong password", is_told_of_a_wrong_password),
];

const USER: &str = "device";
const PASSWORD: &str = "a-secret-of-its-own";

/// A second listener, that takes known users over TLS alone.
struct Secure {
    port: u16,
    certificates: Certificates,
}

impl Secure {
    fn new() -> Self {
        let certificates = Certificates::new();
        certificates.issue("listener");
        let passwords = certificates.path("passwords");
        let mut command = std::process::Command::new("mosquitto_passwd");
        command.args(["-c", "-b"]).arg(&passwords).args([USER, PASSWORD]);
        let status = command.stderr(std::process::Stdio::null()).status();
        assert!(status.expect("`mosquitto_passwd` comes with Mosquitto").success());
        Self { port: ports::free(), certificates }
    }

    fn section(&self) -> String {
        format!(
            "\
[[source.listener]]
name = \"secure\"
listen = \"127.0.0.1:{}\"
password_file = \"{}\"
[source.listener.tls]
cert_file = \"{}\"
key = \"file:{}\"
",
            self.port,
            self.certificates.path("passwords").display(),
            self.certificates.path("listener.crt").display(),
            self.certificates.path("listener.key").display()
        )
    }

    fn client(&self, scene: &Scene, password: &str) -> Client {
        let ca = self.certificates.path("ca.crt");
        let options =
            [format!("ca={}", ca.display()), format!("user={USER}"), format!("password={password}")];
        Client::start(scene.program, self.port, scene.version, &options)
    }
}

/// One client with one version, and what it has published.
struct Scene {
    program: &'static Program,
    version: u8,
    port: u16,
    secure: Arc<Secure>,
    client: Client,
    sent: Vec<String>,
}

impl Scene {
    fn new(program: &'static Program, version: u8, port: u16, secure: &Arc<Secure>) -> Self {
        let client = Client::start(program, port, version, &[]);
        Self { program, version, port, secure: Arc::clone(secure), client, sent: Vec::new() }
    }

    /// Its name, which is also its client id and device.
    fn device(&self) -> String {
        format!("{}-{}", self.program.name, self.version)
    }

    fn topic(&self, case: &str) -> String {
        format!("clients/{}/{case}", self.device())
    }

    /// Connects; `session` is whether it has to be told of a session, if it tells us.
    #[track_caller]
    fn connect(&mut self, keep: bool, session: bool) {
        let told = self.client.connect(&self.device(), keep, None).expect("everybody may connect");
        assert!(told.is_none_or(|told| told == session), "session present: {told:?}");
    }

    fn publish(&mut self, qos: u8, retain: bool, topic: &str, payload: &str) {
        self.client.publish(qos, retain, topic, payload);
        self.sent.push(payload.to_owned());
    }

    /// Somebody else publishes in its name.
    fn publish_elsewhere(&mut self, topic: &str, payload: &str) {
        Publisher::connect(self.port, &format!("{}-else", self.device())).publish(topic, payload);
        self.sent.push(payload.to_owned());
    }

    #[track_caller]
    fn expect_message(&mut self, qos: u8, retain: bool, topic: &str, payload: &str) {
        let expected = Message { qos, retain, topic: topic.to_owned(), payload: payload.to_owned() };
        assert_eq!(self.client.message(), expected);
    }

    /// Runs `case`; returns why it failed.
    fn run(&mut self, case: fn(&mut Self)) -> Option<String> {
        let failure = catch_unwind(AssertUnwindSafe(|| case(self))).err()?;
        // The next case starts with a client that has nothing behind it.
        self.client = Client::start(self.program, self.port, self.version, &[]);
        let text = failure.downcast_ref::<String>().cloned();
        Some(text.or_else(|| failure.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default())
    }
}

fn publishes_at_every_qos(scene: &mut Scene) {
    let topic = scene.topic("publish");
    scene.connect(false, false);
    for qos in 0..3 {
        for n in 0..3 {
            scene.publish(qos, false, &topic, &format!("publish-{qos}-{n}"));
        }
    }
    scene.client.disconnect();
}

fn subscribes_at(scene: &mut Scene, granted: u8) {
    let topic = scene.topic(&format!("subscribe-{granted}"));
    scene.connect(false, false);
    scene.client.subscribe(granted, &topic);
    for qos in 0..3 {
        let payload = format!("subscribe-{granted}-{qos}");
        scene.publish(qos, false, &topic, &payload);
        scene.expect_message(qos.min(granted), false, &topic, &payload);
    }
    scene.client.disconnect();
}

fn gets_what_is_retained(scene: &mut Scene) {
    let topic = scene.topic("retained");
    scene.connect(false, false);
    scene.publish(1, true, &topic, "forgotten");
    scene.publish(1, true, &topic, "retained");
    scene.client.subscribe(1, &topic);
    scene.expect_message(1, true, &topic, "retained");
    scene.client.disconnect();
}

fn leaves_a_will(scene: &mut Scene) {
    let topic = scene.topic("will");
    scene.connect(false, false);
    scene.client.subscribe(1, &topic);
    let mut mortal = Client::start(scene.program, scene.port, scene.version, &[]);
    let id = format!("{}-mortal", scene.device());
    mortal.connect(&id, false, Some((&topic, "will"))).expect("everybody may connect");
    // The connection of a client of Mosquitto begins with its subscription.
    mortal.subscribe(0, &scene.topic("nothing"));
    mortal.die();
    scene.sent.push("will".to_owned());
    scene.expect_message(1, false, &topic, "will");
    scene.client.disconnect();
}

fn finds_its_session_again(scene: &mut Scene) {
    let topic = scene.topic("session");
    scene.connect(true, false);
    scene.client.subscribe(1, &topic);
    scene.client.disconnect();
    scene.publish_elsewhere(&topic, "while-away");
    scene.connect(true, true);
    scene.expect_message(1, false, &topic, "while-away");
    scene.client.disconnect();
    scene.connect(false, false);
    scene.client.disconnect();
}

fn leaves_a_session_before_the_restart(scene: &mut Scene) {
    let topic = scene.topic("restart");
    scene.connect(true, false);
    scene.client.subscribe(1, &topic);
    scene.client.disconnect();
}

fn finds_its_session_after_a_restart(scene: &mut Scene) {
    let topic = scene.topic("restart");
    scene.publish_elsewhere(&topic, "after-the-restart");
    scene.connect(true, true);
    scene.expect_message(1, false, &topic, "after-the-restart");
    scene.client.disconnect();
}

fn is_served_over_tls_with_its_password(scene: &mut Scene) {
    let topic = scene.topic("tls");
    scene.client = scene.secure.client(scene, PASSWORD);
    scene.connect(false, false);
    scene.client.subscribe(1, &topic);
    scene.publish(1, false, &topic, "over-tls");
    scene.expect_message(1, false, &topic, "over-tls");
    scene.client.disconnect();
}

fn is_told_of_a_wrong_password(scene: &mut Scene) {
    let mut client = scene.secure.client(scene, "a-guess");
    let told = client.connect(&scene.device(), false, None);
    assert!(told.is_err(), "it was let in");
}

/// Runs `cases` with all scenes at once; adds what failed to `failures`.
fn run(scenes: &mut [Scene], cases: &[Case], failures: &mut Vec<String>) {
    std::thread::scope(|scope| {
        let running: Vec<_> = scenes
            .iter_mut()
            .map(|scene| {
                scope.spawn(|| {
                    let failure = |&(name, case): &Case| {
                        scene.run(case).map(|why| format!("{}, {name}: {why}", scene.device()))
                    };
                    cases.iter().filter_map(failure).collect::<Vec<_>>()
                })
            })
            .collect();
        for scene in running {
            failures.extend(scene.join().expect("what panics in it is caught"));
        }
    });
}

#[test]
#[ignore = "needs Kafka and the clients of tests/clients/fetch: tests/run"]
fn every_client_is_served_as_it_expects() {
    let cluster = kafka::shared();
    let port = ports::free();
    let secure = Arc::new(Secure::new());
    let route = "\
[[source.listener.route]]
topic_filter = \"clients/+/+\"
decode = \"raw\"
stream = \"clients\"
device_topic = \"clients/{device}/+\"
";
    let sections = format!(
        "\
[[source.listener]]
name = \"devices\"
listen = \"127.0.0.1:{port}\"
{route}
{}{route}
[[stream]]
name = \"clients\"
partitions = 4
",
        secure.section()
    );
    let mut agent = Agent::new("clients", &cluster.bootstrap_servers(), &sections);
    agent.start();
    let mut watcher = Client::start(Program::named("rumqttc"), port, 5, &[]);
    watcher.connect("watcher", false, None).expect("everybody may connect");
    watcher.subscribe(1, "clients/+/+");
    let each_version = |program: &'static Program| program.versions.iter().map(move |&v| (program, v));
    let mut scenes: Vec<Scene> = PROGRAMS
        .iter()
        .flat_map(each_version)
        .map(|(program, version)| Scene::new(program, version, port, &secure))
        .collect();
    let mut failures = Vec::new();
    run(&mut scenes, CASES, &mut failures);
    if failures.is_empty() {
        let sent = sent(&scenes);
        let messages = (0..count(&sent)).map(|_| watcher.message());
        let device = |message: &Message| message.topic.split('/').nth(1).expect("of three levels").to_owned();
        let seen = by_device(messages.map(|message| (device(&message), message.payload)));
        assert_eq!(seen, sent, "at a subscriber");
    }
    agent.stop();
    agent.start();
    run(&mut scenes, CASES_AFTER_A_RESTART, &mut failures);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let (topic, sent) = (agent.topic("clients"), sent(&scenes));
    let count = count(&sent);
    cluster.reader(&topic).wait_for(count, PATIENCE);
    agent.stop();
    let records = cluster.read(&topic).into_iter();
    let stored = records.map(|record| (record.key, String::from_utf8(record.value).expect("text")));
    assert_eq!(by_device(stored), sent, "in Kafka");
    let cells = scenes.len() * (CASES.len() + CASES_AFTER_A_RESTART.len());
    note(&format!("{} clients, {cells} cases, {count} messages", scenes.len()));
}

/// What was published in the name of each device.
fn sent(scenes: &[Scene]) -> BTreeMap<String, Vec<String>> {
    scenes.iter().map(|scene| (scene.device(), scene.sent.clone())).collect()
}

fn count(messages: &BTreeMap<String, Vec<String>>) -> usize {
    messages.values().map(Vec::len).sum()
}

/// The second of each pair by the first, in their order.
fn by_device(pairs: impl Iterator<Item = (String, String)>) -> BTreeMap<String, Vec<String>> {
    let mut devices = BTreeMap::<String, Vec<String>>::new();
    for (device, payload) in pairs {
        devices.entry(device).or_default().push(payload);
    }
    devices
}
