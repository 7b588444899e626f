//! LiteLLM's proxy, the real one: in front of a cluster, as the cloud of another, and its configuration as ours.

use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pomona_tests::{Cluster, MODEL, agent, eventually, greedy};
use serde_json::Value;

/// It imports a hundred packages before it listens.
const START: Duration = Duration::from_secs(120);
/// What the proxy wants to be asked with.
const MASTER: &str = "sk-litellm-test";

/// A proxy that ends with the test.
struct Proxy {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One whose model is at this endpoint; none where the package is not there.
fn proxy(behind: u16) -> Option<Proxy> {
    let packages = std::env::var_os("POMONA_TEST_LITELLM")?;
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mut config = String::new();
    write!(
        config,
        "model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n      \
         api_base: http://127.0.0.1:{behind}/v1\n      api_key: none\n      rpm: 600\n      max_parallel_requests: 4\n    \
         model_info: {{ input_cost_per_token: 0.000001, output_cost_per_token: 0.000002 }}\n\
         general_settings:\n  master_key: {MASTER}\nlitellm_settings:\n  num_retries: 0\n  drop_params: true\n"
    )
    .unwrap();
    std::fs::write(folder.path().join("config.yaml"), config).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let child = Command::new("python3")
        .arg(std::path::Path::new(&packages).join("bin/litellm"))
        .arg("--config")
        .arg(folder.path().join("config.yaml"))
        .args(["--host", "127.0.0.1", "--telemetry", "False", "--port"])
        .arg(port.to_string())
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // Nothing is fetched.
        .env("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        .env("NO_PROXY", "*")
        .current_dir(folder.path())
        .stdout(log.try_clone().unwrap())
        .stderr(Stdio::from(log))
        .spawn()
        .expect("python3");
    let proxy = Proxy { child, port, folder };
    eventually("LiteLLM answers", START, || {
        let ready = agent()
            .get(format!("http://127.0.0.1:{port}/health/liveliness"))
            .call();
        ready.is_ok_and(|ready| ready.status() == 200)
    });
    Some(proxy)
}

fn chat(port: u16, body: &Value, class: &str) -> (u16, Option<String>, Value) {
    let mut response = agent()
        .post(format!("http://127.0.0.1:{port}/v1/chat/completions"))
        .header("authorization", &format!("Bearer {MASTER}"))
        .header("x-pomona-class", class)
        .send_json(body)
        .unwrap();
    let cloud = response.headers().get("x-pomona-cloud");
    let cloud = cloud.map(|name| name.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    let text = response.body_mut().read_to_string().unwrap();
    (
        status,
        cloud,
        serde_json::from_str(&text).unwrap_or(Value::String(text)),
    )
}

fn content(answer: &Value) -> &str {
    let content = answer["choices"][0]["message"]["content"].as_str();
    content.unwrap_or_else(|| panic!("{answer}"))
}

#[test]
fn litellm_is_served_in_front_and_asked_behind() {
    let _one = crate::engine_lock();
    let away = Cluster::start("echo:1");
    let Some(proxy) = proxy(away.coordinator) else {
        println!("SKIPPED LiteLLM: POMONA_TEST_LITELLM is not set, `cargo xtask test servers` does it");
        return;
    };
    // In front: an answer, and one that is streamed, are what the cluster itself says.
    let (_, _, own) = chat(away.coordinator, &greedy("Hi", 6), "batch");
    let (status, _, through) = chat(proxy.port, &greedy("Hi", 6), "batch");
    assert_eq!((status, content(&through)), (200, content(&own)), "{through}");
    let mut streamed = greedy("Hi", 6);
    streamed["stream"] = true.into();
    let (status, _, events) = chat(proxy.port, &streamed, "batch");
    let events = events.as_str().unwrap_or_default();
    assert!(
        status == 200 && events.trim_end().ends_with("data: [DONE]"),
        "{events}"
    );

    // Behind: the cloud of another cluster, with its key in a file.
    let key = proxy.folder.path().join("key");
    std::fs::write(&key, MASTER).unwrap();
    let models = format!("models.{MODEL} = {{ name = \"{MODEL}\", input = 1, output = 2 }}\n");
    let port = proxy.port;
    let cloud =
        format!("[cloud.litellm]\nurl = \"http://127.0.0.1:{port}/v1\"\nkey_file = {key:?}\n{models}");
    // Its own configuration, as ours: there the cluster behind it is the cloud.
    let file = proxy.folder.path().join("config.yaml");
    let (ok, imported, errors) = away.pomona(&["import", "litellm", file.to_str().unwrap()]);
    assert!(ok, "{errors}");
    assert!(
        imported.contains("[cloud.127]") && imported.contains("general_settings.master_key"),
        "{imported}"
    );
    let home = Cluster::configured("echo:1", &format!("{cloud}{imported}"));
    for name in ["litellm", "127"] {
        let approve = [
            "cloud", "approve", name, "--days", "1", "--money", "1", "--tokens", "1M",
        ];
        assert!(home.pomona(&approve).0);
        let list = format!("batch=rack,cloud:{name}");
        assert!(home.pomona(&["fallback", "set", &list]).0);
        for body in [&greedy("Hi", 6), &greedy("Hello there", 9)] {
            let (status, cloud, answer) = chat(home.coordinator, body, "batch");
            assert_eq!((status, cloud.as_deref()), (200, Some(name)), "{answer}");
            assert_eq!(
                content(&answer),
                content(&chat(away.coordinator, body, "batch").2)
            );
            let tokens = &answer["usage"]["completion_tokens"];
            assert_eq!(*tokens, body["max_tokens"], "{answer}");
        }
    }
}
