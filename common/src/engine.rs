//! Messages between a node and its engine process.

use serde::{Deserialize, Serialize};

use crate::generation::{Generation, GenerationEvent};
use crate::id::ModelName;
use crate::knobs::EngineKnobs;
use crate::report::{EngineBuild, EngineReport};
use crate::slo::SloSet;
use crate::text_ask::TextAsk;

/// Sent by the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EngineCommand {
    /// Load a model folder.
    Load {
        /// What to call it.
        model: ModelName,
        /// The folder, as the node checked it.
        folder: String,
    },
    /// Drop a model; its sequences end with a failure.
    Unload(ModelName),
    /// Start a sequence under a number of the node's choice.
    Start {
        /// Names the sequence from here on.
        sequence: u64,
        /// What to do.
        generation: Box<Generation>,
    },
    /// End a sequence without an answer.
    Cancel {
        /// The sequence.
        sequence: u64,
    },
    /// Replace the knobs.
    Knobs(EngineKnobs),
    /// Send a report.
    Report,
    /// As `Start`, of a model that takes text.
    StartText {
        /// Names the sequence from here on.
        sequence: u64,
        /// What to do.
        generation: Box<Generation>,
        /// What to answer.
        text: Box<TextAsk>,
    },
    /// Work on batch for so many percent of the time, from 0 to 100.
    Pace(u32),
    /// How much may wait, and for how long.
    Slos(Box<SloSet>),
    /// Whether the system is short of memory: then nothing begins but what a person waits for.
    Short(bool),
}

impl EngineCommand {
    /// Starts a sequence.
    pub fn start(sequence: u64, generation: &Generation) -> Self {
        let generation = Box::new(generation.clone());
        match &generation.text {
            Some(text) => EngineCommand::StartText {
                sequence,
                text: Box::new(TextAsk::clone(text)),
                generation,
            },
            None => EngineCommand::Start { sequence, generation },
        }
    }
}

/// Sent by the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum EngineEvent {
    /// First message: the engine is up.
    Ready(EngineBuild),
    /// Part of a model is loaded.
    Loading {
        /// The model.
        model: ModelName,
        /// Bytes read so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A model answers from now on.
    Loaded {
        /// The model.
        model: ModelName,
    },
    /// A model could not be loaded.
    LoadFailed {
        /// The model.
        model: ModelName,
        /// Why, in the user's terms.
        reason: String,
    },
    /// A model is gone.
    Unloaded(ModelName),
    /// News of a sequence.
    Sequence {
        /// The sequence.
        sequence: u64,
        /// What happened.
        event: GenerationEvent,
    },
    /// Answer to [`EngineCommand::Report`].
    Report(Box<EngineReport>),
    /// Before every report: how many pieces of work (slices of steps, parts of loads) the engine has
    /// done since it started. One that has work and does not count on is wedged.
    Progress(u64),
    /// The process that does the work, where that is not the engine itself; none while it is not there.
    Serves(Option<u32>),
    /// After every report, of an engine that computes itself: the speed of the latest steps in percent of what like ones
    /// usually have, if that can be told.
    Steadiness(Option<u32>),
    /// A step of an engine that computes itself, in which a person's prompt was, or a part of one.
    Prompt(PromptStep),
}

/// How long a part of a prompt took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptStep {
    /// Of this model.
    pub model: ModelName,
    /// Prompt tokens that were computed.
    pub tokens: u32,
    /// Tokens that were attended to.
    pub context: u64,
    /// Microseconds of the device alone.
    pub took_us: u64,
}
