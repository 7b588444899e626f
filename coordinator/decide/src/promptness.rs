//! Whether what a person asks of the machine in front of them comes late there because it is slowed down, and sooner
//! elsewhere. A laptop without a fan prefills at two thirds of its speed once it is warm, and a build takes its share of
//! any; a machine at its usual speed keeps what its person asks, however long the prompt is.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pomona_common::engine::PromptStep;
use pomona_common::report::{MachineReport, Thermal};
use pomona_common::{Accounting, Generation, ModelName, NodeId, Slo, limits};

use crate::affinity::{Affinity, Marks};
use crate::latest::{LATEST, Latest};
use crate::prefills::{self, long_prompt};

/// Steps of a kind that are remembered, and how many of them say what is usual.
const KEPT: usize = 32;
const ENOUGH: usize = 4;
/// How fast steps were is how fast they are for so long, then the machine is tried again.
const UNKNOWN_LASTS: Duration = Duration::from_secs(300);
/// What a build costs a machine is what the next one does, for so long: one in the afternoon may be another one.
const KNOWN_LASTS: Duration = Duration::from_secs(3600);
/// Slower by less than this is how steps of a kind differ by themselves.
const NOISE: f64 = 1.15;
/// What a machine says of itself is so late at most: builds are looked for every ten seconds.
const LAG: Duration = Duration::from_secs(12);
/// Who has not been read for so long has a probe that hangs.
const STALE: Duration = Duration::from_secs(30);
/// What slowing may add to a prompt, of the time to the first token that is promised of any: the rest is for a queue, and
/// for the first token itself.
const SHARE: f64 = 0.9;
/// Shorter steps say more of what any step costs than of what a token does.
const LONG_STEP: u32 = 128;
/// Answers of others that say how soon they are: one may have waited.
const ANSWERS: usize = 2;

/// What slows an engine down, of what a machine says of itself as soon as it is so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Strain {
    /// Its chip is warm: it may throttle.
    pub is_warm: bool,
    /// A build or an indexer is at work.
    pub builds: bool,
}

impl Strain {
    /// What a machine says of itself.
    pub fn of(machine: &MachineReport) -> Self {
        let thermal = machine.thermal.value();
        Self {
            is_warm: thermal.is_some_and(|thermal| thermal >= Thermal::Fair),
            builds: machine.conditions.activity.indexing.value() == Some(true),
        }
    }

    /// Each of two alone.
    fn parts(self) -> Vec<Self> {
        let alone = [
            Self {
                builds: false,
                ..self
            },
            Self {
                is_warm: false,
                ..self
            },
        ];
        let is_both = self.is_warm && self.builds;
        alone.into_iter().filter(|_| is_both).collect()
    }

    /// How many steps say how it is: one may have had company, and where nothing is known to slow them no few are like it.
    fn least(self) -> usize {
        if self == Self::default() { LATEST } else { 2 }
    }

    /// For how long: a build costs the next time what it cost, a warm chip may not throttle yet, or no more.
    fn lasts(self) -> Duration {
        if self.builds && !self.is_warm {
            KNOWN_LASTS
        } else {
            UNKNOWN_LASTS
        }
    }
}

/// Steps that take alike for each token: powers of two of the tokens that are computed, and quarters of one of those that
/// are attended to, within which steps of a small model, of whose time that is half, differ by a tenth.
type Kind = (u32, u32);

/// How a model's prompts are computed here.
#[derive(Debug, Clone, Default)]
struct Here {
    /// Milliseconds for each token of the latest steps of each kind, while nothing was known to slow them.
    calm: BTreeMap<Kind, VecDeque<(Duration, f64)>>,
    /// How many times as long as is usual the latest steps took, under each strain.
    slower: BTreeMap<Strain, Latest>,
}

impl Here {
    /// The lower quartile: what is slower was slowed down by something.
    fn usual_of(&self, kind: Kind) -> Option<f64> {
        let mut all: Vec<f64> = self.calm.get(&kind)?.iter().map(|(_, took)| *took).collect();
        all.sort_by(f64::total_cmp);
        (all.len() >= ENOUGH)
            .then(|| all.get(all.len() / 4).copied())
            .flatten()
    }

    /// Of all kinds, the middle one.
    fn usual(&self) -> Option<f64> {
        let mut all: Vec<f64> = self.calm.keys().filter_map(|kind| self.usual_of(*kind)).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }

    /// How many times as long as usual steps take under a strain. Under two of which only one is known it is no less than
    /// that.
    fn slower(&self, strain: Strain, now: Duration) -> Option<f64> {
        let of = |strain: Strain| {
            self.slower
                .get(&strain)?
                .middle(strain.least(), strain.lasts(), now)
        };
        let parts = strain.parts().into_iter().filter_map(of);
        of(strain).or_else(|| parts.max_by(f64::total_cmp))
    }

    /// What ran under a strain from then on may have run under another one.
    fn forget_since(&mut self, strain: Strain, since: Duration) {
        if let Some(slower) = self.slower.get_mut(&strain) {
            slower.forget_since(since);
        }
        if strain == Strain::default() {
            let calm = self.calm.values_mut();
            calm.for_each(|calm| calm.retain(|(at, _)| *at < since));
        }
    }

