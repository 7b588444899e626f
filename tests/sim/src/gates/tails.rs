//! Whether the tail gate trips for late answers in its time, and for nothing that only looks like them: engines tell
//! made-up first tokens beside batch work that lasts, and a reference that knows what was told judges what came of it.

use std::collections::BTreeMap;

use pomona_common::gate::{Gate, Stage};
use pomona_common::signs::FirstToken;
use pomona_common::{Class, Rung};
use pomona_decide::Command;

use super::reference::{AWAY, EDGE, LATE, SESSION};
use super::{HEALS, LENGTH, disturb, led_by, spread};
use crate::actions::Action;
use crate::cluster::{BEGAN_S, node_id};
use crate::trouble::{COORDINATORS, NODES, ask, heal, model, world};
use crate::world::World;

/// The table's line, in seconds: for how long answers count, how long they are late until the gate trips and until it does
/// its second thing, and are not until it is clear.
const WINDOW: usize = 300;
const TRIPS: usize = 30;
const SECOND: usize = 60;
const CLEARS: usize = 120;
/// One answer in so many is late, of those that are told each second; so many must be until one in twenty of all that
/// count is.
const ONE_IN: usize = 4;
const SHOWS: usize = WINDOW * ONE_IN / 20;
/// So many have to be told until anything can be said.
const ENOUGH: usize = 20;
/// Batch is made small first: once they have been late for a minute, in two steps ten seconds apart.
const TIGHTENS: usize = 60 + 2 * 10;
/// Of batch work that ended so long ago nobody says that it is why; without any for so long, it is not, for an hour.
const BLAMED: usize = 60;
const GONE: usize = 300;

/// So much before its end, in milliseconds, nothing more is asked for.
const ENDS: u64 = 900_000;

/// What a person's answers are like.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum Mood {
    /// All begin at once.
    #[default]
    Fine,
    /// Some begin far later.
    Late,
    /// Some begin a little more than 2.8 times as late as most, and than is promised.
    Just,
    /// Some are given up when that was waited for.
    GivenUp,
    /// All begin late: the machine is too slow, which is no tail, but is one with others before or after it.
    Slow,
    /// Some begin three times as late, and soon enough all the same.
    Within,
    /// Some have long prompts, of which all begin as late.
    Long,
    /// All have long prompts, of which some begin two and a half times as late as most, and than is promised.
    Nearly,
}

impl Mood {
    const ALL: [Self; 8] = [
        Self::Late,
        Self::Just,
        Self::Just,
        Self::GivenUp,
        Self::Slow,
        Self::Within,
        Self::Long,
        Self::Nearly,
    ];

    /// Whether they have a tail.
    fn is_tail(self) -> bool {
        matches!(self, Self::Late | Self::Just | Self::GivenUp)
    }

    /// The answer that is told in this second.
    fn answer(self, second: usize) -> FirstToken {
        let is_one = second.is_multiple_of(ONE_IN);
        let usual = 270.0 + (second % 7) as f32;
        let (uncached, ttft_ms) = match self {
            Self::Slow => (20, 3_000.0),
            Self::Late if is_one => (20, 5_000.0),
            Self::Just | Self::GivenUp if is_one => (20, 830.0),
            Self::Within => (20, if is_one { 780.0 } else { 250.0 }),
            Self::Nearly => (3_000, if is_one { 1_500.0 } else { 600.0 }),
            Self::Long if is_one => (3_000, 3_000.0),
            _ => (20, usual),
        };
        FirstToken {
            model: model(0),
            uncached,
            ttft_ms,
            took_ms: 0,
            given_up: self == Self::GivenUp && is_one,
        }
    }
}

/// A node at the end of a second.
#[derive(Debug, Clone, Copy)]
struct Second {
    mood: Mood,
    /// Whether the answer that was told then was late.
    is_late: bool,
    /// Batch sequences there, and those in slots.
    batch: u32,
    running: u32,
    /// Who leads since which election, and whether they hear it.
    leader: Option<(u64, u64)>,
    is_heard: bool,
    rung: Rung,
}

/// What there was to judge: seconds of which the gate's stage was told, by that.
pub(super) type Judged = BTreeMap<&'static str, usize>;

/// See the module's documentation.
#[derive(Default)]
struct History {
    nodes: [Vec<Second>; NODES],
    /// The stage of each gate a second ago, and whether it was cleared since late answers had another reason: that holds
    /// for an hour, which is longer than a run.
    stages: [Stage; NODES],
    excused: [bool; NODES],
    judged: Judged,
}

