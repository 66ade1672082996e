//! Plays a recording's bytes into a pseudo-terminal, at the pace of a serial line.

use std::{
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Read},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use anyhow::{Context, ensure};
use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags},
    io::Errno,
};
use tokio::time::{Instant, MissedTickBehavior};

use super::Speed;
use crate::transport::serial::pty::Pty;

/// How finely the bytes of a second are spread: about what a UART's FIFO holds at 115 200 bit/s.
const TICK: Duration = Duration::from_millis(5);
/// From a reader's opening until it has set up its end; some throw away what came earlier.
const SETTLE: Duration = Duration::from_millis(100);
/// So long must nothing be left unread. The kernel moves bytes on in between, so that once is not enough.
const DRAINED: Duration = Duration::from_millis(50);
/// Start bit, 8 data bits, stop bit.
const BITS_PER_BYTE: f64 = 10.0;

/// Plays `file` to whoever opens `link`, and returns the bytes played once all of them were read.
///
/// # Errors
/// A file that cannot be read, a pseudo-terminal or link that cannot be made, a reader that went away.
pub(super) async fn play(file: &Path, link: &Path, baud: u32, speed: Speed) -> anyhow::Result<u64> {
    let recording = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut recording = BufReader::new(recording);
    let mut line = Line::open(link)?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !line.has_reader()? {
        tick.tick().await;
    }
    tokio::time::sleep(SETTLE).await;

    let start = Instant::now();
    let mut played: u64 = 0;
    let mut pending: Vec<u8> = Vec::new();
    while !(pending.is_empty() && is_over(&mut recording, file)?) {
        ensure!(line.has_reader()?, "the reader of {} went away after {played} bytes", link.display());
        line.discard_input()?;
        let due = bytes_due(start.elapsed(), baud, speed).saturating_sub(played + pending.len() as u64);
        // The page that is read at once bounds the memory when everything is due.
        let part = recording.by_ref().take(due.min(4096)).read_to_end(&mut pending);
        part.with_context(|| format!("cannot read {}", file.display()))?;
        let written = line.pty.try_write(&pending)?;
        pending.drain(..written);
        played += written as u64;
        if written == 0 || speed != Speed::Max {
            tick.tick().await;
        }
    }
    let mut empty_since = Instant::now();
    while empty_since.elapsed() < DRAINED {
        if line.pty.unread()? > 0 {
            ensure!(line.has_reader()?, "the reader of {} went away before the end", link.display());
            empty_since = Instant::now();
        }
        tick.tick().await;
    }
    Ok(played)
}

fn is_over(recording: &mut BufReader<File>, file: &Path) -> anyhow::Result<bool> {
    let rest = recording.fill_buf().with_context(|| format!("cannot read {}", file.display()))?;
    Ok(rest.is_empty())
}

/// How many bytes the line has carried after `elapsed`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float casts saturate")]
fn bytes_due(elapsed: Duration, baud: u32, speed: Speed) -> u64 {
    match speed {
        Speed::Times(times) => (elapsed.as_secs_f64() * times * f64::from(baud) / BITS_PER_BYTE) as u64,
        Speed::Max => u64::MAX,
    }
}

/// A pseudo-terminal, and whether somebody has opened it.
struct Line {
    pty: Pty,
    /// Tells who opens and closes the port. The port itself tells nothing while we hold it open, and we must: it is where
    /// one sees what is unread, and an exclusive reader would let nobody in later.
    watch: OwnedFd,
    readers: i64,
}

impl Line {
    fn open(link: &Path) -> anyhow::Result<Self> {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let events = WatchFlags::OPEN | WatchFlags::CLOSE_WRITE | WatchFlags::CLOSE_NOWRITE;
        let pty = Pty::open_with(link, |port| {
            inotify::add_watch(&watch, port, events).context("cannot watch the pseudo-terminal")?;
            Ok(())
        })?;
        Ok(Self { pty, watch, readers: 0 })
    }

    /// Whether somebody beside us has the port open.
    fn has_reader(&mut self) -> anyhow::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(ReadFlags::OPEN) => self.readers += 1,
                Ok(_) => self.readers -= 1,
                Err(Errno::AGAIN) => return Ok(self.readers > 0),
                Err(error) => return Err(error).context("cannot watch the pseudo-terminal"),
            }
        }
    }

    /// A receiver that is only played back takes no commands; unread ones would block their sender.
    fn discard_input(&self) -> anyhow::Result<()> {
        let mut buffer = [0; 1024];
        loop {
            match self.pty.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot read from the pseudo-terminal"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Plays `bytes` to a reader that takes them in small pieces.
    fn play_to_slow_reader(bytes: &[u8], speed: Speed) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("recording"), dir.path().join("tty"));
        fs::write(&file, bytes).unwrap();
        let (opened, wanted) = (link.clone(), bytes.len());
        let reader = std::thread::spawn(move || {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            let mut port = loop {
                match File::open(&opened) {
                    Ok(port) => break port,
                    Err(error) if std::time::Instant::now() > deadline => panic!("{error}"),
                    Err(_) => std::thread::yield_now(),
                }
            };
            let mut read = vec![0; wanted];
            for part in read.chunks_mut(700) {
                port.read_exact(part).unwrap();
            }
            read
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let played = runtime.block_on(play(&file, &link, 115_200, speed)).unwrap();
        assert_eq!(played, bytes.len() as u64);
        assert!(fs::symlink_metadata(&link).is_err(), "the link is left behind");
        reader.join().unwrap()
    }

    #[test]
    fn every_byte_arrives_as_it_is() {
        // More than the kernel buffers, and every byte value: control characters are not interpreted.
        let bytes: Vec<u8> =
            (0..100_000_u32).map(|i| u8::try_from((i % 251 + i / 251) % 256).unwrap()).collect();
        assert!(play_to_slow_reader(&bytes, Speed::Max) == bytes);
    }

    #[test]
    fn a_line_carries_a_tenth_of_its_bit_rate_in_bytes() {
        let due = |seconds, speed| bytes_due(Duration::from_secs(seconds), 9_600, speed);
        assert_eq!(due(2, Speed::Times(1.0)), 1_920);
        assert_eq!(due(2, Speed::Times(0.5)), 960);
        assert_eq!(due(0, Speed::Max), u64::MAX);
        let start = std::time::Instant::now();
        play_to_slow_reader(&[b'x'; 2_304], Speed::Times(1.0));
        assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn readers_are_seen_coming_and_going() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("tty");
        let mut line = Line::open(&link).unwrap();
        assert!(!line.has_reader().unwrap());
        let reader = File::open(&link).unwrap();
        assert!(line.has_reader().unwrap());
        drop(reader);
        assert!(!line.has_reader().unwrap());
    }
}
