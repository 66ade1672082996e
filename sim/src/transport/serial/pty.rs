//! A pseudo-terminal that stands for a serial port.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;

/// The wire's end of a pseudo-terminal; the other end is opened by its symbolic link, which goes when this is dropped.
#[derive(Debug)]
pub(super) struct Pty {
    wire: AsyncFd<OwnedFd>,
    /// Held open so that the line stays up when its reader goes, as a cable does.
    _port: OwnedFd,
    port_path: PathBuf,
    link: PathBuf,
}

impl Pty {
    /// Makes a raw pseudo-terminal and the link to it. A symbolic link that is there already is replaced.
    ///
    /// # Errors
    /// The operating system's, and when `link` is something else than a symbolic link.
    pub(super) fn open(link: &Path) -> anyhow::Result<Self> {
        let open = || -> rustix::io::Result<(OwnedFd, OwnedFd, PathBuf)> {
            let wire = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
            grantpt(&wire)?;
            unlockpt(&wire)?;
            let name = ptsname(&wire, Vec::new())?;
            let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
            let port = rustix::fs::open(name.as_c_str(), flags, Mode::empty())?;
            let mut settings = tcgetattr(&port)?;
            settings.make_raw();
            tcsetattr(&port, OptionalActions::Now, &settings)?;
            rustix::io::ioctl_fionbio(&wire, true)?;
            Ok((wire, port, PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))))
        };
        let (wire, port, port_path) = open().context("cannot make a pseudo-terminal")?;
        match fs::symlink_metadata(link) {
            Ok(found) if !found.is_symlink() => bail!("{} is in the way", link.display()),
            Ok(_) => fs::remove_file(link).with_context(|| format!("cannot replace {}", link.display()))?,
            Err(_) => {}
        }
        symlink(&port_path, link).with_context(|| format!("cannot make the link {}", link.display()))?;
        Ok(Self { wire: AsyncFd::register(wire)?, _port: port, port_path, link: link.to_owned() })
    }

    /// Waits for bytes from the port's user and reads them; cancel safe.
    ///
    /// # Errors
    /// The operating system's; the line is of no more use.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.wire.readable().await?;
            if let Ok(read) = ready.try_io(|wire| Ok(rustix::io::read(wire, &mut *buffer)?)) {
                return read;
            }
        }
    }

    /// Puts bytes on the wire. What the port's buffer does not take is lost: a wire does not wait for its reader.
    ///
    /// # Errors
    /// The operating system's; the line is of no more use.
    pub(super) fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(self.wire.get_ref(), bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        // Another process may have taken the name over.
        if fs::read_link(&self.link).is_ok_and(|target| target == self.port_path) {
            let _ = fs::remove_file(&self.link);
        }
    }
}
