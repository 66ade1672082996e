//! What is no frame and no sentence, for hours.

use super::*;
use crate::{record::Received, source::metrics::SourceMetrics};

/// What a device sends that talks at another bit rate: anything, or edges of long bits.
fn garbage(len: usize) -> impl FnMut() -> Vec<u8> {
    let mut state = 1_u64;
    move || {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        let edges = next() < 128;
        let byte =
            |byte: u8| if edges { [0, 0x80, 0xe0, 0xf8, 0xfe, 0xff][usize::from(byte % 6)] } else { byte };
        (0..len).map(|_| byte(next())).collect()
    }
}

#[test]
fn hours_of_garbage_cost_one_log_line_a_minute_and_no_memory() {
    let native = NativeConfig {
        source: "test".into(),
        port: "port".into(),
        value: Value::Raw,
        record_bytes_max: RECORD_BYTES_MAX,
    };
    let nmea = NmeaRoute {
        port: "port".into(),
        stream: StreamName::new("positions").expect("a name"),
        raw_stream: StreamName::new("nmea-raw").expect("a name"),
        device: DeviceId::new("tram-7").expect("an id"),
        value: Value::Json,
    };
    let lines: [Box<dyn Line>; 2] =
        [Box::new(NativeLine::new(native, &Remembered::new())), Box::new(NmeaLine::new(nmea))];
    for mut line in lines {
        let metrics = SourceMetrics::register(&mut prometheus_client::registry::Registry::default());
        let (mut counters, mut noise, mut garbage) = (metrics.source("test"), Noise::default(), garbage(480));
        let (mut told, mut rejected) = (0, 0);
        // A second of 4 800 baud each time, for four hours; nobody takes what comes of it.
        for second in 0..4 * 3600 {
            let now = Now {
                monotonic: Monotonic::from_start(Duration::from_secs(second)),
                received: Received::default(),
            };
            line.receive(now, &garbage());
            line.expire(now);
            let mut out = BytesMut::new();
            line.transmit(now, &mut out);
            assert!(out.is_empty(), "nobody is answered");
            let counted = line.count(&mut counters);
            rejected += counted;
            told += noise.due(now.monotonic, counted).map_or(0, |_| 1);
        }
        assert!((1..=4 * 60).contains(&told), "{told} lines in the log");
        assert!(rejected > 10_000, "{rejected} counted");
        let kept: usize = line.take().records.iter().map(Record::size_bytes).sum();
        assert!(kept <= 64 * 1024, "{kept} bytes kept");
    }
}
