//! Bearer tokens (RFC 6750) and the streams that each may write to.
//!
//! ```text
//! line = TOKEN {" " STREAM}       without a stream: all
//! ```
//! Blank lines and those that begin with `#` do not count.

use std::fmt;

use ring::digest;
use subtle::ConstantTimeEq as _;

use super::{LineError, each_line};
use crate::record::StreamName;

/// Fewest characters of a token: `openssl rand -hex 16` makes 32.
pub const TOKEN_BYTES_MIN: usize = 16;

/// What is wrong with a line of a token file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenReason {
    /// Short enough to be guessed.
    #[error("the token has less than {TOKEN_BYTES_MIN} characters: make one with `openssl rand -hex 16`")]
    Short,
    /// Characters that no header field holds.
    #[error("the token has other characters than visible ASCII ones")]
    Character,
    /// Behind the token stands what is no stream.
    #[error("behind the token must be names of streams, of a-z A-Z 0-9 . _ -")]
    Stream,
    /// The token stands in an earlier line.
    #[error("the token has a line already, line {0}")]
    Twice(usize),
}

/// Why a token does not open a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefused {
    /// Nobody's.
    Unknown,
    /// Known, and for other streams.
    OtherStreams,
}

/// The tokens of a file. They are kept as SHA-256 digests: neither a dump of the memory nor a comparison's time tells them.
pub struct TokenFile(Vec<Token>);

struct Token {
    digest: digest::Digest,
    line: usize,
    /// Empty: all.
    streams: Vec<StreamName>,
}

impl fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenFile").field("tokens", &self.len()).finish_non_exhaustive()
    }
}

impl TokenFile {
    /// Reads the text of a file. One without tokens admits nobody.
    ///
    /// # Errors
    /// Every line that is wrong; the caller refuses the file. No text of it says a token.
    pub fn parse(text: &str) -> Result<Self, Vec<LineError<TokenReason>>> {
        let mut file = Self(Vec::new());
        each_line(text, |line, text| {
            let mut words = text.split_ascii_whitespace();
            let token = words.next().unwrap_or_default();
            if token.len() < TOKEN_BYTES_MIN {
                return Err(TokenReason::Short);
            }
            if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(TokenReason::Character);
            }
            let digest = digest::digest(&digest::SHA256, token.as_bytes());
            if let Some(first) = file.find(digest) {
                return Err(TokenReason::Twice(first.line));
            }
            let streams = words.map(StreamName::new).collect::<Result<_, _>>();
            file.0.push(Token { digest, line, streams: streams.map_err(|_| TokenReason::Stream)? });
            Ok(())
        })?;
        Ok(file)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `token` may write to `stream`.
    ///
    /// # Errors
    /// [`TokenRefused`].
    pub fn check(&self, token: &[u8], stream: &str) -> Result<(), TokenRefused> {
        let found = self.find(digest::digest(&digest::SHA256, token)).ok_or(TokenRefused::Unknown)?;
        let opens = found.streams.is_empty() || found.streams.iter().any(|name| name.as_str() == stream);
        if opens { Ok(()) } else { Err(TokenRefused::OtherStreams) }
    }

    /// Compares with all: the time says neither whether one fits nor how much of one does.
    fn find(&self, digest: digest::Digest) -> Option<&Token> {
        self.0.iter().fold(None, |found, token| {
            let fits = bool::from(token.digest.as_ref().ct_eq(digest.as_ref()));
            if fits { Some(token) } else { found }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_its_streams_and_no_others() {
        let text = "# devices\n0123456789abcdef\n\nfedcba9876543210 occupancy  doors\n";
        let file = TokenFile::parse(text).expect("good");
        assert_eq!(file.check(b"0123456789abcdef", "any"), Ok(()));
        assert_eq!(file.check(b"fedcba9876543210", "doors"), Ok(()));
        assert_eq!(file.check(b"fedcba9876543210", "any"), Err(TokenRefused::OtherStreams));
        for unknown in ["", "0123456789abcde", "0123456789abcdef0", "# devices", "fedcba9876543210 doors"] {
            assert_eq!(file.check(unknown.as_bytes(), "doors"), Err(TokenRefused::Unknown), "{unknown}");
        }
        assert!(TokenFile::parse("").expect("empty").is_empty());
    }

    #[test]
    fn wrong_lines_are_named_by_number_and_no_token_is_shown() {
        let text = "0123456789abcdef\nshort\n0123456789abcdef x\nfedcba9876543210 a/b\nzzzzzzzzzzzzzzzzä";
        let errors = TokenFile::parse(text).expect_err("wrong");
        let found: Vec<_> = errors.iter().map(|error| (error.line, error.reason)).collect();
        let expected = [
            (2, TokenReason::Short),
            (3, TokenReason::Twice(1)),
            (4, TokenReason::Stream),
            (5, TokenReason::Character),
        ];
        assert_eq!(found, expected);
        let said: String = errors.iter().map(|error| format!("{error} {error:?}")).collect();
        assert!(!said.contains("0123") && !said.contains("fedc") && !said.contains("zzz"), "{said}");
        assert_eq!(
            format!("{:?}", TokenFile::parse("0123456789abcdef").expect("good")),
            "TokenFile { tokens: 1, .. }"
        );
    }
}
