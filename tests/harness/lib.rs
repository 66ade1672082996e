//! What the system tests are made of: real servers on loopback, the real binaries, and eyes to watch them with.
//!
//! Everything here panics when it fails, with the reason and the tail of the log of whoever was to blame: a system test
//! has nobody to hand an error to. Nothing waits by sleeping; [`wait_until`] is the one place where time passes.
//!
//! The servers end with the test process, however that ends (see [`process`]).
#![allow(clippy::disallowed_methods, reason = "the system tests run on the machine's own clock")]

pub mod agent;
pub mod campaign;
pub mod certificates;
pub mod chk;
pub mod client;
pub mod clock;
pub mod disk;
pub mod drive;
pub mod gaps;
pub mod kafka;
pub mod link;
pub mod mosquitto;
pub mod mqtt;
pub mod ports;
pub mod process;
pub mod pty;
pub mod raw;
pub mod service;
pub mod sim;
pub mod strace;
pub mod telegraf;
pub mod usage;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a test waits for what must come: three Java machines, the agent and its load share two cores, which others
/// may use too. A test that passes does not wait so long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Calls `condition` until it gives a value, and returns that.
///
/// # Panics
/// When `deadline` has passed without a value; the text names `what` was awaited.
#[track_caller]
pub fn wait_until<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The project's root directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the project's root")
}

/// A file or directory of the corpus of recorded data, or `None` with a note on standard error where there is no corpus.
///
/// The corpus is no part of the project. It is looked for in `$WAYSIDE_CORPUS`, or else in `../shared/data`.
pub fn corpus(path: &str) -> Option<PathBuf> {
    let directory =
        std::env::var_os("WAYSIDE_CORPUS").map_or_else(|| root().join("../shared/data"), PathBuf::from);
    let wanted = directory.join(path);
    if wanted.exists() {
        return Some(wanted);
    }
    note(&format!(
        "skipped: needs the recordings `{path}`, looked for in {}; set WAYSIDE_CORPUS",
        directory.display()
    ));
    None
}

/// A line on standard error that is seen also when the test passes: the test runner keeps `eprintln!` to itself.
pub fn note(line: &str) {
    use std::io::Write as _;
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("harness");
    // A closed standard error is no reason to fail a test.
    let _ = writeln!(std::io::stderr(), "[{test}] {line}");
}

/// The binary `name` of this workspace, beside the running test executable.
///
/// # Panics
/// When it was not built: `cargo test` builds a package's own binaries alone, `tests/run` builds all.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test executable has a path");
    let found =
        test.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("`{name}` was not built: run `cargo build --workspace --bins`, or `tests/run`")
    })
}
