//! API keys at the coordinator's endpoint: real processes, the admin socket, and `pomona key`.

use std::time::Duration;

use pomona_tests::lan::Lan;
use pomona_tests::{Cluster, MODEL, Machine, agent, eventually, get_from, greedy};
use serde_json::{Value, json};

/// What came back.
struct Answered {
    status: u16,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Answered {
    fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(own, _)| own == name);
        found.map_or("", |(_, value)| value)
    }

    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or_default()
    }
}

fn answered(mut response: ureq::http::Response<ureq::Body>) -> Answered {
    let headers = response.headers().iter();
    let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let headers = headers
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect();
    let body = response.body_mut().read_to_string().unwrap();
    Answered {
        status: response.status().as_u16(),
        headers,
        body: serde_json::from_str(&body).unwrap_or(Value::Null),
    }
}

fn ask(port: u16, key: &str, body: &Value) -> Answered {
    let url = format!("http://127.0.0.1:{port}/v1/chat/completions");
    let request = agent()
        .post(url)
        .header("authorization", &format!("Bearer {key}"));
    answered(request.send_json(body).unwrap())
}

fn get(port: u16, key: &str, path: &str) -> Answered {
    let url = format!("http://127.0.0.1:{port}{path}");
    answered(agent().get(url).header("x-api-key", key).call().unwrap())
}

fn make(cluster: &Cluster, name: &str, terms: &[&str]) -> String {
    let made = cluster.json(&[&["key", "create", name], terms].concat());
    made["key"].as_str().unwrap().to_owned()
}

fn say(max_tokens: u32) -> Value {
    greedy("Hello", max_tokens)
}

/// What a key took today, as the cluster has counted it.
fn today(cluster: &Cluster, name: &str) -> Value {
    let keys = cluster.json(&["key", "list"]);
    let keys = keys.as_array().unwrap();
    let key = keys.iter().find(|key| key["name"] == name).unwrap();
    key["spent"]["day"].clone()
}

/// Asks until the key is known: an endpoint hears of it with the next change of the state.
fn known(cluster: &Cluster, key: &str, opens: bool) {
    eventually("the endpoint knows the key", Duration::from_secs(5), || {
        (get(cluster.coordinator, key, "/v1/models").status == 200) == opens
    });
}

#[test]
fn keys_give_classes_scopes_and_limits_and_end_at_once() {
    let mut cluster = Cluster::start("echo");
    let port = cluster.coordinator;
    assert_eq!(
        ask(port, "none", &say(4)).status,
        200,
        "no key is needed on loopback"
    );
    let plain = make(&cluster, "plain", &[]);
    known(&cluster, &plain, true);
    let wrong = format!("{}AAAA", &plain[..plain.len() - 4]);
    let refused = ask(port, &wrong, &say(4));
    assert_eq!((refused.status, refused.code()), (401, "invalid_api_key"));
    assert_eq!(refused.header("www-authenticate"), "Bearer");

    let listed = cluster.pomona(&["--json", "key", "list"]).1;
    assert!(!listed.contains(&plain) && !listed.contains("secret"), "{listed}");
    let table = cluster.pomona(&["key", "list"]).1;
    assert!(
        table.contains("plain") && table.lines().all(|line| line.chars().count() <= 140),
        "{table}"
    );

    is_nowhere_at_rest(&cluster, &plain);
    classes_and_scopes(&cluster);
    limits(&mut cluster);
    what_was_changed_is_written_down(&mut cluster);

    let rotated = cluster.json(&["key", "rotate", "plain", "--grace-hours", "1"]);
    let rotated = rotated["key"].as_str().unwrap();
    for key in [rotated, &plain] {
        known(&cluster, key, true);
    }
    let again = cluster.json(&["key", "rotate", "plain", "--grace-hours", "0"]);
    for (key, opens) in [
        (again["key"].as_str().unwrap(), true),
        (rotated, false),
        (&plain, false),
    ] {
        known(&cluster, key, opens);
    }
    assert!(cluster.pomona(&["key", "revoke", "plain"]).0);
    known(&cluster, again["key"].as_str().unwrap(), false);
    let (ok, _, errors) = cluster.pomona(&["key", "revoke", "plain"]);
    assert!(!ok && errors.contains("pomona key list"), "{errors}");
}

