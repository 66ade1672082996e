//! Who may connect and do what, with the clients that devices have: passwords that the real `mosquitto_passwd` made, access lists,
//! certificates that are wrong, over or renewed. Kafka is not there: what is acknowledged is in the log.

use std::process::{Output, Stdio};

use wayside_tests::agent::{self, Agent};
use wayside_tests::certificates::Certificates;
use wayside_tests::{PATIENCE, ports, process, wait_until};

/// Nobody listens there.
const NO_KAFKA: &str = "127.0.0.1:1";

/// `mosquitto_pub` or `mosquitto_sub` with TLS at the listener on `port`, trusting the CA in the file `ca`.
fn mosquitto(tool: &str, port: u16, files: &Certificates, ca: &str, arguments: &[&str]) -> Output {
    let mut command = process::command(format!("mosquitto_{tool}"));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "--cafile"]).arg(files.path(ca));
    command.args(arguments).stdin(Stdio::null()).output().expect("mosquitto-clients is installed: tests/run")
}

/// Asserts that a client fails and says `cause`.
#[track_caller]
fn refused(output: &Output, cause: &str) {
    assert!(!output.status.success() && said(output).contains(cause), "{output:?}");
}

/// All that a client printed, without capitals: Mosquitto has several ways to write one thing.
fn said(output: &Output) -> String {
    let all = [&output.stderr[..], &output.stdout].concat();
    String::from_utf8_lossy(&all).to_lowercase()
}

