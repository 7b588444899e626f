//! How soon the engine begins to answer people, and others do.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::engine::PromptStep;
use pomona_common::{Accounting, Generation, ModelName, NodeId, Slo};
use pomona_decide::{Promptness, Strain};
use tokio::sync::watch;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Prompts {
    began: Instant,
    known: Mutex<Promptness>,
    /// Told after each step.
    steps: watch::Sender<()>,
}

impl Prompts {
    pub(super) fn of(node: NodeId) -> Self {
        Self {
            began: Instant::now(),
            known: Mutex::new(Promptness::new(node)),
            steps: watch::Sender::default(),
        }
    }

    pub(super) fn note_strain(&self, strain: Strain) {
        self.known().note_strain(strain, self.began.elapsed());
    }

    pub(super) fn note_step(&self, step: &PromptStep) {
        self.known().note_step(step, self.began.elapsed());
        self.steps.send_replace(());
    }

    pub(super) fn note_answer(&self, generation: &Generation, accounting: &Accounting) {
        self.known()
            .note_answer(generation, accounting, self.began.elapsed());
    }

    pub(super) fn forget(&self, model: &ModelName) {
        self.known().forget(model);
    }

    /// News of each step.
    pub(super) fn steps(&self) -> watch::Receiver<()> {
        self.steps.subscribe()
    }

    pub(super) fn is_late(&self, asked: (&Generation, Duration), slo: &Slo) -> bool {
        self.known().is_late(asked, slo, self.began.elapsed())
    }

    fn known(&self) -> MutexGuard<'_, Promptness> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
