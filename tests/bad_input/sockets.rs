//! Clients that break HTTP itself.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pomona_tests::{Cluster, greedy};

fn talk(port: u16, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // The server may answer and close before everything is written.
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn broken_http_is_refused_and_slow_clients_are_cut_off() {
    let cluster = Cluster::start("echo");
    let port = cluster.coordinator;
    let many: String = (0..200).map(|i| format!("x-{i}: 1\r\n")).collect();
    let flood = format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\n{many}\r\n");
    let long = format!(
        "GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "y".repeat(200_000)
    );
    let uri = format!(
        "GET /{} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        "z".repeat(10_000)
    );
    for (name, bytes, expected) in [
        ("header flood", flood.as_bytes(), "HTTP/1.1 431"),
        ("long header", long.as_bytes(), "HTTP/1.1 431"),
        ("long target", uri.as_bytes(), "HTTP/1.1 414"),
        ("no http", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\r\n\r\n", "HTTP/1.1 400"),
        ("bad version", b"GET / HTTP/9.9\r\n\r\n", "HTTP/1.1 400"),
        ("two lengths", b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", "HTTP/1.1 400"),
    ] {
        let answer = talk(port, bytes);
        assert!(answer.starts_with(expected), "{name}: {:?}", answer.lines().next());
    }
    let began = Instant::now();
    let silent = talk(port, b"GET /healthz HTTP/1.1\r\nhost: loc");
    assert!(
        silent.is_empty() || silent.starts_with("HTTP/1.1 408"),
        "{silent}"
    );
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "a slow client is held for {:?}",
        began.elapsed()
    );
    // A body that never comes whole: the client leaves, nothing else happens.
    let cut = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 500\r\n\r\n{";
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.write_all(cut).unwrap();
    drop(socket);
    assert_eq!(cluster.post("/v1/chat/completions", &greedy("Hi", 2)).0, 200);
    assert!(!cluster.log().contains("panicked"));
}
