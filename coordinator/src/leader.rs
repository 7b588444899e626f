//! What only the leader does: admit nodes, catalogue what they store, count kills, note which models
//! are in use, watch gates, relieve nodes, plan.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pomona_clocks::wall_s;
use pomona_common::limits;
use pomona_common::spending::{Batch, EntryId};
use pomona_decide::gates::{Choices, are_counted};
use pomona_decide::{ClusterState, Command, GateWatch, Ladder, Patience, Reply, plan};
use pomona_raft::{RaftError, Replica};
use tokio_util::sync::CancellationToken;

use crate::inventory::{Usage, inventory, signals};
use crate::sessions::Sessions;

/// Looked at without news this often; news are looked at at once.
const PERIOD: Duration = Duration::from_millis(500);
/// How often it is said that a coordinator cannot read what gates or ladder want to write.
const WARNS: Duration = Duration::from_secs(30);

/// Runs until the stop. On a coordinator that does not lead it only waits.
pub(crate) async fn run(
    replica: Replica,
    sessions: Arc<Sessions>,
    choices: Choices,
    stop: CancellationToken,
) {
    let mut leading = Leading::new(choices);
    let mut said = false;
    loop {
        if let Some(why) = replica.stopped() {
            if !std::mem::replace(&mut said, true) {
                tracing::error!(
                    why,
                    "this coordinator has stopped writing: look at its disk, and start it again"
                );
            }
        } else if replica.is_leader() {
            if let Err(error) = lead(&replica, &sessions, &mut leading).await {
                tracing::warn!(%error, "leader's round failed");
            }
        } else {
            leading = Leading::new(choices);
        }
        tokio::select! {
            () = sessions.changed.notified() => {}
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// What is remembered while this coordinator leads.
#[derive(Default)]
struct Leading {
    usage: Usage,
    patience: Patience,
    gates: GateWatch,
    ladder: Ladder,
    /// When it was last said that a coordinator cannot read what gates or ladder want to write.
    warned_at: Option<Duration>,
}

impl Leading {
    fn new(choices: Choices) -> Self {
        Self {
            gates: GateWatch::new(choices),
            ..Self::default()
        }
    }

    /// Writes what gates or ladder want.
    async fn take(&mut self, replica: &Replica, steps: Vec<Command>, now: Duration) -> Result<(), RaftError> {
        for step in steps {
            if let Some(why) = replica.too_new(&step) {
                if self.warned_at.is_none_or(|at| now.saturating_sub(at) >= WARNS) {
                    tracing::warn!(why, "a step of gates or the offload ladder waits");
                    self.warned_at = Some(now);
                }
                continue;
            }
            say(&step);
            // Such as that the node is gone meanwhile: the next round sees that.
            commit(replica, step).await?;
        }
        Ok(())
    }
}

async fn lead(replica: &Replica, sessions: &Sessions, leading: &mut Leading) -> Result<(), RaftError> {
    let now_s = wall_s();
    let nodes = sessions.all();
    for (id, connected) in &nodes {
        if !replica.known().nodes.contains_key(id) {
            let name = connected.name.clone();
            commit(replica, Command::AdmitNode { id: *id, name, now_s }).await?;
        }
        for record in connected.stored() {
            if !replica.known().catalogue.contains_key(&record.name) {
                commit(replica, Command::AddModel(record)).await?;
            }
        }
        let Some((_, report)) = connected.report() else {
            continue;
        };
        let (instance, total) = (connected.instance, report.engine_kills);
        let counted = replica.known().nodes.get(id).map(|record| record.kills_counted);
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
    let due = pomona_decide::lease::due(&replica.known(), now_s);
    for command in due {
        tracing::info!(?command, "a lease ends");
        commit(replica, command).await?;
    }
    let seen = replica.known();
    if let Some((models, used_s)) = leading.usage.take_due(sessions, &seen, now_s) {
        let now_s = used_s;
        commit(replica, Command::UseModels { models, now_s }).await?;
    }
    if let Err(error) = charge(replica, sessions, now_s).await {
        // Nodes say it again, and what follows is more urgent.
        tracing::debug!(%error, "what keys took is not counted yet");
    }
    relieve(replica, sessions, leading, now_s).await?;
    let seen = replica.known();
    let inventory = inventory(sessions);
    if leading
        .patience
        .waits(&seen, &inventory, pomona_clocks::read().awake)
    {
        return Ok(());
    }
    let outcome = plan(&seen, &inventory, now_s);
    if let Some(step) = outcome.step {
        for one in &step.moves {
            let what = if one.load { "load" } else { "unload" };
            tracing::info!(model = %one.model, node = %one.node.short(), why = one.reason, "plan: {what}");
        }
        commit(replica, Command::Replan { step, now_s }).await?;
    }
    Ok(())
}

/// Counts what API keys took at nodes' own endpoints: as much as one command holds, those that wait longest
/// first.
async fn charge(replica: &Replica, sessions: &Sessions, now_s: u64) -> Result<(), RaftError> {
    let state = replica.known();
    let mut waiting: Vec<(Instant, EntryId, Batch)> = sessions
        .all()
        .into_iter()
        .filter(|(node, _)| state.keys_for(*node).is_some())
        .filter_map(|(node, connected)| {
            let (since, batch) = connected.spent()?;
            let (age, report) = connected.report()?;
            let entry = EntryId::Node(node);
            let is_new = !state.keys.has_counted(entry, &batch);
            is_new.then(|| (since, entry, batch.dated(report.wall_ms, age, now_s)))
        })
        .collect();
    waiting.sort_by_key(|(since, ..)| *since);
    let mut room = limits::BATCH_ENTRIES;
    let mut charges = Vec::new();
    for (_, entry, batch) in waiting {
        let Some(rest) = room.checked_sub(batch.spent.len().max(1)) else {
            break;
        };
        room = rest;
        charges.push((entry, batch));
    }
    let command = Command::ChargeKeys { charges, now_s };
    // While a coordinator is there that cannot read it, it waits.
    if room < limits::BATCH_ENTRIES && replica.too_new(&command).is_none() {
        commit(replica, command).await?;
    }
    Ok(())
}

/// Passes the gates that are due, and takes the ladder's steps.
async fn relieve(
    replica: &Replica,
    sessions: &Sessions,
    leading: &mut Leading,
    now_s: u64,
) -> Result<(), RaftError> {
    let now = pomona_clocks::read().awake;
    let kills = new_kills(&replica.known(), sessions, now_s);
    leading.take(replica, kills, now).await?;
    let mut signals = signals(sessions);
    let passed = leading.gates.steps(&replica.known(), &signals, now, now_s);
    leading.take(replica, passed, now).await?;
    let state = replica.known();
    leading.gates.advise(&state, &mut signals, now, now_s);
    let steps = leading.ladder.steps(&state, &signals, now, now_s);
    leading.take(replica, steps, now).await
}

/// Engine kills by model, of nodes that have told more than are counted.
fn new_kills(state: &ClusterState, sessions: &Sessions, now_s: u64) -> Vec<Command> {
    let nodes = sessions.all().into_iter();
    let told = nodes.filter_map(|(node, connected)| Some((node, connected.instance, connected.signs()?)));
    told.filter(|(node, instance, signs)| !are_counted(state, *node, *instance, &signs.kills))
        .map(|(node, instance, signs)| Command::CountKills {
            node,
            instance,
            totals: signs.kills.clone(),
            now_s,
        })
        .collect()
}

fn say(step: &Command) {
    match step {
        Command::Relieve { node, seen, relieved } => {
            let to = relieved.relief.rung;
            tracing::info!(node = %node.short(), from = %seen, %to, why = relieved.reason, "offload");
        }
        Command::Unload {
            node,
            model,
            seen,
            relieved,
            ..
        } => {
            let to = relieved.relief.rung;
            tracing::info!(node = %node.short(), from = %seen, %to, %model, why = relieved.reason, "offload");
        }
        Command::PassGate(passed) => {
            let gate = passed.subject.0;
            tracing::info!(node = %passed.node.short(), %gate, to = %passed.to, why = passed.reason, "gate");
        }
        _ => {}
    }
}

async fn commit(replica: &Replica, command: Command) -> Result<(), RaftError> {
    if let Reply::Refused(why) = replica.write(command).await? {
        tracing::warn!(why, "command refused");
    }
    Ok(())
}
