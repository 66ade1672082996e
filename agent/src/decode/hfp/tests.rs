use std::collections::BTreeSet;

use super::*;
use crate::{
    config::{Route, RouteDecode},
    decode::mqtt::Router,
    testing::corpus,
};

const VP: &str =
    "/hfp/v2/journey/ongoing/vp/bus/0018/01029/5520/1/Martinlaakso/17:35/4150208/5/60;24/28/65/93";

fn decode(topic: &str, payload: &str) -> Result<Record, HfpError> {
    let decoder = HfpDecoder::new(StreamName::new("hfp").unwrap(), Value::Json);
    decoder.decode(topic, &Bytes::copy_from_slice(payload.as_bytes()), Received::default())
}

fn reading(topic: &str, payload: &str) -> Json {
    serde_json::from_slice(&decode(topic, payload).unwrap().value).unwrap()
}

#[test]
fn message_becomes_a_position_with_units() {
    let payload = r#"{"VP":{"desi":"520","dir":"1","oper":6,"veh":1029,"tst":"2024-02-13T16:32:59.931Z","tsi":1707841979,"spd":8.5,"hdg":90,"lat":60.269247,"long":24.853777,"acc":-0.2,"dl":-232,"odo":25030,"drst":0,"oday":"2024-02-13","jrn":632,"line":1110,"start":"17:35","loc":"GPS","stop":4150208,"route":"5520","occu":0,"new-field":[1]}}"#;
    assert_eq!(
        reading(VP, payload),
        serde_json::json!({
            "time": "2024-02-13T16:32:59.931000Z", "fix": "gnss", "lat_deg": 60.269247, "lon_deg": 24.853777,
            "stale_lat_deg": null, "stale_lon_deg": null, "altitude_m": null, "speed_mps": 8.5, "course_deg": 90.0,
            "satellites": null, "hdop": null, "accuracy_m": null, "odometer_m": 25030.0,
            "event": "vp", "journey_type": "journey", "mode": "bus", "operator": "0018", "vehicle": "01029",
            "journey_operator": 6, "location_source": "GPS", "acceleration_mps2": -0.2, "schedule_lead_s": -232.0,
            "doors_open": false, "occupancy_percent": 0.0, "operating_day": "2024-02-13", "start_time": "17:35",
            "designation": "520", "direction": "1", "route": "5520", "line": 1110, "journey": 632, "stop": 4150208,
            "veh": 1029, "new-field": [1],
        })
    );
    let record = decode(VP, payload).unwrap();
    assert_eq!(record.device.as_str(), "0018/01029");
    assert_eq!(record.event_time, Some(UnixMicros(1_707_841_979_931_000)));
}

