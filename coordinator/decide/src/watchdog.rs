//! Whether the engine is wedged. Pure: it counts the supervisor's ticks, which stand still while the
//! machine sleeps or the node itself is stopped, so that nobody is blamed for that time.
//!
//! Three things are looked at: whether the engine's thread says anything at all (it answers a
//! request for its report once a tick), whether work that it has goes on (the progress counter), and,
//! when it has had nothing to do for long, whether it still makes a token (a *canary*; the resource
//! limit of mlx-lm #1672 wedges a thread that otherwise lives).

use pomona_common::{Class, Rung};

/// Ticks without a word. Commands are taken between two steps or slices of one. A slice takes some ten
/// milliseconds; an interactive step is not sliced, and takes seconds for a long prompt and a large
/// model on a CPU, or on a machine that swaps.
const SILENT: u32 = 45;
/// The same while a model is being loaded: a part of it is read from disk in one go.
const SILENT_WHILE_LOADING: u32 = 120;
/// Ticks with work and without progress.
const STUCK: u32 = 60;
/// Ticks without work before a canary is sent, and between two.
const CANARY_EVERY: u32 = 60;
/// Ticks within which a canary makes its token.
const CANARY_WITHIN: u32 = 45;

/// Whether work of a class may stand still in an engine that is well: batch that is paused or rests, and where the
/// system is short of memory whatever no person waits for.
pub fn may_stand(class: Class, rung: Rung, pace: u32, is_short: bool) -> bool {
    match class {
        Class::Interactive => false,
        Class::Background => is_short,
        Class::Batch => is_short || rung >= Rung::Pause || pace == 0,
    }
}

/// What the supervisor knows at a tick.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Sequences are with the engine.
    pub works: bool,
    /// A model is being loaded.
    pub loads: bool,
    /// A model is loaded that a canary can be sent to.
    pub can_sing: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Fine,
    /// Send a canary, and say so with [`Watchdog::sent`].
    SendCanary,
    /// Kill the engine: this is why.
    Wedged(String),
}

/// Of one run of the engine.
#[derive(Debug, Default)]
pub struct Watchdog {
    silent: u32,
    /// `None` until it has told: one that counts nothing is not judged by it.
    progress: Option<u64>,
    stuck: u32,
    idle: u32,
    /// The sequence of a canary that has not answered, and its age.
    canary: Option<(u64, u32)>,
}

impl Watchdog {
    /// The engine said something.
    pub fn heard(&mut self) {
        self.silent = 0;
    }

    /// The engine's progress counter.
    pub fn progress(&mut self, progress: u64) {
        if self.progress.replace(progress) != Some(progress) {
            self.stuck = 0;
        }
    }

    /// A canary was sent under this number.
    pub fn sent(&mut self, sequence: u64) {
        self.canary = Some((sequence, 0));
    }

    /// Whether this sequence is the canary.
    pub fn is_canary(&self, sequence: u64) -> bool {
        self.canary.is_some_and(|(canary, _)| canary == sequence)
    }

    /// The canary answered.
    pub fn answered(&mut self) {
        self.canary = None;
        self.idle = 0;
    }

