//! `wayside status`: how the running agent is, asked over its HTTP endpoint.
//!
//! The exit code is that of a Nagios plugin: 0 ok, 1 warning, 2 critical, 3 unknown.

use std::{
    fmt::Write as _,
    io::{self, Read, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use indicatif::{HumanBytes, HumanDuration};

use crate::{
    config::{Telemetry, check},
    env::{Clock, SystemClock},
    secret::{self, Secret, SecretRef},
    telemetry::{health::HealthReport, http::load_token},
};

/// Longest wait for the whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

#[derive(Clone, Debug, Args)]
pub(super) struct StatusArgs {
    /// Configuration file of the agent, for telemetry.listen and telemetry.token.
    #[arg(short, long, default_value = "/etc/wayside/wayside.toml")]
    config: PathBuf,
    /// Where the agent is instead: http://HOST:PORT.
    #[arg(long, conflicts_with = "config")]
    url: Option<String>,
    /// Where the agent's token is, for --url or another than in the configuration: file:PATH, env:NAME or credential:NAME.
    #[arg(long, value_name = "PLACE")]
    token: Option<String>,
    /// One JSON object instead of the table: what /healthz answers.
    #[arg(long)]
    json: bool,
    /// Warns when more records than this wait for Kafka.
    #[arg(long, value_name = "RECORDS", default_value_t = 100_000)]
    warn_backlog_records: u64,
    /// Warns when the oldest record on its way to Kafka is older than this, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600)]
    warn_backlog_age_seconds: u64,
}

/// How it is, with the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Ok = 0,
    Warning = 1,
    Critical = 2,
    /// The agent does not answer: what it stores and sends nobody knows.
    Unknown = 3,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// Prints the state to standard output.
pub(super) fn print(args: &StatusArgs) -> ExitCode {
    let (severity, text) = match ask(args) {
        Ok(report) => {
            let (severity, reasons) = judge(args, &report);
            let text = if args.json {
                format!("{}\n", serde_json::to_string_pretty(&report).unwrap_or_default())
            } else {
                table(severity, &reasons, &report)
            };
            (severity, text)
        }
        Err(failure) if args.json => {
            eprintln!("wayside: {failure:#}");
            (Severity::Unknown, String::new())
        }
        Err(failure) => (Severity::Unknown, format!("{}: {failure:#}\n", Severity::Unknown.as_str())),
    };
    // The exit code says it to whoever does not read.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(severity as u8)
}

fn ask(args: &StatusArgs) -> anyhow::Result<HealthReport> {
    let (address, mut place) = match &args.url {
        Some(url) => (address(url)?, None),
        None => {
            let checked = check::load(&args.config).with_context(|| args.config.display().to_string())?;
            let Telemetry { listen, token, .. } = checked.config.telemetry;
            let listen = listen.context("the agent has no HTTP endpoint (telemetry.listen is empty)")?;
            (reachable(listen), token)
        }
    };
    if let Some(text) = &args.token {
        // Not shown: it may be the token itself, by mistake.
        place =
            Some(SecretRef::parse("--token", text).with_context(|| format!("--token {}", secret::FORMS))?);
    }
    let token = place.as_ref().map(load_token).transpose()?;
    let clock = SystemClock::new();
    let body = get(address, token.as_ref(), &clock)
        .with_context(|| format!("the agent does not answer at {address}"))?;
    serde_json::from_slice(&body)
        .with_context(|| format!("what answers at {address} is no agent of this version"))
}

/// The address in `http://HOST:PORT`, with or without a path.
fn address(url: &str) -> anyhow::Result<SocketAddr> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} does not begin with http://"))?;
    let authority = rest.split('/').next().unwrap_or(rest);
    let mut found = authority.to_socket_addrs().with_context(|| format!("{authority} is no HOST:PORT"))?;
    found.next().with_context(|| format!("{authority} has no address"))
}

