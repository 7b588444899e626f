//! A key with a limit of tokens a day is used at every coordinator and at a node while leaders stand still and others
//! are elected: what it may take in all is neither forgotten nor counted twice.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pomona_tests::{Machine, Stops, agent, eventually, greedy};
use serde_json::{Value, json};

use crate::former::{SOON, found, is_whole, join, status};
use crate::{Outcome, Scale, keep};

/// What the key may take in a day: of some thousand tokens a second that the clients ask for, a minute and more. Entries
/// hear of each other once a second, which is what they may let in too much.
const LIMIT: u64 = 90_000;
/// Of a share of that leaders change; then nobody disturbs it.
const DISTURBED: f64 = 0.7;
const TOKENS: u32 = 60;
/// Each endpoint is asked so often.
const EVERY: Duration = Duration::from_millis(250);
/// A leader stands still for so long, and all are well for so long between.
const STANDS: Duration = Duration::from_secs(3);
const BETWEEN: Duration = Duration::from_secs(4);
/// A day's worth is over within this time.
const ENDS: Duration = Duration::from_secs(300);
/// What may be forgotten or doubled.
const SHARE: f64 = 0.05;

pub(crate) fn run(scale: Scale) -> Outcome {
    if scale == Scale::Short {
        return Outcome::Skipped("minutes of use of one key: the full run has them");
    }
    let mut coordinators = [(); 3].map(|()| Machine::empty());
    found(&mut coordinators, |first| {
        vec!["--coordinator".into(), first.quic()]
    });
    let mut node = Machine::empty();
    node.pull_model();
    join(&coordinators[0], &node, "rack", Some(&coordinators[0].quic()));
    node.start_node("echo:1");
    let limit = format!("tokens_per_day={LIMIT}");
    let made = coordinators[0].json(&["key", "create", "team", "--limit", &limit]);
    let key = made["key"].as_str().expect("a key").to_owned();
    let entries: Vec<u16> = coordinators
        .iter()
        .map(|one| one.coordinator)
        .chain([node.node])
        .collect();
    let (done, taken, full) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(0));
    for entry in &entries {
        eventually("the key opens the endpoint", SOON, || {
            ask(*entry, &key, &taken) == Ok(200)
        });
    }
    let changes = std::thread::scope(|scope| {
        let _stops = Stops(&done);
        for entry in &entries {
            let (key, done, taken, full) = (&key, &done, &taken, &full);
            scope.spawn(move || use_up(*entry, key, done, taken, full));
        }
        let changes = disturb(&coordinators, &taken);
        eventually("all endpoints say that the day's tokens are gone", ENDS, || {
            *full.lock().expect("nobody panicked") == entries.len()
        });
        changes
    });
    let taken = taken.load(Ordering::Relaxed);
    let mut counted = 0;
    eventually("all of it is counted", SOON, || {
        let before = std::mem::replace(&mut counted, today(&coordinators[0]));
        std::thread::sleep(Duration::from_secs(2));
        before == counted
    });
    let over = taken as f64 / LIMIT as f64;
    let figures = json!({
        "limit": LIMIT, "taken": taken, "counted": counted, "leaders": changes,
        "taken_of_limit": over, "counted_of_taken": counted as f64 / taken as f64,
    });
    keep("key_limits", &json!({ "figures": figures }));
    assert!(changes >= 5, "{figures}");
    assert!((1.0 - SHARE..=1.0 + SHARE).contains(&over), "{figures}");
    assert!(
        counted.abs_diff(taken) as f64 <= SHARE * taken as f64,
        "{figures}"
    );
    Outcome::Figures(figures)
}

fn today(coordinator: &Machine) -> u64 {
    let keys = coordinator.json(&["key", "list"]);
    let key = keys
        .as_array()
        .and_then(|keys| keys.iter().find(|key| key["name"] == "team"));
    key.and_then(|key| key["spent"]["day"]["tokens"].as_u64())
        .unwrap_or(0)
}

/// Lets one leader after the other stand still until another leads; gives how often one did.
fn disturb(coordinators: &[Machine], taken: &AtomicU64) -> u32 {
    let mut changes = 0;
    while (taken.load(Ordering::Relaxed) as f64) < DISTURBED * LIMIT as f64 {
        let leads = |machine: &&Machine| status(machine)["raft"]["leads"] == true;
        let Some(leader) = coordinators.iter().find(leads) else {
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        leader.signal("STOP");
        let others = coordinators.iter().filter(|one| one.pid() != leader.pid());
        let began = Instant::now();
        eventually("another one leads", SOON, || {
            others.clone().any(|one| leads(&one))
        });
        std::thread::sleep(STANDS.saturating_sub(began.elapsed()));
        leader.signal("CONT");
        changes += 1;
        eventually("all are there again", SOON, || is_whole(leader, 3));
        std::thread::sleep(BETWEEN);
    }
    changes
}

/// Asks one endpoint again and again, until the end; it counts as full once it says that nothing is left today.
fn use_up(entry: u16, key: &str, done: &AtomicBool, taken: &AtomicU64, full: &Mutex<usize>) {
    let mut is_full = false;
    while !done.load(Ordering::Relaxed) {
        let is_refused = ask(entry, key, taken) == Ok(429);
        if is_refused && !std::mem::replace(&mut is_full, true) {
            *full.lock().expect("nobody panicked") += 1;
        }
        std::thread::sleep(EVERY);
    }
}

/// The status of one answer; what it took is added.
fn ask(entry: u16, key: &str, taken: &AtomicU64) -> Result<u16, String> {
    let mut body = greedy("Use it up", TOKENS);
    body["ignore_eos"] = true.into();
    let mut response = agent()
        .post(format!("http://127.0.0.1:{entry}/v1/chat/completions"))
        .header("authorization", format!("Bearer {key}"))
        .send_json(&body)
        // Its coordinator stands still.
        .map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let answer: Value = response
        .body_mut()
        .read_json()
        .map_err(|error| error.to_string())?;
    match status {
        200 => {
            let tokens = answer["usage"]["total_tokens"].as_u64().expect("usage");
            taken.fetch_add(tokens, Ordering::Relaxed);
        }
        429 => assert!(answer.to_string().contains("tokens a day"), "{answer}"),
        // Key or model are not known yet, or no leader is there.
        401 | 404 | 503 => {}
        _ => panic!("{status}: {answer}"),
    }
    Ok(status)
}
