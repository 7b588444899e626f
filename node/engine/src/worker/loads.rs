//! Models come and go: one part of a load between two steps, so that others keep running. A part
//! is the embedding, a layer or the head: on a GPU tens of milliseconds, on a CPU, where it is
//! dequantised, up to seconds for a large model.

use std::collections::VecDeque;
use std::path::Path;

use pomona_common::engine::EngineEvent;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Failure, ModelName};
use pomona_store::ModelFolder;

use crate::kv::KvSlabs;
use crate::lane::Lane;
use crate::llama::Llama;
use crate::loader::Loading;
use crate::worker::{Disconnected, Worker};

/// Interactive steps that run before a part of a load may delay the next one.
const STEPS_A_PART: u32 = 4;

/// Loads to do, the first of them begun perhaps. The node asks for each model of its target
/// once, which bounds it.
#[derive(Debug, Default)]
pub(crate) struct Loads(VecDeque<Load>);

#[derive(Debug)]
struct Load {
    model: ModelName,
    folder: String,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    loading: Loading,
    /// MLX memory that its parts took so far; what ran in between does not count.
    memory: i64,
}

impl Loads {
    pub(crate) fn are_done(&self) -> bool {
        self.0.is_empty()
    }
}

impl Worker {
    pub(super) fn load(&mut self, model: ModelName, folder: String) -> Result<(), Disconnected> {
        if self.lanes.contains_key(&model) {
            return self.send(EngineEvent::Loaded { model });
        }
        if !self.loads.0.iter().any(|load| load.model == model) {
            self.loads.0.push_back(Load {
                model,
                folder,
                begun: None,
            });
        }
        Ok(())
    }

    /// Does the next part of the first load, if there is one and it is its turn: after every
    /// step, but only after some when they are interactive ones.
    pub(super) fn load_part(&mut self) -> Result<(), Disconnected> {
        if self.interactive_steps < STEPS_A_PART && self.interactive_steps > 0 {
            return Ok(());
        }
        self.interactive_steps = 0;
        let Some(mut load) = self.loads.0.pop_front() else {
            return Ok(());
        };
        match self.advance_load(&mut load) {
            Ok(Some((llama, weight_bytes))) => {
                let Load { model, .. } = load;
                self.open_lane(model.clone(), llama, weight_bytes);
                self.send(EngineEvent::Loaded { model })
            }
            Ok(None) => {
                self.progress += 1;
                self.loads.0.push_front(load);
                Ok(())
            }
            Err(error) => self.send(EngineEvent::LoadFailed {
                model: load.model,
                reason: format!("{error:#}"),
            }),
        }
    }

    /// Gives the model with the bytes it takes when this was its last part.
    fn advance_load(&self, load: &mut Load) -> anyhow::Result<Option<(Llama, u64)>> {
        let before = memory();
        let Some(begun) = &mut load.begun else {
            let folder = ModelFolder::open(Path::new(&load.folder))?;
            let loading = Loading::open(&folder, &self.backend)?;
            load.begun = Some(Begun {
                loading,
                memory: memory() - before,
            });
            return Ok(None);
        };
        let done = begun.loading.advance()?;
        begun.memory += memory() - before;
        if let Some(llama) = done {
            return Ok(Some((llama, begun.memory.max(0) as u64)));
        }
        let (done, total) = begun.loading.progress();
        // Progress is a courtesy: dropped when the node is busy.
        let _ = self.events.try_send(EngineEvent::Loading {
            model: load.model.clone(),
            done,
            total,
        });
        Ok(None)
    }

    fn open_lane(&mut self, model: ModelName, llama: Llama, weight_bytes: u64) {
        let config = &llama.config;
        let kv_token_bytes = config.kv_numbers_per_token() * self.backend.kv_number_bytes();
        self.scheduler
            .add_model(model.clone(), kv_token_bytes, config.context);
        self.prefixes.add_model(model.clone(), kv_token_bytes);
        let lane = Lane {
            kv: KvSlabs::new(config, self.backend.dtype),
            weight_bytes,
            vocab: config.vocab_size,
            llama,
        };
        self.lanes.insert(model, lane);
    }

    pub(super) fn unload(&mut self, model: ModelName) -> Result<(), Disconnected> {
        self.loads.0.retain(|load| load.model != model);
        for id in self.scheduler.remove_model(&model) {
            self.sequences.remove(&id);
            let failure = Failure::ModelNotLoaded {
                model: model.to_string(),
                detail: "it was unloaded".into(),
            };
            self.tell(id, GenerationEvent::Failed(failure))?;
        }
        self.drop_ended_passes();
        self.lanes.remove(&model);
        self.prefixes.remove_model(&model);
        self.pace.forget(&model);
        self.steadiness.forget(&model);
        let _ = mlx_rs::memory::clear_cache();
        self.send(EngineEvent::Unloaded(model))
    }
}

fn memory() -> i64 {
    mlx_rs::memory::active_memory().unwrap_or(0) as i64
}
