//! Both ends of a renewal after the end: a node that slept past its certificate proves that it holds
//! the key, and is given a new one while the cluster still knows it. Afterwards it joins anew.

use std::net::SocketAddr;
use std::time::Duration;

use pomona_common::renew::{RenewAnswer, RenewRequest};
use pomona_common::{KeyPrint, NodeId};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use ring::signature;

use crate::authority::certificate_error;
use crate::endpoint::{Purpose, any_port_toward, connect};
use crate::identity::{Identity, Role};
use crate::join::{exporter, print_of};
use crate::session::{FrameReceiver, FrameSender, closed};
use crate::{LinkError, tls};

/// Exporter label: what binds a signature to one TLS session.
const EXPORTER: &[u8] = b"EXPORTER-pomona-renew-1";
/// The whole exchange takes at most this long.
const EXCHANGE: Duration = Duration::from_secs(10);
/// A node sends its request at once.
const REQUEST: Duration = Duration::from_secs(2);
/// How long after its end a certificate may be renewed: a holiday.
const GRACE: Duration = Duration::from_secs(14 * 24 * 3600);

/// A new certificate, PEM, for a node whose own has run out, from the coordinator at `address`.
///
/// # Errors
/// Nobody answers, it is not a coordinator of the node's cluster, or it refuses.
pub async fn renew(address: SocketAddr, identity: &Identity) -> Result<String, LinkError> {
    let local = any_port_toward(address);
    let endpoint = quinn::Endpoint::client(local).map_err(|source| LinkError::Bind {
        address: local,
        source,
    })?;
    let config = tls::renewal_config(identity, Purpose::Renew.protocols(u16::MAX))?;
    let server_name = Role::Coordinator(0).server_name(identity.cluster());
    let connection = connect(&endpoint, config, address, &server_name).await?;
    let renewed = tokio::time::timeout(EXCHANGE, ask(&connection, identity))
        .await
        .map_err(|_| LinkError::Deadline(EXCHANGE))?;
    connection.close(0u32.into(), b"done");
    endpoint.wait_idle().await;
    renewed
}

async fn ask(connection: &quinn::Connection, identity: &Identity) -> Result<String, LinkError> {
    let key = KeyPair::from_pem(&identity.key_pem).map_err(certificate_error)?;
    let request = RenewRequest {
        certificate: identity.certificate_pem.clone(),
        public_key: key.der_bytes().to_vec(),
        signature: key
            .sign(&exporter(connection, EXPORTER)?)
            .map_err(certificate_error)?,
    };
    let (send, receive) = connection.open_bi().await.map_err(closed)?;
    let (mut send, mut receive) = (FrameSender::new(send, 1), FrameReceiver::new(receive));
    send.send(&request).await?;
    send.finish();
    match receive.expect::<RenewAnswer>(EXCHANGE).await? {
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
    connection: quinn::Connection,
    own: Identity,
}

impl Renewing {
    pub(crate) fn new(connection: quinn::Connection, own: Identity) -> Self {
        // One small request is all that it may send.
        connection.set_max_concurrent_bi_streams(1u32.into());
        connection.set_receive_window((pomona_common::limits::JOIN_FRAME_BYTES as u32).into());
        Self { connection, own }
    }

    /// Reads the request, checks its proofs, lets `decide` answer it, sends the answer.
    ///
    /// # Errors
    /// The node goes away or breaks the protocol.
    pub async fn serve<F: Future<Output = RenewAnswer>>(
        self,
        decide: impl FnOnce(Renewal) -> F,
    ) -> Result<(), LinkError> {
        let exchange = async {
            let (send, receive) = tokio::time::timeout(REQUEST, self.connection.accept_bi())
                .await
                .map_err(|_| LinkError::Deadline(REQUEST))?
                .map_err(closed)?;
            let (mut send, mut receive) = (FrameSender::new(send, 1), FrameReceiver::new(receive));
            let request: RenewRequest = receive.expect(REQUEST).await?;
            let answer = match check(request, &self.own, &exporter(&self.connection, EXPORTER)?) {
                Ok(renewal) => decide(renewal).await,
                Err(error) => RenewAnswer::Refused(error.to_string()),
            };
            send.send(&answer).await?;
            send.finish();
            // The node closes once it has the answer.
            self.connection.closed().await;
            Ok(())
        };
        let served = tokio::time::timeout(EXCHANGE, exchange).await;
        self.connection.close(1u32.into(), b"renewal ended");
        served.map_err(|_| LinkError::Deadline(EXCHANGE))?
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