/// Where to reach what listens on `listen`, from the same machine.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    listen
}

/// The body of `/healthz`. HTTP/1.0, so that the answer is not chunked and ends with the connection.
fn get(address: SocketAddr, token: Option<&Secret>, clock: &dyn Clock) -> anyhow::Result<Vec<u8>> {
    let deadline = clock.monotonic() + TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let authorization = token.map(|token| format!("Authorization: Bearer {}\r\n", token.expose()));
    let authorization = authorization.unwrap_or_default();
    let request = format!("GET /healthz HTTP/1.0\r\nHost: {address}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let left = deadline.since(clock.monotonic());
        ensure!(!left.is_zero(), "no whole answer within {} s", TIMEOUT.as_secs());
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(answer.len() <= ANSWER_BYTES_MAX, "the answer has more than {ANSWER_BYTES_MAX} bytes");
    }
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("the answer is no HTTP")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    // 503 says that commits fail, in the same words.
    match head.split_whitespace().nth(1) {
        Some("200" | "503") => Ok(answer.split_off(end + 4)),
        Some("401") if token.is_some() => bail!("it wants another token (telemetry.token)"),
        Some("401") => bail!("it wants a token (telemetry.token); --token says where it is"),
        _ => bail!("it answers {:?}", head.lines().next().unwrap_or_default()),
    }
}

/// How bad it is, and everything that makes it so. That Kafka is away is what the log is for: it warns once more waits
/// than the limits say.
fn judge(args: &StatusArgs, report: &HealthReport) -> (Severity, Vec<String>) {
    let mut found = Vec::new();
    if report.commit.failing {
        found.push((Severity::Critical, "commits fail: nothing is stored or acknowledged".to_owned()));
    }
    let lacks_space = report.log.free_bytes.is_some_and(|free_bytes| free_bytes < report.log.reserve_bytes);
    if report.commit.waiting && lacks_space && report.replicate.backlog_records == 0 {
        // Kafka has all of the log, and that has made no room.
        let reason = "the disk is full of other files than the log's: nothing is stored or acknowledged";
        found.push((Severity::Critical, reason.to_owned()));
    } else if report.commit.waiting {
        found.push((Severity::Warning, "the log is full: sources wait for Kafka".to_owned()));
    }
    for source in &report.sources {
        if !source.connected {
            found.push((Severity::Warning, format!("source {} is down", source.name)));
        } else if source.last_error.is_some() {
            found.push((Severity::Warning, format!("source {} does not work as configured", source.name)));
        }
    }
    if report.replicate.fenced {
        let reason = "another gateway with the same gateway.id writes to Kafka";
        found.push((Severity::Critical, reason.to_owned()));
    }
    for topic in report.replicate.waiting_topics.keys() {
        found.push((Severity::Warning, format!("topic {topic} waits for an operator")));
    }
    let records = report.replicate.backlog_records;
    if records > args.warn_backlog_records {
        found.push((Severity::Warning, format!("{records} records wait for Kafka")));
    }
    let seconds = report.replicate.backlog_age_seconds;
    if seconds > args.warn_backlog_age_seconds {
        found.push((Severity::Warning, format!("records have waited for Kafka for {seconds} s")));
    }
    let severity = found.iter().map(|(severity, _)| *severity).max().unwrap_or(Severity::Ok);
    (severity, found.into_iter().map(|(_, reason)| reason).collect())
}

fn table(severity: Severity, reasons: &[String], report: &HealthReport) -> String {
    let mut text = String::new();
    // A String takes all that is written to it.
    let _ = write_table(&mut text, severity, reasons, report);
    text
}

