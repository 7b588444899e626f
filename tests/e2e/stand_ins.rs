//! Stand-ins for servers that do not run here, adopted: mlx-batch-server and macMLX, as far as what they speak is
//! documented. README says that neither was the real one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pomona_tests::{Cluster, eventually, greedy, post_to};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// What the servers call their model.
const THERE: &str = "mlx-community/Qwen3-4B-4bit";
/// What the cluster calls it.
const SERVED: &str = "served";

/// A server of one model.
#[derive(Default)]
struct StandIn {
    port: u16,
    /// Whether it tells its load, as mlx-batch-server does.
    tells: bool,
    /// Whether its model is in memory; macMLX answers nothing before somebody loads it.
    is_loaded: AtomicBool,
    /// Requests that it works on.
    active: AtomicU64,
    /// Of other clients, that wait there.
    pending: AtomicU64,
    /// The API key that it asks for, if it does.
    key: Option<&'static str>,
}

impl StandIn {
    /// It listens until the test's process ends.
    fn start(tells: bool, is_loaded: bool) -> Arc<Self> {
        Self::listen(Self {
            tells,
            is_loaded: is_loaded.into(),
            ..Self::default()
        })
    }

    fn listen(server: Self) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Arc::new(Self {
            port: listener.local_addr().unwrap().port(),
            ..server
        });
        let listening = server.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let server = listening.clone();
                // Whoever leaves early is no matter.
                std::thread::spawn(move || server.answer(socket).ok());
            }
        });
        server
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    fn answer(&self, socket: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(socket.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let (mut length, mut shown) = (0, None);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("authorization: bearer ") {
                shown = Some(value.to_owned());
            }
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        match first.split(' ').nth(1) {
            _ if self.key.is_some() && shown.as_deref() != self.key => document(
                &socket,
                401,
                &json!({"error": {"message": "no key", "code": "invalid_api_key"}}),
            ),
            Some("/v1/models") => document(&socket, 200, &json!({"object": "list", "data": [{"id": THERE}]})),
            Some("/v1/batch/stats") if self.tells => document(&socket, 200, &self.stats()),
            Some("/v1/chat/completions") if !self.is_loaded.load(Ordering::SeqCst) => {
                let error = json!({"message": "load a model first", "type": "invalid_request_error", "code": "model_not_loaded"});
                document(&socket, 503, &json!({ "error": error }))
            }
            Some("/v1/chat/completions") => {
                self.active.fetch_add(1, Ordering::SeqCst);
                let done = stream(&socket, &serde_json::from_slice(&body).unwrap_or_default());
                self.active.fetch_sub(1, Ordering::SeqCst);
                done
            }
            _ => document(&socket, 404, &json!({"error": {"message": "no such path"}})),
        }
    }

    /// The keys that mlx-batch-server documents.
    fn stats(&self) -> Value {
        let counts = json!({
            "total_requests": 9, "total_batches": 3, "total_tokens": 99,
            "pending_requests": self.pending.load(Ordering::SeqCst),
            "active_requests": self.active.load(Ordering::SeqCst),
            "batch_window_ms": 50, "max_batch_size": 10,
        });
        json!({
            "enabled": true,
            "settings": {"batch_window_ms": 50, "max_batch_size": 10},
            "coordinators": {THERE: {"coordinator": counts, "generator": {}}},
            "coverage": {},
        })
    }
}

fn document(mut socket: &TcpStream, status: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = "content-type: application/json\r\nconnection: close";
    let length = body.len();
    write!(
        socket,
        "HTTP/1.1 {status} x\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// An answer of as many words as are asked for, streamed.
fn stream(mut socket: &TcpStream, asked: &Value) -> std::io::Result<()> {
    let tokens = asked["max_tokens"].as_u64().unwrap_or(1);
    write!(
        socket,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    )?;
    let mut send = |event: Value| write!(socket, "data: {event}\n\n");
    for _ in 0..tokens {
        send(json!({"choices": [{"index": 0, "delta": {"content": "apple "}}]}))?;
        std::thread::sleep(Duration::from_millis(10));
    }
    send(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}))?;
    send(json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}))?;
    write!(socket, "data: [DONE]\n\n")
}

fn ask(home: &Cluster, model: &str, tokens: u32) -> (u16, String) {
    let mut body = greedy("Hi", tokens);
    body["model"] = model.into();
    let (status, answer) = post_to(home.coordinator, "/v1/chat/completions", &body);
    (status, answer.to_string())
}

