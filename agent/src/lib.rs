//! Wayside: takes sensor and vehicle-position frames from serial lines and MQTT, makes each durable before it is
//! acknowledged, and replicates them to Kafka whatever the uplink does.
//!
//! # Layout: the journey of a record, one module per word
//! * [`source`]: bytes in, acknowledgements out
//! * [`decode`]: device, stream, event time and the value as Kafka gets it
//! * [`intake`]: their way into the commit, and the acknowledgement's way back
//! * [`partition`]: a device always in the same place
//! * [`batch`]: records of one (stream, partition) together
//! * [`commit`]: many batches, one sync, then the acknowledgement
//! * [`log`]: epochs on the disk
//! * [`replicate`]: from the log to Kafka
//!
//! [`pipeline`] joins them from [`parts`]. Around it: [`access`], [`config`], [`secret`], `kept`, `tls`, [`record`], [`mod@env`], [`telemetry`],
//! [`cli`].

pub mod access;
pub mod batch;
pub mod cli;
pub mod commit;
pub mod config;
pub mod decode;
pub mod env;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod gap;
pub mod intake;
pub(crate) mod kept;
pub mod log;
pub mod partition;
pub mod parts;
pub mod pipeline;
pub mod record;
pub mod replicate;
pub mod secret;
#[cfg(any(test, feature = "simulation"))]
#[doc(hidden)]
pub mod simulation;
pub mod source;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub(crate) mod tls;
