//! Beginnings of prompts that are in the KV cache already: prefilled once, then copied. The engine keeps KV with each
//! of them, a simulation nothing.
//!
//! A beginning becomes worth keeping when a prompt starts like a recent one. System prompts and templates are found
//! this way without being told. A whole answer with its prompt is the beginning of the next turn of its conversation,
//! and a prompt that its client gave up that of the next keystroke. Prompts share only under the same salt.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use pomona_common::{Class, EngineKnobs, Generation, ModelName};

/// Shortest beginning worth a copy: below it the copy costs as much as the tokens.
const MIN_TOKENS: usize = 16;
/// Recent prompts that new ones are compared with.
const HISTORY: usize = 64;
/// Tokens of a prompt that are remembered for comparison.
const HISTORY_TOKENS: usize = 4096;
/// Share of the KV budget that is theirs whatever rows need, as a divisor.
const SHARE: u64 = 8;
/// What was found once outlives by so much what never was: an editor's completions, one a second, are not to push
/// out the conversation that its person goes on with after reading the answer.
const PROVED: Duration = Duration::from_secs(600);

/// Whose prompts begin alike: those for one model, under one salt.
#[derive(Debug, Clone, Copy)]
pub struct Kin<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The salt; see [`Generation::cache_salt`](pomona_common::Generation).
    pub salt: u64,
}

impl<'a> Kin<'a> {
    /// The kin of a request's prompt.
    #[must_use]
    pub fn of(generation: &'a Generation) -> Self {
        Self {
            model: &generation.model,
            salt: generation.cache_salt,
        }
    }
}

/// One that is kept.
#[derive(Debug)]
struct Entry<K> {
    salt: u64,
    tokens: Vec<u32>,
    kv: K,
    used: Duration,
    proved: bool,
}

impl<K> Entry<K> {
    /// The entry for which this is least goes first.
    fn worth(&self) -> Duration {
        match self.proved {
            true => self.used + PROVED,
            false => self.used,
        }
    }

    /// Whether it begins with all of these.
    fn serves(&self, salt: u64, tokens: &[u32]) -> bool {
        self.salt == salt && self.tokens.starts_with(tokens)
    }
}

#[derive(Debug)]
struct OfModel<K> {
    /// Bytes of KV cache a token takes.
    token_bytes: u64,
    entries: Vec<Entry<K>>,
    history: VecDeque<(u64, Vec<u32>)>,
}

/// What is kept of all models, each with its KV. Times are since an origin of the caller's choice, monotonic.
#[derive(Debug)]
pub struct Prefixes<K> {
    models: BTreeMap<ModelName, OfModel<K>>,
}

impl<K> Default for Prefixes<K> {
    fn default() -> Self {
        Self {
            models: BTreeMap::new(),
        }
    }
}

/// Leaves to rows what prefixes leave of the KV budget.
#[must_use]
pub fn with_prefix_share(mut knobs: EngineKnobs) -> EngineKnobs {
    knobs.kv_budget_bytes -= knobs.kv_budget_bytes / SHARE;
    knobs
}

/// The share of prefixes, in bytes, where rows have so many.
pub(crate) fn prefix_share(rows: u64) -> u64 {
    rows / (SHARE - 1)
}

impl<K> Prefixes<K> {
    /// A model whose tokens take so many bytes of KV cache.
    pub fn add_model(&mut self, model: ModelName, token_bytes: u64) {
        let of_model = OfModel {
            token_bytes: token_bytes.max(1),
            entries: Vec::new(),
            history: VecDeque::new(),
        };
        self.models.insert(model, of_model);
    }

    /// Forgets all of a model.
    pub fn remove_model(&mut self, model: &ModelName) {
        self.models.remove(model);
    }

    /// How many of a prompt's first tokens are kept, at least [`MIN_TOKENS`] and less than the prompt, and their KV.
    pub fn find(&mut self, kin: Kin<'_>, prompt: &[u32], now: Duration) -> Option<(u32, &K)> {
        let (len, entry) = self.using(kin, prompt, now)?;
        Some((len, &entry.kv))
    }

    /// A prompt waits for a slot: what it will use counts as used, so that what others leave behind meanwhile does not
    /// push it out.
    pub fn await_use(&mut self, kin: Kin<'_>, prompt: &[u32], now: Duration) {
        self.using(kin, prompt, now);
    }

