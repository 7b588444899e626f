//! Servers of other programs as a node's engine: another cluster stands for one in every run, and mlx_lm.server, the
//! real one, in full ones.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pomona_tests::{Cluster, MODEL, agent, eventually, get_from, greedy, post_to};
use serde_json::{Value, json};

/// A machine is stressed for a minute first.
const RELIEVED: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(30);
/// What the cluster calls the server's model.
const SERVED: &str = "served";

/// A home whose engine is to be a server, with readings from a script.
fn home(script: &Path) -> Cluster {
    Cluster::configured("echo:1", &format!("[probe]\nscript = {script:?}\n"))
}

fn watts(script: &Path, watts: f64) {
    std::fs::write(script, format!("{{\"power_watts\": {watts}}}")).unwrap();
}

fn asking(model: &str, prompt: &str, max_tokens: u32) -> Value {
    let mut body = greedy(prompt, max_tokens);
    body["model"] = model.into();
    body
}

fn content(answer: &Value) -> &str {
    let content = answer["choices"][0]["message"]["content"].as_str();
    content.unwrap_or_else(|| panic!("{answer}"))
}

/// Its answer is there at both endpoints, in one piece and as it comes, and it is the node's.
fn is_served(home: &Cluster, expected: &str, body: &Value) {
    eventually("the server's model answers", SOON, || {
        post_to(home.coordinator, "/v1/chat/completions", body).0 == 200
    });
    for port in [home.coordinator, home.node] {
        let (status, answer) = post_to(port, "/v1/chat/completions", body);
        assert_eq!((status, content(&answer)), (200, expected), "{answer}");
        assert!(
            answer["usage"]["completion_tokens"].as_u64() > Some(0),
            "{answer}"
        );
        assert!(answer["pomona"][0]["node"].is_string(), "{answer}");
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        let mut response = agent()
            .post(format!("http://127.0.0.1:{port}/v1/chat/completions"))
            .send_json(&streamed)
            .unwrap();
        assert!(response.headers().get("x-pomona-node").is_some());
        let events = response.body_mut().read_to_string().unwrap();
        let events = events.lines().filter_map(|line| line.strip_prefix("data: {"));
        let parts = events.map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).unwrap());
        let parts: String = parts
            .filter_map(|event| {
                event["choices"][0]["delta"]["content"]
                    .as_str()
                    .map(str::to_owned)
            })
            .collect();
        assert_eq!(parts, expected);
    }
}

fn node(home: &Cluster) -> Value {
    home.json(&["nodes"])[0].clone()
}

/// Whether it knows that it takes no new batch work. What came before that waits.
fn is_relieved(home: &Cluster) -> bool {
    let (_, metrics) = get_from(home.node, "/metrics");
    let mut lines = metrics.lines();
    let rung = lines.find(|line| line.starts_with("pomona_node_relief_rung{"));
    rung.is_some_and(|line| !line.ends_with(" 0"))
}

#[test]
fn a_server_of_another_program_answers_for_its_node_and_is_relieved_like_its_engine() {
    let _one = crate::engine_lock();
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("readings.json");
    watts(&script, 12.0);
    let mut server = Cluster::start("echo:1");
    let home = home(&script);
    let url = format!("http://127.0.0.1:{}/v1", server.coordinator);
    for (arguments, why) in [
        (vec!["http://127.0.0.1:1/v1"], "does not answer as a server"),
        (vec!["http://10.0.0.1:8080/v1"], "everybody on the way reads"),
        (vec![&url, "--model", "nobody"], "has no `nobody`"),
        (vec![&url, "--slots", "0"], "1 to 256 answers"),
        (vec![&url, "--name", "a b"], "cannot call a model `a b`"),
        // That one is in the node's own store.
        (vec![&url], "a model of this machine's own store"),
    ] {
        let (ok, _, errors) = home.pomona(&[&["engine", "adopt"], &arguments[..]].concat());
        assert!(!ok && errors.contains(why), "{arguments:?}: {errors}");
    }
    let adopted = home.json(&["engine", "adopt", &url, "--name", SERVED, "--slots", "2"]);
    assert!(
        adopted["adopted"]["memory_bytes"].as_u64() > Some(1 << 20),
        "{adopted}"
    );

    let body = asking(SERVED, "Hi", 6);
    let own = server.post("/v1/chat/completions", &greedy("Hi", 6)).1;
    is_served(&home, content(&own), &body);
    // It is the node's engine, and watched as that: its own is gone.
    eventually("the report says so", SOON, || {
        let report = &node(&home)["report"];
        let (engine, memory) = (&report["engine"], &report["machine"]["engine"]["rss"]);
        engine["build"]["backend"] == "adopted"
            && memory.to_string().contains("Measured")
            && engine["models"][SERVED].is_object()
            && engine["models"][MODEL].is_null()
    });
    let mut special = body.clone();
    special["top_k"] = 5.into();
    let (status, answer) = post_to(home.coordinator, "/v1/chat/completions", &special);
    assert!(
        status == 400 && answer.to_string().contains("`top_k` is not known everywhere"),
        "{answer}"
    );
    let (status, metrics) = get_from(home.node, "/metrics");
    assert!(status == 200 && metrics.contains(SERVED), "{metrics}");

    // A hot machine: nothing of batch begins there any more, and a person is still answered.
    let batch = asking(&format!("{SERVED}:batch"), "Hi", 6);
    assert_eq!(post_to(home.node, "/v1/chat/completions", &batch).0, 200);
    watts(&script, 70.0);
    eventually("it is relieved", RELIEVED, || is_relieved(&home));
    let (status, answer) = post_to(home.coordinator, "/v1/chat/completions", &batch);
    assert!(
        status == 429 && answer.to_string().contains("spared batch work"),
        "{status}: {answer}"
    );
    assert_eq!(post_to(home.node, "/v1/chat/completions", &body).0, 200);
    watts(&script, 12.0);

    // It ends, and comes back: the model with it.
    server.kill_and_restart();
    is_served(&home, content(&own), &body);
    assert!(home.pomona(&["engine", "release"]).0);
    eventually("the node's own engine is back", SOON, || {
        post_to(home.node, "/v1/chat/completions", &asking(MODEL, "Hi", 3)).0 == 200
    });
    assert_eq!(
        home.json(&["engine", "show"]),
        json!({ "lent_to": null, "models": [] })
    );
}

