//! What keys take at nodes' own endpoints, and what the cluster counts of it. Each node has a key of its own, so that
//! what is counted can be compared with what was taken there.

use std::collections::BTreeMap;

use pomona_common::control::CoordinatorMessage;
use pomona_common::key::{KeyHash, KeyRecord};
use pomona_common::spending::{Account, Batch, Charged, EntryId, Windows};
use pomona_common::{KeyId, MachineRole, ModelName, NodeId};
use pomona_decide::{ClusterState, Command, apply_proposal};
use pomona_keys::{KeyRing, Learned, Meter};

use crate::world::World;

/// The key that is used at a node.
fn key_of(node: NodeId) -> KeyId {
    KeyId::from_bits(node.bits())
}

fn record(node: NodeId) -> KeyRecord {
    KeyRecord::new(&format!("k{}", node.bits()), KeyHash([0; 32]), 0)
}

/// Makes the key of a node known.
pub fn make_key(node: NodeId) -> Command {
    let (id, record) = (key_of(node), Box::new(record(node)));
    Command::MakeKey { id, record }
}

/// One node's entry. Its disk holds the key; what it took and nobody counted yet ends with its process.
pub struct Quota {
    node: NodeId,
    learned: Learned,
    ring: KeyRing,
    meter: Meter,
    instance: u64,
    /// The batch on its way.
    sent: Option<Batch>,
    /// The latest one that each coordinator was told in this session.
    told: BTreeMap<u64, u64>,
    /// Tokens that its processes took, and those of them that no message said were counted when the process ended, or the
    /// clock was set.
    taken: u64,
    lost: u64,
    /// Tokens of this process that no message said were counted, and of those the ones that are taken for lost.
    uncounted: u64,
    forgiven: u64,
}

impl Quota {
    pub fn new(node: NodeId) -> Self {
        Self::of_process(node, 1)
    }

    fn of_process(node: NodeId, instance: u64) -> Self {
        let mut learned = Learned::default();
        learned.learn_keys(0, &[key_of(node)], MachineRole::Laptop);
        learned.learn_key(0, key_of(node), record(node));
        let mut ring = KeyRing::default();
        learned.fill(&mut ring);
        Self {
            node,
            learned,
            ring,
            meter: Meter::new(instance),
            instance,
            sent: None,
            told: BTreeMap::new(),
            taken: 0,
            lost: 0,
            uncounted: 0,
            forgiven: 0,
        }
    }

    /// That of the next process.
    pub fn restarted(&self) -> Self {
        Self {
            taken: self.taken,
            lost: self.lost + self.uncounted - self.forgiven,
            ..Self::of_process(self.node, self.instance + 1)
        }
    }

    /// The node's clock was set: what nobody has heard of yet may be taken for another day's.
    pub fn stepped(&mut self) {
        self.lost += self.uncounted - self.forgiven;
        self.forgiven = self.uncounted;
    }

    /// A request with the key takes so many tokens.
    pub fn take(&mut self, model: &ModelName, tokens: u64, now_s: u64) {
        let Some(record) = self.ring.keys.get(&key_of(self.node)) else {
            return;
        };
        // The key has no limits: nothing is refused.
        if let Ok(reserved) = self
            .meter
            .begin(&self.ring, (key_of(self.node), record), model, now_s)
        {
            self.meter.end(reserved, tokens, now_s);
            self.taken += tokens;
            self.uncounted += tokens;
        }
    }

    /// What a coordinator is to hear, once in a session; as `node/src/session.rs`.
    pub fn news(&mut self, coordinator: u64) -> Option<Batch> {
        self.sent = self.meter.batch();
        let batch = self.sent.clone()?;
        let told = self.told.insert(coordinator, batch.number);
        (told != Some(batch.number)).then_some(batch)
    }

    /// A session with a coordinator has begun.
    pub fn begins(&mut self, coordinator: u64) {
        self.told.remove(&coordinator);
    }

    /// A coordinator tells what is counted.
    pub fn learn(
        &mut self,
        applied: u64,
        spent: Vec<(Account, Windows)>,
        charged: Option<Charged>,
        now_s: u64,
    ) {
        self.learned.learn_spent(applied, spent, charged, now_s);
        self.learned.fill_spent(&mut self.ring);
        self.meter.counted(self.ring.charged, now_s);
        let charged = self.ring.charged;
        let is_counted = |batch: &mut Batch| charged.is_some_and(|charged| batch.is_in(charged));
        if let Some(batch) = self.sent.take_if(is_counted) {
            self.uncounted -= tokens(&batch);
            // The oldest are counted first.
            self.forgiven = self.forgiven.saturating_sub(tokens(&batch));
        }
    }
}

fn tokens(batch: &Batch) -> u64 {
    batch.spent.iter().map(|one| one.amount.tokens).sum()
}

/// What a node is told of its key; as `coordinator/src/told/keys.rs`.
pub fn news(state: &ClusterState, node: NodeId, applied: u64, charged: Charged) -> CoordinatorMessage {
    let its = |(account, _): &(&Account, &Windows)| account.key == key_of(node);
    let spent = state.keys.spent.iter().filter(its);
    CoordinatorMessage::Spent {
        applied,
        spent: spent
            .map(|(account, windows)| (account.clone(), *windows))
            .collect(),
        charged: Some(charged),
    }
}

/// The tokens that are counted for a node's key today.
fn counted(state: &ClusterState, node: NodeId, now_s: u64) -> u64 {
    let (key, model) = (key_of(node), None);
    let windows = state.keys.spent.get(&Account { key, model });
    windows.map_or(0, |windows| windows.day(now_s).tokens)
}

impl World {
    /// What was counted twice or forgotten, when all is well again and everybody had time to tell. The coordinators'
    /// clocks may have been wrong by a day, which ends a day's count: by the right one it is what it should be.
    pub(crate) fn miscounts(&self, agreed: &ClusterState) -> Vec<String> {
        let (mut state, now_s) = (ClusterState::default(), self.now_s());
        // What was ever told, each batch once.
        let mut told = BTreeMap::new();
        for (index, proposal) in self.log.entries.iter().enumerate() {
            let mut proposal = proposal.clone();
            if let Command::ChargeKeys { charges, now_s: said } = &mut proposal.command {
                // By whose clock it was dated, who led then.
                for one in charges.iter_mut().flat_map(|(_, batch)| &mut batch.spent) {
                    one.at_s = (one.at_s + now_s).saturating_sub(*said);
                }
                *said = now_s;
                let batches = charges.iter().map(|(entry, batch)| {
                    let number = (*entry, batch.instance, batch.number);
                    (number, tokens(batch))
                });
                told.extend(batches);
            }
            apply_proposal(&mut state, index as u64 + 1, &proposal);
        }
        let of_node = |quota: &Quota| {
            let Quota {
                node, taken, lost, ..
            } = *quota;
            let its = told
                .iter()
                .filter(|((entry, ..), _)| *entry == EntryId::Node(node));
            let (told, is) = (its.map(|(_, tokens)| tokens).sum(), counted(&state, node, now_s));
            let by_their_clocks = counted(agreed, node, now_s);
            let holds = (taken - lost..=taken).contains(&is) && is.max(by_their_clocks) <= told;
            let name = &record(node).name;
            (!holds).then(|| {
                format!(
                    "key {name}: {is} tokens are counted, {told} told, {taken} taken, {lost} of them lost"
                )
            })
        };
        self.nodes
            .iter()
            .filter_map(|node| of_node(&node.quota))
            .collect()
    }
}
