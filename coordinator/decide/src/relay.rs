//! The life of one answer over the places that make it: what to pass on to the client, and
//! when to go on elsewhere. Sans-IO: the shell feeds it what a place sent and does what it says.
//!
//! For a coordinator the places are nodes; for a node's own endpoint they are its engine and the
//! coordinators, behind each of which there is another relay.
//!
//! A token of an answer is a function of prompt, seed and position, so another replica goes on
//! where the last one stopped: it prefills prompt and emitted tokens, and its first token has
//! the next position. No token is lost or repeated, whatever happens; the tokens are those of an
//! undisturbed run as far as design and rounding promise (README, "Randomness").

use pomona_common::generation::{Chunk, GenerationEvent};
use pomona_common::{Accounting, Energy, Failure, FinishReason, Generation, NodeId, Seek, limits};

/// How often an answer may move: more says that something is wrong with the answer itself.
pub const MOVES: u32 = 3;

/// What the shell does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Pass this on; it is not the last event.
    Pass(GenerationEvent),
    /// Pass this on; nothing follows.
    Last(GenerationEvent),
    /// Nothing to pass on.
    Wait,
    /// Leave this place, and ask another one to go on with [`Relay::rest`].
    Move,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Relay<P> {
    generation: Generation,
    /// Place that answers now.
    place: P,
    /// Node that makes the answer now.
    node: NodeId,
    /// Places that failed it; they are asked again when there is nobody else.
    failed: Vec<P>,
    moves: u32,
    /// Whether the present place has said a token, known before or not.
    has_begun: bool,
    /// Whether the present place has made it from its first token on.
    is_whole: bool,
    /// Whether any place has said text.
    said_text: bool,
    /// How often it left a place that still made it.
    shifts: u32,
    /// What the present place has drawn for it, once it says so.
    energy: Option<Energy>,
}

impl<P: Copy + Eq> Relay<P> {
    /// An answer that `place` has promised, and `node` makes. What another router has emitted of
    /// it is in `generation.resume` already.
    pub fn new(generation: Generation, place: P, node: NodeId) -> Self {
        Self {
            is_whole: generation.resume.is_empty(),
            generation: Generation {
                // Whoever made it meanwhile leaves it now.
                seek: Seek::Any,
                ..generation
            },
            place,
            node,
            failed: Vec::new(),
            moves: 0,
            has_begun: false,
            said_text: false,
            shifts: 0,
            energy: None,
        }
    }

    /// What is to be generated: the answer so far is in `resume`.
    pub fn rest(&self) -> &Generation {
        &self.generation
    }

    /// The place that answers now.
    pub fn place(&self) -> P {
        self.place
    }

    /// Whether the present place has said a token.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether nobody has said anything of it yet.
    pub fn is_silent(&self) -> bool {
        !self.has_begun && self.generation.resume.is_empty()
    }

    /// Whether what is accounted for was made by one machine from its first token on: the one that the present place named.
    pub fn is_whole(&self, accounting: &Accounting) -> bool {
        self.is_whole && accounting.node == Some(self.node)
    }

    /// Whether it may leave a place that still makes it; no, when it has done so too often, or nobody could go on.
    pub fn may_shift(&self) -> bool {
        self.shifts < MOVES && !self.said_text
    }

    /// It leaves a place that still makes it.
    pub fn shift(&mut self) {
        self.shifts += 1;
    }

    /// Places that failed this answer, in that order.
    pub fn failed(&self) -> &[P] {
        &self.failed
    }

    /// Another place has promised to go on.
    pub fn moved(&mut self, place: P, node: NodeId) {
        self.place = place;
        self.node = node;
        self.has_begun = false;
        self.is_whole = self.generation.resume.is_empty();
        self.energy = None;
    }

    /// What was drawn for it where it ended: to be told before its last event.
    pub fn energy(&mut self) -> Option<Energy> {
        self.energy.take()
    }

