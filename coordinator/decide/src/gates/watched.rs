//! What the leader remembers of one node for its gates.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::gate::{Gate, Stage};
use pomona_common::{Class, ModelName, NodeId, Rung, Slo};

use super::Choices;
use super::book::Transition;
use super::rules::{self, RULES, Remedy, Rule, rule};
use super::speed::Speed;
use super::swap::Swap;
use super::tail::Tail;
use super::times::Times;
use crate::ladder::NodeSignals;
use crate::smoothed::Smoothed;
use crate::state::ClusterState;

/// Leaders look far more often.
const LOOKS: Duration = Duration::from_secs(2);
/// A node that is heard of no more, or a measure that cannot be taken, for so long begins anew; for less,
/// time stands still.
pub(super) const UNHEARD: Duration = Duration::from_secs(10);
/// A model that answered somebody who waits within this time is a person's.
const PERSONAL: Duration = Duration::from_secs(3600);
/// A leader has watched a node for so long before it says what no person uses there.
const LEARNS: Duration = Duration::from_secs(300);
/// Answers that are late although no batch work was there for so long are late for another reason.
const BATCH_GONE: Duration = Duration::from_secs(300);
/// For so long after that they are no reason to hold it.
const EXCUSED: Duration = Duration::from_secs(3600);
/// Answers that are slow for so long although batch is small are slow for another reason: twice what their window is.
const NO_HELP: Duration = Duration::from_secs(600);
/// While batch work was there within this time, late answers are a reason to hold it.
const BATCH_LATELY: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Debug, Clone, Default)]
pub(super) struct Watched {
    swap: Swap,
    tail: Tail,
    speed: Speed,
    watts: Smoothed,
    /// When each model last answered somebody who waits.
    personal: BTreeMap<ModelName, Duration>,
    /// When it was looked at first.
    began: Option<Duration>,
    /// When it last had batch work.
    batch_at: Option<Duration>,
    /// The rung at the last look: when batch is tightened, tails are measured anew.
    rung: Rung,
    times: BTreeMap<Gate, Times>,
    /// Until then late answers are known to have another reason than batch work.
    excused_until: Duration,
    /// Since when answers are slow although batch is small.
    slow_since: Option<Duration>,
    /// Until then slow answers are known to have another reason.
    slow_excused_until: Duration,
    /// When it was looked at last.
    pub(super) looked: Duration,
}

/// One look at a node.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) state: &'a ClusterState,
    pub(super) id: NodeId,
    pub(super) name: &'a str,
    pub(super) choices: Choices,
    pub(super) node: &'a NodeSignals,
    /// Of all nodes that are there.
    pub(super) signals: &'a BTreeMap<NodeId, NodeSignals>,
    pub(super) now: Duration,
    pub(super) now_s: u64,
}

impl Look<'_> {
    fn slo(&self) -> Slo {
        self.state.slo(Class::Interactive)
    }

    fn is_elsewhere(&self, model: &ModelName) -> bool {
        let mut others = self.signals.iter().filter(|(id, _)| **id != self.id);
        others.any(|(_, other)| other.loaded.contains(model))
    }

    /// Whether another node that is well has it, and is not to give it up.
    fn stays_elsewhere(&self, model: &ModelName) -> bool {
        let mut others = self.signals.iter().filter(|(id, _)| **id != self.id);
        others.any(|(id, other)| {
            other.loaded.contains(model)
                && !other.heard.is_late()
                && self.state.relief(*id).rung < Rung::Unload
                && !self.state.gates.relocates(*id, model, self.now_s)
                && !self.state.availability(*id, self.now_s).is_draining()
        })
    }
}

impl Watched {
    /// The transitions that are due.
    pub(super) fn look(&mut self, look: Look<'_>, due: &mut Vec<Transition>) {
        let passed = look
            .now
            .saturating_sub(std::mem::replace(&mut self.looked, look.now));
        // One whose session was dialled anew has not been looked at meanwhile.
        if look.node.heard.is_late() || passed > LOOKS {
            self.times
                .values_mut()
                .for_each(|times| times.pause(passed, look.now));
        }
        if look.node.heard.is_late() {
            return;
        }
        self.take(look);
        let rules = RULES.iter().filter(|rule| rule.gate != Gate::Kills);
        due.extend(rules.filter_map(|rule| self.transition(rule, look, passed)));
    }

