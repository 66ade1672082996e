//! `wayside check --connect`: tries what the agent would use, one by one, each with a time limit, and says what it found.
//! A running agent keeps its session, its port and its directory.

mod disk;

use serde_json::json;

use super::print;
use crate::{config::Config, replicate, source, telemetry::http::load_token};

/// Tries everything, in the order of the journey, and prints a line for each as it is known, or one JSON object.
///
/// # Errors
/// Something failed, or standard output is gone.
pub(super) fn check(config: &Config, json: bool) -> anyhow::Result<()> {
    let mut report = Report { json, findings: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for source in &config.mqtt {
        for broker in &source.brokers {
            let found = runtime.block_on(source::mqtt::reach(broker, source));
            let scheme = if broker.tls { "mqtts" } else { "mqtt" };
            report.add(format!("{} {scheme}://{}:{}", source.name, broker.host, broker.port), found)?;
        }
    }
    for listener in &config.listener {
        let found = runtime.block_on(source::listener::reach(listener));
        report.add(format!("{} {}", listener.name, listener.listen), found)?;
    }
    // A name that is not resolved holds a thread for longer than its time limit.
    runtime.shutdown_background();
    for source in &config.serial {
        report.add(format!("{} {}", source.name, source.path.display()), source::serial::reach(source))?;
    }
    for source in &config.http {
        report.add(format!("{} http://{}", source.name, source.listen), source::http::reach(source))?;
    }
    report
        .add(format!("log.dir {}", config.log.dir.display()), disk::reach(&config.log, &config.gateway.id))?;
    for (item, found) in replicate::reach(config) {
        report.add(item, found)?;
    }
    if let Some((listen, token)) = config.telemetry.listen.zip(config.telemetry.token.as_ref()) {
        let found =
            load_token(token).map(|_| "its token can be read".into()).map_err(|error| error.to_string());
        report.add(format!("telemetry.listen {listen}"), found)?;
    }
    report.end()
}

struct Report {
    json: bool,
    findings: Vec<(String, Result<String, String>)>,
}

impl Report {
    fn add(&mut self, item: String, found: Result<String, String>) -> anyhow::Result<()> {
        if !self.json {
            let (word, text) = match &found {
                Ok(text) => ("ok    ", text),
                Err(text) => ("failed", text),
            };
            print(format!("{word}  {item}: {text}\n").as_bytes())?;
        }
        self.findings.push((item, found));
        Ok(())
    }

    fn end(self) -> anyhow::Result<()> {
        let (total, failed) =
            (self.findings.len(), self.findings.iter().filter(|(_, found)| found.is_err()).count());
        if self.json {
            let findings = self.findings.iter().map(|(item, found)| {
                let (ok, text) = (found.is_ok(), found.as_ref().unwrap_or_else(|text| text));
                json!({ "item": item, "ok": ok, "found": text })
            });
            let report = json!({ "ok": failed == 0, "findings": findings.collect::<Vec<_>>() });
            print(format!("{report:#}\n").as_bytes())?;
        }
        anyhow::ensure!(failed == 0, "{failed} of {total} failed");
        Ok(())
    }
}
