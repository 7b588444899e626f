//! The offload ladder: how far each node is relieved of batch work, from what it reports. One rung at a
//! time, each with its reason; back down when the node has been calm for long enough. Interactive work
//! is not the ladder's business at all.
//!
//! The leader keeps a [`Ladder`] for as long as it leads: since when nodes are stressed or calm. Where
//! they are is replicated ([`Offload`](crate::offload::Offload)), so the next leader goes on from there
//! and measures the times anew.

mod signals;
mod stress;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pomona_common::{Class, ModelName, NodeId, Pools, Relief, Rung};

pub use signals::{NodeSignals, is_alone};

use crate::command::Command;
use crate::lasting::Lasting;
use crate::offload::Relieved;
use crate::smoothed::Smoothed;
use crate::state::ClusterState;
use stress::{Before, LITTLE_COMFORT, Limits, Stress, stress};

/// A node is stressed for so long before anything is done. It rests by itself within seconds ([`Pacer`](crate::Pacer)),
/// and most builds are over before anybody else need know.
const SUSTAINED: Duration = Duration::from_secs(60);
/// As that, where it will hardly be over sooner: on battery.
const LASTING: Duration = Duration::from_secs(20);
/// As that, where waiting does harm: memory is short, or the chip throttles.
const SUDDEN: Duration = Duration::from_secs(3);
/// Between two rungs upwards: long enough for the last one to show in the smoothed watts, of which a step
/// is seen to seven eighths then.
const STEP_UP: Duration = Duration::from_secs(10);
/// As that, where waiting does harm.
const STEP_UP_SUDDEN: Duration = Duration::from_secs(3);
/// What stands still does so for so long before it is moved for what may soon be over: a build. It is prefilled anew
/// where it goes, which costs more than a minute's rest. Nobody outside the engine knows whether an answer without a
/// token still waits or has most of its prompt in the cache: of the simulated day (`sim day`, 70 %) a hundredth of all
/// prefilling was lost with those that left as soon as others stood still.
const STANDS: Duration = Duration::from_secs(90);
/// A node is calm for so long before it is let go, and twice as long for every time that it was let go
/// too early.
const CALM: Duration = Duration::from_secs(20);
/// Between two rungs downwards, likewise.
const STEP_DOWN: Duration = Duration::from_secs(10);
/// Stress so soon after a node was let go, in seconds, says that it was let go too early.
const RELAPSE_S: u64 = 1800;
/// The calm that is asked for is doubled so often at most: to eighty seconds, in which clients wait for what stands
/// still.
const RELAPSES: u8 = 2;
/// A node that is heard of no more for so long is neither stressed nor calm; for less, time stands still.
const UNHEARD: Duration = Duration::from_secs(10);
/// Between two models that make room: another node may have to load the first one before it goes.
const UNLOADS: Duration = Duration::from_secs(300);
/// One that has made room does not come back for so long, in seconds: who opens what needs the memory has it open for
/// long.
const UNLOADED_S: u64 = 3600;
/// One node in so many hands batch work over at a time: those who take it are to be seen first.
const MOVING_SHARE: usize = 4;
/// It has this long for that before the next one begins.
const MOVING: Duration = Duration::from_secs(60);

/// What the leader remembers.
#[derive(Debug, Clone, Default)]
pub struct Ladder {
    nodes: BTreeMap<NodeId, Watched>,
}

#[derive(Debug, Clone, Default)]
struct Watched {
    watts: Smoothed,
    stressed: Lasting,
    calm: Lasting,
    /// As stressed, by what has to last before anything is done.
    sustained: Lasting,
    /// When it came to its rung, as far as this leader knows.
    rung_since: Option<(Rung, Duration)>,
    /// Since when what runs stands still, likewise.
    stands: Lasting,
    /// Since when it is short of memory.
    short: Lasting,
    /// When it was looked at last.
    looked: Duration,
}

