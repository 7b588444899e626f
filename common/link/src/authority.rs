//! The certificate authority of a cluster: made once, at first start, and kept by every
//! coordinator in a folder.

use std::fs;
use std::path::Path;

use pomona_common::{ClusterId, KeyPrint, NodeId, StoreKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use ring::hkdf::{HKDF_SHA256, Salt};
use time::{Duration, OffsetDateTime};

use crate::LinkError;
use crate::files::{file_error, write_private};
use crate::identity::{Identity, Role};
use crate::join::Point;
use crate::session::Session;
use crate::tls;
use crate::token::sha256;

/// Validity of the authority itself: it is replaced by rotation, not by running out.
const AUTHORITY_DAYS: i64 = 3650;
/// Validity of a leaf. Short, so that revocation is needed rarely.
const LEAF: Duration = Duration::hours(24);
/// The same, for those who count in it: without a majority that renews it, a node is out after this
/// time.
pub const CERTIFICATE_LIFE: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
/// What store keys are derived under.
const STORE_LABEL: &[u8] = b"pomona store key 1";
/// Clocks of two machines may differ by this much.
const SKEW: Duration = Duration::minutes(5);

/// Issues the certificates of one cluster.
pub struct Authority {
    cluster: ClusterId,
    certificate_pem: String,
    key_pem: String,
    print: KeyPrint,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The key of the store of a rented node: the same from every coordinator, another one for whoever
    /// joins again.
    ///
    /// # Errors
    /// The system cannot derive it.
    pub fn store_key(&self, node: NodeId, key: KeyPrint) -> Result<StoreKey, LinkError> {
        let secret = Salt::new(HKDF_SHA256, STORE_LABEL).extract(self.key_pem.as_bytes());
        let mut bytes = [0; 32];
        secret
            .expand(&[&node.bits().to_be_bytes(), &key.0], HKDF_SHA256)
            .and_then(|derived| derived.fill(&mut bytes))
            .map_err(|_| LinkError::Certificate("no store key".into()))?;
        Ok(StoreKey(bytes))
    }

    /// Opens the authority in `folder`, or makes one for a new cluster.
    ///
    /// # Errors
    /// The files cannot be read or written, or do not belong together.
    pub fn open_or_create(folder: &Path, new_cluster: ClusterId) -> Result<Self, LinkError> {
        if folder.join("ca.key").exists() {
            return Self::open(folder);
        }
        fs::create_dir_all(folder).map_err(file_error(folder))?;
        let key = KeyPair::generate().map_err(certificate_error)?;
        let mut params = parameters(new_cluster);
        let now = OffsetDateTime::from(pomona_clocks::wall());
        params.not_before = now - SKEW;
        params.not_after = now + Duration::days(AUTHORITY_DAYS);
        let certificate = params.self_signed(&key).map_err(certificate_error)?;
        Self::keep(folder, new_cluster, &certificate.pem(), &key.serialize_pem())
    }

    /// Writes an authority to a folder; the key, by which it is found, comes last.
    pub(crate) fn keep(
        folder: &Path,
        cluster: ClusterId,
        certificate_pem: &str,
        key_pem: &str,
    ) -> Result<Self, LinkError> {
        write_private(&folder.join("cluster"), &cluster.to_string())?;
        write_private(&folder.join("ca.crt"), certificate_pem)?;
        write_private(&folder.join("ca.key"), key_pem)?;
        Self::open(folder)
    }

    /// Opens the authority in `folder`.
    ///
    /// # Errors
    /// The files cannot be read or are damaged.
    pub fn open(folder: &Path) -> Result<Self, LinkError> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(file_error(&path))
        };
        let cluster: ClusterId = read("cluster")?
            .trim()
            .parse()
            .map_err(|error| LinkError::Certificate(format!("cluster id: {error}")))?;
        let key_pem = read("ca.key")?;
        let key = KeyPair::from_pem(&key_pem).map_err(certificate_error)?;
        Ok(Self {
            cluster,
            certificate_pem: read("ca.crt")?,
            key_pem,
            print: KeyPrint(sha256(&key.subject_public_key_info())),
            issuer: Issuer::new(parameters(cluster), key),
        })
    }

    /// Its private key, to be handed to another coordinator.
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The cluster it signs for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The print of its key, which join tokens carry.
    pub fn print(&self) -> KeyPrint {
        self.print
    }

    /// Makes a key and a certificate for it.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn issue(&self, role: Role) -> Result<Identity, LinkError> {
        let key = KeyPair::generate().map_err(certificate_error)?;
        Ok(Identity {
            cluster: self.cluster,
            role,
            certificate_pem: self.certify(role, &key)?,
            key_pem: key.serialize_pem(),
            authority_pem: self.certificate_pem.clone(),
        })
    }

    /// Whether the certificate that the other end of a session showed is still good: sessions outlive
    /// theirs unless somebody looks.
    pub fn vouches_for(&self, session: &Session) -> bool {
        tls::shows_current(session.connection(), &self.certificate_pem)
    }

    /// A certificate, PEM, for a node's public key: a point of P-256 whose owner was checked.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn certify_node(&self, node: NodeId, public_key: &[u8]) -> Result<String, LinkError> {
        self.certify(Role::Node(node), &Point(public_key))
    }

    fn certify(&self, role: Role, key: &impl PublicKeyData) -> Result<String, LinkError> {
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, role.to_string());
        params.distinguished_name = name;
        let now = OffsetDateTime::from(pomona_clocks::wall());
        params.not_before = now - SKEW;
        params.not_after = now + LEAF;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let text = |text: String| text.try_into().map_err(certificate_error);
        params.subject_alt_names = vec![
            SanType::DnsName(text(role.server_name(self.cluster))?),
            SanType::URI(text(role.uri(self.cluster))?),
        ];
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|error| LinkError::Certificate(error.to_string()))?;
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer).map_err(certificate_error)?;
        Ok(certificate.pem())
    }
}

/// The same at creation and at every start: the subject must be identical byte for byte.
fn parameters(cluster: ClusterId) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("pomona cluster {cluster}"));
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn certificate_error(error: rcgen::Error) -> LinkError {
    LinkError::Certificate(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_coordinator_derives_the_same_store_key_and_another_one_for_every_node() -> Result<(), LinkError>
    {
        let folder = tempfile::tempdir().map_err(|error| LinkError::Closed(error.to_string()))?;
        let made = Authority::open_or_create(folder.path(), ClusterId::from_bits(1))?;
        let opened = Authority::open_or_create(folder.path(), ClusterId::from_bits(2))?;
        let (node, key) = (NodeId::from_bits(7), KeyPrint([1; 32]));
        let one = made.store_key(node, key)?;
        assert_eq!(one, opened.store_key(node, key)?);
        assert_ne!(one, made.store_key(NodeId::from_bits(8), key)?);
        assert_ne!(one, made.store_key(node, KeyPrint([2; 32]))?);
        assert!(!format!("{one:?}").contains(&one.passphrase()[..8]));
        Ok(())
    }
}
