//! Gap records, in which the agent tells what is missing.

use std::collections::BTreeMap;

use crate::agent::Agent;
use crate::kafka::Cluster;

/// What gap records say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Records that are missing.
    pub records: u64,
    /// Gaps of which nobody can know how many records are missing, if any.
    pub uncounted: u64,
}

/// What gap records of `reason` tell as missing.
pub fn told(cluster: &Cluster, agent: &Agent, reason: &str) -> Told {
    let mut gaps = BTreeMap::new();
    for record in cluster.read(&agent.topic("gaps")) {
        let gap: serde_json::Value = serde_json::from_slice(&record.value).expect("a gap is JSON");
        if gap["reason"] == reason {
            // A gap may come twice, as records may: one of the log has its offset, another says where it is.
            let place = record.headers.get("wayside.offset").cloned().unwrap_or_else(|| gap.to_string());
            gaps.insert((record.partition, place), gap["count"].as_u64());
        }
    }
    gaps.into_values().fold(Told::default(), |told, count| match count {
        Some(count) => Told { records: told.records + count, ..told },
        None => Told { uncounted: told.uncounted + 1, ..told },
    })
}
