//! Who belongs to the cluster: tokens, joins, names, revocation.

use pomona_common::spending::EntryId;
use pomona_common::{KeyPrint, NodeId, REVOKED, TokenId, limits};

use crate::command::Reply;
use crate::coordinators;
use crate::lease::{self, Lease};
use crate::placement;
use crate::state::{Admits, ClusterState, NodeRecord, RevokedNode, TokenRecord};
use crate::{gates, keys, offload};

pub(crate) fn admit_node(state: &mut ClusterState, id: NodeId, name: &str, now_s: u64) -> Reply {
    if state.nodes.contains_key(&id) {
        return Reply::Unchanged;
    }
    admit(
        state,
        id,
        name,
        NodeRecord {
            approved: true,
            joined_s: now_s,
            ..NodeRecord::default()
        },
    )
}

pub(crate) fn make_token(state: &mut ClusterState, id: TokenId, token: &TokenRecord, now_s: u64) -> Reply {
    if state.cluster.is_none() {
        return Reply::Refused("the cluster is not founded yet, try again in a moment".into());
    }
    state.tokens.retain(|_, token| token.expires_s > now_s);
    match state.tokens.get(&id) {
        Some(own) if own == token => return Reply::Unchanged,
        Some(_) => return Reply::Refused("this token exists".into()),
        None => {}
    }
    if let Some(why) = bad_name(&token.name).filter(|_| !token.name.is_empty()) {
        return Reply::Refused(why);
    }
    if state.tokens.len() >= limits::TOKENS {
        return Reply::Refused(format!(
            "{} tokens are open, the limit; revoke one with `pomona token revoke`",
            limits::TOKENS
        ));
    }
    state.tokens.insert(id, token.clone());
    Reply::Done
}

/// Opens a token with the lease of the machine that joins with it: both or neither.
pub(crate) fn open_token(
    state: &mut ClusterState,
    id: TokenId,
    token: &TokenRecord,
    lease: Option<Lease>,
    now_s: u64,
) -> Reply {
    match make_token(state, id, token, now_s) {
        Reply::Done => {}
        other => return other,
    }
    let leased = lease::of_token(state, id, token.admits, lease, now_s);
    if let Reply::Refused(_) = leased {
        state.tokens.remove(&id);
    }
    leased
}

pub(crate) fn revoke_token(state: &mut ClusterState, id: TokenId) -> Reply {
    match state.tokens.get(&id) {
        Some(token) if token.used_by.is_none() => {
            state.tokens.remove(&id);
            state.leases.of_tokens.remove(&id);
            Reply::Done
        }
        _ => Reply::Refused(format!("no open token {id}")),
    }
}

/// The machine that shows a token.
pub(crate) struct Applicant<'a> {
    pub(crate) node: NodeId,
    pub(crate) name: &'a str,
    pub(crate) key: KeyPrint,
    pub(crate) approved: bool,
}

pub(crate) fn consume_token(
    state: &mut ClusterState,
    token: TokenId,
    applicant: &Applicant<'_>,
    now_s: u64,
) -> Reply {
    let Applicant {
        node,
        name,
        key,
        approved,
    } = *applicant;
    let Some(record) = state.tokens.get(&token).cloned() else {
        return Reply::Refused("this token is not open: it was used, revoked, or made elsewhere".into());
    };
    if record.expires_s <= now_s {
        return Reply::Refused("this token has expired; make another with `pomona token create`".into());
    }
    if state.has_revoked(node, key) {
        return Reply::Refused(REVOKED.into());
    }
    if let Some(why) = lease::refuses(state, token, now_s) {
        return Reply::Refused(why.into());
    }
    match record.used_by {
        // Its answer was lost, and it asks again.
        Some(used_by) if used_by == (node, key) => return Reply::Unchanged,
        Some(_) => return Reply::Refused("this token was used by another machine".into()),
        None => {}
    }
    let name = if record.name.is_empty() {
        name
    } else {
        &record.name
    };
    let reply = match record.admits {
        Admits::Node(role) => {
            let new = NodeRecord {
                role,
                key: Some(key),
                approved,
                joined_s: now_s,
                ..NodeRecord::default()
            };
            admit_member(state, node, name, new)
        }
        // Made with another token before: it keeps its number.
        Admits::Coordinator if state.coordinator_joined_as((node, key)).is_some() => Reply::Done,
        Admits::Coordinator => coordinators::admit(state, name, (node, key)),
    };
    if reply == Reply::Done
        && let Some(record) = state.tokens.get_mut(&token)
    {
        record.used_by = Some((node, key));
        lease::begin(state, token, node);
    }
    reply
}

