//! Sources on pseudo terminals, with the device's end of the link, or a receiver, played by the test.

#![allow(clippy::disallowed_methods, reason = "tests of ports run in real time")]

mod garbage;
mod restarts;

use std::{
    fs::{self, Permissions},
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt as _, symlink},
    },
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{OptionalActions, tcgetattr, tcsetattr},
};
use tempfile::TempDir;
use tokio::io::unix::AsyncFd;
use wayside_protocol::{
    frame::{FRAME_LEN_DEFAULT, max_wire_len},
    link::device::{Config, Device, Overflow},
    payload::{Raw, schema},
};

use super::*;
use crate::{
    config::{Backoff, DEAD_LETTER_STREAM, GAPS_STREAM, Value},
    log::Remembered,
    record::{ContentType, DeviceId, StreamName},
    source::testing::{FakePipeline, on_one_thread, within},
    testing::without_privileges,
};

const INTAKE_BYTES: usize = 1 << 20;
const RECORD_BYTES_MAX: usize = 64 * 1024;

/// A place in the file system where a port may be plugged in.
struct Socket {
    dir: TempDir,
}

impl Socket {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("port")
    }

    /// Plugs in a cable; it is unplugged when dropped.
    fn plug(&self) -> Cable {
        let _ = std::fs::remove_file(self.path());
        Cable::plug(&self.path())
    }

    fn config(&self, protocol: SerialProtocol, value: Value) -> SerialSource {
        SerialSource {
            name: "test".into(),
            path: self.path(),
            protocol,
            baud: 115_200,
            parity: Parity::None,
            flow_control: FlowControl::None,
            value,
            reopen: Backoff { min: Duration::from_millis(1), max: Duration::from_millis(20) },
        }
    }

    fn native(&self) -> FakePipeline {
        self.native_again(Remembered::new())
    }

    /// As `native`, after a life that noted `remembered`.
    fn native_again(&self, remembered: Remembered) -> FakePipeline {
        let config = self.config(SerialProtocol::Native, Value::Raw);
        FakePipeline::start_again(INTAKE_BYTES, remembered, |context| run(config, RECORD_BYTES_MAX, context))
    }

    fn nmea(&self, value: Value) -> FakePipeline {
        let config = self.config(nmea(), value);
        FakePipeline::start(INTAKE_BYTES, |context| run(config, RECORD_BYTES_MAX, context))
    }
}

fn nmea() -> SerialProtocol {
    SerialProtocol::Nmea {
        stream: StreamName::new("positions").expect("a name"),
        raw_stream: StreamName::new("nmea-raw").expect("a name"),
        device: DeviceId::new("tram-7").expect("an id"),
    }
}

/// The device's end of a pseudo terminal.
struct Cable {
    master: AsyncFd<OwnedFd>,
}

