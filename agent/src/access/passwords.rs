//! Mosquitto's password file, as `mosquitto_passwd` writes it.
//!
//! ```text
//! line   = user ":" hash
//! hash   = "$7$" iterations "$" salt "$" PBKDF2-HMAC-SHA-512(password, salt, iterations), 64 bytes
//!        | "$6$" salt "$" SHA-512(password salt), before Mosquitto 2.0
//! ```
//! Salt and hash are in base64 (RFC 4648 section 4, with padding), iterations decimal. User names hold no colon. Blank lines
//! and those that begin with `#` do not count.

use std::{collections::BTreeMap, fmt, hint, num::NonZeroU32};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{digest, pbkdf2};
use subtle::ConstantTimeEq as _;

use super::{LineError, each_line};

/// Most iterations of an entry: about a second of a Raspberry Pi's time for each attempt.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// What `mosquitto_passwd` takes if not told otherwise: what an attempt costs where no entry says it.
const ITERATIONS_DEFAULT: NonZeroU32 = NonZeroU32::new(101).expect("101 is not 0");

const HASH_BYTES: usize = digest::SHA512_OUTPUT_LEN;

/// What is wrong with a line of a password file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordReason {
    /// No colon.
    #[error("must be user:hash")]
    Form,
    /// Nothing in front of the colon.
    #[error("the user has no name")]
    Name,
    /// The user stands in an earlier line.
    #[error("the user has a line already, line {0}")]
    Twice(usize),
    /// A password as it is, or a hash of another kind.
    #[error("the hash is neither $7$ (PBKDF2) nor $6$ (SHA-512): make the line with mosquitto_passwd")]
    Kind,
    /// The parts behind the kind are not those of the format.
    #[error("the hash is cut or damaged: make the line with mosquitto_passwd")]
    Hash,
    /// Iterations that are none, or would take seconds.
    #[error("the iterations must be 1 to {ITERATIONS_MAX}")]
    Iterations,
}

/// Users and the hashes of their passwords.
pub struct PasswordFile {
    users: BTreeMap<Box<str>, Entry>,
    /// What somebody unknown is compared with.
    stranger: Entry,
}

/// The hash of a password and how it is made.
struct Entry {
    /// Of PBKDF2; `None` for one round of SHA-512.
    iterations: Option<NonZeroU32>,
    salt: Box<[u8]>,
    hash: [u8; HASH_BYTES],
}

impl fmt::Debug for PasswordFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordFile").field("users", &self.users.len()).finish_non_exhaustive()
    }
}

impl PasswordFile {
    /// Reads the text of a file. One without entries accepts nobody.
    ///
    /// # Errors
    /// Every line that is wrong; the caller refuses the file. No text of it says a name, hash or password.
    pub fn parse(text: &str) -> Result<Self, Vec<LineError<PasswordReason>>> {
        let mut users = BTreeMap::new();
        let mut lines = BTreeMap::new();
        each_line(text, |line, text| {
            let (name, hash) = text.split_once(':').ok_or(PasswordReason::Form)?;
            if name.is_empty() {
                return Err(PasswordReason::Name);
            }
            if let Some(first) = lines.insert(name, line) {
                return Err(PasswordReason::Twice(first));
            }
            users.insert(name.into(), Entry::parse(hash)?);
            Ok(())
        })?;
        let most = users.values().filter_map(|entry: &Entry| entry.iterations).max();
        let stranger = Entry {
            iterations: Some(most.unwrap_or(ITERATIONS_DEFAULT)),
            salt: Box::new([]),
            hash: [0; HASH_BYTES],
        };
        Ok(Self { users, stranger })
    }

    /// Whether `password` is that of `user`.
    ///
    /// The answer takes the time of the entry with the most iterations, whether the user is known or not and whatever the
    /// password: 0.2 ms as `mosquitto_passwd` makes them, up to a second at [`ITERATIONS_MAX`].
    pub fn accepts(&self, user: &str, password: &[u8]) -> bool {
        self.attempt(user, password).0
    }

    /// The answer, and the iterations that it took.
    fn attempt(&self, user: &str, password: &[u8]) -> (bool, u32) {
        let known = self.users.get(user);
        let entry = known.unwrap_or(&self.stranger);
        let is_its: bool = entry.hash_of(password).ct_eq(&entry.hash).into();
        let spent = entry.iterations.map_or(0, NonZeroU32::get);
        let missing = self.stranger.iterations.map_or(0, NonZeroU32::get) - spent;
        if let Some(iterations) = NonZeroU32::new(missing) {
            hint::black_box(stretched(iterations, &entry.salt, password));
        }
        (known.is_some() && is_its, spent + missing)
    }
}