    fn using(&mut self, kin: Kin<'_>, prompt: &[u32], now: Duration) -> Option<(u32, &Entry<K>)> {
        let (index, len) = self.longest(kin, prompt)?;
        let entry = self.models.get_mut(kin.model)?.entries.get_mut(index)?;
        // Else what others have as well was found: a system prompt, a file that is being edited.
        if is_nearly_all(len, &entry.tokens) {
            entry.used = now;
            entry.proved = true;
        }
        Some((len as u32, entry))
    }

    /// How many of a prompt's first tokens [`Prefixes::find`] would give.
    #[must_use]
    pub fn kept(&self, kin: Kin<'_>, prompt: &[u32]) -> u32 {
        self.longest(kin, prompt).map_or(0, |(_, len)| len as u32)
    }

    /// The entry with most of a prompt's first tokens, and how many that are.
    fn longest(&self, kin: Kin<'_>, prompt: &[u32]) -> Option<(usize, usize)> {
        let usable = &prompt[..prompt.len().saturating_sub(1)];
        let entries = self.models.get(kin.model)?.entries.iter().enumerate();
        entries
            .filter(|(_, entry)| entry.salt == kin.salt)
            .map(|(index, entry)| (index, common(&entry.tokens, usable)))
            .max_by_key(|(_, len)| *len)
            .filter(|(_, len)| *len >= MIN_TOKENS)
    }

    /// Remembers a prompt, and says how many of its first tokens should be kept once they are in the KV cache: those
    /// it shares with a recent prompt beyond the `found` ones, unless they take more than `budget` bytes.
    pub fn remember(&mut self, kin: Kin<'_>, prompt: &[u32], found: u32, budget: u64) -> Option<u32> {
        let of_model = self.models.get_mut(kin.model)?;
        let history = &mut of_model.history;
        let shared = history
            .iter()
            .filter(|(salt, _)| *salt == kin.salt)
            .map(|(_, tokens)| common(tokens, prompt))
            .max()
            .unwrap_or(0)
            .min(prompt.len().saturating_sub(1));
        if history.len() == HISTORY {
            history.pop_front();
        }
        let head = &prompt[..prompt.len().min(HISTORY_TOKENS)];
        history.push_back((kin.salt, head.to_vec()));
        let fits = shared as u64 * of_model.token_bytes <= budget;
        (shared >= found as usize + MIN_TOKENS && fits).then_some(shared as u32)
    }

    /// Bytes that all take with these tokens, if they are long enough and not kept already.
    #[must_use]
    pub fn bytes_with(&self, kin: Kin<'_>, tokens: &[u32]) -> Option<u64> {
        let of_model = self.models.get(kin.model)?;
        let is_kept = of_model
            .entries
            .iter()
            .any(|entry| entry.serves(kin.salt, tokens));
        let is_worth = tokens.len() >= MIN_TOKENS && !is_kept;
        is_worth.then(|| self.bytes() + tokens.len() as u64 * of_model.token_bytes)
    }

    /// Keeps these tokens, whose KV `save` copies, within `budget` bytes for all; what is of least worth gives way.
    pub fn keep(
        &mut self,
        kin: Kin<'_>,
        tokens: &[u32],
        budget: u64,
        now: Duration,
        save: impl FnOnce() -> Option<K>,
    ) {
        let Some(of_model) = self.models.get_mut(kin.model) else {
            return;
        };
        let needs = tokens.len() as u64 * of_model.token_bytes;
        if tokens.len() < MIN_TOKENS || needs > budget {
            return;
        }
        // What goes on from another takes its place, also where its end was read in another way, or was edited.
        let is_within = |entry: &Entry<K>| {
            entry.salt == kin.salt && is_nearly_all(common(&entry.tokens, tokens), &entry.tokens)
        };
        let mut entries = of_model.entries.iter_mut();
        if let Some(entry) = entries.find(|entry| entry.serves(kin.salt, tokens)) {
            entry.used = now;
            return;
        }
        let within = of_model.entries.extract_if(.., |entry| is_within(entry));
        let proved = within.fold(false, |proved, entry| proved | entry.proved);
        self.trim(budget - needs);
        // Failing to keep it costs time, never an answer.
        let Some(kv) = save() else {
            return;
        };
        if let Some(of_model) = self.models.get_mut(kin.model) {
            of_model.entries.push(Entry {
                salt: kin.salt,
                tokens: tokens.to_vec(),
                kv,
                used: now,
                proved,
            });
        }
    }