fn write_table(
    out: &mut String,
    severity: Severity,
    reasons: &[String],
    report: &HealthReport,
) -> std::fmt::Result {
    let HealthReport { version, uptime_seconds, clock, sources, commit, log, replicate, dropped, .. } =
        report;
    let reasons = if reasons.is_empty() { "all is well".into() } else { reasons.join("; ") };
    writeln!(out, "{}: {reasons}", severity.as_str())?;
    let uptime = HumanDuration(Duration::from_secs(*uptime_seconds));
    writeln!(out, "agent      {version}, up {uptime}, clock {}", format!("{clock:?}").to_lowercase())?;
    for source in sources {
        let state = if source.connected { "up" } else { "down" };
        writeln!(out, "source     {}  {state}{}", source.name, error(source.last_error.as_deref()))?;
    }
    let state = match (commit.failing, commit.waiting) {
        (true, _) => "failing",
        (false, true) => "waits for room",
        (false, false) => "works",
    };
    let (commits, failures) = (commit.commits, commit.failures);
    let last_error = error(commit.last_error.as_deref());
    writeln!(out, "commit     {state}  {commits} commits, {failures} failed tries{last_error}")?;
    let bytes = |bytes: Option<u64>| bytes.map_or("unknown".into(), |bytes| HumanBytes(bytes).to_string());
    let (size, limit, free) = (HumanBytes(log.size_bytes), bytes(log.limit_bytes), bytes(log.free_bytes));
    let (epochs, reserve) = (log.epochs, HumanBytes(log.reserve_bytes));
    writeln!(
        out,
        "log        {size} of {limit} in {epochs} epochs, {free} free on the disk, {reserve} of it to stay free"
    )?;
    let backlog = HumanBytes(replicate.backlog_bytes);
    writeln!(
        out,
        "replicate  {} records ({backlog}) wait, the oldest for {} s{}",
        replicate.backlog_records,
        replicate.backlog_age_seconds,
        error(replicate.last_error.as_deref())
    )?;
    for (topic, advice) in &replicate.waiting_topics {
        writeln!(out, "topic      {topic}  {}", advice.escape_debug())?;
    }
    for dropped in dropped {
        writeln!(
            out,
            "dropped    {} {}  {}  {} records",
            dropped.stage, dropped.name, dropped.reason, dropped.records
        )?;
    }
    Ok(())
}

