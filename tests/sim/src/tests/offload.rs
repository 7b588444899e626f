//! A laptop that gets hot under batch work, in the simulator: the ladder, the leader's round and the moves of
//! answers together, with leaders that change and networks that break.

use pomona_common::{Class, NodeId, Rung};
use pomona_decide::{Command, ModelPolicy, Replicas};

use super::{all_finished, seeds, settled};
use crate::actions::Action;
use crate::client::End;
use crate::cluster::node_id;
use crate::mac::Person;
use crate::trouble::{COORDINATORS, ask, model, world};
use crate::wire::Id;
use crate::world::World;

const LAPTOP: usize = 1;
/// What is comfortable at a laptop with this chip, in watts.
const COMFORTABLE: f64 = 45.0;
/// A node that came down a rung is stressed for so long before it goes up again, in milliseconds.
const SUSTAINED: u64 = 60_000;

fn person(watts: f64) -> Person {
    Person {
        watts,
        ..Person::default()
    }
}

/// Batch work that only the laptop can do, at first or for good, and interactive work beside it.
fn hot(seed: u64, for_good: bool) -> World {
    let mut world = world(seed);
    // As one of an older version: what it would not let come so far by itself is left to the ladder.
    world.nodes[LAPTOP].is_paced = false;
    let only_here = ModelPolicy {
        replicas: Replicas::Count(1),
        pins: [node_id(LAPTOP)].into(),
        ..ModelPolicy::default()
    };
    let policy = |policy: ModelPolicy| {
        Action::Commit(Command::SetPolicy {
            model: model(0),
            policy,
        })
    };
    world.at(1_000, policy(only_here));
    let ask = |i: u64, class, tokens| ask(1 + i % COORDINATORS, model(0), class, tokens);
    for i in 0..8 {
        world.at(9_000 + i * 40, ask(i, Class::Batch, 12_000));
    }
    for i in 0..400 {
        let tokens = world.random.between(5, 40) as u32;
        world.at(9_500 + i * 600, ask(i, Class::Interactive, tokens));
    }
    // The person's own work takes most of what is comfortable.
    world.at(9_000, Action::Person(LAPTOP, person(25.0)));
    world.at(290_000, Action::Person(LAPTOP, person(0.0)));
    if for_good {
        return world;
    }
    let everywhere = ModelPolicy {
        replicas: Replicas::Count(3),
        pins: [node_id(LAPTOP)].into(),
        ..ModelPolicy::default()
    };
    world.at(15_000, policy(everywhere));
    world
}

/// Somebody sleeps, somebody stalls, and a cable breaks one way, while the laptop is relieved.
fn trouble(world: &mut World) {
    for _ in 0..4 {
        let at = world.random.between(20_000, 240_000);
        let span = world.random.between(500, 8_000);
        let coordinator = Id::Coordinator(world.random.between(2, COORDINATORS + 1));
        match world.random.between(0, 3) {
            0 => {
                world.at(at, Action::Sleep(coordinator));
                world.at(at + span, Action::Wake(coordinator));
            }
            1 => {
                world.at(at, Action::Stall(Id::Node(2), true));
                world.at(at + span, Action::Stall(Id::Node(2), false));
            }
            _ => {
                world.at(at, Action::Cut(coordinator, Id::Node(LAPTOP), true));
                world.at(at + span, Action::Cut(coordinator, Id::Node(LAPTOP), false));
            }
        }
    }
}

/// Steps up and down do not follow each other closer than the ladder promises.
fn does_not_oscillate(world: &World, node: NodeId, seed: u64) {
    let steps: Vec<_> = world.rungs.iter().filter(|(_, id, ..)| *id == node).collect();
    for pair in steps.windows(2) {
        let ((fell_at, _, from, to), (rose_at, _, _, up)) = (pair[0], pair[1]);
        let reversal = to < from && up > to;
        assert!(
            !reversal || rose_at - fell_at >= SUSTAINED,
            "seed {seed}: {from} to {to} at {fell_at}, {up} at {rose_at}"
        );
    }
    assert!(steps.len() < 24, "seed {seed}: {steps:?}");
}

#[test]
fn a_hot_laptop_cools_down_by_itself_and_loses_nothing() {
    for seed in 0..seeds() / 6 {
        let mut world = hot(seed, false);
        if seed % 2 == 1 {
            trouble(&mut world);
        }
        world.run_until(25_000);
        let before = world.nodes[LAPTOP].mac.watts;
        assert!(before > COMFORTABLE, "seed {seed}: {before} W");
        world.run_until(280_000);
        let relieved = world.nodes[LAPTOP].mac.watts;
        assert!(relieved < COMFORTABLE, "seed {seed}: {relieved} W");
        let highest = world.rungs.iter().map(|(.., to)| *to).max();
        // Where a session was lost its answers may have gone elsewhere by that.
        let moves = highest == Some(Rung::MoveRunning);
        let by_itself = seed % 2 == 1 && highest == Some(Rung::Pause);
        assert!(moves || by_itself, "seed {seed}: {highest:?}");
        // It comes to rest, and is let go.
        world.run_until(600_000);
        settled(&world, seed);
        does_not_oscillate(&world, node_id(LAPTOP), seed);
        let agreed = world.agreed();
        assert_eq!(agreed.relief(node_id(LAPTOP)).rung, Rung::Normal, "seed {seed}");
        if seed % 2 == 0 {
            all_finished(&world, seed);
        }
        let batch = world
            .clients
            .values()
            .filter(|client| client.class == Class::Batch);
        let lost = batch.filter(|client| client.end != Some(End::Finished));
        assert_eq!(lost.count(), 0, "seed {seed}: batch work was lost");
    }
}

/// With nowhere to go, batch work that stands still, is let go and too much again does so slowly.
#[test]
fn a_hot_laptop_with_nobody_to_help_it_does_not_oscillate() {
    for seed in 0..seeds() / 12 {
        let mut world = hot(seed, true);
        if seed % 2 == 1 {
            trouble(&mut world);
        }
        world.run_until(600_000);
        let highest = world.rungs.iter().map(|(.., to)| *to).max();
        assert_eq!(highest, Some(Rung::Pause), "seed {seed}");
        does_not_oscillate(&world, node_id(LAPTOP), seed);
        let batch = world
            .clients
            .values()
            .filter(|client| client.class == Class::Batch);
        let lost = batch.filter(|client| client.end.is_some_and(|end| end != End::Finished));
        assert_eq!(lost.count(), 0, "seed {seed}: batch work was lost");
    }
}