#[test]
fn every_field_may_be_absent_or_null() {
    for payload in
        [r#"{"VP":{}}"#, r#"{"VP":{"oper":null,"lat":null,"long":null,"spd":null,"stop":null,"tst":null}}"#]
    {
        let reading = reading(VP, payload);
        assert_eq!((&reading["fix"], &reading["lat_deg"]), (&"none".into(), &Json::Null));
        assert_eq!(decode(VP, payload).unwrap().event_time, None);
    }
}

/// Found by the fuzz target `hfp`: the reading had `lat_deg` twice, and most readers take the second.
#[test]
fn field_that_is_called_as_one_of_ours_does_not_stand_in_its_place() {
    let record = decode(VP, r#"{"VP":{"lat":60.2,"long":24.8,"lat_deg":99,"event":{},"seq":1}}"#).unwrap();
    let text = str::from_utf8(&record.value).unwrap();
    assert_eq!((text.matches("\"lat_deg\"").count(), text.matches("\"event\"").count()), (1, 1), "{text}");
    let reading: Json = serde_json::from_str(text).unwrap();
    assert_eq!((&reading["lat_deg"], &reading["seq"]), (&60.2.into(), &1.into()));
}

#[test]
fn odd_values_of_live_traffic_are_understood() {
    let field = |payload: &str, name: &str| reading(VP, payload)[name].clone();
    assert_eq!(field(r#"{"VP":{"spd":-1.00}}"#, "speed_mps"), Json::Null);
    assert_eq!(field(r#"{"VP":{"stop":"4150208"}}"#, "stop"), "4150208");
    assert_eq!(field(r#"{"VP":{"lat":24.8,"long":600.2}}"#, "lat_deg"), Json::Null);
    assert_eq!(field(r#"{"VP":{"lat":60.2,"long":24.8,"loc":"DR"}}"#, "fix"), "dead-reckoning");
    let tsi_alone = decode(VP, r#"{"VP":{"tst":null,"tsi":1707841979}}"#).unwrap();
    assert_eq!(tsi_alone.event_time, Some(UnixMicros(1_707_841_979_000_000)));
}

#[test]
fn passenger_counts_are_kept() {
    let topic = "/hfp/v2/journey/ongoing/apc-partial/bus/0018/01029";
    let reading =
        reading(topic, r#"{"APC":{"tst":"2024-02-13T16:35:00Z","vehiclecounts":{"vehicleload":-1}}}"#);
    assert_eq!(reading["vehiclecounts"]["vehicleload"], -1);
    assert_eq!(reading["event"], "apc-partial");
}

#[test]
fn what_is_no_hfp_is_an_error() {
    let check = |topic: &str, payload: &str, expected: &str| {
        let error = decode(topic, payload).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{topic} {payload}: {error}");
    };
    check("building/1", "{}", "no HFP v2 topic");
    check("/hfp/v2/journey/ongoing/vp/bus/0018", r#"{"VP":{}}"#, "no HFP v2 topic");
    check("/hfp/v2/journey/ongoing/vp/bus/0018//x", r#"{"VP":{}}"#, "no HFP v2 topic");
    check(VP, "[]", "no HFP payload: invalid type: sequence, expected an object with one event");
    check(VP, "{}", "no HFP payload: no event in capitals");
    check(VP, r#"{"VP":{"lat":"x"}}"#, "no HFP payload: invalid type: string");
    check(VP, r#"{"VP":{}"#, "no HFP payload: EOF");
    assert!(
        decode(&format!("bridge{VP}"), r#"{"VP":{}}"#).is_ok(),
        "a bridge may put a prefix before the topic"
    );
}

/// Real traffic of seven test cases, 2115 messages of HFP; door counts lie beside them.
#[test]
fn every_recorded_message_decodes() {
    let Some(folder) = corpus("hfp") else { return };
    let router = |value| {
        let decode = RouteDecode::Hfp { stream: StreamName::new("hfp").unwrap() };
        Router::new("hsl", &[Route { topic_filter: "/hfp/v2/#".into(), decode, value }], 65536).unwrap()
    };
    let routers = [(router(Value::Raw), Value::Raw), (router(Value::Json), Value::Json)];
    let (mut devices, mut counts) = (BTreeSet::new(), [0, 0]);
    for case in
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir())
    {
        for (count, file) in counts.iter_mut().zip(["hfp.dump", "partialApc.dump"]) {
            for line in
                std::fs::read_to_string(case.join(file)).unwrap().lines().filter(|line| !line.is_empty())
            {
                let (_received, message) = line.split_once(' ').unwrap();
                let at = message.find(" {\"").unwrap();
                let (topic, payload) = (&message[..at], &message[at + 1..]);
                let tree: Json = serde_json::from_str(payload).unwrap();
                let body = tree.as_object().unwrap().values().next().unwrap();
                for (router, value) in &routers {
                    let bytes = Bytes::copy_from_slice(payload.as_bytes());
                    let record = router.decode(topic, bytes, false, Received::default());
                    assert_eq!(record.stream.as_str(), "hfp", "{line}: {record:?}");
                    assert_eq!(record.event_time, time::from_text(body["tst"].as_str().unwrap()), "{line}");
                    if *value == Value::Raw {
                        assert_eq!(record.value, payload);
                    } else {
                        let reading: Json = serde_json::from_slice(&record.value).unwrap();
                        assert_eq!(reading["lat_deg"], body["lat"], "{line}");
                        assert_eq!(reading["lon_deg"], body["long"], "{line}");
                    }
                    devices.insert(record.device.as_str().to_owned());
                }
                *count += 1;
            }
        }
    }
    assert_eq!(counts[0], 2115);
    assert!(counts[1] > 0);
    assert_eq!(devices.len(), 5, "{devices:?}");
}
