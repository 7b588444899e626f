//! Clusters to which everything happens, and what must hold all the same.

use pomona_common::{Class, EngineKnobs, MachineRole, ModelDigests, ModelName, ModelRecord};
use pomona_decide::offload::usual_comfort;
use pomona_decide::{Availability, Command, Keep, ModelPolicy, Presence, Replicas, plan};

use crate::actions::Action;
use crate::client::{End, Request};
use crate::cluster::{self, BEGAN_S, node_id};
use crate::engine::Wedged;
use crate::mac::{DATA, Mac, Person, kinds};
use crate::node::Node;
use crate::quotas;
use crate::wire::Id;
use crate::world::{World, addresses};

pub const COORDINATORS: u64 = 3;
pub const NODES: usize = 5;
const GIB: u64 = 1 << 30;
/// Coordinator 1 and node 0 stand in a cellar where nothing happens.
const CELLAR: (Id, Id) = (Id::Coordinator(1), Id::Node(0));

/// A node with so little memory that one model fits there and two do not.
const SMALL: usize = 4;
const SMALL_GIB: f64 = 7.5;
/// How long the trouble lasts, when everything is well again, and when the run ends, in milliseconds.
const TROUBLE: u64 = 200_000;
const HEALED: u64 = 270_000;
const END: u64 = 310_000;

#[expect(clippy::panic, reason = "the names are written here")]
pub fn model(i: usize) -> ModelName {
    format!("m{i}").parse().unwrap_or_else(|error| panic!("{error}"))
}

pub fn record(i: usize) -> ModelRecord {
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
    commands.extend((0..NODES).map(|node| quotas::make_key(node_id(node))));
    commands
}

pub fn request(model: ModelName, class: Class, tokens: u32) -> Request {
    Request {
        model,
        class,
        prompt: vec![tokens, 7, 7, 7],
        tokens,
    }
}

pub fn ask(coordinator: u64, model: ModelName, class: Class, tokens: u32) -> Action {
    Action::Ask(Id::Coordinator(coordinator), request(model, class, tokens))
}

pub fn world(seed: u64) -> World {
    let known = addresses(COORDINATORS);
    let stored = vec![record(0), record(1)];
    #[expect(clippy::expect_used, reason = "a test holds it")]
    let kinds = kinds(DATA).expect("the data file is as described");
    let nodes = (0..NODES).map(|node| {
        let kind = match role(node) {
            MachineRole::Laptop => "mbp16-m4-max",
            MachineRole::Rack | MachineRole::Rented => "mini-m4-pro",
        };
        let mut mac = Mac::new(kinds[kind].clone());
        if node == SMALL {
            mac.kind.memory_gib.value = SMALL_GIB;
            mac.person.bytes = -2.5e9;
        }
        let comfort = usual_comfort(role(node), &mac.kind.chip);
        let mut node = Node::new(node_id(node), mac, EngineKnobs::default(), stored.clone(), &known);
        node.comfort = comfort.map(|watts| f64::from(watts.get()));
        node
    });
    World::new(seed, COORDINATORS, nodes.collect(), &founding())
}

fn one_of<T: Copy, const N: usize>(world: &mut World, all: [T; N]) -> T {
    all[world.random.between(0, N as u64) as usize]
}

