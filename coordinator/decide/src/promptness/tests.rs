//! What is slow here, what slows it, and what is sooner elsewhere.

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
    says(promptness, strain, now);
    for _ in 0..count {
        promptness.note_step(&step, now);
    }
}

/// A machine that usually takes a millisecond for a token.
fn usual() -> Promptness {
    let mut promptness = Promptness::new(ME);
    steps(&mut promptness, ENOUGH, 1.0, CALM, at(0));
    promptness
}

/// What it says is so already.
fn says(promptness: &mut Promptness, strain: Strain, now: Duration) {
    (promptness.strain, promptness.read) = (strain, Some(now));
}

fn is_late(promptness: &mut Promptness, tokens: u32, strain: Strain, now: Duration) -> bool {
    says(promptness, strain, now);
    let slo = Slo::of(Class::Interactive);
    promptness.is_late((&ask(tokens), Duration::ZERO), &slo, now)
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
    let mut promptness = usual();
    for strain in [CALM, WARM, BUILDS, BOTH] {
        assert!(!is_late(&mut promptness, 100_000, strain, at(1)), "{strain:?}");
    }
    let mut unknown = Promptness::new(ME);
    steps(&mut unknown, ENOUGH - 1, 1.0, CALM, at(0));
    steps(&mut unknown, 10, 2.0, WARM, at(1));
    assert!(
        !is_late(&mut unknown, 100_000, WARM, at(1)),
        "nobody knows what is usual"
    );
}

#[test]
fn late_is_what_slowing_adds_beyond_the_budget() {
    let mut promptness = usual();
    steps(&mut promptness, 1, 1.5, WARM, at(10));
    assert!(
        !is_late(&mut promptness, 1_441, WARM, at(11)),
        "it may have had company"
    );
    steps(&mut promptness, 1, 1.5, WARM, at(10));
    // Of 800 ms it may take 720, which it does of 1,440 tokens.
    assert!(!is_late(&mut promptness, 1_440, WARM, at(11)));
    assert!(is_late(&mut promptness, 1_441, WARM, at(11)));
    assert!(
        !is_late(&mut promptness, 1_441, CALM, at(11)),
        "it has cooled down"
    );
    assert!(is_late(&mut promptness, 1_441, WARM, at(10 + 299)));
    let cools = "warm is not yet slow, nor slow for ever";
    assert!(!is_late(&mut promptness, 1_441, WARM, at(10 + 300)), "{cools}");
    steps(&mut promptness, 2, 1.5, BUILDS, at(10));
    assert!(
        is_late(&mut promptness, 1_441, BUILDS, at(10 + 3500)),
        "as that of before did"
    );
    assert!(!is_late(&mut promptness, 1_441, BUILDS, at(10 + 3600)));
    // Nothing is promised to batch, and more to helpers.
    says(&mut promptness, WARM, at(11));
    for (class, late) in [
        (Class::Batch, false),
        (Class::Background, false),
        (Class::Interactive, true),
    ] {
        let found = promptness.is_late((&ask(2_000), Duration::ZERO), &Slo::of(class), at(11));
        assert_eq!(found, late, "{class}");
    }
}

#[test]
fn what_a_machine_does_not_know_of_is_tried_again_soon() {
    let mut promptness = usual();
    // One step was beside something short.
    steps(&mut promptness, 4, 1.0, CALM, at(10));
    steps(&mut promptness, 2, 9.0, CALM, at(10));
    assert!(!is_late(&mut promptness, 10_000, CALM, at(11)));
    // Nor do few say anything after a pause.
    steps(&mut promptness, 3, 9.0, CALM, at(1_000));
    assert!(!is_late(&mut promptness, 10_000, CALM, at(1_001)));
    let mut promptness = usual();
    steps(&mut promptness, 4, 1.0, CALM, at(11));
    steps(&mut promptness, 4, 1.5, CALM, at(12));
    assert!(is_late(&mut promptness, 10_000, CALM, at(12 + 299)));
    assert!(!is_late(&mut promptness, 10_000, CALM, at(12 + 300)));
    // Nor does it become what is usual.
    steps(&mut promptness, 3 * KEPT / 4 - 5, 1.5, CALM, at(13));
    assert!(is_late(&mut promptness, 10_000, CALM, at(14)));
}

