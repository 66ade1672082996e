//! Logs of real receivers, and what gpsd made of them (`<log>.chk`).

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::*;
use crate::testing::corpus;

fn route(value: Value) -> NmeaRoute {
    NmeaRoute {
        port: "/dev/ttyTEST".into(),
        stream: StreamName::new("positions").unwrap(),
        raw_stream: StreamName::new("raw").unwrap(),
        device: DeviceId::new("receiver").unwrap(),
        value,
    }
}

struct Decoded {
    positions: Vec<Record>,
    raw: Vec<Record>,
    dead: Vec<Record>,
    counters: FramerCounters,
}

/// Decodes all of `bytes` in reads of `chunk` bytes without a pause, as a replay does.
fn decode(bytes: &[u8], chunk: usize, value: Value) -> Decoded {
    let mut decoder = NmeaDecoder::new(route(value));
    let received = Received { at: UnixMicros(1), ..Received::default() };
    let mut decoded = Decoded {
        positions: Vec::new(),
        raw: Vec::new(),
        dead: Vec::new(),
        counters: FramerCounters::default(),
    };
    let mut records = Vec::new();
    for part in bytes.chunks(chunk) {
        records.extend(decoder.push(Monotonic::default(), received, part));
    }
    records.extend(decoder.finish());
    for record in records {
        match record.stream.as_str() {
            "positions" => decoded.positions.push(record),
            "raw" => decoded.raw.push(record),
            _ => decoded.dead.push(record),
        }
    }
    decoded.counters = decoder.counters();
    decoded
}

fn readings(records: &[Record]) -> Vec<Json> {
    records.iter().map(|record| serde_json::from_slice(&record.value).unwrap()).collect()
}

/// The last TPV with a time that gpsd made before the first sentence of the next moment, by time. A line of the file is
/// a sentence or gpsd's answer to it; `gpsd_only` are talkers of sentences that gpsd itself made from binary.
fn oracle(text: &str, gpsd_only: &str) -> BTreeMap<String, Json> {
    let mut by_time = BTreeMap::new();
    let mut ours = true;
    for line in text.lines() {
        if line.starts_with('$') || line.starts_with('!') {
            ours = gpsd_only.is_empty() || !line.starts_with(gpsd_only);
        } else if ours && line.contains(r#""class":"TPV""#) {
            let tpv: Json = serde_json::from_str(line).unwrap();
            if let Some(time) = tpv["time"].as_str() {
                by_time.insert(time.trim_end_matches('Z').to_owned(), tpv);
            }
        }
    }
    by_time
}

/// Compares each position of `log` with gpsd's, and counts what became of the sentences. gpsd says nothing about
/// `unjudged` moments: of some it heard too little, others it passed over for its own reasons.
fn check(log: &str, gpsd_only: &str, (positions, unjudged): (usize, usize), raw: usize, sentences: u64) {
    let Some(folder) = corpus("nmea") else { return };
    let bytes = std::fs::read(folder.join(log)).unwrap();
    let chk = std::fs::read(folder.join(format!("{log}.chk"))).unwrap();
    let oracle = oracle(&String::from_utf8_lossy(&chk), gpsd_only);
    for chunk in [1, 7, 64, bytes.len()] {
        let decoded = decode(&bytes, chunk, Value::Json);
        assert_eq!(decoded.positions.len(), positions, "{log}: positions");
        assert_eq!(decoded.raw.len(), raw, "{log}: raw sentences");
        assert_eq!(decoded.counters.sentences, sentences, "{log}: sentences");
        assert_eq!(decoded.dead.len(), 0, "{log}: dead letters");
        let mut compared = 0;
        for (record, reading) in decoded.positions.iter().zip(readings(&decoded.positions)) {
            let time = reading["time"].as_str().unwrap();
            assert_eq!(record.event_time, super::super::json::time::from_text(time));
            let Some(tpv) = oracle.get(&time[..23]) else { continue };
            let near = |ours: &str, gpsd: &str, tolerance: f64| {
                let pair = (reading[ours].as_f64(), tpv[gpsd].as_f64());
                match pair {
                    (Some(ours), Some(gpsd)) => (ours - gpsd).abs() <= tolerance,
                    // gpsd leaves a course out where the speed is too low for one.
                    (_, None) => true,
                    (None, Some(_)) => false,
                }
            };
            assert!(near("lat_deg", "lat", 1e-6) && near("lon_deg", "lon", 1e-6), "{log}: {reading} {tpv}");
            assert!(tpv["lat"].is_number() && tpv["speed"].is_number(), "{log}: {tpv}");
            assert!(near("speed_mps", "speed", 0.01), "{log}: {reading} {tpv}");
            assert!(near("altitude_m", "altMSL", 0.1), "{log}: {reading} {tpv}");
            assert_ne!(reading["fix"], "none");
            compared += 1;
        }
        assert_eq!(compared, oracle.len(), "{log}: every moment of gpsd");
        assert_eq!(compared + unjudged, positions, "{log}: every position");
    }
}

