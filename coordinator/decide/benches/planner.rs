//! The planner at the sizes of the issue: the slowest of a hundred plans, at rest, from nothing, after
//! a lost node and when a model is asked for that has no place. The last line is one JSON object.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark"
)]

use std::time::Instant;

use pomona_common::{MachineRole, ModelDigests, ModelRecord, NodeId};
use pomona_decide::{
    ClusterState, Command, Inventory, Keep, ModelPolicy, NodeInventory, PlanOutcome, Replicas, apply, plan,
};
use serde_json::{Map, Value, json};

const GIB: u64 = 1 << 30;
const NOW_S: u64 = 1_000_000;

/// Numbers that look random and are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn record(i: usize, dice: &mut Dice) -> ModelRecord {
    let gib = 1 + dice.below(24);
    ModelRecord {
        name: format!("mlx-community/model-{i:03}-4bit").parse().unwrap(),
        digests: ModelDigests {
            weights: format!("{i:064x}"),
            tokenizer: format!("{:064x}", i / 4),
            template: format!("{:064x}", i / 8),
        },
        weight_bytes: gib * GIB,
        dequantized_bytes: 7 * gib * GIB,
        kv_bytes_per_token: 1 << 16,
        context: 32_768,
        created_s: 0,
    }
}

fn policy(dice: &mut Dice) -> ModelPolicy {
    ModelPolicy {
        replicas: match dice.below(4) {
            0 => Replicas::Everywhere,
            _ => Replicas::Count(1 + dice.below(4) as u32),
        },
        pools: if dice.below(3) == 0 {
            [MachineRole::Rack].into()
        } else {
            [].into()
        },
        spread: dice.below(4) == 0,
        keep: match dice.below(4) {
            0 => Keep::Always,
            1 => Keep::Ttl(3600),
            _ => Keep::WhileThereIsRoom,
        },
        ..ModelPolicy::default()
    }
}

fn world(nodes: usize, models: usize, dice: &mut Dice) -> (ClusterState, Inventory) {
    let mut state = ClusterState::default();
    let records: Vec<ModelRecord> = (0..models).map(|i| record(i, dice)).collect();
    for record in &records {
        // The catalogue has a limit that this benchmark is beyond.
        state.catalogue.insert(record.name.clone(), record.clone());
        state.placement.policies.insert(record.name.clone(), policy(dice));
        state
            .placement
            .used_s
            .insert(record.name.clone(), NOW_S - dice.below(7200));
    }
    let mut inventory = Inventory::new();
    for i in 0..nodes {
        let id = NodeId::from_bits(u128::from(dice.below(u64::MAX)) << 64 | i as u128);
        let name = format!("node-{i}");
        apply(&mut state, &Command::AdmitNode { id, name, now_s: 0 });
        if let Some(record) = state.nodes.get_mut(&id) {
            record.role = MachineRole::ALL[dice.below(3) as usize];
        }
        let total = [16, 32, 64, 128][dice.below(4) as usize] * GIB;
        let stored = records.iter().filter(|_| dice.below(10) < 3).cloned().collect();
        let node = NodeInventory {
            stored,
            memory_total: Some(total),
            memory_available: Some(total),
            kv_budget: 2 * GIB,
            joules_per_token: Some(dice.below(40) as f32 / 10.0),
            ..NodeInventory::default()
        };
        inventory.insert(id, node);
    }
    (state, inventory)
}

fn carry_out(state: &mut ClusterState, inventory: &mut Inventory, outcome: PlanOutcome) -> bool {
    let Some(step) = outcome.step else {
        return false;
    };
    for one in &step.moves {
        let node = inventory.get_mut(&one.node).unwrap();
        let _ = if one.load {
            node.loaded.insert(one.model.clone())
        } else {
            node.loaded.remove(&one.model)
        };
    }
    apply(state, &Command::Replan { step, now_s: NOW_S });
    true
}

/// Milliseconds of one plan.
fn timed(state: &ClusterState, inventory: &Inventory) -> f64 {
    let began = Instant::now();
    let outcome = plan(state, inventory, NOW_S);
    let ms = began.elapsed().as_secs_f64() * 1e3;
    std::hint::black_box(outcome);
    ms
}

fn measure(nodes: usize, models: usize, runs: usize) -> (Value, Value) {
    let mut dice = Dice(42);
    let (mut state, mut inventory) = world(nodes, models, &mut dice);
    let nothing: Vec<f64> = (0..runs).map(|_| timed(&state, &inventory)).collect();
    let mut plans = 0;
    while carry_out_next(&mut state, &mut inventory) {
        plans += 1;
    }
    let rest: Vec<f64> = (0..runs).map(|_| timed(&state, &inventory)).collect();
    let ids: Vec<NodeId> = inventory.keys().copied().collect();
    let lost = (0..runs).map(|i| {
        let mut inventory = inventory.clone();
        inventory.remove(&ids[i % ids.len()]);
        timed(&state, &inventory)
    });
    let lost: Vec<f64> = lost.collect();
    let unplaced: Vec<_> = plan(&state, &inventory, NOW_S).unplaced.into_keys().collect();
    let asked = (0..runs).filter_map(|i| {
        let mut state = state.clone();
        let model = unplaced.get(i % unplaced.len().max(1))?;
        state.placement.used_s.insert(model.clone(), NOW_S);
        Some(timed(&state, &inventory))
    });
    let asked: Vec<f64> = asked.collect();
    let mut figures = Map::new();
    let mut all = Vec::new();
    for (name, samples) in [
        ("from_nothing", &nothing),
        ("at_rest", &rest),
        ("lost_node", &lost),
        ("asked_for", &asked),
    ] {
        figures.insert(format!("{name}_p99_ms"), json!(p99(samples)));
        all.extend_from_slice(samples);
    }
    figures.insert("p99_ms".into(), json!(p99(&all)));
    figures.insert("plans_until_rest".into(), json!(plans));
    let raw = json!({ "from_nothing": nothing, "at_rest": rest, "lost_node": lost, "asked_for": asked });
    (Value::Object(figures), raw)
}

fn carry_out_next(state: &mut ClusterState, inventory: &mut Inventory) -> bool {
    let outcome = plan(state, inventory, NOW_S);
    carry_out(state, inventory, outcome)
}

fn p99(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn main() {
    let (small, small_raw) = measure(64, 50, 400);
    let (large, large_raw) = measure(1000, 200, 100);
    println!(
        "{}",
        json!({
            "figures": { "64_nodes_50_models": small, "1000_nodes_200_models": large },
            "raw": { "64_nodes_50_models_ms": small_raw, "1000_nodes_200_models_ms": large_raw },
            "ran": ["64x50", "1000x200"], "skipped": [],
        })
    );
}
