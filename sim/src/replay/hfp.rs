//! Recordings of HSL's High-Frequency Positioning: vehicles' MQTT messages, one a line.
//!
//! `<broker receive time> <topic> <json>`. Topics hold spaces (`Matinkylä (M)`), so the JSON begins at the first ` {"`.

use chrono::DateTime;

/// Level of the operator in a topic; the level before the first `/` is empty and counts.
const OPERATOR_LEVEL: usize = 7;

/// One message of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HfpMessage<'a> {
    /// When the recording broker received it, in microseconds of Unix time.
    pub received_micros: i64,
    /// MQTT topic.
    pub topic: &'a str,
    /// MQTT payload: the rest of the line as it stands.
    pub payload: &'a str,
    /// Operator and vehicle as the topic names them.
    operator: &'a str,
    vehicle: &'a str,
}

impl<'a> HfpMessage<'a> {
    /// Reads one line without its line end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &'a str) -> Result<Self, &'static str> {
        let (head, _) = line.split_once(" {\"").ok_or("no ` {\"` where the JSON would begin")?;
        let payload = &line[head.len() + 1..];
        let (received, topic) = head.split_once(' ').ok_or("no topic behind the receive time")?;
        let received = DateTime::parse_from_rfc3339(received).map_err(|_| "no RFC 3339 receive time")?;
        if topic.contains(['+', '#', '\0']) {
            return Err("a topic that cannot be published to");
        }
        let mut levels = topic.split('/').skip(OPERATOR_LEVEL);
        match (levels.next(), levels.next()) {
            (Some(operator), Some(vehicle)) if !operator.is_empty() && !vehicle.is_empty() => {
                let received_micros = received.timestamp_micros();
                Ok(Self { received_micros, topic, payload, operator, vehicle })
            }
            _ => Err("a topic without operator and vehicle"),
        }
    }

    /// The device: `<operator>/<vehicle>`.
    pub fn device(&self) -> String {
        format!("{}/{}", self.operator, self.vehicle)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn deadruns_journeys_and_signal_requests_name_the_same_vehicle() {
        for topic in [
            "/hfp/v2/deadrun/ongoing/vp/bus/0018/01029",
            "/hfp/v2/journey/ongoing/vp/bus/0018/01029/5520/1/Martinlaakso/17:35/4150208/5/60;24/28/65/93",
            "/hfp/v2/journey/ongoing/tlr/bus/0018/01029/5520/1/Matinkylä (M)/17:35/4150208/5/60;24/28/65/93/401",
        ] {
            let line = format!("2024-02-13T16:33:00.005271Z {topic} {{\"VP\":{{\"desi\":\"520\"}}}}");
            let message = HfpMessage::parse(&line).unwrap();
            assert_eq!(message.topic, topic);
            assert_eq!(message.payload, "{\"VP\":{\"desi\":\"520\"}}");
            assert_eq!(message.device(), "0018/01029");
            assert_eq!(message.received_micros, 1_707_841_980_005_271);
        }
    }

    #[test]
    fn the_json_begins_at_the_first_brace_behind_a_space() {
        let line = "2024-02-13T16:33:00Z /hfp/v2/deadrun/ongoing/vp/bus/0018/01029 {\"VP\": {\"desi\":null}}";
        assert_eq!(HfpMessage::parse(line).unwrap().payload, "{\"VP\": {\"desi\":null}}");
    }

    #[test]
    fn bad_lines_are_errors_and_never_a_panic() {
        let topic = "/hfp/v2/deadrun/ongoing/vp/bus/0018/01029";
        for line in [
            "".to_owned(),
            " {\"".to_owned(),
            "{\"VP\":{}}".to_owned(),
            format!("2024-02-13T16:33:00Z {topic}"),
            format!("16:33 {topic} {{\"VP\":{{}}}}"),
            "2024-02-13T16:33:00Z /hfp/v2/deadrun {\"VP\":{}}".to_owned(),
            "2024-02-13T16:33:00Z /hfp/v2/deadrun/ongoing/vp/bus//01029 {\"VP\":{}}".to_owned(),
            "2024-02-13T16:33:00Z /hfp/v2/deadrun/+/vp/bus/0018/01029 {\"VP\":{}}".to_owned(),
        ] {
            assert!(HfpMessage::parse(&line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_line_of_the_recorded_buses_is_understood() {
        let corpus = std::env::var("WAYSIDE_CORPUS")
            .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data").to_owned());
        let Ok(cases) = std::fs::read_dir(format!("{corpus}/hfp")) else {
            // Not `eprintln!`, which the test runner keeps to itself when a test passes.
            let mut stderr = std::io::stderr();
            writeln!(stderr, "skipped: needs recordings in {corpus}/hfp; set WAYSIDE_CORPUS").unwrap();
            return;
        };
        let (mut lines, mut vehicles) = (0, std::collections::BTreeSet::new());
        let mut levels = std::collections::BTreeMap::<usize, u32>::new();
        for case in cases {
            let Ok(dump) = std::fs::read_to_string(case.unwrap().path().join("hfp.dump")) else { continue };
            for line in dump.lines() {
                let message = HfpMessage::parse(line).unwrap();
                serde_json::from_str::<serde_json::Value>(message.payload).unwrap();
                lines += 1;
                vehicles.insert(message.device());
                *levels.entry(message.topic.split('/').count()).or_default() += 1;
            }
        }
        assert_eq!((lines, vehicles.len()), (2115, 5), "{vehicles:?}");
        assert_eq!(levels.into_iter().collect::<Vec<_>>(), [(9, 1029), (19, 1078), (20, 8)]);
    }
}