impl Cable {
    fn plug(path: &Path) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a pseudo terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        // No echo before the source has opened it.
        let mut termios = tcgetattr(&master).expect("attributes");
        termios.make_raw();
        tcsetattr(&master, OptionalActions::Now, &termios).expect("raw");
        rustix::io::ioctl_fionbio(&master, true).expect("not blocking");
        let name = ptsname(&master, Vec::new()).expect("a name");
        symlink(name.to_str().expect("UTF-8"), path).expect("a link");
        #[allow(
            deprecated,
            reason = "its successor is unsafe; an `OwnedFd` stays open as long as it is registered"
        )]
        let master = AsyncFd::new(master).expect("registers");
        Self { master }
    }

    async fn write(&self, mut bytes: &[u8]) {
        within("the port to take bytes", async {
            while !bytes.is_empty() {
                let mut ready = self.master.writable().await.expect("writable");
                match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                    Ok(written) => bytes = &bytes[written.expect("writes")..],
                    // After a hangup tokio takes the end for ready for ever, though it comes back with the next reader.
                    Err(_would_block) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        })
        .await;
    }

    /// Reads what has come; waits for at least one byte.
    async fn read(&self) -> Vec<u8> {
        let mut buffer = vec![0; 4096];
        loop {
            let mut ready = self.master.readable().await.expect("readable");
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut buffer[..])?)) {
                Ok(Ok(size)) => {
                    buffer.truncate(size);
                    return buffer;
                }
                // EIO while nobody has the other end open; and see `write`.
                Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// A microcontroller.
struct Microcontroller {
    device: Device,
    start: Instant,
}

impl Microcontroller {
    fn new(uid: u64, boot: u32) -> Self {
        let config = Config { uid, firmware: 1, overflow: Overflow::DropOldest };
        Self { device: Device::new(config, boot), start: Instant::now() }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).expect("a short test")
    }

    fn reading(&mut self, body: &[u8]) {
        self.device.send_payload(self.now_us(), &Raw { port: 3, bytes: body }).expect("room");
    }

    /// Talks on `cable` until `done`.
    async fn talk(&mut self, cable: &Cable, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        within(what, async {
            while !done(self) {
                let mut frame = [0; max_wire_len(FRAME_LEN_DEFAULT)];
                let now_us = self.now_us();
                while let Some(size) = self.device.poll_transmit(now_us, &mut frame) {
                    cable.write(&frame[..size]).await;
                }
                let wait = Duration::from_micros(self.device.next_deadline().saturating_sub(now_us));
                // `done` may depend on more than the line; and the source needs its turn.
                let wait = wait.clamp(Duration::from_millis(1), Duration::from_millis(5));
                if let Ok(bytes) = timeout(wait, cable.read()).await {
                    self.device.receive(self.now_us(), &bytes, |_, _| {});
                }
            }
        })
        .await;
    }
}

#[test]
fn readings_come_in_order_and_are_acknowledged_only_after_the_commit() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut pipeline = socket.native();
        let mut mcu = Microcontroller::new(0xabc, 7);
        for n in 0..4 {
            mcu.reading(&[n; 5]);
        }
        let mut records = Vec::new();
        mcu.talk(&cable, "four records", |_| {
            records.extend(pipeline.rest());
            records.len() >= 4
        })
        .await;
        let values: Vec<_> = records.iter().map(|record| record.value.to_vec()).collect();
        assert_eq!(values, [[0; 5], [1; 5], [2; 5], [3; 5]]);
        assert_eq!(records[0].device.as_str(), "0000000000000abc");
        assert_eq!(records[3].device_seq.zip(records[0].device_seq).map(|(b, a)| b - a), Some(3));
        // A resend that the gateway drops proves that the device has no acknowledgement.
        let resent = mcu.device.counters().resent;
        mcu.talk(&cable, "a resend", |mcu| mcu.device.counters().resent > resent).await;
        assert_eq!(mcu.device.counters().durable, 0);
        pipeline.acknowledge_all();
        mcu.talk(&cable, "the acknowledgement", |mcu| mcu.device.pending() == 0).await;
        assert_eq!(pipeline.rest(), []);
    });
}

#[test]
fn what_a_device_had_to_drop_becomes_a_gap_record_with_its_count() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut pipeline = socket.native();
        let mut mcu = Microcontroller::new(0xabc, 7);
        mcu.reading(b"known");
        mcu.talk(&cable, "the first reading", |mcu| {
            pipeline.rest();
            pipeline.acknowledge_all();
            mcu.device.pending() == 0
        })
        .await;
        // More than the ring holds, while nobody answers.
        for n in 0..100 {
            mcu.reading(&[n]);
        }
        let lost = mcu.device.counters().lost;
        assert!(lost > 0, "the ring holds 100 readings");
        let mut records = Vec::new();
        mcu.talk(&cable, "the gap and the rest", |mcu| {
            records.extend(pipeline.rest());
            pipeline.acknowledge_all();
            mcu.device.pending() == 0
        })
        .await;
        assert_eq!(records.len(), 101 - usize::try_from(lost).expect("few"));
        let gap: serde_json::Value = serde_json::from_slice(&records[0].value).expect("a gap comes first");
        let told = (&gap["reason"], &gap["count"], &gap["device"], &gap["boot"]);
        assert_eq!(told, (&"device_lost".into(), &lost.into(), &"0000000000000abc".into(), &7.into()));
        assert_eq!(records[0].stream.as_str(), GAPS_STREAM);
    });
}

