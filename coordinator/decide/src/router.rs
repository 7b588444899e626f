//! Where a request goes: a decision over a snapshot of the nodes that hold its model.

use std::cmp::Reverse;

use pomona_common::{Class, NodeId, Rung};

use crate::affinity::Warm;
use crate::heard::Heard;

/// A node that has the model loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its last report.
    pub heard: Heard,
    /// Sequences waiting and running there, by the last report.
    pub queued: u32,
    /// Sequences this router has sent there and not seen end.
    pub in_flight: u32,
    /// Whether it is being drained: it gets new work only where nobody else can.
    pub draining: bool,
    /// Whether it is spared work of this class, likewise.
    pub spared: bool,
    /// The place of its kind of machine in the class's list of fallbacks.
    pub rank: usize,
    /// Whether a person sits at it.
    pub is_personal: bool,
    /// Slots of its class there.
    pub slots: u32,
    /// Whether all of them are taken.
    pub full: bool,
    /// What it has of the prompt's beginning, as far as known (see [`Affinity`](crate::Affinity)).
    pub warm: Warm,
    /// Milliseconds that it takes for a prompt token, if that is known (see [`Prefills`](crate::Prefills)).
    pub prefill_ms: Option<f64>,
}

/// Who takes so many times as long for a prompt as the fastest one of its kind of machine with free slots is asked after the
/// others, whatever they have to do, for what a person waits for: twice is a chip and the next larger one.
const MUCH_SLOWER: f64 = 1.4;

/// A node that has the prompt's beginning may have so many more answers than the least loaded one of its kind: they
/// slow this answer less than its prefill would, and with more one node would do all the work for a system prompt
/// that everybody sends. Of batch, for which nobody waits, the one that has its conversation may have as many more as it
/// has slots.
const WARM_SLACK: u32 = 2;
/// Tokens of a conversation's own that are worth waiting for a slot: a mini prefills so many of an 8B model in four
/// seconds, and of four answers of half a minute one ends every eight. In the simulated day (`sim day`, 70 %) the machines
/// answer a twentieth more by it.
const WORTH_WAITING: u32 = 1024;
/// With as many answers that wait there as it has slots nobody waits at a full node any more, whatever it has; at machines
/// of the first kind, while none of any kind stands idle, with so many: others wait there as well, which this one passes
/// (`node/sched/src/sequence.rs`), and free slots elsewhere are for them. A mini makes so many in some four minutes. With
/// half of it the simulated day's machines answer 3 % less.
const DEEP_QUEUE: u32 = 24;

impl Candidate {
    /// Whether another place may leave an answer to it that it could make itself: where it begins at once, and stays.
    /// What a person waits for goes to no other person's machine: what slowed down one would be the next one's load.
    pub fn is_better(&self, class: Class) -> bool {
        let begins_at_once = !self.spared && !self.draining && !self.full;
        begins_at_once && (class == Class::Batch || !self.is_personal)
    }

    /// What of the tokens that a node has counts: nothing where work of this class is spared or batch stands still, nor
    /// where it is full and rests, so that no slot comes free soon.
    #[must_use]
    pub fn warmth(known: Option<&Warm>, class: Class, rung: Rung, full: bool, slots: u32) -> Warm {
        let rests = full && slots < 2;
        let counts = !rung.spares(class) && rung < Rung::Pause && !rests;
        known.filter(|_| counts).copied().unwrap_or_default()
    }

    fn load(&self) -> u32 {
        self.in_flight.max(self.queued)
    }

    /// Who is to be asked last.
    fn unfit(&self) -> [bool; 3] {
        [self.draining, self.spared, self.heard.is_late()]
    }

    /// What comes before load.
    fn misfit(&self, full: bool) -> impl Ord + use<> {
        (self.unfit(), (full, self.rank))
    }

    /// What it has of the prompt, where it is not much busier than others of its kind of machine.
    fn warm_for(&self, class: Class, candidates: &[Self]) -> u32 {
        // Few have anything, and there may be hundreds.
        if self.warm.tokens == 0 {
            return 0;
        }
        let slack = if self.is_worth_waiting(class) {
            self.slots.max(WARM_SLACK)
        } else {
            WARM_SLACK
        };
        let is_alike = |other: &&Self| other.unfit() == self.unfit() && other.rank == self.rank;
        let is_near = |other: &Self| self.load() <= other.load().saturating_add(slack);
        let is_near_all = candidates.iter().filter(is_alike).all(is_near);
        if is_near_all { self.warm.tokens } else { 0 }
    }

