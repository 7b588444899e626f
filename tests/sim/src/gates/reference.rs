//! What gates must have done, judged by the table in the README ("Gates"), by somebody who knows nothing of how they
//! decide. Between what must have tripped and what must not lies what is not judged: readings at the limit, times in
//! which nobody heard the node, swap of which nobody knows from where it counts.

use std::collections::{BTreeMap, BTreeSet};

use pomona_common::gate::{Gate, Stage};
use pomona_common::{Class, ModelName, NodeId};
use pomona_decide::{Command, Transition};

use super::led_by;
use super::level::{Level, Levels, Seen};
use crate::cluster::{BEGAN_S, node_id};
use crate::trouble::NODES;
use crate::world::World;

/// Seconds until a report is written, sent, looked at and acted on.
pub(super) const LATE: usize = 5;
/// What came or went within so many seconds before a transition may not have been seen by it.
pub(super) const EDGE: usize = 3;
/// Watts count as the mean of so many seconds here. Leaders smooth them in another way, and see what comes and goes so
/// much later.
const MEAN_OF: usize = 5;
const SMOOTHED: usize = 12;
/// More is being written to swap for so many seconds after it was.
const WRITING: usize = 30;
/// A node that is away for so many seconds begins anew; its session ends so much later than it is heard last.
pub(super) const AWAY: usize = 600;
pub(super) const SESSION: usize = 30;

/// A line of the table: what trips the gate when it is passed for how many seconds, for how many more it does its second
/// thing, and at or below what for how many it is clear again.
struct Line {
    gate: Gate,
    above: f64,
    trips_s: usize,
    second_s: Option<usize>,
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
        second_s: None,
        clear_at: 576.0,
        clears_s: 60,
        lag: 0,
        at_limit: 0.005,
    },
    Line {
        gate: Gate::Residency,
        above: 82.0,
        trips_s: 600,
        second_s: Some(300),
        clear_at: 78.0,
        clears_s: 120,
        lag: 0,
        at_limit: 0.005,
    },
    Line {
        gate: Gate::Comfort,
        above: 100.0,
        trips_s: 60,
        second_s: None,
        clear_at: 95.0,
        clears_s: 60,
        lag: SMOOTHED,
        at_limit: 0.12,
    },
];

/// A node at the end of a second.
#[derive(Debug, Clone, Copy)]
struct Second {
    /// What counts for each line of the table, between these: MB, percent of memory, percent of comfort.
    counts: [(f64, f64); 3],
    watts: f64,
    /// Whether more is being written to swap.
    writes: bool,
    /// Tokens of batch answers so far.
    made: u64,
    /// Who leads since which election, and whether they hear it.
    leader: Option<(u64, u64)>,
    is_heard: bool,
}

/// What there was to judge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Case {
    Tripped,
    Escalated,
    Clear,
    /// Tripped by what is in swap and not written any more.
    AboveLevel,
    /// Cleared because the node was away.
    Away,
}

/// What a run looked like, second by second, which engines were killed when, and how often there was something to
/// judge.
#[derive(Default)]
pub(super) struct History {
    nodes: [Vec<Second>; NODES],
    levels: [Levels; NODES],
    kills: BTreeMap<(NodeId, ModelName), Vec<u64>>,
    /// Gates that have acted.
    opened: BTreeSet<(usize, Gate)>,
    pub(super) judged: BTreeMap<(Gate, Case), usize>,
}

impl Line {
    fn is_above(&self, (least, _): (f64, f64)) -> bool {
        least > self.above * (1.0 + self.at_limit)
    }

    fn may_be_above(&self, (_, most): (f64, f64)) -> bool {
        most > self.above * (1.0 - self.at_limit)
    }

    fn is_clear(&self, (_, most): (f64, f64)) -> bool {
        most < self.clear_at * (1.0 - self.at_limit)
    }

    fn may_be_clear(&self, (least, _): (f64, f64)) -> bool {
        least < self.clear_at * (1.0 + self.at_limit)
    }
}

impl History {
    pub(super) fn killed(&mut self, node: NodeId, model: &ModelName, now: u64) {
        let subject = (node, model.clone());
        self.kills.entry(subject).or_default().push(now);
    }

    /// A second is over; what is broken by now.
    pub(super) fn look(&mut self, world: &World, node: usize) -> Vec<String> {
        let seen = self.see(world, node);
        self.nodes[node].push(seen);
        self.is_as_it_must_be(world, node)
    }