#[test]
fn positions_of_a_receiver_match_gpsd() {
    check("quectel-l76k-nmea.log", "", (151, 1), 30, 2280);
}

#[test]
fn positions_between_binary_frames_match_gpsd() {
    check("quectel-l76k-dual.log", "$GP", (130, 0), 130, 2080);
}

#[test]
fn positions_of_an_rtk_receiver_match_gpsd() {
    check("nmea-rtk.log", "", (122, 0), 0, 244);
}

#[test]
fn positions_beside_ais_match_gpsd_and_ais_is_kept() {
    check("ais-nmea.log", "", (164, 3), 183, 1496);
    let Some(folder) = corpus("nmea") else { return };
    let bytes = std::fs::read(folder.join("ais-nmea.log")).unwrap();
    let sent: Vec<_> = bytes.split(|&b| b == b'\n').filter(|line| line.starts_with(b"!AIVDM")).collect();
    let kept = decode(&bytes, 100, Value::Json).raw;
    assert_eq!(kept.len(), sent.len());
    for (record, line) in kept.iter().zip(sent) {
        assert_eq!(record.value.trim_ascii_end(), line.trim_ascii_end());
        assert_eq!(record.content_type, ContentType::Nmea);
    }
}

#[test]
fn raw_values_hold_every_sentence_of_a_log() {
    let Some(folder) = corpus("nmea") else { return };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "log") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let decoded = decode(&bytes, 50, Value::Raw);
        let mut kept: Vec<&[u8]> = [&decoded.positions, &decoded.raw]
            .into_iter()
            .flatten()
            .flat_map(|record| record.value.split_inclusive(|&b| b == b'\n'))
            .collect();
        assert_eq!(u64::try_from(kept.len()).unwrap(), decoded.counters.sentences, "{}", path.display());
        let mut sent = Vec::new();
        framer::Framer::default().push(&bytes, &mut |framed| {
            if let Framed::Sentence(text) = framed {
                sent.push(format!("{text}\r\n").into_bytes());
            }
        });
        kept.sort_unstable();
        sent.sort_unstable();
        assert_eq!(kept, sent, "{}", path.display());
    }
}

#[test]
fn cold_start_gives_a_position_without_a_fix_and_then_one_each() {
    let Some(folder) = corpus("nmea") else { return };
    let bytes = std::fs::read(folder.join("aerorust-nmea_with_sat_info.log")).unwrap();
    let decoded = decode(&bytes, 64, Value::Json);
    assert_eq!(decoded.counters.sentences, 518);
    let readings = readings(&decoded.positions);
    assert_eq!(readings.len(), 37);
    assert_eq!(readings[0]["fix"], "none");
    assert_eq!(readings[0]["lat_deg"], Json::Null);
    for reading in &readings[1..] {
        let (lat, lon) = (reading["lat_deg"].as_f64().unwrap(), reading["lon_deg"].as_f64().unwrap());
        assert!((42.174540..42.174557).contains(&lat) && (24.756048..24.756094).contains(&lon), "{reading}");
        assert!(reading["time"].as_str().unwrap().starts_with("2022-04-13T05:2"), "{reading}");
    }
}

#[test]
fn a_damaged_log_never_panics_and_keeps_what_is_sound() {
    let Some(folder) = corpus("nmea") else { return };
    let clean = std::fs::read(folder.join("nmea-rtk.log")).unwrap();
    let mut bytes = clean.clone();
    for at in (50..bytes.len()).step_by(997) {
        bytes[at] ^= 0x10;
    }
    let (sound, damaged) = (decode(&clean, 31, Value::Raw), decode(&bytes, 31, Value::Raw));
    let lost = sound.counters.sentences - damaged.counters.sentences;
    assert!((1..=23).contains(&lost), "{lost} sentences lost by 23 flips");
    assert!(!damaged.dead.is_empty());
}