impl Entry {
    fn parse(hash: &str) -> Result<Self, PasswordReason> {
        let (iterations, rest) = if let Some(rest) = hash.strip_prefix("$7$") {
            let (iterations, rest) = rest.split_once('$').ok_or(PasswordReason::Hash)?;
            let iterations = iterations.parse().ok().filter(|it: &NonZeroU32| it.get() <= ITERATIONS_MAX);
            (Some(iterations.ok_or(PasswordReason::Iterations)?), rest)
        } else {
            (None, hash.strip_prefix("$6$").ok_or(PasswordReason::Kind)?)
        };
        let (salt, hash) = rest.split_once('$').ok_or(PasswordReason::Hash)?;
        let decoded = |text: &str| STANDARD.decode(text).map_err(|_| PasswordReason::Hash);
        let (salt, hash) = (decoded(salt)?, decoded(hash)?);
        if salt.is_empty() {
            return Err(PasswordReason::Hash);
        }
        let hash = hash.try_into().map_err(|_| PasswordReason::Hash)?;
        Ok(Self { iterations, salt: salt.into(), hash })
    }

    fn hash_of(&self, password: &[u8]) -> [u8; HASH_BYTES] {
        match self.iterations {
            Some(iterations) => stretched(iterations, &self.salt, password),
            None => {
                let mut context = digest::Context::new(&digest::SHA512);
                context.update(password);
                context.update(&self.salt);
                let mut hash = [0; HASH_BYTES];
                hash.copy_from_slice(context.finish().as_ref());
                hash
            }
        }
    }
}

/// PBKDF2-HMAC-SHA-512 (RFC 8018 section 5.2).
fn stretched(iterations: NonZeroU32, salt: &[u8], password: &[u8]) -> [u8; HASH_BYTES] {
    let mut hash = [0; HASH_BYTES];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, iterations, salt, password, &mut hash);
    hash
}

