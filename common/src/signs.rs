//! What gates count and the first reports did not say: sent after each report, by nodes and to coordinators
//! that know it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::ModelName;
use crate::limits;
use crate::unit::{Bytes, Reading};

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Signs {
    /// Bytes that the system has written to swap since it started.
    pub swapped_out: Reading<Bytes>,
    /// How often the system killed the engine since the node's process started, by the model that is to
    /// blame as far as the node can tell.
    pub kills: BTreeMap<ModelName, u64>,
    /// How many interactive answers have ended since the node's process started.
    pub answers: u64,
    /// The latest of them, the newest last; at most [`FIRST_TOKENS`](limits::FIRST_TOKENS).
    pub first_tokens: Vec<FirstToken>,
}

/// How long an interactive answer's first token took; for one that was given up before it, how long it was
/// waited for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FirstToken {
    /// Of this model.
    pub model: ModelName,
    /// Prompt tokens that had to be computed.
    pub uncached: u32,
    /// From its arrival at the engine, in milliseconds.
    pub ttft_ms: f32,
    /// From there to the end of the answer, in milliseconds.
    pub took_ms: u32,
    /// Whether the client went away before the first token, or a slowed-down machine left it to another one: here it would
    /// have come later still.
    pub given_up: bool,
}

/// How fast answers come, told after each report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speeds {
    /// Interactive answers, since the node's process started, of which a speed was promised and that are long
    /// enough to have one.
    pub answers: u64,
    /// Of those, the ones that were slower.
    pub slow: u64,
    /// Speed of the engine's latest steps, in percent of what like ones usually have; none while too few
    /// can be compared.
    pub steps_percent: Option<u32>,
}

impl Signs {
    /// Takes out what cannot be true and what is too much.
    pub fn keep_plausible(&mut self) {
        while self.kills.len() > limits::MODELS {
            self.kills.pop_last();
        }
        let surplus = self.first_tokens.len().saturating_sub(limits::FIRST_TOKENS);
        self.first_tokens.drain(..surplus);
        self.first_tokens
            .retain(|one| one.ttft_ms.is_finite() && one.ttft_ms >= 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_true_is_taken_out() {
        let one = |ttft_ms| FirstToken {
            model: "m".parse().unwrap_or_else(|error| panic!("{error}")),
            uncached: 7,
            ttft_ms,
            took_ms: 0,
            given_up: false,
        };
        let mut signs = Signs {
            first_tokens: vec![one(1.0); 1000],
            ..Signs::default()
        };
        signs
            .first_tokens
            .extend([one(f32::NAN), one(-1.0), one(f32::INFINITY), one(8.0)]);
        signs.keep_plausible();
        assert!(signs.first_tokens.len() <= limits::FIRST_TOKENS);
        assert_eq!(signs.first_tokens.last(), Some(&one(8.0)));
        assert!(signs.first_tokens.iter().all(|one| one.ttft_ms >= 0.0));
    }
}
