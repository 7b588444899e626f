//! How the next token is chosen, and the check that a client's wishes make sense.

use serde::{Deserialize, Serialize};

use crate::limits;

/// Sampling parameters of one request, with the ranges of the OpenAI API and the common local
/// extras (`top_k`, `min_p`, `repetition_penalty`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus: the smallest set of tokens with at least this mass.
    pub top_p: f32,
    /// Only the k likeliest tokens; 0 is off.
    pub top_k: u32,
    /// Only tokens at least this times as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Divides (or multiplies, when negative) logits of tokens seen in prompt or answer
    /// (Keskar et al., CTRL, 2019); 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from tokens that the answer contains.
    pub presence_penalty: f32,
    /// Subtracted per occurrence in the answer.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Randomness is a function of this and the position of the token, so that an answer can be
    /// continued elsewhere and does not depend on its neighbours in the batch.
    pub seed: u64,
    /// Alternatives to report for every token; `None` reports no log-probabilities.
    pub top_logprobs: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            top_logprobs: None,
        }
    }
}

/// A parameter outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{parameter}` must be {expected}")]
pub struct SamplingError {
    /// The field of the request.
    pub parameter: &'static str,
    /// What it must be.
    pub expected: &'static str,
}

impl Sampling {
    /// Greedy decoding.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Whether the likeliest token is taken and no logit is changed, so that the choice can be
    /// made on the device.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && !self.changes_logits() && self.top_logprobs.is_none()
    }

    /// Whether penalties or biases change the logits.
    pub fn changes_logits(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || !self.logit_bias.is_empty()
    }

    /// Checks every range.
    ///
    /// # Errors
    /// The first parameter that is out of range or not finite.
    pub fn validate(&self) -> Result<(), SamplingError> {
        let check = |sound: bool, parameter, expected| {
            if sound {
                Ok(())
            } else {
                Err(SamplingError { parameter, expected })
            }
        };
        check(
            (0.0..=2.0).contains(&self.temperature),
            "temperature",
            "between 0 and 2",
        )?;
        check(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            "above 0 and at most 1",
        )?;
        check(self.top_k <= 1_000_000, "top_k", "between 0 and 1000000")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", "between 0 and 1")?;
        check(
            self.repetition_penalty > 0.0 && self.repetition_penalty <= 10.0,
            "repetition_penalty",
            "above 0 and at most 10",
        )?;
        let symmetric = -2.0..=2.0;
        check(
            symmetric.contains(&self.presence_penalty),
            "presence_penalty",
            "between -2 and 2",
        )?;
        check(
            symmetric.contains(&self.frequency_penalty),
            "frequency_penalty",
            "between -2 and 2",
        )?;
        check(
            self.logit_bias.len() <= limits::LOGIT_BIAS_ENTRIES,
            "logit_bias",
            "an object of at most 1024 entries",
        )?;
        check(
            self.logit_bias
                .iter()
                .all(|(_, bias)| (-100.0..=100.0).contains(bias)),
            "logit_bias",
            "values between -100 and 100",
        )?;
        check(
            self.top_logprobs.unwrap_or(0) <= limits::TOP_LOGPROBS,
            "top_logprobs",
            "between 0 and 20",
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_a_number_is_out_of_every_range() {
        for sampling in [
            Sampling {
                temperature: f32::NAN,
                ..Sampling::default()
            },
            Sampling {
                top_p: f32::NAN,
                ..Sampling::default()
            },
            Sampling {
                repetition_penalty: f32::INFINITY,
                ..Sampling::default()
            },
            Sampling {
                logit_bias: vec![(1, f32::NAN)],
                ..Sampling::default()
            },
        ] {
            assert!(sampling.validate().is_err(), "{sampling:?}");
        }
    }

    #[test]
    fn the_defaults_are_sound() {
        assert_eq!(Sampling::default().validate(), Ok(()));
        assert_eq!(Sampling::greedy().validate(), Ok(()));
    }
}
