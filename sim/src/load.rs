//! The load: steps a model, spreads its readings evenly over time, and hands them to a transport.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, Utc};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::MissedTickBehavior;

use crate::building::RoomReading;
use crate::ledger::{LedgerWriter, unix_micros};
use crate::tally::Tally;
use crate::traffic::VehicleReading;
use crate::transport::{Transport, mqtt, serial};

/// How finely the readings of a second are spread: finer than any batch window downstream, coarse enough to cost nothing.
const TICK: Duration = Duration::from_millis(5);
/// How often the progress bar moves and the ledger's buffer is handed to the operating system.
const PROGRESS: Duration = Duration::from_millis(250);

/// Arguments that `occupancy` and `traffic` share.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// Publish to this broker: mqtt://host:port or mqtt://user:password@host:port
    #[arg(long, value_name = "URL", required_unless_present = "serial", conflicts_with = "serial")]
    mqtt: Option<mqtt::BrokerUrl>,
    /// Make a serial line, a pseudo-terminal with this symbolic link, and speak the native protocol on it
    #[arg(long, value_name = "LINK")]
    serial: Option<PathBuf>,
    /// Number of devices: rooms or vehicles
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) devices: u32,
    /// Readings per second over all devices [default: one per device]
    #[arg(long)]
    rate: Option<f64>,
    /// How long to send, such as 20s, 5m or 1h [default: until interrupted]
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// The same seed gives the same readings
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Time stamp of the first reading, RFC 3339; later ones follow at the rate [default: now]
    #[arg(long)]
    start: Option<DateTime<Utc>>,
    /// Write each reading sent and each acknowledgement received to this file
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// At the end, wait this long for outstanding acknowledgements
    #[arg(long, default_value = "30s", value_parser = duration)]
    drain: Duration,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    mqtt_args: mqtt::MqttArgs,
    #[command(flatten)]
    serial_args: serial::SerialArgs,
}

/// A device of a model.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its id, which is the Kafka key of its MQTT readings.
    pub id: String,
    /// Where its MQTT readings go.
    pub mqtt_topic: String,
}

/// What a device reports at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading {
    /// Of a room.
    Room(RoomReading),
    /// Of a vehicle.
    Vehicle(VehicleReading),
}

impl Reading {
    /// Appends the reading as a JSON object with `device`, `seq` and `time` (RFC 3339 UTC, microseconds). Nothing is escaped: ids are plain ASCII.
    pub fn write_json(&self, device: &str, seq: u64, time: &str, out: &mut Vec<u8>) {
        match self {
            Self::Room(reading) => reading.write_json(device, seq, time, out),
            Self::Vehicle(reading) => reading.write_json(device, seq, time, out),
        }
    }
}

/// A model of devices, without clock and I/O: the same seed and steps give the same readings.
pub trait Model {
    /// The agent's stream for these readings.
    const STREAM: &'static str;

    /// The devices; they never change.
    fn devices(&self) -> &[Device];

    /// Advances by `dt` seconds.
    fn step(&mut self, dt: f64);

    /// What the device at this index sees now. Called once per device between two steps.
    fn read(&mut self, device: usize) -> Reading;
}

/// One reading on its way to a transport.
#[derive(Debug, Clone, Copy)]
pub struct Outgoing {
    /// Index of the device.
    pub device: u32,
    /// Per device, from 1, dense.
    pub seq: u64,
    /// Event time, Unix microseconds.
    pub time_micros: u64,
    /// What it says.
    pub reading: Reading,
}

/// The readings of a model in the order and with the stamps in which they are sent: reading `n` is due `n / rate` seconds after the start.
#[derive(Debug)]
pub struct Schedule<M> {
    model: M,
    rate: f64,
    start_micros: u64,
    sent: u64,
}

impl<M: Model> Schedule<M> {
    /// `rate` in readings per second over all devices, above zero.
    pub fn new(model: M, rate: f64, start_micros: u64) -> Self {
        Self { model, rate, start_micros, sent: 0 }
    }

