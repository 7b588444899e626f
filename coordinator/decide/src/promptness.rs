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
/// What a build costs a machine is what the next one does.
const KNOWN_LASTS: Duration = Duration::from_secs(24 * 3600);
/// Slower by less than this is how steps of a kind differ by themselves.
const NOISE: f64 = 1.15;
/// What slowing may add to a prompt, of the time to the first token that is promised of any: the rest is for a queue, and
/// for the first token itself.
const SHARE: f64 = 0.9;

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

    /// How many steps say how it is: where nothing is known to slow them, no few.
    fn least(self) -> usize {
        if self == Self::default() { LATEST } else { 1 }
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
    calm: BTreeMap<Kind, VecDeque<f64>>,
    /// How many times as long as is usual the latest steps took, under each strain.
    slower: BTreeMap<Strain, Latest>,
}

impl Here {
    /// The lower quartile: what is slower was slowed down by something.
    fn usual_of(&self, kind: Kind) -> Option<f64> {
        let mut all: Vec<f64> = self.calm.get(&kind)?.iter().copied().collect();
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

    fn note(&mut self, step: &PromptStep, strain: Strain, now: Duration) {
        let context = (4.0 * (step.context.max(1) as f64).log2()) as u32;
        let kind = (step.tokens.ilog2(), context);
        let took = step.took_us as f64 / 1e3 / f64::from(step.tokens);
        if strain == Strain::default() {
            let calm = self.calm.entry(kind).or_default();
            if calm.len() == KEPT {
                calm.pop_front();
            }
            calm.push_back(took);
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
            here: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            affinity: Affinity::default(),
        }
    }

    /// The engine here has computed a person's prompt, or a part of it.
    pub fn note_step(&mut self, step: &PromptStep, strain: Strain, now: Duration) {
        if step.tokens >= prefills::LONG && step.took_us > 0 {
            let here = of_model(&mut self.here, &step.model);
            here.note(step, strain, now);
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

    /// Whether the first token comes later here than promised because the machine is slowed down, and sooner elsewhere as
    /// far as is known: of a request that came so long ago, and is only now asked for elsewhere. Who is not known is taken
    /// to be as fast as this machine usually is.
    pub fn is_late(
        &self,
        (generation, waited): (&Generation, Duration),
        slo: &Slo,
        strain: Strain,
        now: Duration,
    ) -> bool {
        let here = self.here.get(&generation.model);
        let slower = here.and_then(|here| here.slower(strain, now));
        let (Some(usual), Some(slower)) = (here.and_then(Here::usual), slower) else {
            return false;
        };
        let uncached = self.uncached(generation, now);
        let usual_ms = usual * f64::from(uncached.here);
        let takes_ms = usual_ms * slower;
        let elsewhere = self.elsewhere.get(&generation.model);
        let there = elsewhere.and_then(|latest| latest.middle(1, prefills::LASTS, now));
        let there_ms = there.unwrap_or(usual) * f64::from(uncached.elsewhere);
        let is_sooner = there_ms < takes_ms - waited.as_secs_f64() * 1e3;
        let promised = f64::from(slo.ttft_ms);
        promised > 0.0 && slower >= NOISE && takes_ms - usual_ms > SHARE * promised && is_sooner
    }

    /// Forgets how fast a model is here: its contents may be others now.
    pub fn forget(&mut self, model: &ModelName) {
        self.here.remove(model);
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
mod tests {
    use pomona_common::Class;
    use proptest::prelude::*;

    use super::*;

    const CALM: Strain = Strain {
        is_warm: false,
        builds: false,
    };
    const WARM: Strain = Strain {
        is_warm: true,
        ..CALM
    };
    const BUILDS: Strain = Strain { builds: true, ..CALM };
    const BOTH: Strain = Strain { builds: true, ..WARM };
    const ME: NodeId = NodeId::from_bits(1);
    const MINI: NodeId = NodeId::from_bits(2);

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn ask(tokens: u32) -> Generation {
        let name: ModelName = "editor".parse().unwrap_or_else(|error| panic!("{error}"));
        Generation {
            prompt: (0..tokens).collect(),
            ..Generation::canary(name)
        }
    }

    /// Steps in which a token takes so many milliseconds.
    fn steps(promptness: &mut Promptness, count: usize, ms: f64, strain: Strain, now: Duration) {
        let step = PromptStep {
            model: ask(1).model,
            tokens: 512,
            context: 1024,
            took_us: (512.0 * ms * 1000.0) as u64,
        };
        for _ in 0..count {
            promptness.note_step(&step, strain, now);
        }
    }

    /// A machine that usually takes a millisecond for a token.
    fn usual() -> Promptness {
        let mut promptness = Promptness::new(ME);
        steps(&mut promptness, ENOUGH, 1.0, CALM, at(0));
        promptness
    }

    fn is_late(promptness: &Promptness, tokens: u32, strain: Strain, now: Duration) -> bool {
        promptness.is_late(
            (&ask(tokens), Duration::ZERO),
            &Slo::of(Class::Interactive),
            strain,
            now,
        )
    }

    fn answer(promptness: &mut Promptness, generation: &Generation, by: NodeId, ms: f64, now: Duration) {
        let tokens = generation.prompt.len() as u32;
        let accounting = Accounting {
            prompt_tokens: tokens,
            prefill_ms: f64::from(tokens) * ms,
            node: Some(by),
            ..Accounting::default()
        };
        promptness.note_answer(generation, &accounting, now);
    }

    #[test]
    fn who_is_not_known_to_be_slow_keeps_every_prompt() {
        let promptness = usual();
        for strain in [CALM, WARM, BUILDS, BOTH] {
            assert!(!is_late(&promptness, 100_000, strain, at(1)), "{strain:?}");
        }
        let mut unknown = Promptness::new(ME);
        steps(&mut unknown, ENOUGH - 1, 1.0, CALM, at(0));
        steps(&mut unknown, 10, 2.0, WARM, at(1));
        assert!(
            !is_late(&unknown, 100_000, WARM, at(1)),
            "nobody knows what is usual"
        );
    }

    #[test]
    fn late_is_what_slowing_adds_beyond_the_budget() {
        let mut promptness = usual();
        steps(&mut promptness, 1, 1.5, WARM, at(10));
        // Of 800 ms it may take 720, which it does of 1,440 tokens.
        assert!(!is_late(&promptness, 1_440, WARM, at(11)));
        assert!(is_late(&promptness, 1_441, WARM, at(11)));
        assert!(!is_late(&promptness, 1_441, CALM, at(11)), "it has cooled down");
        assert!(is_late(&promptness, 1_441, WARM, at(10 + 299)));
        let cools = "warm is not yet slow, nor slow for ever";
        assert!(!is_late(&promptness, 1_441, WARM, at(10 + 300)), "{cools}");
        steps(&mut promptness, 1, 1.5, BUILDS, at(10));
        assert!(
            is_late(&promptness, 1_441, BUILDS, at(10 + 20 * 3600)),
            "as it was this morning"
        );
        assert!(!is_late(&promptness, 1_441, BUILDS, at(10 + 24 * 3600)));
        // Nothing is promised to batch, and more to helpers.
        for (class, late) in [
            (Class::Batch, false),
            (Class::Background, false),
            (Class::Interactive, true),
        ] {
            let found = promptness.is_late((&ask(2_000), Duration::ZERO), &Slo::of(class), WARM, at(11));
            assert_eq!(found, late, "{class}");
        }
    }

    #[test]
    fn what_a_machine_does_not_know_of_is_tried_again_soon() {
        let mut promptness = usual();
        // One step was beside something short.
        steps(&mut promptness, 4, 1.0, CALM, at(10));
        steps(&mut promptness, 1, 9.0, CALM, at(10));
        assert!(!is_late(&promptness, 10_000, CALM, at(11)));
        // Nor do few say anything after a pause.
        steps(&mut promptness, 3, 9.0, CALM, at(1_000));
        assert!(!is_late(&promptness, 10_000, CALM, at(1_001)));
        let mut promptness = usual();
        steps(&mut promptness, 4, 1.0, CALM, at(11));
        steps(&mut promptness, 4, 1.5, CALM, at(12));
        assert!(is_late(&promptness, 10_000, CALM, at(12 + 299)));
        assert!(!is_late(&promptness, 10_000, CALM, at(12 + 300)));
        // Nor does it become what is usual.
        steps(&mut promptness, 3 * KEPT / 4 - 5, 1.5, CALM, at(13));
        assert!(is_late(&promptness, 10_000, CALM, at(14)));
    }

    #[test]
    fn under_two_strains_it_is_no_faster_than_under_one() {
        let mut promptness = usual();
        steps(&mut promptness, 1, 1.5, WARM, at(10));
        assert!(is_late(&promptness, 1_441, BOTH, at(11)));
        assert!(!is_late(&promptness, 1_441, BUILDS, at(11)));
        steps(&mut promptness, 1, 2.0, BUILDS, at(12));
        assert!(is_late(&promptness, 721, BOTH, at(13)));
        steps(&mut promptness, 1, 1.8, BOTH, at(14));
        assert!(!is_late(&promptness, 721, BOTH, at(15)), "it is known");
    }

    #[test]
    fn it_stays_where_elsewhere_is_no_sooner() {
        let mut promptness = usual();
        // Other prompts, that begin in other ways.
        let other = |class| Generation {
            class,
            cache_salt: 7,
            ..ask(1000)
        };
        let asked = other(Class::Interactive);
        steps(&mut promptness, 1, 2.0, BUILDS, at(10));
        answer(&mut promptness, &asked, MINI, 2.5, at(10));
        assert!(!is_late(&promptness, 2_000, BUILDS, at(11)));
        assert!(
            is_late(&promptness, 2_000, BUILDS, at(10 + 4 * 3600)),
            "it is tried again"
        );
        for (by, class) in [(ME, Class::Interactive), (MINI, Class::Batch)] {
            let other = other(class);
            (0..4).for_each(|_| answer(&mut promptness, &other, by, 0.5, at(11)));
            assert!(!is_late(&promptness, 2_000, BUILDS, at(12)), "{class}");
        }
        (0..4).for_each(|_| answer(&mut promptness, &asked, MINI, 1.9, at(13)));
        assert!(is_late(&promptness, 2_000, BUILDS, at(14)));
    }

    #[test]
    fn what_has_waited_is_left_only_where_the_rest_takes_longer() {
        let mut promptness = usual();
        steps(&mut promptness, 1, 2.0, WARM, at(10));
        let is_late = |promptness: &Promptness, waited| {
            let asked = ask(2_000);
            let asked = (&asked, Duration::from_millis(waited));
            promptness.is_late(asked, &Slo::of(Class::Interactive), WARM, at(11))
        };
        // Of four seconds two are left, which is what this machine would usually take.
        assert!(is_late(&promptness, 1_999));
        assert!(!is_late(&promptness, 2_000));
        let other = Generation {
            cache_salt: 7,
            ..ask(1000)
        };
        answer(&mut promptness, &other, MINI, 0.5, at(10));
        assert!(is_late(&promptness, 2_999));
        assert!(!is_late(&promptness, 3_000));
        assert!(!is_late(&promptness, u64::MAX));
    }

    #[test]
    fn what_is_in_a_cache_is_not_computed() {
        let mut promptness = usual();
        steps(&mut promptness, 1, 2.0, WARM, at(10));
        answer(&mut promptness, &ask(1920), ME, 1.0, at(10));
        assert!(!is_late(&promptness, 2_000, WARM, at(11)), "80 tokens are new");
        assert!(
            !is_late(&promptness, 2_700, WARM, at(11)),
            "elsewhere all of them are"
        );
        let other = Generation {
            cache_salt: 7,
            ..ask(1000)
        };
        answer(&mut promptness, &other, MINI, 0.5, at(10));
        assert!(
            is_late(&promptness, 2_700, WARM, at(11)),
            "by a mini that is so much faster"
        );
        (0..4).for_each(|_| answer(&mut promptness, &ask(200), MINI, 1.0, at(12)));
        assert!(!is_late(&promptness, 2_700, WARM, at(13)));
        answer(&mut promptness, &ask(2_600), MINI, 1.0, at(14));
        assert!(
            is_late(&promptness, 2_700, WARM, at(15)),
            "it has most of them now"
        );
    }

    #[test]
    fn strains_are_what_a_machine_says() {
        use pomona_common::unit::Reading;

        let mut machine = MachineReport::default();
        assert_eq!(Strain::of(&machine), CALM);
        machine.thermal = Reading::Measured(Thermal::Nominal);
        assert_eq!(Strain::of(&machine), CALM);
        machine.thermal = Reading::Measured(Thermal::Fair);
        assert_eq!(Strain::of(&machine), WARM);
        machine.conditions.activity.indexing = Reading::Measured(true);
        assert_eq!(Strain::of(&machine), BOTH);
    }

    proptest! {
        /// Whatever was seen before: a machine whose latest steps were as fast as any keeps its prompts, and what is
        /// remembered has a bound.
        #[test]
        fn who_is_as_fast_as_ever_is_never_late(
            seen in proptest::collection::vec((1u32..5000, 1u64..200_000, 0u64..u64::MAX, any::<bool>(), any::<bool>()), 0..200),
            tokens in 1u32..20_000,
        ) {
            let (mut promptness, mut now) = (Promptness::new(ME), Duration::ZERO);
            for (tokens, context, took_us, is_warm, builds) in seen {
                now += Duration::from_secs(7);
                let step = PromptStep { model: ask(1).model, tokens, context, took_us };
                promptness.note_step(&step, Strain { is_warm, builds }, now);
            }
            steps(&mut promptness, KEPT, 0.001, CALM, now);
            prop_assert!(!is_late(&promptness, tokens, CALM, now));
            let here = promptness.here.values();
            prop_assert!(here.flat_map(|here| here.calm.values()).all(|calm| calm.len() <= KEPT));
        }
    }
}