    /// One second of the node's own time went by.
    pub fn tick(&mut self, seen: Seen) -> Verdict {
        self.silent += 1;
        // Not taken back when there is nothing to do: an engine that fails at every step ends its work.
        self.stuck += u32::from(seen.works && !seen.loads && self.progress.is_some());
        self.idle = if seen.works || seen.loads {
            0
        } else {
            self.idle + 1
        };
        if let Some((_, age)) = &mut self.canary {
            *age += 1;
        }
        let patience = if seen.loads { SILENT_WHILE_LOADING } else { SILENT };
        if self.silent > patience {
            return Verdict::Wedged(format!("it said nothing for {patience} s"));
        }
        if seen.loads {
            // Parts of a load and steps take turns.
            return Verdict::Fine;
        }
        if self.stuck > STUCK {
            return Verdict::Wedged(format!("its work made no progress for {STUCK} s"));
        }
        match self.canary {
            // Work that came after it is looked at above.
            Some((_, age)) if age > CANARY_WITHIN && !seen.works => {
                Verdict::Wedged(format!("it made no token for {CANARY_WITHIN} s"))
            }
            None if seen.can_sing && self.idle >= CANARY_EVERY => Verdict::SendCanary,
            _ => Verdict::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IDLE: Seen = Seen {
        works: false,
        loads: false,
        can_sing: true,
    };
    const WORKING: Seen = Seen {
        works: true,
        loads: false,
        can_sing: true,
    };

    /// Ticks until the verdict is not fine any more.
    fn ticks(
        watchdog: &mut Watchdog,
        seen: Seen,
        mut before: impl FnMut(&mut Watchdog, u32),
    ) -> (u32, Verdict) {
        for tick in 1..10_000 {
            before(watchdog, tick);
            match watchdog.tick(seen) {
                Verdict::Fine => {}
                other => return (tick, other),
            }
        }
        (10_000, Verdict::Fine)
    }

    #[test]
    fn an_engine_that_says_nothing_is_wedged() {
        let (tick, verdict) = ticks(&mut Watchdog::default(), WORKING, |_, _| {});
        assert_eq!((tick, matches!(verdict, Verdict::Wedged(_))), (SILENT + 1, true));
        let loading = Seen {
            loads: true,
            ..WORKING
        };
        let (tick, _) = ticks(&mut Watchdog::default(), loading, |_, _| {});
        assert_eq!(tick, SILENT_WHILE_LOADING + 1, "a load may take longer");
    }

    #[test]
    fn one_that_reports_and_does_not_step_is_wedged() {
        let (tick, verdict) = ticks(&mut Watchdog::default(), WORKING, |watchdog, _| {
            watchdog.heard();
            watchdog.progress(7);
        });
        // The first tick saw the counter move.
        assert!(
            matches!(verdict, Verdict::Wedged(_)) && tick <= STUCK + 2,
            "{tick} {verdict:?}"
        );
    }

    #[test]
    fn an_idle_one_is_asked_for_a_token_and_must_make_it() {
        let mut watchdog = Watchdog::default();
        let (tick, verdict) = ticks(&mut watchdog, IDLE, |watchdog, _| watchdog.heard());
        assert_eq!((tick, verdict), (CANARY_EVERY, Verdict::SendCanary));
        watchdog.sent(5);
        assert!(watchdog.is_canary(5) && !watchdog.is_canary(4));
        watchdog.answered();
        let (tick, verdict) = ticks(&mut watchdog, IDLE, |watchdog, _| watchdog.heard());
        assert_eq!((tick, verdict), (CANARY_EVERY, Verdict::SendCanary));
        watchdog.sent(6);
        let (tick, verdict) = ticks(&mut watchdog, IDLE, |watchdog, _| watchdog.heard());
        assert_eq!(
            (tick, matches!(verdict, Verdict::Wedged(_))),
            (CANARY_WITHIN + 1, true)
        );
    }

    proptest! {
        /// Whatever it does, one that speaks and moves now and then is left alone.
        #[test]
        fn one_that_goes_on_is_never_called_wedged(
            works in proptest::collection::vec(any::<bool>(), 1..400),
            pause in 1..SILENT,
        ) {
            let mut watchdog = Watchdog::default();
            for (tick, works) in (1u32..).zip(works) {
                if tick.is_multiple_of(pause) {
                    watchdog.heard();
                    watchdog.progress(u64::from(tick));
                    watchdog.answered();
                }
                match watchdog.tick(Seen { works, loads: false, can_sing: true }) {
                    Verdict::Wedged(why) => prop_assert!(false, "{why} at {tick}"),
                    Verdict::SendCanary => watchdog.sent(u64::from(tick)),
                    Verdict::Fine => {}
                }
            }
        }
    }
}
