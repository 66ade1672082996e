//! What tests need and may not have.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Says on standard error what a test that does nothing is waiting for. `eprintln!` would be kept to itself by the test
/// runner, for a test that passes.
pub(crate) fn left_out(needs: &str) {
    let thread = std::thread::current();
    // A closed standard error is no reason to fail a test.
    let _ = writeln!(std::io::stderr(), "[{}] skipped: needs {needs}", thread.name().unwrap_or("test"));
}

/// The folder `name` of the recordings, which are no part of the project; `None`, saying so, where there is none.
pub(crate) fn corpus(name: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("WAYSIDE_CORPUS").map_or(default, PathBuf::from).join(name);
    if !folder.is_dir() {
        left_out(&format!("{}; WAYSIDE_CORPUS names the folder of recordings", folder.display()));
        return None;
    }
    Some(folder)
}

/// Runs `test` on a thread to which the permissions of files apply, as they do to the agent, also where root runs the
/// tests.
pub(crate) fn without_privileges(test: impl FnOnce() + Send) {
    let run = || {
        let mut sets = capabilities(None).expect("every thread has its sets");
        sets.effective = CapabilitySet::empty();
        set_capabilities(None, sets).expect("less is always granted");
        test();
    };
    // A panic goes on here: the scope waits for the thread.
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
