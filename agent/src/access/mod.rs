//! Who may do what: files in Mosquitto's formats, so that an installation keeps those that it has.
//!
//! Pure but for [`load`]: text in, decisions out. [`passwords`] says who somebody is, [`acl`] what they may read and write. [`tokens`], whose
//! format is our own, says both for HTTP.

pub mod acl;
pub mod passwords;
pub mod tokens;

use std::fmt;

use crate::secret::{FileRef, Unreadable};

/// A line of a file that cannot be. The file is refused as a whole: half of the rules are other rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct LineError<R: fmt::Display> {
    /// Line of the file, from 1.
    pub line: usize,
    /// What is wrong with it. It never holds what stands there: that may be a secret.
    pub reason: R,
}

/// Lines of a file whose faults an error names.
const FAULTS_MAX: usize = 8;

/// Reads `file` with `parse`.
///
/// # Errors
/// It cannot be read, or lines of it are wrong, which are named by number.
pub fn load<T, R: fmt::Display>(
    file: &FileRef,
    parse: impl FnOnce(&str) -> Result<T, Vec<LineError<R>>>,
) -> Result<T, Unreadable> {
    let text = String::from_utf8(file.read()?).map_err(|_| file.unusable("is not UTF-8"))?;
    parse(&text).map_err(|errors| {
        let mut faults: Vec<_> = errors.iter().take(FAULTS_MAX).map(ToString::to_string).collect();
        if let Some(more) = errors.len().checked_sub(FAULTS_MAX + 1) {
            faults.push(format!("and {} more", more + 1));
        }
        file.unusable(faults.join("; "))
    })
}

/// Parses each line of `text` that is neither blank nor a comment, which has `#` as its first character, and hands it on.
///
/// # Errors
/// One for each line that `parse` refuses.
fn each_line<'t, R: fmt::Display>(
    text: &'t str,
    mut parse: impl FnMut(usize, &'t str) -> Result<(), R>,
) -> Result<(), Vec<LineError<R>>> {
    let lines = text.lines().zip(1..).map(|(text, line)| (line, text.trim_end()));
    let errors: Vec<_> = lines
        .filter(|(_, text)| !text.is_empty() && !text.starts_with('#'))
        .filter_map(|(line, text)| parse(line, text).err().map(|reason| LineError { line, reason }))
        .collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}