/// No file of the cluster has the secret, whole or without its prefix, and nobody else may use the admin socket.
fn is_nowhere_at_rest(cluster: &Cluster, key: &str) {
    use std::os::unix::fs::PermissionsExt;
    let (mut folders, mut files) = (vec![cluster.state.path().to_owned()], 0);
    let secret = key.trim_start_matches("sk-pomona-").as_bytes();
    let mut sockets = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let bytes = std::fs::read(&path).unwrap_or_default();
                files += 1;
                let mut windows = bytes.windows(secret.len());
                assert!(!windows.any(|window| window == secret), "{}", path.display());
            } else if !kind.is_symlink() {
                sockets += 1;
                let mode = entry.metadata().unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o600, "{}", path.display());
            }
        }
    }
    assert!(files > 5 && sockets > 0, "{files} files, {sockets} sockets");
}

fn what_was_changed_is_written_down(cluster: &mut Cluster) {
    let log = cluster.json(&["audit", "--last", "1000"]);
    let entries = log.as_array().unwrap();
    let of = |action: &str| entries.iter().find(|entry| entry["deed"]["action"] == action);
    let made = &of("key.create").unwrap()["deed"];
    assert!(made["subject"].as_str().unwrap().starts_with("plain "), "{made}");
    assert!(!made["by"].as_str().unwrap().is_empty(), "{made}");
    let changed = &of("key.change").unwrap()["deed"];
    assert!(
        changed["subject"].as_str().unwrap().starts_with("narrow "),
        "{changed}"
    );
    let last = &entries[entries.len() - 1];
    let noted = format!("{}:{}", last["number"], last["hash"].as_str().unwrap());
    // A folder a cluster.
    let folder = cluster.state.path().join("coordinator/audit");
    let mut folders = std::fs::read_dir(&folder).unwrap();
    let folder = folders.next().unwrap().unwrap().path();
    let on_disk = || pomona_journal::lines(&folder).unwrap();
    eventually("it is on disk", Duration::from_secs(5), || {
        on_disk().len() == entries.len()
    });
    cluster.kill_and_restart();
    let (ok, table, errors) = cluster.pomona(&["audit", "--noted", &noted]);
    assert!(
        ok && table.contains("key.create") && table.contains(&noted),
        "{table}{errors}"
    );
    let wrong = format!("{}:{}", last["number"], "0".repeat(64));
    let (ok, _, errors) = cluster.pomona(&["audit", "--noted", &wrong]);
    assert!(!ok && errors.contains("altered"), "{errors}");

    // Whoever alters what is on the disk is found out.
    let file = std::fs::read_dir(&folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("narrow", "wide", 1)).unwrap();
    let (ok, _, errors) = cluster.pomona(&["audit"]);
    assert!(!ok && errors.contains("broken at entry"), "{errors}");
    std::fs::write(&file, text).unwrap();
    assert!(cluster.pomona(&["audit"]).0);
}

fn classes_and_scopes(cluster: &Cluster) {
    let port = cluster.coordinator;
    let batch = make(cluster, "nightly", &["--class", "batch", "--pool", "laptop"]);
    known(cluster, &batch, true);
    let answer = ask(port, &batch, &say(4));
    assert_eq!(answer.status, 200);
    let class = (
        answer.header("x-pomona-class"),
        answer.header("x-pomona-class-reason"),
    );
    assert_eq!(class, ("batch", "key"));
    what_it_took_is_written_down(cluster, &answer);

    let narrow = make(
        cluster,
        "narrow",
        &["--allow-class", "interactive", "--model", "org/other"],
    );
    known(cluster, &narrow, true);
    let refused = ask(port, &narrow, &say(4));
    assert_eq!((refused.status, refused.code()), (403, "model_not_allowed"));
    assert_eq!(get(port, &narrow, "/v1/models").body["data"], json!([]));
    assert_eq!(get(port, &narrow, &format!("/v1/models/{MODEL}")).status, 403);
    assert!(cluster.pomona(&["key", "change", "narrow", "--model", "any"]).0);
    eventually("the change is known", Duration::from_secs(5), || {
        ask(port, &narrow, &say(4)).status == 200
    });
    let mut flex = say(4);
    flex["service_tier"] = "flex".into();
    let refused = ask(port, &narrow, &flex);
    assert_eq!((refused.status, refused.code()), (403, "class_not_allowed"));
    let class = ["x-pomona-class", "x-pomona-class-reason"].map(|name| refused.header(name));
    assert_eq!(
        class,
        ["batch", "service_tier"],
        "it says why it was taken for one"
    );
    let (made, _, errors) = cluster.pomona(&["key", "create", "nowhere", "--pool", "rak"]);
    assert!(!made && errors.contains("rak"), "{errors}");

    let elsewhere = make(cluster, "elsewhere", &["--pool", "rack"]);
    known(cluster, &elsewhere, true);
    let refused = ask(port, &elsewhere, &say(4));
    assert_eq!((refused.status, refused.code()), (503, "model_not_loaded"));
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("this API key reaches") && message.contains("rack"),
        "{message}"
    );

    let (ok, _, errors) = cluster.pomona(&[
        "key",
        "create",
        "odd",
        "--class",
        "batch",
        "--allow-class",
        "interactive",
    ]);
    assert!(!ok && errors.contains("batch is not among"), "{errors}");
}