#[test]
fn an_unplugged_cable_loses_and_repeats_nothing() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut pipeline = socket.native();
        let mut mcu = Microcontroller::new(1, 1);
        let mut records = Vec::new();
        mcu.reading(b"before");
        mcu.talk(&cable, "the first record", |_| {
            records.extend(pipeline.rest());
            !records.is_empty()
        })
        .await;
        drop(cable);
        pipeline.metric("wayside_source_connected{source=\"test\"} 0").await;
        assert!(pipeline.health.state().error.is_some());
        // Committed while the cable is out: the device does not know and sends it again.
        pipeline.acknowledge_all();
        mcu.reading(b"while out");
        let cable = socket.plug();
        mcu.talk(&cable, "the second record", |_| {
            records.extend(pipeline.rest());
            records.len() >= 2
        })
        .await;
        pipeline.acknowledge_all();
        mcu.talk(&cable, "the acknowledgement", |mcu| mcu.device.pending() == 0).await;
        let values: Vec<_> = records.iter().map(|record| record.value.clone()).collect();
        assert_eq!(values, ["before", "while out"]);
        assert_eq!(pipeline.rest(), []);
    });
}

#[test]
fn after_a_crash_a_device_begins_behind_what_is_stored_or_with_the_oldest_that_it_keeps() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut mcu = Microcontroller::new(1, 1);
        // The first life took its reading to the disk or did not; in neither case the device was told.
        for (was_stored, body, seen) in [(false, "first", 1), (false, "again", 2), (true, "stored", 3)] {
            let mut pipeline = socket.native();
            mcu.reading(body.as_bytes());
            let mut records = Vec::new();
            mcu.talk(&cable, "records", |_| {
                records.extend(pipeline.rest());
                records.last().is_some_and(|record| record.value == body)
            })
            .await;
            assert_eq!((records.len(), &records[0].value[..]), (seen, &b"first"[..]), "never acknowledged");
            pipeline.abort().await;
            if was_stored {
                let mut pipeline = socket.native_again(pipeline.remembered.clone());
                mcu.reading(b"new");
                let mut records = Vec::new();
                mcu.talk(&cable, "the new record and the acknowledgement of the others", |mcu| {
                    records.extend(pipeline.rest());
                    !records.is_empty() && mcu.device.pending() == 1
                })
                .await;
                assert_eq!((records.len(), &records[0].value[..]), (1, &b"new"[..]));
            }
        }
    });
}

#[test]
fn a_full_intake_holds_the_device_back_and_loses_nothing() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let config = socket.config(SerialProtocol::Native, Value::Raw);
        let mut pipeline = FakePipeline::start(600, |context| run(config, RECORD_BYTES_MAX, context));
        pipeline.keep_room();
        let mut mcu = Microcontroller::new(1, 1);
        for n in 0..8 {
            mcu.reading(&[n; 100]);
        }
        let mut records = Vec::new();
        let mut wanted = 1;
        while wanted <= 8 {
            mcu.talk(&cable, "the next records", |_| {
                records.extend(pipeline.rest());
                pipeline.acknowledge_all();
                if records.len() < wanted {
                    pipeline.free_room();
                    pipeline.keep_room();
                }
                records.len() >= wanted
            })
            .await;
            wanted = records.len() + 1;
        }
        mcu.talk(&cable, "the acknowledgements", |mcu| {
            pipeline.acknowledge_all();
            mcu.device.pending() == 0
        })
        .await;
        let values: Vec<_> = records.iter().map(|record| record.value[0]).collect();
        assert_eq!(values, (0..8).collect::<Vec<u8>>());
    });
}