    /// The place sent an event.
    pub fn on_event(&mut self, event: GenerationEvent) -> Next {
        match event {
            GenerationEvent::Granted | GenerationEvent::GrantedBy(_) => Next::Wait,
            GenerationEvent::Chunk(chunk) => self.on_chunk(chunk),
            GenerationEvent::Text(_) if self.generation.text.is_some() => {
                self.has_begun = true;
                self.said_text = true;
                Next::Pass(event)
            }
            // What was asked for is tokens, of a node.
            GenerationEvent::Text(_) | GenerationEvent::GrantedByCloud(_) => self.leave(Failure::NodeLost),
            GenerationEvent::Energy(energy) => {
                self.energy = energy.plausible();
                Next::Wait
            }
            GenerationEvent::Finished { .. } => Next::Last(event),
            // The node has tried more than once by itself: an answer that kills engines before it
            // says anything must not do so everywhere.
            GenerationEvent::Failed(Failure::EngineLost) if !self.has_begun => {
                Next::Last(GenerationEvent::Failed(Failure::EngineLost))
            }
            GenerationEvent::Failed(failure) if failure.is_retryable() => self.leave(failure),
            GenerationEvent::Failed(_) => Next::Last(event),
        }
    }

    /// The place is gone, or the stream broke.
    pub fn on_lost(&mut self) -> Next {
        self.leave(Failure::NodeLost)
    }

    fn on_chunk(&mut self, mut chunk: Chunk) -> Next {
        let have = self.generation.resume.len() as u32;
        let Some(known) = have.checked_sub(chunk.position) else {
            // Tokens are missing: this place cannot be trusted with the rest.
            return self.leave(Failure::NodeLost);
        };
        self.has_begun |= !chunk.tokens.is_empty();
        let known = (known as usize).min(chunk.tokens.len());
        chunk.tokens.drain(..known);
        chunk.logprobs.drain(..known.min(chunk.logprobs.len()));
        if chunk.tokens.is_empty() {
            return Next::Wait;
        }
        chunk.position = have;
        let wanted = self.generation.max_tokens.saturating_sub(have) as usize;
        if chunk.tokens.len() > wanted {
            // A place that goes on beyond what was asked for never ends.
            return self.leave(Failure::NodeLost);
        }
        chunk.logprobs.truncate(chunk.tokens.len());
        for logprob in &mut chunk.logprobs {
            logprob.top.truncate(limits::TOP_LOGPROBS as usize);
        }
        self.generation.resume.extend(&chunk.tokens);
        Next::Pass(GenerationEvent::Chunk(chunk))
    }

