//! Whether gates trip in their time, and no other does: machines say made-up things of themselves for longer and
//! shorter than gates wait for, while leaders die and nodes sleep, and a reference judges what came of it.
//!
//! The reference is written from the table in the README ("Gates") and knows nothing of how gates decide. Between
//! what it must find tripped and what it must not lies what it does not judge: readings at the limit, and times in
//! which nobody heard the node. Tails are not judged, since nobody waits for an answer here.

use std::collections::BTreeMap;

use pomona_common::gate::{Gate, Stage};
use pomona_common::{Class, ModelName, NodeId};
use pomona_decide::Command;

use crate::actions::Action;
use crate::cluster::{BEGAN_S, node_id};
use crate::trouble::{COORDINATORS, NODES, ask, heal, model, world};
use crate::wire::Id;
use crate::world::World;

/// How long a run is, and how much before its end all is well again, in milliseconds.
pub const LENGTH: u64 = 2_400_000;
const HEALS: u64 = 60_000;
/// Seconds until a report is written, sent, looked at and acted on.
const LATE: usize = 5;
/// Watts are smoothed: they pass a limit so many seconds later than the machine does, and stay above it as long.
const SMOOTHED: usize = 12;
/// Watts count as the mean of so many seconds.
const MEAN_OF: usize = 5;
/// Readings within this share of a limit are on either side of it.
const AT_LIMIT: f64 = 0.12;

/// A line of the table: what trips the gate when it is passed for how many seconds, and at or below what for how many
/// it is clear again.
struct Line {
    gate: Gate,
    above: f64,
    trips_s: usize,
    clear_at: f64,
    clears_s: usize,
    lag: usize,
}

/// Of the gates that go by what a machine says.
const TABLE: [Line; 3] = [
    Line {
        gate: Gate::Swap,
        above: 768.0,
        trips_s: 90,
        clear_at: 576.0,
        clears_s: 60,
        lag: 0,
    },
    Line {
        gate: Gate::Residency,
        above: 82.0,
        trips_s: 600,
        clear_at: 78.0,
        clears_s: 120,
        lag: 0,
    },
    Line {
        gate: Gate::Comfort,
        above: 100.0,
        trips_s: 60,
        clear_at: 95.0,
        clears_s: 60,
        lag: SMOOTHED,
    },
];

/// A node at the end of a second.
#[derive(Debug, Clone, Copy)]
struct Second {
    /// What it says, for each line of the table: MB, percent of memory, percent of comfort.
    says: [f64; 3],
    watts: f64,
    /// Whether more is being written to swap: what is in use counts then, whatever it was before.
    writes: bool,
    /// Who leads and hears it.
    heard_by: Option<u64>,
}

/// What a run looked like, second by second, and which engines were killed when.
#[derive(Default)]
struct History {
    nodes: Vec<Vec<Second>>,
    kills: BTreeMap<(NodeId, ModelName), Vec<u64>>,
}

/// One run; what is broken is in the world.
pub fn run(seed: u64) -> World {
    let mut world = world(seed);
    let kills = excursions(&mut world);
    disturb(&mut world);
    heal(&mut world, LENGTH - HEALS);
    let mut history = History {
        nodes: vec![Vec::new(); NODES],
        ..History::default()
    };
    let mut kills = kills.into_iter().peekable();
    for second in 1..=LENGTH / 1000 {
        while let Some((at, node)) = kills.next_if(|(at, _)| *at <= second * 1000) {
            world.run_until(at);
            kill(&mut world, node, &mut history);
        }
        world.run_until(second * 1000);
        for node in 0..NODES {
            let mut seen = look(&world, node);
            let before = &history.nodes[node];
            let last = &before[before.len().saturating_sub(MEAN_OF - 1)..];
            let watts: f64 = last.iter().map(|one| one.watts).sum::<f64>() + seen.watts;
            let mean = watts / (last.len() + 1) as f64;
            let comfort = world.nodes[node].comfort;
            seen.says[2] = comfort.map_or(0.0, |comfort| 100.0 * mean / comfort);
            history.nodes[node].push(seen);
            let broken = history.must_have_tripped(&world, node);
            world.broken.extend(broken);
        }
    }
    let broken = history.must_not_have(&world);
    world.broken.extend(broken);
    world
}

