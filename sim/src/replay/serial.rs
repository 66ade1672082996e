//! Plays a recording's bytes into a pseudo-terminal, at the pace of a serial line.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::{
    fs::{Mode, OFlags, inotify},
    io::Errno,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{OptionalActions, tcgetattr, tcsetattr},
};
use tokio::time::{Instant, MissedTickBehavior};

use super::Speed;

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
        let written = line.write(&pending)?;
        pending.drain(..written);
        played += written as u64;
        if written == 0 || speed != Speed::Max {
            tick.tick().await;
        }
    }
    let mut empty_since = Instant::now();
    while empty_since.elapsed() < DRAINED {
        if line.unread()? > 0 {
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

/// A pseudo-terminal with a name; the name goes with it.
struct Line {
    /// Our end, non-blocking.
    master: File,
    /// The reader's end. Held open, for it is where one sees what is unread, and an exclusive reader lets nobody in later.
    slave: OwnedFd,
    /// Tells who opens and closes the reader's end.
    watch: OwnedFd,
    readers: i64,
    link: PathBuf,
}

impl Line {
    fn open(link: &Path) -> anyhow::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("cannot make a pseudo-terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let mut settings = tcgetattr(&master)?;
        // Bytes as they are, from the first one on: no echo, no line ends translated.
        settings.make_raw();
        tcsetattr(&master, OptionalActions::Now, &settings)?;
        let name = ptsname(&master, Vec::new())?;
        let slave = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
            .context("cannot open the pseudo-terminal")?;
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let events =
            inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE;
        inotify::add_watch(&watch, &name, events)?;
        // What a killed run left behind is replaced, anything else is somebody's.
        if fs::symlink_metadata(link).is_ok_and(|found| found.is_symlink()) && fs::metadata(link).is_err() {
            fs::remove_file(link).with_context(|| format!("cannot replace {}", link.display()))?;
        }
        let target = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        std::os::unix::fs::symlink(target, link)
            .with_context(|| format!("cannot make the link {}", link.display()))?;
        Ok(Self { master: File::from(master), slave, watch, readers: 0, link: link.to_owned() })
    }

    /// Whether somebody beside us has the reader's end open.
    fn has_reader(&mut self) -> anyhow::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(inotify::ReadFlags::OPEN) => self.readers += 1,
                Ok(_) => self.readers -= 1,
                Err(Errno::AGAIN) => return Ok(self.readers > 0),
                Err(error) => return Err(error).context("cannot watch the pseudo-terminal"),
            }
        }
    }

    /// Writes as much as the line takes now.
    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        match self.master.write(bytes) {
            Ok(written) => Ok(written),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
            Err(error) => Err(error).context("cannot write to the pseudo-terminal"),
        }
    }

    /// A receiver that is only played back takes no commands; unread ones would block their sender.
    fn discard_input(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 1024];
        loop {
            match self.master.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => bail!("cannot read from the pseudo-terminal: {error}"),
            }
        }
    }

    /// Bytes that wait for the reader.
    fn unread(&self) -> anyhow::Result<u64> {
        Ok(rustix::io::ioctl_fionread(self.slave.as_fd())?)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = fs::remove_file(&self.link);
    }
}

#[cfg(test)]
mod tests {
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
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 251 + i / 251) as u8).collect();
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

    #[test]
    fn a_reader_that_goes_away_ends_the_replay() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("recording"), dir.path().join("tty"));
        fs::write(&file, vec![b'x'; 100_000]).unwrap();
        let mut line = Line::open(&link).unwrap();
        assert!(!line.has_reader().unwrap());
        let reader = File::open(&link).unwrap();
        assert!(line.has_reader().unwrap());
        drop(reader);
        assert!(!line.has_reader().unwrap());
    }

    #[test]
    fn a_link_left_behind_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("tty");
        std::os::unix::fs::symlink("/nonexistent/terminal", &link).unwrap();
        drop(Line::open(&link).unwrap());
        fs::write(&link, "mine").unwrap();
        assert!(Line::open(&link).is_err());
        assert_eq!(fs::read(&link).unwrap(), b"mine");
    }
}
