//! A certificate authority of the test's own, and a directory with what it signed.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// The CA and its directory, removed when dropped.
pub struct Certificates {
    directory: TempDir,
    authority: Issuer<'static, KeyPair>,
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

impl Certificates {
    /// A new CA, whose certificate is in `ca.crt`.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().expect("the directory for temporary files is writable");
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new(Vec::new()).expect("no name is wrong");
        params.distinguished_name.push(DnType::CommonName, "the tests' CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a key signs");
        std::fs::write(directory.path().join("ca.crt"), certificate.pem())
            .expect("our directory is writable");
        Self { directory, authority: Issuer::new(params, key) }
    }

    /// Makes `<name>.crt` and `<name>.key`, and both in `<name>.pem`, for the common name `name` and the address
    /// 127.0.0.1.
    pub fn issue(&self, name: &str) {
        self.sign(name, |_| {});
    }

    /// As [`issue`](Self::issue), for a time that is over.
    pub fn issue_expired(&self, name: &str) {
        self.sign(name, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        });
    }

    fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("the address is one");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.authority).expect("a CA signs").pem();
        self.write(&format!("{name}.crt"), &certificate);
        self.write(&format!("{name}.key"), &key.serialize_pem());
        self.write(&format!("{name}.pem"), &(key.serialize_pem() + &certificate));
    }

    /// Writes a file beside the certificates.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("our directory is writable");
    }

    /// Where the file `name` is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// Where all files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}
