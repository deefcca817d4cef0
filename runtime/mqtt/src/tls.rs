//! TLS for the link, from PEM files that are checked before they are used.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rumqttc::tokio_rustls::rustls::pki_types::pem::PemObject;
use rumqttc::tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rumqttc::tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use rumqttc::{TlsConfiguration, Transport};
use sha2::{Digest, Sha256};

/// The files of a TLS connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the authorities that sign the broker's certificate.
    pub ca: PathBuf,
    /// The client's certificate chain and key, for brokers that ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// A file that can't be used for TLS.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {fault}", file = .file.display())]
pub struct TlsError {
    /// The file.
    pub file: PathBuf,
    /// The fault, in a few words.
    pub fault: String,
}

impl TlsFiles {
    /// Reads the files; each fault names its file.
    pub fn check(&self) -> Result<(), TlsError> {
        self.client_config().map(drop)
    }

    /// Returns the file of the certificate that expires first, and the time.
    pub fn first_to_end(&self) -> Result<Option<(PathBuf, SystemTime)>, TlsError> {
        let chain = self.identity.as_ref().map(|(chain, _)| chain);
        let mut first: Option<(PathBuf, SystemTime)> = None;
        for file in std::iter::once(&self.ca).chain(chain) {
            for certificate in certificates(file)? {
                let (_, read) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| {
                    fault(file, format!("holds a certificate that can't be read: {error}"))
                })?;
                let seconds = u64::try_from(read.validity().not_after.timestamp()).unwrap_or(0);
                let end = UNIX_EPOCH + Duration::from_secs(seconds);
                if first.as_ref().is_none_or(|(_, known)| end < *known) {
                    first = Some((file.clone(), end));
                }
            }
        }
        Ok(first)
    }

    /// Returns the digest of the files, which tells whether they have changed.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let identity = self.identity.iter().flat_map(|(chain, key)| [chain, key]);
        for file in std::iter::once(&self.ca).chain(identity) {
            let content = std::fs::read(file).unwrap_or_default();
            digest.update(content.len().to_le_bytes());
            digest.update(content);
        }
        digest.finalize().into()
    }

    pub(crate) fn transport(&self) -> Result<Transport, TlsError> {
        let config = self.client_config()?;
        Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(
            config,
        ))))
    }

    fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots
                .add(certificate)
                .map_err(|error| fault(&self.ca, format!("holds a certificate that is no CA's: {error}")))?;
        }
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| fault(&self.ca, error.to_string()))?
            .with_root_certificates(roots);
        let Some((chain, key)) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let secret = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| fault(key, format!("no private key can be read from it: {error}")))?;
        builder
            .with_client_auth_cert(certificates(chain)?, secret)
            .map_err(|error| {
                fault(
                    key,
                    format!("does not go with the certificate in {}: {error}", chain.display()),
                )
            })
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(fault(file, "holds no certificate in PEM form")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(fault(
            file,
            format!("no certificate can be read from it: {error}"),
        )),
    }
}

fn fault(file: &Path, fault: impl Into<String>) -> TlsError {
    TlsError {
        file: file.to_owned(),
        fault: fault.into(),
    }
}
