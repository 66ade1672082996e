use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;

fn decoder(value: Value) -> NmeaDecoder {
    NmeaDecoder::new(NmeaRoute {
        port: "/dev/ttyTEST".into(),
        stream: StreamName::new("positions").unwrap(),
        raw_stream: StreamName::new("raw").unwrap(),
        device: DeviceId::new("receiver").unwrap(),
        value,
    })
}

fn at_ms(ms: u64) -> Monotonic {
    Monotonic::from_start(Duration::from_millis(ms))
}

/// `text` with `$`, checksum and line end.
fn sentence(text: &str) -> String {
    let sum = text.bytes().fold(0, |sum, byte| sum ^ byte);
    format!("${text}*{sum:02X}\r\n")
}

fn decode(sentences: &[&str]) -> Vec<Record> {
    let mut decoder = decoder(Value::Json);
    let bytes: String = sentences.iter().map(|text| sentence(text)).collect();
    let mut records = decoder.push(at_ms(0), Received::default(), bytes.as_bytes());
    records.extend(decoder.finish());
    records
}

fn reading(record: &Record) -> Json {
    serde_json::from_slice(&record.value).unwrap()
}

/// Times and fixes of the positions that come of `sentences`.
fn check(sentences: &[&str], expected: &[(&str, &str)]) {
    let found: Vec<_> = decode(sentences)
        .iter()
        .filter(|record| record.stream.as_str() == "positions")
        .map(reading)
        .map(|r| (r["time"].as_str().unwrap_or("-").to_owned(), r["fix"].as_str().unwrap().to_owned()))
        .collect();
    let expected: Vec<_> =
        expected.iter().map(|(time, fix)| ((*time).to_owned(), (*fix).to_owned())).collect();
    assert_eq!(found, expected, "{sentences:#?}");
}

const RMC: &str = "GNRMC,100000.00,A,4739.0,N,12219.0,W,10.0,90.0,060826,,,A";
const GGA: &str = "GNGGA,100000.00,4739.0,N,12219.0,W,1,17,0.8,77.5,M,-21.6,M,,";

#[test]
fn one_moment_is_one_position() {
    let records = decode(&[RMC, "GNVTG,90.0,T,,M,10.0,N,18.5,K,A", GGA, "GPGSV,1,1,01,01,19,045,31"]);
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!(
        reading(record),
        serde_json::json!({
            "time": "2026-08-06T10:00:00.000000Z", "fix": "gnss", "lat_deg": 47.65, "lon_deg": -122.316666667,
            "stale_lat_deg": null, "stale_lon_deg": null, "altitude_m": 77.5, "speed_mps": 5.144, "course_deg": 90.0,
            "satellites": 17, "hdop": 0.8, "accuracy_m": null, "odometer_m": null,
        })
    );
    assert_eq!(record.event_time, Some(UnixMicros(1_786_010_400_000_000)));
    assert_eq!((record.device.as_str(), record.content_type), ("receiver", ContentType::Json));
}

#[test]
fn ten_hertz_with_lost_sentences_keeps_moments_apart() {
    let gga = |tenth: u32| GGA.replace("00.00", &format!("00.{tenth}0"));
    let rmc = |tenth: u32| RMC.replace("00.00", &format!("00.{tenth}0"));
    let sentences = [
        rmc(0),
        gga(0),
        rmc(1),
        gga(1),
        /* rmc(2) lost */ gga(2),
        /* gga(3) lost */ rmc(3),
        rmc(4),
        gga(4),
    ];
    let sentences: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let times = [0, 1, 2, 3, 4].map(|tenth| format!("2026-08-06T10:00:00.{tenth}00000Z"));
    check(&sentences, &times.each_ref().map(|time| (time.as_str(), "gnss")));
}

#[test]
fn repeated_sentence_begins_a_moment_even_without_a_time() {
    let none = ["GPRMC,,V,,,,,,,,,,N", "GPGGA,,,,,,0,,,,,,,,"];
    check(&[none[0], none[1], none[0], none[1], none[0]], &[("-", "none"); 3]);
    // Ten fixes a second, times in whole seconds.
    check(&[RMC, GGA, RMC, GGA], &[("2026-08-06T10:00:00.000000Z", "gnss"); 2]);
}

