//! What the service manager hears, and when it hears nothing any more: systemd's `sd_notify` protocol, a datagram of
//! `NAME=value` to the socket that `NOTIFY_SOCKET` names.
//!
//! # What the watchdog proves
//! `WATCHDOG=1` leaves when a question to the thread that owns the log has come back to a task of the I/O loop: both
//! made progress since the last one. A sync that never returns (a dying SD card does that), a deadlock or an endless
//! loop in either makes the service manager restart the agent, which loses nothing that was acknowledged.
//!
//! A disk that is full or fails is no hang: the commit comes back with an error and is tried again, and the log answers
//! in between. Kafka, brokers and ports that are away are no hang either; the status tells of them.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use tracing::{error, info, warn};

use super::health::HealthReport;

/// Longest time between two looks at the state: a status that is older tells little.
const INTERVAL_MAX: Duration = Duration::from_secs(10);

/// The service manager that started the agent, if one did.
#[derive(Debug, Default)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`). A socket that cannot be
    /// had is logged: systemd will say that the agent did not start.
    pub fn from_environment() -> Self {
        let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let ours = env::var("WATCHDOG_PID").map_or(true, |pid| pid == process::id().to_string());
        let micros = env::var("WATCHDOG_USEC").ok().filter(|_| ours).and_then(|micros| micros.parse().ok());
        let watchdog = micros.filter(|micros| *micros > 0).map(Duration::from_micros);
        Self::at(&socket, watchdog).unwrap_or_else(|cause| {
            warn!(?socket, %cause, "the service manager cannot be told anything (NOTIFY_SOCKET)");
            Self::default()
        })
    }

    /// The one that listens at `socket`, a path or `@` and an abstract name, and restarts an agent that is silent for
    /// as long as `watchdog`.
    ///
    /// # Errors
    /// The socket is not there.
    pub fn at(socket: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(socket)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A service manager that does not read must not stop the I/O loop.
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some(socket), watchdog })
    }

    fn tell(&self, state: &str) {
        if let Some(socket) = &self.socket
            && let Err(cause) = socket.send(state.as_bytes())
        {
            warn!(state, %cause, "the service manager does not listen");
        }
    }

    /// Tells that the agent is ready, from then on how it is and that it is alive, and once `stopping` turns true that
    /// it stops. Returns when the log has ended; at once if there is no service manager.
    ///
    /// `ask_log` asks the thread that owns the log for an answer; `health` looks at the state.
    pub async fn report(
        self,
        ask_log: impl Fn() -> oneshot::Receiver<()>,
        health: impl Fn() -> HealthReport,
        mut stopping: watch::Receiver<bool>,
    ) {
        if self.socket.is_none() {
            return;
        }
        self.tell("READY=1");
        // A quarter: an answer may take as long as three.
        let interval = self.watchdog.map_or(INTERVAL_MAX, |watchdog| INTERVAL_MAX.min(watchdog / 4));
        let mut status = String::new();
        let mut told_stopping = false;
        loop {
            let now = health().to_string();
            if now != status {
                self.tell(&format!("STATUS={now}"));
                status = now;
            }
            let mut answer = ask_log();
            let answered = match timeout(interval, &mut answer).await {
                Ok(answered) => answered,
                Err(_) => {
                    status = "the log does not answer: does the disk hang?".into();
                    self.tell(&format!("STATUS={status}"));
                    error!("the thread that owns the log does not answer: does the disk hang?");
                    let answered = answer.await;
                    info!("the thread that owns the log answers again");
                    answered
                }
            };
            if answered.is_err() {
                return;
            }
            if self.watchdog.is_some() {
                self.tell("WATCHDOG=1");
            }
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stop| *stop), if !told_stopping => {
                    self.tell("STOPPING=1");
                    told_stopping = true;
                }
                () = tokio::time::sleep(interval) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use tokio::{sync::mpsc, task::JoinHandle, time::sleep};

    use super::*;

    const WATCHDOG: Duration = Duration::from_secs(20);
    const STATUS: &str = "STATUS=backlog 7 records, 1 of 1 sources connected";

    /// A service manager at a real socket, and a log that answers when the test says so. Time is tokio's own.
    struct Bench {
        socket: UnixDatagram,
        asked: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
        stop: watch::Sender<bool>,
        report: JoinHandle<()>,
    }

    impl Bench {
        fn new(address: &str, watchdog: Option<Duration>) -> Self {
            let name = SocketAddr::from_abstract_name(&address[1..]).unwrap();
            let socket = UnixDatagram::bind_addr(&name).unwrap();
            socket.set_nonblocking(true).unwrap();
            let manager = ServiceManager::at(OsStr::new(address), watchdog).unwrap();
            let (ask, asked) = mpsc::unbounded_channel();
            let (stop, stopping) = watch::channel(false);
            let ask_log = move || {
                let (answer, answered) = oneshot::channel();
                let _ = ask.send(answer);
                answered
            };
            let report = tokio::spawn(manager.report(ask_log, health, stopping));
            Self { socket, asked, stop, report }
        }

        /// What the service manager has heard by the time the log is asked next, and the way to answer.
        async fn heard(&mut self) -> (Vec<String>, oneshot::Sender<()>) {
            let answer = self.asked.recv().await.expect("the log is asked");
            (self.heard_now(), answer)
        }

        fn heard_now(&self) -> Vec<String> {
            let datagram = || {
                let mut bytes = [0; 256];
                let length = self.socket.recv(&mut bytes).ok()?;
                Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
            };
            std::iter::from_fn(datagram).collect()
        }
    }

    fn health() -> HealthReport {
        let mut report = crate::telemetry::health::tests::good();
        report.replicate.backlog_records = 7;
        report
    }

    #[tokio::test(start_paused = true)]
    async fn the_service_manager_hears_ready_status_alive_and_stopping() {
        let mut bench = Bench::new("@wayside-test-service-life", Some(WATCHDOG));
        let (heard, answer) = bench.heard().await;
        assert_eq!(heard, ["READY=1", STATUS]);
        answer.send(()).unwrap();
        let (heard, answer) = timeout(WATCHDOG / 2, bench.heard()).await.expect("asked often enough");
        assert_eq!(heard, ["WATCHDOG=1"], "a status that is the same is not told again");
        bench.stop.send_replace(true);
        answer.send(()).unwrap();
        let (heard, answer) = bench.heard().await;
        assert_eq!(heard, ["WATCHDOG=1", "STOPPING=1"]);
        answer.send(()).unwrap();
        let (heard, answer) = bench.heard().await;
        assert_eq!(heard, ["WATCHDOG=1"], "alive while it stops");
        drop(answer);
        bench.report.await.expect("ends with the log");
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_does_not_answer_is_not_called_alive() {
        let mut bench = Bench::new("@wayside-test-service-hang", Some(WATCHDOG));
        let (_, answer) = bench.heard().await;
        sleep(3 * WATCHDOG).await;
        assert_eq!(bench.heard_now(), ["STATUS=the log does not answer: does the disk hang?"]);
        answer.send(()).unwrap();
        let (heard, _) = bench.heard().await;
        assert_eq!(heard, ["WATCHDOG=1", STATUS], "the status is told again");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_watchdog_nothing_is_called_alive() {
        let mut bench = Bench::new("@wayside-test-service-quiet", None);
        let (heard, answer) = bench.heard().await;
        assert_eq!(heard, ["READY=1", STATUS]);
        answer.send(()).unwrap();
        assert_eq!(bench.heard().await.0, Vec::<String>::new());
    }
}