/// A server of another program on a model of this store.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Python module, with the packages of a folder; its files go to another.
fn python(packages: &Path, arguments: &[&str], folder: &Path) -> Command {
    // It looks for the models of the hub here, and finds none.
    std::fs::create_dir_all(folder.join("hub")).unwrap();
    let mut command = Command::new("python3");
    command
        .arg("-m")
        .args(arguments)
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HF_HOME", folder)
        .env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs a server; its address comes last.
fn serve(mut command: Command, folder: &Path) -> Server {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let child = command
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .stdout(log.try_clone().unwrap())
        .stderr(Stdio::from(log))
        .spawn()
        .expect("a server");
    let server = Server { child, port };
    eventually("the server answers", Duration::from_secs(120), || {
        let listed = agent().get(format!("http://127.0.0.1:{port}/v1/models")).call();
        listed.is_ok_and(|listed| listed.status() == 200)
    });
    server
}

/// Adopted, it answers as it does by itself, and is relieved; `variable` names the folder of its packages, or the program.
/// The command is made of that, of a model's folder, and of one for the server's own files.
fn is_adopted(variable: &str, command: impl Fn(&Path, &str, &Path) -> Command) {
    let _one = crate::engine_lock();
    let Some(program) = std::env::var_os(variable) else {
        println!("SKIPPED a server to adopt: {variable} is not set, `cargo xtask test servers` does it");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("readings.json");
    watts(&script, 12.0);
    let home = home(&script);
    let model = home.state.path().join("node/models").join(MODEL);
    let there = model.canonicalize().unwrap().display().to_string();
    let command = command(Path::new(&program), &there, folder.path());
    let server = serve(command, folder.path());
    let url = format!("http://127.0.0.1:{}/v1", server.port);
    let (ok, _, errors) = home.pomona(&["engine", "adopt", &url, "--name", SERVED]);
    assert!(ok, "{errors}");
    let prompt = "What is the capital of France?";
    let (status, own) = post_to(server.port, "/v1/chat/completions", &asking(&there, prompt, 24));
    assert!(status == 200 && !content(&own).is_empty(), "{own}");
    is_served(&home, content(&own), &asking(SERVED, prompt, 24));
    let batch = asking(&format!("{SERVED}:batch"), prompt, 24);
    watts(&script, 70.0);
    eventually("it is relieved", RELIEVED, || is_relieved(&home));
    assert_eq!(post_to(home.coordinator, "/v1/chat/completions", &batch).0, 429);
    let person = asking(SERVED, prompt, 24);
    assert_eq!(post_to(home.node, "/v1/chat/completions", &person).0, 200);
}

#[test]
fn mlx_lm_server_is_adopted() {
    is_adopted("POMONA_TEST_ORACLE", |packages, model, folder| {
        python(packages, &["mlx_lm", "server", "--model", model], folder)
    });
}

#[test]
fn vllm_mlx_is_adopted() {
    is_adopted("POMONA_TEST_VLLM_MLX", |packages, model, folder| {
        python(packages, &["vllm_mlx.cli", "serve", model], folder)
    });
}

/// The one of llama.cpp, with the same weights.
#[test]
fn llama_server_is_adopted() {
    is_adopted("POMONA_TEST_LLAMA_SERVER", |program, model, _| {
        let mut command = Command::new(program);
        let threads = ["--threads", "2", "--ctx-size", "4096", "--alias", model];
        command.arg("-m").arg(pomona_tests::gguf()).args(threads);
        command
    });
}
