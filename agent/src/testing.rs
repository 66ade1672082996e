//! What tests need and may not have.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
};

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
