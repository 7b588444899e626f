//! The certificate authority of a cluster: made once, at first start, and kept in two files.

use std::fs;
use std::io::Write;
use std::path::Path;

use pomona_common::{ClusterId, KeyPrint, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::LinkError;
use crate::identity::{Identity, Role};
use crate::join::Point;
use crate::token::sha256;

/// Validity of the authority itself: it is replaced by rotation, not by running out.
const AUTHORITY_DAYS: i64 = 3650;
/// Validity of a leaf. Short, so that revocation is needed rarely.
const LEAF: Duration = Duration::hours(24);
/// Clocks of two machines may differ by this much.
const SKEW: Duration = Duration::minutes(5);

/// Issues the certificates of one cluster.
pub struct Authority {
    cluster: ClusterId,
    certificate_pem: String,
    print: KeyPrint,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
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
        let now = OffsetDateTime::now_utc();
        params.not_before = now - SKEW;
        params.not_after = now + Duration::days(AUTHORITY_DAYS);
        let certificate = params.self_signed(&key).map_err(certificate_error)?;
        write_private(&folder.join("cluster"), &new_cluster.to_string())?;
        write_private(&folder.join("ca.crt"), &certificate.pem())?;
        write_private(&folder.join("ca.key"), &key.serialize_pem())?;
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
        let key = KeyPair::from_pem(&read("ca.key")?).map_err(certificate_error)?;
        Ok(Self {
            cluster,
            certificate_pem: read("ca.crt")?,
            print: KeyPrint(sha256(&key.subject_public_key_info())),
            issuer: Issuer::new(parameters(cluster), key),
        })
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
        let now = OffsetDateTime::now_utc();
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

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), LinkError> {
    let partial = path.with_extension("partial");
    let write = || -> std::io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&partial)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(file_error(path))
}

pub(crate) fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> LinkError + use<> {
    let path = path.to_owned();
    move |source| LinkError::File { path, source }
}

pub(crate) fn certificate_error(error: rcgen::Error) -> LinkError {
    LinkError::Certificate(error.to_string())
}
