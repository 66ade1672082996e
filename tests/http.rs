//! Records over HTTP, sent with `curl`: they arrive, no kill loses one that was answered 200, and limits are answered.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use wayside_tests::agent::Agent;
use wayside_tests::{PATIENCE, binary, kafka, note, ports, process, root, wait_until};

const KILLS: usize = 6;
const CLIENTS: usize = 4;

/// A `[[source.http]]` on `port`, with further `lines`, that takes what README.md and the tests here send.
fn http_source(port: u16, lines: &str) -> String {
    format!(
        "\
[[source.http]]
name = \"web\"
listen = \"127.0.0.1:{port}\"
{lines}
[[source.http.route]]
stream = \"occupancy\"
device_pointer = \"/device\"
time_pointer = \"/time\"
seq_pointer = \"/seq\"
[[source.http.route]]
stream = \"doors\"
"
    )
}

fn curl(arguments: &[&str]) -> Output {
    let mut command = process::command("curl");
    command.args(["--silent", "--show-error", "--max-time", "60"]).args(arguments);
    command.output().expect("curl is installed: tests/run")
}

/// The status and body of a POST.
fn post(url: &str, content_type: &str, arguments: &[&str]) -> (u16, String) {
    let content_type = format!("Content-Type: {content_type}");
    let output =
        curl(&[&["--write-out", "\n%{http_code}", "--header", &content_type, url], arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    (status.parse().expect("a status"), body.to_owned())
}

/// The shell blocks of README.md's chapter on HTTP.
fn examples() -> String {
    let text = std::fs::read_to_string(root().join("README.md")).expect("it is there");
    let (_, chapter) = text.split_once("\n### Over HTTP\n").expect("the chapter is there");
    let chapter = chapter.split("\n##").next().unwrap_or_default();
    let blocks = chapter.split("```sh\n").skip(1).filter_map(|behind| behind.split("```").next());
    blocks.collect()
}

#[test]
#[ignore = "needs Kafka and curl: tests/run"]
fn the_examples_of_the_readme_store_what_they_say() {
    let cluster = kafka::shared();
    let port = ports::free();
    let mut agent = Agent::new("http-readme", &cluster.bootstrap_servers(), &http_source(port, ""));
    agent.start();
    let script = examples()
        .replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"))
        .replace("/topics/prod.", &format!("/topics/{}.", agent.environment()));
    assert_eq!(script.matches("curl ").count(), 4, "{script}");
    let mut shell = process::command("sh");
    let output = shell.args(["-e", "-c", &script]).output().expect("a shell");
    assert!(output.status.success(), "{output:?}\n{script}");
    let answers = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(answers.matches(r#"{"records":"#).count(), 3, "{answers}");
    assert!(answers.contains(r#""offset":-1"#), "{answers}");

    let mut reader = cluster.reader(&agent.topic("occupancy"));
    let records = reader.wait_for(4, PATIENCE).to_vec();
    let with_key = |key: &str| records.iter().filter(|record| record.key == key).collect::<Vec<_>>();
    let rooms = with_key("room-1");
    assert_eq!(rooms.iter().map(|record| record.json()["occupants"].clone()).collect::<Vec<_>>(), [3, 4, 5]);
    assert_eq!(rooms[0].timestamp_ms, Some(1_772_352_000_000));
    assert_eq!(rooms[1].headers["wayside.idempotency-key"], "7b1f.0");
    assert_eq!(with_key("room-2")[0].headers["wayside.idempotency-key"], "7b1f.1");
    let doors = cluster.reader(&agent.topic("doors")).wait_for(1, PATIENCE).to_vec();
    assert_eq!((doors[0].key.as_str(), &doors[0].value[..]), ("door-7", &[1, 0, 2][..]));

    let mut check = process::command(binary("wayside"));
    check.args(["check", "--connect", "-c"]).arg(agent.configuration());
    let output = check.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("is served by the agent that runs, no tokens"), "{said}");
    agent.stop();
}

#[test]
#[ignore = "needs Kafka and curl: tests/run"]
fn kills_lose_nothing_that_was_answered_200() {
    let cluster = kafka::shared();
    let port = ports::free();
    let mut agent = Agent::new("http-kill", &cluster.bootstrap_servers(), &http_source(port, ""));
    agent.start();
    let url = format!("http://127.0.0.1:{port}/v1/streams/occupancy/records");
    // By device, the sequence numbers that were answered 200, in the order of the answers.
    let answered: [Mutex<Vec<u64>>; CLIENTS] = std::array::from_fn(|_| Mutex::default());
    let stop = AtomicBool::new(false);
    let count = || answered.iter().map(|answered| answered.lock().unwrap().len()).sum::<usize>();
    std::thread::scope(|scope| {
        for (client, answered) in answered.iter().enumerate() {
            let (url, stop) = (&url, &stop);
            scope.spawn(move || {
                let mut seq = 0;
                while !stop.load(Ordering::Relaxed) {
                    let lines: String = (seq..seq + 3)
                        .map(|seq| format!("{{\"device\":\"client-{client}\",\"seq\":{seq}}}\n"))
                        .collect();
                    // No answer, or 503: the same once more, as a device does.
                    let url = [url.as_str(), "--data-binary", &lines];
                    let header = "Content-Type: application/x-ndjson";
                    let key = format!("Idempotency-Key: {client}-{seq}");
                    let output =
                        curl(&[&["--fail", "--header", header, "--header", &key], &url[..]].concat());
                    if output.status.success() {
                        answered.lock().unwrap().extend(seq..seq + 3);
                        seq += 3;
                    }
                }
            });
        }
        let work = || {
            for _ in 0..KILLS {
                let before = count();
                wait_until(PATIENCE, "requests are answered", || (count() > before + 30).then_some(()));
                agent.kill();
                agent.start();
            }
            let before = count();
            wait_until(PATIENCE, "requests are answered", || (count() > before).then_some(()));
        };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    agent.stop();

    let mut found: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    // Where a record is in the gateway's log: what comes to Kafka twice comes from one place.
    let mut places: BTreeMap<(String, u64), BTreeSet<String>> = BTreeMap::new();
    for record in cluster.read(&agent.topic("occupancy")) {
        let offset = record.headers["wayside.offset"].clone();
        let device = (record.key.clone(), record.seq().expect("a sequence number"));
        places.entry(device).or_default().insert(offset);
        found.entry(record.key.clone()).or_default().push(record.seq().expect("a sequence number"));
    }
    assert_eq!(places.values().filter(|offsets| offsets.len() > 1).count(), 0, "requests stored twice");
    let mut repeated = 0;
    for (client, answered) in answered.iter().enumerate() {
        let sequence = found.remove(&format!("client-{client}")).expect("records of each client");
        // What comes again comes behind what it repeats: the first of each are in order.
        let mut first: Vec<u64> = Vec::new();
        for seq in &sequence {
            if first.last().is_none_or(|last| seq > last) {
                first.push(*seq);
            }
        }
        repeated += sequence.len() - first.len();
        let answered = answered.lock().unwrap();
        assert!(answered.iter().all(|seq| first.binary_search(seq).is_ok()), "client {client} lost records");
    }
    note(&format!("{} answered 200 over {KILLS} kills, {repeated} arrived more than once", count()));
}

#[test]
#[ignore = "needs Kafka and curl: tests/run"]
fn requests_over_a_limit_are_answered_as_said_and_store_nothing() {
    let cluster = kafka::shared();
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    std::fs::write(&tokens, "# all, and one stream\n0123456789abcdef\nfedcba9876543210 doors\n").unwrap();
    let large = directory.path().join("large");
    std::fs::write(&large, vec![b' '; 300 * 1024]).unwrap();
    let port = ports::free();
    let source = http_source(port, &format!("token_file = \"{}\"", tokens.display()));
    let mut agent = Agent::new("http-limits", &cluster.bootstrap_servers(), &source);
    agent.start();
    let url = format!("http://127.0.0.1:{port}/v1/streams/occupancy/records");
    let all = ["--header", "Authorization: Bearer 0123456789abcdef"];
    let good = ["--data-binary", "{\"device\":\"a\"}"];
    let json = "application/json";
    let with = |arguments: &[&str]| post(&url, json, &[&all, arguments].concat());

    assert_eq!(post(&url, json, &good).0, 401);
    let other = ["--header", "Authorization: Bearer fedcba9876543210"];
    assert_eq!(post(&url, json, &[&other[..], &good].concat()).0, 403);
    let (status, body) = with(&["--data-binary", "{\"device\":}"]);
    assert_eq!(status, 400);
    assert!(body.contains("\"line\":1,\"column\":11"), "{body}");
    assert_eq!(with(&["--data-binary", &format!("@{}", large.display())]).0, 413);
    assert_eq!(post(&url, "text/plain", &[&all[..], &good].concat()).0, 415);
    assert_eq!(post(&url.replace("occupancy", "halls"), json, &[&all[..], &good].concat()).0, 404);
    let lines = "{\"device\":\"a\"}\n{\"device\":\"a\"\n";
    assert_eq!(post(&url, "application/x-ndjson", &[&all[..], &["--data-binary", lines]].concat()).0, 400);
    let (status, body) = with(&good);
    assert_eq!(status, 200);
    assert!(body.starts_with("{\"records\":1,\"offsets\":[{"), "{body}");
    assert_eq!(agent.metric("wayside_source_rejected_total"), Some(7.0));
    agent.stop();
    assert_eq!(cluster.read(&agent.topic("occupancy")).len(), 1);
}
