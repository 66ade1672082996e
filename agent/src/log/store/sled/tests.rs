//! The guards that damage alone does not reach: panics and hangs.

use std::{
    path::PathBuf,
    sync::mpsc,
    time::{Duration, Instant},
};

use super::guard;
use crate::log::store::failure::Failure;

#[test]
fn a_panic_in_sled_is_a_failure_and_no_more() {
    let failure = guard::call::<()>(|| panic!("index out of bounds")).unwrap_err();
    assert!(matches!(&failure, Failure::Broken(reason) if reason.contains("index out of bounds")));
    let full = guard::call::<()>(|| panic!("Io(Os {{ code: 28, kind: StorageFull }})")).unwrap_err();
    assert!(matches!(full, Failure::NoSpace));
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a real deadline is what is tested")]
fn a_handle_that_does_not_close_is_given_up() {
    struct Stuck(mpsc::Receiver<()>);
    impl Drop for Stuck {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }
    let (release, stuck) = mpsc::channel();
    let start = Instant::now();
    guard::close(Stuck(stuck), PathBuf::new(), Duration::from_millis(50));
    assert!(start.elapsed() < Duration::from_secs(20));
    drop(release);
}