    fn leave(&mut self, failure: Failure) -> Next {
        let emitted = self.generation.resume.len() as u32;
        if emitted >= self.generation.max_tokens {
            // Everything came but the last frame: nobody has anything to add.
            let accounting = Accounting {
                prompt_tokens: self.generation.prompt.len() as u32,
                completion_tokens: emitted,
                node: Some(self.node),
                ..Accounting::default()
            };
            return Next::Last(GenerationEvent::Finished {
                reason: FinishReason::Length,
                accounting,
            });
        }
        // Nobody goes on with text: other servers, and this one another time, would say something else.
        if self.moves == MOVES || self.said_text {
            return Next::Last(GenerationEvent::Failed(failure));
        }
        self.moves += 1;
        self.failed.retain(|place| *place != self.place);
        self.failed.push(self.place);
        Next::Move
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::{Class, ClassReason, ModelDigests, RequestId, Sampling};
    use proptest::prelude::*;

    use super::*;

    fn generation(max_tokens: u32) -> Result<Generation, pomona_common::id::IdError> {
        Ok(Generation {
            request: RequestId::from_bits(1),
            choice: 0,
            model: "m".parse()?,
            digests: ModelDigests {
                weights: "w".into(),
                tokenizer: "t".into(),
                template: "c".into(),
            },
            class: Class::Interactive,
            class_reason: ClassReason::Default,
            prompt: vec![1, 2, 3],
            resume: Vec::new(),
            max_tokens,
            stop_tokens: Vec::new(),
            sampling: Sampling::greedy(),
            cache_salt: 0,
            pools: pomona_common::Pools::default(),
            text: None,
            seek: pomona_common::Seek::Any,
        })
    }

    /// Token at a position: what every replica agrees on.
    fn token(position: u32) -> u32 {
        1000 + position * 7
    }

    fn chunk(position: u32, len: u32) -> GenerationEvent {
        GenerationEvent::Chunk(Chunk {
            position,
            tokens: (position..position + len).map(token).collect(),
            logprobs: Vec::new(),
        })
    }

    proptest! {
        /// However nodes die, repeat themselves, skip tokens or refuse, the client gets the
        /// tokens of an undisturbed run from the first on, each once, and exactly one end.
        #[test]
        fn no_token_is_lost_or_repeated(
            max_tokens in 1..60u32,
            script in prop::collection::vec((0..8u8, 1..5u32, 0..4u32), 1..200),
        ) {
            let mut relay = Relay::new(generation(max_tokens).map_err(|e| TestCaseError::fail(e.to_string()))?, 0, NodeId::from_bits(0));
            let (mut got, mut ended, mut moves) = (Vec::new(), false, 0u32);
            let (mut at, mut spoke) = (0, false);
            for (what, len, back) in script {
                let len = len.min(max_tokens - at.min(max_tokens));
                let without_a_token = what == 1 && !spoke;
                let next = match what {
                    0 => relay.on_lost(),
                    1 => relay.on_event(GenerationEvent::Failed(Failure::EngineLost)),
                    2 => relay.on_event(chunk(at + 1 + back, 1)),
                    3 => relay.on_event(GenerationEvent::Granted),
                    4 => {
                        spoke |= back.min(at) > 0;
                        relay.on_event(chunk(at.saturating_sub(back), back.min(at)))
                    }
                    _ if at == max_tokens => relay.on_event(GenerationEvent::Finished {
                        reason: FinishReason::Length,
                        accounting: Accounting::default(),
                    }),
                    _ => {
                        let from = at.saturating_sub(back);
                        spoke |= at - from + len > 0;
                        relay.on_event(chunk(from, at - from + len))
                    }
                };
                match next {
                    Next::Pass(GenerationEvent::Chunk(chunk)) => {
                        prop_assert_eq!(chunk.position as usize, got.len());
                        got.extend(chunk.tokens);
                    }
                    Next::Pass(other) => return Err(TestCaseError::fail(format!("{other:?} passed"))),
                    Next::Last(GenerationEvent::Finished { accounting, .. }) => {
                        if accounting.completion_tokens > 0 {
                            prop_assert_eq!(accounting.completion_tokens, max_tokens);
                        }
                        prop_assert_eq!(got.len() as u32, max_tokens);
                        ended = true;
                    }
                    Next::Last(_) => {
                        prop_assert!(moves == MOVES || without_a_token, "given up before its time");
                        ended = true;
                    }
                    Next::Wait => {}
                    Next::Move => {
                        moves += 1;
                        prop_assert_eq!(relay.rest().resume.len(), got.len());
                        prop_assert!(!without_a_token, "it would kill another engine");
                        relay.moved(moves, NodeId::from_bits(moves.into()));
                        spoke = false;
                    }
                }
                at = got.len() as u32;
                if ended {
                    break;
                }
            }
            prop_assert!(moves <= MOVES);
            let undisturbed: Vec<u32> = (0..got.len() as u32).map(token).collect();
            prop_assert_eq!(got, undisturbed);
        }
    }

    #[test]
    fn an_answer_that_goes_on_too_long_is_left() -> Result<(), pomona_common::id::IdError> {
        let mut relay = Relay::new(generation(3)?, 0, NodeId::from_bits(0));
        assert!(matches!(relay.on_event(chunk(0, 2)), Next::Pass(_)));
        assert_eq!(relay.on_event(chunk(2, 2)), Next::Move);
        assert_eq!(relay.rest().resume.len(), 2);
        Ok(())
    }

    #[test]
    fn a_refusal_for_the_client_is_passed_on() -> Result<(), pomona_common::id::IdError> {
        let mut relay = Relay::new(generation(5)?, 0, NodeId::from_bits(0));
        let failed = GenerationEvent::Failed(Failure::TooLarge { needed: 2, budget: 1 });
        assert_eq!(relay.on_event(failed.clone()), Next::Last(failed));
        Ok(())
    }
}
