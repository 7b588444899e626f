//! Engines that stand still and batteries that go out: nobody says a word of either.

use pomona_common::Class;
use pomona_decide::{Command, ModelPolicy, Presence};

use super::{all_finished, settled};
use crate::actions::Action;
use crate::cluster::node_id;
use crate::mac::Person;
use crate::trouble::{ask, model, world};
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
        let mut world = busy(seed);
        world.at(12_000, Action::Wedge(LAPTOP, true));
        world.run_until(50_000);
        assert_eq!(
            world.nodes[LAPTOP].wedged, 0,
            "seed {seed}: slow steps are no standstill"
        );
        assert!(world.nodes[LAPTOP].engine.is_wedged());
        world.run_until(62_000);
        assert_eq!(world.nodes[LAPTOP].wedged, 1, "seed {seed}");
        assert!(!world.nodes[LAPTOP].engine.is_wedged());
        world.run_until(200_000);
        settled(&world, seed);
        all_finished(&world, seed);

        let mut world = busy(seed);
        world.at(12_000, Action::Wedge(LAPTOP, true));
        world.at(40_000, Action::Wedge(LAPTOP, false));
        world.run_until(200_000);
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
        world.run_until(200_000);
        let presence = world.coordinators[0].presence(node_id(LAPTOP), world.now);
        assert_eq!(presence, Presence::Here, "seed {seed}");
        settled(&world, seed);
        all_finished(&world, seed);
    }
}