/// Interactive requests that the node reports as running.
fn interactive(home: &Cluster) -> u64 {
    let engine = &home.json(&["nodes"])[0]["report"]["engine"];
    engine["classes"]["interactive"]["running"].as_u64().unwrap_or(0)
}

#[test]
fn a_batch_server_that_a_person_uses_directly_is_spared_batch_work() {
    let _one = crate::engine_lock();
    let server = StandIn::start(true, true);
    let home = Cluster::start("echo:1");
    let adopt = ["engine", "adopt", &server.url(), "--name", SERVED, "--slots", "2"];
    let (ok, _, errors) = home.pomona(&adopt);
    assert!(ok, "{errors}");
    eventually("it answers", SOON, || ask(&home, SERVED, 3).0 == 200);
    let (_, answer) = ask(&home, SERVED, 3);
    assert!(answer.contains("apple apple apple"), "{answer}");
    let batch = format!("{SERVED}:batch");
    assert_eq!(ask(&home, &batch, 3).0, 200);
    // The load that is told while it works for Pomona is nobody else's.
    let most = std::thread::scope(|scope| {
        let long = scope.spawn(|| ask(&home, SERVED, 700).0);
        let mut most = 0;
        while !long.is_finished() {
            most = most.max(interactive(&home));
        }
        assert_eq!(long.join().unwrap(), 200);
        most
    });
    assert_eq!(most, 1);

    // Who finds no place within a second is told.
    assert!(home.pomona(&["slo", "set", "batch.wait_s=1"]).0);
    assert!(
        home.pomona(&["fallback", "set", "batch=laptop,rack,rented,local"])
            .0
    );
    server.pending.store(2, Ordering::SeqCst);
    eventually("the load is known", SOON, || interactive(&home) == 2);
    let (status, answer) = ask(&home, &batch, 3);
    assert!(
        status == 429 && answer.contains("came free in time"),
        "{status}: {answer}"
    );
    assert_eq!(ask(&home, SERVED, 3).0, 200, "who waits is answered");
    server.pending.store(0, Ordering::SeqCst);
    eventually("batch work begins again", SOON, || ask(&home, &batch, 3).0 == 200);
}

#[test]
fn a_server_whose_model_nobody_has_loaded_is_adopted_once_it_is() {
    let _one = crate::engine_lock();
    let server = StandIn::start(false, false);
    let home = Cluster::start("echo:1");
    let url = server.url();
    let adopt = ["engine", "adopt", &url, "--name", SERVED];
    let (ok, _, errors) = home.pomona(&adopt);
    assert!(!ok && errors.contains("model_not_loaded"), "{errors}");
    server.is_loaded.store(true, Ordering::SeqCst);
    let (ok, _, errors) = home.pomona(&adopt);
    assert!(ok, "{errors}");
    eventually("it answers", SOON, || ask(&home, SERVED, 3).0 == 200);
}

#[test]
fn a_server_that_asks_for_a_key_gets_it_from_a_file() {
    let _one = crate::engine_lock();
    let server = StandIn::listen(StandIn {
        is_loaded: true.into(),
        key: Some("sk-there"),
        ..StandIn::default()
    });
    let home = Cluster::start("echo:1");
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let url = server.url();
    let adopt = ["engine", "adopt", &url, "--name", SERVED];
    let (ok, _, errors) = home.pomona(&adopt);
    assert!(
        !ok && errors.contains("--key-file") && errors.contains("401"),
        "{errors}"
    );
    let with_key = [&adopt[..], &["--key-file", key.to_str().unwrap()]].concat();
    let (ok, _, errors) = home.pomona(&with_key);
    assert!(!ok && errors.contains("No such file"), "{errors}");
    std::fs::write(&key, " \n").unwrap();
    let (ok, _, errors) = home.pomona(&with_key);
    assert!(!ok && errors.contains("there is no API key in it"), "{errors}");
    std::fs::write(&key, "sk-there\n").unwrap();
    let (ok, _, errors) = home.pomona(&with_key);
    assert!(ok, "{errors}");
    eventually("it answers", SOON, || ask(&home, SERVED, 3).0 == 200);
    let shown = home.json(&["engine", "show"]).to_string();
    assert!(
        !shown.contains("sk-there") && !home.log().contains("sk-there"),
        "{shown}"
    );
}
