//! A build takes half of a laptop's speed: long prompts that come late by it are answered in the rack, the first one
//! before its first token, and short ones, and all of them once it is over, by the laptop. Real engines, each on a core
//! of its own, which another program shares meanwhile; that a build runs is scripted.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use pomona_tests::{MODEL, Machine, agent, eventually, greedy};
use serde_json::json;

use crate::former::{SOON, holders, pin_pair};
use crate::offload::of_role;
use crate::{Outcome, Scale, keep, quantile};

/// Words of long prompts, which the laptop computes in some seconds, and of short ones.
const LONG: usize = 350;
const SHORT: usize = 40;
/// Long prompts that teach what is usual, and those in each part after it.
const USUAL: usize = 8;
const EACH: usize = 4;
/// Its readings are told by then.
const TOLD: Duration = Duration::from_secs(3);

pub(crate) fn run(scale: Scale) -> Outcome {
    if scale == Scale::Short {
        return Outcome::Skipped(
            "minutes of long prompts: the full run has it; the simulator has it in every run",
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    let script = folder.path().join("readings.json");
    let builds = |builds: bool| {
        std::fs::write(&script, json!({ "indexing": builds }).to_string()).expect("a script");
        std::thread::sleep(TOLD);
    };
    builds(false);
    let (mut coordinator, mut laptop, mut rack) = (Machine::empty(), Machine::empty(), Machine::empty());
    pin_pair(&mut coordinator, (&mut laptop, &mut rack), &script);
    let own = of_role(&coordinator, "laptop")["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let mut asked = 0;
    let mut ask = |words: usize, count: usize| -> Vec<(bool, f64)> {
        let mut one = || {
            asked += 1;
            let (node, seconds) = ask(&laptop, asked, words);
            (node == own, seconds)
        };
        (0..count).map(|_| one()).collect()
    };
    let usual = ask(LONG, USUAL);
    let build = Build::on(0);
    builds(true);
    let first = ask(LONG, 1);
    let left = || laptop.log().matches("answer goes on elsewhere").count();
    let moved = left();
    let beside = ask(LONG, EACH);
    let short = ask(SHORT, EACH);
    // What it would have been.
    rack.stop();
    eventually("the rack is gone", SOON, || holders(&coordinator, MODEL) == 1);
    let alone = ask(LONG, EACH);
    rack.start_node("mlx");
    eventually("the rack is back", SOON, || holders(&coordinator, MODEL) == 2);
    drop(build);
    builds(false);
    let after = ask(LONG, EACH);

    let p50 = |answers: &[(bool, f64)]| quantile(&answers.iter().map(|(_, s)| *s).collect::<Vec<_>>(), 0.5);
    let here = |answers: &[(bool, f64)]| answers.iter().filter(|(here, _)| *here).count();
    let figures = json!({
        "usual_p50_s": p50(&usual), "first_beside_a_build_s": p50(&first), "left_before_its_first_token": moved,
        "beside_a_build_p50_s": p50(&beside), "without_a_rack_p50_s": p50(&alone), "after_it_p50_s": p50(&after),
        "answered_here": { "usual": here(&usual), "beside_a_build": here(&beside), "short_beside_a_build": here(&short),
            "after_it": here(&after) },
    });
    keep(
        "slowed",
        &json!({ "figures": figures, "usual": usual, "first": first, "beside": beside, "short": short,
            "alone": alone, "after": after }),
    );
    assert_eq!((here(&usual), here(&after)), (USUAL, EACH), "{figures}");
    assert_eq!((here(&beside), here(&short)), (0, EACH), "{figures}");
    assert_eq!(moved, 1, "{figures}");
    assert!(p50(&beside) < p50(&alone), "{figures}");
    Outcome::Figures(figures)
}

/// Asks for one token after a prompt that nobody asked before; gives who answered, and the seconds that it took.
fn ask(at: &Machine, nth: usize, words: usize) -> (String, f64) {
    let text: String = (0..words)
        .map(|i| format!("{} ", (i * 7 + nth * 31) % 97))
        .collect();
    let began = Instant::now();
    let mut response = agent()
        .post(format!("http://127.0.0.1:{}/v1/chat/completions", at.node))
        .send_json(greedy(&format!("Case {nth}: {text}"), 1))
        .expect("an answer");
    let node = response.headers().get("x-pomona-node").expect("who answered");
    let node = node.to_str().expect("an id").to_owned();
    let answer: serde_json::Value = response.body_mut().read_json().expect("JSON");
    assert!(answer["error"].is_null(), "{answer}");
    (node, began.elapsed().as_secs_f64())
}

/// Another program that wants all of a core.
struct Build(Child);

impl Build {
    fn on(core: usize) -> Self {
        let busy = ["-c", &core.to_string(), "sh", "-c", "while :; do :; done"];
        Self(Command::new("taskset").args(busy).spawn().expect("taskset"))
    }
}

impl Drop for Build {
    fn drop(&mut self) {
        // It ends only so.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
