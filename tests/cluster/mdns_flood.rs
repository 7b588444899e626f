//! Somebody on the LAN announces ten thousand coordinators a minute that are not there: memory stays
//! bounded, who is there goes on answering, and who comes is still found.

use std::time::{Duration, Instant};

use pomona_tests::lan::Lan;
use pomona_tests::{MODEL, Machine, eventually, mdns_forger};
use serde_json::json;

use crate::former::{SOON, holders, join, lead, status};
use crate::{Outcome, Scale, keep};

const A_MINUTE: u64 = 10_000;

pub(crate) fn run(scale: Scale) -> Outcome {
    let Some(mut lan) = Lan::new() else {
        return Outcome::Skipped("network namespaces need root");
    };
    let hosts = [10, 11, 12, 13].map(|host| lan.host(&format!("10.77.0.{host}")));
    let [mut coordinator, mut node, mut late] = [0, 1, 2].map(|host: usize| Machine::on_lan(&hosts[host]));
    lead(&mut coordinator);
    node.pull_model();
    for machine in [&node, &late] {
        join(&coordinator, machine, "rack", None);
    }
    node.start_node("echo");
    eventually("it is there", SOON, || holders(&coordinator, MODEL) == 1);
    // What is read for the first answer is no flood.
    let (ok, _, errors) = coordinator.pomona(&["chat", "--max-tokens", "4", "Hello"]);
    assert!(ok, "{errors}");
    let before = [coordinator.rss_kib(), node.rss_kib()];

    let cluster = status(&coordinator)["cluster"]
        .as_str()
        .expect("an id")
        .to_owned();
    let forger = mdns_forger::start(&hosts[3], &cluster, A_MINUTE);
    let lasts = Duration::from_secs(scale.pick(12, 180) as u64);
    let (began, mut most, mut asked) = (Instant::now(), before, 0);
    let mut came_s = None;
    late.pull_model();
    while began.elapsed() < lasts {
        let (ok, _, errors) = coordinator.pomona(&["chat", "--max-tokens", "4", "Hello"]);
        assert!(ok, "{errors}");
        asked += 1;
        for (most, machine) in most.iter_mut().zip([&coordinator, &node]) {
            *most = (*most).max(machine.rss_kib());
        }
        if came_s.is_none() && began.elapsed() > lasts / 2 {
            // All its kept addresses are right, but it does not know that: it asks the LAN as well.
            let starts = Instant::now();
            late.start_node("echo");
            eventually("who comes is found", SOON, || holders(&coordinator, MODEL) == 2);
            came_s = Some(starts.elapsed().as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    drop(forger);
    let grown: Vec<u64> = most
        .iter()
        .zip(&before)
        .map(|(most, before)| most.saturating_sub(*before))
        .collect();
    let figures = json!({
        "forged_a_minute": A_MINUTE, "seconds": lasts.as_secs(), "answers": asked, "failed": 0,
        "grown_kib": { "coordinator": grown[0], "node": grown[1] }, "who_came_was_there_s": came_s,
    });
    keep("mdns_flood", &json!({ "figures": figures }));
    // Four thousand records of mdns-sd; at the node also fifteen dials at once, each with the buffers of
    // a socket of its own.
    assert!(grown.iter().all(|kib| *kib < 128 * 1024), "{figures}");
    Outcome::Figures(figures)
}