    /// Number of readings due after `elapsed`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    pub fn due(&self, elapsed: Duration) -> u64 {
        (elapsed.as_secs_f64() * self.rate) as u64
    }

    /// The next reading. Before each round over the devices the model advances by what the round takes.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
    pub fn produce(&mut self) -> Outgoing {
        let devices = self.model.devices().len() as u64;
        let (round, device) = (self.sent / devices, self.sent % devices);
        if device == 0 && round > 0 {
            self.model.step(devices as f64 / self.rate);
        }
        let device = u32::try_from(device).expect("the number of devices is bounded by the arguments");
        let time_micros = self.start_micros + (self.sent as f64 * 1e6 / self.rate) as u64;
        self.sent += 1;
        Outgoing { device, seq: round + 1, time_micros, reading: self.model.read(device as usize) }
    }

    /// Moves the stamps of the readings to come, because sending them had to wait.
    fn delay(&mut self, by: Duration) {
        self.start_micros += u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
    }
}

/// Sends the model's readings until the duration is over or a signal comes, waits for the acknowledgements and prints the summary.
///
/// The exit code is 0 when all that was sent is acknowledged, else 1.
///
/// # Errors
/// Wrong arguments, a broker that cannot be reached at the start, a pseudo-terminal that cannot be made, a ledger that cannot be written.
pub async fn run<M: Model>(args: LoadArgs, model: M) -> anyhow::Result<ExitCode> {
    let rate = args.rate.unwrap_or(f64::from(args.devices));
    ensure!(rate.is_finite() && rate > 0.0, "--rate must be above zero");
    let mut stop = StopSignal::new()?;

    let ledger = args.ledger.as_ref().map(|path| {
        LedgerWriter::create(path).with_context(|| format!("cannot create ledger {}", path.display()))
    });
    let ledger = ledger.transpose()?;
    let devices = model.devices().to_vec();
    let mut transport = match (&args.mqtt, &args.serial) {
        (Some(url), _) => {
            let ids = devices.iter().map(|device| device.id.clone()).collect();
            let tally = Tally::new(M::STREAM, ids, ledger.clone());
            Transport::Mqtt(mqtt::Fleet::start(url, &args.mqtt_args, &devices, tally, args.seed).await?)
        }
        (None, Some(link)) => {
            let tally = Tally::new(
                M::STREAM,
                serial::device_ids(M::STREAM, args.seed, devices.len()),
                ledger.clone(),
            );
            let lines =
                serial::Lines::start(link, &args.serial_args, M::STREAM, devices.len(), tally, args.seed)?;
            Transport::Serial(lines)
        }
        (None, None) => bail!("one of --mqtt and --serial is needed"),
    };
    let tally = transport.tally();

    let begin =
        args.start.map_or_else(unix_micros, |start| u64::try_from(start.timestamp_micros()).unwrap_or(0));
    let mut schedule = Schedule::new(model, rate, begin);
    let total = args.duration.map(|duration| schedule.due(duration));
    let progress = progress_bar(total);
    let began = Instant::now();
    generate(&mut schedule, &mut transport, total, args.start.is_none(), &progress, &ledger, &mut stop)
        .await?;
    let generated = began.elapsed();

    progress.set_message("waiting for acknowledgements");
    transport.drain(args.drain, &mut stop).await;
    progress.finish_and_clear();
    if let Some(ledger) = ledger {
        ledger.close().context("the ledger is incomplete")?;
    }
    let summary = tally.summary(generated);
    if args.json {
        println!("{}", summary.to_json());
    } else {
        print!("{summary}");
    }
    Ok(if summary.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Paces the schedule into the transport. Time spent waiting for the transport is not made up for: the load shifts, it does not burst.
async fn generate<M: Model>(
    schedule: &mut Schedule<M>,
    transport: &mut Transport,
    total: Option<u64>,
    shift_stamps: bool,
    progress: &ProgressBar,
    ledger: &Option<LedgerWriter>,
    stop: &mut StopSignal,
) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_progress = Instant::now();
    let mut origin = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = stop.wait() => return Ok(()),
            _ = tick.tick() => {}
        }
        let due = schedule.due(origin.elapsed()).min(total.unwrap_or(u64::MAX));
        while schedule.sent < due {
            let outgoing = schedule.produce();
            if !transport.try_send(&outgoing) {
                let waiting = Instant::now();
                let stopped = tokio::select! {
                    biased;
                    () = stop.wait() => true,
                    () = transport.ready(outgoing.device) => false,
                };
                if stopped || !transport.try_send(&outgoing) {
                    return Ok(());
                }
                origin += waiting.elapsed();
                if shift_stamps {
                    schedule.delay(waiting.elapsed());
                }
            }
        }
        transport.flush();
        if last_progress.elapsed() >= PROGRESS {
            last_progress = Instant::now();
            progress.set_position(schedule.sent);
            if let Some(ledger) = ledger {
                ledger.flush().context("cannot write the ledger")?;
            }
        }
        if Some(schedule.sent) == total {
            return Ok(());
        }
    }
}

