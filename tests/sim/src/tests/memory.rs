//! A laptop whose memory gets short, in the simulator: what no person uses there makes room.

use std::collections::BTreeMap;

use pomona_common::{Class, Rung};
use pomona_decide::{Command, ModelPolicy, Replicas};

use super::{all_finished, seeds, settled};
use crate::actions::Action;
use crate::client::Request;
use crate::cluster::node_id;
use crate::trouble::{model, request, world};
use crate::wire::Id;

const LAPTOP: usize = 1;

#[test]
fn where_memory_stays_short_what_no_person_uses_makes_room_for_an_hour() {
    for seed in 0..(seeds() / 20).max(1) {
        let mut world = world(seed);
        for i in 0..2 {
            let policy = ModelPolicy {
                replicas: Replicas::Everywhere,
                ..ModelPolicy::default()
            };
            let model = model(i);
            world.at(1_000, Action::Commit(Command::SetPolicy { model, policy }));
        }
        let ask = |i, class| -> Request { request(model(i), class, 20) };
        for i in 0..60 {
            // Its person uses one of them, and other people's batch work both.
            world.at(
                15_000 + i * 10_000,
                Action::Ask(Id::Node(LAPTOP), ask(0, Class::Interactive)),
            );
            let of_batch = ask(i as usize % 2, Class::Batch);
            world.at(15_500 + i * 10_000, Action::Ask(Id::Coordinator(1), of_batch));
        }
        world.at(60_000, Action::Pressed(LAPTOP, Some(90.0)));
        world.at(450_000, Action::Pressed(LAPTOP, None));
        let holds = |world: &crate::world::World| [0, 1].map(|i| world.nodes[LAPTOP].engine.has(&model(i)));
        world.run_until(59_000);
        assert_eq!(holds(&world), [true, true], "seed {seed}");
        // A leader watches for five minutes what people use before it takes anything away.
        world.run_until(290_000);
        assert_eq!(holds(&world), [true, true], "seed {seed}");
        world.run_until(440_000);
        assert_eq!(holds(&world), [true, false], "seed {seed}");
        let agreed = world.agreed();
        assert_eq!(agreed.relief(node_id(LAPTOP)).rung, Rung::Unload, "seed {seed}");
        world.run_until(900_000);
        settled(&world, seed);
        all_finished(&world, seed);
        assert_eq!(
            holds(&world),
            [true, false],
            "seed {seed}: it would be short again"
        );
        assert_eq!(
            world.agreed().relief(node_id(LAPTOP)).rung,
            Rung::Normal,
            "seed {seed}"
        );
        let unloads = world.rungs.iter().filter(|(.., to)| *to == Rung::Unload);
        let of_nodes: BTreeMap<_, usize> = unloads.fold(BTreeMap::new(), |mut all, (_, node, ..)| {
            *all.entry(*node).or_default() += 1;
            all
        });
        assert_eq!(of_nodes, [(node_id(LAPTOP), 1)].into(), "seed {seed}");
        world.run_until(4_200_000);
        assert_eq!(holds(&world), [true, true], "seed {seed}: an hour later");
    }
}