pub(super) fn judge(seed: u64) -> (World, Judged) {
    let mut world = world(seed);
    let moods = excursions(&mut world);
    disturb(&mut world, seed);
    spread(&mut world);
    heal(&mut world, LENGTH - HEALS);
    let mut history = History::default();
    for (second, moods) in (1..).zip(moods) {
        world.run_until(second as u64 * 1000);
        for (node, mood) in moods.into_iter().enumerate().skip(1) {
            let answer = mood.answer(second);
            let is_late = mood == Mood::Slow || mood.is_tail() && answer.ttft_ms > 800.0;
            let tells = world.nodes[node].machine.runs();
            if tells {
                world.act(Action::SaysBegan(node, answer));
            }
            let broken = history.look(&world, node, mood, is_late && tells);
            world.broken.extend(broken);
        }
    }
    (1..=COORDINATORS).for_each(|number| world.apply(number));
    let broken = history.is_nothing_else(&world);
    world.broken.extend(broken);
    (world, history.judged)
}

/// Draws what people's answers are like at each node, second by second, and batch work that is there all the time.
fn excursions(world: &mut World) -> Vec<[Mood; NODES]> {
    let length = (LENGTH / 1000) as usize;
    let until = length - 3 * (HEALS / 1000) as usize;
    let mut moods = vec![[Mood::Fine; NODES]; length];
    for node in 1..NODES {
        let mut draw = |low: usize, high: usize| world.random.between(low as u64, high as u64) as usize;
        let mut at = draw(60, 200);
        while at < until {
            let (mood, span) = (Mood::ALL[draw(0, Mood::ALL.len())], draw(20, 420));
            let seconds = &mut moods[at..(at + span).min(until)];
            seconds.iter_mut().for_each(|second| second[node] = mood);
            at += span + draw(60, 600);
        }
    }
    // Of the last there is time for all to end.
    for at in (9_000..LENGTH - ENDS).step_by(5_000) {
        let tokens = world.random.between(800, 2_600) as u32;
        let entry = 1 + world.random.between(0, COORDINATORS);
        world.at(at, ask(entry, model(0), Class::Batch, tokens));
    }
    moods
}

impl History {
    /// A second is over; what is broken by now.
    fn look(&mut self, world: &World, node: usize, mood: Mood, is_late: bool) -> Option<String> {
        let (one, id) = (&world.nodes[node], node_id(node));
        let (leader, is_heard) = led_by(world, node);
        let known = leader.map(|(leader, _)| &world.coordinators[leader as usize - 1].state);
        self.nodes[node].push(Second {
            mood,
            is_late,
            batch: one.engine.of_class(Class::Batch),
            running: one.engine.running_of(Class::Batch),
            leader,
            is_heard,
            rung: known.map_or(Rung::Normal, |state| state.relief(id).rung),
        });
        let stage = known?.gates.stage(id, &(Gate::Tail, None));
        let before = std::mem::replace(&mut self.stages[node], stage);
        let is_cleared = before != Stage::Clear && stage == Stage::Clear;
        self.excused[node] |= is_cleared && self.is_gone(node, self.nodes[node].len());
        let must = self.must_be(node)?;
        if must != Stage::Clear || mood != Mood::Fine {
            *self.judged.entry(must.as_str()).or_default() += 1;
        }
        let is_right = match must {
            Stage::Tripped => stage != Stage::Clear,
            must => stage == must,
        };
        (!is_right).then(|| {
            let (is, must) = (stage.as_str(), must.as_str());
            format!("{}: tail of node {node} is {is}, and must be {must}", world.now)
        })
    }

    /// The stage of its gate, if it can be told by the table.
    fn must_be(&self, node: usize) -> Option<Stage> {
        let seconds = &self.nodes[node];
        let leader = seconds.last()?.leader?;
        let lasts = |window: usize, is_so: &dyn Fn(&Second) -> bool| {
            let is_so = |one: &Second| one.leader == Some(leader) && one.is_heard && is_so(one);
            seconds.len() > window && seconds[seconds.len() - window..].iter().all(is_so)
        };
        let is_blamed = |one: &Second| one.mood.is_tail() && one.running > 0;
        let trips = SHOWS + TIGHTENS + ENOUGH + TRIPS + 4 * LATE;
        // What was slow as a whole before is no measure of most.
        let is_plain = lasts(WINDOW + trips, &|one| one.mood != Mood::Slow);
        if is_plain && !self.excused[node] && lasts(trips, &is_blamed) {
            let escalates = trips + ENOUGH + SECOND + 4 * LATE;
            return Some(match lasts(escalates, &is_blamed) {
                true => Stage::Escalated,
                false => Stage::Tripped,
            });
        }
        // What is between the two limits neither trips it nor clears it.
        let is_calm = |one: &Second| !one.mood.is_tail() && !matches!(one.mood, Mood::Slow | Mood::Nearly);
        lasts(WINDOW + CLEARS + 2 * LATE, &is_calm).then_some(Stage::Clear)
    }