/// Draws what machines say of themselves, and returns when engines are killed.
fn excursions(world: &mut World) -> Vec<(u64, usize)> {
    let mut kills = Vec::new();
    for node in 1..NODES {
        let mut each = |pause: (u64, u64), span: (u64, u64), say: &dyn Fn(&mut World) -> [Action; 2]| {
            let mut at = 20_000 + world.random.between(0, pause.1);
            while at < LENGTH - 2 * HEALS {
                let [from, to] = say(world);
                let ends = at + world.random.between(span.0, span.1);
                world.at(at, from);
                world.at(ends.min(LENGTH - HEALS), to);
                at = ends + world.random.between(pause.0, pause.1);
            }
        };
        each((5_000, 200_000), (30_000, 120_000), &|world| {
            let watts = world.random.between(20, 90) as f32;
            [
                Action::SaysWatts(node, Some(watts)),
                Action::SaysWatts(node, None),
            ]
        });
        each((10_000, 400_000), (300_000, 800_000), &|world| {
            let percent = world.random.between(60, 99) as f32;
            [
                Action::SaysResident(node, Some(percent)),
                Action::SaysResident(node, None),
            ]
        });
        each((10_000, 300_000), (40_000, 180_000), &|world| {
            let mb = world.random.between(300, 2_500) as f32;
            let writes = world.random.one_in(2);
            [
                Action::SaysSwap(node, Some((mb, writes))),
                Action::SaysSwap(node, Some((0.0, false))),
            ]
        });
        for _ in 0..world.random.between(0, 4) {
            kills.push((world.random.between(30_000, LENGTH - 2 * HEALS), node));
        }
    }
    kills.sort_unstable();
    for i in 0..LENGTH / 6_000 {
        let at = 9_000 + i * 6_000;
        let tokens = world.random.between(10, 250) as u32;
        let entry = 1 + world.random.between(0, COORDINATORS);
        let model = model(world.random.between(0, 2) as usize);
        world.at(at, ask(entry, model, Class::Batch, tokens));
    }
    kills
}

/// Leaders die, nodes sleep, cables break: rarely, so that gates have their time between.
fn disturb(world: &mut World) {
    let mut at = 60_000;
    while at < LENGTH - 2 * HEALS {
        at += world.random.between(20_000, 300_000);
        let span = world.random.between(500, 40_000);
        let node = Id::Node(world.random.between(1, NODES as u64) as usize);
        let coordinator = Id::Coordinator(world.random.between(1, COORDINATORS + 1));
        let [from, to] = match world.random.between(0, 4) {
            0 => [Action::Kill(coordinator), Action::Start(coordinator)],
            1 => [Action::Sleep(node), Action::Wake(node)],
            2 => [
                Action::Stall(coordinator, true),
                Action::Stall(coordinator, false),
            ],
            _ => [
                Action::Cut(node, coordinator, true),
                Action::Cut(node, coordinator, false),
            ],
        };
        world.at(at, from);
        world.at(at + span, to);
    }
}

fn kill(world: &mut World, node: usize, history: &mut History) {
    let before = world.nodes[node].kills.clone();
    world.act(Action::Kills(node));
    for (model, count) in &world.nodes[node].kills {
        if before.get(model) != Some(count) {
            let subject = (node_id(node), model.clone());
            history.kills.entry(subject).or_default().push(world.now);
        }
    }
}

fn look(world: &World, node: usize) -> Second {
    let one = &world.nodes[node];
    let says = &one.mac.says;
    let watts = f64::from(says.watts.map_or(one.mac.watts as f32, |watts| watts));
    let resident = 100.0 * one.mac.engine_bytes / one.mac.total();
    let (swap, writes) = says
        .swap
        .map_or((one.mac.swap / 1e6, false), |(mb, writes)| (mb.into(), writes));
    let leader = world.log.leader.filter(|leader| {
        let leader = &world.coordinators[*leader as usize - 1];
        one.machine.runs() && leader.machine.runs() && leader.hears(one.id, world.now)
    });
    Second {
        says: [swap, says.resident.map_or(resident, f64::from), 0.0],
        watts,
        writes,
        heard_by: leader,
    }
}

impl World {
    /// Transitions of gates that were agreed on.
    pub fn gates_passed(&self) -> usize {
        let entries = self.log.entries.iter();
        entries
            .filter(|entry| matches!(entry.command, Command::PassGate(_)))
            .count()
    }
}

