//! The planner against its promises, on made-up clusters.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    missing_docs,
    reason = "a test"
)]

use std::collections::BTreeSet;

use pomona_common::conditions::Supply;
use pomona_common::gate::{Gate, Stage};
use pomona_common::{MachineRole, ModelDigests, ModelName, ModelRecord, NodeId};
use pomona_decide::planner::{MOVES, RESERVE_BYTES};
use pomona_decide::{
    Availability, ClusterState, Command, Inventory, Keep, ModelPolicy, Move, NodeInventory, PlanOutcome,
    Replicas, Reply, Transition, Verdict, apply, explain, plan,
};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;
const NOW_S: u64 = 1_000_000;

fn name(i: usize) -> ModelName {
    format!("m{i:02}").parse().unwrap()
}

fn node(i: usize) -> NodeId {
    NodeId::from_bits(i as u128)
}

fn record(i: usize, gib: u64) -> ModelRecord {
    ModelRecord {
        name: name(i),
        digests: ModelDigests {
            weights: "w".into(),
            tokenizer: "t".into(),
            template: "c".into(),
        },
        weight_bytes: gib * GIB,
        dequantized_bytes: 8 * gib * GIB,
        kv_bytes_per_token: 1,
        context: 1024,
        created_s: 0,
    }
}

/// A cluster whose nodes do at once what the plan says.
struct World {
    state: ClusterState,
    inventory: Inventory,
    now_s: u64,
}

impl World {
    fn new(sizes: &[u64]) -> Self {
        let mut state = ClusterState::default();
        for (i, gib) in sizes.iter().enumerate() {
            apply(&mut state, &Command::AddModel(record(i, *gib)));
        }
        Self {
            state,
            inventory: Inventory::new(),
            now_s: NOW_S,
        }
    }

    /// A node that stores these models, with so many gibibytes.
    fn add(&mut self, i: usize, role: MachineRole, gib: u64, stored: impl IntoIterator<Item = usize>) {
        let admitted = Command::AdmitNode {
            id: node(i),
            name: format!("n{i}"),
            now_s: 0,
        };
        apply(&mut self.state, &admitted);
        self.state.nodes.get_mut(&node(i)).unwrap().role = role;
        let stored = stored
            .into_iter()
            .filter_map(|i| self.state.catalogue.get(&name(i)).cloned())
            .collect();
        let inventory = NodeInventory {
            stored,
            memory_total: Some(gib * GIB),
            memory_available: Some(gib * GIB),
            kv_budget: GIB,
            ..NodeInventory::default()
        };
        self.inventory.insert(node(i), inventory);
    }

    /// A node stores one more model; gives what it says of itself.
    fn stores_also(&mut self, i: usize, model: usize) -> &mut NodeInventory {
        let record = self.state.catalogue[&name(model)].clone();
        let inventory = self.inventory.get_mut(&node(i)).unwrap();
        inventory.stored.push(record);
        inventory
    }

    fn policy(&mut self, i: usize, policy: ModelPolicy) {
        let model = name(i);
        apply(&mut self.state, &Command::SetPolicy { model, policy });
    }

    fn used(&mut self, i: usize, ago_s: u64) {
        let (models, now_s) = (vec![name(i)], self.now_s - ago_s);
        apply(&mut self.state, &Command::UseModels { models, now_s });
    }

    fn plan(&self) -> PlanOutcome {
        plan(&self.state, &self.inventory, self.now_s)
    }

    /// Carries out one plan; `false` when the present one stands.
    fn step(&mut self) -> bool {
        let outcome = self.plan();
        assert_eq!(outcome, self.plan(), "the same inventory, the same plan");
        let Some(step) = outcome.step else {
            return false;
        };
        assert!(step.moves.len() <= MOVES);
        let before = self.state.plan.clone();
        let command = Command::Replan {
            step: step.clone(),
            now_s: self.now_s,
        };
        assert_eq!(apply(&mut self.state, &command), Reply::Done);
        assert!(
            matches!(apply(&mut self.state, &command), Reply::Refused(_)),
            "once"
        );
        self.check_moves(&before, &step.moves);
        true
    }

