//! Nobody who asks for an answer says where anything is sent: no outbound address comes from a request.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, agent, eventually, greedy};
use serde_json::{Value, json};

/// Whoever was sent there would have come within this time.
const COMES: Duration = Duration::from_millis(1_500);

/// Names of headers that name a destination somewhere.
const HEADERS: [&str; 14] = [
    "host",
    "forwarded",
    "via",
    "referer",
    "origin",
    "x-forwarded-host",
    "x-forwarded-for",
    "x-original-url",
    "x-pomona-node",
    "x-pomona-cloud",
    "x-pomona-coordinator",
    "openai-base-url",
    "proxy-authorization",
    "traceparent",
];

/// The same of fields of the body.
const FIELDS: [&str; 12] = [
    "api_base",
    "base_url",
    "api_url",
    "endpoint",
    "url",
    "upstream",
    "proxy",
    "webhook",
    "callback_url",
    "user",
    "store",
    "metadata",
];

#[test]
fn a_request_cannot_name_a_destination() {
    let _lock = super::engine_lock();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/v1");
    // Batch goes to a cloud, so that there is a client of other servers which could be misled.
    let (home, _away) = crate::cloud::home_and_away();
    let approve = [
        "cloud", "approve", "away", "--days", "1", "--money", "100", "--tokens", "1M",
    ];
    let (ok, _, errors) = home.pomona(&approve);
    assert!(ok, "{errors}");
    eventually("batch goes to the cloud", Duration::from_secs(20), || {
        status(home.node, &batch(greedy("Hi", 2)), None) == 200
    });
    // Of interactive and of batch requests.
    let mut answered = [0, 0];
    for entry in [home.coordinator, home.node] {
        for header in HEADERS {
            for value in [
                url.clone(),
                format!("127.0.0.1:{port}"),
                format!("host=127.0.0.1:{port}"),
            ] {
                for (i, body) in [greedy("Hi", 2), batch(greedy("Hi", 2))].iter().enumerate() {
                    answered[i] += usize::from(post(entry, body, Some((header, &value))) == 200);
                }
            }
        }
        for field in FIELDS {
            for value in [json!(url), json!({ "url": url })] {
                let mut body = greedy("Hi", 2);
                body[field] = value;
                for (i, body) in [body.clone(), batch(body)].iter().enumerate() {
                    answered[i] += usize::from(post(entry, body, None) == 200);
                }
            }
        }
        for model in [url.clone(), format!("{MODEL}@{url}"), format!("cloud:{url}")] {
            let mut body = greedy("Hi", 2);
            body["model"] = model.into();
            assert_eq!(post(entry, &body, None), 404, "{body}");
        }
        let mut body = greedy("Hi", 2);
        body["messages"][0]["content"] = json!([{ "type": "image_url", "image_url": { "url": url } }]);
        assert_eq!(post(entry, &body, None), 400, "{body}");
        for line in [
            format!("POST {url}/chat/completions HTTP/1.1"),
            format!("GET {url}/models HTTP/1.1"),
            format!("CONNECT 127.0.0.1:{port} HTTP/1.1"),
        ] {
            let status = raw(entry, &line);
            assert!(!status.is_empty() && !status.contains(" 5"), "{line}: {status}");
        }
    }
    // Most of it says nothing to anybody here, and is answered as ever.
    assert!(
        answered.iter().all(|answered| *answered > HEADERS.len() * 3),
        "{answered:?}"
    );
    std::thread::sleep(COMES);
    listener.set_nonblocking(true).unwrap();
    let came = listener.accept();
    assert!(came.is_err(), "somebody was sent to {url}: {came:?}");
}

fn batch(mut body: Value) -> Value {
    body["service_tier"] = "flex".into();
    body
}

fn post(port: u16, body: &Value, header: Option<(&str, &str)>) -> u16 {
    let status = status(port, body, header);
    assert!(status < 500, "{body} {header:?}: {status}");
    status
}

fn status(port: u16, body: &Value, header: Option<(&str, &str)>) -> u16 {
    let mut request = agent().post(format!("http://127.0.0.1:{port}/v1/chat/completions"));
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    request.send_json(body).unwrap().status().as_u16()
}

/// The first line of the answer to a request with this first line.
fn raw(port: u16, line: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let body = greedy("Hi", 2).to_string();
    let length = body.len();
    write!(
        socket,
        "{line}\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer);
    answer.lines().next().unwrap_or_default().to_owned()
}

/// As the coordinator's (`keys.rs`): a node that others would reach and nobody could be let in at does not start.
#[test]
fn a_node_without_keys_does_not_listen_where_others_reach_it() {
    let mut node = Machine::empty();
    node.set("POMONA_NODE_HTTP", "0.0.0.0:0");
    let mut process = node
        .command(&["node"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let ended = loop {
        match process.try_wait().unwrap() {
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            None => {
                process.kill().unwrap();
                break process.wait().unwrap();
            }
            Some(status) => break status,
        }
    };
    let mut errors = String::new();
    process
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert!(ended.code().is_some_and(|code| code != 0), "{ended}: {errors}");
    assert!(errors.contains("this node knows of no API key"), "{errors}");
    assert!(errors.contains("pomona key create"), "{errors}");
}
