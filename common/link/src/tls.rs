//! TLS 1.3 with ring, certificates on both ends except for joining, no resumption, no early data.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use pomona_common::{ClusterId, KeyPrint, Line, limits};

use crate::LinkError;
use crate::farewell::Windows;
use crate::identity::{Identity, Peer, Role};
use crate::join::key_print;

/// Half of what a node's certificate is good for.
const EXPIRY_STEP: Duration = Duration::from_secs(12 * 3600);

pub(crate) fn server_config(
    identity: &Identity,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::ServerConfig, LinkError> {
    let (roots, mut chain, key) = material(identity)?;
    // A machine that joins knows the authority by its key alone, and takes it from here.
    chain.push(parse(&identity.authority_pem)?);
    // Who shows no certificate may join and nothing else: `Incoming::finish` sees to it.
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .allow_unauthenticated()
        .build()
        .map_err(trouble)?;
    let mut tls = ServerConfig::builder_with_details(provider(), Arc::new(WallClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(trouble)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(trouble)?;
    tls.alpn_protocols = protocols;
    tls.max_early_data_size = 0;
    tls.send_tls13_tickets = 0;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    let crypto = QuicServerConfig::try_from(tls).map_err(trouble)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport()?)
        .max_incoming(limits::QUIC_HANDSHAKES)
        .incoming_buffer_size(64 * 1024)
        .incoming_buffer_size_total(4 * 1024 * 1024)
        .migration(true);
    Ok(config)
}

pub(crate) fn client_config(
    identity: &Identity,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::ClientConfig, LinkError> {
    let (roots, chain, key) = material(identity)?;
    let tls = ClientConfig::builder_with_details(provider(), Arc::new(WallClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(trouble)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(trouble)?;
    dialling(tls, protocols)
}

/// As [`client_config`], for tests that trust whom a client of ours would not.
#[cfg(test)]
pub(crate) fn client_config_trusting(
    identity: &Identity,
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::ClientConfig, LinkError> {
    let (_, chain, key) = material(identity)?;
    let tls = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(trouble)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(trouble)?;
    dialling(tls, protocols)
}

/// For a member whose own certificate is of no use: it shows none.
pub(crate) fn renewal_config(
    identity: &Identity,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::ClientConfig, LinkError> {
    let (roots, ..) = material(identity)?;
    let tls = ClientConfig::builder_with_details(provider(), Arc::new(WallClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(trouble)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    dialling(tls, protocols)
}

/// A node's certificate of this cluster, that ran out within the grace or not yet.
pub(crate) fn expired_peer(
    certificate_pem: &str,
    identity: &Identity,
    grace: Duration,
) -> Result<Peer, LinkError> {
    let der = parse(certificate_pem)?;
    // Certificates do not tell when they end, only whether they are good at a time; they are good
    // for twice the step.
    let now = WallClock::now();
    let steps = grace.as_secs() / EXPIRY_STEP.as_secs();
    let is_good = |step: u64| {
        let at = now.saturating_sub(EXPIRY_STEP * step as u32);
        is_good_at(&der, &identity.authority_pem, at)
    };
    if !(0..=steps).any(is_good) {
        return Err(LinkError::Certificate(
            "it ran out too long ago, or is of another cluster: join anew; or the clocks differ: look at them".into(),
        ));
    }
    named(&der, identity.cluster())
}

/// Whether a client's certificate comes from this authority and is good at a time since 1970.
fn is_good_at(der: &CertificateDer<'_>, authority_pem: &str, at: Duration) -> bool {
    let verify = || -> Option<()> {
        let authority = parse(authority_pem).ok()?;
        let anchors = [webpki::anchor_from_trusted_cert(&authority).ok()?];
        let leaf = webpki::EndEntityCert::try_from(der).ok()?;
        let (at, usage) = (UnixTime::since_unix_epoch(at), webpki::KeyUsage::client_auth());
        let algorithms = provider().signature_verification_algorithms.all;
        leaf.verify_for_usage(algorithms, &anchors, &[], at, usage, None, None)
            .ok()?;
        Some(())
    };
    verify().is_some()
}

/// Whether what a connection's other end showed is still good.
pub(crate) fn shows_current(connection: &quinn::Connection, authority_pem: &str) -> bool {
    let chain = peer_chain(connection).unwrap_or_default();
    let leaf = chain.first();
    leaf.is_some_and(|leaf| is_good_at(leaf, authority_pem, WallClock::now()))
}

/// Whether a certificate has not run out.
pub(crate) fn is_current(identity: &Identity) -> bool {
    expired_peer(&identity.certificate_pem, identity, Duration::ZERO).is_ok()
}

/// For a machine without certificate: `verifier` decides whom to trust.
pub(crate) fn join_config(
    verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>,
    protocols: Vec<Vec<u8>>,
) -> Result<quinn::ClientConfig, LinkError> {
    let tls = ClientConfig::builder_with_details(provider(), Arc::new(WallClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(trouble)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    dialling(tls, protocols)
}

/// What every client has in common: the versions of one protocol, no resumption, no early data, our limits.
fn dialling(mut tls: ClientConfig, protocols: Vec<Vec<u8>>) -> Result<quinn::ClientConfig, LinkError> {
    tls.alpn_protocols = protocols;
    tls.resumption = Resumption::disabled();
    tls.enable_early_data = false;
    let crypto = QuicClientConfig::try_from(tls).map_err(trouble)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport()?);
    Ok(config)
}

/// The authority that a coordinator showed in its chain, by its pinned key, as PEM.
pub(crate) fn authority_of(connection: &quinn::Connection, pin: KeyPrint) -> Result<String, LinkError> {
    let chain = peer_chain(connection).unwrap_or_default();
    let authority = chain
        .iter()
        .find(|certificate| key_print(certificate) == Some(pin))
        .ok_or_else(|| LinkError::Certificate("the coordinator shows no authority".into()))?;
    let lines: Vec<String> = STANDARD
        .encode(authority)
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    Ok(format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    ))
}

fn peer_chain(connection: &quinn::Connection) -> Option<Vec<CertificateDer<'static>>> {
    let identity = connection.peer_identity()?;
    identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()
        .map(|chain| *chain)
}

/// The protocol that was agreed on.
pub(crate) fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    data.protocol.clone()
}

/// A connection's other end. Its certificate was verified by rustls; here its name is read and
/// must be of our cluster.
pub(crate) fn peer(connection: &quinn::Connection, cluster: ClusterId) -> Result<Peer, LinkError> {
    let wrong = |what: &str| LinkError::Certificate(what.to_owned());
    let chain = peer_chain(connection).ok_or_else(|| wrong("peer shows no certificate"))?;
    named(
        chain.first().ok_or_else(|| wrong("peer shows no certificate"))?,
        cluster,
    )
}

/// Whom a certificate that was verified is for.
fn named(der: &CertificateDer<'_>, cluster: ClusterId) -> Result<Peer, LinkError> {
    let wrong = |what: &str| LinkError::Certificate(what.to_owned());
    let leaf = webpki::EndEntityCert::try_from(der).map_err(|_| wrong("peer certificate does not parse"))?;
    let mut names = leaf.valid_uri_names();
    let (Some(uri), None) = (names.next(), names.next()) else {
        return Err(wrong("peer certificate has not exactly one URI"));
    };
    let role = Role::from_uri(uri, cluster).ok_or_else(|| wrong("peer belongs to another cluster"))?;
    let key = key_print(der).ok_or_else(|| wrong("peer certificate does not parse"))?;
    Ok(Peer { role, key })
}

/// The process's wall clock, which a script may move.
#[derive(Debug)]
struct WallClock;

impl WallClock {
    fn now() -> Duration {
        let since = pomona_clocks::wall().duration_since(UNIX_EPOCH);
        since.unwrap_or_default()
    }
}

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Self::now()))
    }
}

type Material = (
    Arc<RootCertStore>,
    Vec<CertificateDer<'static>>,
    PrivateKeyDer<'static>,
);

fn material(identity: &Identity) -> Result<Material, LinkError> {
    let mut roots = RootCertStore::empty();
    roots.add(parse(&identity.authority_pem)?).map_err(trouble)?;
    let chain = vec![parse(&identity.certificate_pem)?];
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(trouble)?;
    Ok((Arc::new(roots), chain, key))
}

fn parse(pem: &str) -> Result<CertificateDer<'static>, LinkError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(trouble)
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A session that has not ended itself by then ends without a word.
const SILENT_END: Duration = Duration::from_secs(3);

/// Every limit of quinn, set: its defaults are made for the open internet. Sessions
/// end themselves sooner, and tell the peer, which QUIC does not.
fn transport() -> Result<Arc<TransportConfig>, LinkError> {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(Line::Wan.silence() + SILENT_END).map_err(trouble)?;
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::QUIC_BIDI_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits::QUIC_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(limits::QUIC_CONNECTION_WINDOW))
        .send_window(u64::from(limits::QUIC_CONNECTION_WINDOW))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(limits::QUIC_KEEP_ALIVE))
        .congestion_controller_factory(Arc::new(Windows::default()))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .allow_spin(false);
    Ok(Arc::new(config))
}

fn trouble(error: impl std::fmt::Display) -> LinkError {
    LinkError::Certificate(error.to_string())
}
