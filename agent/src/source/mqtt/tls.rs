//! TLS to a broker: rustls with ring. Certificates and keys are read for each connection.

use std::{io, sync::Arc};

use tokio_rustls::{
    TlsConnector,
    rustls::{
        AlertDescription, CertificateError, ClientConfig, Error as RustlsError, RootCertStore,
        pki_types::ServerName,
    },
};

use crate::{
    config::{Broker, Certificate, MqttTls},
    secret::{FileRef, Unreadable},
    tls,
};

/// Why there is no TLS with a broker. Its text says what an operator can do; the source tries again in any case.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// A certificate or key of ours.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// The distribution has no CA bundle where it is looked for.
    #[error("the system has no CA bundle: install ca-certificates or set tls.ca_file")]
    NoCaBundle,
    /// rustls does not take our certificate with its key.
    #[error("tls.cert_file and tls.key do not fit each other: {0}")]
    ClientCertificate(#[source] RustlsError),
    /// The broker's certificate or the one that signed it is over.
    #[error(
        "the broker's certificate has expired: renew it at the broker (or is this gateway's clock wrong?)"
    )]
    Expired,
    /// Made in the future.
    #[error("the broker's certificate is not valid yet: is this gateway's clock right?")]
    NotValidYet,
    /// The broker's certificate is for somebody else.
    #[error(
        "the broker's certificate is not for this name: use its name in urls, or set tls.server_name ({0})"
    )]
    WrongName(CertificateError),
    /// Nobody we trust has signed the broker's certificate.
    #[error(
        "the broker's certificate is not signed by a CA that we trust: set tls.ca_file to the broker's CA"
    )]
    UnknownCa,
    /// The broker wants to see a certificate.
    #[error("the broker wants a client certificate: set tls.cert_file and tls.key")]
    CertificateRequired,
    /// The broker has seen our certificate.
    #[error(
        "the broker refuses our certificate ({0:?}): has tls.cert_file expired, does the broker know its CA?"
    )]
    CertificateRefused(AlertDescription),
    /// What comes back is no TLS.
    #[error("the broker does not speak TLS at this port: is it the port of mqtt://?")]
    NotTls,
    /// Anything else.
    #[error("TLS: {0}")]
    Other(RustlsError),
}

impl TlsError {
    /// What `error` says about TLS, if it comes from there.
    pub(super) fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<RustlsError>().map(|error| match error {
            RustlsError::InvalidCertificate(cause) => match cause {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    Self::NotValidYet
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Self::WrongName(cause.clone())
                }
                // A bad signature is another CA of the same name.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
                _ => Self::Other(error.clone()),
            },
            RustlsError::AlertReceived(alert) => match alert {
                AlertDescription::CertificateRequired => Self::CertificateRequired,
                AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied => Self::CertificateRefused(*alert),
                _ => Self::Other(error.clone()),
            },
            RustlsError::InvalidMessage(_) => Self::NotTls,
            other => Self::Other(other.clone()),
        })
    }
}

/// What a connection to `broker` is encrypted with, and the name that the broker's certificate must have.
///
/// # Errors
/// [`TlsError`], about what is ours. The handshake has its errors in [`io::Error`]s: [`TlsError::of`].
pub(super) fn connector(
    broker: &Broker,
    config: &MqttTls,
) -> Result<(TlsConnector, ServerName<'static>), TlsError> {
    let name = config.server_name.as_ref().unwrap_or(&broker.host);
    let name = ServerName::try_from(name.clone())
        .map_err(|_| TlsError::WrongName(CertificateError::NotValidForName))?;
    Ok((TlsConnector::from(Arc::new(client(config)?)), name))
}

fn client(config: &MqttTls) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Other)?
        .with_root_certificates(roots(config.ca_file.as_ref())?);
    let Some(Certificate { cert_file, key }) = &config.client else {
        return Ok(builder.with_no_client_auth());
    };
    let (chain, key) = (tls::certificates(cert_file)?, tls::private_key(key)?);
    builder.with_client_auth_cert(chain, key).map_err(TlsError::ClientCertificate)
}

/// The CAs that may have signed the broker's certificate.
fn roots(ca_file: Option<&FileRef>) -> Result<RootCertStore, TlsError> {
    if let Some(file) = ca_file {
        return Ok(tls::roots(file)?);
    }
    let mut roots = RootCertStore::empty();
    // One bad certificate in the bundle is no reason to trust none of it.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoCaBundle) } else { Ok(roots) }
}