    fn take(&mut self, look: Look<'_>) {
        let Look { node, now, .. } = look;
        self.began.get_or_insert(now);
        if node.batch() > 0 {
            self.batch_at = Some(now);
        }
        let stage = look.state.gates.stage(look.id, &(Gate::Swap, None));
        self.swap.take(node, stage, self.batch_at, now);
        if let Some(signs) = &node.signs {
            let slo = look.slo();
            for one in self.tail.take(signs.answers, &signs.first_tokens, &slo, now) {
                if look.state.catalogue.contains_key(&one.model) {
                    self.personal.insert(one.model.clone(), now);
                }
            }
        }
        if let Some(speeds) = node.speeds {
            self.speed.take(speeds, now);
        }
        self.personal.retain(|_, at| now.saturating_sub(*at) < PERSONAL);
        let rung = look.state.relief(look.id).rung;
        if self.rung < Rung::Tighten && rung >= Rung::Tighten {
            self.tail.begin_anew(now);
        }
        self.rung = rung;
        self.excuse_slowness(now);
    }

    /// Slow answers that stay so while batch is small have another reason: a model that is too large, most likely.
    fn excuse_slowness(&mut self, now: Duration) {
        if self.rung < Rung::Tighten || !self.speed.is_slow() {
            self.slow_since = None;
            return;
        }
        let since = *self.slow_since.get_or_insert(now);
        if now.saturating_sub(since) >= NO_HELP {
            self.slow_excused_until = now + EXCUSED;
            self.slow_since = None;
        }
    }

    fn transition(&mut self, rule: &Rule, look: Look<'_>, passed: Duration) -> Option<Transition> {
        let now = look.now;
        let value = self.measure(rule.gate, look);
        let subject = (rule.gate, None);
        let stage = look.state.gates.stage_since(look.id, &subject);
        // A tail counts when batch may be why, and cannot be made smaller any more.
        let counts = rule.gate != Gate::Tail || (self.rung >= Rung::Tighten && self.may_blame_batch());
        let times = self.times.entry(rule.gate).or_default();
        times.note(rule, stage, value, counts, now);
        if value.is_none() {
            times.pause(passed, now);
            return None;
        }
        let samples = times.evidence(now);
        let latest = times.latest().unwrap_or_default();
        let next = times.next(rule, now);
        let (to, reason, ticket) = match next {
            None if rule.gate == Gate::Tail && self.is_late_by_itself(stage.0, latest, now) => {
                self.excused_until = now + EXCUSED;
                let reason = format!("{latest:.1} x, with no batch work to blame");
                (Stage::Clear, reason, Some(late_ticket(look.name)))
            }
            None => return None,
            Some((to, reason)) => (to, reason, None),
        };
        let relocates = self.relocated(rule, to, look);
        if to == stage.0 && relocates.is_none() && look.state.gates.has_ticket(look.id, &subject) {
            // Nothing is left that it could do, and that is said.
            return None;
        }
        if rule.gate == Gate::Tail {
            self.tail.begin_anew(now);
        }
        let ticket = ticket.or_else(|| memory_ticket(rule, to, look.name, relocates.as_ref()));
        Some(Transition {
            number: 0,
            node: look.id,
            subject,
            from: stage.0,
            to,
            at_s: look.now_s,
            reason,
            samples,
            relocates,
            ticket,
        })
    }

    /// The gate's measure, if it can be told.
    fn measure(&mut self, gate: Gate, look: Look<'_>) -> Option<f32> {
        match gate {
            Gate::Swap if look.choices.literal_swap => self.swap.literal(),
            Gate::Swap => self.swap.measure(look.now),
            Gate::Tail => self.tail.measure(&look.slo(), look.now),
            Gate::Residency => look.node.resident,
            Gate::Kills => None,
            Gate::Comfort => {
                let watts = look.node.power.value();
                let smooth = watts.map(|watts| self.watts.add(watts.get(), look.now));
                match look.state.comfort(look.id, &look.node.chip) {
                    Some(comfort) => Some(rules::of_comfort(smooth?, comfort)),
                    // Where nothing is uncomfortable it is at ease.
                    None => Some(0.0),
                }
            }
        }
    }

