//! What tests need and may not have.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use tempfile::TempDir;
use tokio_rustls::rustls::ClientConfig;

use crate::{
    config::{Certificate, ServerTls},
    secret::{FileRef, SecretRef},
    tls,
};

/// Says on standard error what a test that does nothing is waiting for. `eprintln!` would be kept to itself by the test
/// runner, for a test that passes.
pub(crate) fn left_out(needs: &str) {
    let thread = std::thread::current();
    // A closed standard error is no reason to fail a test.
    let _ = writeln!(std::io::stderr(), "[{}] skipped: needs {needs}", thread.name().unwrap_or("test"));
}

/// The folder `name` of the recordings, which are no part of the project; `None`, saying so, where there is none.
pub(crate) fn corpus(name: &str) -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let folder = std::env::var_os("WAYSIDE_CORPUS").map_or(default, PathBuf::from).join(name);
    if !folder.is_dir() {
        left_out(&format!("{}; WAYSIDE_CORPUS names the folder of recordings", folder.display()));
        return None;
    }
    Some(folder)
}

/// Runs `test` on a thread to which the permissions of files apply, as they do to the agent, also where root runs the
/// tests.
pub(crate) fn without_privileges(test: impl FnOnce() + Send) {
    let run = || {
        let mut sets = capabilities(None).expect("every thread has its sets");
        sets.effective = CapabilitySet::empty();
        set_capabilities(None, sets).expect("less is always granted");
        test();
    };
    // A panic goes on here: the scope waits for the thread.
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// A directory with certificates and what else a test configures something with.
pub(crate) struct Files(TempDir);

/// Whether a certificate that is made for a test is over.
#[derive(Clone, Copy)]
pub(crate) enum Age {
    Good,
    Expired,
}

/// A CA of the test's own.
pub(crate) struct Authority(Issuer<'static, KeyPair>);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("writes");
    }

    /// A CA whose certificate is written to `name`.
    pub(crate) fn authority(&self, name: &str) -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "the test's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        self.write(name, &params.self_signed(&key).expect("signs").pem());
        Authority(Issuer::new(params, key))
    }

    /// Writes `<name>.crt` and `<name>.key` for `subject`, signed by `authority`.
    pub(crate) fn certificate(&self, authority: &Authority, name: &str, subject: &str, age: Age) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![subject.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, subject);
        if matches!(age, Age::Expired) {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        self.write(&format!("{name}.crt"), &params.signed_by(&key, &authority.0).expect("signs").pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn named(&self, key: &str, name: &str) -> FileRef {
        FileRef { key: format!("source.test[0].tls.{key}"), path: self.path(name) }
    }

    fn pair(&self, name: &str) -> Certificate {
        let place = format!("file:{}", self.path(&format!("{name}.key")).display());
        let key = SecretRef::parse("source.test[0].tls.key", &place).expect("a place");
        Certificate { cert_file: self.named("cert_file", &format!("{name}.crt")), key }
    }

    /// A server that shows `<name>.crt`, and asks for a certificate of `client_ca` if there is one.
    pub(crate) fn server_tls(&self, name: &str, client_ca: Option<&str>) -> ServerTls {
        let client_ca_file = client_ca.map(|file| self.named("client_ca_file", file));
        ServerTls { certificate: self.pair(name), client_ca_file }
    }

    /// A client that trusts `ca`, and shows `<name>.crt` if there is one.
    pub(crate) fn client_tls(&self, ca: &str, name: Option<&str>) -> Arc<ClientConfig> {
        let roots = tls::roots(&self.named("ca_file", ca)).expect("a CA");
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .expect("ring has all")
            .with_root_certificates(roots);
        let Some(name) = name else { return Arc::new(builder.with_no_client_auth()) };
        let Certificate { cert_file, key } = self.pair(name);
        let chain = tls::certificates(&cert_file).expect("certificates");
        let key = tls::private_key(&key).expect("a key");
        Arc::new(builder.with_client_auth_cert(chain, key).expect("a pair"))
    }
}
