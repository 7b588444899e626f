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
/// Prompts that go on in so many ways have their beginning in common for another reason than that they are turns of one
/// conversation: of that one turn ends there, the next one goes on, and one may be asked anew in other words.
const WAYS: usize = 4;

/// The marks of a prompt: one hash for every [`BLOCK`] tokens, over all tokens so far. Prompts with a mark in
/// common begin alike, for the same model, contents and salt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    marks: Vec<u64>,
    /// Of what comes after the last one, as far as the next.
    end: u64,
}

impl Marks {
    /// Of a request's prompt.
    pub fn of(generation: &Generation) -> Self {
        let mut hasher = DefaultHasher::new();
        generation.model.hash(&mut hasher);
        generation.digests.weights.hash(&mut hasher);
        generation.cache_salt.hash(&mut hasher);
        let mut mark = |block: &[u32]| {
            block.hash(&mut hasher);
            hasher.finish()
        };
        let blocks = generation.prompt.chunks_exact(BLOCK).take(MARKS);
        let marks: Vec<u64> = blocks.map(&mut mark).collect();
        let rest = &generation.prompt[marks.len() * BLOCK..];
        let end = mark(&rest[..rest.len().min(BLOCK)]);
        Self { marks, end }
    }
}

/// What a node has of a prompt, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Warm {
    /// Of its beginning.
    pub tokens: u32,
    /// Of those, the ones behind what many prompts begin with: a conversation's own, of no use to others.
    pub own: u32,
}

/// Who had the prompts that came by a mark.
#[derive(Debug, Default)]
struct Seen {
    nodes: Vec<(NodeId, Duration)>,
    /// What followed, at most [`WAYS`].
    next: Vec<u64>,
}

impl Seen {
    fn last(&self) -> Duration {
        self.nodes.last().map_or(Duration::ZERO, |(_, at)| *at)
    }
}

/// See the module's documentation. Times are of one clock.
#[derive(Debug, Default)]
pub struct Affinity {
    seen: HashMap<u64, Seen>,
}

impl Affinity {
    /// What each node has prefilled of a prompt's beginning not long ago. Nodes that are not in it have nothing.
    pub fn warm(&self, marks: &Marks, now: Duration) -> BTreeMap<NodeId, Warm> {
        let (mut warm, mut shared) = (BTreeMap::new(), 0);
        for (tokens, mark) in (BLOCK as u32..).step_by(BLOCK).zip(&marks.marks) {
            let Some(seen) = self.seen.get(mark) else {
                break;
            };
            if seen.next.len() >= WAYS {
                shared = tokens;
            }
            let own = tokens - shared;
            let is_fresh = |(_, at): &&(NodeId, Duration)| now.saturating_sub(*at) < KEPT;
            let fresh = seen.nodes.iter().filter(is_fresh);
            warm.extend(fresh.map(|(node, _)| (*node, Warm { tokens, own })));
        }
        warm
    }

    /// A node has taken a prompt.
    pub fn note(&mut self, marks: &Marks, node: NodeId, now: Duration) {
        let nexts = marks.marks.iter().skip(1).chain([&marks.end]);
        for (mark, next) in marks.marks.iter().zip(nexts) {
            let seen = self.seen.entry(*mark).or_default();
            if now.saturating_sub(seen.last()) >= KEPT {
                *seen = Seen::default();
            }
            if seen.next.len() < WAYS && !seen.next.contains(next) {
                seen.next.push(*next);
            }
            let nodes = &mut seen.nodes;
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
        let mut times: Vec<Duration> = self.seen.values().map(Seen::last).collect();
        let (_, middle, _) = times.select_nth_unstable(MOST / 2);
        let middle = *middle;
        self.seen.retain(|_, seen| seen.last() > middle);
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
        let all_own = |tokens| Warm { tokens, own: tokens };
        assert_eq!(warm, BTreeMap::from([(one, all_own(256)), (other, all_own(64))]));
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

    /// A conversation of ever longer turns has its own beginning, prompts of one template do not.
    #[test]
    fn what_many_prompts_begin_with_is_nobody_s_own() {
        let mut affinity = Affinity::default();
        let template = 0..640;
        for (i, turn) in (1..=9u32).enumerate() {
            let prompt = template.clone().chain(10_000..10_000 + 640 * turn);
            affinity.note(&Marks::of(&ask(prompt)), node(1), SECOND * i as u32);
        }
        let next = Marks::of(&ask(template.clone().chain(10_000..17_000)));
        let warm = |affinity: &Affinity| affinity.warm(&next, 9 * SECOND)[&node(1)];
        let whole = Warm {
            tokens: 6400,
            own: 6400,
        };
        assert_eq!(warm(&affinity), whole);
        // Asked anew in other words, and gone on with for some turns, it still is one.
        for turn in 1..4 {
            let anew = template.clone().chain(10_000..12_000).chain(3..900 * turn);
            affinity.note(&Marks::of(&ask(anew)), node(1), 9 * SECOND);
        }
        assert_eq!(warm(&affinity), whole);
        for other in 2..5 {
            let document = template.clone().chain(other * 100_000..other * 100_000 + 900);
            affinity.note(&Marks::of(&ask(document)), node(2), 9 * SECOND);
        }
        let of_template = Warm { tokens: 640, own: 0 };
        let of_both = affinity.warm(&next, 9 * SECOND);
        assert_eq!(of_both[&node(2)], of_template);
        assert_eq!(of_both[&node(1)], Warm { own: 5760, ..whole });
        // What nobody has any more is forgotten with that.
        let document = template.chain(900_000..900_900);
        affinity.note(&Marks::of(&ask(document)), node(3), 9 * SECOND + KEPT);
        let later = affinity.warm(&next, 9 * SECOND + KEPT);
        assert_eq!(
            later[&node(3)],
            Warm {
                own: 640,
                ..of_template
            }
        );
    }

    /// Also where what comes after the template is shorter than a block.
    #[test]
    fn short_questions_after_a_template_share_it() {
        let mut affinity = Affinity::default();
        let question = |i: u32| Marks::of(&ask((0..1280).chain([7000 + i, 1, 2])));
        for i in 0..9 {
            affinity.note(&question(i % 3), node(1), SECOND);
        }
        let own = |affinity: &Affinity| affinity.warm(&question(9), SECOND)[&node(1)].own;
        assert_eq!(own(&affinity), 1280, "three questions");
        affinity.note(&question(3), node(1), SECOND);
        assert_eq!(own(&affinity), 0);
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
        let most = newest.values().map(|warm| warm.tokens).max();
        assert_eq!(most, Some((MARKS * BLOCK) as u32));
        // A mark that everybody sees names a few nodes.
        let shared = Marks::of(&ask(0..64));
        for bits in 0..100 {
            affinity.note(&shared, node(bits), SECOND * prompts);
        }
        assert_eq!(affinity.warm(&shared, SECOND * prompts).len(), NODES);
    }
}
