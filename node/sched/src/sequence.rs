//! One sequence as the scheduler sees it: counts, never contents.

use std::time::Duration;

use pomona_common::{Class, ModelName};

/// Number of a sequence, chosen by the caller, never reused within one engine.
pub type SequenceId = u64;

/// A sequence to be scheduled. Times are since an origin of the caller's choice, monotonic.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSequence {
    /// Its number.
    pub id: SequenceId,
    /// The model it runs on.
    pub model: ModelName,
    /// Its class.
    pub class: Class,
    /// Tokens to prefill.
    pub prompt: u32,
    /// Tokens it may add.
    pub max_new: u32,
    /// Whether it was begun on another node, which was lost: its client has part of the answer. It is
    /// the first of its class, and waits for as long as a request may take.
    pub begun: bool,
    /// First tokens of the prompt that are kept of another one (see [`Prefixes::kept`](crate::Prefixes::kept)).
    pub kept: u32,
}

/// Batch of which most is kept goes before what came so much earlier: nobody waits for either, and what is kept may be
/// gone when its turn comes. SGLang goes by the longest prefix in its cache, without a bound (Zheng et al., "SGLang",
/// 2024, section 3). In the simulated day (`sim day`, 70 %) the machines answer a fiftieth more by it, with a minute
/// nothing.
const HEAD_START: Duration = Duration::from_secs(300);
/// Of the time for which requests wait at most, this part as a divisor: nobody is to wait in vain for those who pass.
const HEAD_START_PART: u32 = 4;
/// Fewer tokens are soon prefilled anew.
const WORTH_PASSING: u32 = 256;
/// The place of what was begun elsewhere, before everybody who has one of the time at which it came.
pub(crate) const FIRST: Duration = Duration::ZERO;
const SECOND: Duration = Duration::from_nanos(1);

impl NewSequence {
    /// Its place in line when it comes now to others that wait for so long at most: who has the least is the first of its
    /// class.
    pub(crate) fn place(&self, now: Duration, wait: Duration) -> Duration {
        let is_mostly_kept = self.kept >= WORTH_PASSING && self.kept >= self.prompt.div_ceil(2);
        let head_start = HEAD_START.min(wait / HEAD_START_PART);
        match self.class {
            _ if self.begun => FIRST,
            Class::Batch if is_mostly_kept => now.saturating_sub(head_start).max(SECOND),
            _ => now.max(SECOND),
        }
    }
}

/// Where a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not in a slot.
    Waiting,
    /// In a slot; this many tokens of its text are in the KV cache, the next ones are known.
    Prefill {
        /// Tokens in the KV cache.
        done: u32,
    },
    /// In a slot; each step adds one token.
    Decode,
}

#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) model: ModelName,
    pub(crate) class: Class,
    /// Known tokens: the prompt, and what was emitted so far.
    pub(crate) known: u32,
    /// Tokens it may still add.
    pub(crate) left: u32,
    pub(crate) phase: Phase,
    /// Its place in line; see [`Sequence::goes_back`].
    pub(crate) place: Duration,
    /// When it arrived.
    pub(crate) arrived: Duration,
    /// It is ended when it still waits then.
    pub(crate) expires: Duration,
    /// Order of admission, the larger the later.
    pub(crate) admitted: u64,
}

impl Sequence {
    /// It is preempted, and waits again: before those who come now, whatever is kept of them.
    pub(crate) fn goes_back(&mut self) {
        self.phase = Phase::Waiting;
        let before_others = self.arrived.saturating_sub(HEAD_START).max(SECOND);
        self.place = self.place.min(before_others);
    }

    /// Tokens its KV row must hold.
    pub(crate) fn need(&self) -> u32 {
        self.known + self.left
    }

    /// Tokens in the KV cache while it prefills.
    pub(crate) fn prefilled(&self) -> Option<u32> {
        match self.phase {
            Phase::Prefill { done } => Some(done),
            Phase::Waiting | Phase::Decode => None,
        }
    }

    /// Tokens in the KV cache.
    pub(crate) fn cached(&self) -> u32 {
        match self.phase {
            Phase::Waiting => 0,
            Phase::Prefill { done } => done,
            // The last one was not fed yet.
            Phase::Decode => self.known - 1,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase != Phase::Waiting
    }
}