impl Ladder {
    /// The steps that are due: at most one a node. `now` is of a clock that stands still while the machine
    /// sleeps; `signals` are of the nodes that are connected.
    pub fn steps(
        &mut self,
        state: &ClusterState,
        signals: &BTreeMap<NodeId, NodeSignals>,
        now: Duration,
        now_s: u64,
    ) -> Vec<Command> {
        self.nodes.retain(|id, _| signals.contains_key(id));
        let is_moving = |(id, node): &(&NodeId, &NodeSignals)| {
            let rung = state.relief(**id).rung;
            let moves = rung >= Rung::MoveQueued && node.batch() > 0;
            // What has not found a place by then keeps nobody else from looking for one.
            let watched = self.nodes.get(id);
            let is_young = watched.is_none_or(|watched| watched.at_rung_for(rung, now) < MOVING);
            moves && is_young && can_go(**id, node, state, signals, now_s)
        };
        let mut moving = signals.iter().filter(is_moving).count();
        let at_once = (signals.len() / MOVING_SHARE).max(1);
        let mut steps = Vec::new();
        // Of two that are short together one keeps it.
        let mut leaving = BTreeSet::new();
        for (id, node) in signals {
            let Some(record) = state.nodes.get(id) else {
                continue;
            };
            let watched = self.nodes.entry(*id).or_default();
            let before = state.offload.relieved.get(id).cloned().unwrap_or_default();
            let can_go = can_go(*id, node, state, signals, now_s);
            let limits = Limits {
                role: record.role,
                // Where nobody is, nobody minds.
                comfort: state.comfort(*id, &node.chip).filter(|_| !node.is_alone),
                watts: watched.smooth(node, now),
                is_needless: is_cramped(*id, node, state) && has_substitutes(node, state, signals, now_s),
                can_go,
                gates: state.gates.rungs(*id).collect(),
            };
            let stress = watched.look(node, limits, before.relief.rung, now);
            let has_room = can_go && (before.relief.rung >= Rung::MoveQueued || moving < at_once);
            let step = watched
                .up(node, &before, stress.as_ref(), has_room, now, now_s)
                .map(|rung| climbed(&before, rung, stress.as_ref(), node.occupied, now_s))
                .or_else(|| {
                    let rung = watched.down(node, &before, stress.as_ref(), now)?;
                    Some(descended(&before, rung, now_s))
                });
            let unloads = |relieved: &Relieved| relieved.relief.rung == Rung::Unload;
            let is_taken = |relieved: &Relieved| !unloads(relieved) || leaving.insert(node.spare.clone());
            if let Some(relieved) = step.filter(is_taken) {
                moving += usize::from(relieved.relief.rung >= Rung::MoveQueued);
                steps.push(command(*id, node, before.relief.rung, relieved, now_s));
            }
        }
        steps
    }
}

impl Watched {
    fn smooth(&mut self, node: &NodeSignals, now: Duration) -> Option<f32> {
        Some(self.watts.add(node.power.value()?.get(), now))
    }

    /// Notes whether the node is stressed or calm. One that is not heard of is neither.
    fn look(&mut self, node: &NodeSignals, limits: Limits, rung: Rung, now: Duration) -> Option<Stress> {
        if self.rung_since.is_none_or(|(known, _)| known != rung) {
            self.rung_since = Some((rung, now));
        }
        self.stands.note(rung >= Rung::Pause, now);
        let passed = now.saturating_sub(std::mem::replace(&mut self.looked, now));
        if node.heard.is_late() {
            let is_gone = Duration::from_millis(node.heard.age_ms) > UNHEARD;
            self.stressed.pause(passed, is_gone);
            self.calm.pause(passed, is_gone);
            self.sustained.pause(passed, is_gone);
            self.short.pause(passed, is_gone);
            return None;
        }
        let before = Before {
            stressed: self.stressed.is_so() || rung > Rung::Normal,
            short: self.short.is_so(),
        };
        let stress = stress(node, limits, before);
        let is_short = stress.as_ref().is_some_and(|stress| stress.frees_memory);
        self.short.note(is_short, now);
        // What justifies a lower rung only is calm enough to come down to it; from above a pause the way
        // down leads past it.
        let justified = rung.min(Rung::Pause);
        let is_stressed = stress.as_ref().is_some_and(|stress| stress.up_to >= justified);
        self.stressed.note(is_stressed, now);
        self.calm.note(!is_stressed, now);
        let waits = |stress: &Stress| stress.up_to > stress.sudden_to.max(rung);
        self.sustained
            .note(is_stressed && stress.as_ref().is_some_and(waits), now);
        stress
    }

    /// How long it has been on this rung, as far as it was looked at since.
    fn at_rung_for(&self, rung: Rung, now: Duration) -> Duration {
        let since = self.rung_since.filter(|(known, _)| *known == rung);
        since.map_or(Duration::ZERO, |(_, since)| now.saturating_sub(since))
    }

