//! The machines of the team, and what is to run on them.

use pomona_common::{EngineKnobs, MachineRole, ModelDigests, ModelName, ModelRecord, Watts};
use pomona_decide::offload::usual_comfort;
use pomona_decide::{Keep, ModelPolicy, Replicas};
use pomona_tests::Random;

use crate::cluster::{founding, node_id, place};
use crate::mac::{DATA, Kind, Mac, kinds};
use crate::node::Node;
use crate::policy::{Policy, Tuning};
use crate::world::{World, addresses};

const GIB: u64 = 1 << 30;
/// What the system, the models and a person's programs take of the memory, in GiB: of what is left a kind's owners give
/// the same share for KV caches.
const TAKEN_GIB: f64 = 10.0;
/// Kinds of Mac by the names of `macs.toml`, with the memory for KV caches that their owners give, in GiB.
const FLEET: [(&str, u64); 12] = [
    ("air-m4", 3),
    ("air-m4", 3),
    ("mbp14-m4-pro", 16),
    ("mbp14-m4-pro", 16),
    ("mbp14-m4-pro", 16),
    ("mbp14-m4-pro", 16),
    ("mbp16-m4-max", 24),
    ("mbp16-m4-max", 24),
    ("mini-m4-pro", 24),
    ("mini-m4-pro", 24),
    ("mini-m4-pro", 24),
    ("mini-m4-pro", 24),
];
/// The first ones have people.
pub const PEOPLE: usize = 8;
/// Each number of a machine is within this share of the usual one.
const SPREAD: f64 = 0.3;

/// What an editor asks for its completions: Qwen2.5-Coder-1.5B in 4 bit (28 layers, 2 KV heads of 128, f16).
pub fn editor() -> ModelRecord {
    record("editor-1.5b", 870_000_000, 28_672, 32_768)
}

/// What agents and batches ask: Llama-3.1-8B in 4 bit (32 layers, 8 KV heads of 128, f16).
pub fn agent() -> ModelRecord {
    record("agent-8b", 4_520_000_000, 131_072, 32_768)
}

#[expect(clippy::panic, reason = "the names are written above")]
fn record(name: &str, weight_bytes: u64, kv_bytes_per_token: u64, context: u32) -> ModelRecord {
    ModelRecord {
        name: name
            .parse::<ModelName>()
            .unwrap_or_else(|error| panic!("{error}")),
        digests: ModelDigests::default(),
        weight_bytes,
        dequantized_bytes: weight_bytes * 4,
        kv_bytes_per_token,
        context,
        created_s: 0,
    }
}

/// One machine of the team.
#[derive(Debug, Clone)]
pub struct Machine {
    pub mac: Mac,
    pub knobs: EngineKnobs,
    pub comfort: Option<Watts>,
}

/// The team's machines, as this seed draws them.
pub fn machines(seed: u64) -> anyhow::Result<Vec<Machine>> {
    let kinds = kinds(DATA)?;
    let mut random = Random::new(seed);
    let machine = |(name, gib): &(&str, u64)| {
        let usual = &kinds[*name];
        let kind = usual.drawn(&mut random, SPREAD);
        let left = |kind: &Kind| (kind.memory_gib.value - TAKEN_GIB).max(1.0);
        let kv_gib = *gib as f64 * left(&kind) / left(usual);
        Machine {
            comfort: usual_comfort(kind.role, &kind.chip),
            mac: Mac::new(kind),
            knobs: EngineKnobs {
                kv_budget_bytes: (kv_gib * GIB as f64) as u64,
                ..EngineKnobs::default()
            },
        }
    };
    Ok(FLEET.iter().map(machine).collect())
}

/// The cluster of these machines with one coordinator; everything is everywhere.
pub fn world(seed: u64, machines: &[Machine], policy: Policy, tuning: Tuning) -> World {
    let known = addresses(1);
    let models = [editor(), agent()];
    let roles: Vec<MachineRole> = machines.iter().map(|machine| machine.mac.kind.role).collect();
    let mut commands = founding(&roles, &models);
    let everywhere = ModelPolicy {
        replicas: Replicas::Everywhere,
        keep: Keep::Always,
        ..ModelPolicy::default()
    };
    commands.extend(
        models
            .iter()
            .map(|model| place(model.name.clone(), everywhere.clone())),
    );
    let nodes = machines.iter().enumerate().map(|(node, machine)| {
        let mut knobs = machine.knobs.clone();
        knobs.batch.max_slots = tuning.slots;
        let mut node = Node::new(node_id(node), machine.mac.clone(), knobs, models.to_vec(), &known);
        node.is_paced = policy == Policy::Pomona;
        node.leaves_late = policy == Policy::Pomona;
        node.guards_memory = policy == Policy::Pomona;
        node.comfort = machine.comfort.map(|watts| f64::from(watts.get()));
        node
    });
    let mut world = World::new(seed, 1, nodes.collect(), &commands);
    world.is_long = true;
    if policy != Policy::Pomona {
        world.set_router(policy, tuning);
    }
    world
}
