//! Answers of one entry, and where each of them is made: the shell of the product's `Relay` in the simulator,
//! as `common/dispatch` is in the product. For a coordinator places are nodes; for a node's own endpoint they
//! are its engine and the coordinators.

use std::collections::BTreeMap;

use pomona_common::generation::GenerationEvent;
use pomona_common::{Accounting, Class, Failure, Generation, NodeId, Rung, Seek, limits};
use pomona_decide::{Next, Relay};

/// As the real ones, in milliseconds: how long an answer looks for another place.
const REPLACE: u64 = 12_000;
const REPLACE_BATCH: u64 = 300_000;
/// An answer that found no better place stays for so long.
const STAY: u64 = 2_000;
/// Answers that ask for better places at once.
const ASK: usize = 4;
/// What everybody refused is tried again after this time, as `common/dispatch/src/hold.rs` does.
const RETRY: u64 = 1_000;
const RETRY_BATCH: u64 = 5_000;

/// Where an answer stands.
enum Stage<P> {
    /// A place was asked, for this, at this time.
    Asked((P, Seek), u64),
    /// A place makes it.
    Made(P),
    /// Nobody has it; places are asked at this time or later.
    Homeless(u64),
}

/// One answer for a client.
struct Answer<P> {
    generation: Generation,
    relay: Option<Relay<P>>,
    asked: u64,
    stage: Stage<P>,
    /// Since when nobody makes it.
    since: u64,
    /// Whether a place has no memory for it, ever.
    too_large: bool,
    /// How long it waits for its first place.
    hold: u64,
    /// Places that refused since the last success, and what they were asked for.
    refused: Vec<(P, Seek)>,
    moves: u32,
    /// A place that was asked to go on with it while the present one makes it, and when.
    better: Option<(P, u64)>,
    /// It does not ask again before this time.
    stays_until: u64,
}

/// What is to be done for an answer, by its number.
pub enum Wish<P> {
    Open(P, u64, Box<Generation>),
    Cancel(P, u64),
    Tell(u64, GenerationEvent),
    /// It ended here, after so many moves.
    End(u64, GenerationEvent, u32),
}

/// What an entry knows of places.
pub trait Places<P> {
    /// Who is to be asked, and for what, the best first; those in `avoid` failed this answer.
    fn order(&self, generation: &Generation, avoid: &[P]) -> Vec<(P, Seek)>;
    /// How far this place is relieved of what it makes.
    fn rung(&self, place: P) -> Rung;
    /// Whether an answer's first token, which somebody waits for, comes late where it is made.
    fn comes_late(&self, _number: u64) -> bool {
        false
    }
    /// Who may go on with what a place makes that is relieved.
    fn better(&self, generation: &Generation, than: P) -> Option<P>;
    /// A place is asked.
    fn chosen(&self, _place: P) {}
    /// How long a place has to promise or refuse what it is asked for first, in milliseconds.
    fn grant(&self, seek: Seek) -> u64;
}

/// See the module's documentation. Times are in milliseconds.
pub struct Answers<P> {
    answers: BTreeMap<u64, Answer<P>>,
}

impl<P> Default for Answers<P> {
    fn default() -> Self {
        Self {
            answers: BTreeMap::new(),
        }
    }
}

impl<P: Copy + Eq> Answer<P> {
    /// What is to be made of it still.
    fn rest(&self) -> &Generation {
        self.relay.as_ref().map_or(&self.generation, Relay::rest)
    }
}

impl<P: Copy + Eq> Answers<P> {
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    pub fn len(&self) -> usize {
        self.answers.len()
    }

    /// How many answers are asked of each place or made there, of those that entered here.
    pub fn in_flight(&self) -> BTreeMap<P, u32>
    where
        P: Ord,
    {
        let mut places = BTreeMap::new();
        for answer in self.answers.values() {
            if let Stage::Asked((at, _), _) | Stage::Made(at) = answer.stage {
                *places.entry(at).or_default() += 1;
            }
        }
        places
    }

    /// Somebody asks, and waits for so long when there is no place.
    pub fn ask(&mut self, number: u64, generation: Generation, hold: u64, now: u64) {
        let answer = Answer {
            generation,
            relay: None,
            asked: now,
            stage: Stage::Homeless(now),
            since: now,
            too_large: false,
            hold,
            refused: Vec::new(),
            moves: 0,
            better: None,
            stays_until: 0,
        };
        self.answers.insert(number, answer);
    }

    /// Answers of which this place has said nothing yet, with when they were asked for.
    pub fn not_begun(&self, of: P) -> impl Iterator<Item = (u64, &Generation, u64)> {
        let its = move |(_, one): &(&u64, &Answer<P>)| {
            one.relay.as_ref().is_some_and(Relay::is_silent)
                && matches!(one.stage, Stage::Made(at) if at == of)
        };
        let answers = self.answers.iter().filter(its);
        answers.map(|(number, one)| (*number, one.rest(), one.asked))
    }

    /// What is to be made for one.
    pub fn asked(&self, number: u64) -> Option<&Generation> {
        self.answers.get(&number).map(Answer::rest)
    }

