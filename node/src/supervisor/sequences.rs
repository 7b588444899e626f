//! The sequences that clients of this node wait for: with the engine, or parked until it can take
//! them.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_api::Unwanted;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Class, ClassReason, Failure, Generation, ModelName, limits};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// One of them.
pub(super) struct Active {
    pub(super) generation: Generation,
    pub(super) events: mpsc::Sender<GenerationEvent>,
    pub(super) granted: bool,
    pub(super) answered: bool,
    /// Of the rest only its last event is.
    pub(super) unwanted: bool,
    restarts: u32,
    /// Not with the engine, since then.
    parked: Option<Instant>,
    /// With the engine, since then.
    submitted: Option<Instant>,
    watcher: AbortHandle,
}

impl Active {
    /// The node takes it, whenever the engine can.
    pub(super) fn grant(&mut self) {
        if !self.granted {
            self.granted = true;
            let _ = self.events.try_send(GenerationEvent::Granted);
        }
    }

    /// Something of it did not reach its client: its end is not to look like a good one.
    pub(super) fn tells_nobody(&mut self) {
        (self.events, _) = mpsc::channel(1);
    }

    /// The engine has it.
    pub(super) fn is_submitted(&mut self) {
        self.parked = None;
        self.submitted = Some(Instant::now());
    }

    /// How long the engine has had it without a token.
    pub(super) fn waited_in_vain(&self) -> Option<Duration> {
        let submitted = self.submitted.filter(|_| !self.answered && self.parked.is_none());
        submitted.map(|submitted| submitted.elapsed())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        // It holds a sender: without this the stream would never be seen to end.
        self.watcher.abort();
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Sequences {
    active: BTreeMap<u64, Active>,
    last: u64,
    /// Watches for clients that go away or have enough, one task a sequence; they end with the sequence.
    watchers: JoinSet<u64>,
}

impl Sequences {
    /// A number that no sequence has.
    pub(super) fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Takes a sequence in, parked; `None` when too many are.
    pub(super) fn add(
        &mut self,
        mut generation: Generation,
        events: &mpsc::Sender<GenerationEvent>,
        mut unwanted: Unwanted,
    ) -> Option<u64> {
        // What is less urgent keeps nobody out.
        let is_ahead =
            |active: &&Active| active.parked.is_some() && active.generation.class <= generation.class;
        if self.active.values().filter(is_ahead).count() >= limits::QUEUE.capacity {
            return None;
        }
        if generation.class_reason == ClassReason::Canary {
            // Only the node itself asks without being counted.
            generation.class_reason = ClassReason::Default;
        }
        let sequence = self.next_number();
        let watched = events.clone();
        let watcher = self.watchers.spawn(async move {
            tokio::select! {
                () = watched.closed() => {}
                () = unwanted.said() => {}
            }
            sequence
        });
        let active = Active {
            generation,
            events: events.clone(),
            granted: false,
            answered: false,
            unwanted: false,
            restarts: 0,
            parked: Some(Instant::now()),
            submitted: None,
            watcher,
        };
        self.active.insert(sequence, active);
        Some(sequence)
    }

    pub(super) fn get_mut(&mut self, sequence: u64) -> Option<&mut Active> {
        self.active.get_mut(&sequence)
    }

    pub(super) fn remove(&mut self, sequence: u64) -> Option<Active> {
        self.active.remove(&sequence)
    }

    pub(super) fn len(&self) -> usize {
        self.active.len()
    }

    /// Whether the engine has any of the classes that `works` says yes to.
    pub(super) fn are_with_engine(&self, works: impl Fn(Class) -> bool) -> bool {
        let mut active = self.active.values();
        active.any(|active| active.parked.is_none() && works(active.generation.class))
    }

    /// Ends one with an error.
    pub(super) fn fail(&mut self, sequence: u64, failure: Failure) {
        if let Some(active) = self.active.remove(&sequence) {
            let _ = active.events.try_send(GenerationEvent::Failed(failure));
        }
    }

    /// Those that wait for a model which `is_its` says yes to.
    pub(super) fn parked(&self, is_its: impl Fn(&ModelName) -> bool) -> Vec<u64> {
        let parked = self.active.iter().filter(|(_, active)| active.parked.is_some());
        parked
            .filter(|(_, active)| is_its(&active.generation.model))
            .map(|(sequence, _)| *sequence)
            .collect()
    }

    /// Those that have waited for longer, with their models.
    pub(super) fn parked_longer_than(&self, wait: Duration) -> Vec<(u64, ModelName)> {
        let is_over = |active: &Active| active.parked.is_some_and(|since| since.elapsed() > wait);
        let over = self.active.iter().filter(|(_, active)| is_over(active));
        over.map(|(sequence, active)| (*sequence, active.generation.model.clone()))
            .collect()
    }

    /// The engine ended: those that had not answered wait for the next one, the others are given
    /// back, and so is what engines died of too often.
    pub(super) fn park_all(&mut self) -> Vec<u64> {
        let now = Instant::now();
        let mut lost = Vec::new();
        for (sequence, active) in &mut self.active {
            active.restarts += 1;
            if active.answered || active.restarts > limits::RETRIES {
                lost.push(*sequence);
            } else {
                active.parked.get_or_insert(now);
                active.grant();
            }
        }
        lost
    }

    /// The next one whose client went away or has enough; never comes back while there is none. Cancel-safe.
    pub(super) async fn next_unwanted(&mut self) -> u64 {
        loop {
            match self.watchers.join_next().await {
                Some(Ok(sequence)) => return sequence,
                // One that ended in another way.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}
