//! The echo engine: a deterministic stand-in that speaks the engine's protocol. Token *i* of an
//! answer is a function of the prompt and *i*. For gateway benchmarks and fault tests; never a
//! default.

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use pomona_common::engine::{EngineCommand, EngineEvent};
use pomona_common::generation::{Chunk, GenerationEvent};
use pomona_common::report::{ClassReport, EngineBuild, EngineReport, LoadedModel};
use pomona_common::{Accounting, Class, EngineKnobs, Failure, FinishReason, Generation, ModelName};
use pomona_wire::WireError;

/// Commands that may wait.
const COMMANDS: usize = 4096;

struct Echo {
    step: Duration,
    knobs: EngineKnobs,
    pace: u32,
    models: BTreeMap<ModelName, LoadedModel>,
    running: BTreeMap<u64, (Generation, u32)>,
    steps: u64,
    output: BufWriter<io::Stdout>,
}

/// Runs until the input ends. Every step takes `step` and gives each sequence one token.
///
/// # Errors
/// The pipes fail.
pub fn run(step: Duration) -> Result<(), WireError> {
    let (sender, commands) = mpsc::sync_channel::<EngineCommand>(COMMANDS);
    // Ends with the node's end of the pipe.
    let reader = std::thread::spawn(move || {
        let mut input = BufReader::new(io::stdin());
        while let Ok(Some(command)) = pomona_wire::read_from(&mut input) {
            if sender.send(command).is_err() {
                return;
            }
        }
    });
    let mut echo = Echo {
        step,
        knobs: EngineKnobs::default(),
        pace: 100,
        models: BTreeMap::new(),
        running: BTreeMap::new(),
        steps: 0,
        output: BufWriter::new(io::stdout()),
    };
    echo.send(&EngineEvent::Ready(build()))?;
    let mut due = Instant::now();
    loop {
        let wait = if echo.running.is_empty() {
            Duration::from_secs(3600)
        } else {
            due.saturating_duration_since(Instant::now())
        };
        match commands.recv_timeout(wait) {
            Ok(command) => {
                if echo.running.is_empty() {
                    due = Instant::now() + step;
                }
                echo.obey(command)?;
            }
            Err(RecvTimeoutError::Timeout) => {
                due += echo.step;
                echo.step()?;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let _ = reader.join();
    Ok(())
}

fn build() -> EngineBuild {
    EngineBuild {
        build: "echo".into(),
        backend: "echo".into(),
        precision: "none".into(),
        scheduler: "none".into(),
        ..EngineBuild::default()
    }
}

fn tokens_only() -> Failure {
    Failure::Internal {
        detail: "this engine takes token ids".into(),
    }
}

/// Token `i` of the answer to a prompt: small ids, which every tokenizer has.
pub fn token(prompt: &[u32], i: u32) -> u32 {
    let sum = prompt
        .iter()
        .fold(17u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token));
    40 + sum.wrapping_add(i.wrapping_mul(7)) % 50
}

impl Echo {
    fn obey(&mut self, command: EngineCommand) -> Result<(), WireError> {
        match command {
            EngineCommand::Load { model, .. } => {
                self.models.insert(model.clone(), LoadedModel::default());
                self.send(&EngineEvent::Loaded { model })
            }
            EngineCommand::Unload(model) => {
                self.models.remove(&model);
                let running = self.running.iter();
                let of_it = running.filter(|(_, (generation, _))| generation.model == model);
                let ended: Vec<u64> = of_it.map(|(sequence, _)| *sequence).collect();
                for sequence in ended {
                    self.running.remove(&sequence);
                    let failure = Failure::ModelNotLoaded {
                        model: model.to_string(),
                        detail: "it was unloaded".into(),
                    };
                    self.tell(sequence, GenerationEvent::Failed(failure))?;
                }
                self.send(&EngineEvent::Unloaded(model))
            }
            EngineCommand::Start { sequence, generation } => {
                let emitted = generation.resume.len() as u32;
                self.running.insert(sequence, (*generation, emitted));
                self.tell(sequence, GenerationEvent::Granted)?;
                if self.step.is_zero() { self.step() } else { Ok(()) }
            }
            EngineCommand::StartText { sequence, .. } => {
                self.tell(sequence, GenerationEvent::Failed(tokens_only()))
            }
            EngineCommand::Cancel { sequence } => match self.running.remove(&sequence) {
                Some((generation, emitted)) => {
                    let accounting = Self::accounting((&self.knobs, self.step), &generation, emitted);
                    let reason = FinishReason::Cancelled;
                    self.tell(sequence, GenerationEvent::Finished { reason, accounting })
                }
                None => Ok(()),
            },
            EngineCommand::Knobs(knobs) => {
                self.knobs = knobs;
                Ok(())
            }
            // It makes no heat: it only says what slots an engine that does would have left, and stands still.
            EngineCommand::Pace(percent) => {
                self.pace = percent;
                Ok(())
            }
            // Nothing waits here.
            EngineCommand::Slos(_) | EngineCommand::Short(_) => Ok(()),
            EngineCommand::Report => {
                self.send(&EngineEvent::Progress(self.steps))?;
                let mut classes = BTreeMap::<Class, ClassReport>::new();
                let mut models = self.models.clone();
                for (generation, _) in self.running.values() {
                    classes.entry(generation.class).or_default().running += 1;
                    if let Some(model) = models.get_mut(&generation.model) {
                        model.running += 1;
                    }
                }
                let report = EngineReport {
                    build: build(),
                    knobs: self.knobs.paced(self.pace),
                    models,
                    classes,
                    steps: self.steps,
                    ..EngineReport::default()
                };
                self.send(&EngineEvent::Report(Box::new(report)))
            }
        }
    }

    /// A step takes as long however many share it: each has all of it.
    fn accounting(
        (knobs, step): (&EngineKnobs, Duration),
        generation: &Generation,
        emitted: u32,
    ) -> Accounting {
        let made = emitted.saturating_sub(generation.resume.len() as u32);
        Accounting {
            step_share_ms: f64::from(made) * step.as_secs_f64() * 1e3,
            prompt_tokens: generation.prompt.len() as u32,
            completion_tokens: emitted,
            knob_version: knobs.version,
            build: "echo".into(),
            ..Accounting::default()
        }
    }

    fn step(&mut self) -> Result<(), WireError> {
        self.steps += 1;
        let mut events = Vec::new();
        let is_stopped = |class| class == Class::Batch && self.pace == 0;
        let stands_still = |class: Class| self.knobs.class(class).is_paused() || is_stopped(class);
        for (sequence, (generation, emitted)) in &mut self.running {
            if stands_still(generation.class) {
                continue;
            }
            let chunk = Chunk {
                position: *emitted,
                tokens: vec![token(&generation.prompt, *emitted)],
                logprobs: Vec::new(),
            };
            *emitted += 1;
            events.push((*sequence, GenerationEvent::Chunk(chunk)));
            if *emitted >= generation.max_tokens {
                let accounting = Self::accounting((&self.knobs, self.step), generation, *emitted);
                let reason = FinishReason::Length;
                events.push((*sequence, GenerationEvent::Finished { reason, accounting }));
            }
        }
        self.running
            .retain(|_, (generation, emitted)| *emitted < generation.max_tokens);
        for (sequence, event) in events {
            self.tell(sequence, event)?;
        }
        Ok(())
    }

    fn tell(&mut self, sequence: u64, event: GenerationEvent) -> Result<(), WireError> {
        self.send(&EngineEvent::Sequence { sequence, event })
    }

    fn send(&mut self, event: &EngineEvent) -> Result<(), WireError> {
        pomona_wire::write_to(&mut self.output, event)
    }
}
