//! Telemetry: the log of the agent itself, its metrics and its health.

pub mod backlog;
pub mod clock;
pub mod health;
pub mod http;
pub mod process;
pub mod service;

use std::io;

use tracing_subscriber::{
    Registry,
    filter::{LevelFilter, Targets},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::config::{LogFormat, Telemetry};

/// The level of the agent's log, which may change while it runs.
#[derive(Debug)]
pub struct LogLevel(reload::Handle<Targets, Registry>);

impl LogLevel {
    /// A filter at `level`, and the way to change it for as long as the filter is there.
    pub(crate) fn new(level: &str) -> (reload::Layer<Targets, Registry>, Self) {
        let (layer, handle) = reload::Layer::new(filter(level));
        (layer, Self(handle))
    }

    /// Changes to `level`, which was checked with the config.
    ///
    /// # Errors
    /// The filter is gone.
    pub fn set(&self, level: &str) -> Result<(), reload::Error> {
        self.0.reload(filter(level))
    }

    #[cfg(test)]
    pub(crate) fn current(&self) -> String {
        self.0.with_current(ToString::to_string).expect("the test keeps the filter")
    }
}

/// `level` was checked with the config; one that does not parse is `info`.
fn filter(level: &str) -> Targets {
    level.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO))
}

/// Sends what the agent logs to standard error, where journald or a terminal takes it. A second call changes nothing.
pub fn init_logging(config: &Telemetry) -> LogLevel {
    // librdkafka says through the same log what its own library has to say.
    let (filter, level) = LogLevel::new(&config.log_level);
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
    level
}
