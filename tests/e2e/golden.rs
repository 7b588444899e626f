//! Greedy tokens of the whole path against mlx-lm's, made by `tests/golden/make_greedy.py`.

use pomona_tests::{Cluster, MODEL, root};
use serde_json::{Value, json};

/// Tokens a prompt in CI; `POMONA_TEST_ORACLE` (the full run) takes all 256.
const SHORT: usize = 64;

#[test]
fn twenty_prompts_get_mlx_lms_tokens_in_a_full_batch() {
    let _lock = super::engine_lock();
    let cluster = Cluster::start("mlx");
    let goldens: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/greedy.json")).unwrap()).unwrap();
    let goldens = goldens.as_array().unwrap();
    assert_eq!(goldens.len(), 20);
    let count = if std::env::var_os("POMONA_TEST_ORACLE").is_some() {
        256
    } else {
        SHORT
    };
    let answers: Vec<Vec<String>> = std::thread::scope(|scope| {
        let clients: Vec<_> = goldens
            .iter()
            .map(|golden| {
                let cluster = &cluster;
                scope.spawn(move || {
                    let body = json!({
                        "model": MODEL, "prompt": golden["prompt_tokens"], "max_tokens": count, "temperature": 0, "logprobs": 0,
                    });
                    let (status, answer) = cluster.post("/v1/completions", &body);
                    assert_eq!(status, 200, "{answer}");
                    let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap();
                    tokens.iter().map(|token| token.as_str().unwrap().to_owned()).collect()
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut compared = 0;
    for (golden, answer) in goldens.iter().zip(&answers) {
        let expected = golden["pieces"].as_array().unwrap();
        // The answer ends at the stop token; mlx-lm's generator goes on.
        assert!(!answer.is_empty());
        for (i, (got, want)) in answer.iter().zip(expected).enumerate() {
            assert_eq!(got, want.as_str().unwrap(), "{} at {i}", golden["prompt"]);
            compared += 1;
        }
    }
    println!("{compared} tokens are equal");
}
