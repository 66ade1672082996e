//! `wayside check --connect` at a serial port.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use super::builder;
use crate::config::SerialSource;

/// Opens the port as the agent does, if no process has it, and closes it again. Says what it found. A board that resets
/// when its port is opened does so now.
///
/// # Errors
/// Why the agent could not read it.
pub fn reach(config: &SerialSource) -> Result<String, String> {
    check_kind(&config.path)?;
    let device = fs::canonicalize(&config.path).map_err(|error| error.to_string())?;
    let users = users_of(&device);
    if let Some((_, pid)) = users.iter().find(|(name, _)| name == env!("CARGO_PKG_NAME")) {
        return Ok(format!("is read by the agent that runs, process {pid}"));
    }
    if !users.is_empty() {
        return Err(in_use(&users));
    }
    match builder(config, &config.path.display().to_string()).open() {
        Ok(_) => Ok(format!("is a free serial port, {}", device.display())),
        Err(error) => Err(cause(config, &error)),
    }
}

/// What keeps the port from being opened, with what to do about it, where opening it gave `error`.
pub(super) fn cause(config: &SerialSource, error: &tokio_serial::Error) -> String {
    if let Err(cause) = check_kind(&config.path) {
        return cause;
    }
    match error.kind() {
        tokio_serial::ErrorKind::NoDevice => {
            in_use(&fs::canonicalize(&config.path).map(|device| users_of(&device)).unwrap_or_default())
        }
        tokio_serial::ErrorKind::Io(io::ErrorKind::PermissionDenied) => {
            let owner = fs::metadata(&config.path).map(|metadata| (metadata.uid(), metadata.gid()));
            let (uid, gid) = owner.unwrap_or_default();
            format!(
                "permission denied: it belongs to user {uid} and group {gid}; the agent's user must be in that group"
            )
        }
        _ => format!("cannot be opened as a serial port of {} bit/s: {error}", config.baud),
    }
}

/// What is there must be a serial port.
fn check_kind(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => "No such file: is the device plugged in?".to_owned(),
        _ => error.to_string(),
    })?;
    if !metadata.file_type().is_char_device() {
        return Err("is no device".into());
    }
    let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    // Pseudo terminals have no class; all else that speaks serially is a `tty`.
    if fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"))
        .is_ok_and(|class| !class.ends_with("tty"))
    {
        return Err("is no serial port".into());
    }
    Ok(())
}

fn in_use(users: &[(String, u32)]) -> String {
    match users.first() {
        Some((name, pid)) => format!("is in use by {name}, process {pid}: a port has one reader"),
        None => "is in use by another process: a port has one reader".into(),
    }
}

/// Names and ids of the processes that have `device` open, as far as we may see: root sees all.
fn users_of(device: &Path) -> Vec<(String, u32)> {
    let has_it = |pid: &u32| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        fds.is_ok_and(|fds| fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == device)))
    };
    let name =
        |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.filter(has_it).map(|pid| (name(pid), pid)).collect()
}
