//! `wayside-sim replay`: plays recordings of real devices, in real time or faster.

mod hfp;
mod mqtt;
mod pace;
mod serial;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;

pub use self::{
    hfp::HfpMessage,
    pace::{Pacer, Speed},
};
use crate::{ledger::LedgerWriter, transport::mqtt::BrokerUrl};

/// Arguments of `wayside-sim replay`.
#[derive(Clone, Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("recording").required(true))]
pub struct Args {
    /// Recordings of HSL vehicle positions to publish, one message a line: RECEIVE-TIME TOPIC JSON.
    #[arg(long, value_name = "FILE", num_args = 1.., group = "recording", requires = "mqtt", conflicts_with = "nmea")]
    hfp: Vec<PathBuf>,
    /// Publish to this broker, QoS 1: mqtt://host:port or mqtt://user:password@host:port
    #[arg(long, value_name = "URL", conflicts_with = "nmea")]
    mqtt: Option<BrokerUrl>,
    /// Stream that the ledger names the vehicle positions by.
    #[arg(long, default_value = "vehicle-positions")]
    stream: String,
    /// Write each message published and each acknowledgement to this file.
    #[arg(long, value_name = "FILE", conflicts_with = "nmea")]
    ledger: Option<PathBuf>,
    /// Recording of a serial receiver: its bytes go out as they are.
    #[arg(long, value_name = "FILE", group = "recording", requires = "serial")]
    nmea: Option<PathBuf>,
    /// Make a serial line: a pseudo-terminal with this symbolic link. Playing begins when somebody opens it.
    #[arg(long, value_name = "LINK", conflicts_with = "mqtt")]
    serial: Option<PathBuf>,
    /// Bit rate of the serial line, at 10 bits a byte.
    #[arg(long, default_value_t = 115_200, value_parser = clap::value_parser!(u32).range(1..), requires = "nmea")]
    baud: u32,
    /// How many times faster than real time, or "max".
    #[arg(long, default_value = "1")]
    speed: Speed,
}

/// Runs `wayside-sim replay`: failure when a message was not acknowledged. Lines that cannot be read are counted,
/// reported and left out.
///
/// # Errors
/// A file, broker or serial line that cannot be used.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let (Some(file), Some(link)) = (&args.nmea, &args.serial) {
        let played = serial::play(file, link, args.baud, args.speed).await?;
        println!("{played} bytes played and read");
        return Ok(ExitCode::SUCCESS);
    }
    let url = args.mqtt.context("--hfp needs --mqtt")?;
    let ledger = args.ledger.as_ref().map(|path| {
        LedgerWriter::create(path).with_context(|| format!("cannot create ledger {}", path.display()))
    });
    let ledger = ledger.transpose()?;
    let outcome = mqtt::play(&args.hfp, &url, args.speed, &args.stream, ledger.as_ref()).await?;
    if let Some(ledger) = ledger {
        ledger.close().context("the ledger is incomplete")?;
    }
    println!(
        "{} messages published, {} acknowledged, {} lines left out",
        outcome.published, outcome.acknowledged, outcome.bad_lines
    );
    Ok(if outcome.acknowledged == outcome.published { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