    /// The moves are the difference between the plans, no more and no less.
    fn check_moves(&self, before: &pomona_common::plan::Plan, moves: &[Move]) {
        let holds = |plan: &pomona_common::plan::Plan| -> BTreeSet<(NodeId, ModelName)> {
            let targets = plan.nodes.iter();
            targets
                .flat_map(|(id, target)| target.models.keys().map(|name| (*id, name.clone())))
                .collect()
        };
        let mut expected = holds(before);
        for step in moves {
            let place = (step.node, step.model.clone());
            if step.load {
                assert!(expected.insert(place), "{step:?} is loaded twice");
            } else {
                assert!(expected.remove(&place), "{step:?} is not there");
            }
        }
        assert_eq!(expected, holds(&self.state.plan));
    }

    /// What nodes hold now answers.
    fn obey(&mut self) {
        for (id, inventory) in &mut self.inventory {
            let target = self.state.plan.nodes.get(id);
            inventory.loaded = target
                .map(|target| target.models.keys().cloned().collect())
                .unwrap_or_default();
            let used: u64 = inventory
                .loaded
                .iter()
                .map(|name| self.state.catalogue[name].weight_bytes)
                .sum();
            let total = inventory.memory_total.unwrap();
            inventory.memory_available = Some(total.saturating_sub(used));
        }
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            if !self.step() {
                return;
            }
            self.obey();
        }
        panic!("the plan does not come to rest");
    }

    fn holders(&self, i: usize) -> Vec<usize> {
        let targets = self.state.plan.nodes.iter();
        targets
            .filter(|(_, target)| target.models.contains_key(&name(i)))
            .map(|(id, _)| id.bits() as usize)
            .collect()
    }
}

fn roles() -> impl Strategy<Value = MachineRole> {
    prop::sample::select(MachineRole::ALL.to_vec())
}

fn policies() -> impl Strategy<Value = ModelPolicy> {
    (
        prop_oneof![Just(Replicas::Everywhere), (0..4u32).prop_map(Replicas::Count)],
        prop::collection::btree_set(roles(), 0..3),
        prop::collection::btree_set((0..6usize).prop_map(node), 0..2),
        any::<bool>(),
        prop_oneof![
            Just(Keep::WhileThereIsRoom),
            (1..500u64).prop_map(Keep::Ttl),
            Just(Keep::Always)
        ],
    )
        .prop_map(|(replicas, pools, pins, spread, keep)| ModelPolicy {
            replicas,
            pools,
            pins,
            spread,
            keep,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Plans come to rest, fit, follow policy, and a node more removes nothing; a lost node is
    /// replaced where that can be.
    #[test]
    fn plans_settle_fit_follow_policy_and_are_monotone(
        sizes in prop::collection::vec(1..8u64, 0..10),
        nodes in prop::collection::vec((roles(), 1..40u64, prop::collection::btree_set(0..10usize, 0..10), 0..5u8), 0..6),
        policies in prop::collection::vec(prop::option::of(policies()), 10),
        used in prop::collection::vec(prop::option::of(0..1000u64), 10),
        lost in 0..6usize,
    ) {
        let mut world = World::new(&sizes);
        for (i, (role, gib, stored, what)) in nodes.iter().enumerate() {
            world.add(i, *role, *gib, stored.iter().copied());
            let availability = match what {
                0 => Availability::Cordoned,
                1 => Availability::Draining { until_s: NOW_S + 100 },
                _ => Availability::Open,
            };
            apply(&mut world.state, &Command::SetAvailability { node: node(i), availability });
        }
        for i in 0..sizes.len() {
            if let Some(policy) = &policies[i] {
                world.policy(i, policy.clone());
            }
            if let Some(ago_s) = used[i] {
                world.used(i, ago_s);
            }
        }
        world.settle();
        for (id, inventory) in &world.inventory {
            let placed: u64 = world.state.plan.nodes[id].models.keys().map(|name| world.state.catalogue[name].weight_bytes).sum();
            let room = inventory.memory_total.unwrap().saturating_sub(RESERVE_BYTES + inventory.kv_budget);
            prop_assert!(placed <= room);
            for name in world.state.plan.nodes[id].models.keys() {
                prop_assert!(inventory.stored.iter().any(|stored| stored.name == *name));
                let policy = world.state.placement.policy(name);
                let role = world.state.nodes[id].role;
                prop_assert!(policy.pools.is_empty() || policy.pools.contains(&role) || policy.pins.contains(id));
                prop_assert!(world.state.placement.availability(*id) == Availability::Open, "nothing new");
            }
        }
        for i in 0..sizes.len() {
            let policy = world.state.placement.policy(&name(i));
            let idle = matches!(policy.keep, Keep::Ttl(ttl_s) if NOW_S - world.state.placement.used_s(&name(i)) > ttl_s + world.state.placement.use_step_s(&name(i)));
            let holders = world.holders(i).len();
            let explained = explain(&world.state, &world.inventory, &name(i), NOW_S).unwrap();
            let could = explained.nodes.iter().any(|(_, verdict)| matches!(verdict, Verdict::Could(_)));
            match policy.replicas {
                _ if idle => prop_assert_eq!(holders, 0),
                Replicas::Everywhere => prop_assert!(!could, "{:?}", explained),
                Replicas::Count(count) => {
                    prop_assert!(holders <= (count as usize).max(policy.pins.len()));
                    prop_assert!(holders >= count as usize || !could, "{:?}", explained);
                }
            }
        }
        // A node more.
        let before = world.state.plan.clone();
        world.add(90, MachineRole::Rack, 512, 0..10);
        let grown = world.plan().step.unwrap_or_default();
        prop_assert!(grown.moves.iter().all(|step| step.load), "{:?}", grown.moves);
        world.settle();
        for (id, target) in &before.nodes {
            prop_assert!(target.models.keys().all(|name| world.state.plan.nodes[id].models.contains_key(name)));
        }
        // A node less: nobody else loses anything at once.
        world.inventory.remove(&node(lost));
        world.settle();
        for i in 0..sizes.len() {
            let explained = explain(&world.state, &world.inventory, &name(i), NOW_S).unwrap();
            let could = explained.nodes.iter().any(|(_, verdict)| matches!(verdict, Verdict::Could(_)));
            let here = explained.nodes.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Holds { loaded: Some(true), .. })).count();
            let policy = world.state.placement.policy(&name(i));
            if let (Replicas::Count(count), Keep::WhileThereIsRoom | Keep::Always) = (policy.replicas, policy.keep) {
                prop_assert!(here >= count as usize || !could, "{} of {count}: {:?}", here, explained);
            }
        }
        // Who was revoked has no target, though it may still be connected for a moment.
        for id in world.inventory.keys().copied().collect::<Vec<_>>() {
            apply(&mut world.state, &Command::RevokeNode { node: id, now_s: 1 });
            prop_assert!(!world.state.plan.nodes.contains_key(&id));
            let next = world.plan().step.unwrap_or_default();
            prop_assert!(next.moves.iter().all(|step| step.node != id) && !next.welcome.contains(&id));
        }
    }
}

