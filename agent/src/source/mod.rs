//! Sources: bytes in, records into the [`Intake`], acknowledgements out.
//!
//! Each source is one task that owns its connection, and answers its device only for an
//! [`Acknowledgement`](crate::intake::Acknowledgement).

mod answered;
pub mod backoff;
pub mod http;
pub mod listener;
pub mod metrics;
pub mod mqtt;
pub mod serial;
#[cfg(test)]
pub(crate) mod testing;
mod window;

use std::{fmt, path::PathBuf, pin::Pin, sync::Arc};

use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use crate::{
    config::ServerTls,
    env::{Clock, Entropy},
    intake::Intake,
    kept::Kept,
    log::Remembered,
    secret::Unreadable,
    tls,
};
use metrics::{SourceCounters, SourceHealth, SourceWatch};

/// What `future` is at once, if it is; for drivers of the simulation, which wait for nothing.
#[cfg(any(test, feature = "simulation"))]
pub(crate) fn ready<F: Future>(future: F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

/// A running source.
pub type SourceFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A source that is not running yet.
pub trait Source: Send {
    /// Its name in logs and metrics, unique.
    fn name(&self) -> &str;

    /// Runs until `context.shutdown` turns true or the pipeline ends. Answers its devices only for an
    /// [`Acknowledgement`](crate::intake::Acknowledgement); what it has not answered, they send again.
    fn run(self: Box<Self>, context: SourceContext) -> SourceFuture;
}

/// What the pipeline gives a source to run with.
pub struct SourceContext {
    /// Where records go and acknowledgements come from.
    pub intake: Intake,
    /// What the source has noted in its lives before ([`Intake::notes`]).
    pub remembered: Remembered,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Jitter.
    pub entropy: Box<dyn Entropy>,
    /// The source's own metrics.
    pub counters: SourceCounters,
    /// Where the source says how it is.
    pub health: SourceHealth,
    /// Becomes `true` when the source shall take no more, answer what it took and return.
    pub shutdown: watch::Receiver<bool>,
    /// Changes when the operator asks to read files again.
    pub reread: watch::Receiver<()>,
}

impl SourceContext {
    /// Reads files, and reads them again as long as the result is kept: [`Kept::open`].
    ///
    /// # Errors
    /// [`Unreadable`], of the first reading.
    pub(crate) fn keep<T: Send + Sync + 'static>(
        &self,
        key: &str,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, Unreadable> + Send + 'static,
    ) -> Result<Kept<T>, Unreadable> {
        let told = SourceWatch { health: self.health.clone(), failures: self.counters.failures.clone() };
        Kept::open(key.to_owned(), files, read, self.reread.clone(), told)
    }

    /// The certificates of `tls`, as [`keep`](Self::keep) keeps them: a new one is for the connections that come.
    ///
    /// # Errors
    /// As of `keep`.
    pub(crate) fn keep_tls(&self, tls: &ServerTls) -> Result<Kept<ServerConfig>, Unreadable> {
        let (key, files) = (tls.certificate.cert_file.key.clone(), tls::files(tls));
        let tls = tls.clone();
        self.keep(&key, files, move || tls::server(&tls))
    }
}

impl fmt::Debug for SourceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceContext").field("intake", &self.intake).finish_non_exhaustive()
    }
}
