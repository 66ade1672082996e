//! Who may connect, publish and subscribe: the hook for password and access lists.

use std::net::IpAddr;

use crate::config::Anonymous;

/// What a client shows when it connects.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// Address that it connects from.
    pub address: IpAddr,
    /// Client identifier, not empty.
    pub client_id: &'a str,
    /// User name.
    pub user: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
}

/// A client that was let in.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Client identifier.
    pub id: &'a str,
    /// User name.
    pub user: Option<&'a str>,
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Who it says to be is not proven.
    BadUserNameOrPassword,
    /// It may not be here.
    NotAuthorized,
    /// It cannot be decided now; the client tries again.
    Unavailable,
}

/// Decides about clients. Called on the I/O thread: it must not wait.
pub trait Access: Send {
    /// Lets a client in.
    ///
    /// # Errors
    /// [`Denied`], which the client is told.
    fn connect(&self, credentials: &Credentials<'_>) -> Result<(), Denied>;

    /// Whether `client` may publish to `topic`.
    fn publish(&self, client: Client<'_>, topic: &str) -> bool;

    /// Whether `client` may subscribe to `filter`.
    fn subscribe(&self, client: Client<'_>, filter: &str) -> bool;
}

/// Nobody has a password: the address decides, and who is in may do everything.
#[derive(Clone, Copy, Debug)]
pub struct ByAddress(pub Anonymous);

impl Access for ByAddress {
    fn connect(&self, credentials: &Credentials<'_>) -> Result<(), Denied> {
        match self.0 {
            Anonymous::Anywhere => Ok(()),
            Anonymous::Loopback if credentials.address.to_canonical().is_loopback() => Ok(()),
            Anonymous::Loopback => Err(Denied::NotAuthorized),
        }
    }

    fn publish(&self, _: Client<'_>, _: &str) -> bool {
        true
    }

    fn subscribe(&self, _: Client<'_>, _: &str) -> bool {
        true
    }
}
