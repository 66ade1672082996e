//! TLS 1.2 and 1.3 by rustls with ring: certificates and keys from where the configuration says that they are, and what the sources
//! that others connect to need. What is special to an MQTT broker is in [`source::mqtt`](crate::source::mqtt).

pub(crate) mod session;
pub(crate) mod subject;

use std::{path::PathBuf, sync::Arc};

use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use crate::{
    config::ServerTls,
    secret::{FileRef, SecretRef, Unreadable},
};

/// The algorithms of ring.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// What `file` holds: at least one certificate.
///
/// # Errors
/// It cannot be read, or holds none.
pub(crate) fn certificates(file: &FileRef) -> Result<Vec<CertificateDer<'static>>, Unreadable> {
    let bytes = file.read()?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(file.unusable("holds no certificate in PEM")),
    }
}

/// The private key at `key`.
///
/// # Errors
/// It cannot be read, or is none.
pub(crate) fn private_key(key: &SecretRef) -> Result<PrivateKeyDer<'static>, Unreadable> {
    PrivateKeyDer::from_pem_slice(key.load()?.expose().as_bytes())
        .map_err(|_| key.unusable("holds no private key in PEM"))
}

/// The CAs in `file`: at least one.
///
/// # Errors
/// It cannot be read, or holds what is no CA.
pub(crate) fn roots(file: &FileRef) -> Result<RootCertStore, Unreadable> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| file.unusable(format!("is of no use: {error}")))?;
    }
    Ok(roots)
}

/// What a source shows to who connects, and asks of them.
///
/// No session is resumed: a handshake costs a fraction of a millisecond, and each looks at the client's certificate.
///
/// # Errors
/// A file of no use, or two that do not fit each other.
pub(crate) fn server(tls: &ServerTls) -> Result<ServerConfig, Unreadable> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has the algorithms of both versions");
    let builder = match &tls.client_ca_file {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots(file)?), provider()).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| file.unusable(format!("is of no use: {error}")))?,
            )
        }
    };
    let cert_file = &tls.certificate.cert_file;
    let config = builder.with_single_cert(certificates(cert_file)?, private_key(&tls.certificate.key)?);
    let mut config =
        config.map_err(|error| cert_file.unusable(format!("does not fit the private key: {error}")))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The files that [`server`] reads.
pub(crate) fn files(tls: &ServerTls) -> Vec<PathBuf> {
    let cert_file = Some(tls.certificate.cert_file.path.clone());
    let client_ca_file = tls.client_ca_file.as_ref().map(|file| file.path.clone());
    [cert_file, tls.certificate.key.file(), client_ca_file].into_iter().flatten().collect()
}