    fn see(&mut self, world: &World, node: usize) -> Second {
        let (one, before) = (&world.nodes[node], &self.nodes[node]);
        let says = &one.mac.says;
        let watts = says.watts.map_or(one.mac.watts, f64::from);
        let last = &before[before.len().saturating_sub(MEAN_OF - 1)..];
        let sum: f64 = last.iter().map(|one| one.watts).sum::<f64>() + watts;
        let mean = sum / (last.len() + 1) as f64;
        let comfort = one.comfort.map_or(0.0, |comfort| 100.0 * mean / comfort);
        let resident = 100.0 * one.mac.engine_bytes / one.mac.total();
        let resident = says.resident.map_or(resident, f64::from);
        let (used, writes) = says
            .swap
            .map_or((one.mac.swap / 1e6, false), |(mb, writes)| (mb.into(), writes));
        let (leader, is_heard) = led_by(world, node);
        let is_open = leader.is_some_and(|(leader, _)| {
            let book = &world.coordinators[leader as usize - 1].state.gates;
            book.stage(one.id, &(Gate::Swap, None)) != Stage::Clear
        });
        let made = one.engine.tokens[Class::Batch.index()];
        let wrote = before.iter().rev().take(WRITING + EDGE).any(|one| one.writes);
        let level = self.levels[node].next(&Seen {
            heard_by: leader.filter(|_| is_heard),
            batch: one.engine.of_class(Class::Batch) > 0,
            had_batch: one.engine.of_class(Class::Batch) > 0
                || made != before.last().map_or(0, |last| last.made),
            used,
            is_open,
        });
        let swap = match level {
            _ if writes => (used, used),
            Level::Unknown => (0.0, used),
            Level::All if wrote => (0.0, used),
            Level::All => (0.0, 0.0),
            Level::Within(least, most) => {
                let rest = (used - least).max(0.0);
                ((used - most).max(0.0), if wrote { used } else { rest })
            }
        };
        Second {
            counts: [swap, (resident, resident), (comfort, comfort)],
            watts,
            writes,
            made,
            leader,
            is_heard,
        }
    }

    /// What has gone on for long enough, heard by one leader all the while, has tripped its gate, or cleared it.
    fn is_as_it_must_be(&mut self, world: &World, node: usize) -> Vec<String> {
        let seconds = &self.nodes[node];
        let Some(leader) = seconds.last().and_then(|last| last.leader) else {
            return Vec::new();
        };
        let book = &world.coordinators[leader.0 as usize - 1].state.gates;
        let (id, now) = (node_id(node), world.now);
        let mut broken = Vec::new();
        let under_it = |window: usize, is_so: &dyn Fn(&Second) -> bool| {
            let is_so = |one: &Second| one.leader == Some(leader) && is_so(one);
            seconds.len() > window && seconds[seconds.len() - window..].iter().all(is_so)
        };
        let lasts = |window: usize, is_so: &dyn Fn(&Second) -> bool| {
            under_it(window, &|one| one.is_heard && is_so(one))
        };
        let is_away = under_it(AWAY + SESSION + LATE, &|one| !one.is_heard);
        for (i, line) in TABLE.iter().enumerate() {
            let passed = |one: &Second| line.is_above(one.counts[i]);
            let over = |one: &Second| line.is_clear(one.counts[i]);
            let trips = line.trips_s + LATE + line.lag;
            let must = match () {
                () if is_away => Case::Clear,
                () if line
                    .second_s
                    .is_some_and(|more| lasts(trips + more + LATE, &passed)) =>
                {
                    Case::Escalated
                }
                () if lasts(trips, &passed) => Case::Tripped,
                () if lasts(line.clears_s + LATE + line.lag, &over) => Case::Clear,
                () => continue,
            };
            let is = book.stage(id, &(line.gate, None));
            if is != Stage::Clear {
                self.opened.insert((node, line.gate));
            }
            // That one is clear which never was anything else says little.
            if must != Case::Clear || self.opened.contains(&(node, line.gate)) {
                *self.judged.entry((line.gate, must)).or_default() += 1;
            }
            if line.gate == Gate::Swap && must == Case::Tripped && lasts(trips, &|one| !one.writes) {
                *self.judged.entry((line.gate, Case::AboveLevel)).or_default() += 1;
            }
            let is_right = match must {
                Case::Escalated => is == Stage::Escalated,
                Case::Clear => is == Stage::Clear,
                _ => is != Stage::Clear,
            };
            if !is_right {
                let counts = seconds.last().map_or((0.0, 0.0), |one| one.counts[i]);
                let is = is.as_str();
                broken.push(format!(
                    "{now}: {} of node {node} is {is}, and must be {must:?} at {counts:.0?}",
                    line.gate
                ));
            }
        }
        let is_known = |at: &u64| now > at + 1000 * LATE as u64 && lasts(LATE, &|_| true);
        for ((_, model), times) in self.kills.iter().filter(|((of, _), _)| *of == id) {
            if !times.get(1).is_some_and(is_known) {
                continue;
            }
            *self.judged.entry((Gate::Kills, Case::Tripped)).or_default() += 1;
            if book.stage(id, &(Gate::Kills, Some(model.clone()))) == Stage::Clear {
                broken.push(format!(
                    "{now}: {model} was killed twice on node {node}, and its gate is clear"
                ));
            }
        }
        broken
    }