/// A node that lost its certificate joins again under the id and key it has.
fn admit_member(state: &mut ClusterState, node: NodeId, name: &str, new: NodeRecord) -> Reply {
    match state.nodes.get(&node) {
        Some(known) if known.key == new.key => Reply::Done,
        Some(_) => Reply::Refused("a node with this id belongs to the cluster already".into()),
        None => admit(state, node, name, new),
    }
}

pub(crate) fn approve_node(state: &mut ClusterState, id: NodeId) -> Reply {
    match state.nodes.get_mut(&id) {
        None => Reply::Refused(format!("no node {id}")),
        Some(record) if record.approved => Reply::Unchanged,
        Some(record) => {
            record.approved = true;
            Reply::Done
        }
    }
}

pub(crate) fn doubt_node(state: &mut ClusterState, id: NodeId) -> Reply {
    let Some(record) = state.nodes.get_mut(&id) else {
        return Reply::Refused(format!("no node {id}"));
    };
    if !state.late.insert(id) {
        return Reply::Unchanged;
    }
    record.approved = false;
    Reply::Done
}

pub(crate) fn trust_node(state: &mut ClusterState, id: NodeId) -> Reply {
    if !state.nodes.get(&id).is_some_and(|record| record.approved) {
        return Reply::Refused("this node awaits approval".into());
    }
    if state.late.remove(&id) {
        Reply::Done
    } else {
        Reply::Unchanged
    }
}

pub(crate) fn revoke_node(state: &mut ClusterState, id: NodeId, now_s: u64) -> Reply {
    if state.revoked.contains_key(&id) {
        return Reply::Unchanged;
    }
    let Some(record) = state.nodes.remove(&id) else {
        return Reply::Refused(format!("no node {id}"));
    };
    state.late.remove(&id);
    let revoked = RevokedNode {
        name: record.name,
        key: record.key,
        revoked_s: now_s,
    };
    state.revoked.insert(id, revoked);
    state.plan.nodes.remove(&id);
    state.leases.of_nodes.remove(&id);
    placement::forget_node(state, id);
    offload::forget_node(state, id);
    gates::forget_node(state, id);
    keys::forget_entry(state, EntryId::Node(id));
    // Tokens that it used would let it ask again, in vain: forget them.
    state
        .tokens
        .retain(|_, token| token.used_by.is_none_or(|(node, _)| node != id));
    Reply::Done
}

pub(crate) fn rename_node(state: &mut ClusterState, id: NodeId, name: &str) -> Reply {
    if let Some(why) = bad_name(name) {
        return Reply::Refused(why);
    }
    let taken = state
        .nodes
        .iter()
        .any(|(other, record)| *other != id && record.name == name);
    match state.nodes.get_mut(&id) {
        None => Reply::Refused(format!("no node {id}")),
        Some(_) if taken => Reply::Refused(format!("another node is called `{name}`")),
        Some(record) if record.name == name => Reply::Unchanged,
        Some(record) => {
            record.name = name.to_owned();
            Reply::Done
        }
    }
}

fn admit(state: &mut ClusterState, id: NodeId, name: &str, record: NodeRecord) -> Reply {
    if state.revoked.contains_key(&id) {
        return Reply::Refused(REVOKED.into());
    }
    if state.revoked.len() >= limits::REVOKED_NODES {
        return Reply::Refused("the list of revoked nodes is full; found a new cluster".into());
    }
    if state.nodes.len() >= limits::NODES {
        return Reply::Refused(format!("the cluster has {} nodes, the limit", limits::NODES));
    }
    let name = free_name(state, name);
    state.nodes.insert(id, NodeRecord { name, ..record });
    Reply::Done
}

/// Why a text is not the name of a node or a key, if it is not.
pub(crate) fn bad_name(name: &str) -> Option<String> {
    let characters = name.chars().count();
    let sound = (1..=limits::NODE_NAME_CHARS).contains(&characters) && !name.chars().any(char::is_control);
    let limit = limits::NODE_NAME_CHARS;
    (!sound).then(|| format!("a name has 1 to {limit} characters, none of them a control character"))
}

/// What a terminal may show of a name, shortened to the limit.
pub(crate) fn printable(name: &str) -> String {
    let shown = name.chars().filter(|c| !c.is_control());
    shown.take(limits::NODE_NAME_CHARS).collect()
}

/// The name, shortened to the limit, with a number when another node has it.
fn free_name(state: &ClusterState, name: &str) -> String {
    let plain = printable(name);
    let plain = if plain.is_empty() {
        "node".to_owned()
    } else {
        plain
    };
    let taken = |name: &str| state.nodes.values().any(|record| record.name == name);
    let numbered = (2..=limits::NODES + 1).map(|number| format!("{plain}-{number}"));
    std::iter::once(plain.clone())
        .chain(numbered)
        .find(|name| !taken(name))
        .unwrap_or(plain)
}