fn what_it_took_is_written_down(cluster: &Cluster, answer: &Answered) {
    let folder = cluster.state.path().join("coordinator/usage");
    let request = answer.header("x-pomona-request-id");
    let record = || {
        let lines = pomona_journal::lines(&folder).unwrap();
        let line = lines.iter().find(|line| line.contains(request));
        line.map(|line| serde_json::from_str::<Value>(line).unwrap())
    };
    eventually("a record is written", Duration::from_secs(5), || {
        record().is_some()
    });
    let record = record().unwrap();
    let of_class = (&record["outcome"], &record["class"], &record["class_reason"]);
    assert_eq!(of_class, (&json!("finished"), &json!("batch"), &json!("key")));
    assert!(
        record["key"].is_string() && record["took_ms"].as_f64() > Some(0.0),
        "{record}"
    );
    let (took, told) = (&record["answers"][0], &answer.body["pomona"][0]);
    for field in [
        "prompt_tokens",
        "completion_tokens",
        "node",
        "knob_version",
        "decode_ms",
    ] {
        assert!(
            took[field] == told[field] && !took[field].is_null(),
            "{field}: {record}"
        );
    }
    assert!(!record.to_string().contains("Hello"), "no prompt is written down");
}

fn limits(cluster: &mut Cluster) {
    let port = cluster.coordinator;
    let daily = make(cluster, "daily", &["--limit", "tokens_per_day=100"]);
    let hasty = make(cluster, "hasty", &["--limit", "rpm=2"]);
    known(cluster, &hasty, true);
    let refused = ask(port, &daily, &say(200));
    assert_eq!((refused.status, refused.code()), (400, "key_limit_exceeded"));
    let answer = ask(port, &daily, &say(4));
    assert_eq!(answer.status, 200);
    let used = answer.body["usage"]["total_tokens"].as_u64().unwrap();
    eventually("the cluster has counted it", Duration::from_secs(10), || {
        today(cluster, "daily") == json!({ "requests": 2, "tokens": used })
    });
    // Whoever is asked next has to know, also after the process that let them in is gone.
    cluster.kill_and_restart();
    known(cluster, &daily, true);
    let mut streamed = say(4);
    streamed["stream"] = true.into();
    assert_eq!(ask(port, &daily, &streamed).status, 200);
    eventually(
        "a streamed answer counts the same",
        Duration::from_secs(10),
        || today(cluster, "daily")["tokens"] == 2 * used,
    );
    let rest = u32::try_from(100 - 2 * used).unwrap();
    let refused = ask(port, &daily, &say(rest));
    assert_eq!((refused.status, refused.code()), (429, "rate_limit_exceeded"));
    assert!(waits(&refused, 86_400));

    // The minute slides, so that some more may come in.
    let asked: Vec<Answered> = (0..8).map(|_| ask(port, &hasty, &say(4))).collect();
    let refused: Vec<&Answered> = asked.iter().filter(|one| one.status == 429).collect();
    assert!((4..=6).contains(&refused.len()), "{}", refused.len());
    assert!(refused.iter().all(|one| waits(one, 120)));
    eventually(
        "what is over the limit counts nothing",
        Duration::from_secs(10),
        || today(cluster, "hasty")["requests"] == 8 - refused.len(),
    );
}

/// Whether a refusal says when to come back, and that is within so many seconds.
fn waits(refused: &Answered, at_most_s: u64) -> bool {
    let wait_s = refused.header("retry-after").parse::<u64>();
    wait_s.is_ok_and(|wait_s| (1..=at_most_s).contains(&wait_s))
}

/// A model that only the rented machine has.
const OTHER: &str = "other-model";

/// A machine that has joined and runs its node.
fn joined(cluster: &Cluster, role: &str, model: &str) -> Machine {
    let mut machine = Machine::empty();
    machine.pull_model_as(model);
    let token = super::join::token(cluster, &["--role", role]);
    let (ok, _, errors) = machine.pomona(&["join", &token, "--coordinator", &cluster.quic()]);
    assert!(ok, "{errors}");
    machine.start_node("echo");
    machine
}

fn is_known_at(port: u16, key: &str) -> bool {
    get(port, key, "/v1/models").status == 200
}