#[test]
fn several_systems_of_one_moment_are_one_position() {
    let other = "GLGGA,100000.00,,,,,0,00,99.9,,M,,M,,";
    for sentences in [[other, GGA, RMC], [GGA, other, RMC]] {
        let records = decode(&sentences);
        assert_eq!(records.len(), 1);
        assert_eq!(reading(&records[0])["lat_deg"], 47.65);
        assert_eq!(reading(&records[0])["satellites"], 17);
    }
}

#[test]
fn warned_position_is_no_fix_and_stays_as_stale() {
    let records = decode(&["GNRMC,100000.00,V,4739.0,N,12219.0,W,10.0,90.0,060826,,,N"]);
    let reading = reading(&records[0]);
    assert_eq!(
        (&reading["fix"], &reading["lat_deg"], &reading["speed_mps"]),
        (&"none".into(), &Json::Null, &Json::Null)
    );
    assert_eq!(
        (&reading["stale_lat_deg"], &reading["time"]),
        (&47.65.into(), &"2026-08-06T10:00:00.000000Z".into())
    );
    assert_eq!(records[0].event_time, None, "a receiver without a fix may make its time up");
    // One kind of sentence is enough to deny.
    check(&[RMC, &GGA.replace("W,1", "W,0")], &[("2026-08-06T10:00:00.000000Z", "none")]);
}

#[test]
fn impossible_dates_and_positions_are_no_time_and_no_fix() {
    check(&[&RMC.replace("060826", "310226")], &[("-", "gnss")]);
    for place in ["9939.0,N,12219.0,W", "4739.0,N,18119.0,W", "4761.0,N,12219.0,W", "4739.0,X,12219.0,W"] {
        let sentence = RMC.replace("4739.0,N,12219.0,W", place);
        check(&[&sentence], &[("2026-08-06T10:00:00.000000Z", "none")]);
        assert_eq!(decode(&[&sentence])[0].event_time, None, "{place}");
    }
}

#[test]
fn date_goes_over_midnight_with_sentences_that_have_none() {
    let gga = |time: &str| GGA.replace("100000.00", time);
    check(
        &[
            "GNZDA,235958.00,31,12,2016,00,00",
            &gga("235959.00"),
            &gga("235960.00"),
            &gga("000000.00"),
            &gga("000001.00"),
        ],
        &[
            ("2016-12-31T23:59:59.000000Z", "gnss"),
            ("2017-01-01T00:00:00.000000Z", "gnss"),
            ("2017-01-01T00:00:00.000000Z", "gnss"),
            ("2017-01-01T00:00:01.000000Z", "gnss"),
        ],
    );
    check(&[GGA], &[("-", "gnss")]);
}

#[test]
fn moment_is_complete_after_silence() {
    let mut decoder = decoder(Value::Raw);
    let received = Received { at: UnixMicros(7), ..Default::default() };
    let (rmc, gga) = (sentence(RMC), sentence(GGA));
    assert_eq!(decoder.next_deadline(), None);
    assert!(decoder.push(at_ms(0), received, rmc.as_bytes()).is_empty());
    assert!(decoder.push(at_ms(200), Received::default(), gga.as_bytes()).is_empty());
    assert_eq!(decoder.next_deadline(), Some(at_ms(500)));
    assert!(decoder.expire(at_ms(499)).is_empty());
    let records = decoder.expire(at_ms(500));
    assert_eq!(records.len(), 1);
    assert_eq!((&records[0].value[..], records[0].received), ((rmc + &gga).as_bytes(), received));
    assert_eq!((decoder.next_deadline(), records[0].content_type), (None, ContentType::Nmea));
    // The same with the next read instead of a timer.
    decoder.push(at_ms(1000), received, sentence(GGA).as_bytes());
    assert_eq!(decoder.push(at_ms(1400), received, b"$").len(), 1);
}

