//! Over TLS: who is trusted, and who is not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use pomona_common::{ServerAddress, TextAsk, TextPrompt};
use pomona_upstream::{Client, Piece, Rate, Settings, UpstreamError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const FIRST_TEXT: Duration = Duration::from_secs(60);
/// Made for this test, for 127.0.0.1 and a hundred years; the authority's key is gone.
const AUTHORITY: &[u8] = include_bytes!("tls/ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("tls/server.pem");
const KEY: &[u8] = include_bytes!("tls/server.key");

fn acceptor() -> TlsAcceptor {
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn ask(host: &str, port: u16, authorities: Option<&[u8]>) -> Result<Piece, UpstreamError> {
    let client = Client::new(Settings {
        address: ServerAddress {
            tls: true,
            host: host.into(),
            port,
            base: "/v1".into(),
        },
        key: None,
        parallel: 1,
        rate: Rate::default(),
        first_text: FIRST_TEXT,
        left_alone: true,
        authorities: authorities.map(<[u8]>::to_vec),
        max_tokens_field: "max_tokens".into(),
    });
    let ask = TextAsk::new("org/a".parse().unwrap(), TextPrompt::Text("Once".into()), 1);
    let mut answer = client.unwrap().turn(2)?.ask(&ask, "m").await?;
    Ok(answer.next().await?.unwrap())
}

#[tokio::test]
async fn a_server_is_asked_when_its_certificate_is_its_own_and_by_an_authority_that_is_trusted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            // Whoever does not trust it breaks off.
            let Ok(mut stream) = acceptor().accept(socket).await else {
                continue;
            };
            let _ = stream.read(&mut [0; 4096]).await;
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n\
                data: {\"choices\":[{\"text\":\"upon\"}]}\n\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    let outcome = ask("127.0.0.1", port, Some(AUTHORITY)).await;
    assert_eq!(outcome, Ok(Piece::Text("upon".into())));
    // Nobody who browses trusts it, and it is not called so.
    for (host, authorities) in [("127.0.0.1", None), ("localhost", Some(AUTHORITY))] {
        let outcome = ask(host, port, authorities).await;
        let is_refused =
            matches!(&outcome, Err(UpstreamError::Unreachable(why)) if why.contains("certificate"));
        assert!(is_refused, "{outcome:?}");
    }
    assert!(
        Client::new(Settings {
            address: ServerAddress {
                tls: true,
                host: "a".into(),
                port: 1,
                base: String::new(),
            },
            key: Some("bad\nkey".into()),
            parallel: 1,
            rate: Rate::default(),
            first_text: FIRST_TEXT,
            left_alone: true,
            authorities: None,
            max_tokens_field: "max_tokens".into(),
        })
        .is_err()
    );
}