    /// The rung above, when it is time and there is something for it to do; the same one when its memory is
    /// to be given back as well, or one more model makes room.
    fn up(
        &self,
        node: &NodeSignals,
        before: &Relieved,
        stress: Option<&Stress>,
        has_room: bool,
        now: Duration,
        now_s: u64,
    ) -> Option<Rung> {
        let rung = before.relief.rung;
        let is_sudden = stress.is_some_and(|stress| stress.sudden_to > rung);
        let lasts = stress.is_some_and(|stress| stress.lasts);
        let frees_memory = stress.is_some_and(|stress| stress.frees_memory);
        if rung >= Rung::Pause && frees_memory && !before.relief.frees_memory {
            return Some(rung);
        }
        let has_lasted = |since: &Lasting, wanted| since.lasted(now).is_some_and(|lasted| lasted >= wanted);
        let unloads = unloads(node) && has_lasted(&self.short, SUSTAINED);
        let since_last = Duration::from_secs(now_s.saturating_sub(before.since_s));
        if rung == Rung::Unload && unloads && since_last >= UNLOADS {
            return Some(rung);
        }
        // Work that stands still goes where it can, whether or not standing still has helped.
        let is_stranded = rung >= Rung::Pause && node.batch() > 0 && !node.heard.is_late();
        let sustained = if lasts { LASTING } else { SUSTAINED };
        let begins = rung == Rung::Normal || before.fell;
        let up_to = match stress {
            Some(stress) if stress.up_to > rung && has_lasted(&self.sustained, sustained) => stress.up_to,
            // What does harm does not wait, and takes nothing along that has not waited.
            Some(stress) if is_sudden && (!begins || has_lasted(&self.stressed, SUDDEN)) => stress.sudden_to,
            _ if is_stranded => Rung::MoveRunning,
            _ => return None,
        };
        let step = if is_sudden { STEP_UP_SUDDEN } else { STEP_UP };
        if rung > Rung::Normal && self.at_rung_for(rung, now) < step {
            return None;
        }
        // Where a rest did not help for long, another one will not either; but what a person does meanwhile is soon over,
        // and so is the rest when nothing is too much any more.
        let relapses = before.relapses > 0 && stress.is_some() && !node.occupied;
        let stood_for = self.stands.lasted(now).unwrap_or_default();
        let stood = is_sudden || lasts || relapses || stood_for >= STANDS;
        let mut above = Rung::ALL
            .into_iter()
            .filter(|next| *next > rung && *next <= up_to);
        above.find(|next| match next {
            Rung::Normal => false,
            Rung::Hold => true,
            // It is for who is disturbed: a machine is as warm with a quarter of the slots.
            Rung::Tighten => node.running > 0 && up_to == Rung::Tighten,
            Rung::Pause => node.running > 0,
            Rung::MoveQueued => node.waiting > 0 && has_room && (stood || node.running == 0),
            Rung::MoveRunning => node.batch() > 0 && has_room && stood,
            Rung::Unload => unloads,
        })
    }

    /// The rung below, when the node has been calm for long enough.
    fn down(
        &self,
        node: &NodeSignals,
        before: &Relieved,
        stress: Option<&Stress>,
        now: Duration,
    ) -> Option<Rung> {
        let rung = before.relief.rung;
        let calm_for = self.calm.lasted(now)?;
        let asked = CALM * (1 << before.relapses.min(RELAPSES));
        if rung == Rung::Normal || calm_for < asked || self.at_rung_for(rung, now) < STEP_DOWN {
            return None;
        }
        Some(match rung {
            _ if rung <= Rung::Hold => Rung::Normal,
            // Nothing is left that could be held back less.
            _ if node.batch() == 0 => Rung::Hold,
            Rung::Tighten => Rung::Hold,
            // Above, work stands still. It goes on in all its slots, or in those that disturb nobody.
            _ if stress.is_none() => Rung::Hold,
            _ => Rung::Tighten,
        })
    }
}

fn climbed(before: &Relieved, rung: Rung, stress: Option<&Stress>, occupied: bool, now_s: u64) -> Relieved {
    let relapsed = before.fell && now_s.saturating_sub(before.since_s) < RELAPSE_S;
    let relapses = match before.relief.rung {
        // What a person does meanwhile says nothing of how long the last calm was.
        _ if relapsed && occupied => before.relapses,
        _ if relapsed => before.relapses.saturating_add(1).min(RELAPSES),
        Rung::Normal => 0,
        _ => before.relapses,
    };
    let reason = stress.map_or_else(
        || "what stands still goes on elsewhere".to_owned(),
        |stress| stress.reason.clone(),
    );
    // What was given back below a pause says nothing of the next one.
    let freed = before.relief.frees_memory && before.relief.rung >= Rung::Pause;
    Relieved {
        relief: Relief {
            rung,
            frees_memory: freed || stress.is_some_and(|stress| stress.frees_memory),
        },
        since_s: now_s,
        reason,
        fell: false,
        relapses,
    }
}

