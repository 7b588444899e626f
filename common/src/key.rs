//! API keys: who may ask, for what, and how much of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::id::ModelName;
use crate::limits;
use crate::machine::{MachineRole, Pools};

/// SHA-256 of a key's secret, which is 128 random bits: nothing to guess, so nothing to stretch. It is
/// compared in constant time by `pomona-keys`; equality here is for states, which are no secrets to each other.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHash(pub [u8; 32]);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

/// What the cluster keeps of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// What people call it; no two keys share a name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub made_s: u64,
    /// The hash of its secret.
    pub secret: KeyHash,
    /// The hash of the secret before the last rotation, and until when that one still opens, in seconds
    /// since 1970.
    pub before: Option<(KeyHash, u64)>,
    /// End of its life, in seconds since 1970.
    pub expires_s: Option<u64>,
    /// What it is good for.
    pub terms: KeyTerms,
}

/// What a key is good for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyTerms {
    /// The class of all its requests, whatever they say; none leaves it to them.
    pub class: Option<Class>,
    /// Classes that its requests may have; none named means all.
    pub classes: BTreeSet<Class>,
    /// Models that it may ask for; none named means all.
    pub models: BTreeSet<ModelName>,
    /// Kinds of machine that may answer.
    pub pools: Pools,
    /// Its prompts are nobody else's: machines that are rented see none, unless `pools` names them.
    pub private: bool,
    /// How much, of all models together.
    pub limits: KeyLimits,
    /// How much of single models.
    pub of_models: BTreeMap<ModelName, KeyLimits>,
}

/// How much a key may take. What is not named has no bound of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyLimits {
    /// Requests that run at once at one endpoint.
    pub concurrency: Option<u32>,
    /// Requests in a minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    pub tokens_per_minute: Option<u64>,
    /// Tokens of prompts and answers in a day, which begins at midnight UTC.
    pub tokens_per_day: Option<u64>,
}

impl KeyRecord {
    /// A key that is good for everything, without an end.
    pub fn new(name: &str, secret: KeyHash, made_s: u64) -> Self {
        Self {
            name: name.to_owned(),
            made_s,
            secret,
            before: None,
            expires_s: None,
            terms: KeyTerms::default(),
        }
    }
}

impl KeyTerms {
    /// Where its requests may be answered.
    pub fn reach(&self) -> Pools {
        if self.private && self.pools.is_any() {
            Pools::only([MachineRole::Laptop, MachineRole::Rack])
        } else {
            self.pools.clone()
        }
    }

    /// Whether its requests may have this class.
    pub fn allow_class(&self, class: Class) -> bool {
        self.classes.is_empty() || self.classes.contains(&class)
    }

    /// Whether it may ask for this model.
    pub fn allow_model(&self, model: &ModelName) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }

    /// Sets a limit, or lifts it: `NAME` is one of the key, `MODEL:NAME` one for that model only.
    ///
    /// # Errors
    /// No such limit, or nothing that is a model's name.
    pub fn set_limit(&mut self, text: &str, limit: Option<u64>) -> Result<(), String> {
        let Some((model, name)) = text.rsplit_once(':') else {
            return self.limits.set(text, limit);
        };
        let model: ModelName = model.parse().map_err(|error| format!("`{text}`: {error}"))?;
        let limits = self.of_models.entry(model.clone()).or_default();
        let outcome = limits.set(name, limit);
        if *limits == KeyLimits::default() {
            self.of_models.remove(&model);
        }
        outcome
    }

    /// What is wrong with them, in an operator's terms.
    pub fn problem(&self) -> Option<String> {
        if let Some(class) = self.class.filter(|class| !self.allow_class(*class)) {
            return Some(format!(
                "the key's class is {class}, and {class} is not among the classes that it allows"
            ));
        }
        if self.models.len() > limits::KEY_MODELS || self.of_models.len() > limits::KEY_MODELS {
            return Some(format!("a key names at most {} models", limits::KEY_MODELS));
        }
        if let Some(model) = self.of_models.keys().find(|model| !self.allow_model(model)) {
            return Some(format!(
                "`{model}` has a limit, and is not among the models that the key allows"
            ));
        }
        let all = std::iter::once(&self.limits).chain(self.of_models.values());
        all.into_iter().find_map(KeyLimits::problem)
    }
}

impl KeyLimits {
    /// Sets a limit by its name, or by the one that LiteLLM gives it.
    fn set(&mut self, name: &str, limit: Option<u64>) -> Result<(), String> {
        let small = || limit.map(u32::try_from).transpose();
        let too_large = |_| format!("{name} is at most {}", u32::MAX);
        match name {
            "concurrency" | "max_parallel_requests" => self.concurrency = small().map_err(too_large)?,
            "requests_per_minute" | "rpm" => self.requests_per_minute = small().map_err(too_large)?,
            "tokens_per_minute" | "tpm" => self.tokens_per_minute = limit,
            "tokens_per_day" => self.tokens_per_day = limit,
            _ => {
                return Err(format!(
                    "no limit is called `{name}`: use concurrency, requests_per_minute, tokens_per_minute or tokens_per_day"
                ));
            }
        }
        Ok(())
    }

    fn problem(&self) -> Option<String> {
        let zero = [
            ("concurrency", self.concurrency.map(u64::from)),
            ("requests_per_minute", self.requests_per_minute.map(u64::from)),
            ("tokens_per_minute", self.tokens_per_minute),
            ("tokens_per_day", self.tokens_per_day),
        ];
        let zero = zero.into_iter().find(|(_, limit)| *limit == Some(0));
        zero.map(|(name, _)| format!("{name} is 0: a key that may do nothing is revoked instead"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_reach_no_rented_machine_unless_it_is_named() {
        let mut terms = KeyTerms::default();
        assert!(terms.reach().is_any());
        terms.private = true;
        assert!(!terms.reach().allow(MachineRole::Rented) && terms.reach().allow(MachineRole::Laptop));
        terms.pools = Pools::only([MachineRole::Rented]);
        assert!(terms.reach().allow(MachineRole::Rented));
    }

    #[test]
    fn terms_that_contradict_themselves_are_named() -> Result<(), crate::id::IdError> {
        let (one, other): (ModelName, ModelName) = ("org/a".parse()?, "org/b".parse()?);
        let class = KeyTerms {
            class: Some(Class::Batch),
            classes: [Class::Interactive].into(),
            ..KeyTerms::default()
        };
        let model = KeyTerms {
            models: [one].into(),
            of_models: [(other, KeyLimits::default())].into(),
            ..KeyTerms::default()
        };
        let nothing = KeyTerms {
            limits: KeyLimits {
                tokens_per_day: Some(0),
                ..KeyLimits::default()
            },
            ..KeyTerms::default()
        };
        for (terms, word) in [(class, "batch"), (model, "org/b"), (nothing, "tokens_per_day")] {
            let problem = terms.problem().unwrap_or_default();
            assert!(problem.contains(word), "{problem}");
        }
        assert_eq!(KeyTerms::default().problem(), None);
        Ok(())
    }
}