    /// Forgets what is of least worth, of whatever model, until all fit `budget` bytes.
    pub fn trim(&mut self, budget: u64) {
        while self.bytes() > budget {
            let models = self.models.values_mut();
            let least = models
                .filter_map(|of_model| {
                    let entries = of_model.entries.iter().enumerate();
                    let (index, entry) = entries.min_by_key(|(_, entry)| entry.worth())?;
                    Some((entry.worth(), index, of_model))
                })
                .min_by_key(|(worth, ..)| *worth);
            let Some((_, index, of_model)) = least else {
                return;
            };
            of_model.entries.swap_remove(index);
        }
    }

    /// Bytes of KV that are kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let of_model = |of: &OfModel<K>| {
            let tokens: usize = of.entries.iter().map(|entry| entry.tokens.len()).sum();
            tokens as u64 * of.token_bytes
        };
        self.models.values().map(of_model).sum()
    }
}

/// Whether what an answer leaves in the KV cache is kept when it ends: its next turn, or the next try of a client that
/// gave it up, begins with it. Of batch work only what itself went on from something kept, since most of it does not
/// go on at all.
#[must_use]
pub fn goes_on(class: Class, cached: u32) -> bool {
    class != Class::Batch || cached > 0
}

/// Whether so many of the first tokens are all but a sixteenth of them.
fn is_nearly_all(len: usize, tokens: &[u32]) -> bool {
    16 * len >= 15 * tokens.len()
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn model(name: &str) -> ModelName {
        name.parse().unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Nothing is kept of this model, of which a token takes one byte.
    fn empty(model: &ModelName) -> (Kin<'_>, Prefixes<()>) {
        let mut prefixes = Prefixes::default();
        prefixes.add_model(model.clone(), 1);
        (Kin { model, salt: 1 }, prefixes)
    }

    /// Prompts that differ by what they begin with.
    fn prompt(first: u32, len: u32) -> Vec<u32> {
        (0..len).map(|i| if i < 20 { first } else { i }).collect()
    }

    /// The beginning of one of these with another end.
    fn branch(first: u32, len: u32) -> Vec<u32> {
        let (prompt, turns) = (prompt(first, len), len / 2 + first);
        let tokens = prompt.into_iter().zip(0..);
        tokens
            .map(|(token, i)| if i < turns { token } else { 1000 + len })
            .collect()
    }

    #[test]
    fn what_was_found_once_outlives_what_never_was() {
        let (name, budget) = (model("m"), 300);
        let (kin, mut prefixes) = empty(&name);
        let conversation = prompt(7, 100);
        prefixes.keep(kin, &conversation, budget, at(0), || Some(()));
        let next: Vec<u32> = prompt(7, 120);
        assert_eq!(prefixes.find(kin, &next, at(1)).map(|(len, ())| len), Some(100));
        // The next turn takes over what its beginning has shown.
        prefixes.keep(kin, &next, budget, at(2), || Some(()));
        assert_eq!(prefixes.bytes(), 120);
        for completion in 0..500 {
            let tokens = prompt(1000 + completion, 80);
            prefixes.keep(kin, &tokens, budget, at(3 + u64::from(completion)), || Some(()));
            assert!(prefixes.bytes() <= budget);
        }
        assert!(prefixes.find(kin, &prompt(7, 200), at(503)).is_some());
        for completion in 0..9 {
            let tokens = prompt(5000 + completion, 80);
            prefixes.keep(
                kin,
                &tokens,
                budget,
                at(1200 + u64::from(completion)),
                || Some(()),
            );
        }
        assert!(
            prefixes.find(kin, &prompt(7, 200), at(1300)).is_none(),
            "not for ever"
        );
    }

    #[test]
    fn what_somebody_waits_for_outlives_what_was_used_before_that() {
        let (name, budget) = (model("m"), 250);
        let (kin, mut prefixes) = empty(&name);
        let [awaited, other, new] = [1, 2, 3].map(|first| prompt(first, 100));
        prefixes.keep(kin, &awaited, budget, at(0), || Some(()));
        prefixes.keep(kin, &other, budget, at(1), || Some(()));
        assert_eq!(prefixes.kept(kin, &prompt(1, 120)), 100);
        for waiting in [1, 9] {
            prefixes.await_use(kin, &prompt(waiting, 120), at(2));
        }
        prefixes.keep(kin, &new, budget, at(3), || Some(()));
        assert!(prefixes.find(kin, &prompt(1, 120), at(4)).is_some());
        assert!(prefixes.find(kin, &prompt(2, 120), at(4)).is_none());
    }

    #[test]
    fn completions_of_a_file_prove_nothing_and_the_next_turn_replaces_the_last() {
        let name = model("m");
        let (kin, mut prefixes) = empty(&name);
        // The cursor is in the middle of a file, what is behind it comes after it.
        let completion = |i: u32| [prompt(1, 100), vec![500 + i], vec![2; 60]].concat();
        for i in 0..9 {
            let found = prefixes
                .find(kin, &completion(i), at(i.into()))
                .map(|(len, _)| len);
            assert_eq!(found, (i > 0).then_some(100));
            prefixes.keep(kin, &completion(i), 10_000, at(i.into()), || Some(()));
        }
        let proved = |prefixes: &Prefixes<()>| {
            let entries = &prefixes.models[&name].entries;
            (entries.len(), entries.iter().filter(|entry| entry.proved).count())
        };
        assert_eq!(proved(&prefixes), (9, 0));
        // The last two tokens of an answer are other ones when they are read again.
        let turn = [prompt(5, 100), vec![7; 2]].concat();
        prefixes.keep(kin, &turn, 10_000, at(20), || Some(()));
        let next = [prompt(5, 100), vec![8; 40]].concat();
        assert_eq!(prefixes.find(kin, &next, at(21)).map(|(len, _)| len), Some(100));
        prefixes.keep(kin, &next, 10_000, at(22), || Some(()));
        assert_eq!(proved(&prefixes), (10, 1));
    }

    #[test]
    fn a_prompt_like_a_recent_one_is_worth_keeping_under_the_same_salt() {
        let name = model("m");
        let (one, other) = (
            Kin {
                model: &name,
                salt: 1,
            },
            Kin {
                model: &name,
                salt: 2,
            },
        );
        let mut prefixes = Prefixes::<()>::default();
        prefixes.add_model(name.clone(), 10);
        let shared = |end: u32| [prompt(3, 50), vec![end; 40]].concat();
        assert_eq!(prefixes.remember(one, &shared(1), 0, u64::MAX), None);
        assert_eq!(prefixes.remember(other, &shared(2), 0, u64::MAX), None);
        assert_eq!(prefixes.remember(one, &shared(3), 0, 499), None, "too large");
        assert_eq!(prefixes.remember(one, &shared(4), 0, 500), Some(50));
        assert_eq!(
            prefixes.remember(one, &shared(5), 40, 500),
            None,
            "little more than was found"
        );
        prefixes.keep(one, &shared(4)[..50], 500, at(0), || Some(()));
        assert!(prefixes.find(one, &shared(6), at(1)).is_some());
        assert!(prefixes.find(other, &shared(6), at(1)).is_none());
        prefixes.remove_model(&name);
        assert!(prefixes.find(one, &shared(6), at(2)).is_none());
    }

    proptest! {
        /// A naive cache of all that was ever kept and not refused: what is found is a true beginning, no longer than
        /// the longest there ever was, and bytes stay within the budget.
        #[test]
        fn what_is_found_was_kept_and_all_fits(
            asked in proptest::collection::vec((0..6u32, 0..2u64, 1..90u32, 0..2usize, 0..400u64), 1..60),
        ) {
            let names = [model("a"), model("b")];
            let mut prefixes = Prefixes::default();
            prefixes.add_model(names[0].clone(), 1);
            prefixes.add_model(names[1].clone(), 3);
            let mut kept: Vec<(usize, u64, Vec<u32>)> = Vec::new();
            for (step, (first, salt, len, of, budget)) in (0..).zip(asked) {
                let tokens = if first < 3 { prompt(first, len) } else { branch(first - 3, len) };
                let kin = Kin { model: &names[of], salt };
                if let Some((found, kv)) = prefixes.find(kin, &tokens, at(step)) {
                    let kv: &Vec<u32> = kv;
                    prop_assert!(found as usize >= MIN_TOKENS && found < len);
                    prop_assert_eq!(&kv[..found as usize], &tokens[..found as usize]);
                    prop_assert!(kept.iter().any(|one| one.0 == of && one.1 == salt && one.2 == *kv));
                }
                prefixes.keep(kin, &tokens, budget, at(step), || Some(tokens.clone()));
                let longer = [&tokens[..], &[u32::MAX]].concat();
                let found = prefixes.find(kin, &longer, at(step)).map_or(0, |(found, _)| found);
                let fits = u64::from(len) * [1, 3][of] <= budget && tokens.len() >= MIN_TOKENS;
                prop_assert!(!fits || found == len, "{} of {}", found, len);
                kept.push((of, salt, tokens));
                prefixes.trim(budget);
                prop_assert!(prefixes.bytes() <= budget);
            }
        }
    }
}
