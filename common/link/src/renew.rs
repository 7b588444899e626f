//! Both ends of a renewal after the end: a node that slept past its certificate proves that it holds
//! the key, and is given a new one while the cluster still knows it. Afterwards it joins anew.

use std::net::SocketAddr;
use std::time::Duration;

use pomona_common::renew::{RenewAnswer, RenewRequest};
use pomona_common::{KeyPrint, NodeId};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use ring::signature;

use crate::authority::certificate_error;
use crate::endpoint::Purpose;
use crate::identity::{Identity, Role};
use crate::join::print_of;
use crate::visit::{EXCHANGE, Visit, Visitor, exporter};
use crate::{LinkError, tls};

/// Exporter label: what binds a signature to one TLS session.
const EXPORTER: &[u8] = b"EXPORTER-pomona-renew-1";
/// How long after its end a certificate may be renewed: a holiday.
const GRACE: Duration = Duration::from_secs(14 * 24 * 3600);

/// A new certificate, PEM, for a node whose own has run out, from the coordinator at `address`.
///
/// # Errors
/// Nobody answers, it is not a coordinator of the node's cluster, or it refuses.
pub async fn renew(address: SocketAddr, identity: &Identity) -> Result<String, LinkError> {
    let config = tls::renewal_config(identity, Purpose::Renew.protocols(u16::MAX))?;
    let visit = Visit::dial(address, config, identity.cluster()).await?;
    let renewed = tokio::time::timeout(EXCHANGE, ask(&visit, identity))
        .await
        .map_err(|_| LinkError::Deadline(EXCHANGE))?;
    visit.end().await;
    renewed
}

async fn ask(visit: &Visit, identity: &Identity) -> Result<String, LinkError> {
    let key = KeyPair::from_pem(&identity.key_pem).map_err(certificate_error)?;
    let request = RenewRequest {
        certificate: identity.certificate_pem.clone(),
        public_key: key.der_bytes().to_vec(),
        signature: key
            .sign(&exporter(&visit.connection, EXPORTER)?)
            .map_err(certificate_error)?,
    };
    match visit.ask(&request).await? {
        RenewAnswer::Renewed { certificate } => Ok(certificate),
        RenewAnswer::Refused(why) => Err(LinkError::Refused(why)),
    }
}

/// Who asks for a certificate, and has shown that it holds the key.
pub struct Renewal {
    /// The node.
    pub node: NodeId,
    /// The print of its key.
    pub key: KeyPrint,
    /// The key: a point of P-256, uncompressed.
    pub public_key: Vec<u8>,
}

/// A node that wants a certificate, and has shown nothing yet.
pub struct Renewing {
    visitor: Visitor,
    own: Identity,
}

impl Renewing {
    pub(crate) fn new(connection: quinn::Connection, own: Identity) -> Self {
        Self {
            visitor: Visitor::new(connection),
            own,
        }
    }

    /// Reads the request, checks its proofs, lets `decide` answer it, sends the answer.
    ///
    /// # Errors
    /// The node goes away or breaks the protocol.
    pub async fn serve<F: Future<Output = RenewAnswer>>(
        self,
        decide: impl FnOnce(Renewal) -> F,
    ) -> Result<(), LinkError> {
        let own = &self.own;
        let checked = |request, exporter| async move {
            match check(request, own, &exporter) {
                Ok(renewal) => decide(renewal).await,
                Err(error) => RenewAnswer::Refused(error.to_string()),
            }
        };
        self.visitor.serve((EXPORTER, b"renewal ended"), checked).await
    }
}

fn check(request: RenewRequest, own: &Identity, exporter: &[u8; 32]) -> Result<Renewal, LinkError> {
    let peer = tls::expired_peer(&request.certificate, own, GRACE)?;
    let wrong = |what: &str| LinkError::Certificate(what.to_owned());
    let Role::Node(node) = peer.role else {
        return Err(wrong("only nodes renew"));
    };
    if print_of(&request.public_key) != peer.key {
        return Err(wrong("the certificate is for another key"));
    }
    let key = signature::UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, &request.public_key);
    key.verify(exporter, &request.signature)
        .map_err(|_| wrong("whoever asks does not hold the key"))?;
    Ok(Renewal {
        node,
        key: peer.key,
        public_key: request.public_key,
    })
}
