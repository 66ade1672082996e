//! Calls into sled: none of them may panic, hang or confuse the log.
//!
//! sled 0.34.7 panics on damage (`serialization.rs`, `segment.rs`, `tree.rs`) and in `Drop` (`logger.rs`), and may block in
//! open and drop after an I/O error. So every call is caught, and open and drop run on a thread of their own with a
//! deadline.

use std::{
    fs::{File, OpenOptions},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::log::store::{dir::sync_dir, failure::Failure};

/// Bytes of a sled segment. A value over a quarter of it would become a blob, which sled never syncs.
pub(super) const SEGMENT_BYTES: usize = 512 * 1024;

/// sled's cache. It is not respected; what bounds memory is the size of an epoch.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

fn of_sled(error: ::sled::Error) -> Failure {
    match error {
        ::sled::Error::Io(error) => Failure::of_io(error),
        other => Failure::Broken(other.to_string()),
    }
}

fn of_panic(payload: &(dyn std::any::Any + Send)) -> Failure {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    // sled unwraps some of its I/O errors; the kernel's words are then in the panic's.
    if text.contains("StorageFull") || text.contains("No space left") {
        Failure::NoSpace
    } else {
        Failure::Broken(format!("sled panicked: {text}"))
    }
}

/// Calls sled. After any failure the Db that was called is dead: it is closed and never called again.
pub(super) fn call<T>(call: impl FnOnce() -> ::sled::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(of_sled(error)),
        Err(payload) => Err(of_panic(payload.as_ref())),
    }
}

/// An open Db, with a second descriptor of its file: sled's `flush` is `sync_file_range`, which is no fdatasync.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) db: ::sled::Db,
    pub(super) file: File,
}

/// Makes a Db in the empty directory `path` within `timeout`.
pub(super) fn open(path: &Path, timeout: Duration) -> Result<Opened, Failure> {
    let path = path.to_path_buf();
    let opened = on_helper("log-open", timeout, move || open_here(&path));
    opened.unwrap_or_else(|error| Err(Failure::Transient(error)))
}

fn open_here(path: &Path) -> Result<Opened, Failure> {
    let config = ::sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .segment_size(SEGMENT_BYTES)
        // The flusher thread is what hangs on a full disk, and the log decides when to flush.
        .flush_every_ms(None);
    let db = call(|| config.open())?;
    let file = OpenOptions::new().write(true).open(path.join(super::FILE)).map_err(Failure::of_io)?;
    sync_dir(path).map_err(Failure::of_io)?;
    Ok(Opened { db, file })
}

/// Closes a Db by dropping `handles` (the Db and its trees, or all that is left of a dead one), waiting no longer than
/// `timeout`; one that blocks is left to its thread for ever. Then memory goes back to the system.
pub(super) fn close(handles: impl Send + 'static, path: PathBuf, timeout: Duration) {
    let closed = on_helper("log-close", timeout, move || {
        if catch_unwind(AssertUnwindSafe(move || drop(handles))).is_err() {
            tracing::warn!(path = %path.display(), "sled panicked while it closed");
        }
    });
    if let Err(error) = closed {
        tracing::error!(%error, "sled did not close; its handle is given up");
    }
    release_memory();
}

/// Runs `job` on a thread of its own. When it takes longer than `timeout` the error is
/// [`TimedOut`](io::ErrorKind::TimedOut); the thread then ends when it ends, and its result is dropped there. Any other
/// error is the system's, which has no thread to give.
fn on_helper<T: Send + 'static>(
    name: &str,
    timeout: Duration,
    job: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::Builder::new().name(name.into()).spawn(move || {
        // Nobody waits any more when the deadline has passed.
        let _ = sender.send(job());
    })?;
    receiver.recv_timeout(timeout).map_err(|_| io::ErrorKind::TimedOut.into())
}

/// glibc keeps what sled freed; without this an agent that drains a backlog grows by tens of megabytes.
#[cfg(target_env = "gnu")]
#[allow(
    unsafe_code,
    reason = "malloc_trim has no safe wrapper; it takes no pointer and may be called at any time"
)]
fn release_memory() {
    // SAFETY: see the reason above.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
fn release_memory() {}