/// Minutes of trouble, drawn from the world's own randomness.
pub fn trouble(world: &mut World) {
    let everybody = world.everybody();
    let mut at = 8_000;
    while at < TROUBLE {
        at += world.random.between(200, 3_000);
        let choice = world.random.between(0, everybody.len() as u64) as usize;
        let id = everybody[choice];
        let safe = id == CELLAR.0 || id == CELLAR.1;
        match world.random.between(0, 17) {
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
            8 => {
                let node = world.random.between(1, NODES as u64) as usize;
                let span = world.random.between(2_000, 30_000);
                let says = one_of(world, [f32::NAN, 10_000.0, -5.0, 60.0]);
                world.at(at, Action::SaysWatts(node, Some(says)));
                world.at(at + span, Action::SaysWatts(node, None));
            }
            9 => {
                let node = world.random.between(1, NODES as u64) as usize;
                let span = one_of(world, [(1_000, 20_000), (30_000, 90_000)]);
                let span = world.random.between(span.0, span.1);
                let says = one_of(world, [95.0, 95.0, f32::NAN, 1_000.0, -3.0]);
                world.at(at, Action::Pressed(node, Some(says)));
                world.at(at + span, Action::Pressed(node, None));
            }
            10 => {
                let node = 1;
                let span = world.random.between(5_000, 60_000);
                let person = Person {
                    builds: world.random.one_in(2),
                    unplugged: world.random.one_in(2),
                    ..Person::default()
                };
                if world.random.one_in(2) {
                    // Some of it goes out meanwhile.
                    let percent = one_of(world, [0.05, 0.3, 8.0, 40.0]);
                    world.at(at, Action::Battery(node, percent));
                }
                world.at(at, Action::Person(node, person));
                world.at(at + span, Action::Person(node, Person::default()));
            }
            11 => {
                let node = world.random.between(1, NODES as u64) as usize;
                world.at(at, Action::Crash(node));
            }
            12 => {
                let other = everybody[world.random.between(0, everybody.len() as u64) as usize];
                let span = world.random.between(2_000, 40_000);
                for (from, to) in [(id, other), (other, id)] {
                    world.at(at, Action::Loses(from, to, true));
                    world.at(at + span, Action::Loses(from, to, false));
                }
            }
            13 => {
                let seconds = one_of(world, [-90_000, -3_600, -5, 7, 3_600, 90_000]);
                world.at(at, Action::Steps(id, seconds));
            }
            14 | 15 => {
                // Some go on by themselves before anybody does anything about it.
                let node = world.random.between(1, NODES as u64) as usize;
                let span = world.random.between(1_000, 70_000);
                let how = one_of(world, [Wedged::Mute, Wedged::Speaks]);
                world.at(at, Action::Wedge(node, Some(how)));
                world.at(at + span, Action::Wedge(node, None));
            }
            16 => {
                let node = world.random.between(1, NODES as u64) as usize;
                let span = world.random.between(2_000, 30_000);
                let says = one_of(world, [(0.0, 0.0), (1e6, 1e6), (1.0, 2.0), (1e6, 0.0)]);
                world.at(at, Action::SaysMemory(node, Some(says)));
                world.at(at + span, Action::SaysMemory(node, None));
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
    while at < TROUBLE {
        at += world.random.between(500, 20_000);
        let approval = (world.random.between(1, 60), world.random.between(0, 20_000));
        let says = match world.random.between(0, 4) {
            0 => Action::SetPrivate(world.random.one_in(2)),
            1 => Action::Approve(None),
            _ => Action::Approve(Some(approval)),
        };
        world.at(at, says);
    }
    at = 6_000;
    while at < TROUBLE {
        at += world.random.between(500, 6_000);
        let number = world.random.between(1, COORDINATORS + 1);
        world.at(at, Action::Spill(number));
    }
    at = 6_000;
    while at < TROUBLE {
        at += world.random.between(200, 4_000);
        let node = world.random.between(0, NODES as u64) as usize;
        let tokens = world.random.between(1, 5_000);
        // Rented machines know no keys.
        if role(node) != MachineRole::Rented {
            world.at(at, Action::Take(node, tokens));
        }
    }
    at = 6_000;
    while at < TROUBLE {
        at += world.random.between(100, 1_500);
        let mut entry = Id::Coordinator(world.random.between(1, COORDINATORS + 1));
        let model = model(world.random.between(0, 2) as usize);
        let class = Class::ALL[world.random.between(0, 3) as usize];
        let tokens = world.random.between(1, 250) as u32;
        if world.random.one_in(3) {
            entry = Id::Node(world.random.between(0, NODES as u64) as usize);
        }
        world.at(at, Action::Ask(entry, request(model, class, tokens)));
    }
}

/// Everything is switched on, awake and connected again.
pub fn heal(world: &mut World, at: u64) {
    let everybody = world.everybody();
    for id in &everybody {
        world.at(at, Action::Steps(*id, 0));
        world.at(at, Action::Wake(*id));
        world.at(at, Action::Stall(*id, false));
        world.at(at, Action::Start(*id));
        if let Id::Node(node) = id {
            world.at(at, Action::SaysWatts(*node, None));
            world.at(at, Action::Pressed(*node, None));
            world.at(at, Action::SaysMemory(*node, None));
            world.at(at, Action::Wedge(*node, None));
        }
        for other in &everybody {
            world.at(at, Action::Cut(*id, *other, false));
            world.at(at, Action::Loses(*id, *other, false));
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

/// What does not hold although all is well again.
pub fn broken(world: &World) -> Vec<String> {
    let agreed = world.agreed();
    let mut broken = world.broken.clone();
    broken.extend(world.miscounts(&agreed));
    let mut check = |holds: bool, text: String| {
        if !holds {
            broken.push(text);
        }
    };
    let (now, now_s) = (world.now, world.now_s());
    for coordinator in &world.coordinators {
        let number = coordinator.number;
        check(
            coordinator.state == agreed,
            format!("coordinator {number} knows something else than was agreed on"),
        );
        let answers = coordinator.answers();
        check(
            answers == 0,
            format!("coordinator {number} still has {answers} answers"),
        );
        for id in agreed.nodes.keys() {
            let presence = coordinator.presence(*id, now);
            let text = format!("{} is {presence:?} at coordinator {number}", id.short());
            check(presence == Presence::Here, text);
        }
        let again = plan(&agreed, &coordinator.inventory(now), now_s).step;
        check(
            again.is_none(),
            format!("the plan does not come to rest: {again:?}"),
        );
    }
    for node in world.nodes.iter().filter(|node| !node.gone) {
        let name = node.id.short();
        let wanted = agreed.plan.nodes.get(&node.id).map(|target| target.models.keys());
        let loaded = node.engine.models().map(|record| &record.name);
        check(
            wanted.is_some_and(|wanted| loaded.eq(wanted)),
            format!("{name} does not hold what is planned"),
        );
        let idle = node.engine.is_empty() && node.orphans() == 0 && node.answers.is_empty();
        check(idle, format!("{name} works on what nobody waits for"));
    }
    for node in world.nodes.iter().filter(|node| node.went_back) {
        check(false, format!("{} went back to an older target", node.id.short()));
    }
    let is_forbidden = |model: &ModelName| {
        let mut kills = world.nodes.iter().filter_map(|node| node.kills.get(model));
        kills.any(|kills| *kills >= 2)
    };
    for (number, client) in &world.clients {
        let holds = match client.end {
            Some(End::Finished | End::WithEntry | End::GivenUp) => true,
            // What has begun is never lost, whatever becomes of machines and coordinators; but where engines were
            // killed twice with its model no machine may be left that is allowed to have it.
            Some(End::Failed { .. }) if client.class == Class::Batch && client.got > 0 => {
                is_forbidden(&client.model)
            }
            // An answer moves three times; one that is still unlucky ends with an error.
            Some(End::Failed { moves: 3 }) => true,
            Some(End::Failed { .. }) => client.entry != Id::Coordinator(1) || !world.has_refuge,
            Some(End::TooLarge) | None => false,
        };
        let end = client.end;
        check(
            holds,
            format!("answer {number}, asked at {}: {end:?}", client.entry),
        );
    }
    broken
}

/// One run: trouble, and a time in which it heals.
pub fn run(seed: u64) -> World {
    let mut world = world(seed);
    trouble(&mut world);
    heal(&mut world, HEALED);
    world.run_until(END);
    // What was committed a moment ago is on its way.
    (1..=COORDINATORS).for_each(|number| world.apply(number));
    world
}

/// Milliseconds of one run.
pub const LENGTH: u64 = END;
