//! How the agent and the brokers know each other: `[replicate.tls]` and `[replicate.sasl]` in librdkafka's words.
//!
//! Certificates and secrets are read for each client that is made. librdkafka keeps what it was given; so when brokers
//! refuse it, what is read anew is held against it, and if it is something else, the client is made again.

use rdkafka::ClientConfig;

use super::{kafka::NO_PERMISSION, token};
use crate::{
    config::{KafkaTls, Replicate, Sasl, TokenSource},
    secret::Unreadable,
};

/// What librdkafka is given, as it was when it was read. Holds secrets, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Access {
    properties: Vec<(&'static str, String)>,
    /// The token, for the comparison alone: librdkafka asks for it.
    token: Option<String>,
    /// What a command would say next is not known.
    is_by_command: bool,
}

impl Access {
    /// Reads all that `config` names.
    ///
    /// # Errors
    /// [`Unreadable`]; the caller tries again later.
    pub(super) fn read(config: &Replicate) -> Result<Self, Unreadable> {
        let mut properties = vec![("security.protocol", protocol(config).to_owned())];
        let mut access = (None, false);
        if let Some(KafkaTls { ca_file, client }) = &config.tls {
            properties.push(match ca_file {
                Some(file) => ("ssl.ca.pem", pem(file.read()?).map_err(|cause| file.unusable(cause))?),
                // The bundle of the distribution; OpenSSL of its own accord looks where it was built for.
                None => ("ssl.ca.location", "probe".to_owned()),
            });
            if let Some(client) = client {
                let (file, key) = (&client.cert_file, &client.key);
                let certificate = pem(file.read()?).map_err(|cause| file.unusable(cause))?;
                properties.push(("ssl.certificate.pem", certificate));
                properties.push(("ssl.key.pem", key.load()?.expose().to_owned()));
            }
        }
        match &config.sasl {
            None => {}
            Some(Sasl::Password { mechanism, user, password }) => {
                properties.push(("sasl.mechanisms", mechanism.name().to_owned()));
                properties.push(("sasl.username", user.clone()));
                properties.push(("sasl.password", password.load()?.expose().to_owned()));
            }
            Some(Sasl::OauthBearer(source)) => {
                properties.push(("sasl.mechanisms", "OAUTHBEARER".to_owned()));
                access = match source {
                    TokenSource::Secret(secret) => (Some(secret.load()?.expose().to_owned()), false),
                    TokenSource::Command(_) => (None, true),
                };
            }
        }
        let (token, is_by_command) = access;
        Ok(Self { properties, token, is_by_command })
    }

    /// Whether a client that is made with what can be read now may fare better than one that was made with this.
    pub(super) fn is_outdated(&self, config: &Replicate) -> bool {
        self.is_by_command || Self::read(config).is_ok_and(|now| now != *self)
    }

    /// `client` with these properties.
    pub(super) fn applied_to(&self, client: &ClientConfig) -> ClientConfig {
        let mut client = client.clone();
        for (property, value) in &self.properties {
            client.set(*property, value);
        }
        client
    }
}

fn protocol(config: &Replicate) -> &'static str {
    match (&config.tls, &config.sasl) {
        (None, None) => "plaintext",
        (Some(_), None) => "ssl",
        (None, Some(_)) => "sasl_plaintext",
        (Some(_), Some(_)) => "sasl_ssl",
    }
}

fn pem(bytes: Vec<u8>) -> Result<String, &'static str> {
    let text = String::from_utf8(bytes).map_err(|_| "holds no certificate in PEM")?;
    if text.contains("-----BEGIN CERTIFICATE-----") && !text.contains('\0') {
        Ok(text)
    } else {
        Err("holds no certificate in PEM")
    }
}

/// What an operator is to grant a producer of transactions.
const NO_TRANSACTION: &str =
    "no permission: the agent's user needs WRITE and DESCRIBE on the transactional id wayside.<gateway.id>";

/// What an operator is to grant whoever keeps offsets in a group.
const NO_GROUP: &str = "no permission: the agent's user needs READ on the group wayside.<gateway.id>";

/// librdkafka's words about a broker with what an operator can do about it, where there is a [`hint`].
pub(super) fn explain(words: &str) -> String {
    hint(words).map_or_else(|| words.to_owned(), |hint| format!("{hint} ({words})"))
}

/// What an operator can do about librdkafka's words, which do not say it, or name properties that are keys here.
pub(super) fn hint(words: &str) -> Option<&'static str> {
    Some(if words.contains("Failed to acquire SASL OAUTHBEARER token") || words.contains(token::NO_TOKEN) {
        "there is no token"
    } else if words.contains("Transactional Id authorization failed") {
        NO_TRANSACTION
    } else if words.contains("Group authorization failed") {
        NO_GROUP
    } else if words.contains("Invalid transaction timeout") || words.contains("transaction timeout is larger")
    {
        "the brokers' transaction.max.timeout.ms is below our 15 s"
    } else if words.contains("authorization failed") {
        NO_PERMISSION
    } else if words.contains("certificate verify failed") || words.contains("verify broker certificate") {
        "the broker's certificate is not from a CA that we trust (replicate.tls.ca_file), has expired, or is for another name"
    } else if words.contains("alert certificate required")
        || words.contains("client SSL authentication might be")
    {
        "the broker wants a client certificate: replicate.tls.cert_file and key"
    } else if words.contains("alert") && (words.contains("certificate") || words.contains("unknown ca")) {
        "the broker refuses our certificate: has replicate.tls.cert_file expired, does the broker know its CA?"
    } else if words.contains("broker might require SSL") {
        "does the broker want TLS (replicate.tls.enabled)?"
    } else if words.contains("wrong version number") || words.contains("connecting to a PLAINTEXT broker") {
        "the broker does not speak TLS at this port"
    } else if words.contains("mechanism handshake failed") {
        "the broker does not know the mechanism in replicate.sasl.mechanism"
    } else if words.contains("SASL") && words.to_lowercase().contains("authentication fail") {
        "the broker does not let us in: are the user and secret of replicate.sasl right?"
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{config::SaslMechanism, replicate::tests::config, secret::SecretRef};

    #[test]
    fn a_client_is_outdated_when_its_password_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, "old").unwrap();
        let password =
            SecretRef::parse("replicate.sasl.password", &format!("file:{}", path.display())).unwrap();
        let mut config = config();
        config.sasl =
            Some(Sasl::Password { mechanism: SaslMechanism::ScramSha256, user: "agent".into(), password });
        let access = Access::read(&config).unwrap();
        assert!(!access.is_outdated(&config));
        let client = access.applied_to(&ClientConfig::new());
        assert_eq!(client.get("security.protocol"), Some("sasl_plaintext"));
        assert_eq!(client.get("sasl.password"), Some("old"));
        fs::write(&path, "new").unwrap();
        assert!(access.is_outdated(&config));
        fs::remove_file(&path).unwrap();
        assert!(!access.is_outdated(&config), "without the file there is nothing better");
        let error = Access::read(&config).err().unwrap().to_string();
        assert!(error.starts_with("replicate.sasl.password: "), "{error}");
    }
}