    /// No tail trips, or clears, for what did not go on for as long as it waits.
    fn is_nothing_else(&mut self, world: &World) -> Vec<String> {
        let mut broken = Vec::new();
        let mut last = [(Stage::Clear, 0); NODES];
        for entry in &world.log.entries {
            let Command::PassGate(one) = &entry.command else {
                continue;
            };
            let at = (one.at_s - BEGAN_S) as usize;
            let Some(node) = (0..NODES).find(|node| node_id(*node) == one.node) else {
                continue;
            };
            let (stage, since) = last[node];
            if one.subject.0 == Gate::Tail && stage != one.from {
                // Proposed again before it was applied.
                continue;
            }
            let holds = match (one.subject.0, one.to) {
                (Gate::Tail, Stage::Tripped) => self.may_trip(node, at),
                (Gate::Tail, Stage::Escalated) => {
                    let meanwhile = at.saturating_sub(since) + EDGE;
                    meanwhile >= SECOND && self.lateness(node, at, meanwhile) > 1
                }
                (Gate::Tail, Stage::Clear) => self.may_clear(node, at, since),
                // Made-up answers are all that happens.
                (Gate::Swap | Gate::Residency | Gate::Kills, _) => false,
                (Gate::Comfort, _) => true,
            };
            if one.subject.0 == Gate::Tail {
                last[node] = (one.to, at);
            }
            if !holds {
                let (gate, to) = (one.subject.0, one.to.as_str());
                broken.push(format!("{at} s: {gate} of node {node} is {to}: {}", one.reason));
            }
        }
        broken
    }

    /// Late answers that were told in these seconds before a transition.
    fn lateness(&self, node: usize, at: usize, window: usize) -> usize {
        self.before(node, at, window)
            .iter()
            .filter(|one| one.is_late)
            .count()
    }

    /// The seconds before a transition.
    fn before(&self, node: usize, at: usize, window: usize) -> &[Second] {
        let seconds = &self.nodes[node];
        &seconds[at.saturating_sub(window).min(seconds.len())..at.min(seconds.len())]
    }

    /// More than one in twenty of those since some time are late, if batch work is there, and small.
    fn may_trip(&self, node: usize, at: usize) -> bool {
        let has_tail = |at: usize| {
            let seconds = self.before(node, at, WINDOW + EDGE);
            let lately = seconds.iter().rev().scan(0, |late, one| {
                *late += usize::from(one.is_late);
                Some(*late)
            });
            (1..)
                .zip(lately)
                .any(|(all, late)| all + EDGE >= ENOUGH && 20 * late + EDGE > all)
        };
        let lasted = (at.saturating_sub(TRIPS - EDGE)..=at).all(has_tail);
        let had_batch = self
            .before(node, at, BLAMED + EDGE)
            .iter()
            .any(|one| one.batch > 0);
        let is_small = self
            .before(node, at, 1 + EDGE)
            .iter()
            .any(|one| one.rung >= Rung::Tighten);
        lasted && had_batch && is_small
    }

    /// No more than one in twenty were late for two minutes, of all that counted then; or batch work has been gone for
    /// long; or nobody heard it.
    fn may_clear(&self, node: usize, at: usize, since: usize) -> bool {
        let is_calm = |at: usize| {
            let window = at
                .saturating_sub(since.max(self.anew_since(node, at)))
                .min(WINDOW);
            let seconds = self.before(node, at, window);
            // Those that are all slow are no tail by themselves.
            let late = seconds
                .iter()
                .filter(|one| one.is_late && one.mood.is_tail())
                .count();
            late <= seconds.len() / 20 + EDGE
        };
        let is_away = self
            .before(node, at, AWAY - SESSION)
            .iter()
            .all(|one| !one.is_heard);
        (at.saturating_sub(CLEARS - EDGE)..=at).all(is_calm) || is_away || self.is_gone(node, at)
    }

    /// Since when answers count, besides the gate's transitions: a leader begins anew, with a node that it has not heard as
    /// well, and when batch is made small.
    fn anew_since(&self, node: usize, at: usize) -> usize {
        let is_anew = |pair: &[Second]| {
            let is_small = |one: &Second| one.rung >= Rung::Tighten;
            let is_new = pair[0].leader != pair[1].leader || !pair[0].is_heard;
            is_new || is_small(&pair[1]) && !is_small(&pair[0])
        };
        let seconds = self.before(node, at, at);
        seconds.windows(2).rposition(is_anew).map_or(0, |last| last + 1)
    }

    fn is_gone(&self, node: usize, at: usize) -> bool {
        self.before(node, at, GONE - EDGE)
            .iter()
            .all(|one| one.batch == 0)
    }
}
