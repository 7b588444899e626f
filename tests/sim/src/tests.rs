//! Clusters that come through whatever happens.

mod offload;

use pomona_common::{Class, EngineKnobs, MachineRole, ModelDigests, ModelName, ModelRecord};
use pomona_decide::{Availability, Command, Keep, Lease, ModelPolicy, Presence, Replicas, plan};

use crate::actions::Action;
use crate::client::{End, Request};
use crate::cluster::{self, BEGAN_S, node_id};
use crate::mac::{DATA, Mac, kinds};
use crate::node::Node;
use crate::wire::Id;
use crate::world::{World, addresses};

const COORDINATORS: u64 = 3;
const NODES: usize = 5;
const GIB: u64 = 1 << 30;
/// Coordinator 1 and node 0 stand in a cellar where nothing happens.
const CELLAR: (Id, Id) = (Id::Coordinator(1), Id::Node(0));

fn model(i: usize) -> ModelName {
    format!("m{i}").parse().unwrap()
}

fn record(i: usize) -> ModelRecord {
    ModelRecord {
        name: model(i),
        digests: ModelDigests::default(),
        weight_bytes: 2 * GIB,
        dequantized_bytes: 2 * GIB,
        kv_bytes_per_token: 1,
        context: 4096,
        created_s: 0,
    }
}

/// The role that a node plays, by its number.
fn role(node: usize) -> MachineRole {
    [
        MachineRole::Rack,
        MachineRole::Laptop,
        MachineRole::Rack,
        MachineRole::Rented,
    ][node % 4]
}

/// Everybody joins; every node stores both models.
fn founding() -> Vec<Command> {
    let roles: Vec<MachineRole> = (0..NODES).map(role).collect();
    let mut commands = cluster::founding(&roles, &[record(0), record(1)]);
    let policy = ModelPolicy {
        replicas: Replicas::Count(2),
        keep: Keep::Always,
        ..ModelPolicy::default()
    };
    commands.push(cluster::place(model(0), policy));
    commands
}

fn ask(coordinator: u64, model: ModelName, class: Class, tokens: u32) -> Action {
    let request = Request {
        model,
        class,
        prompt: vec![tokens, 7, 7, 7],
        tokens,
    };
    Action::Ask(Id::Coordinator(coordinator), request)
}

fn world(seed: u64) -> World {
    let known = addresses(COORDINATORS);
    let stored = vec![record(0), record(1)];
    let kinds = kinds(DATA).unwrap();
    let nodes = (0..NODES).map(|node| {
        let kind = match role(node) {
            MachineRole::Laptop => "mbp16-m4-max",
            MachineRole::Rack | MachineRole::Rented => "mini-m4-pro",
        };
        let mac = Mac::new(kinds[kind].clone());
        Node::new(node_id(node), mac, EngineKnobs::default(), stored.clone(), &known)
    });
    World::new(seed, COORDINATORS, nodes.collect(), &founding())
}

/// Two hundred seconds of trouble, drawn from the world's own randomness.
fn trouble(world: &mut World) {
    let everybody = world.everybody();
    let mut at = 8_000;
    while at < 200_000 {
        at += world.random.between(200, 3_000);
        let choice = world.random.between(0, everybody.len() as u64) as usize;
        let id = everybody[choice];
        let safe = id == CELLAR.0 || id == CELLAR.1;
        match world.random.between(0, 8) {
            0 | 1 if !safe => {
                let span = world.random.between(500, 60_000);
                world.at(at, Action::Sleep(id));
                world.at(at + span, Action::Wake(id));
            }
            2 if !safe => {
                let span = world.random.between(300, 6_000);
                world.at(at, Action::Stall(id, true));
                world.at(at + span, Action::Stall(id, false));
            }
            3 if !safe => {
                let span = world.random.between(500, 10_000);
                world.at(at, Action::Kill(id));
                world.at(at + span, Action::Start(id));
            }
            4 | 5 => {
                // One way, so that each end believes something else.
                let other = everybody[world.random.between(0, everybody.len() as u64) as usize];
                let span = world.random.between(300, 8_000);
                if (id, other) != CELLAR && (other, id) != CELLAR {
                    world.at(at, Action::Cut(id, other, true));
                    world.at(at + span, Action::Cut(id, other, false));
                }
            }
            6 => {
                let node = world.random.between(1, NODES as u64) as usize;
                let until_s = BEGAN_S + at / 1000 + 5;
                let availability = match world.random.between(0, 3) {
                    0 => Availability::Open,
                    1 => Availability::Cordoned,
                    _ => Availability::Draining { until_s },
                };
                let node = node_id(node);
                world.at(
                    at,
                    Action::Commit(Command::SetAvailability { node, availability }),
                );
            }
            _ => {
                let policy = ModelPolicy {
                    replicas: Replicas::Count(world.random.between(1, 4) as u32),
                    ..ModelPolicy::default()
                };
                let model = model(0);
                world.at(at, Action::Commit(Command::SetPolicy { model, policy }));
            }
        }
    }
    let mut at = 6_000;
    while at < 200_000 {
        at += world.random.between(100, 1_500);
        let coordinator = world.random.between(1, COORDINATORS + 1);
        let model = model(world.random.between(0, 2) as usize);
        let class = Class::ALL[world.random.between(0, 3) as usize];
        let tokens = world.random.between(1, 250) as u32;
        world.at(at, ask(coordinator, model, class, tokens));
    }
}

