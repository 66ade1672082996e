//! What `/healthz` says.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::record::ClockQuality;

/// State of the agent, for people and monitors. Counters count from its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthReport {
    /// `ok`, or `degraded` when something below needs a look. Data is safe in both.
    pub status: Status,
    /// Version of the agent.
    pub version: String,
    /// Whole seconds since its start.
    pub uptime_seconds: u64,
    /// How far its wall clock can be trusted.
    pub clock: Quality,
    /// Each source, in the order of the config.
    pub sources: Vec<SourceReport>,
    /// Group commit.
    pub commit: CommitReport,
    /// The local log.
    pub log: LogReport,
    /// Replication to Kafka.
    pub replicate: ReplicateReport,
    /// What was taken and did not get through, by stage and reason.
    pub dropped: Vec<DropReport>,
}

/// In one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Everything works.
    Ok,
    /// A source, the disk or Kafka is away.
    Degraded,
}

/// [`ClockQuality`] in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quality {
    /// The clock shows a time that cannot be.
    Unknown,
    /// The clock shows a time that can be.
    Estimated,
    /// The kernel says that NTP or GNSS keeps the clock.
    Synced,
}

impl From<ClockQuality> for Quality {
    fn from(quality: ClockQuality) -> Self {
        match quality {
            ClockQuality::Unknown => Self::Unknown,
            ClockQuality::Estimated => Self::Estimated,
            ClockQuality::Synced => Self::Synced,
        }
    }
}

/// State of a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its name in the config.
    pub name: String,
    /// Whether frames can come.
    pub connected: bool,
    /// The last thing that went wrong, if anything did.
    pub last_error: Option<String>,
}

/// State of the commit stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitReport {
    /// Commits that became durable.
    pub commits: u64,
    /// Tries that the disk failed.
    pub failures: u64,
    /// Whether the disk failed the last try: nothing is acknowledged now.
    pub failing: bool,
    /// Whether the log is at a bound and waits for room: nothing is acknowledged now, and sources wait.
    pub waiting: bool,
    /// Why it fails or waits, while it does.
    pub last_error: Option<String>,
}

/// State of the local log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// Epochs present.
    pub epochs: u64,
    /// Bytes that they take on the disk.
    pub size_bytes: u64,
    /// Most bytes that they may take, at which sources wait; null where nobody knows.
    pub limit_bytes: Option<u64>,
    /// Bytes that are to stay free there: with fewer sources wait.
    pub reserve_bytes: u64,
    /// Bytes that are free there; null where the system does not say.
    pub free_bytes: Option<u64>,
}

/// State of replication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicateReport {
    /// Records in the log that Kafka has not acknowledged.
    pub backlog_records: u64,
    /// Bytes that they take in the log: its size, by the share of entries that are not acknowledged.
    pub backlog_bytes: u64,
    /// Seconds since the gateway received the oldest of them that is on its way, by the wall clock.
    pub backlog_age_seconds: u64,
    /// The last thing that went wrong, until something went right again.
    pub last_error: Option<String>,
    /// Whether another gateway with the same id has taken our place in Kafka.
    #[serde(default)]
    pub fenced: bool,
    /// Topics whose streams wait, with what the operator can do.
    pub waiting_topics: BTreeMap<String, String>,
}

/// Records that were dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropReport {
    /// The stage that dropped them: `source`, `log` or `replicate`.
    pub stage: String,
    /// The source's name, or the stream's.
    pub name: String,
    /// Why: the metric's label, the policy for those of the log.
    pub reason: String,
    /// How many.
    pub records: u64,
}

impl DropReport {
    /// The reports of a stage from its tally by name and reason.
    pub fn of_stage(
        stage: &'static str,
        tally: BTreeMap<(String, &'static str), u64>,
    ) -> impl Iterator<Item = Self> {
        tally.into_iter().map(move |((name, reason), records)| Self {
            stage: stage.into(),
            name,
            reason: reason.into(),
            records,
        })
    }
}

impl HealthReport {
    /// Sums up.
    pub fn new(
        uptime: Duration,
        clock: Quality,
        sources: Vec<SourceReport>,
        commit: CommitReport,
        log: LogReport,
        replicate: ReplicateReport,
        dropped: Vec<DropReport>,
    ) -> Self {
        let well = sources.iter().all(|source| source.connected && source.last_error.is_none())
            && !commit.failing
            && !commit.waiting
            && replicate.last_error.is_none()
            && !replicate.fenced
            && replicate.waiting_topics.is_empty();
        Self {
            status: if well { Status::Ok } else { Status::Degraded },
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: uptime.as_secs(),
            clock,
            sources,
            commit,
            log,
            replicate,
            dropped,
        }
    }
}

/// One line, for a service manager's status.
impl fmt::Display for HealthReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.sources.iter().filter(|source| source.connected).count();
        let (backlog, sources) = (self.replicate.backlog_records, self.sources.len());
        write!(f, "backlog {backlog} records, {connected} of {sources} sources connected")?;
        if self.commit.failing {
            f.write_str("; commits fail: nothing is acknowledged")?;
        }
        if self.commit.waiting {
            f.write_str("; the log is full: nothing is acknowledged")?;
        }
        if self.replicate.fenced {
            f.write_str("; another gateway with the same gateway.id writes to Kafka")?;
        }
        let waiting = self.replicate.waiting_topics.values();
        for cause in self.commit.last_error.iter().chain(waiting).chain(&self.replicate.last_error) {
            // A newline would begin another statement to the service manager.
            write!(f, "; {}", cause.replace('\n', " "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A report of an agent with one source, which works.
    pub(crate) fn good() -> HealthReport {
        HealthReport::new(
            Duration::from_secs(93_784),
            Quality::Unknown,
            vec![SourceReport { name: "broker".into(), connected: true, last_error: None }],
            CommitReport { commits: 1, failures: 0, failing: false, waiting: false, last_error: None },
            LogReport {
                epochs: 2,
                size_bytes: 5_000_000,
                limit_bytes: Some(2_000_000_000),
                reserve_bytes: 16_777_216,
                free_bytes: Some(1_000_000_000),
            },
            ReplicateReport {
                backlog_records: 0,
                backlog_bytes: 0,
                backlog_age_seconds: 0,
                last_error: None,
                fenced: false,
                waiting_topics: BTreeMap::new(),
            },
            Vec::new(),
        )
    }

    fn sum_up(report: HealthReport) -> Status {
        let HealthReport { clock, sources, commit, log, replicate, dropped, .. } = report;
        HealthReport::new(Duration::ZERO, clock, sources, commit, log, replicate, dropped).status
    }

    #[test]
    fn one_source_that_is_away_degrades_the_whole() {
        assert_eq!(sum_up(good()), Status::Ok);
        let mut away = good();
        away.sources.push(SourceReport { name: "port".into(), connected: false, last_error: None });
        assert_eq!(sum_up(away), Status::Degraded);
        let mut failing = good();
        failing.commit.failing = true;
        assert_eq!(sum_up(failing), Status::Degraded);
        let mut waiting = good();
        waiting.commit.waiting = true;
        assert_eq!(sum_up(waiting), Status::Degraded);
    }

    #[test]
    fn a_report_is_read_back_from_its_json() {
        let text = serde_json::to_string(&good()).unwrap();
        assert_eq!(serde_json::from_str::<HealthReport>(&text).unwrap(), good());
    }
}