#[track_caller]
fn succeeded(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// Adds `user` to the password file, or changes its password.
fn set_password(files: &Certificates, user: &str, password: &str) {
    let path = files.path("passwd");
    let mut command = process::command("mosquitto_passwd");
    command.arg("-b").args(if path.exists() { &[][..] } else { &["-c"] });
    let output = command.arg(&path).args([user, password]).output();
    succeeded(&output.expect("mosquitto is installed: tests/run"));
}

/// A listener on `port` with TLS and further `lines`.
fn listener(port: u16, files: &Certificates, lines: &str, tls: &str) -> String {
    let path = |name: &str| files.path(name).display().to_string();
    let (cert_file, key) = (path("server.crt"), path("server.key"));
    let section = agent::listener(port);
    let (name, routes) = section.split_once("[[source.listener.route]]").expect("a route");
    format!(
        "{name}{lines}\n[source.listener.tls]\ncert_file = \"{cert_file}\"\nkey = \"file:{key}\"\n{tls}\n\
         [[source.listener.route]]{routes}"
    )
}

#[test]
#[ignore = "needs mosquitto and mosquitto-clients: tests/run"]
fn passwords_and_rights_are_those_of_mosquittos_files() {
    let files = Certificates::new();
    files.issue("server");
    set_password(&files, "alice", "correct horse");
    set_password(&files, "bob", "battery staple");
    files.write(
        "acl",
        "user alice\ntopic write traffic/+/position\nuser bob\ntopic read traffic/a/position\n",
    );
    let port = ports::free();
    let path = |name: &str| files.path(name).display().to_string();
    let (password_file, acl_file) = (path("passwd"), path("acl"));
    let lines =
        format!("anonymous = \"nowhere\"\npassword_file = \"{password_file}\"\nacl_file = \"{acl_file}\"");
    let mut agent = Agent::new("access-passwords", NO_KAFKA, &listener(port, &files, &lines, ""));
    agent.start();
    let publish = |version: &str, user: &str, password: &str, topic: &str| {
        let login = ["-V", version, "-u", user, "-P", password];
        let message = ["-q", "1", "-t", topic, "-m", r#"{"device":"a","seq":1}"#, "-d"];
        mosquitto("pub", port, &files, "ca.crt", &[&login[..], &message].concat())
    };
    let dropped = |count: f64| {
        wait_until(PATIENCE, "the denied are counted", || {
            (agent.metric("wayside_source_dropped_total") == Some(count)).then_some(())
        });
    };
    for version in ["mqttv311", "mqttv5"] {
        succeeded(&publish(version, "alice", "correct horse", "traffic/a/position"));
    }
    assert_eq!(agent.metric("wayside_source_records_total"), Some(2.0));
    // Denied: told in MQTT 5, acknowledged in 3.1.1, stored in neither.
    succeeded(&publish("mqttv311", "bob", "battery staple", "traffic/a/position"));
    dropped(1.0);
    let denied = publish("mqttv5", "bob", "battery staple", "traffic/a/position");
    let told = said(&denied);
    assert!(told.contains("not authorized") || told.contains("rc:135"), "{denied:?}");
    dropped(2.0);
    assert_eq!(agent.metric("wayside_source_records_total"), Some(2.0));

    refused(&publish("mqttv311", "alice", "battery staple", "traffic/a/position"), "connack (4)");
    refused(&publish("mqttv5", "alice", "battery staple", "traffic/a/position"), "connack (134)");
    refused(&publish("mqttv5", "mallory", "battery staple", "traffic/a/position"), "connack (134)");
    let anonymous = ["-V", "mqttv5", "-t", "traffic/a/position", "-m", "x"];
    refused(&mosquitto("pub", port, &files, "ca.crt", &anonymous), "not authorized");
    let login = ["-V", "mqttv5", "-u", "alice", "-P", "correct horse"];
    let subscribe = [&login[..], &["-t", "traffic/a/position", "-W", "5"]].concat();
    let output = mosquitto("sub", port, &files, "ca.crt", &subscribe);
    let told = said(&output);
    assert!(told.contains("denied") || told.contains("not authorized"), "{output:?}");

    // New files count at SIGHUP; what cannot be read changes nothing.
    files.write("acl", "users\n");
    set_password(&files, "alice", "new");
    agent.reload();
    agent.wait_health("acl line 1: must begin with user, topic or pattern and a blank");
    wait_until(PATIENCE, "the new password counts", || {
        publish("mqttv5", "alice", "new", "traffic/a/position").status.success().then_some(())
    });
    refused(&publish("mqttv5", "alice", "correct horse", "traffic/a/position"), "connack (134)");
    let found = agent.command_output(&["check", "--connect", "-c", "CONFIG"]);
    assert!(found.contains("source.listener[0].acl_file: "), "{found}");
    for password in ["correct horse", "battery staple"] {
        assert!(!agent.output().contains(password));
    }
    agent.stop();
}

#[test]
#[ignore = "needs mosquitto-clients: tests/run"]
fn certificates_say_who_clients_are_and_are_renewed_while_the_agent_runs() {
    let files = Certificates::new();
    files.issue("server");
    files.issue("bus-17");
    files.issue_expired("bus-18");
    let other = Certificates::new();
    other.issue("server");
    files.write("acl", "user bus-17\ntopic traffic/bus-17/position\n");
    let port = ports::free();
    let path = |files: &Certificates, name: &str| files.path(name).display().to_string();
    let lines = format!("certificate_user = \"common-name\"\nacl_file = \"{}\"", path(&files, "acl"));
    let tls = format!("client_ca_file = \"{}\"", path(&files, "ca.crt"));
    let mut agent = Agent::new("access-certificates", NO_KAFKA, &listener(port, &files, &lines, &tls));
    agent.start();
    let shown = |certificate: &str| {
        let (cert_file, key) = (format!("{certificate}.crt"), format!("{certificate}.key"));
        ["--cert".to_owned(), path(&files, &cert_file), "--key".to_owned(), path(&files, &key)]
    };
    let publish = |ca: &str, certificate: Option<&str>, topic: &str| {
        let shown = certificate.map(shown).into_iter().flatten().collect::<Vec<_>>();
        let message = ["-V", "mqttv5", "-q", "1", "-t", topic, "-m", r#"{"device":"a","seq":1}"#];
        let arguments = [&shown.iter().map(String::as_str).collect::<Vec<_>>()[..], &message].concat();
        mosquitto("pub", port, &files, ca, &arguments)
    };
    succeeded(&publish("ca.crt", Some("bus-17"), "traffic/bus-17/position"));
    assert_eq!(agent.metric("wayside_source_records_total"), Some(1.0));
    let _ = publish("ca.crt", Some("bus-17"), "traffic/bus-18/position");
    assert_eq!(agent.metric("wayside_source_records_total"), Some(1.0), "another's topic");
    assert!(!publish("ca.crt", Some("bus-18"), "traffic/bus-18/position").status.success(), "expired");
    assert!(!publish("ca.crt", None, "traffic/bus-17/position").status.success(), "no certificate");
    files.write("other-ca.crt", &std::fs::read_to_string(other.path("ca.crt")).expect("it is there"));
    refused(&publish("other-ca.crt", Some("bus-17"), "traffic/bus-17/position"), "");
    wait_until(PATIENCE, "three handshakes failed", || {
        (agent.metric("wayside_source_rejected_total")? >= 3.0).then_some(())
    });

    // Another CA signs the server from now on. A pair that does not fit, as while files are exchanged, harms nobody.
    for file in ["server.crt", "server.key"] {
        files.write(file, &std::fs::read_to_string(other.path(file)).expect("it is there"));
        agent.reload();
        agent.wait_for_log(if file == "server.crt" { "does not fit the private key" } else { "read again" });
    }
    wait_until(PATIENCE, "the new certificate is shown", || {
        publish("other-ca.crt", Some("bus-17"), "traffic/bus-17/position").status.success().then_some(())
    });
    assert!(!publish("ca.crt", Some("bus-17"), "traffic/bus-17/position").status.success());
    agent.stop();
}

#[test]
#[ignore = "needs curl: tests/run"]
fn curl_posts_over_tls_with_a_certificate_and_with_a_token() {
    const TOKENS: [&str; 2] = ["0123456789abcdef", "fedcba9876543210"];
    let files = Certificates::new();
    files.issue("server");
    files.issue("bus-17");
    files.issue_expired("bus-18");
    files.write("tokens", TOKENS[0]);
    let port = ports::free();
    let path = |name: &str| files.path(name).display().to_string();
    let sections = format!(
        "[[source.http]]\nname = \"web\"\nlisten = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\n\
         [source.http.tls]\ncert_file = \"{}\"\nkey = \"file:{}\"\nclient_ca_file = \"{}\"\n\
         [[source.http.route]]\nstream = \"occupancy\"\ndevice_pointer = \"/device\"\n",
        path("tokens"),
        path("server.crt"),
        path("server.key"),
        path("ca.crt"),
    );
    let mut agent = Agent::new("access-http", NO_KAFKA, &sections);
    agent.start();
    let status = |certificate: Option<&str>, token: &str| {
        let mut command = process::command("curl");
        command.args([
            "--silent",
            "--max-time",
            "60",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ]);
        command.arg("--cacert").arg(files.path("ca.crt"));
        if let Some(name) = certificate {
            command.arg("--cert").arg(files.path(&format!("{name}.pem")));
        }
        command.args(["--header", "Content-Type: application/json", "--data", r#"{"device":"room-1"}"#]);
        command.args(["--header", &format!("Authorization: Bearer {token}")]);
        let url = format!("https://127.0.0.1:{port}/v1/streams/occupancy/records");
        let output = command.arg(url).output().expect("curl is installed: tests/run");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait_until(PATIENCE, "it listens", || (status(Some("bus-17"), TOKENS[0]) == "200").then_some(()));
    assert_eq!(status(Some("bus-17"), TOKENS[1]), "401");
    assert_eq!(status(Some("bus-18"), TOKENS[0]), "000", "expired");
    assert_eq!(status(None, TOKENS[0]), "000", "no certificate");
    files.write("tokens", TOKENS[1]);
    // Without a signal: the file is looked at.
    wait_until(PATIENCE, "the new token counts", || {
        (status(Some("bus-17"), TOKENS[1]) == "200").then_some(())
    });
    assert_eq!(status(Some("bus-17"), TOKENS[0]), "401");
    agent.stop();
}