#[test]
fn a_drained_node_keeps_its_replica_until_another_answers() {
    let mut world = World::new(&[2]);
    world.add(1, MachineRole::Laptop, 16, [0]);
    world.policy(
        0,
        ModelPolicy {
            replicas: Replicas::Count(1),
            ..ModelPolicy::default()
        },
    );
    world.settle();
    world.add(2, MachineRole::Rack, 16, [0]);
    let drain = Command::SetAvailability {
        node: node(1),
        availability: Availability::Draining { until_s: NOW_S + 60 },
    };
    apply(&mut world.state, &drain);
    assert!(world.step());
    assert_eq!(world.holders(0), [1, 2], "make before break");
    assert!(!world.step(), "the other one does not answer yet");
    world.obey();
    world.inventory.get_mut(&node(1)).unwrap().busy = [name(0)].into();
    assert!(!world.step(), "what runs may finish");
    world.inventory.get_mut(&node(1)).unwrap().busy.clear();
    assert!(world.step());
    assert_eq!(world.holders(0), [2]);
    // Nobody else has it: the deadline decides.
    let drain = Command::SetAvailability {
        node: node(2),
        availability: Availability::Draining { until_s: NOW_S + 60 },
    };
    apply(&mut world.state, &drain);
    world.settle();
    assert_eq!(world.holders(0), [2]);
    world.now_s = NOW_S + 60;
    world.settle();
    assert!(world.holders(0).is_empty());
}

