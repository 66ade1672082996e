//! From the configuration to an address that is listened at and files that are good.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    time::sleep,
};
use tokio_rustls::rustls::ServerConfig;
use tracing::{error, info};

use super::access::{self, Configured};
use crate::{
    config::{self, Listener},
    kept::Kept,
    secret::Unreadable,
    source::{SourceContext, backoff::Backoff},
    tls,
};

/// Connections that may wait to be accepted: all clients come at once after a power cut, and one that finds no place tries again
/// after a second.
const BACKLOG: u32 = 4096;

/// Delays before an address that cannot be had is tried again.
const LISTEN_AGAIN: config::Backoff =
    config::Backoff { min: Duration::from_millis(250), max: Duration::from_secs(30) };

/// Looks whether `listener` could listen, and reads its files, as `wayside check --connect` does; a running agent keeps its clients.
///
/// # Errors
/// A file that cannot be used, or why the address cannot be had.
pub async fn reach(listener: &Listener) -> Result<String, String> {
    access::read(listener).map_err(|error| error.to_string())?;
    listener.tls.as_ref().map(tls::server).transpose().map_err(|error| error.to_string())?;
    match bind(listener.listen) {
        Ok(_) => Ok("free to listen at".into()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match TcpStream::connect(listener.listen).await {
                Ok(_) => Ok("in use, as by an agent that runs".into()),
                Err(_) => Err(error.to_string()),
            }
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Waits until the files can be used and the address can be had; `None` if the agent stops before.
pub(super) async fn listen(
    config: &Listener,
    mut context: SourceContext,
) -> Option<(TcpListener, Files, SourceContext)> {
    let mut again = Backoff::new(LISTEN_AGAIN);
    loop {
        let opened = Files::open(config, &context).map_err(|error| error.to_string()).and_then(|files| {
            let listener = bind(config.listen);
            let listener =
                listener.map_err(|error| format!("cannot listen at {}: {error}", config.listen))?;
            Ok((listener, files))
        });
        match opened {
            Ok((listener, files)) => {
                info!(source = config.name, address = %config.listen, "listening");
                return Some((listener, files, context));
            }
            Err(cause) => {
                context.counters.failures.inc();
                if context.health.down(&cause) {
                    error!(source = config.name, cause, "cannot listen");
                }
            }
        }
        let delay = again.next(&mut *context.entropy);
        tokio::select! {
            biased;
            _ = context.shutdown.wait_for(|asked| *asked) => return None,
            () = sleep(delay) => {}
        }
    }
}

/// What is read from files.
pub(super) struct Files {
    /// Who may do what.
    pub(super) access: Configured,
    /// What connections are encrypted with.
    pub(super) tls: Option<Kept<ServerConfig>>,
}

impl Files {
    fn open(config: &Listener, context: &SourceContext) -> Result<Self, Unreadable> {
        let tls = config.tls.as_ref().map(|tls| context.keep_tls(tls)).transpose()?;
        Ok(Self { access: Configured::open(config, context)?, tls })
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of the agent before this one may linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