/// Drawn on a terminal alone: indicatif hides itself when standard error is something else.
fn progress_bar(total: Option<u64>) -> ProgressBar {
    const BOUNDED: &str = "{elapsed_precise} [{bar:40}] {human_pos}/{human_len} readings, {per_sec} {msg}";
    const ENDLESS: &str = "{elapsed_precise} {spinner} {human_pos} readings, {per_sec} {msg}";
    let template = if total.is_some() { BOUNDED } else { ENDLESS };
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    total.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style)
}

/// SIGINT and SIGTERM. The first ends the generator, a second one the wait for acknowledgements.
#[derive(Debug)]
pub struct StopSignal {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignal {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next signal; cancel safe.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Parses `250ms`, `20s`, `5m` or `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 250ms, 20s, 5m or 1h");
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::building::Building;
    use crate::stamp::Stamps;
    use crate::traffic::Town;

    const START: u64 = 1_793_336_706_000_000;

    fn payloads<M: Model>(model: M, rate: f64, readings: usize) -> Vec<u8> {
        let ids: Vec<String> = model.devices().iter().map(|device| device.id.clone()).collect();
        let mut schedule = Schedule::new(model, rate, START);
        let mut stamps = Stamps::default();
        let mut out = Vec::new();
        for _ in 0..readings {
            let next = schedule.produce();
            let time = stamps.format(next.time_micros);
            next.reading.write_json(&ids[next.device as usize], next.seq, time, &mut out);
            out.push(b'\n');
        }
        out
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let building = |seed| payloads(Building::new(30, seed, 9.0 * 3600.0, 60.0), 30.0, 3000);
        assert_eq!(building(1), building(1));
        assert_ne!(building(1), building(2));
        let town = |seed| payloads(Town::new(40, seed, 12.0, [60.0, 24.0]), 200.0, 3000);
        assert_eq!(town(1), town(1));
        assert_ne!(town(1), town(2));
    }

    #[test]
    fn readings_are_dense_per_device_and_evenly_stamped() {
        let mut schedule = Schedule::new(Town::new(4, 1, 12.0, [60.0, 24.0]), 8.0, START);
        assert_eq!(schedule.due(Duration::from_secs(3)), 24);
        for n in 0..24u64 {
            let next = schedule.produce();
            assert_eq!((u64::from(next.device), next.seq), (n % 4, n / 4 + 1));
            assert_eq!(next.time_micros, START + n * 125_000);
        }
    }

    #[test]
    fn payloads_are_json_with_device_sequence_and_time() {
        for bytes in [
            payloads(Building::new(12, 1, 9.0 * 3600.0, 1.0), 12.0, 24),
            payloads(Town::new(12, 1, 12.0, [60.0, 24.0]), 12.0, 24),
        ] {
            for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
                let value: serde_json::Value = serde_json::from_slice(line).unwrap();
                assert!(value["device"].is_string() && value["seq"].is_u64());
                assert_eq!(value["time"].as_str().unwrap().len(), 27);
            }
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        for wrong in ["", "5", "s", "-1s", "5 s", "5d", "1e999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
