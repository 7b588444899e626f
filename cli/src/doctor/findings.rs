//! What the facts about a machine mean for its user. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::facts::{Facts, Port};

/// A model of a useful size, with something to spare.
const DISK_LOW: u64 = 10 << 30;
/// Less, and the log of the cluster cannot be written soon.
const DISK_EMPTY: u64 = 1 << 30;
/// A coordinator on the LAN answers sooner.
const FAR: Duration = Duration::from_millis(30);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Good,
    /// It works, and may surprise.
    Warning,
    /// It does not work.
    Bad,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Good => "ok",
            Level::Warning => "warning",
            Level::Bad => "BROKEN",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) what: &'static str,
    pub(super) level: Level,
    pub(super) found: String,
    /// What to do about it.
    pub(super) advice: Option<String>,
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        what,
        level: Level::Good,
        found: found.into(),
        advice: None,
    }
}

fn finding(level: Level, what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding {
        what,
        level,
        found: found.into(),
        advice: Some(advice.into()),
    }
}

/// What the facts mean, in the order in which one would look.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![state(facts), disk(facts)];
    all.extend(engine(facts));
    all.extend(
        facts
            .ports
            .iter()
            .map(|(what, at, port)| of_port(what, *at, *port)),
    );
    all.push(place(facts));
    all.extend(coordinators(facts));
    all.extend(discovery(facts));
    all.extend(cluster(facts));
    all.extend(services(facts));
    all
}

fn state(facts: &Facts) -> Finding {
    let what = "state folder";
    let path = facts.state.display();
    match facts.state_mode {
        None => good(what, format!("{path} is made at the first start")),
        Some(mode) if mode & 0o077 == 0 => good(what, path.to_string()),
        Some(mode) => finding(
            Level::Warning,
            what,
            format!("others may look into {path} (mode {mode:o}), where keys are"),
            format!("chmod 700 {path}"),
        ),
    }
}

fn disk(facts: &Facts) -> Finding {
    let what = "disk";
    let Some(free) = facts.disk_free else {
        return finding(
            Level::Warning,
            what,
            "cannot be looked at",
            "see whether the state folder exists",
        );
    };
    let found = format!("{:.1} GiB free", free as f64 / (1u64 << 30) as f64);
    match free {
        _ if free < DISK_EMPTY => finding(
            Level::Bad,
            what,
            found,
            "make room: a coordinator stops when it cannot write; `pomona model list` shows what is stored",
        ),
        _ if free < DISK_LOW => finding(
            Level::Warning,
            what,
            found,
            "models need more: make room before pulling one",
        ),
        _ => good(what, found),
    }
}

fn engine(facts: &Facts) -> Option<Finding> {
    let what = "engine";
    Some(match facts.engine.as_ref()? {
        Ok(says) => good(what, says.clone()),
        Err(why) => finding(
            Level::Bad,
            what,
            why.clone(),
            "build it with `cargo xtask up`, set engine.program, or POMONA_ENGINE=none for a machine without models",
        ),
    })
}

fn of_port(what: &'static str, address: SocketAddr, port: Port) -> Finding {
    match port {
        Port::Free => good(what, format!("{address} is free: nothing runs yet")),
        Port::Ours => good(what, format!("Pomona answers at {address}")),
        Port::Taken => finding(
            Level::Bad,
            what,
            format!("another program has {address}"),
            "end it, or set another address: POMONA_NODE_HTTP, POMONA_COORDINATOR_HTTP",
        ),
    }
}

fn place(facts: &Facts) -> Finding {
    let what = "place in the cluster";
    if let Some(why) = &facts.damaged {
        let advice = "remove the folder `node/membership` below the state folder, and join anew";
        return finding(Level::Bad, what, why.clone(), advice);
    }
    match (facts.node, facts.is_coordinator) {
        (Some(node), _) if facts.expired => finding(
            Level::Warning,
            what,
            format!("node {}; its certificate has run out", node.short()),
            "a coordinator in reach renews it up to two weeks after the end; after that join anew",
        ),
        (Some(node), true) => good(what, format!("node {}, and a coordinator", node.short())),
        (Some(node), false) => good(what, format!("node {}", node.short())),
        (None, true) => good(what, "a coordinator"),
        (None, false) => finding(
            Level::Warning,
            what,
            "none: it serves itself only",
            "join a cluster with a token of `pomona token create`, or found one with `pomona up`",
        ),
    }
}

