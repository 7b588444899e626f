//! Greedy tokens of the whole path against mlx-lm's: the checked-in ones of
//! `tests/golden/make_greedy.py`, and in the full run live ones on the same weights.

use std::path::Path;
use std::process::{Command, Stdio};

use pomona_tests::{Cluster, MODEL, root};
use serde_json::{Value, json};

/// Tokens a prompt in CI; the full run takes all 256.
const SHORT: usize = 64;
/// Logits (here log-probabilities) closer than this are a tie, which may fall either way.
const TIE: f64 = 1e-4;

/// An answer by its tokens' texts, with the likeliest ones of each position.
struct Answer {
    tokens: Vec<String>,
    likeliest: Vec<Value>,
}

#[test]
fn twenty_prompts_get_mlx_lms_tokens_in_a_full_batch() {
    let _lock = super::engine_lock();
    let goldens: Value =
        serde_json::from_slice(&std::fs::read(root().join("tests/golden/greedy.json")).unwrap()).unwrap();
    let cluster = Cluster::start("mlx");
    let oracle = std::env::var_os("POMONA_TEST_ORACLE");
    let count = if oracle.is_some() { 256 } else { SHORT };
    let answers = ask_all(&cluster, goldens.as_array().unwrap(), count);
    compare("the goldens", &goldens, &answers, count);
    if let Some(oracle) = oracle {
        let model = cluster.state.path().join("node/models").join(MODEL);
        compare("mlx-lm, live", &live(Path::new(&oracle), &model), &answers, count);
    }
}

/// All prompts at once, every other one as batch: those run in slices, between which the
/// interactive ones pass.
fn ask_all(cluster: &Cluster, goldens: &[Value], count: usize) -> Vec<Answer> {
    let ask = &|(i, golden): (usize, &Value)| {
        let tier = if i % 2 == 0 { "flex" } else { "priority" };
        let body = json!({
            "model": MODEL, "prompt": golden["prompt_tokens"], "max_tokens": count, "temperature": 0,
            "logprobs": 5, "ignore_eos": true, "service_tier": tier,
        });
        let (status, answer) = cluster.post("/v1/completions", &body);
        assert_eq!(status, 200, "{answer}");
        let logprobs = &answer["choices"][0]["logprobs"];
        let tokens = logprobs["tokens"].as_array().unwrap();
        Answer {
            tokens: tokens
                .iter()
                .map(|token| token.as_str().unwrap().to_owned())
                .collect(),
            likeliest: logprobs["top_logprobs"].as_array().unwrap().clone(),
        }
    };
    std::thread::scope(|scope| {
        let spawn = |golden| scope.spawn(move || ask(golden));
        let clients: Vec<_> = goldens.iter().enumerate().map(spawn).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

/// Every token is mlx-lm's, but for ties, which are shown; after one the texts differ rightly.
fn compare(what: &str, goldens: &Value, answers: &[Answer], count: usize) {
    let goldens = goldens.as_array().unwrap();
    assert_eq!((goldens.len(), answers.len()), (20, 20));
    let (mut equal, mut ties) = (0, 0);
    for (golden, answer) in goldens.iter().zip(answers) {
        let expected = golden["pieces"].as_array().unwrap();
        assert_eq!(answer.tokens.len(), count, "{}", golden["prompt"]);
        for (i, (got, want)) in answer.tokens.iter().zip(expected).enumerate() {
            let want = want.as_str().unwrap();
            if got == want {
                equal += 1;
                continue;
            }
            let logprob = |token: &str| answer.likeliest[i][token].as_f64().unwrap_or(f64::NEG_INFINITY);
            let gap = logprob(got) - logprob(want);
            assert!(
                gap.abs() <= TIE,
                "{} at {i}: {got:?} is not {want:?}, by {gap}",
                golden["prompt"]
            );
            println!(
                "{} at {i}: {got:?} and {want:?} are a tie ({gap:.1e})",
                golden["prompt"]
            );
            ties += 1;
            break;
        }
    }
    println!("{what}: {equal} tokens are equal, {ties} ties");
}

/// What mlx-lm says now, on the stored model in 32-bit floats.
fn live(oracle: &Path, model: &Path) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let weights = folder.path().join("f32");
    let python = |script: &str| {
        let mut command = Command::new("python3");
        command
            .env("PYTHONPATH", oracle)
            .arg(root().join(script))
            .stderr(Stdio::null());
        command
    };
    let status = python("xtask/mlx/dequantize.py")
        .arg(model)
        .arg(&weights)
        .status();
    assert!(status.unwrap().success(), "dequantize.py");
    let output = python("tests/golden/make_greedy.py")
        .arg(&weights)
        .output()
        .unwrap();
    assert!(output.status.success(), "make_greedy.py");
    serde_json::from_slice(&output.stdout).unwrap()
}
