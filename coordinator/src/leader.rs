//! What only the leader does: admit nodes, catalogue what they store, count kills, plan.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pomona_common::NodeId;
use pomona_decide::{Command, Inventory, NodeInventory, Reply, plan};
use pomona_raft::{RaftError, Replica};
use tokio_util::sync::CancellationToken;

use crate::now_s;
use crate::sessions::{Connected, Sessions};

/// Looked at without news this often; news are looked at at once.
const PERIOD: Duration = Duration::from_millis(500);

/// Runs until the stop. On a coordinator that does not lead it only waits.
pub(crate) async fn run(replica: Replica, sessions: Arc<Sessions>, stop: CancellationToken) {
    loop {
        if replica.is_leader()
            && let Err(error) = lead(&replica, &sessions).await
        {
            tracing::warn!(%error, "leader's round failed");
        }
        tokio::select! {
            () = sessions.changed.notified() => {}
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn lead(replica: &Replica, sessions: &Sessions) -> Result<(), RaftError> {
    let now_s = now_s();
    let nodes = sessions.all();
    let state = replica.state();
    for (id, connected) in &nodes {
        if !state.borrow().nodes.contains_key(id) {
            let name = connected.name.clone();
            commit(replica, Command::AdmitNode { id: *id, name, now_s }).await?;
        }
        for record in connected.stored() {
            if !state.borrow().catalogue.contains_key(&record.name) {
                commit(replica, Command::AddModel(record)).await?;
            }
        }
        let Some((_, report)) = connected.report() else {
            continue;
        };
        let (instance, total) = (connected.instance, report.engine_kills);
        let counted = state.borrow().nodes.get(id).map(|record| record.kills_counted);
        if total > 0 && counted != Some((instance, total)) {
            let command = Command::RecordKills {
                node: *id,
                instance,
                total,
                now_s,
            };
            commit(replica, command).await?;
        }
    }
    let inventory = inventory(&nodes);
    let outcome = plan(&state.borrow(), &inventory);
    if let Some(next) = outcome.plan {
        tracing::info!(plan = next.id, unplaced = ?outcome.unplaced, "new plan");
        commit(replica, Command::SetPlan(next)).await?;
    }
    Ok(())
}

async fn commit(replica: &Replica, command: Command) -> Result<(), RaftError> {
    if let Reply::Refused(why) = replica.write(command).await? {
        tracing::warn!(why, "command refused");
    }
    Ok(())
}

/// Nodes that have reported: before that, nothing is known about their memory.
fn inventory(nodes: &BTreeMap<NodeId, Arc<Connected>>) -> Inventory {
    nodes
        .iter()
        .filter_map(|(id, connected)| {
            let (_, report) = connected.report()?;
            let node = NodeInventory {
                stored: connected.stored(),
                memory_total: report.machine.memory_total.value().map(|bytes| bytes.get()),
                kv_budget: report.kv_budget_bytes,
                dequantizes: report.dequantizes,
            };
            Some((*id, node))
        })
        .collect()
}
