//! Tokens for OAUTHBEARER: from a secret or a command, with what Kafka's client must know of them.

use std::{
    io::Read as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use base64::Engine as _;
use rdkafka::client::OAuthToken;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use crate::{
    config::TokenSource,
    record::UnixMicros,
    secret::{Secret, Unreadable},
};

/// How errors of commands begin.
pub(super) const NO_TOKEN: &str = "replicate.sasl.token_command";

/// Longest time that a command may take. Replication waits for it, the sources do not.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Most that a command may say, in bytes.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// Life of a token that does not say how long it lives; it is asked for again before.
const LIFETIME: Duration = Duration::from_secs(300);

/// Why there is no token. Kafka's client asks again.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    /// The secret.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The command cannot be started, did not end well or in time, or did not say a token. What it says is not repeated:
    /// it may hold the token.
    #[error("{NO_TOKEN}: {program} {cause}")]
    Command {
        /// The program.
        program: String,
        /// What happened.
        cause: String,
    },
}

/// A token as it is now.
///
/// # Errors
/// [`TokenError`].
pub(super) fn get(source: &TokenSource, now: UnixMicros) -> Result<OAuthToken, TokenError> {
    let secret = match source {
        TokenSource::Secret(secret) => secret.load()?,
        TokenSource::Command(command) => run(command, COMMAND_TIMEOUT)?,
    };
    Ok(described(secret.expose(), now))
}

/// Runs `command`, without a shell, and takes what it prints.
fn run(command: &[String], limit: Duration) -> Result<Secret, TokenError> {
    let (program, arguments) = command.split_first().expect("the configuration is checked");
    let failed = |cause: String| TokenError::Command { program: program.clone(), cause };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // With all that it starts, so that a time-out ends them too.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let output = child.stdout.take().expect("it was asked for a pipe");
    let (sender, said) = channel();
    let listener = thread::Builder::new().name("token".into()).spawn(move || {
        let mut bytes = Vec::new();
        let read = output.take(TOKEN_BYTES_MAX + 1).read_to_end(&mut bytes);
        // Nobody waits any more after the time-out.
        let _ = sender.send(read.map(|_| bytes));
    });
    if let Err(error) = listener {
        end(&mut child);
        return Err(failed(format!("cannot be listened to: {error}")));
    }
    let bytes = match said.recv_timeout(limit) {
        Ok(Ok(bytes)) if bytes.len() as u64 <= TOKEN_BYTES_MAX => bytes,
        other => {
            end(&mut child);
            return Err(failed(match other {
                Ok(Ok(_)) => format!("says more than {TOKEN_BYTES_MAX} bytes"),
                Ok(Err(error)) => format!("cannot be listened to: {error}"),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    format!("has not ended within {} s", limit.as_secs())
                }
            }));
        }
    };
    // It has closed its output, so it ends now, or is no well-behaved command.
    let status = match (0..100).find_map(|_| ended(&mut child)) {
        Some(status) => status.map_err(|error| failed(format!("cannot be waited for: {error}")))?,
        None => {
            end(&mut child);
            return Err(failed("does not end".into()));
        }
    };
    if !status.success() {
        return Err(failed(format!("failed: {status}")));
    }
    Secret::new(bytes).map_err(|cause| failed(format!("says what {cause}")))
}

/// The status of `child`; `None` if it still runs after a moment.
fn ended(child: &mut Child) -> Option<std::io::Result<std::process::ExitStatus>> {
    let status = child.try_wait().transpose();
    if status.is_none() {
        thread::sleep(Duration::from_millis(10));
    }
    status
}

fn end(child: &mut Child) {
    // Its id is not used again before it is waited for.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

/// What a JSON Web Token says of itself.
#[derive(Default, Deserialize)]
struct Claims {
    /// Unix time in seconds.
    exp: Option<f64>,
    sub: Option<String>,
}

/// `token` with its end and its owner, where it is a JSON Web Token. The broker checks it, we only look.
fn described(token: &str, now: UnixMicros) -> OAuthToken {
    let claims = token.split('.').nth(1).and_then(|part| {
        let json =
            base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part.trim_end_matches('=')).ok()?;
        serde_json::from_slice::<Claims>(&json).ok()
    });
    let Claims { exp, sub } = claims.unwrap_or_default();
    let default_ms = now.as_millis() + i64::try_from(LIFETIME.as_millis()).expect("minutes");
    #[allow(clippy::cast_possible_truncation, reason = "a float becomes the nearest integer")]
    let lifetime_ms = exp.map_or(default_ms, |s| (s * 1_000.0) as i64);
    let principal_name = sub.filter(|sub| !sub.is_empty() && !sub.contains('\0'));
    OAuthToken {
        token: token.to_owned(),
        principal_name: principal_name.unwrap_or_else(|| "wayside".to_owned()),
        lifetime_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMicros = UnixMicros(1_700_000_000_000_000);

    fn sh(script: &str, limit: Duration) -> Result<String, String> {
        let secret = run(&["sh".into(), "-c".into(), script.into()], limit);
        secret.map(|secret| secret.expose().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_is_what_a_command_prints() {
        assert_eq!(sh("echo token", COMMAND_TIMEOUT), Ok("token".into()));
    }

    #[test]
    fn a_command_that_fails_is_named_and_not_quoted() {
        let at = |cause: &str| Err(format!("{NO_TOKEN}: sh {cause}"));
        assert_eq!(sh("echo token; exit 3", COMMAND_TIMEOUT), at("failed: exit status: 3"));
        assert_eq!(sh("true", COMMAND_TIMEOUT), at("says what is empty"));
        assert_eq!(sh("yes token", COMMAND_TIMEOUT), at("says more than 65536 bytes"));
        assert_eq!(sh("sleep 600 & sleep 600", Duration::ZERO), at("has not ended within 0 s"));
        assert_eq!(sh("exec >&-; sleep 600", COMMAND_TIMEOUT), at("does not end"));
    }

    #[test]
    fn a_command_that_is_not_there_cannot_be_started() {
        let missing = run(&["/no/such/program".into()], COMMAND_TIMEOUT).unwrap_err().to_string();
        assert!(missing.contains("/no/such/program cannot be started"), "{missing}");
    }

    #[test]
    fn a_json_web_token_says_when_it_ends_and_whose_it_is() {
        // {"sub":"gw-1","exp":1700003600}
        let token = described("e30.eyJzdWIiOiJndy0xIiwiZXhwIjoxNzAwMDAzNjAwfQ.", NOW);
        assert_eq!((&*token.principal_name, token.lifetime_ms), ("gw-1", 1_700_003_600_000));
        for opaque in ["opaque", "a.b.c", "a.!!.c", ".."] {
            let token = described(opaque, NOW);
            assert_eq!((&*token.principal_name, token.lifetime_ms), ("wayside", 1_700_000_300_000));
        }
    }
}