#[test]
fn nodes_let_in_by_keys_count_for_all_and_rented_machines_hold_none() {
    let _lock = super::engine_lock();
    let cluster = Cluster::start("echo");
    let key = make(&cluster, "shared", &["--limit", "rpm=4", "--class", "batch"]);
    let private = make(&cluster, "private", &["--private"]);
    let open = make(&cluster, "open", &[]);
    let mut laptop = joined(&cluster, "laptop", MODEL);
    let rented = joined(&cluster, "rented", OTHER);
    eventually("the laptop knows the keys", Duration::from_secs(20), || {
        [&key, &private].iter().all(|key| is_known_at(laptop.node, key))
    });
    for port in [laptop.node, cluster.node, cluster.coordinator] {
        let answer = ask(port, &key, &say(4));
        assert_eq!(
            (answer.status, answer.header("x-pomona-class-reason")),
            (200, "key")
        );
    }
    eventually("all are counted once", Duration::from_secs(10), || {
        today(&cluster, "shared")["requests"] == 3
    });
    assert_eq!(ask(laptop.node, &key, &say(4)).status, 200);
    for port in [laptop.node, cluster.node, cluster.coordinator] {
        eventually("no entry lets more in", Duration::from_secs(10), || {
            ask(port, &key, &say(4)).code() == "rate_limit_exceeded"
        });
    }
    private_work_stays(&cluster, &private, &open);
    assert_eq!(ask(rented.node, &key, &say(4)).code(), "invalid_api_key");
    let kept = || std::fs::read_to_string(rented.state.path().join("node/keys")).unwrap_or_default();
    eventually("it knows only that it is rented", Duration::from_secs(5), || {
        let kept: Value = serde_json::from_str(&kept()).unwrap_or_default();
        let learned = &kept["learned"];
        learned["keys"] == json!({}) && learned["role"] == "rented"
    });

    // Without any coordinator, and after a start, the laptop's own endpoint opens as before.
    let file = laptop.state.path().join("node/keys");
    eventually("they are on disk", Duration::from_secs(5), || file.exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&key));
    drop(cluster);
    assert_eq!(ask(laptop.node, &private, &say(4)).status, 200);
    laptop.stop();
    laptop.start_node("echo");
    eventually("the laptop is up again", Duration::from_secs(20), || {
        get_from(laptop.node, "/healthz").0 == 200
    });
    assert!(is_known_at(laptop.node, &private));
    let wrong = format!("{}AAAA", &private[..private.len() - 4]);
    assert_eq!(ask(laptop.node, &wrong, &say(4)).code(), "invalid_api_key");
}

/// Whichever entry is asked, a private key's request is not answered by a rented machine.
fn private_work_stays(cluster: &Cluster, private: &str, open: &str) {
    let mut body = say(4);
    body["model"] = OTHER.into();
    for port in [cluster.coordinator, cluster.node] {
        eventually("the rented machine answers", Duration::from_secs(20), || {
            ask(port, open, &body).status == 200
        });
        let refused = ask(port, private, &body);
        assert_eq!((refused.status, refused.code()), (503, "model_not_loaded"));
        let message = refused.body["error"]["message"].as_str().unwrap();
        assert!(message.contains("API key reaches"), "{message}");
    }
}

#[test]
fn an_endpoint_that_other_machines_reach_lets_nobody_in_without_a_key() {
    let Some(mut lan) = Lan::new() else {
        println!("SKIPPED keys on a LAN: network namespaces need root");
        return;
    };
    let names = ["10.77.0.10", "10.77.0.11"].map(|address| lan.host(address));
    let [mut server, mut client] = names.map(|name| Machine::on_lan(&name));
    server.set("POMONA_COORDINATOR_HTTP", "0.0.0.0:7711");
    let (ok, _, errors) = server.pomona(&["coordinator"]);
    assert!(!ok && errors.contains("pomona key create"), "{errors}");

    server.set("POMONA_COORDINATOR_HTTP", "127.0.0.1:7711");
    server.start_coordinator();
    let made = || server.pomona(&["--json", "key", "create", "team"]);
    let mut key = None;
    eventually("a key is made", Duration::from_secs(10), || {
        let (ok, out, _) = made();
        key = ok.then(|| serde_json::from_str::<Value>(&out).unwrap()["key"].clone());
        ok
    });
    let key = key.unwrap().as_str().unwrap().to_owned();
    server.stop();
    server.set("POMONA_COORDINATOR_HTTP", "0.0.0.0:7711");
    server.start_coordinator();
    client.set("POMONA_COORDINATOR_HTTP", "10.77.0.10:7711");
    let models = |client: &Machine| client.pomona(&["chat", "Hello"]).2;
    eventually("the endpoint asks for a key", Duration::from_secs(10), || {
        models(&client).contains("needs an API key")
    });
    client.set("POMONA_API_KEY", key);
    let said = models(&client);
    assert!(said.contains("no model is stored"), "the key opens it: {said}");
}