    /// No gate trips, or clears, for what did not go on for as long as it waits.
    pub(super) fn is_nothing_else(&mut self, world: &World) -> Vec<String> {
        let transitions = world.log.entries.iter().filter_map(|entry| match &entry.command {
            Command::PassGate(transition) => Some(transition),
            _ => None,
        });
        let mut broken = Vec::new();
        let mut last: BTreeMap<_, (Stage, Option<usize>)> = BTreeMap::new();
        for one in transitions {
            let at = (one.at_s - BEGAN_S) as usize;
            let Some(node) = (0..NODES).find(|node| node_id(*node) == one.node) else {
                continue;
            };
            let line = TABLE
                .iter()
                .enumerate()
                .find(|(_, line)| line.gate == one.subject.0);
            let is_above = |window, (i, line): (usize, &Line)| {
                self.all(node, at, window, line, &|one| line.may_be_above(one.counts[i]))
            };
            let is_calm = |(i, line): (usize, &Line)| {
                self.all(node, at, line.clears_s, line, &|one| {
                    line.may_be_clear(one.counts[i])
                })
            };
            let subject = (one.node, one.subject.clone());
            let (stage, before) = last.get(&subject).copied().unwrap_or((Stage::Clear, None));
            let is_again = one.from == one.to && before.is_some_and(|before| at <= before + EDGE);
            if stage != one.from || is_again {
                // Proposed again before it was applied: nobody obeys it.
                continue;
            }
            last.insert(subject, (one.to, Some(at)));
            let holds = match (line, one.from, one.to) {
                (Some((i, line)), Stage::Clear, Stage::Tripped) => is_above(line.trips_s, (i, line)),
                (Some(_), Stage::Clear, _) => false,
                (Some(line), _, Stage::Clear) if is_calm(line) => true,
                (Some((_, line)), _, Stage::Clear) => {
                    *self.judged.entry((line.gate, Case::Away)).or_default() += 1;
                    self.is_away(node, at)
                }
                (Some((i, line)), _, Stage::Escalated) => line.second_s.is_some_and(|more| {
                    let is_time = before.is_some_and(|before| at + EDGE >= before + more);
                    is_time && is_above(more, (i, line))
                }),
                (Some(_), _, Stage::Tripped) => false,
                (None, _, Stage::Clear) => false,
                (None, ..) => one.subject.0 == Gate::Kills && self.killed_by(one, at) >= 2,
            };
            if !holds {
                let (gate, to) = (one.subject.0, one.to.as_str());
                broken.push(format!("{at} s: {gate} of node {node} is {to}: {}", one.reason));
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
        let heard: Vec<&Second> = seconds.iter().filter(|one| one.is_heard).collect();
        let from = heard.len().saturating_sub(wanted - EDGE);
        let until = heard.len().saturating_sub(EDGE.max(line.lag));
        heard[from..until.max(from)].iter().all(|one| is_so(one))
    }

    /// Whether nobody has heard a node for so long that its gates begin anew.
    fn is_away(&self, node: usize, at: usize) -> bool {
        let seconds = &self.nodes[node][..at.min(self.nodes[node].len())];
        let last = &seconds[seconds.len().saturating_sub(AWAY - EDGE)..];
        last.iter().all(|one| !one.is_heard)
    }

    fn killed_by(&self, one: &Transition, at: usize) -> usize {
        let subject = one.subject.1.clone().map(|model| (one.node, model));
        let times = subject.and_then(|subject| self.kills.get(&subject));
        times.map_or(0, |times| {
            times.iter().filter(|time| **time / 1000 <= at as u64).count()
        })
    }
}
