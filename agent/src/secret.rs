//! Secrets, and the files beside them: where the configuration says that they are, read at the moment of use.
//!
//! The configuration never holds a secret, it says where one is kept:
//!
//! | form | the secret is |
//! | --- | --- |
//! | `file:PATH` | what the file holds |
//! | `env:NAME` | the value of the environment variable |
//! | `credential:NAME` | the file `NAME` in `$CREDENTIALS_DIRECTORY`, as systemd's `LoadCredential=` puts it there |
//!
//! One newline at the end is not part of it. Secrets and certificates are read again for each connection, so that new ones
//! need no restart. A [`Secret`] has no text of its own: it cannot get into a log or an error by accident.

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// What a key that takes a secret may be, for the text of an error.
pub const FORMS: &str = "must be file:PATH, env:NAME or credential:NAME; the secret itself has no place here";

/// Largest secret or certificate file, in bytes. The CA bundles of distributions have a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A secret: text without NUL.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for whoever is to be shown it: a server, or the library that speaks to one.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Takes what was read.
    ///
    /// # Errors
    /// What is wrong with it, without a word of it.
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self, &'static str> {
        let mut text = String::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
        let end = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line).len());
        text.truncate(end.unwrap_or(text.len()));
        match &*text {
            "" => Err("is empty"),
            text if text.contains('\0') => Err("contains a NUL byte"),
            _ => Ok(Self(text)),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A secret or file that cannot be read. Whoever needs it says so and tries again later: it may come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {place} {cause}")]
pub struct Unreadable {
    key: String,
    place: String,
    cause: String,
}

/// Where a secret is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRef {
    key: String,
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    File(PathBuf),
    Environment(String),
    Credential(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Credential(name) => write!(f, "credential {name}"),
        }
    }
}

impl SecretRef {
    /// Reads what stands at `key` of the configuration; `None` if it has none of the forms.
    pub fn parse(key: &str, text: &str) -> Option<Self> {
        let (form, name) = text.split_once(':').filter(|(_, name)| !name.is_empty())?;
        let place = match form {
            "file" => Place::File(name.into()),
            "env" if !name.contains('=') => Place::Environment(name.into()),
            "credential" if !name.contains('/') && name != ".." => Place::Credential(name.into()),
            _ => return None,
        };
        Some(Self { key: key.into(), place })
    }

    /// The file that holds it, if one does.
    pub fn file(&self) -> Option<PathBuf> {
        match &self.place {
            Place::File(path) => Some(path.clone()),
            Place::Environment(_) => None,
            Place::Credential(name) => {
                Some(Path::new(&std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name))
            }
        }
    }

    /// The error that the secret is of no use.
    pub fn unusable(&self, cause: impl Into<String>) -> Unreadable {
        Unreadable { key: self.key.clone(), place: self.place.to_string(), cause: cause.into() }
    }

    /// The secret as it is now.
    ///
    /// # Errors
    /// [`Unreadable`]: not there, no right to read it, empty, or no text.
    pub fn load(&self) -> Result<Secret, Unreadable> {
        self.load_with(|name| std::env::var_os(name))
    }

    fn load_with(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Secret, Unreadable> {
        use std::os::unix::ffi::OsStringExt as _;
        let bytes = match &self.place {
            Place::File(path) => read(path),
            Place::Environment(name) => {
                variable(name).map(OsString::into_vec).ok_or_else(|| "is not set".to_owned())
            }
            Place::Credential(name) => match variable("CREDENTIALS_DIRECTORY") {
                Some(directory) => read(&Path::new(&directory).join(name)),
                None => Err(
                    "cannot be had: $CREDENTIALS_DIRECTORY is not set; does the unit have LoadCredential=?"
                        .into(),
                ),
            },
        };
        bytes
            .and_then(|bytes| Secret::new(bytes).map_err(str::to_owned))
            .map_err(|cause| self.unusable(cause))
    }
}

/// A file that is no secret, like a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// Key of the configuration that names it.
    pub key: String,
    /// Where it is.
    pub path: PathBuf,
}

impl FileRef {
    /// What it holds now.
    ///
    /// # Errors
    /// [`Unreadable`]: not there, no right to read it, no plain file, or larger than 1 MiB.
    pub fn read(&self) -> Result<Vec<u8>, Unreadable> {
        read(&self.path).map_err(|cause| self.unusable(cause))
    }

    /// Whether everybody on the gateway may read it.
    pub fn is_open_to_all(&self) -> bool {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(&self.path).is_ok_and(|of| of.permissions().mode() & 0o004 != 0)
    }

    /// The error that its contents are of no use.
    pub fn unusable(&self, cause: impl Into<String>) -> Unreadable {
        Unreadable { key: self.key.clone(), place: self.path.display().to_string(), cause: cause.into() }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cause = |error: io::Error| format!("cannot be read: {error}");
    // A pipe or device could keep us waiting for ever.
    if !fs::metadata(path).map_err(cause)?.is_file() {
        return Err("is no plain file".into());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(cause)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cause)?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err("is larger than 1 MiB".into()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "source.mqtt[0].password";

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<String, String> {
        let secret = SecretRef::parse(KEY, text).expect("one of the forms").load_with(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
        });
        secret.map(|secret| secret.expose().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_comes_from_a_file_the_environment_or_a_credential() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("mqtt");
        fs::write(&path, "hunter2\n").expect("writes");
        let credentials = dir.path().to_str().expect("text");
        let hunter2 = || Ok("hunter2".to_owned());
        assert_eq!(load(&format!("file:{}", path.display()), &[]), hunter2());
        assert_eq!(load("env:PASSWORD", &[("PASSWORD", "hunter2")]), hunter2());
        assert_eq!(load("credential:mqtt", &[("CREDENTIALS_DIRECTORY", credentials)]), hunter2());
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_named_by_key_place_and_cause() {
        let dir = tempfile::tempdir().expect("a directory");
        let said = |text: &str| load(text, &[("EMPTY", "\n"), ("NUL", "a\0b")]).expect_err("unreadable");
        let missing = dir.path().join("missing");
        assert_eq!(
            said(&format!("file:{}", missing.display())),
            format!("{KEY}: {} cannot be read: No such file or directory (os error 2)", missing.display())
        );
        let path = dir.path().display();
        assert_eq!(said(&format!("file:{path}")), format!("{KEY}: {path} is no plain file"));
        assert_eq!(said("env:NONE"), format!("{KEY}: environment variable NONE is not set"));
        assert_eq!(said("env:EMPTY"), format!("{KEY}: environment variable EMPTY is empty"));
        assert_eq!(said("env:NUL"), format!("{KEY}: environment variable NUL contains a NUL byte"));
        assert!(said("credential:mqtt").contains("LoadCredential="));
    }

    #[test]
    fn what_has_none_of_the_forms_is_no_place() {
        for text in ["", "hunter2", "file:", "env:A=b", "credential:../shadow", "http://vault"] {
            assert_eq!(SecretRef::parse(KEY, text), None, "{text}");
        }
    }

    #[test]
    fn a_secret_does_not_show_itself() {
        let secret = Secret::new(b"hunter2".to_vec()).expect("good");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
    }
}