#[test]
fn the_model_that_is_asked_for_takes_the_place_of_the_one_that_is_not() {
    let mut world = World::new(&[6, 6, 6]);
    world.add(1, MachineRole::Rack, 16, [0, 1, 2]);
    world.used(0, 4000);
    world.used(1, 3000);
    world.settle();
    assert_eq!(
        (world.holders(0), world.holders(1), world.holders(2)),
        (vec![1], vec![1], vec![])
    );
    assert!(
        world.plan().unplaced[&name(2)].contains("GiB"),
        "{:?}",
        world.plan().unplaced
    );
    world.used(2, 0);
    world.settle();
    assert_eq!(
        (world.holders(0), world.holders(1), world.holders(2)),
        (vec![], vec![1], vec![1])
    );
    let reasons: Vec<&str> = world
        .state
        .placement
        .history
        .back()
        .unwrap()
        .moves
        .iter()
        .map(|step| step.reason.as_str())
        .collect();
    assert!(reasons[0].contains("`m02` was asked for"), "{reasons:?}");
    // One that works, is kept, or was in use a moment ago stays.
    world.inventory.get_mut(&node(1)).unwrap().busy = [name(1)].into();
    world.used(0, 0);
    world.settle();
    assert_eq!(world.holders(0), Vec::<usize>::new());
}

#[test]
fn a_model_with_a_time_to_live_comes_with_a_request_and_goes_after_it() {
    let mut world = World::new(&[2]);
    world.add(1, MachineRole::Rack, 16, [0]);
    world.policy(
        0,
        ModelPolicy {
            keep: Keep::Ttl(300),
            ..ModelPolicy::default()
        },
    );
    world.settle();
    assert!(world.holders(0).is_empty());
    world.used(0, 0);
    world.settle();
    assert_eq!(world.holders(0), [1]);
    world.now_s += 361;
    world.inventory.get_mut(&node(1)).unwrap().busy = [name(0)].into();
    world.settle();
    assert_eq!(world.holders(0), [1], "it works");
    world.inventory.get_mut(&node(1)).unwrap().busy.clear();
    world.settle();
    assert!(world.holders(0).is_empty());
}

#[test]
fn points_prefer_racks_mains_cool_and_other_pools() {
    let mut world = World::new(&[2]);
    world.add(1, MachineRole::Laptop, 32, [0]);
    world.add(2, MachineRole::Rack, 32, [0]);
    world.add(3, MachineRole::Rack, 32, [0]);
    let two = |spread| ModelPolicy {
        replicas: Replicas::Count(2),
        spread,
        ..ModelPolicy::default()
    };
    let mut spread = World {
        state: world.state.clone(),
        inventory: world.inventory.clone(),
        now_s: NOW_S,
    };
    world.policy(0, two(false));
    world.settle();
    assert_eq!(world.holders(0), [2, 3]);
    spread.policy(0, two(true));
    spread.settle();
    assert_eq!(spread.holders(0), [1, 2]);

    let mut world = World::new(&[2]);
    for i in 1..4 {
        world.add(i, MachineRole::Laptop, 32, [0]);
    }
    world.inventory.get_mut(&node(1)).unwrap().supply = Some(Supply::Battery);
    world.inventory.get_mut(&node(2)).unwrap().thermal = Some(pomona_common::report::Thermal::Serious);
    world.policy(
        0,
        ModelPolicy {
            replicas: Replicas::Count(1),
            ..ModelPolicy::default()
        },
    );
    world.settle();
    assert_eq!(world.holders(0), [3]);
    let explained = explain(&world.state, &world.inventory, &name(0), NOW_S).unwrap();
    assert!(
        explained.nodes[0].1.to_string().contains("battery -300"),
        "{}",
        explained.nodes[0].1
    );
}

#[test]
fn a_machine_that_does_not_say_how_much_memory_it_has_gets_nothing_new() {
    let mut world = World::new(&[2, 2]);
    world.add(1, MachineRole::Rack, 32, [0]);
    world.settle();
    let inventory = world.stores_also(1, 1);
    inventory.memory_total = None;
    world.settle();
    assert_eq!((world.holders(0), world.holders(1)), (vec![1], vec![]));
    let why = &world.plan().unplaced[&name(1)];
    assert!(why.contains("does not say how much memory it has"), "{why}");
}

#[test]
fn pressure_keeps_new_models_away_and_old_ones_in_place() {
    let mut world = World::new(&[2, 2]);
    world.add(1, MachineRole::Rack, 32, [0]);
    world.settle();
    let inventory = world.stores_also(1, 1);
    inventory.pressure = Some(92.0);
    world.settle();
    assert_eq!((world.holders(0), world.holders(1)), (vec![1], vec![]));
    assert!(world.plan().unplaced[&name(1)].contains("pressure 92 %"));
    let inventory = world.inventory.get_mut(&node(1)).unwrap();
    inventory.pressure = Some(10.0);
    inventory.memory_available = Some(2 * GIB);
    world.step();
    assert!(world.holders(1).is_empty(), "{:?}", world.plan().unplaced);
    world.obey();
    world.settle();
    assert_eq!(world.holders(1), [1]);
}