    fn note(&mut self, step: &PromptStep, strain: Strain, now: Duration) {
        let context = (4.0 * (step.context.max(1) as f64).log2()) as u32;
        let kind = (step.tokens.ilog2(), context);
        let took = step.took_us as f64 / 1e3 / f64::from(step.tokens);
        if strain == Strain::default() {
            let calm = self.calm.entry(kind).or_default();
            if calm.len() == KEPT {
                calm.pop_front();
            }
            calm.push_back((now, took));
        }
        if let Some(usual) = self.usual_of(kind) {
            self.slower.entry(strain).or_default().note(took / usual, now);
        }
    }
}

/// See the module's documentation. Times are of one clock.
#[derive(Debug)]
pub struct Promptness {
    me: NodeId,
    /// What the machine said of itself last, and when.
    strain: Strain,
    read: Option<Duration>,
    here: BTreeMap<ModelName, Here>,
    /// Milliseconds to the first token for each one that had to be computed.
    elsewhere: BTreeMap<ModelName, Latest>,
    /// Who has the beginnings of prompts.
    affinity: Affinity,
}

impl Promptness {
    /// Of this node, of which nothing is known.
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            strain: Strain::default(),
            read: None,
            here: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            affinity: Affinity::default(),
        }
    }

    /// The machine was read. It says late what it says anew: the steps of just before count for nothing.
    pub fn note_strain(&mut self, strain: Strain, now: Duration) {
        let before = std::mem::replace(&mut self.strain, strain);
        if before != strain && self.read.is_some() {
            let since = now.saturating_sub(LAG);
            self.here
                .values_mut()
                .for_each(|here| here.forget_since(before, since));
        }
        self.read = Some(now);
    }

    /// The engine here has computed a person's prompt, or a part of it.
    pub fn note_step(&mut self, step: &PromptStep, now: Duration) {
        if self.is_read(now) && step.tokens >= LONG_STEP && step.took_us > 0 {
            let here = of_model(&mut self.here, &step.model);
            here.note(step, self.strain, now);
        }
    }

    /// An answer to a request that came to this node has ended.
    pub fn note_answer(&mut self, generation: &Generation, accounting: &Accounting, now: Duration) {
        let Some(node) = accounting.node else {
            return;
        };
        self.affinity.note(&Marks::of(generation), node, now);
        let ttft_ms = accounting.queue_ms + accounting.prefill_ms;
        let uncached = long_prompt(generation, accounting).filter(|_| node != self.me);
        if let Some(uncached) = uncached.filter(|_| ttft_ms.is_finite() && ttft_ms > 0.0) {
            let elsewhere = of_model(&mut self.elsewhere, &generation.model);
            elsewhere.note(ttft_ms / f64::from(uncached), now);
        }
    }

    /// Whether slowing adds so much to the first token here that it comes late by that alone, and it comes sooner elsewhere
    /// as far as is known: of a request that came so long ago, and is only now asked for elsewhere. Who is not known is taken
    /// to be as fast as this machine usually is.
    pub fn is_late(&self, (generation, waited): (&Generation, Duration), slo: &Slo, now: Duration) -> bool {
        let here = self.here.get(&generation.model).filter(|_| self.is_read(now));
        let slower = here.and_then(|here| here.slower(self.strain, now));
        let (Some(usual), Some(slower)) = (here.and_then(Here::usual), slower) else {
            return false;
        };
        let uncached = self.uncached(generation, now);
        let usual_ms = usual * f64::from(uncached.here);
        let takes_ms = usual_ms * slower;
        let elsewhere = self.elsewhere.get(&generation.model);
        let there = elsewhere.and_then(|latest| latest.middle(ANSWERS, prefills::LASTS, now));
        let there_ms = there.unwrap_or(usual) * f64::from(uncached.elsewhere);
        let is_sooner = there_ms < takes_ms - waited.as_secs_f64() * 1e3;
        let promised = f64::from(slo.ttft_ms);
        promised > 0.0 && slower >= NOISE && takes_ms - usual_ms > SHARE * promised && is_sooner
    }

    /// Forgets how fast a model is here: its contents may be others now.
    pub fn forget(&mut self, model: &ModelName) {
        self.here.remove(model);
    }

    /// Whether it is known what slows the machine down now.
    fn is_read(&self, now: Duration) -> bool {
        self.read.is_some_and(|read| now.saturating_sub(read) < STALE)
    }

    fn uncached(&self, generation: &Generation, now: Duration) -> Uncached {
        let warm = self.affinity.warm(&Marks::of(generation), now);
        let tokens = u32::try_from(generation.prompt.len()).unwrap_or(u32::MAX);
        let elsewhere = warm.iter().filter(|(node, _)| **node != self.me);
        let most = elsewhere.map(|(_, warm)| warm.tokens).max().unwrap_or(0);
        let own = warm.get(&self.me).map_or(0, |warm| warm.tokens);
        Uncached {
            here: tokens.saturating_sub(own),
            elsewhere: tokens.saturating_sub(most),
        }
    }
}

/// Tokens of a prompt that have to be computed: by the engine here, and by who has most of it elsewhere.
struct Uncached {
    here: u32,
    elsewhere: u32,
}

/// What is known of a model; of as many as a node may hold.
fn of_model<'a, T: Default>(known: &'a mut BTreeMap<ModelName, T>, model: &ModelName) -> &'a mut T {
    if known.len() >= limits::MODELS && !known.contains_key(model) {
        known.pop_first();
    }
    known.entry(model.clone()).or_default()
}

#[cfg(test)]
mod tests;