/// The line that `mosquitto_passwd` would write.
#[cfg(any(test, fuzzing))]
pub(crate) fn line(user: &str, iterations: NonZeroU32, salt: &[u8], password: &[u8]) -> String {
    let hash = STANDARD.encode(stretched(iterations, salt, password));
    format!("{user}:$7${iterations}${}${hash}", STANDARD.encode(salt))
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use proptest::prelude::*;

    use super::*;
    use crate::testing::left_out;

    /// Made with `mosquitto_passwd` 2.0.11 of Debian 12: `-b -c`, `-I 1000` for dave, `-H sha512` for carol. Passwords:
    /// `secret`, and `p:w` for dave.
    const GOLDEN: &str = "\
# users
alice:$7$101$al+rYkfOR3Z/C2gs$N6P7LYCUUgC33OyRa9DznWnt9wUnG+DO58yVoURL9jRhaR94rb44hUBHfY2ZGWQqm/2VKiRvxWsFfjkGhgIuLg==
bob:$7$101$dRx74zcLeelEm6mi$IllT5IrtIZMHztqHQTb95IFlgz+W/h2rI3uE3PQXsfMOVioMQHITLt0ICxwxmRWWw9VBYm+pYwiKguqg5xszzw==

carol:$6$PiLxDKTP9hd3N77D$iMW3emnRXhHZbMKvMmCFlF/uQTK35sLfOSS9rTdUNiT8LJL5uC0q7Y51YRqR3sx4vvxjx9OWNtRG8am/T6TKWw==
dave:$7$1000$eGD3tWpOcW9Mo9/g$TtvrATmryT5dF6CDyQNhFUi5hvNEMbWxxd4uwXdCmeWb9PuqKcn5Kd6h1/SyYx+3mUEDvmSEvHSIO+e6D/TtrA==\r
";

    fn golden() -> PasswordFile {
        PasswordFile::parse(GOLDEN).expect("a file of mosquitto_passwd")
    }

    #[test]
    fn lines_of_mosquitto_passwd_accept_their_passwords_and_no_others() {
        let file = golden();
        for (user, password) in [("alice", "secret"), ("bob", "secret"), ("carol", "secret"), ("dave", "p:w")]
        {
            assert!(file.accepts(user, password.as_bytes()), "{user}");
            for wrong in ["", "Secret", "secret ", "p"] {
                assert!(!file.accepts(user, wrong.as_bytes()), "{user} {wrong:?}");
            }
        }
        for user in ["", "Alice", "alice ", "# users", "mallory"] {
            assert!(!file.accepts(user, b"secret"), "{user:?}");
        }
        assert!(!PasswordFile::parse("").expect("empty").accepts("", b""));
    }

    #[test]
    fn fresh_lines_of_the_installed_mosquitto_passwd_are_understood() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("passwords");
        fs::write(&path, "").expect("writable");
        for (kind, user, password) in [
            ("sha512-pbkdf2", "new", "pass word"),
            ("sha512", "old", "päss"),
            ("sha512-pbkdf2", "ü", "$7$x:y"),
        ] {
            let mut command = Command::new("mosquitto_passwd");
            command.args(["-H", kind, "-b"]).arg(&path).args([user, password]);
            let Ok(made) = command.output() else { return left_out("`mosquitto_passwd` in PATH") };
            assert!(made.status.success(), "{made:?}");
            let file = PasswordFile::parse(&fs::read_to_string(&path).expect("written")).expect("understood");
            assert!(file.accepts(user, password.as_bytes()), "{user}");
            assert!(!file.accepts(user, b"other"), "{user}");
        }
    }

    #[test]
    fn an_unknown_user_costs_what_a_wrong_password_costs() {
        let file = golden();
        let attempts =
            [("alice", "secret"), ("alice", "x"), ("carol", "secret"), ("dave", "x"), ("nobody", "x")];
        for (user, password) in attempts {
            assert_eq!(file.attempt(user, password.as_bytes()).1, 1000, "{user}");
        }
        assert_eq!(PasswordFile::parse("").expect("empty").attempt("nobody", b"x").1, 101);
    }

    #[test]
    fn wrong_lines_are_named_by_number_and_nothing_of_them_is_shown() {
        let long = "QUFB".repeat(24);
        let hash = "QUFB".repeat(21) + "QQ==";
        let text = format!(
            "good:$7$101$QUFB${hash}\nsecret1\n:$6$QUFB${hash}\ngood:$6$QUFB${hash}\nplain:secret2\nb:$7$0$QUFB${hash}\n\
             c:$7$1000001$QUFB${hash}\nd:$7$-1$QUFB${hash}\ne:$7$101$$${hash}\nf:$7$101$QUFB$secret3\ng:$6$QUFB${long}\n\
             h:$7$101\ni:$argon2id$v=19$secret4"
        );
        let errors = PasswordFile::parse(&text).expect_err("wrong");
        let found: Vec<_> = errors.iter().map(|error| (error.line, error.reason)).collect();
        assert_eq!(
            found,
            [
                (2, PasswordReason::Form),
                (3, PasswordReason::Name),
                (4, PasswordReason::Twice(1)),
                (5, PasswordReason::Kind),
                (6, PasswordReason::Iterations),
                (7, PasswordReason::Iterations),
                (8, PasswordReason::Iterations),
                (9, PasswordReason::Hash),
                (10, PasswordReason::Hash),
                (11, PasswordReason::Hash),
                (12, PasswordReason::Hash),
                (13, PasswordReason::Kind),
            ]
        );
        let said: String = errors.iter().map(|error| format!("{error} {error:?}\n")).collect();
        assert!(said.starts_with("line 2: must be user:hash"), "{said}");
        assert!(!said.contains("secret") && !said.contains("QUFB"), "{said}");
        assert_eq!(format!("{:?}", golden()), "PasswordFile { users: 4, .. }");
    }

    proptest! {
        #[test]
        fn a_line_accepts_its_password_and_no_other(
            user in "[^:#\\s][^:\\s]{0,20}",
            iterations in 1..50_u32,
            salt in prop::collection::vec(any::<u8>(), 1..64),
            // HMAC takes a key with zeros behind it for the same key.
            password in prop::collection::vec(1..=255_u8, 0..100),
            other in prop::collection::vec(1..=255_u8, 0..100),
        ) {
            let iterations = NonZeroU32::new(iterations).expect("not 0");
            let file = PasswordFile::parse(&line(&user, iterations, &salt, &password)).expect("a line");
            prop_assert!(file.accepts(&user, &password));
            prop_assert_eq!(file.accepts(&user, &other), other == password);
        }

        #[test]
        fn any_text_is_a_file_or_has_its_lines_named(text in "([a-c]?:?\\$?[67]?\\$?[0-9A-Z+/=$]{0,20}\n?){0,6}|\\PC{0,60}") {
            if let Err(errors) = PasswordFile::parse(&text) {
                prop_assert!(!errors.is_empty());
                prop_assert!(errors.is_sorted_by(|a, b| a.line < b.line));
                prop_assert!(errors.iter().all(|error| (1..=text.lines().count()).contains(&error.line)));
            }
        }
    }
}