    fn is_worth_waiting(&self, class: Class) -> bool {
        class == Class::Batch && self.warm.own >= WORTH_WAITING
    }
}

/// One place to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The node.
    pub node: NodeId,
    /// Why here.
    pub reason: &'static str,
}

/// Orders the candidates for an answer of this class, the best first: drained nodes last, before them spared ones, fresh
/// before stale, free before full, kinds of machine in the order of the class's list; then who has most of the prompt's
/// beginning, unless it is much busier than others of its kind; for what a person waits for those first that do not
/// prefill much slower than others; then the least loaded; ties by id so that the order is one. For batch, for which
/// nobody waits, a node is not full that has its conversation, much more of it than those with free slots, or where there
/// are none those of the first kind of machine: one of its slots is free soon, and they are for others. The node has the
/// last word: a refusal goes to the next.
pub fn route(candidates: &[Candidate], class: Class) -> Vec<Route> {
    let warm = |c: &Candidate| c.warm_for(class, candidates);
    let fit = || candidates.iter().filter(|c| c.unfit() == [false; 3]);
    let of_free = fit().filter(|c| !c.full).map(warm).max();
    // Where nobody is free, those that would be asked first.
    let first = fit().map(|c| c.rank).min();
    let of_first = fit().filter(|c| Some(c.rank) == first).map(warm).max();
    let elsewhere = of_free.or(of_first).unwrap_or(0);
    let is_any_idle = fit().any(|c| !c.full && c.load() == 0);
    let is_full = |c: &Candidate| {
        // What waits there does not leave for who is free later.
        let is_deep = Some(c.rank) == first && !is_any_idle;
        let queue = if is_deep { c.slots.max(DEEP_QUEUE) } else { c.slots };
        let is_soon = c.load() < c.slots.saturating_add(queue);
        let saves = warm(c) >= elsewhere.saturating_add(WORTH_WAITING);
        c.full && !(c.is_worth_waiting(class) && is_soon && saves)
    };
    let fastest = |rank| {
        let free = fit().filter(|c| !c.full && c.rank == rank);
        free.filter_map(|c| c.prefill_ms).min_by(f64::total_cmp)
    };
    let is_slow = |c: &Candidate| {
        let times = c
            .prefill_ms
            .zip(fastest(c.rank))
            .map(|(takes, least)| takes / least);
        class != Class::Batch && times.is_some_and(|times| times >= MUCH_SLOWER)
    };
    let mut order: Vec<&Candidate> = candidates.iter().collect();
    let key = |c: &Candidate| {
        (
            c.misfit(is_full(c)),
            Reverse(warm(c)),
            is_slow(c),
            c.load(),
            c.node,
        )
    };
    order.sort_by_cached_key(|c| key(c));
    let alone = order.len() == 1;
    order
        .into_iter()
        .map(|candidate| Route {
            node: candidate.node,
            reason: match (alone, candidate.heard.is_late()) {
                (true, _) => "the only replica",
                _ if candidate.spared => "others refused, and this one is spared",
                _ if candidate.draining => "others refused, and this one is drained",
                (false, true) => "its last report is stale",
                (false, false) if warm(candidate) > 0 => "it has the beginning of the prompt",
                (false, false) => "least loaded replica",
            },
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(id: u128) -> Candidate {
        Candidate {
            node: NodeId::from_bits(id),
            heard: Heard::NOW,
            queued: 0,
            in_flight: 0,
            draining: false,
            spared: false,
            rank: 0,
            is_personal: false,
            slots: 4,
            full: false,
            warm: Warm::default(),
            prefill_ms: None,
        }
    }

    /// Of a conversation that nobody else goes on with.
    fn own(tokens: u32) -> Warm {
        Warm { tokens, own: tokens }
    }

    fn order_of(class: Class, candidates: &[Candidate]) -> Vec<u128> {
        let routes = route(candidates, class).into_iter();
        routes.map(|route| route.node.bits()).collect()
    }

    fn order(candidates: &[Candidate]) -> Vec<u128> {
        order_of(Class::Interactive, candidates)
    }

    #[test]
    fn people_do_not_wait_for_who_prefills_much_slower() {
        let takes = |id, ms: Option<f64>, in_flight| Candidate {
            prefill_ms: ms,
            in_flight,
            ..idle(id)
        };
        let of = |class, all: &[Candidate]| order_of(class, all);
        let all = [takes(1, Some(0.75), 0), takes(2, Some(0.5), 3), takes(3, None, 4)];
        for class in [Class::Interactive, Class::Background] {
            assert_eq!(of(class, &all), [2, 3, 1], "{class}: who is not known is tried");
        }
        assert_eq!(of(Class::Batch, &all), [1, 2, 3]);
        let little = [takes(1, Some(0.69), 0), takes(2, Some(0.5), 3)];
        assert_eq!(order(&little), [1, 2]);
        // One that is full makes nobody slow.
        let full = Candidate {
            full: true,
            ..takes(2, Some(0.5), 3)
        };
        let rest = [takes(1, Some(0.75), 1), takes(3, None, 0), full];
        assert_eq!(order(&rest), [3, 1, 2]);
        // Nor does a larger chip of another kind of machine.
        let rented = Candidate {
            rank: 1,
            ..takes(9, Some(0.2), 0)
        };
        assert_eq!(order(&[all.as_slice(), &[rented]].concat()), [2, 3, 1, 9]);
    }

    #[test]
    fn what_slows_one_person_down_is_no_load_for_another() {
        let personal = Candidate {
            is_personal: true,
            ..idle(1)
        };
        for class in Class::ALL {
            assert!(idle(1).is_better(class));
            assert_eq!(personal.is_better(class), class == Class::Batch, "{class}");
        }
        let unfit: [fn(&mut Candidate); 3] = [|c| c.full = true, |c| c.spared = true, |c| c.draining = true];
        for change in unfit {
            let mut one = idle(1);
            change(&mut one);
            assert!(Class::ALL.iter().all(|class| !one.is_better(*class)), "{one:?}");
        }
    }

    #[test]
    fn who_has_most_of_the_prompt_is_worth_waiting_for_unless_somebody_waits() {
        let at = |id, warm, full, in_flight| Candidate {
            warm: own(warm),
            full,
            in_flight,
            ..idle(id)
        };
        let of = |class, warm: [u32; 2], in_flight| {
            order_of(
                class,
                &[at(1, warm[0], false, 3), at(2, warm[1], true, in_flight)],
            )
        };
        let batch = Class::Batch;
        assert_eq!(of(batch, [0, 1024], 4), [2, 1]);
        assert_eq!(of(batch, [0, 1023], 4), [1, 2], "little");
        let little_more = of(batch, [512, 1500], 4);
        assert_eq!(little_more, [1, 2], "little more than a free one has");
        assert_eq!(of(batch, [512, 9000], 7), [2, 1]);
        assert_eq!(of(batch, [512, 9000], 8), [1, 2], "too much busier");
        let waiting = |in_flight| {
            let behind_rack = Candidate {
                rank: 1,
                ..at(2, 9000, true, in_flight)
            };
            order_of(batch, &[at(1, 0, true, 20), behind_rack])
        };
        assert_eq!(waiting(7), [2, 1]);
        assert_eq!(waiting(8), [1, 2], "as many wait there as it has slots");
        for class in [Class::Interactive, Class::Background] {
            assert_eq!(of(class, [0, 9000], 4), [1, 2]);
        }
        // Where all are full it waits there as well, or where the list of machines says.
        let laptop = |warm| Candidate {
            rank: 1,
            ..at(1, warm, true, 4)
        };
        assert_eq!(order_of(batch, &[laptop(9000), at(2, 0, true, 4)]), [1, 2]);
        assert_eq!(order_of(batch, &[laptop(1000), at(2, 0, true, 4)]), [2, 1]);
        assert_eq!(order_of(batch, &[laptop(9000), at(2, 1024, true, 4)]), [1, 2]);
        assert_eq!(order_of(batch, &[laptop(9000), at(2, 8000, true, 4)]), [2, 1]);
        // Nor does one that rests have a slot soon.
        let known = own(7);
        let warmth =
            |class, rung, full, slots| Candidate::warmth(Some(&known), class, rung, full, slots).tokens;
        let of_one = [
            warmth(batch, Rung::Normal, true, 1),
            warmth(batch, Rung::Hold, false, 4),
            warmth(Class::Interactive, Rung::Pause, false, 4),
            warmth(Class::Interactive, Rung::Hold, false, 4),
            warmth(batch, Rung::Normal, true, 4),
            warmth(batch, Rung::Normal, false, 1),
        ];
        assert_eq!(of_one, [0, 0, 0, 7, 7, 7]);
    }

    /// A free slot of a laptop is for others while the minis are full, and while the laptops work anyway.
    #[test]
    fn a_conversation_waits_in_the_rack_for_as_long_as_its_own_kind_does() {
        let of = |minis: [(u32, Warm); 2], laptop: u32| {
            let mini = |id, (in_flight, warm)| Candidate {
                warm,
                in_flight,
                full: in_flight >= 4,
                ..idle(id)
            };
            let laptop = Candidate {
                rank: 1,
                in_flight: laptop,
                ..idle(3)
            };
            let nodes = [mini(1, minis[0]), mini(2, minis[1]), laptop];
            order_of(Class::Batch, &nodes)
        };
        let (its, none) = (own(9000), Warm::default());
        assert_eq!(of([(25, its), (22, none)], 2), [1, 3, 2]);
        assert_eq!(of([(28, its), (27, none)], 2), [3, 1, 2], "too many wait there");
        assert_eq!(
            of([(25, its), (20, none)], 2),
            [3, 2, 1],
            "much busier than the other one"
        );
        assert_eq!(of([(5, its), (0, none)], 2), [2, 3, 1], "that is free");
        // With a laptop that stands idle it waits for a slot, and no longer.
        assert_eq!(of([(7, its), (5, none)], 0), [1, 3, 2]);
        assert_eq!(of([(8, its), (5, none)], 0), [3, 1, 2]);
        // What many prompts begin with is worth no wait, and no machine's whole work.
        let template = Warm { tokens: 9000, own: 0 };
        assert_eq!(of([(5, template), (5, none)], 2), [3, 1, 2]);
        assert_eq!(of([(2, template), (0, none)], 2), [1, 2, 3]);
        assert_eq!(of([(3, template), (0, none)], 2), [2, 1, 3]);
        assert_eq!(of([(3, its), (0, none)], 2), [1, 2, 3]);
    }

    #[test]
    fn fresh_and_idle_nodes_come_first() {
        let node = |id, age_ms, queued, in_flight| Candidate {
            heard: Heard { age_ms, ..Heard::NOW },
            queued,
            in_flight,
            draining: id == 5,
            spared: id == 6,
            rank: if id == 7 || id == 8 { 1 } else { 0 },
            full: id == 8 || id == 9,
            ..idle(id)
        };
        let nodes = [
            node(1, 100, 5, 0),
            node(2, 9000, 0, 0),
            node(3, 100, 0, 2),
            node(4, 100, 1, 0),
            node(5, 0, 0, 0),
            node(6, 0, 0, 0),
            node(7, 0, 0, 0),
            node(8, 0, 0, 0),
            node(9, 0, 8, 0),
        ];
        assert_eq!(order(&nodes), [4, 3, 1, 7, 9, 8, 2, 6, 5]);
        // Having the prompt's beginning makes up for none of that.
        let warm = nodes.map(|node| Candidate {
            warm: own(if matches!(node.node.bits(), 2 | 5..=9) {
                900
            } else {
                0
            }),
            ..node
        });
        assert_eq!(order(&warm), [4, 3, 1, 7, 9, 8, 2, 6, 5]);
    }

    #[test]
    fn a_conversation_stays_where_its_prefix_is_unless_that_node_is_much_busier() {
        let at = |id, warm, in_flight| Candidate {
            warm: own(warm),
            in_flight,
            ..idle(id)
        };
        assert_eq!(order(&[at(1, 0, 0), at(2, 64, 0), at(3, 512, 2)]), [3, 2, 1]);
        assert_eq!(order(&[at(1, 0, 0), at(2, 64, 0), at(3, 512, 3)]), [2, 1, 3]);
        // Busy is what is beyond the least loaded one that would be asked, whatever a drained one does.
        let drained = Candidate {
            draining: true,
            ..at(1, 0, 0)
        };
        assert_eq!(order(&[drained, at(2, 0, 5), at(3, 512, 7)]), [3, 2, 1]);
    }
}