#[test]
fn noise_is_counted_and_does_not_hide_what_follows() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut pipeline = socket.native();
        cable.write(&[[0x55; 300].as_slice(), &[0, 1, 2, 3, 0], &[0xff; 4000], &[0]].concat()).await;
        let mut mcu = Microcontroller::new(1, 1);
        mcu.reading(b"heard");
        let mut records = Vec::new();
        mcu.talk(&cable, "a record", |_| {
            records.extend(pipeline.rest());
            !records.is_empty()
        })
        .await;
        assert_eq!(records[0].value, "heard");
        pipeline.metric("wayside_source_rejected_total{source=\"test\",reason=\"too_long\"} 1").await;
    });
}

#[test]
fn a_shutdown_acknowledges_what_was_taken() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut pipeline = socket.native();
        let mut mcu = Microcontroller::new(1, 1);
        mcu.reading(b"last");
        let mut records = Vec::new();
        mcu.talk(&cable, "a record", |_| {
            records.extend(pipeline.rest());
            !records.is_empty()
        })
        .await;
        pipeline.shut_down();
        pipeline.urge().await;
        pipeline.acknowledge_all();
        mcu.talk(&cable, "the acknowledgement", |mcu| mcu.device.pending() == 0).await;
        pipeline.ended().await;
    });
}

const POSITION: &str = "$GPRMC,123519,A,4807.038,N,01131.000,E,022.4,084.4,230394,003.1,W*6A\r\n";
const AIS: &str = "!AIVDM,1,1,,A,14eG;o@034o8sd<L9i:a;WF>062D,0*7D\r\n";

#[test]
fn nmea_positions_and_other_sentences_go_to_their_streams() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut pipeline = socket.nmea(Value::Json);
        cable.write(b"garbage\xff\x00").await;
        cable.write(POSITION.as_bytes()).await;
        // Complete because its moment is over, without another byte.
        let (_, position) = pipeline.record().await;
        assert_eq!((position.stream.as_str(), position.device.as_str()), ("positions", "tram-7"));
        assert_eq!(position.content_type, ContentType::Json);
        cable.write(AIS.as_bytes()).await;
        let (_, sentence) = pipeline.record().await;
        assert_eq!((sentence.stream.as_str(), &sentence.value[..]), ("nmea-raw", AIS.as_bytes()));
        cable.write(POSITION.replace("*6A", "*6B").as_bytes()).await;
        pipeline.metric("wayside_source_rejected_total{source=\"test\",reason=\"wrong_checksum\"} 1").await;
    });
}

#[test]
fn nmea_goes_on_after_the_port_came_back() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut pipeline = socket.nmea(Value::Raw);
        cable.write(AIS.as_bytes()).await;
        pipeline.record().await;
        cable.write(&AIS.as_bytes()[..20]).await;
        drop(cable);
        pipeline.metric("wayside_source_connected{source=\"test\"} 0").await;
        let cable = socket.plug();
        cable.write(AIS.as_bytes()).await;
        assert_eq!(pipeline.record().await.1.value, AIS);
    });
}

#[test]
fn nmea_beyond_the_room_is_dropped_and_counted() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let config = socket.config(nmea(), Value::Raw);
        let mut pipeline = FakePipeline::start(1, |context| run(config, RECORD_BYTES_MAX, context));
        pipeline.keep_room();
        cable.write(AIS.as_bytes()).await;
        pipeline.record().await;
        for _ in 0..2000 {
            cable.write(AIS.as_bytes()).await;
        }
        let dropped = "wayside_source_dropped_total{source=\"test\",reason=\"intake_full\"}";
        pipeline.metric_like(dropped).await;
        pipeline.free_room();
        pipeline.record().await;
    });
}

#[test]
fn a_check_says_whether_a_port_can_be_read() {
    on_one_thread(async {
        let socket = Socket::new();
        let mut config = socket.config(SerialProtocol::Native, Value::Raw);
        let err = |config: &SerialSource| reach(config).expect_err("cannot be read");
        assert_eq!(err(&config), "No such file: is the device plugged in?");
        let cable = socket.plug();
        assert!(reach(&config).is_ok_and(|found| found.contains("free serial port")), "{:?}", reach(&config));
        let user =
            SerialStream::open(&builder(&config, &socket.path().display().to_string())).expect("opens");
        assert!(err(&config).contains(&format!("process {}", std::process::id())), "{}", err(&config));
        drop((user, cable));
        config.path = "/dev/null".into();
        assert_eq!(err(&config), "is no serial port");
        config.path = "/".into();
        assert_eq!(err(&config), "is no device");
    });
}