fn coordinators(facts: &Facts) -> Vec<Finding> {
    let what = "coordinators";
    let in_reach = facts
        .coordinators
        .iter()
        .filter(|(_, reached)| reached.is_ok())
        .count();
    let mut all: Vec<Finding> = facts
        .coordinators
        .iter()
        .map(|(address, reached)| match reached {
            Ok(round_trip) if *round_trip > FAR => finding(
                Level::Warning,
                what,
                format!("{address} is {} ms away", round_trip.as_millis()),
                "look whether the traffic takes Wi-Fi or a VPN where a cable would do",
            ),
            Ok(round_trip) => {
                good(what, format!("{address} in {:.1} ms", round_trip.as_secs_f64() * 1e3))
            }
            Err(why) => {
                // As long as another one is in reach the node works.
                let level = if in_reach > 0 { Level::Warning } else { Level::Bad };
                let advice = if facts.macos {
                    "see whether it runs and listens there (POMONA_QUIC=0.0.0.0:7712), whether a firewall drops UDP, and whether System Settings > Privacy & Security > Local Network allows this program"
                } else {
                    "see whether it runs and listens there (POMONA_QUIC=0.0.0.0:7712), and whether a firewall drops UDP"
                };
                finding(level, what, format!("{address} is not reached: {why}"), advice)
            }
        })
        .collect();
    if facts.node.is_some() && facts.coordinators.is_empty() {
        all.push(finding(
            Level::Warning,
            what,
            "none is known by address",
            "mDNS has to find them; `coordinators` in the configuration names them",
        ));
    }
    all
}

fn discovery(facts: &Facts) -> Option<Finding> {
    let what = "mDNS";
    if !facts.mdns {
        return Some(good(what, "switched off: coordinators are known by address"));
    }
    let seen = facts.sightings.as_ref()?;
    Some(if seen.is_empty() {
        finding(
            Level::Warning,
            what,
            "no coordinator of this cluster is seen on the LAN",
            "nothing is wrong when they are elsewhere, or listen on loopback; networks for guests often drop multicast",
        )
    } else {
        let numbers: Vec<String> = seen.iter().map(u64::to_string).collect();
        good(what, format!("coordinators seen: {}", numbers.join(", ")))
    })
}

fn cluster(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    let what = "coordinator here";
    if facts.is_coordinator && facts.listens_on_loopback {
        all.push(finding(
            Level::Warning,
            what,
            "it listens on loopback: other machines do not reach it",
            "POMONA_QUIC=0.0.0.0:7712, unless this machine is the whole cluster",
        ));
    }
    let Some(status) = &facts.status else {
        if facts.is_coordinator {
            let advice = "start it with `pomona up` or `pomona coordinator`";
            all.push(finding(Level::Warning, what, "it does not run", advice));
        }
        return all;
    };
    if let Some(why) = status["raft"]["stopped"].as_str() {
        all.push(finding(
            Level::Bad,
            what,
            format!("it has stopped writing: {why}"),
            "see that its disk has room and is sound, and start it again",
        ));
    }
    if status["raft"]["leader"].is_null() {
        all.push(finding(
            Level::Bad,
            what,
            "the cluster has no leader: requests are answered, changes are not taken",
            "`pomona coordinator list` shows who is missing; more than half must run",
        ));
    }
    let voters = status["coordinators"].as_array().map_or(0, Vec::len);
    if facts.is_laptop && voters > 1 {
        all.push(finding(
            Level::Warning,
            what,
            "a laptop is among the coordinators: when it sleeps, one vote is missing",
            "`pomona coordinator move`, here",
        ));
    }
    let not_ready = status["not_ready"].as_array().map_or(0, Vec::len);
    if not_ready > 0 {
        let advice = "`pomona status` says what they wait for";
        all.push(finding(
            Level::Warning,
            what,
            format!("{not_ready} models are not ready"),
            advice,
        ));
    }
    if all.is_empty() {
        all.push(good(what, "it runs, and there is a leader"));
    }
    all
}

