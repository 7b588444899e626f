//! What a node has been told, so that it is told only what is new.

mod keys;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use pomona_common::control::CoordinatorMessage;
use pomona_common::{ModelName, ModelRecord, NodeId, Relief, Versioned, Watts};
use pomona_decide::{ClusterState, Lease, Sets};

use crate::connected::Connected;
use crate::sessions::Sessions;

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Told {
    generation: Option<u64>,
    coordinators: Vec<(u64, SocketAddr)>,
    catalogue: Option<Vec<ModelRecord>>,
    members: Vec<NodeId>,
    /// Said in every session: the node may remember one that was taken back.
    lease: Option<Option<Lease>>,
    /// Version of the knobs.
    knobs: Option<u64>,
    /// Version of the fallbacks.
    fallbacks: Option<u64>,
    /// Version of the service levels.
    slos: Option<u64>,
    /// As the lease.
    relief: Option<Relief>,
    comfort: Option<Option<Watts>>,
    keys: keys::KeysTold,
    /// By model who was named as having it, and whether it comes through here.
    sources: BTreeMap<ModelName, (Vec<SocketAddr>, bool)>,
}

/// What the cluster agrees on, if a node that was told of version `told` does not know it yet.
fn agreed<T: Versioned>(sets: &Sets<T>, told: &mut Option<u64>) -> Option<Box<T>> {
    let set = sets.current().filter(|set| *told != Some(set.version()))?;
    *told = Some(set.version());
    Some(Box::new(set.clone()))
}

impl Told {
    /// What it does not know yet.
    pub(crate) fn news(
        &mut self,
        state: &Arc<ClusterState>,
        node: NodeId,
        own_number: u64,
    ) -> Vec<CoordinatorMessage> {
        let applied = state.recent.index();
        let mut news = Vec::new();
        // One that was removed knows no better than the others.
        if !state.has_removed_coordinator(own_number) {
            let coordinators = state.coordinator_addresses();
            if coordinators != self.coordinators {
                self.coordinators.clone_from(&coordinators);
                news.push(CoordinatorMessage::Coordinators(coordinators));
            }
            let known = self.catalogue.as_ref();
            if known.is_none_or(|known| !known.iter().eq(state.catalogue.values())) {
                let models: Vec<ModelRecord> = state.catalogue.values().cloned().collect();
                self.catalogue = Some(models.clone());
                news.push(CoordinatorMessage::Catalogue { applied, models });
            }
            let lease = state.leases.of_nodes.get(&node).copied();
            if self.lease != Some(lease) {
                self.lease = Some(lease);
                let ends_s = lease.map(|lease| lease.ends_s);
                news.push(CoordinatorMessage::Lease { applied, ends_s });
                if lease.is_some_and(|lease| lease.evicting) {
                    news.push(CoordinatorMessage::Evict);
                }
            }
            news.extend(agreed(&state.knobs, &mut self.knobs).map(CoordinatorMessage::Knobs));
            news.extend(agreed(&state.fallbacks, &mut self.fallbacks).map(CoordinatorMessage::Fallbacks));
            news.extend(agreed(&state.slos, &mut self.slos).map(CoordinatorMessage::Slos));
            let relief = state.relief(node);
            if self.relief != Some(relief) {
                self.relief = Some(relief);
                news.push(CoordinatorMessage::Relief { applied, relief });
            }
            news.extend(self.keys.news(state, node, applied));
        }
        if !self.members.iter().eq(state.nodes.keys()) {
            self.members = state.nodes.keys().copied().collect();
            news.push(CoordinatorMessage::Members(self.members.clone()));
        }
        if let Some(target) = state.plan.nodes.get(&node)
            && self.generation != Some(target.generation)
        {
            self.generation = Some(target.generation);
            news.push(CoordinatorMessage::Target(target.clone()));
        }
        news
    }

    /// What is comfortable at a machine with this chip, if it does not know that yet.
    pub(crate) fn comfort(
        &mut self,
        state: &ClusterState,
        node: NodeId,
        chip: &str,
    ) -> Option<CoordinatorMessage> {
        let watts = state.comfort(node, chip);
        let is_news = self.comfort != Some(watts);
        self.comfort = Some(watts);
        let applied = state.recent.index();
        is_news.then_some(CoordinatorMessage::Comfort { applied, watts })
    }

    /// Says relief and comfort once more: another coordinator may have said something else meanwhile, and be gone.
    pub(crate) fn repeat_relief(&mut self) {
        self.relief = None;
        self.comfort = None;
    }

    /// Models of its target that it does not store, with those who have them, where that is new.
    pub(crate) fn wishes(
        &mut self,
        state: &ClusterState,
        node: NodeId,
        connected: &Connected,
        sessions: &Sessions,
    ) -> Vec<CoordinatorMessage> {
        let stored = connected.stored();
        let target = state.plan.nodes.get(&node).into_iter();
        let missing: Vec<&ModelRecord> = target
            .flat_map(|target| target.models.keys())
            .filter(|name| stored.iter().all(|own| own.name != **name))
            .filter_map(|name| state.catalogue.get(name))
            .collect();
        let mut wishes = Vec::new();
        self.sources.retain(|name, _| {
            let is_missing = missing.iter().any(|record| record.name == *name);
            let record = state.catalogue.get(name).filter(|_| !is_missing);
            // It is there, or not wanted any more.
            wishes.extend(record.map(|record| CoordinatorMessage::Fetch {
                record: record.clone(),
                sources: Vec::new(),
            }));
            is_missing
        });
        let asker = connected.session.remote_address();
        for record in missing {
            let mut holders = sessions.all();
            holders.retain(|id, other| *id != node && other.stores(record));
            let sources: Vec<SocketAddr> = holders
                .values()
                .filter_map(|other| other.gives_at(asker))
                .collect();
            let through = connected.relays() && holders.values().any(|other| other.gives_through());
            let has = (sources, through);
            let is_nothing = has.0.is_empty() && !through;
            if is_nothing || self.sources.get(&record.name) == Some(&has) {
                continue;
            }
            if !has.0.is_empty() {
                let (record, sources) = (record.clone(), has.0.clone());
                wishes.push(CoordinatorMessage::Fetch { record, sources });
            }
            if through {
                wishes.push(CoordinatorMessage::Through(record.clone()));
            }
            self.sources.insert(record.name.clone(), has);
        }
        wishes
    }
}
