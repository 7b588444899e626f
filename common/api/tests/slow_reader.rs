//! A client that stops reading does not hold its connection.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test")]

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use pomona_api::HttpServer;
use pomona_common::limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Says when it is dropped.
struct Gone(mpsc::Sender<Instant>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.try_send(Instant::now());
    }
}

/// Time is the runtime's own: it jumps ahead when nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_client_that_stops_reading_is_cut_after_the_limit() {
    let (gone, mut body_dropped) = mpsc::channel(1);
    let endless = move || {
        let gone = Gone(gone.clone());
        async move {
            Body::from_stream(futures_util::stream::repeat_with(move || {
                let _held = &gone;
                Ok::<_, Infallible>(Bytes::from_static(&[b'x'; 65_536]))
            }))
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = HttpServer::start(listener, Router::new().route("/", get(endless)));
    let mut client = TcpStream::connect(address).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let mut some = [0; 1024];
    client.read_exact(&mut some).await.unwrap();
    let stopped_reading = Instant::now();
    let dropped = body_dropped.recv().await.unwrap();
    let waited = dropped - stopped_reading;
    assert!(waited >= limits::IDLE_WRITE_TIMEOUT, "cut after {waited:?}");
    assert!(
        waited < limits::IDLE_WRITE_TIMEOUT + Duration::from_secs(5),
        "cut after {waited:?}"
    );
    server.stop().await;
}