fn services(facts: &Facts) -> Vec<Finding> {
    let what = "service";
    if facts.services.is_empty() {
        let advice = "`pomona node install-service` and `pomona coordinator install-service`";
        return vec![finding(
            Level::Warning,
            what,
            "none: nothing starts with the machine",
            advice,
        )];
    }
    let of_path = |path: &PathBuf| {
        let shown = path.display();
        if path.to_string_lossy().contains("LaunchAgents") {
            finding(
                Level::Bad,
                what,
                format!("{shown} is an agent: macOS silently keeps agents off the local network"),
                "remove it, and use `pomona node install-service`, which makes a daemon",
            )
        } else {
            good(what, shown.to_string())
        }
    };
    facts.services.iter().map(of_path).collect()
}

#[cfg(test)]
mod tests {
    use pomona_common::NodeId;
    use serde_json::json;

    use super::*;

    fn healthy() -> Facts {
        Facts {
            state: "/home/ada/.pomona".into(),
            state_mode: Some(0o700),
            disk_free: Some(500 << 30),
            engine: Some(Ok("metal, bf16".into())),
            ports: vec![("node's HTTP port", ([127, 0, 0, 1], 7710).into(), Port::Ours)],
            node: Some(NodeId::from_bits(7)),
            coordinators: vec![(([10, 0, 0, 1], 7712).into(), Ok(Duration::from_millis(1)))],
            sightings: Some(vec![1, 2, 3]),
            mdns: true,
            services: vec!["/Library/LaunchDaemons/dev.pomona.node.plist".into()],
            ..Facts::default()
        }
    }

    fn worst(facts: &Facts) -> Vec<(Level, &'static str)> {
        let found = findings(facts);
        assert!(
            found
                .iter()
                .all(|one| (one.level == Level::Good) == one.advice.is_none())
        );
        let bad = found.iter().filter(|one| one.level != Level::Good);
        bad.map(|one| (one.level, one.what)).collect()
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_do() {
        assert_eq!(worst(&healthy()), []);
    }

    #[test]
    fn every_trouble_is_named_with_what_to_do() {
        let unreached = (([10, 0, 0, 2], 7712).into(), Err("no answer".to_owned()));
        let cases: [(Facts, Level, &str); 10] = [
            (
                Facts {
                    state_mode: Some(0o755),
                    ..healthy()
                },
                Level::Warning,
                "state folder",
            ),
            (
                Facts {
                    disk_free: Some(1 << 20),
                    ..healthy()
                },
                Level::Bad,
                "disk",
            ),
            (
                Facts {
                    engine: Some(Err("gone".into())),
                    ..healthy()
                },
                Level::Bad,
                "engine",
            ),
            (
                Facts {
                    ports: vec![("node's HTTP port", ([127, 0, 0, 1], 7710).into(), Port::Taken)],
                    ..healthy()
                },
                Level::Bad,
                "node's HTTP port",
            ),
            (
                Facts {
                    expired: true,
                    ..healthy()
                },
                Level::Warning,
                "place in the cluster",
            ),
            (
                Facts {
                    damaged: Some("x".into()),
                    ..healthy()
                },
                Level::Bad,
                "place in the cluster",
            ),
            (
                Facts {
                    coordinators: vec![unreached.clone()],
                    ..healthy()
                },
                Level::Bad,
                "coordinators",
            ),
            (
                Facts {
                    coordinators: [healthy().coordinators, vec![unreached]].concat(),
                    ..healthy()
                },
                Level::Warning,
                "coordinators",
            ),
            (
                Facts {
                    services: vec!["/Users/ada/Library/LaunchAgents/dev.pomona.node.plist".into()],
                    ..healthy()
                },
                Level::Bad,
                "service",
            ),
            (
                Facts {
                    is_coordinator: true,
                    status: Some(json!({ "raft": { "leader": null } })),
                    ..healthy()
                },
                Level::Bad,
                "coordinator here",
            ),
        ];
        for (facts, level, what) in cases {
            assert_eq!(worst(&facts), [(level, what)]);
        }
    }
}
