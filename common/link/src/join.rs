//! Both ends of a join: a TLS session in which only the coordinator shows a certificate, one
//! request, one answer.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use pomona_common::join::{JoinAnswer, JoinRequest};
use pomona_common::{ClusterId, KeyPrint, NodeId, TokenVerifier};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use ring::{hmac, signature};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::authority::{Authority, certificate_error};
use crate::commission::Commission;
use crate::endpoint::Purpose;
use crate::files::{file_error, write_private};
use crate::membership::Membership;
use crate::token::{JoinToken, sha256};
use crate::visit::{EXCHANGE, Visit, Visitor, exporter};
use crate::{LinkError, custody, tls};

/// Exporter label: what binds a proof to one TLS session.
const EXPORTER: &[u8] = b"EXPORTER-pomona-join-1";

/// A machine that is about to join: id, key and name stay the same over all attempts, so that one
/// whose answer was lost is recognised.
pub struct Applicant {
    /// The id it has drawn.
    pub node: NodeId,
    /// What people call it.
    pub name: String,
    key: KeyPair,
}

impl Applicant {
    /// An applicant with the key in this file, which is made when it is not there.
    ///
    /// # Errors
    /// The file cannot be read or written, or is damaged.
    pub fn open(key_file: &Path, node: NodeId, name: String) -> Result<Self, LinkError> {
        let key = if key_file.exists() {
            let pem = fs::read_to_string(key_file).map_err(file_error(key_file))?;
            KeyPair::from_pem(&pem).map_err(certificate_error)?
        } else {
            let key = KeyPair::generate().map_err(certificate_error)?;
            write_private(key_file, &key.serialize_pem())?;
            key
        };
        Ok(Self { node, name, key })
    }
}

/// What joining gave, to be kept: the token says which.
pub enum Joined {
    /// The machine is a node.
    Node {
        /// Its place in the cluster.
        membership: Membership,
        /// Print of the machine's key, whose words an operator compares.
        key: KeyPrint,
        /// Whether it may serve now; an operator approves it otherwise.
        approved: bool,
    },
    /// The machine is a coordinator.
    Coordinator(Commission),
}

/// Joins the cluster of `token` at the coordinator that answers at `address`.
///
/// # Errors
/// Nobody answers, it is not a coordinator of the token's cluster, or it refuses.
pub async fn join(
    address: SocketAddr,
    token: &JoinToken,
    applicant: &Applicant,
) -> Result<Joined, LinkError> {
    let config = tls::join_config(
        Arc::new(PinnedAuthority(token.authority())),
        Purpose::Join.protocols(u16::MAX),
    )?;
    let visit = Visit::dial(address, config, token.cluster()).await?;
    let joined = tokio::time::timeout(EXCHANGE, exchange(&visit, address, token, applicant))
        .await
        .map_err(|_| LinkError::Deadline(EXCHANGE))?;
    visit.end().await;
    joined
}

async fn exchange(
    visit: &Visit,
    address: SocketAddr,
    token: &JoinToken,
    applicant: &Applicant,
) -> Result<Joined, LinkError> {
    let (key, connection) = (&applicant.key, &visit.connection);
    let mut request = JoinRequest {
        token: token.id(),
        node: applicant.node,
        name: applicant.name.clone(),
        public_key: key.der_bytes().to_vec(),
        proof: [0; 32],
        signature: Vec::new(),
    };
    let exporter = exporter(connection, EXPORTER)?;
    let transcript = transcript(&request, &exporter);
    let proof = hmac::sign(&proof_key(token.verifier()), &transcript);
    request.proof = proof.as_ref().try_into().unwrap_or_default();
    request.signature = key.sign(&transcript).map_err(certificate_error)?;
    match visit.ask::<_, JoinAnswer>(&request).await? {
        JoinAnswer::Refused(why) => Err(LinkError::Refused(why)),
        JoinAnswer::Admitted {
            certificate,
            mut coordinators,
            approved,
        } => {
            // The address that was reached comes first: it is known to work from here.
            coordinators.retain(|other| *other != address);
            coordinators.insert(0, address);
            let membership = Membership {
                cluster: token.cluster(),
                node: applicant.node,
                authority_pem: tls::authority_of(connection, token.authority())?,
                certificate_pem: certificate,
                key_pem: key.serialize_pem(),
                coordinators,
            };
            Ok(Joined::Node {
                membership,
                key: print_of(key.der_bytes()),
                approved,
            })
        }
        JoinAnswer::Coordinator {
            number,
            sealed_key,
            mut coordinators,
        } => {
            if !coordinators.iter().any(|(_, other)| *other == address) {
                // Nobody is coordinator 0: the address is what counts.
                coordinators.push((0, address));
            }
            Ok(Joined::Coordinator(Commission {
                cluster: token.cluster(),
                number,
                authority_pem: tls::authority_of(connection, token.authority())?,
                key_pem: custody::open(sealed_key, token.verifier(), &exporter)?,
                coordinators,
            }))
        }
    }
}

/// A machine that wants to join, and has proved nothing yet.
pub struct Joining(Visitor);

impl Joining {
    pub(crate) fn new(connection: quinn::Connection) -> Self {
        Self(Visitor::new(connection))
    }

