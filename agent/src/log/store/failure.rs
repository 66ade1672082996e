//! What a step on an epoch came to, by what can be done about it.

use std::io;

/// Why a step on an epoch failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The disk is full.
    NoSpace,
    /// Not the fault of the files: it may work later.
    Transient(io::Error),
    /// Damage, a panic, or an error that will not go away.
    Broken(String),
}

impl Failure {
    pub(super) fn of_io(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        /// Too many open files, in the system and in the process: no `ErrorKind` says so.
        const NO_DESCRIPTOR: [i32; 2] = [23, 24];
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded => Self::NoSpace,
            Kind::OutOfMemory
            | Kind::PermissionDenied
            | Kind::ReadOnlyFilesystem
            | Kind::Interrupted
            | Kind::WouldBlock
            | Kind::TimedOut => Self::Transient(error),
            _ if error.raw_os_error().is_some_and(|code| NO_DESCRIPTOR.contains(&code)) => {
                Self::Transient(error)
            }
            _ => Self::Broken(error.to_string()),
        }
    }

    /// In words, for errors that carry text.
    pub(super) fn into_reason(self) -> String {
        match self {
            Self::NoSpace => "no space left on the device".into(),
            Self::Transient(error) => error.to_string(),
            Self::Broken(reason) => reason,
        }
    }
}
