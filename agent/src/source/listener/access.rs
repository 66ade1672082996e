//! Who may connect, publish and subscribe: the hook between the broker and what the operator has said.

use std::{net::IpAddr, sync::Arc};

use tracing::warn;

use crate::{
    access::{
        acl::{self, Acl},
        load,
        passwords::PasswordFile,
    },
    config::{Anonymous, CertificateUser, Listener},
    kept::Kept,
    secret::{FileRef, Unreadable},
    source::SourceContext,
};

/// What a client shows when it connects.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// Address that it connects from.
    pub address: IpAddr,
    /// User that its TLS certificate says, where that counts.
    pub certificate_user: Option<&'a str>,
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
    /// User name, proven; `None` for an anonymous client.
    pub user: Option<&'a str>,
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Who it says to be is not proven.
    BadUserNameOrPassword,
    /// It may not be here.
    NotAuthorized,
}

/// What becomes of a client that connects.
pub enum Verdict {
    /// It is let in as nobody.
    Anonymous,
    /// It is let in as whom its certificate says.
    Certified,
    /// Not let in, and told so.
    Denied(Denied),
    /// It is who it says if the check says so. The check takes long on purpose: it is not for the I/O thread.
    Check(Check),
}

/// A password to be checked.
pub struct Check {
    file: Arc<PasswordFile>,
    user: Box<str>,
    password: Box<[u8]>,
}

impl Check {
    /// Whether the password is the user's. Takes up to a second: [`PasswordFile::accepts`].
    pub fn passes(&self) -> bool {
        self.file.accepts(&self.user, &self.password)
    }

    #[cfg(test)]
    pub(super) fn new(file: Arc<PasswordFile>, user: &str, password: &[u8]) -> Self {
        Self { file, user: user.into(), password: password.into() }
    }
}

/// Decides about clients. Called on the I/O thread: it must not wait.
pub trait Access: Send {
    /// Lets a client in, or not.
    fn connect(&self, credentials: &Credentials<'_>) -> Verdict;

    /// Whether `client` may publish to `topic`.
    fn publish(&self, client: Client<'_>, topic: &str) -> bool;

    /// Whether `client` may be sent what is published to `topic`. Asked for each message and subscriber.
    fn receive(&self, client: Client<'_>, topic: &str) -> bool;

    /// Whether `client` may subscribe to `filter`. What it is sent is decided by [`receive`](Self::receive).
    fn subscribe(&self, client: Client<'_>, filter: &str) -> bool;
}

/// What the configuration says: the address, a password file, an access control list.
#[derive(Debug)]
pub struct Configured {
    anonymous: Anonymous,
    certificate_user: CertificateUser,
    passwords: Option<Kept<PasswordFile>>,
    acl: Option<Kept<Acl>>,
}

impl Configured {
    /// Reads the files of `config`, and goes on reading them when they change.
    ///
    /// # Errors
    /// A file that cannot be used; nobody is let in before it can.
    pub fn open(config: &Listener, context: &SourceContext) -> Result<Self, Unreadable> {
        let passwords = config.password_file.clone().map(|file| {
            context.keep(&file.key.clone(), vec![file.path.clone()], move || read_passwords(&file))
        });
        let acl = config.acl_file.clone().map(|file| {
            context.keep(&file.key.clone(), vec![file.path.clone()], move || load(&file, Acl::parse))
        });
        let (passwords, acl) = (passwords.transpose()?, acl.transpose()?);
        Ok(Self { anonymous: config.anonymous, certificate_user: config.certificate_user, passwords, acl })
    }

    fn allows(&self, client: Client<'_>, access: acl::Access, topic: &str) -> bool {
        let Some(acl) = &self.acl else { return true };
        acl.get().allows(acl::Client { user: client.user, id: client.id }, access, topic)
    }
}

/// Reads the files of `config` to see whether they can be used.
///
/// # Errors
/// One cannot.
pub fn read(config: &Listener) -> Result<(), Unreadable> {
    config.password_file.as_ref().map(read_passwords).transpose()?;
    config.acl_file.as_ref().map(|file| load(file, Acl::parse)).transpose()?;
    Ok(())
}

fn read_passwords(file: &FileRef) -> Result<PasswordFile, Unreadable> {
    if file.is_open_to_all() {
        let path = file.path.display();
        warn!(key = file.key, %path, "everybody on this gateway can read the hashes of passwords: chmod o-r");
    }
    load(file, PasswordFile::parse)
}

/// Nobody has a password: the address decides, and who is in may do everything.
#[cfg(any(test, fuzzing, feature = "simulation"))]
impl From<Anonymous> for Configured {
    fn from(anonymous: Anonymous) -> Self {
        Self { anonymous, certificate_user: CertificateUser::None, passwords: None, acl: None }
    }
}

impl Access for Configured {
    fn connect(&self, credentials: &Credentials<'_>) -> Verdict {
        // As with Mosquitto, name and password count for nothing then.
        if self.certificate_user != CertificateUser::None {
            let known = credentials.certificate_user.map(|_| Verdict::Certified);
            return known.unwrap_or(Verdict::Denied(Denied::NotAuthorized));
        }
        // Without a password file nobody can be asked: a name proves nothing, and opens nothing.
        if let Some(passwords) = &self.passwords
            && (credentials.user.is_some() || credentials.password.is_some())
        {
            let (Some(user), Some(password)) = (credentials.user, credentials.password) else {
                return Verdict::Denied(Denied::BadUserNameOrPassword);
            };
            return Verdict::Check(Check {
                file: passwords.get(),
                user: user.into(),
                password: password.into(),
            });
        }
        match self.anonymous {
            Anonymous::Anywhere => Verdict::Anonymous,
            Anonymous::Loopback if credentials.address.to_canonical().is_loopback() => Verdict::Anonymous,
            Anonymous::Loopback | Anonymous::Nowhere => Verdict::Denied(Denied::NotAuthorized),
        }
    }

    fn publish(&self, client: Client<'_>, topic: &str) -> bool {
        self.allows(client, acl::Access::Write, topic)
    }

    fn receive(&self, client: Client<'_>, topic: &str) -> bool {
        self.allows(client, acl::Access::Read, topic)
    }

    /// A filter without wildcards is a topic, which may be read or not. One with wildcards may match what may be read and what may
    /// not: it is granted, as by Mosquitto, and brings the former.
    fn subscribe(&self, client: Client<'_>, filter: &str) -> bool {
        filter.contains(['+', '#']) || self.receive(client, filter)
    }
}
