//! Three coordinators and four nodes on a LAN of their own find each other over mDNS alone: also
//! after every one of them was given another address while it was off.

use std::time::Instant;

use pomona_tests::lan::Lan;
use pomona_tests::{MODEL, Machine, eventually};
use serde_json::json;

use crate::former::{SOON, found, holders, is_whole, join};
use crate::{Outcome, Scale, keep, quantile};

const COORDINATORS: usize = 3;
const NODES: usize = 4;

pub(crate) fn run(scale: Scale) -> Outcome {
    let Some(mut lan) = Lan::new() else {
        return Outcome::Skipped("network namespaces need root");
    };
    let names: Vec<String> = (0..COORDINATORS + NODES)
        .map(|i| lan.host(&format!("10.77.0.{}", 10 + i)))
        .collect();
    let mut machines: Vec<Machine> = names.iter().map(|name| Machine::on_lan(name)).collect();
    let (coordinators, nodes) = machines.split_at_mut(COORDINATORS);
    // Nobody types an address: `pomona join` finds a coordinator by the token's cluster.
    found(coordinators, |_| Vec::new());
    for (i, node) in nodes.iter_mut().enumerate() {
        node.pull_model();
        join(&coordinators[i % COORDINATORS], node, "rack", None);
    }
    let rounds = scale.pick(2, 10);
    let mut ready_s = Vec::new();
    for round in 0..rounds {
        for machine in &mut machines {
            machine.stop();
        }
        // Every address that anybody has kept is wrong from now on.
        for (i, name) in names.iter().enumerate() {
            lan.address(name, &format!("10.77.{}.{}", round + 1, 10 + i));
        }
        let began = Instant::now();
        let (coordinators, nodes) = machines.split_at_mut(COORDINATORS);
        coordinators.iter_mut().for_each(Machine::start_coordinator);
        nodes.iter_mut().for_each(|node| node.start_node("echo"));
        for coordinator in coordinators.iter() {
            eventually("the cluster is whole", SOON, || {
                is_whole(coordinator, COORDINATORS) && holders(coordinator, MODEL) == NODES
            });
        }
        ready_s.push(began.elapsed().as_secs_f64());
    }
    let unplugged_s = unplug(&lan, &machines);
    let figures = json!({
        "coordinators": COORDINATORS, "nodes": NODES, "rounds": rounds,
        "ready_median_s": quantile(&ready_s, 0.5), "ready_max_s": quantile(&ready_s, 1.0),
        "back_after_unplugging_s": unplugged_s,
    });
    keep(
        "lan_discovery",
        &json!({ "figures": figures, "ready_s": ready_s }),
    );
    assert!(quantile(&ready_s, 1.0) <= 10.0, "{figures}");
    Outcome::Figures(figures)
}

/// A node's cable is pulled and plugged in again: it is missed, and comes back by itself.
fn unplug(lan: &Lan, machines: &[Machine]) -> f64 {
    let (host, coordinator) = (COORDINATORS, &machines[0]);
    lan.plug(host, false);
    eventually("the node is missed", SOON, || {
        holders(coordinator, MODEL) == NODES - 1
    });
    lan.plug(host, true);
    let began = Instant::now();
    for coordinator in &machines[..COORDINATORS] {
        eventually("the node is back", SOON, || holders(coordinator, MODEL) == NODES);
    }
    began.elapsed().as_secs_f64()
}
