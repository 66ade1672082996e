//! Who is let in, and what they may do.

use std::{fs, num::NonZeroU32, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use super::{sockets::Device, *};
use crate::{
    access::passwords::{self, PasswordFile},
    log::Remembered,
    secret::FileRef,
    source::{
        listener::{
            access::{Check, Client, Credentials, Denied, Verdict},
            reach, run,
        },
        testing::{FakePipeline, free_address, on_one_thread},
    },
};

/// A line of a password file, as quickly checked as can be.
fn user(name: &str, password: &str) -> String {
    passwords::line(name, NonZeroU32::MIN, b"salt", password.as_bytes()) + "\n"
}

/// `u` has the password `p`, and may neither publish nor subscribe to what begins with `secret`, nor be sent what ends in `hush`.
struct Strict(Arc<PasswordFile>);

impl Strict {
    fn bench(config: Listener) -> Bench {
        let file = PasswordFile::parse(&(user("u", "p") + &user("v", "p"))).expect("good");
        Bench::with(config, Box::new(Self(Arc::new(file))))
    }
}

impl Access for Strict {
    fn connect(&self, credentials: &Credentials<'_>) -> Verdict {
        match (credentials.user, credentials.password) {
            (Some(user), Some(password)) => Verdict::Check(Check::new(Arc::clone(&self.0), user, password)),
            _ => Verdict::Denied(Denied::NotAuthorized),
        }
    }

    fn publish(&self, client: Client<'_>, topic: &str) -> bool {
        assert!(matches!(client.user, Some("u" | "v")));
        !topic.starts_with("secret")
    }

    fn receive(&self, _: Client<'_>, topic: &str) -> bool {
        !topic.ends_with("hush")
    }

    fn subscribe(&self, _: Client<'_>, filter: &str) -> bool {
        !filter.starts_with("secret")
    }
}

/// CONNECT of MQTT 5 with user and password.
fn login(id: &str, user: &str, password: &str) -> Vec<u8> {
    connect_with(id, 0xc2, &[0x11, 0, 0, 1, 0x2c], &[text(user), text(password)].concat())
}

/// CONNECT of MQTT 3.1.1 with user and password.
fn login_v3(id: &str, user: &str, password: &str) -> Vec<u8> {
    let head = [&[0, 4][..], b"MQTT", &[4, 0xc2, 0, 60]].concat();
    packet(0x10, &[head, text(id), text(user), text(password)].concat())
}

impl Bench {
    /// Checks the password that is next, if any. Returns whose.
    fn check_one(&mut self) -> Option<ConnectionKey> {
        let (key, id, check) = self.broker.question()?;
        self.broker.answered(self.now, key, id, check.passes(), &mut self.taken);
        Some(key)
    }

    /// A connection that was let in.
    fn log_in(&mut self, connect: &[u8]) -> (ConnectionKey, bool) {
        let key = self.open();
        assert_eq!(self.send(key, connect), [0_u8; 0]);
        assert_eq!(self.check_one(), Some(key));
        let answer = self.output(key);
        assert_eq!((answer[0], answer[3]), (0x20, 0), "{answer:?}");
        (key, answer[2] == 1)
    }
}

#[test]
fn a_connect_waits_for_its_check_and_what_comes_behind_it_waits_too() {
    let mut bench = Strict::bench(config());
    let key = bench.open();
    let all = [login("c", "u", "p"), publish(0x32, "room/1", 1, "a"), vec![0xc0]].concat();
    assert_eq!(bench.send(key, &all), [0_u8; 0]);
    assert!(!bench.broker.may_read(bench.now, key));
    assert_eq!(bench.payloads(), [""; 0]);
    // However long it takes: that is not the client's fault.
    bench.wait(60);
    assert_eq!(bench.check_one(), Some(key));
    assert_eq!(bench.payloads(), ["a"]);
    let answer = bench.output(key);
    assert_eq!((answer[0], answer[3]), (0x20, 0));
    assert!(bench.broker.may_read(bench.now, key));
    assert_eq!(bench.send(key, &[0]), [0xd0, 0], "the rest of a packet that was begun");
    assert_eq!(bench.check_one(), None);
}

#[test]
fn a_wrong_password_is_answered_late_and_by_the_version_of_the_client() {
    for (connect, expected) in [
        (login("c", "u", "wrong"), &[0x20, 3, 0, 0x86, 0][..]),
        (login("c", "stranger", "p"), &[0x20, 3, 0, 0x86, 0]),
        (login_v3("c", "u", "wrong"), &[0x20, 2, 0, 4]),
    ] {
        let mut bench = Strict::bench(config());
        let key = bench.open();
        assert_eq!(bench.send(key, &connect), [0_u8; 0]);
        bench.check_one();
        assert_eq!(bench.output(key), [0_u8; 0]);
        assert!(!bench.broker.may_read(bench.now, key));
        bench.wait(0);
        assert_eq!(bench.output(key), [0_u8; 0]);
        bench.wait(1);
        assert_eq!(bench.output(key), expected);
        assert!(bench.broker.is_done(key));
        assert_eq!(bench.refusal(), Some("wrong user name or password"));
        bench.lose(key);
        assert_eq!(bench.broker.clients(), 0);
    }
}

#[test]
fn an_answer_for_a_connection_that_is_gone_lets_nobody_in() {
    let mut bench = Strict::bench(config());
    let key = bench.open();
    bench.send(key, &login("c", "u", "p"));
    let (_, id, _) = bench.broker.question().expect("one");
    bench.lose(key);
    let other = bench.open();
    assert_eq!(other, key, "its place is used again");
    bench.send(other, &login("d", "u", "wrong"));
    bench.broker.answered(bench.now, key, id, true, &mut bench.taken);
    assert_eq!(bench.broker.clients(), 0);
    bench.lose(other);
    assert!(bench.broker.question().is_none(), "nobody waits for it");
}

#[test]
fn a_denied_publish_is_answered_by_version_counted_and_not_stored() {
    let mut bench = Strict::bench(config());
    let (key, _) = bench.log_in(&login("c", "u", "p"));
    let denied = [publish(0x32, "secret/1", 1, "a"), publish(0x34, "secret/1", 2, "a")].concat();
    assert_eq!(bench.send(key, &denied), [0x40, 3, 0, 1, 0x87, 0x50, 3, 0, 2, 0x87]);
    let (key, _) = bench.log_in(&login_v3("d", "u", "p"));
    let denied = [publish_v3(0x32, "secret/1", 1, "a"), publish_v3(0x34, "secret/1", 2, "a")].concat();
    assert_eq!(bench.send(key, &denied), [0x40, 2, 0, 1, 0x50, 2, 0, 2]);
    assert_eq!(bench.taken.messages, []);
    assert_eq!(bench.broker.drops()["not_authorized"], 4);
}

#[test]
fn a_denied_subscription_is_refused_and_a_wider_one_brings_what_may_be_read() {
    let mut bench = Strict::bench(config());
    let (key, _) = bench.log_in(&login("c", "u", "p"));
    assert_eq!(bench.send(key, &publish(0x31, "home/a", 0, "kept")), [0_u8; 0]);
    assert_eq!(bench.send(key, &publish(0x31, "home/hush", 0, "kept")), [0_u8; 0]);
    let (reader, _) = bench.log_in(&login("d", "v", "p"));
    let answer = bench.send(reader, &subscribe(&[("secret/#", 0), ("home/#", 0)]));
    assert_eq!(answer[..7], [0x90, 5, 0, 1, 0, 0x87, 0]);
    assert_eq!(answer[7..], publish(0x31, "home/a", 0, "kept"), "a retained one, and not the other");
    bench.send(key, &publish(0x30, "home/hush", 0, "live"));
    bench.send(key, &publish(0x30, "home/b", 0, "live"));
    assert_eq!(bench.output(reader), publish(0x30, "home/b", 0, "live"));
}

#[test]
fn a_will_must_be_allowed_to_its_client() {
    let mut bench = Strict::bench(config());
    let key = bench.open();
    let will = [text("secret/1"), text(""), text("u"), text("p")].concat();
    bench.send(key, &connect_with("d", 0xc6, &[], &[vec![0], will].concat()));
    bench.check_one();
    assert_eq!(bench.output(key)[3], 0x87);
}

#[test]
fn a_session_is_of_its_user_and_another_begins_anew() {
    let mut bench = Strict::bench(config());
    let (key, _) = bench.log_in(&login("c", "u", "p"));
    bench.lose(key);
    let again = |user| connect_with("c", 0xc0, &[0x11, 0, 0, 1, 0x2c], &[text(user), text("p")].concat());
    let (key, present) = bench.log_in(&again("u"));
    assert!(present);
    bench.lose(key);
    let (_, present) = bench.log_in(&again("v"));
    assert!(!present);
}

#[test]
fn without_passwords_only_the_gateway_itself_is_let_in_unless_said_otherwise() {
    let from = |address: [u8; 4], anonymous| {
        let credentials = Credentials {
            address: address.into(),
            certificate_user: None,
            client_id: "c",
            user: None,
            password: None,
        };
        match Configured::from(anonymous).connect(&credentials) {
            Verdict::Anonymous => Ok(()),
            Verdict::Denied(denied) => Err(denied),
            Verdict::Certified | Verdict::Check(_) => panic!("there is nothing to check"),
        }
    };
    assert_eq!(from([127, 0, 0, 9], Anonymous::Loopback), Ok(()));
    assert_eq!(from([10, 0, 0, 9], Anonymous::Loopback), Err(Denied::NotAuthorized));
    assert_eq!(from([10, 0, 0, 9], Anonymous::Anywhere), Ok(()));
    assert_eq!(from([127, 0, 0, 9], Anonymous::Nowhere), Err(Denied::NotAuthorized));
}

fn file(dir: &Path, name: &str, text: &str) -> FileRef {
    let file = FileRef { key: format!("source.listener[0].{name}_file"), path: dir.join(name) };
    fs::write(&file.path, text).expect("writes");
    file
}

#[test]
fn files_decide_about_clients_and_new_ones_need_no_restart() {
    on_one_thread(async {
        let dir = tempfile::tempdir().expect("a directory");
        let passwords = file(dir.path(), "password", &user("alice", "p"));
        let acl = file(dir.path(), "acl", "topic read #\nuser alice\ntopic write room/1");
        let config = Listener {
            listen: free_address(),
            password_file: Some(passwords.clone()),
            acl_file: Some(acl.clone()),
            ..config()
        };
        let running = config.clone();
        let mut pipeline = FakePipeline::start(1 << 20, |context| run(running, 64 * 1024, context));
        let mut nobody = Device::connect(&config, "nobody").await;
        nobody.send(&publish_v3(0x32, "room/1", 1, "a")).await;
        assert_eq!(nobody.read::<4>().await, [0x40, 2, 0, 1]);
        pipeline.metric("wayside_source_dropped_total{source=\"test\",reason=\"not_authorized\"} 1").await;
        let mut alice = Device::open(&config).await;
        alice.send(&[login_v3("a", "alice", "p"), publish_v3(0x32, "room/1", 7, "a")].concat()).await;
        assert_eq!(alice.read::<4>().await, [0x20, 2, 0, 0]);
        assert_eq!(pipeline.record().await.1.value, "a");
        pipeline.acknowledge_all();
        assert_eq!(alice.read::<4>().await, [0x40, 2, 0, 7]);

        // Faults change nothing.
        fs::write(&passwords.path, "alice:p").expect("writes");
        fs::write(&acl.path, "users all\n").expect("writes");
        pipeline.reread();
        let said = |state: &crate::source::metrics::SourceState| {
            state.error.as_deref().is_some_and(|cause| cause.contains("acl line 1: must begin with user"))
        };
        pipeline.state("the fault", said).await;
        let mut same = Device::open(&config).await;
        same.send(&login_v3("s", "alice", "p")).await;
        assert_eq!(same.read::<4>().await, [0x20, 2, 0, 0]);
        let found = reach(&config).await.expect_err("a wrong file");
        assert!(found.starts_with("source.listener[0].password_file: "), "{found}");
        assert!(found.contains("line 1: the hash is neither"), "{found}");

        fs::write(&passwords.path, user("alice", "new")).expect("writes");
        fs::write(&acl.path, "user alice\ntopic write #").expect("writes");
        pipeline.reread();
        pipeline.state("health", |state| state.connected && state.error.is_none()).await;
        same.send(&publish_v3(0x32, "room/2", 7, "b")).await;
        assert_eq!(pipeline.record().await.1.value, "b");
        let mut late = Device::open(&config).await;
        late.send(&login_v3("l", "alice", "p")).await;
        assert_eq!(late.read::<4>().await, [0x20, 2, 0, 4]);
        late.ended().await;
        let line = "wayside_source_rejected_total{source=\"test\",reason=\"bad_user_name_or_password\"} 1";
        pipeline.metric(line).await;
    });
}

#[test]
fn nobody_is_let_in_before_the_files_are_good() {
    on_one_thread(async {
        let dir = tempfile::tempdir().expect("a directory");
        let passwords = file(dir.path(), "password", "");
        fs::remove_file(&passwords.path).expect("removes");
        let listen = free_address();
        let config = Listener { listen, password_file: Some(passwords.clone()), ..config() };
        let running = config.clone();
        let pipeline = FakePipeline::start(1 << 20, |context| run(running, 64 * 1024, context));
        let missing = |state: &crate::source::metrics::SourceState| {
            state
                .error
                .as_deref()
                .is_some_and(|cause| cause.contains("password cannot be read: No such file"))
        };
        pipeline.state("the fault", missing).await;
        assert!(tokio::net::TcpStream::connect(listen).await.is_err());
        fs::write(&passwords.path, user("alice", "p")).expect("writes");
        pipeline.state("health", |state| state.connected).await;
    });
}

#[test]
fn a_password_file_that_everybody_can_read_is_noticed() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = file(dir.path(), "password", "");
    for (mode, open) in [(0o600, false), (0o640, false), (0o644, true)] {
        fs::set_permissions(&file.path, fs::Permissions::from_mode(mode)).expect("changes");
        assert_eq!(file.is_open_to_all(), open, "{mode:o}");
    }
}

#[test]
fn a_session_comes_back_after_a_restart_for_its_user_alone() {
    let lasting =
        |user: &str| connect_with("a", 0xc0, &[0x11, 0, 0, 1, 0x2c], &[text(user), text("p")].concat());
    let (mut bench, mut remembered) = (Strict::bench(config()), Remembered::new());
    bench.log_in(&lasting("u"));
    super::memory::note(&mut bench, &mut remembered);
    for (user, present) in [("u", true), ("v", false)] {
        let mut bench = Strict::bench(config());
        bench.broker.restore(bench.now, &remembered);
        assert_eq!(bench.log_in(&lasting(user)).1, present, "{user}");
    }
}
