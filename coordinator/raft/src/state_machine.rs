//! The applied state in redb, in one transaction with the log id it was applied up to, and in
//! memory for readers.

use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{
    EmptyNode, Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta,
    StorageError, StorageIOError, StoredMembership,
};
use pomona_decide::{ClusterState, Reply, apply_proposal};
use pomona_wire::stored::Added;
use redb::{Database, TableDefinition};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::TypeConfig;
use crate::tables::{DbResult, Values, decode_grown, encode_grown, get, get_grown, put, put_bytes, write};

/// What versions of stored values added at the end of the state: the four collections of `Placement`,
/// the two of `Leases`, the nodes that are doubted, the two of `Offload` with the sets of
/// knobs, the five of the gates, the three of the keys, the audit log, the sets of
/// fallbacks, the six collections of the clouds with their log, and the sets of service levels.
const ADDED: Added<'static> = &[
    (4, &[0; 4]),
    (5, &[0; 2]),
    (6, &[0]),
    (7, &[0; 8]),
    (8, &[0; 3]),
    (9, &[0; 33]),
    (10, &[0]),
    (11, &[0; 39]),
    (12, &[0]),
];

/// Writes a state so that every program reads it that knows what is in it.
///
/// # Errors
/// The state cannot be encoded.
pub fn encode_state(state: &ClusterState) -> std::io::Result<Vec<u8>> {
    encode_grown(state, ADDED, state.since())
}

/// Reads a state as snapshots have it, of any version that is still known.
///
/// # Errors
/// A newer version, one that is too old, or bytes that are no state.
pub fn decode_state(bytes: &[u8]) -> std::io::Result<ClusterState> {
    decode_grown(bytes, ADDED)
}

const STATE: Values = TableDefinition::new("state_machine");

type IoError = StorageIOError<u64>;
type Fault = StorageError<u64>;

/// Everything that must change together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Applied {
    log_id: Option<LogId<u64>>,
    membership: StoredMembership<u64, EmptyNode>,
    state: ClusterState,
}

#[derive(Debug, Clone)]
pub(crate) struct StateMachine {
    db: Arc<Database>,
    applied: Applied,
    published: watch::Sender<Arc<ClusterState>>,
}

impl StateMachine {
    pub(crate) fn open(db: Arc<Database>) -> DbResult<(Self, watch::Sender<Arc<ClusterState>>)> {
        write(&db, |transaction| {
            transaction.open_table(STATE)?;
            Ok(())
        })?;
        let applied: Applied = get_grown(&db, STATE, "applied", ADDED)?.unwrap_or_default();
        let published = watch::Sender::new(Arc::new(applied.state.clone()));
        let machine = Self {
            db,
            applied,
            published: published.clone(),
        };
        Ok((machine, published))
    }

