//! What `/healthz` says.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// State of the agent, for people and monitors.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HealthReport {
    /// `ok`, or `degraded` when something below needs a look. Data is safe in both.
    pub status: Status,
    /// Version of the agent.
    pub version: &'static str,
    /// Each source, in the order of the config.
    pub sources: Vec<SourceReport>,
    /// The local log.
    pub commit: CommitReport,
    /// Replication to Kafka.
    pub replicate: ReplicateReport,
}

/// In one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Everything works.
    Ok,
    /// A source, the disk or Kafka is away.
    Degraded,
}

/// State of a source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceReport {
    /// Its name in the config.
    pub name: String,
    /// Whether frames can come.
    pub connected: bool,
    /// The last thing that went wrong, if anything did.
    pub last_error: Option<String>,
}

/// State of the commit stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CommitReport {
    /// Commits that became durable.
    pub commits: u64,
    /// Tries that failed.
    pub failures: u64,
    /// Whether the last try failed: nothing is acknowledged now.
    pub failing: bool,
}

/// State of replication.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplicateReport {
    /// Records in the log that Kafka has not acknowledged.
    pub backlog_records: u64,
    /// The last thing that went wrong, until something went right again.
    pub last_error: Option<String>,
    /// Topics whose streams wait, with what the operator can do.
    pub waiting_topics: BTreeMap<String, String>,
}

impl HealthReport {
    /// Sums up.
    pub fn new(sources: Vec<SourceReport>, commit: CommitReport, replicate: ReplicateReport) -> Self {
        let well = sources.iter().all(|source| source.connected && source.last_error.is_none())
            && !commit.failing
            && replicate.last_error.is_none()
            && replicate.waiting_topics.is_empty();
        let status = if well { Status::Ok } else { Status::Degraded };
        Self { status, version: env!("CARGO_PKG_VERSION"), sources, commit, replicate }
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
        let waiting = self.replicate.waiting_topics.values();
        for cause in waiting.chain(&self.replicate.last_error) {
            // A newline would begin another statement to the service manager.
            write!(f, "; {}", cause.replace('\n', " "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_that_is_away_degrades_the_whole() {
        let source = |connected| SourceReport { name: "broker".into(), connected, last_error: None };
        let commit = CommitReport { commits: 1, failures: 0, failing: false };
        let replicate =
            ReplicateReport { backlog_records: 0, last_error: None, waiting_topics: BTreeMap::new() };
        let report = |sources| HealthReport::new(sources, commit, replicate.clone()).status;
        assert_eq!(report(vec![source(true)]), Status::Ok);
        assert_eq!(report(vec![source(true), source(false)]), Status::Degraded);
        let failing = CommitReport { failing: true, ..commit };
        assert_eq!(HealthReport::new(vec![source(true)], failing, replicate).status, Status::Degraded);
    }
}
