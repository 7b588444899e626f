//! A laptop that is slowed down: what its person asks goes where it comes sooner, and nothing else does.

use pomona_common::{Class, NodeId};
use pomona_decide::{ModelPolicy, Replicas};

use crate::actions::Action;
use crate::client::{End, Request};
use crate::cluster::{node_id, place};
use crate::mac::{DATA, Mac, Person, kinds};
use crate::trouble::{broken, model, world};
use crate::wire::Id;
use crate::world::World;

const LAPTOP: usize = 1;
/// Between two questions, in milliseconds: a MacBook Air stays cool.
const PAUSE: u64 = 40_000;
const LONG: u32 = 6_000;
const SHORT: u32 = 400;

/// A MacBook Air in a cluster whose minis have the model as well, whose person builds at times.
fn air(seed: u64) -> World {
    let mut world = world(seed);
    world.nodes[LAPTOP].mac = Mac::new(kinds(DATA).unwrap()["air-m4"].clone());
    let policy = ModelPolicy {
        replicas: Replicas::Count(3),
        pins: [node_id(LAPTOP)].into(),
        ..ModelPolicy::default()
    };
    world.at(1_000, Action::Commit(place(model(0), policy)));
    world
}

/// Asks for these, long prompts while nothing else is at work first; gives who answered each.
fn asked(world: &mut World, of: &[(u32, bool)]) -> Vec<Option<NodeId>> {
    let first = [(LONG, false); 6];
    for (i, (tokens, builds)) in (0..).zip(first.iter().chain(of)) {
        let at = 20_000 + PAUSE * u64::from(i);
        let person = Person {
            builds: *builds,
            ..Person::default()
        };
        // Its probe has told.
        world.at(at - 15_000, Action::Person(LAPTOP, person));
        let request = Request {
            model: model(0),
            class: Class::Interactive,
            prompt: (0..*tokens).map(|token| token + i * LONG).collect(),
            tokens: 4,
        };
        world.at(at, Action::Ask(Id::Node(LAPTOP), request));
    }
    world.run_until(20_000 + PAUSE * (6 + of.len() as u64));
    let ends = world.clients.values().map(|client| client.end);
    assert!(
        ends.clone().all(|end| end == Some(End::Finished)),
        "{:?}",
        ends.collect::<Vec<_>>()
    );
    world.clients.values().map(|client| client.made_by).collect()
}

#[test]
fn prompts_that_a_build_makes_late_go_to_the_rack_and_others_stay() {
    for seed in 0..10 {
        let mut world = air(seed);
        let of = [
            // What a build costs is not known yet: its first steps say so, and it leaves before its first token.
            (LONG, true),
            (LONG, true),
            (SHORT, true),
            (LONG, false),
            (LONG, true),
        ];
        let by = asked(&mut world, &of);
        let stays: Vec<bool> = by.iter().map(|node| *node == Some(node_id(LAPTOP))).collect();
        let wanted = [false, false, true, true, false];
        assert_eq!(stays[..6], [true; 6], "seed {seed}");
        assert_eq!(stays[6..], wanted, "seed {seed}");
        assert_eq!(broken(&world), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn without_anybody_who_is_sooner_they_stay() {
    for (seed, slow) in [(0, true), (1, false)] {
        let mut world = air(seed);
        for node in world.nodes.iter_mut().filter(|node| node.id != node_id(LAPTOP)) {
            // A mini that is slower still, or none that is in reach.
            if slow {
                node.mac.kind.prefill_tok_s.value = 100.0;
            }
        }
        if !slow {
            for coordinator in 1..=3 {
                let (here, there) = (Id::Node(LAPTOP), Id::Coordinator(coordinator));
                world.at(200_000, Action::Cut(here, there, true));
                world.at(200_000, Action::Cut(there, here, true));
            }
        }
        let by = asked(
            &mut world,
            &[(LONG, true), (LONG, true), (LONG, true), (LONG, true)],
        );
        let elsewhere = by.iter().filter(|node| **node != Some(node_id(LAPTOP))).count();
        // Of who is slower one try says so.
        // Of who is slower two say so.
        assert_eq!(elsewhere, if slow { 2 } else { 0 }, "{by:?}");
        assert_eq!(world.broken, Vec::<String>::new());
    }
}
