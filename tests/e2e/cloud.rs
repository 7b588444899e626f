//! Requests that no machine answers go to a cloud when that is approved, within its ceilings, and each is written
//! down. The cloud is another cluster: a server of the same API that is really there.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pomona_tests::{Cluster, MODEL, agent, eventually, greedy};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// What an endpoint says.
struct Said {
    status: u16,
    cloud: Option<String>,
    node: Option<String>,
    body: String,
}

impl Said {
    fn text(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

fn post(port: u16, body: &Value, headers: &[(&str, &str)]) -> Said {
    let mut request = agent().post(format!("http://127.0.0.1:{port}/v1/chat/completions"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut response = request.send_json(body).unwrap();
    let header = |name: &str| {
        let value = response.headers().get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    Said {
        status: response.status().as_u16(),
        cloud: header("x-pomona-cloud"),
        node: header("x-pomona-node"),
        body: response.body_mut().read_to_string().unwrap(),
    }
}

fn batch(port: u16) -> Said {
    post(port, &greedy("Hi", 6), &[("x-pomona-class", "batch")])
}

#[track_caller]
fn refused(said: &Said, why: &str) {
    assert!(
        said.status == 503 && said.body.contains(why),
        "{why}: {} {}",
        said.status,
        said.body
    );
    assert_eq!(said.cloud, None);
}

#[track_caller]
fn ok(cluster: &Cluster, arguments: &[&str]) {
    let (ok, _, errors) = cluster.pomona(arguments);
    assert!(ok, "{arguments:?}: {errors}");
}

/// A server that sends whoever asks elsewhere: with their key, if anybody followed.
fn redirecting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            whole_request(&mut socket);
            let _ = socket.write_all(
                b"HTTP/1.1 307 Elsewhere\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            );
        }
    });
    port
}

/// A server that begins every answer, and ends none: it breaks off, or goes on until whoever asked leaves. Says how
/// many left.
fn beginning(breaks_off: bool) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let left = Arc::new(AtomicUsize::new(0));
    let count = left.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let left = count.clone();
            std::thread::spawn(move || {
                whole_request(&mut socket);
                let _ = socket.write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n\
                      data: {\"choices\":[{\"delta\":{\"content\":\"Apples\"}}]}\n\n",
                );
                if !breaks_off {
                    while socket.read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
                    left.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    (port, left)
}

/// Whoever closes before sends a reset instead of an answer.
fn whole_request(socket: &mut TcpStream) {
    let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
    while !read.ends_with(b"}") {
        match socket.read(&mut buffer) {
            Ok(count) if count > 0 => read.extend_from_slice(&buffer[..count]),
            _ => return,
        }
    }
}

/// Configuration of a cloud at this port.
fn cloud(name: &str, port: u16) -> String {
    format!(
        "[cloud.{name}]\nurl = \"http://127.0.0.1:{port}/v1\"\n\
         models.{MODEL} = {{ name = \"{MODEL}\", input = 1000, output = 1000 }}\n"
    )
}

/// Two clusters: one at home, whose batch work goes to machines in a rack that it does not have, and the cloud.
pub(crate) fn home_and_away() -> (Cluster, Cluster) {
    let away = Cluster::start("echo:1");
    let keyless = format!(
        "{}key_env = \"POMONA_TEST_NO_SUCH_KEY\"\n",
        cloud("keyless", 1).replace("models", "parallel = 1\nmodels")
    );
    let clouds = [
        cloud("away", away.coordinator),
        cloud("lost", redirecting()),
        keyless,
    ];
    let home = Cluster::configured("echo:1", &clouds.concat());
    ok(
        &home,
        &[
            "fallback",
            "set",
            "batch=rack,cloud:keyless,cloud:lost,cloud:away",
        ],
    );
    (home, away)
}

#[test]
fn what_no_machine_answers_goes_to_an_approved_cloud_and_nothing_else_does() {
    let _one = crate::engine_lock();
    let (home, away) = home_and_away();
    for port in [home.coordinator, home.node] {
        eventually("the list is known", SOON, || batch(port).status == 503);
        refused(
            &batch(port),
            "cloud:away: it is not approved: `pomona cloud approve away`",
        );
    }
    assert_eq!(
        post(home.node, &greedy("Hi", 6), &[]).status,
        200,
        "interactive stays"
    );
    for name in ["away", "lost", "keyless"] {
        ok(
            &home,
            &[
                "cloud", "approve", name, "--days", "1", "--money", "5", "--tokens", "3k",
            ],
        );
    }

    // The very answer of the cloud, at both kinds of endpoint, in one piece and as it is made.
    let there = post(away.coordinator, &greedy("Hi", 6), &[]).text();
    for port in [home.coordinator, home.node] {
        let said = batch(port);
        assert_eq!(
            (said.status, said.cloud.as_deref(), said.node.as_deref()),
            (200, Some("away"), None),
            "{}",
            said.body
        );
        assert_eq!(said.text(), there);
        let mut streamed = greedy("Hi", 6);
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({ "include_usage": true });
        let said = post(port, &streamed, &[("x-pomona-class", "batch")]);
        let events = said.body.lines().filter_map(|line| line.strip_prefix("data: {"));
        let events: Vec<Value> = events
            .map(|event| serde_json::from_str(&format!("{{{event}")).unwrap())
            .collect();
        let parts = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        assert_eq!(parts.collect::<String>(), there, "{}", said.body);
        let usage = &events.last().unwrap()["usage"];
        assert_eq!(usage["completion_tokens"], 6, "{}", said.body);
        assert!(said.body.ends_with("data: [DONE]\n\n"));
    }

    // What it took, and no more than that, when it is over.
    let of = |name: &str| {
        let list = home.json(&["cloud", "list"]);
        let clouds = list["clouds"].as_array().unwrap();
        clouds.iter().find(|cloud| cloud["name"] == name).unwrap().clone()
    };
    let prompt = post(away.coordinator, &greedy("Hi", 6), &[]);
    let prompt: Value = serde_json::from_str(&prompt.body).unwrap();
    let tokens = 4 * prompt["usage"]["total_tokens"].as_u64().unwrap();
    eventually("the answers are settled", SOON, || {
        of("away")["month"]["tokens"] == tokens
    });
    // A thousandth of the currency each.
    let money: f64 = of("away")["month"]["money"].as_str().unwrap().parse().unwrap();
    assert!((money - tokens as f64 / 1e3).abs() < 1e-9, "{money}");
    // That one was asked three times, until it was left alone; nothing was followed, and nothing taken.
    let lost = of("lost");
    assert!(lost["left_alone_s"].is_u64(), "{lost}");
    eventually("nothing is counted", SOON, || {
        of("lost")["month"]["money"] == "0.00"
    });
    let keyless = of("keyless");
    assert!(
        keyless["problem"]
            .as_str()
            .unwrap()
            .contains("POMONA_TEST_NO_SUCH_KEY is not set")
    );
    assert_eq!(keyless["month"]["requests"], 0);

    log_of_what_went_out(&home);
    kept_at_home(&home);
    ceilings(&home);

    ok(&home, &["cloud", "revoke", "away"]);
    refused(&batch(home.coordinator), "cloud:away: it is not approved");
    let (_, changes, _) = home.pomona(&["audit"]);
    for action in ["cloud.approve", "cloud.revoke", "model.private", "key.budget"] {
        assert!(changes.contains(action), "{changes}");
    }
}

fn log_of_what_went_out(home: &Cluster) {
    let log = home.json(&["cloud", "spills", "--last", "99"]);
    let entries = log.as_array().unwrap();
    let to = |cloud: &str| {
        let is_there = |entry: &&Value| entry["deed"]["subject"].as_str().unwrap().starts_with(cloud);
        entries.iter().filter(is_there).count()
    };
    assert_eq!(to("away http://127.0.0.1:"), 4, "{log}");
    assert!(to("lost http://127.0.0.1:") >= 3 && to("keyless ") == 0, "{log}");
    let last = &entries.last().unwrap()["deed"];
    assert!(
        last["detail"].as_str().unwrap().contains("\"class\":\"batch\""),
        "{last}"
    );
    assert!(!log.to_string().contains("Hi"), "no prompts");
}

/// Private keys and models, and what would mean something else elsewhere.
fn kept_at_home(home: &Cluster) {
    let at = home.coordinator;
    let key = |arguments: &[&str]| {
        let made = home.json(&[&["key", "create"], arguments].concat());
        format!("Bearer {}", made["key"].as_str().unwrap())
    };
    let asked = |key: &str| {
        post(
            at,
            &greedy("Hi", 6),
            &[("x-pomona-class", "batch"), ("authorization", key)],
        )
    };
    let open = key(&["open"]);
    let works = |key: &str| eventually("the key is known", SOON, || asked(key).status != 401);
    works(&open);
    assert_eq!(asked(&open).cloud.as_deref(), Some("away"));
    for (name, more) in [("secret", "--private"), ("racks", "--pool=rack")] {
        let key = key(&[name, more]);
        works(&key);
        refused(&asked(&key), "the API key is for machines of its own only");
    }
    // A key's own ceiling.
    ok(home, &["cloud", "budget", "open", "0.01"]);
    refused(&asked(&open), "the API key's money of this month");
    ok(home, &["cloud", "budget", "open", "none"]);

    ok(home, &["cloud", "private", MODEL]);
    refused(&batch(at), &format!("`{MODEL}` is private"));
    ok(home, &["cloud", "private", MODEL, "--no"]);
    let mut special = greedy("Hi", 6);
    special["top_k"] = 5.into();
    refused(
        &post(at, &special, &[("x-pomona-class", "batch")]),
        "`top_k` is not known everywhere",
    );
    let spilled = [("x-pomona-class", "batch"), ("x-pomona-spilled", "1")];
    refused(
        &post(at, &greedy("Hi", 6), &spilled),
        "another cluster has sent this here",
    );
    assert_eq!(batch(at).cloud.as_deref(), Some("away"));
}

fn ceilings(home: &Cluster) {
    let at = home.coordinator;
    for (money, tokens, why) in [
        ("5", "1", "this month's tokens"),
        ("0.001", "5M", "this month's money"),
    ] {
        ok(
            home,
            &[
                "cloud", "approve", "away", "--days", "1", "--money", money, "--tokens", tokens,
            ],
        );
        refused(&batch(at), why);
    }
    let days = ["--days", "1"];
    for (arguments, why) in [
        (
            ["nobody", "--money", "5", "--tokens", "5"],
            "not configured on this coordinator",
        ),
        (
            ["away", "--money", "-5", "--tokens", "5"],
            "not an amount of money",
        ),
        (
            ["away", "--money", "5", "--tokens", "lots"],
            "no number of tokens",
        ),
    ] {
        let arguments = [&arguments[..], &days[..]].concat();
        let (done, _, errors) = home.pomona(&[&["cloud", "approve"], &arguments[..]].concat());
        assert!(!done && errors.contains(why), "{arguments:?}: {errors}");
    }
}

/// At both kinds of endpoint: what is cut off is said so and booked in full, and a client that leaves ends the answer.
#[test]
fn an_answer_that_is_not_whole_is_booked_in_full() {
    let _one = crate::engine_lock();
    let (breaking, _) = beginning(true);
    let (endless, left) = beginning(false);
    let clouds = [cloud("breaking", breaking), cloud("endless", endless)];
    let home = Cluster::configured("echo:1", &clouds.concat());
    for name in ["breaking", "endless"] {
        ok(
            &home,
            &[
                "cloud", "approve", name, "--days", "1", "--money", "100", "--tokens", "1M",
            ],
        );
    }
    let tokens = |name: &str| {
        let list = home.json(&["cloud", "list"]);
        let clouds = list["clouds"].as_array().unwrap();
        let cloud = clouds.iter().find(|cloud| cloud["name"] == name).unwrap();
        cloud["month"]["tokens"].as_u64().unwrap()
    };
    let mut streamed = greedy("Hi", 600);
    streamed["stream"] = true.into();
    for (nth, port) in [(1, home.coordinator), (2, home.node)] {
        ok(&home, &["fallback", "set", "batch=rack,cloud:breaking"]);
        eventually("it is asked", SOON, || {
            batch(port)
                .body
                .contains("cloud:breaking gave up while answering: it broke off")
        });
        ok(&home, &["fallback", "set", "batch=rack,cloud:endless"]);
        let body = streamed.to_string();
        eventually("a client has left in the middle", SOON, || {
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            write!(
                client,
                "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nx-pomona-class: batch\r\n\
                 content-length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
            let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(count) = client.read(&mut buffer) {
                read.extend_from_slice(&buffer[..count]);
                if count == 0 || String::from_utf8_lossy(&read).contains("Apples") {
                    break;
                }
            }
            String::from_utf8_lossy(&read).contains("Apples")
        });
        eventually("the cloud is left", SOON, || left.load(Ordering::SeqCst) >= nth);
    }
    // Nobody has told what it took.
    assert!(tokens("endless") >= 2 * 600 && tokens("breaking") >= 2 * 6);
}