#[test]
fn a_model_is_brought_only_to_a_disk_with_room_for_it() {
    let mut world = World::new(&[8, 8]);
    world.add(0, MachineRole::Rack, 64, [0, 1]);
    world.add(1, MachineRole::Rack, 64, []);
    for i in [0, 1] {
        let replicas = Replicas::Count(2);
        world.policy(
            i,
            ModelPolicy {
                replicas,
                ..ModelPolicy::default()
            },
        );
    }
    world.inventory.get_mut(&node(0)).unwrap().serves = true;
    // Room for one of the two beside the reserve; both would be brought there by the same plan.
    world.inventory.get_mut(&node(1)).unwrap().disk_free = Some(19 * GIB);
    world.step();
    let holders = [0, 1].map(|i| world.holders(i).len());
    assert_eq!(holders, [2, 1]);
    let explained = explain(&world.state, &world.inventory, &name(1), world.now_s).unwrap();
    assert!(format!("{explained:?}").contains("NoDisk"), "{explained:?}");
}

/// A gate of a node acts.
fn gate(world: &mut World, i: usize, gate: Gate, to: Stage, model: usize) {
    let of_kills = gate == Gate::Kills;
    let transition = Transition {
        number: 0,
        node: node(i),
        subject: (gate, of_kills.then(|| name(model))),
        from: Stage::Clear,
        to,
        at_s: world.now_s,
        reason: String::new(),
        samples: Vec::new(),
        relocates: (!of_kills).then(|| name(model)),
        ticket: None,
    };
    let command = Command::PassGate(Box::new(transition));
    assert_eq!(apply(&mut world.state, &command), Reply::Done);
}

#[test]
fn a_model_that_kills_engines_leaves_at_once_and_is_not_placed_there_again() {
    let mut world = World::new(&[1]);
    world.add(1, MachineRole::Rack, 32, [0]);
    world.settle();
    assert_eq!(world.holders(0), [1]);
    gate(&mut world, 1, Gate::Kills, Stage::Tripped, 0);
    world.settle();
    assert!(world.holders(0).is_empty(), "it kills whatever asks for it");
    let why = &world.plan().unplaced[&name(0)];
    assert!(why.contains("killed"), "{why}");
    world.add(2, MachineRole::Rack, 32, [0]);
    world.settle();
    assert_eq!(world.holders(0), [2]);
}

#[test]
fn a_model_that_is_relocated_leaves_when_another_node_answers_for_it() {
    let mut world = World::new(&[1]);
    world.add(1, MachineRole::Laptop, 32, [0]);
    world.settle();
    gate(&mut world, 1, Gate::Residency, Stage::Escalated, 0);
    world.settle();
    assert_eq!(world.holders(0), [1], "nobody else has it");
    world.add(2, MachineRole::Rack, 32, [0]);
    world.settle();
    assert_eq!(world.holders(0), [2]);
}

#[test]
fn a_model_that_is_relocated_comes_back_when_nobody_else_has_it_or_somebody_pins_it() {
    for pinned in [false, true] {
        let mut world = World::new(&[1]);
        world.add(1, MachineRole::Laptop, 32, [0]);
        world.settle();
        gate(&mut world, 1, Gate::Residency, Stage::Escalated, 0);
        world.add(2, MachineRole::Rack, 32, [0]);
        world.settle();
        assert_eq!(world.holders(0), [2]);
        if pinned {
            let policy = ModelPolicy {
                pins: [node(1)].into(),
                ..ModelPolicy::default()
            };
            world.policy(0, policy);
            world.settle();
            assert_eq!(world.holders(0), [1, 2]);
        } else {
            world.inventory.remove(&node(2));
            let (node, now_s) = (node(2), NOW_S);
            apply(&mut world.state, &Command::RevokeNode { node, now_s });
            world.settle();
            assert!(world.holders(0).is_empty(), "its memory is full still");
            world.state.gates.open.clear();
            world.settle();
            assert_eq!(world.holders(0), [1]);
        }
    }
}
