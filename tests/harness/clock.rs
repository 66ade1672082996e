//! Another clock for a process, by libfaketime.

use std::path::{Path, PathBuf};

use crate::{process, root};

/// Variables of the environment for a process whose wall clock goes by what `file` says, `+0` or `-56y`, at any time. Its
/// monotonic time is the system's. None without the library, or without a C compiler for what that lacks. Makes files beside
/// `file`.
pub fn variables(file: &Path) -> Option<[(&'static str, PathBuf); 4]> {
    let library = |architecture: &str| {
        PathBuf::from(format!("/usr/lib/{architecture}-linux-gnu/faketime/libfaketimeMT.so.1"))
    };
    let library = ["x86_64", "aarch64"].map(library).into_iter().find(|path| path.exists())?;
    let waits = file.with_extension("so");
    let mut cc = process::command("cc");
    cc.args(["-shared", "-fPIC", "-D_GNU_SOURCE", "-o"]).arg(&waits);
    cc.arg(root().join("tests/harness/cnd_timedwait.c"));
    if !cc.status().is_ok_and(|status| status.success()) {
        return None;
    }
    let mut libraries = waits.into_os_string();
    libraries.push(":");
    libraries.push(library);
    set(file, "+0");
    Some([
        ("LD_PRELOAD", libraries.into()),
        ("FAKETIME_TIMESTAMP_FILE", file.into()),
        ("FAKETIME_NO_CACHE", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ])
}

/// Sets the clock that goes by `file`: at once, since a thread that finds the file empty would for a moment be in another year.
pub fn set(file: &Path, offset: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{offset}\n")).expect("our directory is writable");
    std::fs::rename(new, file).expect("our directory is writable");
}
