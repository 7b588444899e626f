//! What the OpenAI surface promises.

use std::io::Read;
use std::time::{Duration, Instant};

use pomona_tests::{Cluster, MODEL, agent, greedy, post_to};
use serde_json::{Value, json};

#[test]
fn one_cluster_answers_as_documented() {
    let _lock = super::engine_lock();
    let cluster = Cluster::start("mlx");
    answers_with_accounting(&cluster);
    streams_end_with_usage_and_done(&cluster);
    the_batch_does_not_change_an_answer(&cluster);
    seeds_repeat_and_differ(&cluster);
    choices_stops_and_logprobs(&cluster);
    shared_prefixes_are_prefilled_once(&cluster);
    a_conversation_goes_on_from_where_it_was(&cluster);
    what_was_given_up_is_not_computed_again(&cluster);
    a_client_that_leaves_frees_its_slot(&cluster);
    classes_follow_what_requests_say(&cluster);
    the_nodes_own_endpoint_answers_the_same(&cluster);
    statistics_have_the_known_keys(&cluster);
}

fn text(body: &Value) -> String {
    body["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn answers_with_accounting(cluster: &Cluster) {
    let (status, body) = cluster.post(
        "/v1/chat/completions",
        &greedy("What is the capital of France?", 20),
    );
    assert_eq!(status, 200, "{body}");
    assert_eq!(text(&body), "The capital of France is Paris.");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let usage = &body["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );
    let accounting = &body["pomona"][0];
    for field in ["queue_ms", "prefill_ms", "decode_ms", "step_share_ms"] {
        assert!(accounting[field].as_f64().is_some_and(|ms| ms >= 0.0), "{field}");
    }
    assert!(accounting["node"].as_str().is_some_and(|node| node.len() == 32));
}

fn streams_end_with_usage_and_done(cluster: &Cluster) {
    let mut body = greedy("What is the capital of France?", 20);
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    let streamed = cluster.stream(&body);
    assert_eq!(streamed.text, "The capital of France is Paris.");
    assert_eq!(streamed.finish.as_deref(), Some("stop"));
    assert!(streamed.usage["completion_tokens"].as_u64().is_some());
    assert!(streamed.done);
}

const PROMPTS: [&str; 6] = [
    "Count from one to ten.",
    "Write a sentence about pears.",
    "def add(a, b):",
    "What is an orchard?",
    "Say hello in five languages.",
    "Why do apples fall?",
];

fn the_batch_does_not_change_an_answer(cluster: &Cluster) {
    let bodies: Vec<Value> = PROMPTS
        .iter()
        .enumerate()
        .map(|(i, prompt)| {
            let mut body = greedy(prompt, 40);
            if i % 2 == 1 {
                body["temperature"] = 0.8.into();
                body["seed"] = (i as i64).into();
            }
            if i % 3 == 2 {
                body["service_tier"] = "flex".into();
            }
            body
        })
        .collect();
    let ask = |body: &Value| text(&cluster.post("/v1/chat/completions", body).1);
    let alone: Vec<String> = bodies.iter().map(ask).collect();
    let together: Vec<String> = std::thread::scope(|scope| {
        let clients: Vec<_> = bodies.iter().map(|body| scope.spawn(|| ask(body))).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

fn seeds_repeat_and_differ(cluster: &Cluster) {
    let ask = |seed: i64| {
        let mut body = greedy("Invent a name for a cat.", 24);
        body["temperature"] = 1.0.into();
        body["seed"] = seed.into();
        text(&cluster.post("/v1/chat/completions", &body).1)
    };
    assert_eq!(ask(1), ask(1));
    assert!((2..6).any(|seed| ask(seed) != ask(1)));
}

fn choices_stops_and_logprobs(cluster: &Cluster) {
    let mut body = greedy("What is the capital of France?", 20);
    body["n"] = 2.into();
    body["logprobs"] = true.into();
    body["top_logprobs"] = 3.into();
    let (_, answer) = cluster.post("/v1/chat/completions", &body);
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    let first = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!(first["top_logprobs"].as_array().unwrap().len(), 3);
    assert_eq!(
        first["token"], first["top_logprobs"][0]["token"],
        "greedy takes the likeliest"
    );
    assert!(first["logprob"].as_f64().is_some_and(|logprob| logprob <= 0.0));

    let mut body = greedy("What is the capital of France?", 20);
    // Crosses a token border: " France" and " is" are two tokens.
    body["stop"] = json!(["ance is"]);
    let (_, answer) = cluster.post("/v1/chat/completions", &body);
    assert_eq!(text(&answer), "The capital of Fr");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    was_accounted_for(&answer["pomona"][0], &answer["usage"]);
    body["stream"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    let streamed = cluster.stream(&body);
    assert_eq!(streamed.text, "The capital of Fr");
    assert_eq!(streamed.finish.as_deref(), Some("stop"));
    was_accounted_for(&streamed.accounting[0], &streamed.usage);

    let completion = json!({ "model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 5, "echo": true });
    let (status, answer) = cluster.post("/v1/completions", &completion);
    assert_eq!(status, 200);
    let text = answer["choices"][0]["text"].as_str().unwrap();
    assert!(
        text.starts_with("The capital of France is") && text.contains("Paris"),
        "{text}"
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

/// A stop string ends an answer outside the engine, which says all the same what it took.
fn was_accounted_for(accounting: &Value, usage: &Value) {
    assert!(accounting["prefill_ms"].as_f64() > Some(0.0), "{accounting}");
    assert!(accounting["step_share_ms"].as_f64() > Some(0.0), "{accounting}");
    assert!(
        accounting["build"]
            .as_str()
            .is_some_and(|build| !build.is_empty())
    );
    // "The", " capital", " of", " France", " is".
    assert_eq!(usage["completion_tokens"], 5, "{usage}");
}

fn shared_prefixes_are_prefilled_once(cluster: &Cluster) {
    let cached = |prompt: &str| {
        let mut body = greedy(prompt, 4);
        body["messages"] = json!([
            { "role": "system", "content": "You are the gardener of an old orchard and answer with three words at most." },
            { "role": "user", "content": prompt },
        ]);
        let (_, answer) = cluster.post("/v1/chat/completions", &body);
        answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    cached("one");
    cached("two");
    assert!(cached("three") >= 16);
}

/// The next turn begins with the last one's prompt and answer, which are not computed again.
fn a_conversation_goes_on_from_where_it_was(cluster: &Cluster) {
    let question =
        json!({ "role": "user", "content": "Name the capital of Italy, and say one thing about it." });
    let turn = |messages: &[Value]| {
        let mut body = greedy("", 24);
        body["messages"] = messages.into();
        cluster.post("/v1/chat/completions", &body).1
    };
    let first = turn(std::slice::from_ref(&question));
    let answer = json!({ "role": "assistant", "content": text(&first) });
    let next = json!({ "role": "user", "content": "And the one of Spain?" });
    let second = turn(&[question, answer, next]);
    let count = |answer: &Value, what: &str| answer["usage"].pointer(what).and_then(Value::as_u64);
    let prompt = count(&first, "/prompt_tokens");
    let cached = count(&second, "/prompt_tokens_details/cached_tokens");
    // Of the answer as well what is the same tokens when it is read again.
    assert!(
        prompt.is_some() && cached > prompt.map(|tokens| tokens + 4),
        "{first} {second}"
    );
}

/// An answer that ends by a stop string, and one whose client leaves, leave their prompt for who asks it again.
fn what_was_given_up_is_not_computed_again(cluster: &Cluster) {
    let mut body = greedy(
        "Count the pears in the third row of the orchard, and tell me why.",
        400,
    );
    body["stop"] = json!([" "]);
    cluster.post("/v1/chat/completions", &body);
    body["max_tokens"] = 1.into();
    let (_, again) = cluster.post("/v1/chat/completions", &body);
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64();
    assert_eq!(cached(&again).map(|tokens| tokens + 1), prompt(&again), "{again}");

    let mut body = greedy(
        "Count the quinces in the fourth row of the orchard, and tell me how.",
        400,
    );
    body["stream"] = true.into();
    read_a_little(cluster, &body);
    until_nothing_runs(cluster);
    body["stream"] = false.into();
    body["max_tokens"] = 2.into();
    let (_, again) = cluster.post("/v1/chat/completions", &body);
    assert_eq!(cached(&again).map(|tokens| tokens + 1), prompt(&again), "{again}");
}

/// Asks for a stream, and leaves when it has begun.
fn read_a_little(cluster: &Cluster, body: &Value) {
    let request = agent().post(format!("{}/chat/completions", cluster.base()));
    let mut reader = request.send_json(body).unwrap().into_body().into_reader();
    assert!(reader.read(&mut [0; 512]).unwrap() > 0);
}

fn a_client_that_leaves_frees_its_slot(cluster: &Cluster) {
    let mut body = greedy("Tell me a very long story.", 2000);
    body["stream"] = true.into();
    read_a_little(cluster, &body);
    until_nothing_runs(cluster);
}

fn until_nothing_runs(cluster: &Cluster) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let (_, text) = cluster.get("/v1/batch/stats");
        let stats: Value = serde_json::from_str(&text).unwrap();
        if stats["coordinators"][MODEL]["coordinator"]["active_requests"] == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{stats}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn classes_follow_what_requests_say(cluster: &Cluster) {
    let ask = |model: &str, tier: Option<&str>, headers: &[(&str, &str)]| {
        let mut body = greedy("Hi", 1);
        body["model"] = model.into();
        if let Some(tier) = tier {
            body["service_tier"] = tier.into();
        }
        let mut request = agent().post(format!("{}/chat/completions", cluster.base()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send_json(&body).unwrap();
        let name = |name: &str| response.headers().get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(name("x-pomona-request-id").len(), 32);
        assert_eq!(name("x-pomona-node").len(), 32);
        (name("x-pomona-class"), name("x-pomona-class-reason"))
    };
    let pair = |class: &str, reason: &str| (class.to_owned(), reason.to_owned());
    let (header, batch) = (("x-pomona-class", "background"), format!("{MODEL}:batch"));
    let (bulk, helper) = (("x-smg-priority", "bulk"), ("x-app", "cli-bg"));
    assert_eq!(ask(MODEL, None, &[]), pair("interactive", "default"));
    assert_eq!(ask(MODEL, Some("flex"), &[]), pair("batch", "service_tier"));
    assert_eq!(
        ask(MODEL, Some("flex"), &[header, bulk]),
        pair("background", "header")
    );
    assert_eq!(ask(MODEL, Some("priority"), &[bulk]), pair("batch", "priority"));
    assert_eq!(ask(MODEL, None, &[helper]), pair("background", "client"));
    assert_eq!(ask(&batch, None, &[]), pair("batch", "alias"));
    assert_eq!(
        ask(MODEL, Some("never-heard-of"), &[]),
        pair("interactive", "default")
    );
    let metrics = cluster.get("/metrics").1;
    let counted = "pomona_requests_total{class=\"batch\",reason=\"alias\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

fn the_nodes_own_endpoint_answers_the_same(cluster: &Cluster) {
    let body = greedy("What is the capital of France?", 20);
    let (status, answer) = post_to(cluster.node, "/v1/chat/completions", &body);
    assert_eq!(
        (status, text(&answer).as_str()),
        (200, "The capital of France is Paris.")
    );
}

fn statistics_have_the_known_keys(cluster: &Cluster) {
    // Reports are a second apart.
    std::thread::sleep(Duration::from_millis(2100));
    let stats: Value = serde_json::from_str(&cluster.get("/v1/batch/stats").1).unwrap();
    for key in [
        "batch_window_ms",
        "max_batch_size",
        "batch_completion_size",
        "batch_prefill_size",
        "batch_prefill_step_size",
    ] {
        assert!(stats["settings"][key].is_u64(), "{key}");
    }
    assert_eq!(stats["window_effective_ms"]["interactive"], 0);
    let coordinator = &stats["coordinators"][MODEL]["coordinator"];
    for key in [
        "total_requests",
        "total_batches",
        "total_tokens",
        "pending_requests",
        "active_requests",
    ] {
        assert!(coordinator[key].is_u64(), "{key}");
    }
    let (status, metrics) = cluster.get("/metrics");
    assert_eq!(status, 200);
    for name in [
        "pomona_ttft_seconds_bucket",
        "pomona_first_byte_seconds_count",
        "pomona_tokens_total",
        "pomona_engine_info",
        "pomona_node_memory_total_bytes",
    ] {
        assert!(metrics.contains(name), "{name}");
    }
    assert_eq!(cluster.get("/healthz"), (200, "ok".to_owned()));
}