    /// Whether one machine has made it from its first token on.
    pub fn is_whole(&self, number: u64, accounting: &Accounting) -> bool {
        let relay = self.answers.get(&number).and_then(|one| one.relay.as_ref());
        relay.is_some_and(|relay| relay.is_whole(accounting))
    }

    /// Its client has gone.
    pub fn drop_answer(&mut self, number: u64) -> Vec<Wish<P>> {
        let Some(answer) = self.answers.remove(&number) else {
            return Vec::new();
        };
        let at = match answer.stage {
            Stage::Asked((at, _), _) | Stage::Made(at) => Some(at),
            Stage::Homeless(_) => None,
        };
        let better = answer.better.map(|(place, _)| place);
        let cancel = |place| Wish::Cancel(place, number);
        at.into_iter().chain(better).map(cancel).collect()
    }

    /// Some time went by.
    pub fn tick(&mut self, places: &impl Places<P>, now: u64) -> Vec<Wish<P>> {
        let mut wishes = Vec::new();
        let mut asking = self
            .answers
            .values()
            .filter(|answer| answer.better.is_some() && answer.generation.class == Class::Batch)
            .count();
        for number in self.answers.keys().copied().collect::<Vec<_>>() {
            wishes.extend(self.look_after(number, places, &mut asking, now));
        }
        wishes
    }

    /// Looks after one answer, as when it has just been asked for.
    pub fn look_at(&mut self, number: u64, places: &impl Places<P>, now: u64) -> Vec<Wish<P>> {
        self.look_after(number, places, &mut ASK.clone(), now)
    }

    /// Finds a place for an answer that has none, or gives it up; a better one for one whose place is relieved.
    fn look_after(
        &mut self,
        number: u64,
        places: &impl Places<P>,
        asking: &mut usize,
        now: u64,
    ) -> Vec<Wish<P>> {
        let Some(answer) = self.answers.get_mut(&number) else {
            return Vec::new();
        };
        let limit = limits::wall_clock(answer.generation.class);
        if now >= answer.asked + limit.as_millis() as u64 {
            let moves = answer.moves;
            let mut wishes = self.drop_answer(number);
            let limit_s = limit.as_secs();
            let failure = GenerationEvent::Failed(Failure::TimedOut { limit_s });
            wishes.push(Wish::End(number, failure, moves));
            return wishes;
        }
        let again = match answer.stage {
            Stage::Homeless(again) => again,
            Stage::Asked((place, seek), at) if now >= at + places.grant(seek) => {
                return self.lost(number, place, now);
            }
            Stage::Made(place) => return self.look_for_better(number, place, places, asking, now),
            Stage::Asked(..) => return Vec::new(),
        };
        if now < again {
            return Vec::new();
        }
        let avoid = answer.relay.as_ref().map_or(&[][..], Relay::failed);
        let generation = answer.rest();
        let order = places.order(generation, avoid);
        let best = order.into_iter().find(|ask| !answer.refused.contains(ask));
        let class = generation.class;
        let patience = match (class, &answer.relay) {
            (Class::Batch, Some(_)) => REPLACE_BATCH,
            (_, Some(_)) => REPLACE,
            (_, None) => answer.hold,
        };
        match best {
            Some((place, seek)) => {
                let generation = Box::new(Generation {
                    seek,
                    ..generation.clone()
                });
                answer.stage = Stage::Asked((place, seek), now);
                places.chosen(place);
                vec![Wish::Open(place, number, generation)]
            }
            None if now >= answer.since + patience => {
                let (moves, too_large) = (answer.moves, answer.too_large);
                self.answers.remove(&number);
                let failure = match too_large {
                    true => Failure::TooLarge { needed: 0, budget: 0 },
                    false => Failure::Overloaded {
                        detail: "no free place".into(),
                        retry_after_s: 5,
                    },
                };
                vec![Wish::End(number, GenerationEvent::Failed(failure), moves)]
            }
            None => {
                // Whoever refused is asked again.
                answer.refused.clear();
                let pause = match class {
                    Class::Batch => RETRY_BATCH,
                    Class::Interactive | Class::Background => RETRY,
                };
                answer.stage = Stage::Homeless(now + pause.min(answer.since + patience - now));
                Vec::new()
            }
        }
    }

    /// Asks another place to go on with a batch answer whose own is relieved so far that it leaves.
    fn look_for_better(
        &mut self,
        number: u64,
        maker: P,
        places: &impl Places<P>,
        asking: &mut usize,
        now: u64,
    ) -> Vec<Wish<P>> {
        let Some(answer) = self.answers.get_mut(&number) else {
            return Vec::new();
        };
        if let Some((place, at)) = answer.better {
            if now < at + places.grant(Seek::Any) {
                return Vec::new();
            }
            // No better place was found.
            answer.better = None;
            answer.stays_until = now + STAY;
            return vec![Wish::Cancel(place, number)];
        }
        let is_batch = answer.generation.class == Class::Batch;
        let is_due = now >= answer.stays_until && (!is_batch || *asking < ASK);
        let Some(relay) = answer.relay.as_ref().filter(|relay| is_due && relay.may_shift()) else {
            return Vec::new();
        };
        let leaves = match (answer.generation.class, relay.has_begun()) {
            (Class::Batch, true) => places.rung(maker) >= Rung::MoveRunning,
            (Class::Batch, false) => places.rung(maker) >= Rung::MoveQueued,
            _ => relay.is_silent() && places.comes_late(number),
        };
        if !leaves {
            return Vec::new();
        }
        let Some(best) = places.better(relay.rest(), maker) else {
            return Vec::new();
        };
        let mut rest = Box::new(relay.rest().clone());
        rest.seek = Seek::Better;
        answer.better = Some((best, now));
        *asking += usize::from(is_batch);
        vec![Wish::Open(best, number, rest)]
    }