fn descended(before: &Relieved, rung: Rung, now_s: u64) -> Relieved {
    Relieved {
        relief: Relief {
            rung,
            frees_memory: before.relief.frees_memory && rung >= Rung::Pause,
        },
        since_s: now_s,
        reason: "it has been calm".to_owned(),
        fell: true,
        relapses: before.relapses,
    }
}

/// Whether a model can make room: what works there goes elsewhere first.
fn unloads(node: &NodeSignals) -> bool {
    node.batch() == 0 && node.spare.is_some()
}

/// The step to a rung.
fn command(id: NodeId, node: &NodeSignals, seen: Rung, relieved: Relieved, now_s: u64) -> Command {
    match &node.spare {
        Some(model) if relieved.relief.rung == Rung::Unload => Command::Unload {
            node: id,
            model: model.clone(),
            until_s: now_s + UNLOADED_S,
            seen,
            relieved,
        },
        _ => Command::Relieve {
            node: id,
            seen,
            relieved,
        },
    }
}

/// Whether another node that is at ease has one of the models that work here, and a free slot. Every
/// answer by itself stays until another node has promised to go on with it.
fn can_go(
    from: NodeId,
    node: &NodeSignals,
    state: &ClusterState,
    signals: &BTreeMap<NodeId, NodeSignals>,
    now_s: u64,
) -> bool {
    let takes = |id: &NodeId, other: &NodeSignals| {
        *id != from && other.free_slots > 0 && is_at_ease(*id, other, state, now_s)
    };
    let has = |id: &NodeId, other: &NodeSignals| {
        let mut works = node.busy.iter();
        works.any(|model| may_have(*id, other, model, state, now_s))
    };
    signals
        .iter()
        .any(|(id, other)| takes(id, other) && has(id, other))
}

/// Whether batch of a model may be where it is loaded, by the list of its class and the gates. Of what keys allow the
/// ladder knows nothing: each answer finds that out by itself.
fn may_have(id: NodeId, node: &NodeSignals, model: &ModelName, state: &ClusterState, now_s: u64) -> bool {
    let list = state.fallback(Class::Batch);
    node.loaded.contains(model)
        && state.rank(&list, (model, &Pools::default()), id).is_some()
        && !state.gates.relocates(id, model, now_s)
}

/// Whether a node takes batch work, as far as its slots allow.
fn is_at_ease(id: NodeId, node: &NodeSignals, state: &ClusterState, now_s: u64) -> bool {
    !node.heard.is_late() && !state.spares(id) && !state.availability(id, now_s).is_draining()
}

/// Whether somebody is known to be at a machine where little is comfortable.
fn is_cramped(id: NodeId, node: &NodeSignals, state: &ClusterState) -> bool {
    let comfort = state.comfort(id, &node.chip).filter(|_| node.is_attended);
    comfort.is_some_and(|comfort| comfort < LITTLE_COMFORT)
}

/// Whether batch has no need of a node where little is comfortable: of its models each is at others that take it, and
/// they are at least as many as there are such nodes with it.
fn has_substitutes(
    node: &NodeSignals,
    state: &ClusterState,
    signals: &BTreeMap<NodeId, NodeSignals>,
    now_s: u64,
) -> bool {
    let is_done_elsewhere = |model: &ModelName| {
        let stays = |(id, other): &(&NodeId, &NodeSignals)| {
            may_have(**id, other, model, state, now_s) && !state.availability(**id, now_s).is_draining()
        };
        let all = signals.iter().filter(stays);
        let (cramped, others): (Vec<_>, Vec<_>) = all.partition(|(id, other)| is_cramped(**id, other, state));
        let takes_it = |(id, other): &(&NodeId, &NodeSignals)| is_at_ease(**id, other, state, now_s);
        others.into_iter().filter(takes_it).count() >= cramped.len().max(1)
    };
    !node.loaded.is_empty() && node.loaded.iter().all(is_done_elsewhere)
}

#[cfg(test)]
mod tests;
