//! Clusters that come through whatever happens.

mod memory;
mod offload;
mod slowed;
mod standstills;

use pomona_common::Class;
use pomona_decide::{Command, Lease, ModelPolicy, Presence};

use crate::actions::Action;
use crate::client::End;
use crate::cluster::{BEGAN_S, node_id, place};
use crate::faults::{self, Faults};
use crate::trouble::{COORDINATORS, ask, broken, model, run, world};
use crate::wire::Id;
use crate::world::World;

/// What must hold once all is well again.
fn settled(world: &World, seed: u64) {
    assert_eq!(broken(world), Vec::<String>::new(), "seed {seed}");
}

fn all_finished(world: &World, seed: u64) {
    let mut ends = world.clients.values().map(|client| client.end);
    assert!(ends.all(|end| end == Some(End::Finished)), "seed {seed}");
}

/// Seeds of a run: more of them when a number is given.
fn seeds() -> u64 {
    let wanted = std::env::var("POMONA_TEST_SEEDS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(130)
}

#[test]
fn clusters_come_through_whatever_happens() {
    // Ten hours of simulated time.
    let found = Faults::of_all(&faults::run(0..seeds(), false, |_| {}).unwrap());
    println!("{found:?}");
    assert_eq!(found.broken, []);
    assert!(found.hours > 10.0 || seeds() < 130, "{found:?}");
    assert!(found.finished * 10 > found.answers * 8, "{found:?}");
    assert!(found.wedged > found.seeds / 4, "{found:?}");
}

#[test]
fn a_seed_gives_the_same_history_byte_by_byte() {
    // The last one is of gates.
    for seed in [0, 1, 2, 7] {
        let (one, other) = (faults::run_one(seed).0, faults::run_one(seed).0);
        assert!(one.trace.len() > 1000 && one.trace == other.trace, "seed {seed}");
    }
    assert!(run(1).trace != run(2).trace);
}

/// On waking a node is there within five seconds, and what it was doing is not done twice.
#[test]
fn a_laptop_that_wakes_is_there_and_repeats_nothing() {
    for (seed, slept) in (0..20).zip([1_000, 2_000, 2_600, 10_000, 3_600_000].into_iter().cycle()) {
        let mut world = world(seed);
        let laptop = Id::Node(1);
        let policy = ModelPolicy {
            pins: [node_id(1)].into(),
            ..ModelPolicy::default()
        };
        world.at(1_000, Action::Commit(place(model(0), policy)));
        for i in 0..20 {
            let action = ask(1 + i % COORDINATORS, model(0), Class::Interactive, 200);
            world.at(9_000 + i * 50, action);
        }
        world.at(10_000, Action::Sleep(laptop));
        world.run_until(9_990 + slept.min(5_000));
        let presence = world.coordinators[0].presence(node_id(1), world.now);
        // Between the two it depends on when it said something last.
        assert!(
            presence == Presence::Away || slept < 3_000,
            "seed {seed}: {presence:?}"
        );
        assert!(
            presence != Presence::Away || slept > 2_000,
            "seed {seed}: {presence:?}"
        );
        world.at(10_000 + slept, Action::Wake(laptop));
        world.run_until(10_000 + slept + 5_000);
        for coordinator in &world.coordinators {
            let presence = coordinator.presence(node_id(1), world.now);
            assert_eq!(presence, Presence::Here, "seed {seed}, {slept} ms");
        }
        assert_eq!(world.nodes[1].orphans(), 0);
        world.run_until(world.now + 30_000);
        settled(&world, seed);
        all_finished(&world, seed);
    }
}

/// Suspected within a second and a half, lost within three, back after a stall of five.
#[test]
fn a_stall_is_suspected_then_lost_then_over() {
    for seed in 0..10 {
        let mut world = world(seed);
        let rack = node_id(2);
        world.at(10_000, Action::Stall(Id::Node(2), true));
        world.at(15_000, Action::Stall(Id::Node(2), false));
        let mut seen = Vec::new();
        for at in (10_000..20_000).step_by(50) {
            world.run_until(at);
            let presence = world.coordinators[0].presence(rack, at);
            if seen.last().is_none_or(|(_, last)| *last != presence) {
                seen.push((at - 10_000, presence));
            }
        }
        let order: Vec<Presence> = seen.iter().map(|(_, presence)| *presence).collect();
        assert_eq!(order[0], Presence::Here);
        assert_eq!(*order.last().unwrap(), Presence::Here, "seed {seed}: {seen:?}");
        let first = |wanted| {
            seen.iter()
                .find(|(_, presence)| *presence == wanted)
                .map(|(at, _)| *at)
        };
        assert!(
            first(Presence::Suspected).is_some_and(|at| at <= 1_700),
            "seed {seed}: {seen:?}"
        );
        assert!(
            first(Presence::Lost).is_some_and(|at| at <= 3_000),
            "seed {seed}: {seen:?}"
        );
    }
}

/// A rented node leaves in time, whatever else happens to it, and its answers go on elsewhere.
#[test]
fn a_lease_ends_in_trouble_as_well() {
    for seed in 0..10 {
        let mut world = world(seed);
        let rented = 3;
        let lease = Lease::until(BEGAN_S + 40, 20);
        world.at(
            2_000,
            Action::Commit(Command::SetLease {
                node: node_id(rented),
                lease: Some(lease),
                now_s: BEGAN_S,
            }),
        );
        for i in 0..60 {
            let action = ask(1 + i % COORDINATORS, model(1), Class::Interactive, 100);
            world.at(8_000 + i * 500, action);
        }
        let span = world.random.between(500, 8_000);
        world.at(25_000, Action::Stall(Id::Node(rented), true));
        world.at(25_000 + span, Action::Stall(Id::Node(rented), false));
        world.run_until(45_000);
        let agreed = world.agreed();
        assert!(agreed.revoked.contains_key(&node_id(rented)), "seed {seed}");
        assert!(
            world.nodes[rented].gone && world.nodes[rented].stored.is_empty(),
            "seed {seed}"
        );
        world.run_until(70_000);
        settled(&world, seed);
        all_finished(&world, seed);
    }
}
