//! A pseudo terminal that stands for a serial line.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

/// One line: the test holds the device's end, the agent opens [`path`](Self::path).
pub struct Pty {
    device: OwnedFd,
    /// Keeps the line up while no agent has it open, like a cable whose gateway restarts.
    _gateway: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// Opens a line that passes all bytes unchanged.
    pub fn open() -> Self {
        let device =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there is a free pty");
        rustix::pty::grantpt(&device).expect("the pty is ours");
        rustix::pty::unlockpt(&device).expect("the pty is ours");
        let name = rustix::pty::ptsname(&device, Vec::new()).expect("a pty has a name");
        let path = PathBuf::from(name.into_string().expect("a pty's name is ASCII"));
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let gateway = rustix::fs::open(&path, flags, Mode::empty()).expect("the pty is unlocked");
        let mut settings = rustix::termios::tcgetattr(&gateway).expect("a pty is a terminal");
        settings.make_raw();
        rustix::termios::tcsetattr(&gateway, OptionalActions::Now, &settings).expect("a pty takes raw mode");
        Self { device, _gateway: gateway, path }
    }

    /// What the agent opens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `bytes` as fast as a line of `baud` with 8N1 would carry them: a pty alone knows no speed.
    pub fn write_at(&self, bytes: &[u8], baud: u32) {
        let started = Instant::now();
        let bytes_per_second = f64::from(baud) / 10.0;
        let mut written = 0_u32;
        for chunk in bytes.chunks(64) {
            let mut rest = chunk;
            while !rest.is_empty() {
                let count = rustix::io::write(&self.device, rest).expect("the line is up");
                rest = &rest[count..];
            }
            written += u32::try_from(chunk.len()).expect("at most 64");
            let due = Duration::from_secs_f64(f64::from(written) / bytes_per_second);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
}
