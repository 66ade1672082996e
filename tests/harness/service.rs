//! The end of `NOTIFY_SOCKET` that systemd has.

use std::os::unix::net::UnixDatagram;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::PATIENCE;

/// The silence after which the agent is taken to hang.
pub const WATCHDOG: Duration = Duration::from_secs(4);

/// A service manager that listens and does nothing.
pub struct ServiceManager {
    socket: UnixDatagram,
    directory: TempDir,
}

impl ServiceManager {
    /// One with a socket of its own.
    #[allow(clippy::new_without_default, reason = "it opens a socket")]
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
        let socket = UnixDatagram::bind(directory.path().join("notify")).expect("our directory is writable");
        socket.set_read_timeout(Some(PATIENCE)).expect("longer than no time");
        Self { socket, directory }
    }

    /// What the agent's environment must have.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = self.directory.path().join("notify").display().to_string();
        [("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())]
    }

    /// Reads until what is heard begins with `beginning`.
    #[track_caller]
    pub fn wait_for(&self, beginning: &str) {
        while !self.hear().starts_with(beginning) {}
    }

    /// Listens from now on.
    pub fn watch(self) -> Watch {
        let (stop, stopped) = mpsc::channel::<()>();
        let ears = std::thread::spawn(move || {
            self.socket.set_read_timeout(Some(Duration::from_millis(50))).expect("longer than no time");
            let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
            while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let mut bytes = [0; 4096];
                let alive = self.socket.recv(&mut bytes).is_ok() && bytes.starts_with(b"WATCHDOG=1");
                longest = longest.max(last.elapsed());
                if alive {
                    last = Instant::now();
                }
            }
            longest
        });
        Watch { stop, ears }
    }

    #[track_caller]
    fn hear(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).unwrap_or_else(|e| panic!("nothing more is heard: {e}"));
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }
}

/// A watchdog that counts instead of biting.
pub struct Watch {
    stop: mpsc::Sender<()>,
    ears: JoinHandle<Duration>,
}

impl Watch {
    /// Ends the watch; returns the longest time in which the agent was not heard to be alive.
    pub fn longest_silence(self) -> Duration {
        drop(self.stop);
        self.ears.join().expect("it only listens")
    }
}