/// Everything is switched on, awake and connected again.
fn heal(world: &mut World, at: u64) {
    let everybody = world.everybody();
    for id in &everybody {
        world.at(at, Action::Wake(*id));
        world.at(at, Action::Stall(*id, false));
        world.at(at, Action::Start(*id));
        for other in &everybody {
            world.at(at, Action::Cut(*id, *other, false));
        }
    }
    for node in 0..NODES {
        let (node, availability) = (node_id(node), Availability::Open);
        world.at(
            at,
            Action::Commit(Command::SetAvailability { node, availability }),
        );
    }
}

/// What must hold once all is well again.
fn settled(world: &mut World, seed: u64) {
    assert_eq!(world.broken, Vec::<String>::new(), "seed {seed}");
    let agreed = world.agreed();
    let (now, now_s) = (world.now, world.now_s());
    for coordinator in &world.coordinators {
        let number = coordinator.number;
        assert!(
            coordinator.state == agreed,
            "seed {seed}: coordinator {number} knows less"
        );
        assert_eq!(
            coordinator.answers(),
            0,
            "seed {seed}: coordinator {number} still answers"
        );
        for id in agreed.nodes.keys() {
            let presence = coordinator.presence(*id, now);
            assert_eq!(
                presence,
                Presence::Here,
                "seed {seed}: {} at {number}",
                id.short()
            );
        }
        let again = plan(&agreed, &coordinator.inventory(now), now_s).step;
        assert_eq!(again, None, "seed {seed}: the plan does not come to rest");
    }
    for node in world.nodes.iter().filter(|node| !node.gone) {
        let wanted = agreed.plan.nodes[&node.id].models.keys();
        assert!(
            node.engine.models().map(|record| &record.name).eq(wanted),
            "seed {seed}: {} is not as planned",
            node.id.short()
        );
        assert!(node.engine.is_empty(), "seed {seed}: work that nobody waits for");
        assert_eq!(node.orphans(), 0, "seed {seed}");
    }
    for (number, client) in &world.clients {
        match client.end {
            Some(End::Finished | End::WithEntry) => {}
            // An answer moves three times; one that is still unlucky ends with an error.
            Some(End::Failed { moves: 3 }) => {}
            end if client.entry == Id::Coordinator(1) => {
                panic!("seed {seed}: answer {number} of the cellar's coordinator: {end:?}")
            }
            end => assert!(end.is_some(), "seed {seed}: answer {number} never ended"),
        }
    }
}

fn all_finished(world: &World, seed: u64) {
    let mut ends = world.clients.values().map(|client| client.end);
    assert!(ends.all(|end| end == Some(End::Finished)), "seed {seed}");
}

fn run(seed: u64) -> World {
    let mut world = world(seed);
    trouble(&mut world);
    heal(&mut world, 270_000);
    world.run_until(310_000);
    world
}

/// Seeds of a run: more of them when a number is given.
fn seeds() -> u64 {
    let wanted = std::env::var("POMONA_TEST_SEEDS").ok();
    wanted.and_then(|text| text.parse().ok()).unwrap_or(40)
}

#[test]
fn clusters_come_through_whatever_happens() {
    let (mut finished, mut all) = (0, 0);
    for seed in 0..seeds() {
        let mut world = run(seed);
        settled(&mut world, seed);
        all += world.clients.len();
        let ends = world.clients.values().map(|client| client.end);
        finished += ends.filter(|end| *end == Some(End::Finished)).count();
    }
    println!("{finished} of {all} answers finished");
    assert!(finished * 10 > all * 8, "{finished} of {all} answers finished");
}

#[test]
fn a_seed_gives_the_same_history_byte_by_byte() {
    for seed in 0..4 {
        let (one, other) = (run(seed), run(seed));
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
        world.at(
            1_000,
            Action::Commit(Command::SetPolicy {
                model: model(0),
                policy,
            }),
        );
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
        settled(&mut world, seed);
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
        settled(&mut world, seed);
        all_finished(&world, seed);
    }
}
