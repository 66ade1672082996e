//! `wayside check --connect` at the data directory.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use rustix::fs::{FlockOperation, flock, statvfs};

use crate::{config::Log, log::identity};

/// Epochs for which there must be room: one is written while the one before waits for Kafka.
const EPOCHS_MIN: u64 = 2;

/// File systems that forget all at a power cut.
const VOLATILE: [&str; 2] = ["tmpfs", "ramfs"];

/// Writes a file to the directory, or to where it would be created, and deletes it. Says what it found.
///
/// # Errors
/// Why the agent could not keep its log there.
pub(super) fn reach(log: &Log, gateway: &str) -> Result<String, String> {
    let missing = !log.dir.exists();
    let dir = log.dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let dir = fs::canonicalize(dir).map_err(|error| error.to_string())?;
    let metadata = fs::metadata(&dir).map_err(|error| error.to_string())?;
    if !metadata.is_dir() {
        return Err(format!("{} is no directory", dir.display()));
    }
    let mut probe = tempfile::Builder::new().prefix(".wayside-check").tempfile_in(&dir).map_err(|error| {
        let (uid, gid, mode) = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
        format!(
            "cannot write to {}, which belongs to user {uid} and group {gid}, mode {mode:o}: {}",
            dir.display(),
            error.kind()
        )
    })?;
    io::Write::write_all(&mut probe, b"wayside")
        .and_then(|()| probe.as_file().sync_all())
        .map_err(|error| format!("cannot write to {}: {error}", dir.display()))?;
    let space = statvfs(&dir).map_err(|error| error.to_string())?;
    let (free, size) = (space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize);
    let needed = (EPOCHS_MIN * log.epoch_bytes).saturating_add(log.reserve_bytes);
    let mount = mount_of(&dir, &fs::read_to_string("/proc/self/mountinfo").unwrap_or_default());
    let (kind, device) = mount.unwrap_or_default();
    if VOLATILE.contains(&kind.as_str()) {
        return Err(format!("is on {kind}, which a power cut empties: what was acknowledged would be lost"));
    }
    if free < needed {
        return Err(format!(
            "has {} free, and needs {} for {EPOCHS_MIN} epochs and the reserve (log.reserve_bytes)",
            mib(free),
            mib(needed)
        ));
    }
    identity::check(&log.dir, gateway).map_err(|error| error.to_string())?;
    let state = if missing {
        format!("can be created in {}", dir.display())
    } else if is_locked(&log.dir) {
        "writable, in use by the agent that runs".into()
    } else {
        "writable".into()
    };
    Ok(format!("{state}; {} free of {}, {kind} on {device}", mib(free), mib(size)))
}

fn is_locked(dir: &Path) -> bool {
    // Not created here: an agent that never ran has none.
    let Ok(lock) = fs::File::open(dir.join("lock")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// File system and device of the mount that `dir` is on, by the text of `/proc/self/mountinfo`.
fn mount_of(dir: &Path, mountinfo: &str) -> Option<(String, String)> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        // The kernel writes a blank as an octal escape.
        let mounted_at = left.split(' ').nth(4)?.replace("\\040", " ");
        let mut right = right.split(' ');
        let filesystem = (right.next()?.to_owned(), right.next()?.to_owned());
        dir.starts_with(&mounted_at).then_some((mounted_at.len(), filesystem))
    });
    // Of two mounts at one place the later one hides the other.
    mounts.max_by_key(|(length, _)| *length).map(|(_, filesystem)| filesystem)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Compression, Engine};

    fn log(dir: &Path) -> Log {
        Log {
            dir: dir.to_owned(),
            engine: Engine::default(),
            limit_bytes: None,
            retention: crate::log::Retention::default(),
            reserve_bytes: 16 << 20,
            epoch_bytes: 4 << 20,
            record_bytes_max: 1024,
            compression: Compression::None,
        }
    }

    #[test]
    fn the_innermost_mount_is_the_one() {
        let mountinfo = "\
22 1 179:2 / / rw shared:1 - ext4 /dev/mmcblk0p2 rw
30 22 0:26 / /var rw - btrfs /dev/sda1 rw
31 30 0:27 / /var/my\\040data rw - tmpfs none rw
";
        let mount = |dir: &str| mount_of(Path::new(dir), mountinfo).map(|(kind, _)| kind);
        assert_eq!(mount("/home").as_deref(), Some("ext4"));
        assert_eq!(mount("/var/lib/wayside").as_deref(), Some("btrfs"));
        assert_eq!(mount("/variety").as_deref(), Some("ext4"));
        assert_eq!(mount("/var/my data/log").as_deref(), Some("tmpfs"));
    }

    #[test]
    fn a_directory_is_tried_and_left_as_it_was() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory on a disk");
        let found = reach(&log(dir.path()), "gw-1").expect("writable");
        assert!(found.starts_with("writable; ") && found.contains("MiB free of"), "{found}");
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
        identity::write(dir.path(), "gw-1").expect("written");
        let other = reach(&log(dir.path()), "gw-2").expect_err("another gateway's");
        assert!(other.contains("gateway \"gw-1\""), "{other}");
        let found = reach(&log(&dir.path().join("a/b")), "gw-1").expect("can be created");
        assert!(found.starts_with("can be created in "), "{found}");
        let mut large = log(dir.path());
        large.epoch_bytes = u64::MAX / 4;
        assert!(reach(&large, "gw-1").is_err_and(|cause| cause.contains("free, and needs")));
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        assert!(reach(&log(&file), "gw-1").is_err_and(|cause| cause.contains("is no directory")));
        assert!(
            reach(&log(Path::new("/dev/shm/wayside")), "gw-1")
                .is_err_and(|cause| cause.contains("power cut"))
        );
    }
}
