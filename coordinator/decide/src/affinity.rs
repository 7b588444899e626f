//! Where the beginnings of prompts were prefilled, so that the next turn of a conversation goes where its KV
//! prefix is. A guess, of this process only: engines keep what they have room for, and a wrong guess costs the
//! prefill that any other place would have cost.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use pomona_common::{Generation, NodeId};

/// Tokens between two marks. Longer than the system prompt that a chat template puts before everything, which
/// all conversations share.
const BLOCK: usize = 64;
/// Marks of one prompt: what comes later in it changes nothing.
const MARKS: usize = 128;
/// A person reads, thinks, and asks on; after that engines will have taken the room for others.
const KEPT: Duration = Duration::from_secs(15 * 60);
/// Marks in all, some megabytes. Beyond it the older half is forgotten.
const MOST: usize = 32_768;
/// Nodes that a mark names, the latest ones: a shared system prompt is soon everywhere.
const NODES: usize = 4;

/// The marks of a prompt: one hash for every [`BLOCK`] tokens, over all tokens so far. Prompts with a mark in
/// common begin alike, for the same model, contents and salt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks(Vec<u64>);

impl Marks {
    /// Of a request's prompt.
    pub fn of(generation: &Generation) -> Self {
        let mut hasher = DefaultHasher::new();
        generation.model.hash(&mut hasher);
        generation.digests.weights.hash(&mut hasher);
        generation.cache_salt.hash(&mut hasher);
        let blocks = generation.prompt.chunks_exact(BLOCK).take(MARKS);
        let mark = |block: &[u32]| {
            block.hash(&mut hasher);
            hasher.finish()
        };
        Self(blocks.map(mark).collect())
    }
}

/// See the module's documentation. Times are of one clock.
#[derive(Debug, Default)]
pub struct Affinity {
    seen: HashMap<u64, Vec<(NodeId, Duration)>>,
}

impl Affinity {
    /// How many tokens of a prompt's beginning each node has prefilled not long ago. Nodes that are not in it
    /// have none.
    pub fn warm(&self, marks: &Marks, now: Duration) -> BTreeMap<NodeId, u32> {
        let mut warm = BTreeMap::new();
        for (tokens, mark) in (BLOCK as u32..).step_by(BLOCK).zip(&marks.0) {
            let Some(nodes) = self.seen.get(mark) else {
                break;
            };
            let fresh = nodes.iter().filter(|(_, at)| now.saturating_sub(*at) < KEPT);
            warm.extend(fresh.map(|(node, _)| (*node, tokens)));
        }
        warm
    }

    /// A node has taken a prompt.
    pub fn note(&mut self, marks: &Marks, node: NodeId, now: Duration) {
        for mark in &marks.0 {
            let nodes = self.seen.entry(*mark).or_default();
            nodes.retain(|(other, _)| *other != node);
            if nodes.len() == NODES {
                nodes.remove(0);
            }
            nodes.push((node, now));
        }
        if self.seen.len() > MOST {
            self.forget();
        }
    }

    fn forget(&mut self) {
        let last = |nodes: &Vec<(NodeId, Duration)>| nodes.last().map_or(Duration::ZERO, |(_, at)| *at);
        let mut times: Vec<Duration> = self.seen.values().map(last).collect();
        let (_, middle, _) = times.select_nth_unstable(MOST / 2);
        let middle = *middle;
        self.seen.retain(|_, nodes| last(nodes) > middle);
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::ModelName;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ask(prompt: impl IntoIterator<Item = u32>) -> Generation {
        let name: ModelName = "m".parse().unwrap_or_else(|_| unreachable!("a name"));
        Generation {
            prompt: prompt.into_iter().collect(),
            ..Generation::canary(name)
        }
    }

    fn node(bits: u128) -> NodeId {
        NodeId::from_bits(bits)
    }

    #[test]
    fn the_next_turn_is_warm_where_the_first_one_was() {
        let mut affinity = Affinity::default();
        let (one, other) = (node(1), node(2));
        let system = 0..100;
        affinity.note(&Marks::of(&ask(system.clone().chain(500..700))), one, SECOND);
        affinity.note(&Marks::of(&ask(system.clone().chain(900..1200))), other, SECOND);
        let next = Marks::of(&ask(system.clone().chain(500..900)));
        // 300 tokens are the same at one, and a hundred at the other: whole blocks of them count.
        let warm = affinity.warm(&next, 2 * SECOND);
        assert_eq!(warm, BTreeMap::from([(one, 256), (other, 64)]));
        assert!(affinity.warm(&next, SECOND + KEPT).is_empty(), "after a while");
        for foreign in [
            Generation {
                cache_salt: 1,
                ..ask(system.chain(500..900))
            },
            ask(1..900),
            ask(0..63),
        ] {
            assert!(affinity.warm(&Marks::of(&foreign), SECOND).is_empty());
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_newest() {
        let mut affinity = Affinity::default();
        let prompts = 2 * MOST as u32 / MARKS as u32;
        let prompt = |i: u32| {
            Marks::of(&ask(
                (0..(2 * MARKS * BLOCK) as u32).map(|token| token ^ (i << 16))
            ))
        };
        for i in 0..prompts {
            affinity.note(&prompt(i), node(u128::from(i % 7)), SECOND * i);
            assert!(affinity.seen.len() <= MOST + MARKS);
        }
        let newest = affinity.warm(&prompt(prompts - 1), SECOND * prompts);
        assert_eq!(newest.values().copied().max(), Some((MARKS * BLOCK) as u32));
        // A mark that everybody sees names a few nodes.
        let shared = Marks::of(&ask(0..64));
        for bits in 0..100 {
            affinity.note(&shared, node(bits), SECOND * prompts);
        }
        assert_eq!(affinity.warm(&shared, SECOND * prompts).len(), NODES);
    }
}
