//! What is read from files, and read again while the agent runs: at SIGHUP, and when the files have changed.
//!
//! A file that is of no use changes nothing: what was read before stays, and the log and `/healthz` say why.

use std::{fmt, fs, os::unix::fs::MetadataExt as _, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tracing::{error, info};

use crate::{secret::Unreadable, source::metrics::SourceWatch};

/// Time between two looks at the files. A change counts at the second look that sees it: nobody is writing any more.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What was read last. Cheap to clone; reading goes on until the last clone is dropped.
pub(crate) struct Kept<T>(watch::Receiver<Arc<T>>);

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: fmt::Debug> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.borrow().fmt(f)
    }
}

impl<T: Send + Sync + 'static> Kept<T> {
    /// Reads with `read` what `files` hold: now, at each change of `asked`, and when the files have changed. `key` of the
    /// configuration names them. To be called on the I/O runtime.
    ///
    /// # Errors
    /// That of the first reading; later ones go to the log and to `told`.
    pub(crate) fn open(
        key: String,
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, Unreadable> + Send + 'static,
        mut asked: watch::Receiver<()>,
        told: SourceWatch,
    ) -> Result<Self, Unreadable> {
        asked.mark_unchanged();
        let looks = Looks::new(files);
        let (sender, receiver) = watch::channel(Arc::new(read()?));
        let keeper = Keeper { key, looks, read, sender, told };
        tokio::spawn(keeper.run(asked));
        Ok(Self(receiver))
    }

    /// What was read last.
    pub(crate) fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.borrow())
    }
}

/// What nobody reads again.
#[cfg(any(test, fuzzing))]
impl<T> From<T> for Kept<T> {
    fn from(value: T) -> Self {
        Self(watch::channel(Arc::new(value)).1)
    }
}

struct Keeper<T, F> {
    key: String,
    looks: Looks,
    read: F,
    sender: watch::Sender<Arc<T>>,
    told: SourceWatch,
}

impl<T, F: Fn() -> Result<T, Unreadable>> Keeper<T, F> {
    async fn run(mut self, mut asked: watch::Receiver<()>) {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_asked = true;
        loop {
            tokio::select! {
                biased;
                () = self.sender.closed() => return,
                changed = asked.changed(), if is_asked => match changed {
                    Ok(()) => self.reread(),
                    Err(_) => is_asked = false,
                },
                _ = look.tick() => if self.looks.have_changed() {
                    self.reread();
                }
            }
        }
    }

    fn reread(&mut self) {
        self.looks = Looks::new(std::mem::take(&mut self.looks.files));
        match (self.read)() {
            Ok(new) => {
                self.sender.send_replace(Arc::new(new));
                self.told.file(&self.key, None);
                info!(key = self.key, "read again");
            }
            Err(cause) => {
                self.told.file(&self.key, Some(cause.to_string()));
                error!(%cause, "of no use; going on with what was read before");
            }
        }
    }
}

/// What tells one state of a file from another; `None` for one that is not there.
type Stamp = Option<(u64, u64, i64, i64)>;

/// Whether files are as they were.
struct Looks {
    files: Vec<PathBuf>,
    read: Vec<Stamp>,
    last: Vec<Stamp>,
}

impl Looks {
    /// As they are now they are read.
    fn new(files: Vec<PathBuf>) -> Self {
        let read = stamps(&files);
        Self { last: read.clone(), read, files }
    }

    /// Whether they are others than those that were read, and have been so since the last look.
    fn have_changed(&mut self) -> bool {
        let now = stamps(&self.files);
        let rests = now == self.last;
        self.last = now;
        rests && self.last != self.read
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let of = fs::metadata(file).ok()?;
        Some((of.ino(), of.size(), of.mtime(), of.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::secret::FileRef;

    fn in_paused_time(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().start_paused(true).build().expect("a runtime").block_on(test);
    }

    struct Bench {
        file: FileRef,
        ask: watch::Sender<()>,
        told: SourceWatch,
        kept: Kept<String>,
        _dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let file = FileRef { key: "k".into(), path: dir.path().join("file") };
            fs::write(&file.path, "one").expect("writes");
            let (ask, asked) = watch::channel(());
            let told = SourceWatch::for_test();
            let read = {
                let file = file.clone();
                move || String::from_utf8(file.read()?).map_err(|_| file.unusable("is not UTF-8"))
            };
            let kept = Kept::open("k".into(), vec![file.path.clone()], read, asked, told.clone());
            Self { kept: kept.expect("good"), file, ask, told, _dir: dir }
        }

        fn write(&self, text: impl AsRef<[u8]>) {
            fs::write(&self.file.path, text).expect("writes");
        }

        /// Lets the reader do what it has to do after `passed`.
        async fn after(&self, passed: Duration) -> String {
            tokio::task::yield_now().await;
            advance(passed).await;
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            self.kept.get().to_string()
        }
    }

    #[test]
    fn a_changed_file_is_read_when_it_rests_or_somebody_asks() {
        in_paused_time(async {
            let bench = Bench::new();
            assert_eq!(bench.after(LOOK_INTERVAL).await, "one");
            bench.write("three");
            assert_eq!(bench.after(LOOK_INTERVAL).await, "one", "somebody may be writing");
            bench.write("three and more");
            assert_eq!(bench.after(LOOK_INTERVAL).await, "one", "somebody is");
            assert_eq!(bench.after(LOOK_INTERVAL).await, "three and more");
            bench.write("four");
            bench.ask.send_replace(());
            assert_eq!(bench.after(Duration::ZERO).await, "four");
        });
    }

    #[test]
    fn a_file_of_no_use_changes_nothing_and_is_told_until_it_is_good() {
        in_paused_time(async {
            let bench = Bench::new();
            let said = || bench.told.health.state().error;
            bench.write([0xff]);
            bench.ask.send_replace(());
            assert_eq!(bench.after(Duration::ZERO).await, "one");
            assert!(said().is_some_and(|cause| cause.starts_with("k: ") && cause.ends_with("is not UTF-8")));
            fs::remove_file(&bench.file.path).expect("removes");
            bench.after(LOOK_INTERVAL).await;
            assert_eq!(bench.after(LOOK_INTERVAL).await, "one");
            assert!(said().is_some_and(|cause| cause.contains("No such file")));
            assert_eq!(bench.told.failures.get(), 2);
            bench.write("good");
            bench.after(LOOK_INTERVAL).await;
            assert_eq!(bench.after(LOOK_INTERVAL).await, "good");
            assert_eq!(said(), None);
        });
    }
}
