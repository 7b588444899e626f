//! A laptop by itself: it starts with no coordinator in reach, and still answers its person.

use std::time::Duration;

use pomona_tests::{MODEL, Machine, eventually, greedy, try_stream};

use crate::placement::holders;

const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_machine_that_starts_alone_answers_with_what_it_held_last() {
    let _one = crate::engine_lock();
    let mut coordinator = Machine::empty();
    coordinator.start_coordinator();
    eventually("it leads", SOON, || coordinator.pomona(&["status"]).0);
    let mut laptop = Machine::empty();
    laptop.pull_model();
    laptop.join(
        &coordinator,
        &["token", "create", "--role", "laptop", "--name", "laptop"],
    );
    laptop.start_node("echo:1");
    let ask = |laptop: &Machine| {
        let mut body = greedy("Hi", 4);
        body["stream"] = true.into();
        let answer = try_stream(laptop.node, &body).ok()?;
        answer.error.is_none().then_some(answer.text)
    };
    eventually("it answers", SOON, || ask(&laptop).is_some());
    let answer = ask(&laptop);
    let (ok, _, errors) = coordinator.pomona(&["knobs", "set", "batch.window_ms=60"]);
    assert!(ok, "{errors}");
    assert!(coordinator.pomona(&["fallback", "set", "batch=rack,pause:1"]).0);
    assert!(coordinator.pomona(&["slo", "set", "batch.queue=9"]).0);
    eventually("knobs and lists are there", SOON, || {
        let log = laptop.log();
        ["knobs", "fallback", "slo"]
            .iter()
            .all(|what| log.contains(&format!("{what} of the cluster version=1")))
    });

    laptop.stop();
    coordinator.stop();
    laptop.start_node("echo:1");
    eventually("it answers alone", SOON, || ask(&laptop).is_some());
    assert_eq!(ask(&laptop), answer);
    let log = laptop.log();
    let begins = "begins with what the cluster wanted here last models=1 knobs=1 fallbacks=1 slos=1";
    assert!(log.contains(begins), "{log}");

    // What the cluster wants by now counts as soon as it says so.
    coordinator.start_coordinator();
    eventually("it leads again", SOON, || coordinator.pomona(&["status"]).0);
    let (ok, _, errors) = coordinator.pomona(&["model", "place", MODEL, "--keep", "1"]);
    assert!(ok, "{errors}");
    eventually("it is unloaded", SOON, || holders(&coordinator).is_empty());
}
