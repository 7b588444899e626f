//! What keys take at nodes' own endpoints, and what the cluster counts of it. Each node has a key of its own, so that
//! what is counted can be compared with what was taken there.

use pomona_common::control::CoordinatorMessage;
use pomona_common::key::{KeyHash, KeyRecord};
use pomona_common::spending::{Account, Batch, Charged, Windows};
use pomona_common::{KeyId, ModelName, NodeId};
use pomona_decide::{ClusterState, Command, apply_proposal};
use pomona_keys::{KeyRing, Meter};

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
    ring: KeyRing,
    meter: Meter,
    instance: u64,
    /// How new what it knows is.
    applied: u64,
    /// Tokens that its processes took, and those of them that no message said were counted when the process ended.
    taken: u64,
    lost: u64,
    /// Tokens of this process that no message said were counted.
    uncounted: u64,
}

impl Quota {
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            ring: KeyRing::default(),
            meter: Meter::new(1),
            instance: 1,
            applied: 0,
            taken: 0,
            lost: 0,
            uncounted: 0,
        }
    }

    /// That of the next process.
    pub fn restarted(&self) -> Self {
        let instance = self.instance + 1;
        Self {
            meter: Meter::new(instance),
            instance,
            taken: self.taken,
            lost: self.lost + self.uncounted,
            ..Self::new(self.node)
        }
    }

    /// A request with the key takes so many tokens.
    pub fn take(&mut self, model: &ModelName, tokens: u64, now_s: u64) {
        let record = record(self.node);
        let key = (key_of(self.node), &record);
        // The key has no limits: nothing is refused.
        if let Ok(reserved) = self.meter.begin(&self.ring, key, model, now_s) {
            self.meter.end(reserved, tokens, now_s);
            self.taken += tokens;
            self.uncounted += tokens;
        }
    }

    /// What the cluster is to hear.
    pub fn batch(&mut self) -> Option<Batch> {
        self.meter.batch()
    }

    /// A coordinator tells what is counted.
    pub fn learn(
        &mut self,
        applied: u64,
        spent: Vec<(Account, Windows)>,
        charged: Option<Charged>,
        now_s: u64,
    ) {
        if applied < self.applied {
            return;
        }
        self.applied = applied;
        self.ring.spent.extend(spent);
        let before = self.meter.batch();
        self.meter.counted(charged, now_s);
        let is_counted =
            |batch: &Batch| charged.is_some_and(|at| at.0 == batch.instance && at.1 >= batch.number);
        if let Some(batch) = before.filter(is_counted) {
            self.uncounted -= tokens(&batch);
        }
    }
}

fn tokens(batch: &Batch) -> u64 {
    batch.spent.iter().map(|one| one.amount.tokens).sum()
}

/// What a node is told of its key.
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

impl World {
    /// What was counted twice or forgotten, when all is well again and everybody had time to tell. The coordinators'
    /// clocks may have been wrong by a day, which ends a day's count: by the right one it is what it should be.
    pub(crate) fn miscounts(&self) -> Vec<String> {
        let (mut state, now_s) = (ClusterState::default(), self.now_s());
        for (index, proposal) in self.log.entries.iter().enumerate() {
            let mut proposal = proposal.clone();
            if let Command::ChargeKeys { now_s: said, .. } = &mut proposal.command {
                *said = now_s;
            }
            apply_proposal(&mut state, index as u64 + 1, &proposal);
        }
        let of_node = |quota: &Quota| {
            let account = Account {
                key: key_of(quota.node),
                model: None,
            };
            let counted = state.keys.spent.get(&account);
            let counted = counted.map_or(0, |windows| windows.day(now_s).tokens);
            let Quota { taken, lost, .. } = *quota;
            let holds = (taken - lost..=taken).contains(&counted);
            let name = &record(quota.node).name;
            (!holds)
                .then(|| format!("key {name}: {counted} tokens are counted of {taken}, {lost} of them lost"))
        };
        self.nodes
            .iter()
            .filter_map(|node| of_node(&node.quota))
            .collect()
    }
}