fn error(last_error: Option<&str>) -> String {
    last_error.map(|error| format!("  last error: {}", error.escape_debug())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;
    use crate::telemetry::health::{DropReport, tests::good};

    fn args(url: String) -> StatusArgs {
        StatusArgs {
            config: PathBuf::new(),
            url: Some(url),
            token: None,
            json: false,
            warn_backlog_records: 100,
            warn_backlog_age_seconds: 60,
        }
    }

    /// A server that gives one answer.
    fn answering(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /healthz HTTP/1.0\r\n"));
            // A client that has read enough closes.
            let _ = stream.write_all(&answer);
        });
        format!("http://{address}")
    }

    fn http(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.0 {status}\r\ncontent-type: application/json\r\n\r\n{body}").into_bytes()
    }

    #[test]
    fn a_report_is_read_over_http_also_when_commits_fail() {
        for (status, failing) in [("200 OK", false), ("503 Service Unavailable", true)] {
            let mut report = good();
            report.commit.failing = failing;
            let url = answering(http(status, &serde_json::to_string(&report).unwrap()));
            assert_eq!(ask(&args(url)).unwrap(), report);
        }
    }

    #[test]
    fn what_is_no_agent_is_unknown_and_says_why() {
        let cases = [
            (http("404 Not Found", ""), "404"),
            (http("401 Unauthorized", ""), "it wants a token"),
            (http("200 OK", "{}"), "no agent of this version"),
            (b"SSH-2.0-OpenSSH_9.9\r\n".to_vec(), "no HTTP"),
            (vec![b'x'; ANSWER_BYTES_MAX + 1024 * 1024], "more than"),
        ];
        for (answer, words) in cases {
            let failure = format!("{:#}", ask(&args(answering(answer))).unwrap_err());
            assert!(failure.contains(words), "{failure}");
        }
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(ask(&args(format!("http://{nobody}"))).is_err());
        assert!(ask(&args("https://localhost:1".into())).is_err());
        assert_eq!(Severity::Unknown as u8, 3);
    }

    #[test]
    fn the_token_is_sent_and_not_shown() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"hunter2\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(&http("401 Unauthorized", "")).unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let with = |token: &str| StatusArgs { token: Some(token.into()), ..args(url.clone()) };
        let failure = format!("{:#}", ask(&with("hunter2")).unwrap_err());
        assert!(failure.contains("must be file:PATH") && !failure.contains("hunter2"), "{failure}");
        let failure = format!("{:#}", ask(&with(&format!("file:{}", file.path().display()))).unwrap_err());
        assert!(failure.contains("wants another token") && !failure.contains("hunter2"), "{failure}");
        assert!(server.join().unwrap().contains("\r\nAuthorization: Bearer hunter2\r\n"));
    }

    #[test]
    fn each_trouble_has_its_severity() {
        let args = args(String::new());
        let check = |change: &dyn Fn(&mut HealthReport), severity, words: &str| {
            let mut report = good();
            change(&mut report);
            let (found, reasons) = judge(&args, &report);
            assert_eq!(found, severity, "{reasons:?}");
            assert!(table(found, &reasons, &report).contains(words), "{}", table(found, &reasons, &report));
        };
        check(&|_| (), Severity::Ok, "OK: all is well\n");
        check(&|report| report.sources[0].connected = false, Severity::Warning, "source broker is down");
        check(
            &|report| report.sources[0].last_error = Some("a\nb".into()),
            Severity::Warning,
            "last error: a\\nb",
        );
        check(&|report| report.replicate.backlog_records = 100, Severity::Ok, "100 records");
        check(
            &|report| report.replicate.backlog_records = 101,
            Severity::Warning,
            "101 records wait for Kafka",
        );
        check(&|report| report.replicate.backlog_age_seconds = 61, Severity::Warning, "for 61 s");
        check(&|report| report.replicate.last_error = Some("no broker".into()), Severity::Ok, "no broker");
        let waits = |report: &mut HealthReport| {
            report.replicate.waiting_topics.insert("prod.vehicle".into(), "has 3 partitions".into());
        };
        check(&waits, Severity::Warning, "prod.vehicle  has 3 partitions");
        check(&|report| report.commit.failing = true, Severity::Critical, "CRITICAL: commits fail");
        let at_its_bound = |report: &mut HealthReport| {
            report.commit.waiting = true;
            report.commit.last_error = Some("the log has 9 bytes".into());
            report.replicate.backlog_records = 1;
        };
        check(&at_its_bound, Severity::Warning, "WARNING: the log is full: sources wait for Kafka");
        check(
            &at_its_bound,
            Severity::Warning,
            "waits for room  1 commits, 0 failed tries  last error: the log has 9",
        );
        let full_of_others = |report: &mut HealthReport| {
            report.commit.waiting = true;
            report.log.free_bytes = Some(report.log.reserve_bytes - 1);
        };
        check(&full_of_others, Severity::Critical, "CRITICAL: the disk is full of other files");
        let drops = |report: &mut HealthReport| {
            let (stage, name, reason) = ("source".into(), "broker".into(), "too_large".into());
            report.dropped.push(DropReport { stage, name, reason, records: 7 });
        };
        check(&drops, Severity::Ok, "dropped    source broker  too_large  7 records");
    }

    #[test]
    fn an_endpoint_on_all_addresses_is_asked_on_loopback() {
        let check = |listen: &str, expected: &str| {
            assert_eq!(reachable(listen.parse().unwrap()), expected.parse().unwrap());
        };
        check("0.0.0.0:9464", "127.0.0.1:9464");
        check("[::]:9464", "[::1]:9464");
        check("10.0.0.1:80", "10.0.0.1:80");
    }
}
