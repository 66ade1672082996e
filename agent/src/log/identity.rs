//! Whose data directory it is: the file `gateway` in it.
//!
//! Records of one gateway that were sent under the name of another would pass for that one's own, and an epoch of a later
//! release would pass for damage. So both are found out before anything in the directory is touched.
//!
//! # Format
//! Lines: `format 2`, `gateway ` with `gateway.id`, and last, whatever the format, `crc ` with the CRC-32C of all lines before in eight
//! hex digits. A file that is none of this says nothing and is written again: a flipped bit must not make it somebody else's.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::CRC_32C;

/// Name of the file.
pub const FILE_NAME: &str = "gateway";

/// What this release reads and writes. To be raised by one whose entries this one would take for damage.
const FORMAT: u32 = 2;

/// Why an agent or a repair must not touch a data directory. Nothing in it was changed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOurs {
    /// Written by a later release.
    #[error(
        "{} has format {found}, and this release knows {FORMAT} at most: install the release that wrote it, or set log.dir \
         to another directory", dir.display()
    )]
    Later {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Written for another gateway.
    #[error(
        "{} is that of gateway {found:?}, and gateway.id is {wanted:?}: set one of gateway.id and log.dir right. To rename a \
         gateway, let Kafka get all that it has, then delete {}", dir.display(), dir.join(FILE_NAME).display()
    )]
    OtherGateway {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: String,
        /// `gateway.id`.
        wanted: String,
    },
}

/// The format of `dir` and the gateway that it belongs to; `None` where it does not say.
///
/// # Errors
/// [`NotOurs::Later`].
pub fn read(dir: &Path) -> Result<Option<(u32, String)>, NotOurs> {
    let text = match fs::read_to_string(dir.join(FILE_NAME)) {
        Ok(text) => text,
        Err(error) => {
            // Whoever opens the directory says what is wrong with it. Damage alone is never a reason to refuse.
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(dir = %dir.display(), %error, "cannot read whose data directory it is");
            }
            return Ok(None);
        }
    };
    let Some(said) = checked(&text) else { return Ok(None) };
    let mut lines = said.lines();
    let mut next = |name| lines.next().and_then(|line| line.strip_prefix(name));
    let format = next("format ").and_then(|format| format.parse().ok());
    let gateway = next("gateway ").map(str::to_owned);
    match format {
        Some(known @ 1..=FORMAT) => Ok(gateway.map(|gateway| (known, gateway))),
        Some(found) => Err(NotOurs::Later { dir: dir.into(), found }),
        None => Ok(None),
    }
}

/// The lines that a text begins with, if its last one says that they are as they were written.
fn checked(text: &str) -> Option<&str> {
    let (said, last) = text.trim_end().rsplit_once("crc ")?;
    (last == check_of(said)).then_some(said)
}

fn check_of(lines: &str) -> String {
    format!("{:08x}", CRC_32C.checksum(lines.as_bytes()))
}

/// `lines` with the one that says that they are as they were written.
pub(crate) fn sealed(lines: &str) -> String {
    format!("{lines}crc {}\n", check_of(lines))
}

/// Whether `dir` says that it is that of `gateway` and of this format; false where it does not say, or of an earlier one, and
/// [`write()`] is due.
///
/// # Errors
/// [`NotOurs`].
pub fn check(dir: &Path, gateway: &str) -> Result<bool, NotOurs> {
    match read(dir)? {
        Some((_, found)) if found != gateway => {
            Err(NotOurs::OtherGateway { dir: dir.into(), found, wanted: gateway.into() })
        }
        found => Ok(found.is_some_and(|(format, _)| format == FORMAT)),
    }
}

/// Makes `dir`, which the caller has locked, that of `gateway`.
///
/// # Errors
/// The system's: the next start writes it.
pub fn write(dir: &Path, gateway: &str) -> io::Result<()> {
    let new = dir.join(format!("{FILE_NAME}.new"));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(sealed(&format!("format {FORMAT}\ngateway {gateway}\n")).as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE_NAME))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_gateway_or_a_later_release_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(check(dir.path(), "gw-1"), Ok(false));
        write(dir.path(), "gw-1").expect("written");
        assert_eq!(check(dir.path(), "gw-1"), Ok(true));
        let said = check(dir.path(), "gw-2").expect_err("another gateway").to_string();
        let path = dir.path().display();
        let expected = format!("{path} is that of gateway \"gw-1\", and gateway.id is \"gw-2\": ");
        assert!(said.starts_with(&expected) && said.ends_with(&format!("delete {path}/gateway")), "{said}");

        // An earlier release must not take what is written from now on for damage.
        fs::write(dir.path().join(FILE_NAME), sealed("format 1\ngateway gw-1\n")).expect("written");
        assert_eq!(check(dir.path(), "gw-1"), Ok(false));
        assert!(check(dir.path(), "gw-2").is_err());

        fs::write(dir.path().join(FILE_NAME), sealed("format 3\nowner somebody\n")).expect("written");
        let said = check(dir.path(), "gw-1").expect_err("a later release").to_string();
        assert!(
            said.starts_with(&format!("{path} has format 3, and this release knows 2 at most: install")),
            "{said}"
        );
    }

    #[test]
    fn a_damaged_word_on_whose_directory_it_is_keeps_nobody_from_it() {
        let dir = tempfile::tempdir().expect("a directory");
        for damaged in
            [&b""[..], b"\0\0\0\0", b"\xff\xfe", b"format\n", b"format 99999999999\n", b"format 1\n"]
        {
            fs::write(dir.path().join(FILE_NAME), damaged).expect("written");
            assert_eq!(check(dir.path(), "gw-1"), Ok(false), "{damaged:?}");
        }
        write(dir.path(), "gw-1").expect("written");
        assert_eq!(check(dir.path(), "gw-1"), Ok(true));
        let written = fs::read(dir.path().join(FILE_NAME)).expect("written above");
        for bit in 0..written.len() * 8 {
            let mut damaged = written.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.path().join(FILE_NAME), damaged).expect("written");
            assert!(check(dir.path(), "gw-1").is_ok(), "bit {bit}");
        }
    }
}
