//! What gates of a cluster say, and what they refuse.

use pomona_tests::Machine;

/// Whether a gate of this name has acted and is not clear.
pub(crate) fn has_tripped(coordinator: &Machine, name: &str) -> bool {
    let shown = coordinator.json(&["gates", "show"]);
    let open = shown["open"].as_array().cloned().unwrap_or_default();
    open.iter()
        .any(|gate| gate["gate"] == name && gate["stage"] != "clear")
}

/// While it has, nobody gives batch more of the nodes; who insists is written down.
pub(crate) fn refuses_more(coordinator: &Machine, name: &str) {
    let larger = ["knobs", "set", "batch.max_slots=20"];
    let (ok, _, errors) = coordinator.pomona(&larger);
    assert!(!ok && errors.contains(&format!("the {name} gate of")), "{errors}");
    let (ok, _, errors) = coordinator.pomona(&[&larger[..], &["--force"]].concat());
    assert!(ok, "{errors}");
    let shown = coordinator.json(&["knobs", "show"]).to_string();
    let forced = "forced while a gate had tripped: ";
    let who = shown.split_once(forced).map(|(_, rest)| rest.split('"').next());
    assert!(who.flatten().is_some_and(|who| !who.trim().is_empty()), "{shown}");
}