    /// Reads the request, lets `decide` answer it, sends the answer. `decide` gets the request
    /// with the proofs that must be checked against the token's verifier.
    ///
    /// # Errors
    /// The machine goes away or breaks the protocol.
    pub async fn serve<F: Future<Output = JoinAnswer>>(
        self,
        decide: impl FnOnce(JoinRequest, Proofs) -> F,
    ) -> Result<(), LinkError> {
        let prove = |request: JoinRequest, exporter| {
            let transcript = transcript(&request, &exporter);
            decide(request, Proofs { transcript, exporter })
        };
        self.0.serve((EXPORTER, b"join ended"), prove).await
    }
}

/// What a request's proofs must cover.
pub struct Proofs {
    transcript: Vec<u8>,
    exporter: [u8; 32],
}

impl Proofs {
    /// Whether the request was made by someone who knows the secret of the token and holds the
    /// key, in this very TLS session. Takes constant time in the secret.
    pub fn hold(&self, request: &JoinRequest, verifier: TokenVerifier) -> bool {
        let knows = hmac::verify(&proof_key(verifier), &self.transcript, &request.proof).is_ok();
        let key = signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, &request.public_key);
        knows && key.verify(&self.transcript, &request.signature).is_ok()
    }

    /// The authority's key for a machine whose proofs hold.
    ///
    /// # Errors
    /// It cannot be sealed.
    pub fn seal(&self, authority: &Authority, verifier: TokenVerifier) -> Result<Vec<u8>, LinkError> {
        custody::seal(authority.key_pem(), verifier, &self.exporter)
    }
}

fn proof_key(verifier: TokenVerifier) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &verifier.0)
}

/// Everything that proof and signature cover; lengths keep the fields apart.
fn transcript(request: &JoinRequest, exporter: &[u8; 32]) -> Vec<u8> {
    let mut text = exporter.to_vec();
    text.extend(request.token.bits().to_be_bytes());
    text.extend(request.node.bits().to_be_bytes());
    for field in [request.name.as_bytes(), &request.public_key] {
        text.extend((field.len() as u64).to_be_bytes());
        text.extend(field);
    }
    text
}

/// Trusts the one authority whose key the token names, and nobody else.
#[derive(Debug)]
pub(crate) struct PinnedAuthority(pub(crate) KeyPrint);

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = chain
            .iter()
            .find(|certificate| key_print(certificate).is_some_and(|print| print == self.0))
            .ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &tls::provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &tls::provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The print of a certificate's key; `None` when it does not parse.
pub(crate) fn key_print(certificate: &CertificateDer<'_>) -> Option<KeyPrint> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(KeyPrint(sha256(&parsed.subject_public_key_info())))
}

/// A public key as it comes in a [`JoinRequest`].
pub(crate) struct Point<'a>(pub(crate) &'a [u8]);

impl PublicKeyData for Point<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// The print of a key as it comes in a [`JoinRequest`].
pub fn print_of(public_key: &[u8]) -> KeyPrint {
    KeyPrint(sha256(&Point(public_key).subject_public_key_info()))
}

/// Checks that a token is for this cluster before anything is sent.
///
/// # Errors
/// It is for another cluster.
pub fn check_cluster(token: &JoinToken, own: Option<ClusterId>) -> Result<(), LinkError> {
    match own {
        Some(own) if own != token.cluster() => Err(LinkError::Token(format!(
            "it is for cluster {}, and this machine belongs to {own}",
            token.cluster()
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::TokenId;

    use super::*;

    fn request(
        key: &KeyPair,
        verifier: TokenVerifier,
        exporter: &[u8; 32],
    ) -> Result<JoinRequest, rcgen::Error> {
        let mut request = JoinRequest {
            token: TokenId::from_bits(1),
            node: NodeId::from_bits(2),
            name: "studio".into(),
            public_key: key.der_bytes().to_vec(),
            proof: [0; 32],
            signature: Vec::new(),
        };
        let text = transcript(&request, exporter);
        request.proof = hmac::sign(&proof_key(verifier), &text)
            .as_ref()
            .try_into()
            .unwrap_or_default();
        request.signature = key.sign(&text)?;
        Ok(request)
    }

    #[test]
    fn proofs_hold_for_one_request_in_one_session() -> Result<(), rcgen::Error> {
        let (key, verifier, session) = (KeyPair::generate()?, TokenVerifier([5; 32]), [6; 32]);
        let good = request(&key, verifier, &session)?;
        let hold = |request: &JoinRequest, session: &[u8; 32], verifier| {
            Proofs {
                transcript: transcript(request, session),
                exporter: *session,
            }
            .hold(request, verifier)
        };
        assert!(hold(&good, &session, verifier));
        assert!(!hold(&good, &[7; 32], verifier), "relayed into another session");
        assert!(!hold(&good, &session, TokenVerifier([4; 32])), "another secret");
        let other_key = KeyPair::generate()?.der_bytes().to_vec();
        for changed in [
            JoinRequest {
                node: NodeId::from_bits(3),
                ..good.clone()
            },
            JoinRequest {
                token: TokenId::from_bits(3),
                ..good.clone()
            },
            JoinRequest {
                name: "studi0".into(),
                ..good.clone()
            },
            JoinRequest {
                public_key: other_key,
                ..good.clone()
            },
            JoinRequest {
                public_key: vec![4; 65],
                ..good.clone()
            },
            JoinRequest {
                public_key: Vec::new(),
                ..good.clone()
            },
            JoinRequest {
                signature: Vec::new(),
                ..good.clone()
            },
            JoinRequest {
                proof: [0; 32],
                ..good
            },
        ] {
            assert!(!hold(&changed, &session, verifier), "{changed:?}");
        }
        Ok(())
    }
}
