//! Random histories of tokens, joins and revocations against a naive model.
#![allow(missing_docs, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};

use pomona_common::{ClusterId, KeyPrint, MachineRole, NodeId, TokenId, TokenVerifier};
use pomona_decide::{Admits, ClusterState, Command, Reply, TokenRecord, apply};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Event {
    Make {
        token: u8,
        life: u8,
    },
    RevokeToken(u8),
    Join {
        token: u8,
        node: u8,
        key: u8,
        approved: bool,
    },
    Approve(u8),
    RevokeNode(u8),
    Rename {
        node: u8,
        name: u8,
    },
    Wait(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..8u8, 1..40u8).prop_map(|(token, life)| Event::Make { token, life }),
        1 => (0..8u8).prop_map(Event::RevokeToken),
        6 => (0..8u8, 0..6u8, 0..6u8, any::<bool>()).prop_map(|(token, node, key, approved)| Event::Join { token, node, key, approved }),
        1 => (0..6u8).prop_map(Event::Approve),
        1 => (0..6u8).prop_map(Event::RevokeNode),
        1 => (0..6u8, 0..3u8).prop_map(|(node, name)| Event::Rename { node, name }),
        2 => (1..30u8).prop_map(Event::Wait),
    ]
}

/// What should be so, written down as plainly as possible.
#[derive(Default)]
struct Model {
    now: u64,
    /// Tokens, when they end, and who used them.
    tokens: BTreeMap<u8, (u64, Option<(u8, u8)>)>,
    members: BTreeMap<u8, u8>,
    approved: BTreeSet<u8>,
    gone_nodes: BTreeSet<u8>,
    gone_keys: BTreeSet<u8>,
}

impl Model {
    /// The command of an event, and whether it should change anything.
    fn step(&mut self, event: &Event) -> Option<(Command, bool)> {
        let node_id = |node: u8| NodeId::from_bits(node.into());
        let token_id = |token: u8| TokenId::from_bits(token.into());
        Some(match *event {
            Event::Wait(seconds) => {
                self.now += u64::from(seconds);
                return None;
            }
            Event::Make { token, life } => {
                let expires_s = self.now + u64::from(life);
                self.tokens.retain(|_, (expires, _)| *expires > self.now);
                let fresh = !self.tokens.contains_key(&token);
                self.tokens.entry(token).or_insert((expires_s, None));
                let record = TokenRecord {
                    verifier: TokenVerifier([token; 32]),
                    admits: Admits::Node(MachineRole::Rack),
                    name: String::new(),
                    expires_s,
                    used_by: None,
                };
                let id = token_id(token);
                (
                    Command::MakeToken {
                        id,
                        token: record,
                        now_s: self.now,
                    },
                    fresh,
                )
            }
            Event::RevokeToken(token) => {
                let open = self.tokens.get(&token).is_some_and(|(_, used)| used.is_none());
                if open {
                    self.tokens.remove(&token);
                }
                (Command::RevokeToken(token_id(token)), open)
            }
            Event::Approve(node) => {
                let waits = self.members.contains_key(&node) && self.approved.insert(node);
                (Command::ApproveNode(node_id(node)), waits)
            }
            Event::Join {
                token,
                node,
                key,
                approved,
            } => {
                let found = self.tokens.get(&token).copied();
                let open = found.is_some_and(|(expires, used)| expires > self.now && used.is_none());
                let shut_out = self.gone_nodes.contains(&node) || self.gone_keys.contains(&key);
                let same_or_new = self.members.get(&node).is_none_or(|own| *own == key);
                let admitted = open && !shut_out && same_or_new;
                if admitted {
                    // Who comes back keeps what it had.
                    if approved && !self.members.contains_key(&node) {
                        self.approved.insert(node);
                    }
                    self.tokens
                        .entry(token)
                        .and_modify(|entry| entry.1 = Some((node, key)));
                    self.members.insert(node, key);
                }
                let command = Command::ConsumeToken {
                    token: token_id(token),
                    node: node_id(node),
                    name: "studio".into(),
                    key: KeyPrint([key; 32]),
                    approved,
                    now_s: self.now,
                };
                (command, admitted)
            }
            Event::RevokeNode(node) => {
                let key = self.members.remove(&node);
                if let Some(key) = key {
                    self.gone_nodes.insert(node);
                    self.gone_keys.insert(key);
                    self.tokens
                        .retain(|_, (_, used)| used.is_none_or(|(by, _)| by != node));
                }
                (
                    Command::RevokeNode {
                        node: node_id(node),
                        now_s: self.now,
                    },
                    key.is_some(),
                )
            }
            // Names are checked below, not here: whether it changes anything depends on them.
            Event::Rename { node, name } => {
                let command = Command::RenameNode {
                    node: node_id(node),
                    name: format!("name-{name}"),
                };
                return self.members.contains_key(&node).then_some((command, true));
            }
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tokens_admit_one_machine_and_the_revoked_stay_out(events in prop::collection::vec(event(), 1..80)) {
        let (mut state, mut model) = (ClusterState::default(), Model::default());
        apply(&mut state, &Command::Found(ClusterId::from_bits(1)));
        for event in &events {
            let Some((command, changes)) = model.step(event) else {
                continue;
            };
            let before = state.clone();
            let reply = apply(&mut state, &command);
            if !matches!(event, Event::Rename { .. }) {
                prop_assert_eq!(reply == Reply::Done, changes, "{:?}: {:?}", event, reply);
            }
            if let Reply::Refused(_) = reply {
                let pruned = ClusterState { tokens: state.tokens.clone(), ..before };
                prop_assert_eq!(&state, &pruned, "a refused command changed something");
            }
            let names: BTreeSet<&String> = state.nodes.values().map(|record| &record.name).collect();
            prop_assert_eq!(names.len(), state.nodes.len(), "two nodes share a name");
            let members: BTreeMap<NodeId, Option<KeyPrint>> =
                model.members.iter().map(|(node, key)| (NodeId::from_bits((*node).into()), Some(KeyPrint([*key; 32])))).collect();
            let nodes: BTreeMap<NodeId, Option<KeyPrint>> = state.nodes.iter().map(|(id, record)| (*id, record.key)).collect();
            prop_assert_eq!(nodes, members);
            for (node, key) in (0..6u8).flat_map(|node| (0..6u8).map(move |key| (node, key))) {
                let refused = state.refuses(NodeId::from_bits(node.into()), KeyPrint([key; 32])).is_some();
                let expected = model.gone_nodes.contains(&node)
                    || model.gone_keys.contains(&key)
                    || model
                        .members
                        .get(&node)
                        .is_some_and(|own| *own != key || !model.approved.contains(&node));
                prop_assert_eq!(refused, expected, "node {} with key {}", node, key);
            }
        }
    }
}
