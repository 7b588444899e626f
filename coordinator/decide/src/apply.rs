//! What a command does. Total and deterministic: the same log gives the same state everywhere.

use pomona_common::plan::Plan;
use pomona_common::{NodeId, limits};

use crate::audit;
use crate::clouds;
use crate::command::{Command, Reply};
use crate::coordinators;
use crate::gates;
use crate::keys;
use crate::lease;
use crate::membership;
use crate::offload;
use crate::placement;
use crate::state::ClusterState;

/// Kills that are remembered per node: more than any gate looks back for.
const KILLS: usize = 32;

/// Applies one command.
pub fn apply(state: &mut ClusterState, command: &Command) -> Reply {
    match command {
        Command::Found(id) => match state.cluster {
            None => {
                state.cluster = Some(*id);
                coordinators::found(state);
                Reply::Done
            }
            Some(own) if own == *id => Reply::Unchanged,
            Some(own) => Reply::Refused(format!("this is cluster {own}")),
        },
        Command::AdmitNode { id, name, now_s } => membership::admit_node(state, *id, name, *now_s),
        Command::MakeToken { id, token, now_s } => membership::make_token(state, *id, token, *now_s),
        Command::OpenToken {
            id,
            token,
            lease,
            now_s,
        } => membership::open_token(state, *id, token, *lease, *now_s),
        Command::RevokeToken(id) => membership::revoke_token(state, *id),
        Command::SetLease { node, lease, now_s } => lease::set(state, *node, *lease, *now_s),
        Command::DoubtNode(id) => membership::doubt_node(state, *id),
        Command::TrustNode(id) => membership::trust_node(state, *id),
        Command::Relieve { node, seen, relieved } => offload::relieve(state, *node, *seen, relieved),
        Command::Unload {
            node,
            model,
            until_s,
            seen,
            relieved,
        } => offload::unload(state, (*node, model), *until_s, *seen, relieved),
        Command::SetKnobs(made) => state.knobs.add(made),
        Command::SetFallbacks(made) => state.fallbacks.add(made),
        Command::SetSlos(made) => state.slos.add(made),
        Command::ApproveCloud { cloud, approval } => clouds::approve(state, cloud, approval),
        Command::RevokeCloud(cloud) => clouds::revoke(state, cloud),
        Command::SetPrivate { model, private } => clouds::set_private(state, model, *private),
        Command::SetBudget { key, monthly } => clouds::set_budget(state, *key, *monthly),
        Command::ReserveSpill(spill) => clouds::reserve(state, spill),
        Command::SettleSpill { id, took } => clouds::settle(state, *id, took),
        Command::PassGate(transition) => gates::pass(state, transition),
        Command::CountKills {
            node,
            instance,
            totals,
            now_s,
        } => gates::count_kills(state, *node, *instance, totals, *now_s),
        Command::CloseTicket(number) => gates::close_ticket(state, *number),
        Command::ForgiveKills { node, model } => gates::forgive_kills(state, *node, model),
        Command::MakeKey { id, record } => keys::make(state, *id, record),
        Command::RotateKey {
            id,
            secret,
            grace_until_s,
            now_s,
        } => keys::rotate(state, *id, *secret, *grace_until_s, *now_s),
        Command::ChangeKey { id, terms } => keys::change(state, *id, terms),
        Command::RevokeKey(id) => keys::revoke(state, *id),
        Command::Audited(audited) => audit::apply_audited(state, audited),
        Command::ChargeKeys { charges, now_s } => keys::charge(state, charges, *now_s),
        Command::SetComfort { node, comfort } => offload::set_comfort(state, *node, *comfort),
        Command::Evict { node, seen, now_s } => lease::evict(state, *node, *seen, *now_s),
        Command::EndLease { node, seen, now_s } => lease::end(state, *node, *seen, *now_s),
        Command::ConsumeToken {
            token,
            node,
            name,
            key,
            approved,
            now_s,
        } => {
            let applicant = membership::Applicant {
                node: *node,
                name,
                key: *key,
                approved: *approved,
            };
            membership::consume_token(state, *token, &applicant, *now_s)
        }
        Command::ApproveNode(node) => membership::approve_node(state, *node),
        Command::RevokeNode { node, now_s } => membership::revoke_node(state, *node, *now_s),
        Command::RenameNode { node, name } => membership::rename_node(state, *node, name),
        Command::AddModel(record) => match state.catalogue.get(&record.name) {
            Some(own) if own.digests == record.digests => Reply::Unchanged,
            Some(_) => Reply::Refused(format!(
                "`{}` is in the catalogue with other contents",
                record.name
            )),
            None if !record.is_plausible() => Reply::Refused(format!("`{}` cannot be a model", record.name)),
            None if state.catalogue.len() >= limits::MODELS => {
                Reply::Refused(format!("the catalogue has {} models, the limit", limits::MODELS))
            }
            None => {
                state.catalogue.insert(record.name.clone(), record.clone());
                Reply::Done
            }
        },
        Command::RemoveModel(name) => match state.catalogue.remove(name) {
            Some(_) => {
                placement::forget_model(state, name);
                Reply::Done
            }
            None => Reply::Unchanged,
        },
        Command::SetPlan(plan) => set_plan(state, plan),
        Command::RecordKills {
            node,
            instance,
            total,
            now_s,
        } => record_kills(state, *node, (*instance, *total), *now_s),
        Command::AnnounceCoordinator {
            number,
            name,
            laptop,
            address,
        } => coordinators::announce(state, *number, name, *laptop, *address),
        Command::RemoveCoordinator(number) => coordinators::remove(state, *number),
        Command::Replan { step, now_s } => placement::advance(state, step, *now_s),
        Command::SetPolicy { model, policy } => placement::set_policy(state, model, policy),
        Command::SetAvailability { node, availability } => {
            placement::set_availability(state, *node, *availability)
        }
        Command::UseModels { models, now_s } => placement::use_models(state, models, *now_s),
    }
}