    /// A place is gone: what it made is made elsewhere.
    pub fn lose(&mut self, place: P, now: u64) -> Vec<Wish<P>> {
        for answer in self.answers.values_mut() {
            answer.better = answer.better.filter(|(better, _)| *better != place);
        }
        let of_it = |answer: &Answer<P>| matches!(answer.stage, Stage::Asked((at, _), _) | Stage::Made(at) if at == place);
        let lost = self.answers.iter().filter(|(_, answer)| of_it(answer));
        let lost: Vec<u64> = lost.map(|(number, _)| *number).collect();
        lost.into_iter()
            .flat_map(|number| self.lost(number, place, now))
            .collect()
    }

    fn lost(&mut self, number: u64, place: P, now: u64) -> Vec<Wish<P>> {
        let Some(answer) = self.answers.get_mut(&number) else {
            return Vec::new();
        };
        match (&answer.stage, &mut answer.relay) {
            (Stage::Made(_), Some(relay)) => {
                let next = relay.on_lost();
                self.follow(number, next, now)
            }
            (stage, _) => {
                if let Stage::Asked(ask, _) = stage {
                    answer.refused.push(*ask);
                }
                answer.stage = Stage::Homeless(now);
                // It may have begun, and only its promise been lost.
                vec![Wish::Cancel(place, number)]
            }
        }
    }

    /// A place says something about an answer; `node` is who makes it there.
    pub fn on_event(
        &mut self,
        place: P,
        node: NodeId,
        number: u64,
        event: GenerationEvent,
        now: u64,
    ) -> Vec<Wish<P>> {
        let Some(answer) = self.answers.get_mut(&number) else {
            return vec![Wish::Cancel(place, number)];
        };
        let mut wishes = Vec::new();
        match answer.stage {
            Stage::Asked(ask, _) if ask.0 == place => {
                if let GenerationEvent::Failed(failure) = &event {
                    answer.too_large |= matches!(failure, Failure::TooLarge { .. });
                    answer.refused.push(ask);
                    answer.stage = Stage::Homeless(now);
                    return Vec::new();
                }
                answer.stage = Stage::Made(place);
                answer.refused.clear();
                match &mut answer.relay {
                    Some(relay) => relay.moved(place, node),
                    none => {
                        *none = Some(Relay::new(answer.generation.clone(), place, node));
                        // Who asked hears at once who makes it.
                        wishes.push(Wish::Tell(number, GenerationEvent::GrantedBy(node)));
                    }
                }
            }
            Stage::Made(maker) if maker == place => {}
            Stage::Made(maker) if answer.better.is_some_and(|(better, _)| better == place) => {
                answer.better = None;
                answer.stays_until = now + STAY;
                let has_begun = answer.relay.as_ref().is_some_and(Relay::has_begun);
                if has_begun && answer.generation.class != Class::Batch {
                    return vec![Wish::Cancel(place, number)];
                }
                if matches!(event, GenerationEvent::Failed(_)) {
                    return Vec::new();
                }
                let Some(relay) = &mut answer.relay else {
                    return Vec::new();
                };
                // It has promised to go on: only now the other one is left.
                relay.shift();
                relay.moved(place, node);
                answer.stage = Stage::Made(place);
                return vec![Wish::Cancel(maker, number)];
            }
            _ => return vec![Wish::Cancel(place, number)],
        }
        let Some(relay) = &mut answer.relay else {
            return Vec::new();
        };
        let next = relay.on_event(event);
        wishes.extend(self.follow(number, next, now));
        wishes
    }

    /// Does what the relay says.
    fn follow(&mut self, number: u64, next: Next, now: u64) -> Vec<Wish<P>> {
        let Some(answer) = self.answers.get_mut(&number) else {
            return Vec::new();
        };
        match next {
            Next::Wait => Vec::new(),
            Next::Pass(event) => vec![Wish::Tell(number, event)],
            Next::Last(event) => {
                let moves = answer.moves;
                self.answers.remove(&number);
                vec![Wish::End(number, event, moves)]
            }
            Next::Move => {
                let from = match answer.stage {
                    Stage::Made(place) => Some(place),
                    _ => None,
                };
                answer.stage = Stage::Homeless(now);
                answer.since = now;
                answer.moves += 1;
                from.map(|place| Wish::Cancel(place, number))
                    .into_iter()
                    .collect()
            }
        }
    }
}