#[test]
fn a_port_that_cannot_be_opened_says_why_and_is_opened_once_it_can() {
    without_privileges(|| {
        on_one_thread(async {
            let socket = Socket::new();
            let pipeline = socket.native();
            let failure = "wayside_source_failures_total{source=\"test\"} ";
            let down = async |cause: &str| {
                let said = |error: &String| error.contains(cause);
                pipeline
                    .state(cause, |state| !state.connected && state.error.as_ref().is_some_and(said))
                    .await;
            };
            down("is the device plugged in?").await;
            symlink("/dev/null", socket.path()).expect("a link");
            down("is no serial port").await;

            let cable = socket.plug();
            let port = fs::canonicalize(socket.path()).expect("a port");
            fs::set_permissions(&port, Permissions::from_mode(0o0)).expect("ours");
            down("the agent's user must be in that group").await;
            fs::set_permissions(&port, Permissions::from_mode(0o600)).expect("ours");
            pipeline.state("an open port", |state| state.connected).await;
            drop(cable);

            // Of another place, so that the source cannot come first.
            let other = Socket::new();
            let cable = other.plug();
            let config = other.config(SerialProtocol::Native, Value::Raw);
            let user = builder(&config, &other.path().display().to_string()).open().expect("opens");
            fs::remove_file(socket.path()).expect("is there");
            symlink(fs::canonicalize(other.path()).expect("a port"), socket.path()).expect("a link");
            down(&format!("process {}", std::process::id())).await;
            drop(user);
            pipeline.state("an open port", |state| state.connected).await;
            pipeline.metric_where(failure, |line| line.starts_with(failure) && !line.ends_with(" 0")).await;
            drop(cable);
        });
    });
}

#[test]
fn frames_cut_overlong_or_full_of_nonsense_cost_themselves_alone() {
    on_one_thread(async {
        let socket = Socket::new();
        let cable = socket.plug();
        let mut pipeline = socket.native();
        let mut mcu = Microcontroller::new(0xabc, 7);
        let mut frame = [0; max_wire_len(FRAME_LEN_DEFAULT)];
        let mut other = Microcontroller::new(0xdef, 7);
        let size = other.device.poll_transmit(other.now_us(), &mut frame).expect("a greeting");
        cable.write(&[&frame[..size / 2], &[0], &[0xff; 4000], &[0]].concat()).await;
        let every_byte: Vec<u8> = (0..=u8::MAX).collect();
        for half in every_byte.chunks(128) {
            mcu.reading(half);
        }
        // The checksum is right, the contents are not what the schema says.
        let now_us = mcu.now_us();
        mcu.device.send(now_us, schema::VEHICLE_POSITION, 1, &[0xff; 40]).expect("room");
        mcu.reading(b"after");
        let mut records = Vec::new();
        mcu.talk(&cable, "four records", |_| {
            records.extend(pipeline.rest());
            records.len() >= 4
        })
        .await;
        pipeline.acknowledge_all();
        mcu.talk(&cable, "the acknowledgement", |mcu| mcu.device.pending() == 0).await;
        assert_eq!([&records[0].value[..], &records[1].value].concat(), every_byte);
        assert_eq!(
            (records[2].stream.as_str(), &records[2].value[..]),
            (DEAD_LETTER_STREAM, &[0xff; 40][..])
        );
        assert_eq!(records[3].value, "after");
        for counted in [
            "rejected_total{source=\"test\",reason=\"too_long\"} 1",
            "records_total{source=\"test\",stream=\"dead-letter\"} 1",
        ] {
            pipeline.metric(&format!("wayside_source_{counted}")).await;
        }
        pipeline.metric_like("wayside_source_rejected_total{source=\"test\",reason=\"c").await;
    });
}
