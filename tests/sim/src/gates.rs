//! Whether gates trip in their time, and no other does: machines say made-up things of themselves for longer and
//! shorter than gates wait for, while leaders die and nodes sleep, and a reference judges what came of it.
//!
//! The reference is written from the table in the README ("Gates") and knows nothing of how gates decide. Between
//! what it must find tripped and what it must not lies what it does not judge: readings at the limit, and times in
//! which nobody heard the node. Nobody waits for an answer here, so no tail may trip.

use std::collections::BTreeMap;

use pomona_common::gate::{Gate, Stage};
use pomona_common::{Class, ModelName, NodeId};
use pomona_decide::{Command, Transition};

use crate::actions::Action;
use crate::cluster::{BEGAN_S, node_id};
use crate::trouble::{COORDINATORS, NODES, ask, heal, model, world};
use crate::wire::Id;
use crate::world::World;

/// How long a run is, and how much before its end all is well again, in milliseconds.
pub const LENGTH: u64 = 2_400_000;
const HEALS: u64 = 90_000;
/// Seconds until a report is written, sent, looked at and acted on.
const LATE: usize = 5;
/// What came or went within so many seconds before a transition may not have been seen by it.
const EDGE: usize = 3;
/// Watts count as the mean of so many seconds here. Leaders smooth them in another way, and see what comes and goes so
/// much later.
const MEAN_OF: usize = 5;
const SMOOTHED: usize = 12;
/// More is being written to swap for so many seconds after it was.
const WRITING: usize = 30;

/// A line of the table: what trips the gate when it is passed for how many seconds, and at or below what for how many
/// it is clear again.
struct Line {
    gate: Gate,
    above: f64,
    trips_s: usize,
    clear_at: f64,
    clears_s: usize,
    /// Seconds by which the measure is late.
    lag: usize,
    /// Readings within this share of a limit are on either side of it.
    at_limit: f64,
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
        at_limit: 0.005,
    },
    Line {
        gate: Gate::Residency,
        above: 82.0,
        trips_s: 600,
        clear_at: 78.0,
        clears_s: 120,
        lag: 0,
        at_limit: 0.005,
    },
    Line {
        gate: Gate::Comfort,
        above: 100.0,
        trips_s: 60,
        clear_at: 95.0,
        clears_s: 60,
        lag: SMOOTHED,
        at_limit: 0.12,
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
    /// Who leads since which election, and hears it.
    heard_by: Option<(u64, u64)>,
}

/// What a run looked like, second by second, which engines were killed when, and how often there was something to
/// judge.
#[derive(Default)]
struct History {
    nodes: Vec<Vec<Second>>,
    kills: BTreeMap<(NodeId, ModelName), Vec<u64>>,
    judged: BTreeMap<(Gate, Stage), usize>,
}

/// One run; what is broken is in the world.
pub fn run(seed: u64) -> World {
    judge(seed).0
}

fn judge(seed: u64) -> (World, History) {
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
            let seen = look(&world, node, &history.nodes[node]);
            history.nodes[node].push(seen);
            let broken = history.is_as_it_must_be(&world, node);
            world.broken.extend(broken);
        }
    }
    (1..=COORDINATORS).for_each(|number| world.apply(number));
    let broken = history.is_nothing_else(&world);
    world.broken.extend(broken);
    (world, history)
}

/// Draws what machines say of themselves, and returns when engines are killed.
fn excursions(world: &mut World) -> Vec<(u64, usize)> {
    let until = LENGTH - 3 * HEALS;
    let mut kills = Vec::new();
    for node in 1..NODES {
        // What it says at first, then for a while something else, and then what it said before.
        let mut each = |pause: (u64, u64), span: (u64, u64), say: &dyn Fn(&mut World) -> [Action; 3]| {
            let mut at = 20_000 + world.random.between(0, pause.1);
            while at < until {
                let [first, then, last] = say(world);
                let turns = at + world.random.between(span.0, span.1);
                let ends = turns + world.random.between(0, span.1 / 2);
                world.at(at, first);
                world.at(turns.min(until), then);
                world.at(ends.min(until), last);
                at = ends + world.random.between(pause.0, pause.1);
            }
        };
        each((5_000, 200_000), (30_000, 120_000), &|world| {
            let mut watts = || Some(world.random.between(20, 90) as f32);
            let says = |watts| Action::SaysWatts(node, watts);
            [says(watts()), says(watts()), says(None)]
        });
        each((10_000, 400_000), (300_000, 1_000_000), &|world| {
            let mut percent = || Some(world.random.between(70, 99) as f32);
            let says = |percent| Action::SaysResident(node, percent);
            [says(percent()), says(percent()), says(None)]
        });
        each((10_000, 300_000), (40_000, 180_000), &|world| {
            let mut mb = || world.random.between(300, 2_500) as f32;
            let (one, other) = (mb(), mb());
            let [writes, goes_on] = [2, 3].map(|n| world.random.one_in(n));
            let says = |mb, writes| Action::SaysSwap(node, Some((mb, writes)));
            [
                says(one, writes),
                says(other, writes && goes_on),
                says(0.0, false),
            ]
        });
        for _ in 0..world.random.between(0, 4) {
            kills.push((world.random.between(30_000, until), node));
        }
    }
    kills.sort_unstable();
    for at in (9_000..until).step_by(6_000) {
        let tokens = world.random.between(10, 250) as u32;
        let entry = 1 + world.random.between(0, COORDINATORS);
        let model = model(world.random.between(0, 2) as usize);
        world.at(at, ask(entry, model, Class::Batch, tokens));
    }
    kills
}

