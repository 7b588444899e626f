//! Engines that stand still and batteries that go out: nobody says a word of either.

use pomona_common::Class;
use pomona_decide::{Command, ModelPolicy, Presence};

use super::{all_finished, settled};
use crate::actions::Action;
use crate::cluster::node_id;
use crate::engine::Wedged;
use crate::mac::Person;
use crate::trouble::{COORDINATORS, ask, model, request, world};
use crate::wire::Id;
use crate::world::World;

const LAPTOP: usize = 1;

/// A model of which a replica is at the laptop, and answers that go on for half a minute.
fn busy(seed: u64) -> World {
    let mut world = world(seed);
    let policy = ModelPolicy {
        pins: [node_id(LAPTOP)].into(),
        ..ModelPolicy::default()
    };
    let model = model(0);
    world.at(1_000, Action::Commit(Command::SetPolicy { model, policy }));
    for i in 0..12 {
        world.at(
            9_000 + i * 50,
            ask(
                1 + i % 3,
                crate::trouble::model(0),
                Class::ALL[i as usize % 3],
                2_000,
            ),
        );
    }
    world
}

#[test]
fn an_engine_that_is_wedged_is_started_anew_and_one_that_goes_on_is_not() {
    for seed in 0..10 {
        let (how, found) = match seed % 2 {
            0 => (Wedged::Mute, 62_000),
            _ => (Wedged::Speaks, 150_000),
        };
        let mut world = busy(seed);
        world.at(12_000, Action::Wedge(LAPTOP, Some(how)));
        world.run_until(50_000);
        assert_eq!(
            world.nodes[LAPTOP].wedged, 0,
            "seed {seed}: slow steps are no standstill"
        );
        assert!(world.nodes[LAPTOP].engine.is_wedged());
        world.run_until(found);
        assert_eq!(world.nodes[LAPTOP].wedged, 1, "seed {seed}");
        assert!(!world.nodes[LAPTOP].engine.is_wedged());
        world.run_until(250_000);
        settled(&world, seed);
        all_finished(&world, seed);

        let mut world = busy(seed);
        world.at(12_000, Action::Wedge(LAPTOP, Some(how)));
        world.at(40_000, Action::Wedge(LAPTOP, None));
        world.run_until(250_000);
        assert_eq!(world.nodes[LAPTOP].wedged, 0, "seed {seed}");
        settled(&world, seed);
        all_finished(&world, seed);
    }
}

#[test]
fn a_battery_that_goes_out_takes_no_answer_with_it() {
    for seed in 0..10 {
        let mut world = busy(seed);
        let unplugged = Person {
            unplugged: true,
            ..Person::default()
        };
        world.at(12_000, Action::Battery(LAPTOP, 0.05));
        world.at(12_000, Action::Person(LAPTOP, unplugged));
        world.run_until(100_000);
        let presence = world.coordinators[0].presence(node_id(LAPTOP), world.now);
        assert_eq!(presence, Presence::Away, "seed {seed}");
        world.at(100_000, Action::Person(LAPTOP, Person::default()));
        world.run_until(250_000);
        let presence = world.coordinators[0].presence(node_id(LAPTOP), world.now);
        assert_eq!(presence, Presence::Here, "seed {seed}");
        settled(&world, seed);
        all_finished(&world, seed);
    }
}

/// What waits where memory is short makes no progress, and is no standstill; nobody is there who would move it.
#[test]
fn an_engine_that_begins_nothing_for_want_of_memory_is_not_taken_for_wedged() {
    for seed in 0..5 {
        let mut world = busy(seed);
        world.run_until(30_000);
        for number in 1..=COORDINATORS {
            let (node, coordinator) = (Id::Node(LAPTOP), Id::Coordinator(number));
            for (from, to) in [(node, coordinator), (coordinator, node)] {
                world.at(30_000, Action::Cut(from, to, true));
                world.at(300_000, Action::Cut(from, to, false));
            }
        }
        for i in 0..20 {
            let of_batch = request(model(0), Class::Batch, 400);
            world.at(45_000 + i, Action::Ask(Id::Node(LAPTOP), of_batch));
        }
        world.at(46_000, Action::Pressed(LAPTOP, Some(90.0)));
        world.run_until(240_000);
        assert!(
            !world.nodes[LAPTOP].engine.is_empty(),
            "seed {seed}: something waits"
        );
        assert_eq!(world.nodes[LAPTOP].wedged, 0, "seed {seed}");
        world.at(240_000, Action::Pressed(LAPTOP, None));
        world.run_until(400_000);
        settled(&world, seed);
        all_finished(&world, seed);
    }
}
