//! Where the node's own endpoint gets its answers: the engine here, or any other node of the
//! cluster through a coordinator, and on from one to the other when it is lost.

use std::sync::Arc;
use std::time::Duration;

use pomona_api::GenerationStream;
use pomona_common::control::{TextBundle, knows};
use pomona_common::{
    Accounting, Class, Failure, Fallback, Generation, Maker, ModelName, ModelRecord, NodeId, Rung, Seek, Slo,
    SloSet, TextAsk,
};
use pomona_decide::{Ask, EntryPlace, Here, entry};
use pomona_dispatch::{Places, Promise, Waiting, hopeful, is_last_word};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::coordinators::Coordinators;
use crate::instructions::Instructions;
use crate::keys::Keys;
use crate::store::Store;
use crate::supervisor::Supervisor;

/// A coordinator asks up to three nodes before it answers. One that is lost is noticed sooner.
const GRANT: Duration = Duration::from_secs(16);

/// What comes late here is begun here all the same if nobody else has begun it by then: it is late by more than this.
const SOONER: Duration = Duration::from_millis(300);

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Entry {
    id: NodeId,
    store: Store,
    supervisor: Supervisor,
    instructions: watch::Receiver<Instructions>,
    coordinators: Coordinators,
    keys: Keys,
    moves: Arc<Semaphore>,
    waiting: Arc<Waiting>,
}

impl Entry {
    pub(crate) fn new(
        id: NodeId,
        store: Store,
        (supervisor, instructions): (Supervisor, watch::Receiver<Instructions>),
        coordinators: Coordinators,
        keys: Keys,
    ) -> Self {
        Self {
            id,
            store,
            supervisor,
            instructions,
            coordinators,
            keys,
            moves: pomona_dispatch::moves(),
            waiting: Arc::default(),
        }
    }

    /// Starts an answer wherever it can be made; what finds no free place is held.
    pub(crate) async fn generate(
        &self,
        generation: Generation,
        text: Result<&TextAsk, &'static str>,
    ) -> Result<GenerationStream, Failure> {
        let list = self.list(generation.class);
        let machines = || pomona_dispatch::generate(self.clone(), generation.clone());
        let clouds = text.map(|ask| || self.spill(ask));
        self.waiting
            .hold_or_spill((generation.class, &list), machines, clouds)
            .await
    }

    /// Has a cloud answer what no machine does: the coordinators know which may.
    async fn spill(&self, ask: &TextAsk) -> Result<GenerationStream, Failure> {
        let (mut said, mut full): (Option<String>, Option<Failure>) = (None, None);
        for coordinator in self.coordinators.reachable() {
            let Some(session) = self.coordinators.session(coordinator.number) else {
                continue;
            };
            let why = match pomona_dispatch::ask_cloud(&session, ask).await {
                Err(Failure::NoCloud { detail, asked: false }) => detail,
                // It may have asked one before it went, or in the time that is over now.
                Err(Failure::NodeLost) => {
                    let detail = "the coordinator that was asked went away".to_owned();
                    return Err(Failure::NoCloud { detail, asked: true });
                }
                answered @ (Ok(_) | Err(Failure::NoCloud { .. })) => return answered,
                // Each counts what it asks for itself: another one may have room.
                Err(failure @ Failure::Overloaded { .. }) => {
                    full = Some(full.map_or(failure.clone(), |before| hopeful(before, failure)));
                    continue;
                }
                Err(other) => other.to_string(),
            };
            // Others have other configurations, perhaps.
            said.get_or_insert(why);
        }
        Err(full.unwrap_or_else(|| Failure::NoCloud {
            detail: said.unwrap_or_else(|| "no coordinator that knows of clouds is in reach".to_owned()),
            asked: false,
        }))
    }

    /// Starts an answer of this node's engine.
    pub(crate) async fn generate_here(&self, generation: Generation) -> Result<GenerationStream, Failure> {
        self.check_digests(&generation)?;
        let (events, enough) = self.supervisor.generate(generation).await?;
        Ok(GenerationStream {
            maker: Maker::Node(self.id),
            events,
            enough,
        })
    }