    fn save(&self) -> DbResult<()> {
        write(&self.db, |transaction| {
            let since = self.applied.state.since();
            let bytes = encode_grown(&self.applied, ADDED, since)?;
            put_bytes(transaction, STATE, "applied", &bytes)
        })?;
        self.published.send_replace(Arc::new(self.applied.state.clone()));
        Ok(())
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, Fault> {
        // Reads the database, not this clone: the snapshot is exactly what was synced last.
        let build = || -> DbResult<(SnapshotMeta<u64, EmptyNode>, Vec<u8>)> {
            let applied: Applied = get_grown(&self.db, STATE, "applied", ADDED)?.unwrap_or_default();
            let index = applied.log_id.map_or(0, |id| id.index);
            let meta = SnapshotMeta {
                last_log_id: applied.log_id,
                last_membership: applied.membership.clone(),
                snapshot_id: format!("snapshot-{index}"),
            };
            let data = encode_state(&applied.state)?;
            write(&self.db, |transaction| {
                put(transaction, STATE, "snapshot", &(meta.clone(), data.clone()))
            })?;
            Ok((meta, data))
        };
        let (meta, data) = build().map_err(|error| IoError::write_snapshot(None, &error))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(data)),
        })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, EmptyNode>), Fault> {
        Ok((self.applied.log_id, self.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, Fault>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        for entry in entries {
            self.applied.log_id = Some(entry.log_id);
            replies.push(match entry.payload {
                EntryPayload::Blank => Reply::Unchanged,
                EntryPayload::Normal(proposal) => {
                    apply_proposal(&mut self.applied.state, entry.log_id.index, &proposal)
                }
                EntryPayload::Membership(membership) => {
                    self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Reply::Done
                }
            });
        }
        self.save()
            .map_err(|error| IoError::write_state_machine(&error))?;
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Fault> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, EmptyNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Fault> {
        let data = snapshot.into_inner();
        let fault = |error: redb::Error| IoError::write_snapshot(Some(meta.signature()), &error);
        let state = decode_state(&data).map_err(|error| fault(error.into()))?;
        self.applied = Applied {
            log_id: meta.last_log_id,
            membership: meta.last_membership.clone(),
            state,
        };
        self.save().map_err(fault)?;
        write(&self.db, |transaction| {
            put(transaction, STATE, "snapshot", &(meta.clone(), data))
        })
        .map_err(|error| fault(error).into())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, Fault> {
        let stored: Option<(SnapshotMeta<u64, EmptyNode>, Vec<u8>)> =
            get(&self.db, STATE, "snapshot").map_err(|error| IoError::read_snapshot(None, &error))?;
        Ok(stored.map(|(meta, data)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(data)),
        }))
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::{ClusterId, NodeId};

    use super::*;
    use crate::tables::encode;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.trim().chars().filter_map(|c| c.to_digit(16)).collect();
        digits
            .chunks(2)
            .map(|pair| (pair[0] * 16 + pair[1]) as u8)
            .collect()
    }

    /// Updates go one coordinator after the other: what a newer one writes is what an older one wrote,
    /// until something is in it that the older one does not know.
    #[test]
    fn a_state_is_written_as_the_oldest_program_that_knows_it_did() -> std::io::Result<()> {
        for (golden, version) in [
            (include_str!("../golden/snapshot-3.hex"), 3),
            (include_str!("../golden/snapshot-4.hex"), 4),
        ] {
            let mut state = decode_state(&bytes(golden))?;
            assert_eq!(encode_state(&state)?, bytes(golden), "version {version}");
            let model = "org/model".parse().map_err(std::io::Error::other)?;
            state.clouds.private.insert(model);
            assert_eq!(encode_state(&state)?[0], 11);
            let made = pomona_decide::Made {
                set: pomona_common::SloSet::default(),
                by: "anna".into(),
                at_s: 1,
            };
            state.slos.0.push_back(made);
            let newest = encode_state(&state)?;
            assert_eq!(newest[0], pomona_wire::stored::VERSION);
            assert_eq!(decode_state(&newest)?, state);
        }
        Ok(())
    }

    /// Released bytes: they must decode for ever.
    #[test]
    fn states_of_version_4_still_decode() -> std::io::Result<()> {
        let state: ClusterState = decode_grown(&bytes(include_str!("../golden/snapshot-4.hex")), ADDED)?;
        let (node, model) = (
            NodeId::from_bits(7),
            "org/model".parse().map_err(std::io::Error::other)?,
        );
        assert_eq!(state.nodes[&node].name, "mini-7");
        assert_eq!(state.placement.used_s(&model), 300);
        let cordoned = pomona_decide::Availability::Cordoned;
        assert_eq!(state.placement.availability(node), cordoned);
        assert_eq!(state.leases, pomona_decide::Leases::default());
        assert_eq!(decode_state(&encode_state(&state)?)?, state);
        Ok(())
    }

    /// As above.
    #[test]
    fn states_of_version_3_still_decode() -> std::io::Result<()> {
        let late = std::collections::BTreeSet::<NodeId>::new();
        let empty = [
            encode(&pomona_decide::Placement::default())?,
            encode(&pomona_decide::Leases::default())?,
            encode(&late)?,
            encode(&(
                pomona_decide::Offload::default(),
                pomona_decide::Sets::<pomona_common::KnobSet>::default(),
                pomona_decide::GateBook::default(),
            ))?,
            encode(&pomona_decide::KeyBook::default())?,
            encode(&pomona_decide::AuditBook::default())?,
            encode(&pomona_decide::Sets::<pomona_common::Fallbacks>::default())?,
            encode(&ClusterState::default().clouds)?,
            encode(&pomona_decide::Sets::<pomona_common::SloSet>::default())?,
        ];
        for ((version, added), empty) in ADDED.iter().zip(empty) {
            assert_eq!(**added, empty[1..], "what version {version} added");
        }
        let state: ClusterState = decode_grown(&bytes(include_str!("../golden/snapshot-3.hex")), ADDED)?;
        let applied: Applied = decode_grown(&bytes(include_str!("../golden/applied-3.hex")), ADDED)?;
        assert_eq!(applied.state, state);
        assert_eq!(state.cluster, Some(ClusterId::from_bits(5)));
        let node = NodeId::from_bits(7);
        assert_eq!(state.nodes[&node].name, "mini-7");
        assert_eq!(state.nodes[&node].kills_s, [200, 200]);
        assert!(
            state.plan.nodes[&node]
                .models
                .values()
                .all(|why| why == "stored here and fits")
        );
        assert_eq!(state.placement, pomona_decide::Placement::default());
        let again = decode_state(&encode_state(&state)?)?;
        assert_eq!(again, state);
        Ok(())
    }
}
