//! Telemetry: the log of the agent itself, its metrics and its health.

pub mod health;
pub mod http;
pub mod process;
pub mod service;

use std::io;

use tracing_subscriber::{EnvFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogFormat, Telemetry};

/// Sends what the agent logs to standard error, where journald or a terminal takes it.
///
/// `level` was checked with the config; one that does not parse is `info`. A second call changes nothing.
pub fn init_logging(config: &Telemetry) {
    // librdkafka says through the same log what its own library has to say.
    let filter = EnvFilter::try_new(&config.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    // Fails only when a subscriber is there already, as in tests.
    let _ = match config.log_format {
        LogFormat::Logfmt => {
            registry.with(tracing_logfmt::builder().layer().with_writer(io::stderr)).try_init()
        }
        LogFormat::Json => registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(io::stderr))
            .try_init(),
    };
}