    /// What can be asked for: what is in this store, and the cluster's catalogue while somebody of
    /// the cluster is in reach. What is here goes before what is elsewhere.
    pub(crate) fn models(&self) -> Vec<ModelRecord> {
        let mut models = self.store.models().borrow().to_vec();
        if self.coordinators.any() {
            let elsewhere = self.coordinators.catalogue();
            let unknown = |record: &&ModelRecord| models.iter().all(|own| own.name != record.name);
            let more: Vec<ModelRecord> = elsewhere.iter().filter(unknown).cloned().collect();
            models.extend(more);
            models.sort_by(|a, b| a.name.cmp(&b.name));
        }
        models
    }

    /// One of them.
    pub(crate) fn model(&self, name: &str) -> Option<ModelRecord> {
        let find =
            |models: &[ModelRecord]| models.iter().find(|record| record.name.as_str() == name).cloned();
        find(&self.store.models().borrow()).or_else(|| {
            let elsewhere = self.coordinators.any().then(|| self.coordinators.catalogue());
            elsewhere.and_then(|elsewhere| find(&elsewhere))
        })
    }

    /// Whether a request could be answered elsewhere.
    pub(crate) fn has_elsewhere(&self) -> bool {
        self.coordinators.any() && !self.coordinators.catalogue().is_empty()
    }

    /// How far this node is relieved of batch work.
    pub(crate) fn rung(&self) -> Rung {
        self.instructions.borrow().relief.rung
    }

    /// The text side of a model that is not in this store.
    pub(crate) async fn fetch_text(&self, model: &ModelName) -> Result<TextBundle, Failure> {
        for ask in self.places(Class::Interactive, Here::Absent, &[]) {
            let EntryPlace::Coordinator(number) = ask.place else {
                continue;
            };
            let Some(session) = self.coordinators.session(number) else {
                continue;
            };
            match pomona_dispatch::fetch_text(&session, model).await {
                Ok(bundle) => return Ok(bundle),
                Err(error) => tracing::warn!(coordinator = number, %error, "tokenizer not fetched"),
            }
        }
        Err(self.not_in_reach(model))
    }

    fn places(&self, class: Class, here: Here, avoid: &[EntryPlace]) -> Vec<Ask> {
        let state = (here, self.rung());
        entry(
            class,
            state,
            &self.list(class),
            &self.coordinators.reachable(),
            avoid,
        )
    }

    /// Where requests of a class go.
    fn list(&self, class: Class) -> Fallback {
        let now = self.instructions.borrow();
        Fallback::in_force(now.agreed.fallbacks.as_ref(), class).into_owned()
    }

    /// What is promised to a class.
    pub(crate) fn slo(&self, class: Class) -> Slo {
        SloSet::in_force(self.instructions.borrow().agreed.slos.as_ref(), class)
    }

    fn here(&self, generation: &Generation) -> Here {
        if self.check_digests(generation).is_err() || !self.keys.is_in(&generation.pools) {
            return Here::Absent;
        }
        let view = self.supervisor.view();
        let view = view.borrow();
        if view.loaded.contains(&generation.model) {
            drop(view);
            let slo = self.slo(generation.class);
            // Who has heard its beginning waits for the rest wherever that is soonest.
            let is_new = generation.resume.is_empty();
            match is_new && self.supervisor.is_late(generation, Duration::ZERO, &slo) {
                true => Here::Late,
                false => Here::Loaded,
            }
        } else if view.wanted.contains(&generation.model) {
            Here::Expected
        } else {
            Here::Absent
        }
    }

    /// Whether this node has the content that the request was resolved for.
    fn check_digests(&self, generation: &Generation) -> Result<(), Failure> {
        let models = self.store.models();
        let models = models.borrow();
        let detail = match models.iter().find(|record| record.name == generation.model) {
            Some(record) if record.digests == generation.digests => return Ok(()),
            Some(_) => "this node has other contents under the name",
            None => "it is not in this node's store",
        };
        Err(not_loaded(&generation.model, detail))
    }

    /// Nobody was there to be asked.
    fn not_answered(&self, generation: &Generation) -> Failure {
        let Generation {
            model, class, pools, ..
        } = generation;
        let list = self.list(*class);
        let detail = if self.coordinators.any() {
            return self.not_in_reach(model);
        } else if !self.keys.is_in(pools) {
            "this API key does not reach this machine, and no coordinator is in reach".to_owned()
        } else if self.here(generation) != Here::Absent && list.local().is_none() {
            format!("{class} requests do not come here ({list}), and no coordinator is in reach")
        } else if self.check_digests(generation).is_ok() {
            "it is not among this node's models now, and no coordinator is in reach".to_owned()
        } else {
            return self.not_in_reach(model);
        };
        not_loaded(model, &detail)
    }