impl History {
    /// What has gone on for long enough, heard by one leader all the while, has tripped its gate.
    fn must_have_tripped(&self, world: &World, node: usize) -> Vec<String> {
        let seconds = &self.nodes[node];
        let Some(leader) = seconds.last().and_then(|last| last.heard_by) else {
            return Vec::new();
        };
        let book = &world.coordinators[leader as usize - 1].state.gates;
        let id = node_id(node);
        let mut broken = Vec::new();
        for (i, line) in TABLE.iter().enumerate() {
            let window = line.trips_s + LATE + line.lag;
            let passed = |one: &Second| {
                let counts = line.gate != Gate::Swap || one.writes;
                one.heard_by == Some(leader) && counts && one.says[i] > line.above * (1.0 + AT_LIMIT)
            };
            let lasts = seconds.len() > window && seconds[seconds.len() - window..].iter().all(passed);
            if lasts && book.stage(id, &(line.gate, None)) == Stage::Clear {
                broken.push(self.says(world, node, i, "is clear", line));
            }
        }
        let heard = |at: &u64| {
            let since = (*at / 1000) as usize + 1;
            seconds.len() > since + LATE
                && seconds[since.min(seconds.len())..]
                    .iter()
                    .all(|one| one.heard_by == Some(leader))
        };
        for ((_, model), times) in self.kills.iter().filter(|((of, _), _)| *of == id) {
            let subject = (Gate::Kills, Some(model.clone()));
            if times.get(1).is_some_and(heard) && book.stage(id, &subject) == Stage::Clear {
                let now = world.now;
                broken.push(format!(
                    "{now}: {model} was killed twice on {}, and its gate is clear",
                    id.short()
                ));
            }
        }
        broken
    }

    /// No gate trips, or clears, for what did not go on for as long as it waits.
    fn must_not_have(&self, world: &World) -> Vec<String> {
        let mut broken = Vec::new();
        let transitions = world.log.entries.iter().filter_map(|entry| match &entry.command {
            Command::PassGate(transition) => Some(transition),
            _ => None,
        });
        for one in transitions {
            let at = (one.at_s - BEGAN_S) as usize;
            let Some(node) = (0..NODES).find(|node| node_id(*node) == one.node) else {
                continue;
            };
            let line = TABLE
                .iter()
                .enumerate()
                .find(|(_, line)| line.gate == one.subject.0);
            let Some((i, line)) = line else {
                if one.subject.0 == Gate::Kills && one.to != Stage::Clear {
                    let of_model = one.subject.1.clone().map(|model| (one.node, model));
                    let times = of_model.and_then(|subject| self.kills.get(&subject));
                    let known = times.map_or(0, |times| {
                        times.iter().filter(|time| **time / 1000 <= at as u64).count()
                    });
                    if known < 2 {
                        broken.push(format!(
                            "{at} s: kills on {} trip after {known}",
                            one.node.short()
                        ));
                    }
                }
                continue;
            };
            let (wanted, tolerance): (usize, fn(f64, &Line) -> bool) = match (one.from, one.to) {
                (Stage::Clear, _) => (line.trips_s, |value, line| value > line.above * (1.0 - AT_LIMIT)),
                (_, Stage::Clear) if line.gate != Gate::Swap && !one.reason.contains("away") => {
                    (line.clears_s, |value, line| {
                        value <= line.clear_at * (1.0 + AT_LIMIT)
                    })
                }
                _ => continue,
            };
            // What nobody heard is not counted, neither way.
            let seconds = &self.nodes[node][..at.min(self.nodes[node].len())];
            let heard: Vec<f64> = seconds
                .iter()
                .filter(|one| one.heard_by.is_some())
                .map(|one| one.says[i])
                .collect();
            let window = wanted.saturating_sub(LATE + line.lag);
            let until = heard.len().saturating_sub(LATE);
            let from = until.saturating_sub(window.saturating_sub(LATE));
            if heard[from..until].iter().any(|value| !tolerance(*value, line)) {
                broken.push(
                    self.says(world, node, i, one.to.as_str(), line)
                        + &format!(" since {at} s: {}", one.reason),
                );
            }
        }
        broken
    }

    fn says(&self, world: &World, node: usize, i: usize, stage: &str, line: &Line) -> String {
        let value = self.nodes[node].last().map_or(0.0, |one| one.says[i]);
        let (now, name, gate) = (world.now, node_id(node).short(), line.gate);
        format!(
            "{now}: {gate} of {name} {stage} at {value:.0}, its limit is {:.0}",
            line.above
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_trip_in_their_time_and_no_other_does() {
        let mut passed = BTreeMap::new();
        for seed in 0..6 {
            let world = run(seed);
            assert_eq!(world.broken, Vec::<String>::new(), "seed {seed}");
            for entry in &world.log.entries {
                if let Command::PassGate(one) = &entry.command {
                    *passed.entry((one.subject.0, one.to)).or_insert(0) += 1;
                }
            }
        }
        // All that the reference judges has been there to judge.
        for gate in [Gate::Swap, Gate::Residency, Gate::Comfort, Gate::Kills] {
            assert!(
                passed
                    .get(&(gate, Stage::Tripped))
                    .is_some_and(|count| *count > 1),
                "{passed:?}"
            );
        }
        for gate in [Gate::Swap, Gate::Residency, Gate::Comfort] {
            assert!(passed.contains_key(&(gate, Stage::Clear)), "{passed:?}");
        }
        println!("{passed:?}");
    }
}