fn set_plan(state: &mut ClusterState, plan: &Plan) -> Reply {
    if plan.id == state.plan.id && *plan == state.plan {
        return Reply::Unchanged;
    }
    let follows = plan.parent == Some(state.plan.id) && plan.id == state.plan.id + 1;
    let backwards = plan.nodes.iter().any(|(id, target)| {
        let own = state.plan.nodes.get(id).map_or(0, |own| own.generation);
        target.generation < own
    });
    if !follows || backwards {
        return Reply::Refused(format!("plan {} does not follow plan {}", plan.id, state.plan.id));
    }
    state.plan = plan.clone();
    // It may have been made before a node was revoked.
    let nodes = &state.nodes;
    state.plan.nodes.retain(|id, _| nodes.contains_key(id));
    Reply::Done
}

fn record_kills(state: &mut ClusterState, node: NodeId, counted: (u64, u64), now_s: u64) -> Reply {
    let Some(record) = state.nodes.get_mut(&node) else {
        return Reply::Refused(format!("no node {node}"));
    };
    let (instance, total) = counted;
    let before = match record.kills_counted {
        (known, before) if known == instance => before,
        // A process that was not known before has counted from zero.
        _ => 0,
    };
    if total <= before {
        return Reply::Unchanged;
    }
    record.kills_counted = counted;
    let new = usize::try_from(total - before).unwrap_or(KILLS).min(KILLS);
    record.kills_s.extend(std::iter::repeat_n(now_s, new));
    let surplus = record.kills_s.len().saturating_sub(KILLS);
    record.kills_s.drain(..surplus);
    Reply::Done
}

#[cfg(test)]
mod tests {
    use pomona_common::ClusterId;

    use super::*;

    #[test]
    fn a_cluster_is_founded_once() {
        let mut state = ClusterState::default();
        let found = |id| Command::Found(ClusterId::from_bits(id));
        assert_eq!(apply(&mut state, &found(1)), Reply::Done);
        assert_eq!(apply(&mut state, &found(1)), Reply::Unchanged);
        assert!(matches!(apply(&mut state, &found(2)), Reply::Refused(_)));
    }

    #[test]
    fn only_a_child_of_the_target_becomes_the_target() {
        let mut state = ClusterState::default();
        let plan = |id, parent| {
            Command::SetPlan(Plan {
                id,
                parent: Some(parent),
                ..Plan::default()
            })
        };
        assert_eq!(apply(&mut state, &plan(1, 0)), Reply::Done);
        assert!(matches!(apply(&mut state, &plan(1, 0)), Reply::Unchanged));
        assert!(matches!(apply(&mut state, &plan(3, 2)), Reply::Refused(_)));
        assert_eq!(apply(&mut state, &plan(2, 1)), Reply::Done);
    }

    #[test]
    fn kills_are_counted_once_and_bounded() {
        let mut state = ClusterState::default();
        let node = NodeId::from_bits(1);
        apply(
            &mut state,
            &Command::AdmitNode {
                id: node,
                name: "a".into(),
                now_s: 0,
            },
        );
        let mut record = |instance, total, now_s| {
            let command = Command::RecordKills {
                node,
                instance,
                total,
                now_s,
            };
            apply(&mut state, &command)
        };
        for total in 1..=100 {
            assert_eq!(record(7, total, total), Reply::Done);
        }
        // The next leader reports what the last one did.
        assert_eq!(record(7, 100, 200), Reply::Unchanged);
        // The node's process was started anew.
        assert_eq!(record(8, 1, 201), Reply::Done);
        assert_eq!(state.nodes[&node].kills_s.len(), 32);
        assert_eq!(state.nodes[&node].kills_s[30..], [100, 201]);
    }
}