    fn not_in_reach(&self, model: &ModelName) -> Failure {
        if self.coordinators.any() {
            not_loaded(model, "no node of the cluster could be asked for it")
        } else {
            not_loaded(model, "it is not on this node, and no coordinator is in reach")
        }
    }
}

impl Places for Entry {
    type Place = EntryPlace;

    async fn place(
        &self,
        generation: &Generation,
        avoid: &[EntryPlace],
    ) -> Result<(EntryPlace, Promise), Failure> {
        let mut refusal: Option<Failure> = None;
        // What a coordinator was asked for in vain: it has asked all machines, and another one would ask them the same.
        let mut refused: Vec<Seek> = Vec::new();
        let asks = self.places(generation.class, self.here(generation), avoid);
        let is_wanted = |ask: &Ask| generation.seek == Seek::Any || !avoid.contains(&ask.place);
        for Ask { place, seek, why } in asks.into_iter().filter(is_wanted) {
            // Who makes it meanwhile asks nobody for less than that.
            let (seek, is_try) = match generation.seek {
                Seek::Any => (seek, seek == Seek::Better),
                Seek::Better => (Seek::Better, false),
            };
            if refused.contains(&seek) && place != EntryPlace::Here {
                continue;
            }
            tracing::debug!(?place, why, request = %generation.request, "asked");
            let asked = match place {
                EntryPlace::Here => {
                    let answer = self.generate_here(generation.clone()).await;
                    answer.map(|answer| Promise::here(self.id, answer.events, answer.enough))
                }
                EntryPlace::Coordinator(number) => match self.coordinators.session(number) {
                    Some(session) if !knows(seek, generation.class, session.version()) => continue,
                    Some(session) => {
                        let generation = Generation {
                            seek,
                            ..generation.clone()
                        };
                        let patience = if is_try { SOONER } else { GRANT };
                        pomona_dispatch::ask(&session, self.id, generation, patience).await
                    }
                    None => continue,
                },
            };
            match asked {
                // Nobody is better than this engine, which makes it or will.
                Ok(promise) if seek == Seek::Better && promise.node == self.id => refused.push(seek),
                Ok(promise) => return Ok((place, promise)),
                Err(failure) if is_last_word(&failure) => return Err(failure),
                Err(_) if is_try => refused.push(seek),
                // That a coordinator left says less than what another place has said.
                Err(Failure::NodeLost) => {}
                Err(failure) => {
                    let is_full = matches!(failure, Failure::Overloaded { .. });
                    if (is_full || seek == Seek::Better) && place != EntryPlace::Here {
                        refused.push(seek);
                    }
                    refusal = Some(refusal.map_or(failure.clone(), |before| hopeful(before, failure)));
                }
            }
        }
        Err(refusal.unwrap_or_else(|| self.not_answered(generation)))
    }

    fn tries_others(place: EntryPlace) -> bool {
        matches!(place, EntryPlace::Coordinator(_))
    }

    async fn leaving(&self, place: EntryPlace, from: Rung) {
        match place {
            EntryPlace::Here => {
                let mut instructions = self.instructions.clone();
                // Fails only when this node ends.
                let _ = instructions.wait_for(|now| now.relief.rung >= from).await;
            }
            // It moves its answers itself.
            EntryPlace::Coordinator(_) => std::future::pending().await,
        }
    }

    async fn comes_late(&self, place: EntryPlace, generation: &Generation, asked: Instant) {
        match place {
            EntryPlace::Here => {
                let slo = self.slo(generation.class);
                self.supervisor.comes_late(generation, asked, &slo).await;
            }
            // It knows no more of it.
            EntryPlace::Coordinator(_) => std::future::pending().await,
        }
    }

    fn ended(&self, generation: &Generation, accounting: &Accounting) {
        self.supervisor.note_answer(generation, accounting);
    }

    fn moves(&self) -> &Semaphore {
        &self.moves
    }
}

fn not_loaded(model: &ModelName, detail: &str) -> Failure {
    Failure::ModelNotLoaded {
        model: model.to_string(),
        detail: detail.to_owned(),
    }
}
