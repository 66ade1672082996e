//! `wayside check --connect` at an address to listen on.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use super::server;
use crate::{
    access::{load, tokens::TokenFile},
    config::HttpSource,
    tls,
};

/// Longest wait for who listens there already.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Reads the files and listens on the address for a moment. Says what it found.
///
/// # Errors
/// Why the agent could not take requests.
pub fn reach(config: &HttpSource) -> Result<String, String> {
    let tokens = config.token_file.as_ref().map(|file| load(file, TokenFile::parse));
    let tokens = tokens.transpose().map_err(|error| error.to_string())?;
    config.tls.as_ref().map(tls::server).transpose().map_err(|error| error.to_string())?;
    let who = match tokens {
        Some(tokens) => format!("{} tokens", tokens.len()),
        None => "no tokens".into(),
    };
    match TcpListener::bind(config.listen) {
        Ok(_) => Ok(format!("is free, {who}")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_ours(config) => {
            Ok(format!("is served by the agent that runs, {who}"))
        }
        Err(error) => Err(format!("cannot listen: {error}")),
    }
}

/// Whether who listens there describes itself as we do; behind TLS, which may want a certificate that we do not have, whether
/// anybody does.
fn is_ours(config: &HttpSource) -> bool {
    let address = config.listen;
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        if config.tls.is_some() {
            return Ok(server::DESCRIPTION.to_owned());
        }
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        write!(stream, "GET {} HTTP/1.0\r\nHost: {address}\r\n\r\n", server::OPENAPI)?;
        let mut answer = String::new();
        // A little more than we would say: whoever is there may say more than we want to hear.
        stream.take(2 * server::DESCRIPTION.len() as u64).read_to_string(&mut answer)?;
        io::Result::Ok(answer)
    };
    ask().is_ok_and(|answer| answer.ends_with(server::DESCRIPTION))
}