#[test]
fn sentences_that_are_no_position_are_records_of_their_own() {
    let records =
        decode(&["GPTXT,01,01,02,ANTSTATUS=OK", "PUBX,00,x", "GPGSV,1,1,01,01,19,045,31", "GNGST,,,,,,,,"]);
    let values: Vec<_> =
        records.iter().map(|record| (record.stream.as_str(), record.value.clone())).collect();
    let both = sentence("GPGSV,1,1,01,01,19,045,31") + &sentence("GNGST,,,,,,,,");
    let expected = [sentence("GPTXT,01,01,02,ANTSTATUS=OK"), sentence("PUBX,00,x"), both];
    assert_eq!(values, expected.map(|text| ("raw", Bytes::from(text))));
}

#[test]
fn satellites_alone_do_not_grow_a_moment_for_ever() {
    let line = sentence("GPGSV,1,1,01,01,19,045,31");
    let mut decoder = decoder(Value::Raw);
    let mut records = Vec::new();
    for _ in 0..1000 {
        records.extend(decoder.push(at_ms(0), Received::default(), line.as_bytes()));
    }
    assert!(records.iter().all(|record| record.value.len() <= 8192));
    records.extend(decoder.finish());
    assert_eq!(records.iter().map(|record| record.value.len()).sum::<usize>(), 1000 * line.len());
}

#[test]
fn damaged_sentences_are_dead_letters() {
    let mut decoder = decoder(Value::Json);
    let bytes = "$GPGGA,1,2,3*00\r\n".repeat(25) + "$GPGGA,1,2,3\r\n";
    let records = decoder.push(at_ms(0), Received::default(), bytes.as_bytes());
    assert_eq!(records.len(), 26);
    assert_eq!(records[0].stream.as_str(), crate::config::DEAD_LETTER_STREAM);
    assert_eq!(records[0].value, "$GPGGA,1,2,3*00");
    assert_eq!(records[0].headers[0].value, "wrong checksum");
    assert_eq!(records[0].headers[1].value, "serial:/dev/ttyTEST");
    assert_eq!(
        (&records[25].value[..], &records[25].headers[0].value[..]),
        (&b"$GPGGA,1,2,3"[..], &b"no checksum"[..])
    );
    assert_eq!((decoder.counters().wrong_checksums, decoder.counters().no_checksums), (25, 1));
}

#[test]
fn last_line_that_was_cut_is_no_record() {
    let mut decoder = decoder(Value::Json);
    assert!(decoder.push(at_ms(0), Received::default(), b"$GNRMC,100000.00,A,4739").is_empty());
    assert!(decoder.finish().is_empty());
    assert_eq!(decoder.counters().skipped_bytes, 23);
}

proptest! {
    #[test]
    fn any_bytes_decode_without_panic(reads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..10)) {
        let mut decoder = decoder(Value::Json);
        for (i, read) in (0..).zip(&reads) {
            decoder.push(at_ms(i * 100), Received::default(), read);
        }
        decoder.finish();
    }

    /// Fields of any text with a right checksum: the parsers are reached, not only the framer.
    #[test]
    fn any_fields_decode_without_panic_and_none_is_lost(
        texts in prop::collection::vec(
            ("(GP|GN|P|PQ)(RMC|GGA|GLL|GNS|VTG|ZDA|GSV|XYZ)", "[0-9A-Za-z.,+ -]{0,90}"),
            1..10,
        ),
    ) {
        let mut decoder = decoder(Value::Raw);
        let bytes: String = texts.iter().map(|(address, data)| sentence(&format!("{address},{data}"))).collect();
        let mut records = decoder.push(at_ms(0), Received::default(), bytes.as_bytes());
        records.extend(decoder.finish());
        let lines = records.iter().flat_map(|record| record.value.split(|&b| b == b'\n')).filter(|l| !l.is_empty());
        prop_assert_eq!(lines.count(), texts.len());
    }
}
