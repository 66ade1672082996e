//! gpsd's own reading of a receiver's log: the `.chk` beside it, one JSON object a line among copies of the sentences.

use std::collections::BTreeMap;
use std::path::Path;

/// One solution of gpsd.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fix {
    /// Degrees, north positive.
    pub lat_deg: f64,
    /// Degrees, east positive.
    pub lon_deg: f64,
    /// Over ground, where known so far.
    pub speed_mps: Option<f64>,
}

/// All solutions of a recording by their time, in Unix milliseconds.
///
/// gpsd reports an epoch again when a further sentence improves it, so there may be several for one time.
pub fn read(path: &Path) -> BTreeMap<i64, Vec<Fix>> {
    let text = std::fs::read(path).expect("the recording is readable");
    let mut fixes: BTreeMap<i64, Vec<Fix>> = BTreeMap::new();
    for line in text.split(|&byte| byte == b'\n').filter(|line| line.starts_with(b"{")) {
        let report: serde_json::Value = serde_json::from_slice(line).expect("gpsd writes JSON");
        if report["class"] != "TPV" {
            continue;
        }
        let numbers = (report["time"].as_str(), report["lat"].as_f64(), report["lon"].as_f64());
        if let (Some(time), Some(lat_deg), Some(lon_deg)) = numbers {
            let fix = Fix { lat_deg, lon_deg, speed_mps: report["speed"].as_f64() };
            fixes.entry(unix_millis(time)).or_default().push(fix);
        }
    }
    fixes
}

/// A time in RFC 3339 as Unix milliseconds.
#[track_caller]
pub fn unix_millis(time: &str) -> i64 {
    let parsed = chrono::DateTime::parse_from_rfc3339(time);
    parsed.unwrap_or_else(|error| panic!("{time} is no time: {error}")).timestamp_millis()
}