/// Leaders die, nodes sleep, cables break: rarely, so that gates have their time between.
fn disturb(world: &mut World) {
    let mut at = 60_000 + world.random.between(0, 100_000);
    while at < LENGTH - 3 * HEALS {
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
        at += world.random.between(20_000, 300_000);
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

fn look(world: &World, node: usize, before: &[Second]) -> Second {
    let one = &world.nodes[node];
    let says = &one.mac.says;
    let watts = says.watts.map_or(one.mac.watts, f64::from);
    let last = &before[before.len().saturating_sub(MEAN_OF - 1)..];
    let sum: f64 = last.iter().map(|one| one.watts).sum::<f64>() + watts;
    let mean = sum / (last.len() + 1) as f64;
    let comfort = one.comfort.map_or(0.0, |comfort| 100.0 * mean / comfort);
    let resident = 100.0 * one.mac.engine_bytes / one.mac.total();
    let (swap, writes) = says
        .swap
        .map_or((one.mac.swap / 1e6, false), |(mb, writes)| (mb.into(), writes));
    let leader = world.log.leader.filter(|leader| {
        let leader = &world.coordinators[*leader as usize - 1];
        one.machine.runs() && leader.machine.runs() && leader.hears(one.id, world.now)
    });
    Second {
        says: [swap, says.resident.map_or(resident, f64::from), comfort],
        watts,
        writes,
        heard_by: leader.map(|leader| (leader, world.log.elections)),
    }
}

impl World {
    /// Transitions of gates that were agreed on.
    pub fn gates_passed(&self) -> u64 {
        self.agreed().gates.last_number()
    }
}

impl Line {
    fn is_above(&self, value: f64) -> bool {
        value > self.above * (1.0 + self.at_limit)
    }

    fn is_clear(&self, value: f64) -> bool {
        value < self.clear_at * (1.0 - self.at_limit)
    }
}

impl History {
    /// What has gone on for long enough, heard by one leader all the while, has tripped its gate, or cleared it.
    fn is_as_it_must_be(&mut self, world: &World, node: usize) -> Vec<String> {
        let seconds = &self.nodes[node];
        let Some(leader) = seconds.last().and_then(|last| last.heard_by) else {
            return Vec::new();
        };
        let book = &world.coordinators[leader.0 as usize - 1].state.gates;
        let (id, now) = (node_id(node), world.now);
        let mut broken = Vec::new();
        let lasts = |window: usize, is_so: &dyn Fn(&Second) -> bool| {
            let is_heard = |one: &Second| one.heard_by == Some(leader) && is_so(one);
            seconds.len() > window && seconds[seconds.len() - window..].iter().all(is_heard)
        };
        for (i, line) in TABLE.iter().enumerate() {
            let is_swap = line.gate == Gate::Swap;
            let passed = |one: &Second| (one.writes || !is_swap) && line.is_above(one.says[i]);
            // What was in swap before counts only while more is written.
            let over = |one: &Second| !(is_swap && one.writes) && line.is_clear(one.says[i]);
            let written = if is_swap { WRITING } else { 0 };
            let must = match () {
                () if lasts(line.trips_s + LATE + line.lag, &passed) => Stage::Tripped,
                () if lasts(line.clears_s + written + LATE + line.lag, &over) => Stage::Clear,
                () => continue,
            };
            *self.judged.entry((line.gate, must)).or_default() += 1;
            let is = book.stage(id, &(line.gate, None));
            if (is == Stage::Clear) != (must == Stage::Clear) {
                let says = seconds.last().map_or(0.0, |one| one.says[i]);
                broken.push(format!(
                    "{now}: {} of {} is {}, and must be {} at {says:.0}",
                    line.gate,
                    id.short(),
                    is.as_str(),
                    must.as_str(),
                ));
            }
        }
        let is_known = |at: &u64| now > at + 1000 * LATE as u64 && lasts(LATE, &|_| true);
        for ((_, model), times) in self.kills.iter().filter(|((of, _), _)| *of == id) {
            if !times.get(1).is_some_and(is_known) {
                continue;
            }
            *self.judged.entry((Gate::Kills, Stage::Tripped)).or_default() += 1;
            if book.stage(id, &(Gate::Kills, Some(model.clone()))) == Stage::Clear {
                let name = id.short();
                broken.push(format!(
                    "{now}: {model} was killed twice on {name}, and its gate is clear"
                ));
            }
        }
        broken
    }

    /// No gate trips, or clears, for what did not go on for as long as it waits.
    fn is_nothing_else(&self, world: &World) -> Vec<String> {
        let transitions = world.log.entries.iter().filter_map(|entry| match &entry.command {
            Command::PassGate(transition) => Some(transition),
            _ => None,
        });
        let mut broken = Vec::new();
        for one in transitions {
            let at = (one.at_s - BEGAN_S) as usize;
            let Some(node) = (0..NODES).find(|node| node_id(*node) == one.node) else {
                continue;
            };
            let line = TABLE
                .iter()
                .enumerate()
                .find(|(_, line)| line.gate == one.subject.0);
            let holds = match (line, one.from, one.to) {
                (Some((i, line)), Stage::Clear, _) => self.all(node, at, line.trips_s, line, &|second| {
                    second.says[i] > line.above * (1.0 - line.at_limit)
                }),
                (Some((i, line)), _, Stage::Clear) => self.all(node, at, line.clears_s, line, &|second| {
                    let counts = line.gate != Gate::Swap || second.writes;
                    !counts || second.says[i] < line.clear_at * (1.0 + line.at_limit)
                }),
                (Some(_), ..) => true,
                (None, _, Stage::Clear) => false,
                (None, ..) => one.subject.0 == Gate::Kills && self.killed_by(one, at) >= 2,
            };
            if !holds {
                let (gate, name, to) = (one.subject.0, one.node.short(), one.to.as_str());
                broken.push(format!("{at} s: {gate} of {name} is {to}: {}", one.reason));
            }
        }
        broken
    }

    /// Whether it was so in all seconds before a transition for which it says it was. What nobody heard does not count,
    /// neither way.
    fn all(
        &self,
        node: usize,
        at: usize,
        wanted: usize,
        line: &Line,
        is_so: &dyn Fn(&Second) -> bool,
    ) -> bool {
        let seconds = &self.nodes[node][..at.min(self.nodes[node].len())];
        let heard: Vec<&Second> = seconds.iter().filter(|one| one.heard_by.is_some()).collect();
        let from = heard.len().saturating_sub(wanted - EDGE);
        let until = heard.len().saturating_sub(EDGE.max(line.lag));
        heard[from..until.max(from)].iter().all(|one| is_so(one))
    }

    fn killed_by(&self, one: &Transition, at: usize) -> usize {
        let subject = one.subject.1.clone().map(|model| (one.node, model));
        let times = subject.and_then(|subject| self.kills.get(&subject));
        times.map_or(0, |times| {
            times.iter().filter(|time| **time / 1000 <= at as u64).count()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_trip_and_clear_in_their_time_and_no_other_does() {
        let mut judged: BTreeMap<(Gate, Stage), usize> = BTreeMap::new();
        for seed in 0..8 {
            let (world, history) = judge(seed);
            assert_eq!(world.broken, Vec::<String>::new(), "seed {seed}");
            for (what, count) in history.judged {
                *judged.entry(what).or_default() += count;
            }
        }
        // Everything that the reference judges was there to judge, for minutes.
        let cases = [Gate::Swap, Gate::Residency, Gate::Comfort]
            .map(|gate| [(gate, Stage::Tripped), (gate, Stage::Clear)]);
        for case in cases.into_iter().flatten().chain([(Gate::Kills, Stage::Tripped)]) {
            assert!(
                judged.get(&case).is_some_and(|count| *count > 100),
                "{case:?}: {judged:?}"
            );
        }
    }
}