    /// Why interactive answers are late or slow, if they are and batch work may be why.
    pub(super) fn late(&self) -> Option<String> {
        if !self.may_blame_batch() {
            return None;
        }
        // While too few answers are known of since it was tightened, what was measured before stands.
        let latest = self
            .times
            .get(&Gate::Tail)
            .and_then(Times::latest)
            .unwrap_or_default();
        if latest > rule(Gate::Tail).limit {
            return Some(format!(
                "one in twenty interactive answers begins {latest:.1} times as late as most"
            ));
        }
        (self.speed.is_slow() && self.looked >= self.slow_excused_until)
            .then(|| "more than one in twenty interactive answers come slower than is promised".into())
    }

    /// Whether batch work may be why answers are late.
    fn may_blame_batch(&self) -> bool {
        let is_lately = |at| self.looked.saturating_sub(at) < BATCH_LATELY;
        self.batch_at.is_some_and(is_lately) && self.looked >= self.excused_until
    }

    /// Whether a tail gate has acted, and answers are late still with no batch work there.
    fn is_late_by_itself(&self, stage: Stage, latest: f32, now: Duration) -> bool {
        // Whoever begins to look does not know for how long there was none.
        let since = self.batch_at.or(self.began);
        let is_gone = since.is_some_and(|at| now.saturating_sub(at) >= BATCH_GONE);
        stage != Stage::Clear && is_gone && latest > rule(Gate::Tail).clears_at
    }

    /// The model that a second remedy moves away: the heaviest that no person uses there, of equals one that
    /// answers elsewhere.
    fn relocated(&self, rule: &Rule, to: Stage, look: Look<'_>) -> Option<ModelName> {
        if !moves_models(rule) || to != Stage::Escalated {
            return None;
        }
        self.heaviest(look, |_| true)
    }

    /// The model that makes room where memory is short: the heaviest that no person uses there, and that stays at
    /// another node. A new leader does not know at first what people use.
    pub(super) fn spare(&self, look: Look<'_>) -> Option<ModelName> {
        let watched_for = self
            .began
            .map_or(Duration::ZERO, |began| look.now.saturating_sub(began));
        let is_free = |model: &ModelName| {
            let is_pinned = look.state.placement.policy(model).pins.contains(&look.id);
            look.stays_elsewhere(model) && !is_pinned && !look.node.busy.contains(model)
        };
        self.heaviest(look, is_free).filter(|_| watched_for >= LEARNS)
    }

    fn heaviest(&self, look: Look<'_>, is_free: impl Fn(&ModelName) -> bool) -> Option<ModelName> {
        let weights = look.node.weights.iter();
        let others = weights.filter(|(model, _)| {
            let relocates = look.state.gates.relocates(look.id, model, look.now_s);
            // What a server of another program holds it goes on holding.
            let record = look.state.catalogue.get(*model);
            let is_ours = record.is_none_or(|record| !record.digests.is_adopted());
            !self.personal.contains_key(*model) && !relocates && is_ours && is_free(model)
        });
        others
            .max_by_key(|(model, bytes)| (**bytes, look.is_elsewhere(model), std::cmp::Reverse(*model)))
            .map(|(model, _)| model.clone())
    }
}

fn moves_models(rule: &Rule) -> bool {
    rule.secondary
        .is_some_and(|(_, remedy)| remedy == Remedy::Relocate)
}

/// What an operator is asked to do where no remedy is left.
fn memory_ticket(rule: &Rule, to: Stage, name: &str, relocates: Option<&ModelName>) -> Option<String> {
    (moves_models(rule) && to == Stage::Escalated && relocates.is_none()).then(|| {
        format!(
            "{name} has too little memory for what a person uses there, and nothing else to move: give it fewer slots (`pomona knobs set`) or smaller models"
        )
    })
}

fn late_ticket(name: &str) -> String {
    format!(
        "interactive answers of {name} are late with no batch work there: give them a smaller model, or a machine of their own"
    )
}
