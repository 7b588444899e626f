//! A node is killed while fifty answers are on their way: every answer completes on another
//! replica, token for token as if nothing had happened.

use std::time::Duration;

use pomona_tests::{MODEL, Machine, Streamed, eventually, greedy, stream_from};
use serde_json::{Value, json};

use crate::former::{holders, join, lead};
use crate::{Outcome, Scale, keep, quantile};

const STREAMS: usize = 50;
const TOKENS: u64 = 256;

pub(crate) fn run(scale: Scale) -> Outcome {
    let mut figures = json!({ "echo": lose_a_node("echo:8", Duration::from_millis(10)) });
    if scale == Scale::Full {
        figures["mlx"] = lose_a_node("mlx", Duration::from_millis(300));
    }
    Outcome::Figures(figures)
}

fn lose_a_node(engine: &str, apart: Duration) -> Value {
    let mut coordinator = Machine::empty();
    lead(&mut coordinator);
    let mut nodes = [(); 2].map(|()| Machine::empty());
    for node in &mut nodes {
        // Room for all of them on the one that stays.
        node.configure("[engine]\ntotal_slots = 64\n[engine.interactive]\nmax_slots = 56\n");
        node.pull_model();
        join(&coordinator, node, "rack", Some(&coordinator.quic()));
        node.start_node(engine);
    }
    eventually("both replicas are there", Duration::from_secs(60), || {
        holders(&coordinator, MODEL) == 2
    });
    let undisturbed = stream_all(coordinator.coordinator, apart, || ());
    let [first, _second] = &mut nodes;
    let disturbed = stream_all(coordinator.coordinator, apart, || first.kill());
    let moved = coordinator.log().matches("answer goes on elsewhere").count();
    let (mut lost, mut different) = (0, 0);
    for (i, (got, expected)) in disturbed.iter().zip(&undisturbed).enumerate() {
        assert!(
            expected.done && expected.error.is_none(),
            "undisturbed stream {i}: {:?}",
            expected.error
        );
        assert!(got.done && got.error.is_none(), "stream {i}: {:?}", got.error);
        let tokens = got.usage["completion_tokens"].as_u64().unwrap_or(0);
        lost += TOKENS.abs_diff(tokens);
        different += usize::from(got.text != expected.text);
    }
    let silence: Vec<f64> = disturbed
        .iter()
        .map(|stream| stream.longest_silence.as_secs_f64())
        .collect();
    let figures = json!({
        "streams": STREAMS, "tokens_each": TOKENS, "completed": disturbed.len(), "moved": moved,
        "tokens_lost_or_repeated": lost, "different": different,
        "longest_silence_median_s": quantile(&silence, 0.5), "longest_silence_max_s": quantile(&silence, 1.0),
    });
    keep(
        &format!("node_loss_{}", &engine[..3]),
        &json!({ "figures": figures, "silence_s": silence }),
    );
    assert!(moved > 0, "no stream was on the node that died");
    assert_eq!(lost, 0, "{figures}");
    // Ties: the real engine prefills what it had decoded, in batches of another size.
    assert!(
        different == 0 || engine == "mlx" && different <= STREAMS / 25,
        "{figures}"
    );
    assert!(quantile(&silence, 1.0) <= 15.0, "{figures}");
    figures
}

/// Fifty answers that begin one after the other, so that the batch is never the same for long;
/// `disturb` runs when all are on their way.
fn stream_all(port: u16, apart: Duration, disturb: impl FnOnce()) -> Vec<Streamed> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..STREAMS)
            .map(|i| {
                std::thread::sleep(apart);
                scope.spawn(move || stream_from(port, &body(i)))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(700));
        disturb();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect()
    })
}

/// Half of them greedy, half seeded; none ends before its time.
fn body(i: usize) -> Value {
    let mut body = greedy(&format!("Story number {i}"), TOKENS as u32);
    body["stream"] = true.into();
    body["ignore_eos"] = true.into();
    body["stream_options"] = json!({ "include_usage": true });
    if i % 2 == 1 {
        body["temperature"] = 1.into();
        body["seed"] = i.into();
    }
    body
}
