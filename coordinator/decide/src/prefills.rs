//! How fast machines prefill what people ask: minis of one rack differ by a factor of two, and a person who waits for a
//! long prompt feels it.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{Accounting, Class, Generation, ModelName, NodeId};

use crate::latest::Latest;

/// Shorter prompts say more of what any answer costs, and of whose step was under way, than of what a token does.
const LONG: u32 = 512;
/// For so long: then one is tried again.
pub(crate) const LASTS: Duration = Duration::from_secs(4 * 3600);
/// Pairs of models and machines that are remembered, more than a cluster has.
const MOST: usize = 4096;

/// Milliseconds of prefill for each prompt token that had to be computed, by the interactive answers that this process has
/// seen. Other classes wait for these, and for each other.
#[derive(Debug, Clone, Default)]
pub struct Prefills {
    known: BTreeMap<(ModelName, NodeId), Latest>,
}

impl Prefills {
    /// A node has answered.
    pub fn note(&mut self, generation: &Generation, accounting: &Accounting, now: Duration) {
        let (Some(node), Some(uncached)) = (accounting.node, long_prompt(generation, accounting)) else {
            return;
        };
        if !accounting.prefill_ms.is_finite() || accounting.prefill_ms <= 0.0 {
            return;
        }
        let pair = (generation.model.clone(), node);
        if self.known.len() >= MOST && !self.known.contains_key(&pair) {
            self.known.pop_first();
        }
        let latest = self.known.entry(pair).or_default();
        latest.note(accounting.prefill_ms / f64::from(uncached), now);
    }

    /// Of one node, if that is known: the fastest of its latest, since others shared the engine.
    pub fn ms_per_token(&self, model: &ModelName, node: NodeId, now: Duration) -> Option<f64> {
        self.known.get(&(model.clone(), node))?.least(LASTS, now)
    }
}

/// The tokens that had to be computed for a person, where these were so many that they say something.
pub(crate) fn long_prompt(generation: &Generation, accounting: &Accounting) -> Option<u32> {
    let uncached = accounting.prompt_tokens.saturating_sub(accounting.cached_tokens);
    (generation.class == Class::Interactive && uncached >= LONG).then_some(uncached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_prompts_of_people_tell_and_not_for_ever() -> Result<(), String> {
        let model: ModelName = "editor".parse().map_err(|error| format!("{error}"))?;
        let (mut prefills, node) = (Prefills::default(), NodeId::from_bits(1));
        let mut note = |class, prompt_tokens, prefill_ms, second| {
            let generation = Generation {
                class,
                ..Generation::canary(model.clone())
            };
            let accounting = Accounting {
                prompt_tokens,
                cached_tokens: 100,
                prefill_ms,
                queue_ms: 1e6,
                node: Some(node),
                ..Accounting::default()
            };
            prefills.note(&generation, &accounting, Duration::from_secs(second));
            prefills.ms_per_token(&model, node, Duration::from_secs(second))
        };
        assert_eq!(note(Class::Batch, 1100, 1000.0, 0), None);
        assert_eq!(note(Class::Interactive, 227, 1000.0, 0), None);
        assert_eq!(note(Class::Interactive, 1100, f64::NAN, 0), None);
        assert_eq!(note(Class::Interactive, 1100, 1000.0, 0), Some(1.0));
        assert_eq!(note(Class::Batch, 1100, 9000.0, LASTS.as_secs()), None);
        Ok(())
    }
}