#[test]
fn under_two_strains_it_is_no_faster_than_under_one() {
    let mut promptness = usual();
    steps(&mut promptness, 2, 1.5, WARM, at(10));
    assert!(is_late(&mut promptness, 1_441, BOTH, at(11)));
    assert!(!is_late(&mut promptness, 1_441, BUILDS, at(11)));
    steps(&mut promptness, 2, 2.0, BUILDS, at(12));
    assert!(is_late(&mut promptness, 721, BOTH, at(13)));
    steps(&mut promptness, 2, 1.8, BOTH, at(14));
    assert!(!is_late(&mut promptness, 721, BOTH, at(15)), "it is known");
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
    steps(&mut promptness, 2, 2.0, BUILDS, at(10));
    answer(&mut promptness, &asked, MINI, 2.5, at(10));
    assert!(
        is_late(&mut promptness, 2_000, BUILDS, at(11)),
        "one may have waited"
    );
    answer(&mut promptness, &asked, MINI, 2.5, at(10));
    assert!(!is_late(&mut promptness, 2_000, BUILDS, at(11)));
    let later = at(10 + 4 * 3600);
    steps(&mut promptness, 2, 2.0, BUILDS, later);
    assert!(
        is_late(&mut promptness, 2_000, BUILDS, later),
        "it is tried again"
    );
    for (by, class) in [(ME, Class::Interactive), (MINI, Class::Batch)] {
        let other = other(class);
        (0..4).for_each(|_| answer(&mut promptness, &other, by, 0.5, at(11)));
        assert!(!is_late(&mut promptness, 2_000, BUILDS, at(12)), "{class}");
    }
    (0..4).for_each(|_| answer(&mut promptness, &asked, MINI, 1.9, at(13)));
    assert!(is_late(&mut promptness, 2_000, BUILDS, at(14)));
}

#[test]
fn what_has_waited_is_left_only_where_the_rest_takes_longer() {
    let mut promptness = usual();
    steps(&mut promptness, 2, 2.0, WARM, at(10));
    let is_late = |promptness: &mut Promptness, waited| {
        let asked = ask(2_000);
        let asked = (&asked, Duration::from_millis(waited));
        says(promptness, WARM, at(11));
        promptness.is_late(asked, &Slo::of(Class::Interactive), at(11))
    };
    // Of four seconds two are left, which is what this machine would usually take.
    assert!(is_late(&mut promptness, 1_999));
    assert!(!is_late(&mut promptness, 2_000));
    let other = Generation {
        cache_salt: 7,
        ..ask(1000)
    };
    (0..2).for_each(|_| answer(&mut promptness, &other, MINI, 0.5, at(10)));
    assert!(is_late(&mut promptness, 2_999));
    assert!(!is_late(&mut promptness, 3_000));
    assert!(!is_late(&mut promptness, u64::MAX));
}

#[test]
fn what_is_in_a_cache_is_not_computed() {
    let mut promptness = usual();
    steps(&mut promptness, 2, 2.0, WARM, at(10));
    answer(&mut promptness, &ask(1920), ME, 1.0, at(10));
    assert!(
        !is_late(&mut promptness, 2_000, WARM, at(11)),
        "80 tokens are new"
    );
    assert!(
        !is_late(&mut promptness, 2_700, WARM, at(11)),
        "elsewhere all of them are"
    );
    let other = Generation {
        cache_salt: 7,
        ..ask(1000)
    };
    (0..2).for_each(|_| answer(&mut promptness, &other, MINI, 0.5, at(10)));
    assert!(
        is_late(&mut promptness, 2_700, WARM, at(11)),
        "by a mini that is so much faster"
    );
    (0..4).for_each(|_| answer(&mut promptness, &ask(600), MINI, 1.0, at(12)));
    assert!(!is_late(&mut promptness, 2_700, WARM, at(13)));
    answer(&mut promptness, &ask(2_600), MINI, 1.0, at(14));
    assert!(
        is_late(&mut promptness, 2_700, WARM, at(15)),
        "it has most of them now"
    );
}

#[test]
fn steps_of_just_before_a_machine_says_something_else_count_for_nothing() {
    let mut promptness = usual();
    // A build that is not told yet slows them down; it is told, and soon over, which is not told yet either.
    steps(&mut promptness, 4, 2.0, CALM, at(20));
    assert!(is_late(&mut promptness, 2_000, CALM, at(21)));
    says(&mut promptness, CALM, at(21));
    promptness.note_strain(BUILDS, at(31));
    steps(&mut promptness, 2, 2.0, BUILDS, at(32));
    steps(&mut promptness, 2, 1.0, BUILDS, at(50));
    promptness.note_strain(CALM, at(60));
    assert!(!is_late(&mut promptness, 2_000, CALM, at(61)));
    assert!(is_late(&mut promptness, 2_000, BUILDS, at(61)));
}

#[test]
fn a_probe_that_hangs_sends_nothing_away() {
    let mut promptness = usual();
    steps(&mut promptness, 2, 2.0, BUILDS, at(10));
    let late = |promptness: &Promptness, second| {
        promptness.is_late(
            (&ask(2_000), Duration::ZERO),
            &Slo::of(Class::Interactive),
            at(second),
        )
    };
    assert!(late(&promptness, 39));
    assert!(!late(&promptness, 40));
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
            promptness.note_strain(Strain { is_warm, builds }, now);
            promptness.note_step(&step, now);
        }
        steps(&mut promptness, KEPT, 0.001, CALM, now);
        prop_assert!(!is_late(&mut promptness, tokens, CALM, now));
        let here = promptness.here.values();
        prop_assert!(here.flat_map(|here| here.calm.values()).all(|calm| calm.len() <= KEPT));
    }
}
