//! A connection to a server: TCP, and TLS with the certificate checked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pomona_common::ServerAddress;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::error::{Phase, UpstreamError};

/// One of a server's addresses may take so long.
const ADDRESS: Duration = Duration::from_millis(1500);

/// Bytes both ways.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// What TLS needs: the authorities that browsers trust (Mozilla's list), and those of a file.
///
/// # Errors
/// The file holds no certificate.
pub(crate) fn connector(more_authorities: Option<&[u8]>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(pem) = more_authorities {
        let mut added = 0;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| error.to_string())?;
            roots.add(certificate).map_err(|error| error.to_string())?;
            added += 1;
        }
        if added == 0 {
            return Err("it holds no certificate in PEM".to_owned());
        }
    }
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// One address after the other: one that swallows what is sent to it must not take all the time.
async fn dial(address: &ServerAddress) -> io::Result<TcpStream> {
    let mut outcome = Err(io::Error::other("the name has no address"));
    for one in lookup_host((address.host.as_str(), address.port)).await? {
        outcome = match timeout(ADDRESS, TcpStream::connect(one)).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("{one} does not answer"),
            )),
        };
    }
    outcome
}

/// Dials a server, within the time for that.
///
/// # Errors
/// No connection, or a certificate that is not its.
pub(crate) async fn connect(
    address: &ServerAddress,
    tls: Option<&TlsConnector>,
) -> Result<Box<dyn Wire>, UpstreamError> {
    let connecting = async {
        let socket = dial(address).await?;
        // Requests go out in one piece, and nobody waits for an acknowledgement.
        socket.set_nodelay(true)?;
        let Some(tls) = tls else {
            return Ok(Box::new(socket) as Box<dyn Wire>);
        };
        let name = ServerName::try_from(address.host.clone()).map_err(io::Error::other)?;
        let wire = tls.connect(name, socket).await?;
        Ok(Box::new(wire) as Box<dyn Wire>)
    };
    match timeout(Phase::Connect.limit(Duration::ZERO), connecting).await {
        Ok(dialled) => dialled.map_err(|error: io::Error| UpstreamError::Unreachable(error.to_string())),
        Err(_) => Err(UpstreamError::Silent(Phase::Connect)),
    }
}
