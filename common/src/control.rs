//! Messages on the control stream between a node and a coordinator, and the opening message of
//! every other stream.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::catalogue::ModelRecord;
use crate::class::Class;
use crate::fallback::Fallbacks;
use crate::generation::{Generation, Seek};
use crate::id::{KeyId, ModelName, NodeId};
use crate::key::KeyRecord;
use crate::knobs::KnobSet;
use crate::machine::{MachineRole, Pools};
use crate::plan::NodeTarget;
use crate::relief::Relief;
use crate::report::NodeReport;
use crate::signs::{Signs, Speeds};
use crate::slo::SloSet;
use crate::spending::{Account, Batch, Charged, Windows};
use crate::store_key::StoreKey;
use crate::text_ask::TextAsk;
use crate::unit::Watts;

/// Version of what nodes and coordinators say to each other. Version 2 added leases and sleep, version 3
/// weights through a coordinator, the room on disks and keys of stores, version 4 relief, knobs and signs, version
/// 5 API keys and pools, version 6 fallbacks, version 7 answers of clouds, version 8 what is comfortable, version 9 service
/// levels, speeds and the rung that unloads, version 10 answers that another place makes meanwhile, what answers draw and
/// configured knobs, version 11 why engines were killed, version 12 prompts that come late where a person sits. A message
/// that is new gets its version in `since`: peers that do not know it are not sent it.
pub const PROTOCOL: u16 = 12;

/// Sent by the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum NodeMessage {
    /// First message of a session.
    Hello {
        /// What people call the node.
        name: String,
        /// Version of the program.
        version: String,
        /// Drawn at random when the process started: two machines with one identity differ here.
        instance: u64,
        /// Models in its store.
        models: Vec<ModelRecord>,
    },
    /// The store changed.
    Store {
        /// All models in it.
        models: Vec<ModelRecord>,
    },
    /// The state of the node, once a second.
    Report(Box<NodeReport>),
    /// Asks for a fresh certificate for the key that this session proved.
    Renew {
        /// That key: a point of P-256, uncompressed.
        public_key: Vec<u8>,
    },
    /// The node gives weights to other nodes on this UDP port, at the address of this session.
    Serves {
        /// The port.
        port: u16,
    },
    /// First report of a session that follows a sleep of the machine.
    Woke {
        /// How long it slept, in milliseconds.
        slept_ms: u64,
    },
    /// The node has destroyed what it held, as [`CoordinatorMessage::Evict`] asked.
    Evicted,
    /// How much room there is for models, whenever that has changed by much.
    Room {
        /// Free bytes of the disk with the store.
        free_bytes: u64,
    },
    /// What gates count, after each report.
    Signs(Box<Signs>),
    /// What API keys took at the node's own endpoint; said again in other sessions until
    /// [`CoordinatorMessage::Spent`] has it.
    Spent(Batch),
    /// How fast answers come.
    Speeds(Speeds),
    /// The knobs that it was configured with: in force until the cluster agrees on some.
    Configured(Box<KnobSet>),
    /// What the system said of the latest kill of an engine, by the model that is to blame; before the [`Signs`] that
    /// count it.
    KillCauses(BTreeMap<ModelName, String>),
}

impl NodeMessage {
    /// Version of the protocol that brought it.
    pub fn since(&self) -> u16 {
        match self {
            NodeMessage::Woke { .. } | NodeMessage::Evicted => 2,
            NodeMessage::Room { .. } => 3,
            NodeMessage::Signs(_) => 4,
            NodeMessage::Spent(_) => 5,
            NodeMessage::Speeds(_) => 9,
            NodeMessage::Configured(_) => 10,
            NodeMessage::KillCauses(_) => 11,
            _ => 1,
        }
    }
}

/// Sent by the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum CoordinatorMessage {
    /// Answer to [`NodeMessage::Hello`].
    Welcome {
        /// Version of the program.
        version: String,
    },
    /// What the node should hold.
    Target(NodeTarget),
    /// Answer to [`NodeMessage::Renew`].
    Renewed {
        /// The certificate, PEM.
        certificate: String,
    },
    /// All coordinators and where they are, after the welcome and whenever it changes.
    Coordinators(Vec<(u64, SocketAddr)>),
    /// What the cluster serves, after the welcome and whenever it changes.
    Catalogue {
        /// Index of the log up to which the sender knows: of several the newest is right.
        applied: u64,
        /// The models.
        models: Vec<ModelRecord>,
    },
    /// The nodes of the cluster: nobody else gets weights.
    Members(Vec<NodeId>),
    /// A model of the node's target that it does not store, and where it is; nowhere when it is not
    /// wanted any more.
    Fetch {
        /// The model.
        record: ModelRecord,
        /// Nodes that give it.
        sources: Vec<SocketAddr>,
    },
    /// When the node's lease ends; it leaves by itself then.
    Lease {
        /// Index of the log up to which the sender knows: of several the newest is right.
        applied: u64,
        /// The end, in seconds since 1970; none for a node that stays.
        ends_s: Option<u64>,
    },
    /// The lease ends: the node destroys what it holds of the cluster, and says so.
    Evict,
    /// A model as in [`CoordinatorMessage::Fetch`], which this coordinator passes on from nodes that the
    /// asker may not reach: on a session for [relayed weights](crate::weights).
    Through(ModelRecord),
    /// Somebody needs weights through this coordinator: the node opens a session for them.
    Give,
    /// The key of a rented node's store, after the welcome. It is kept in memory only.
    StoreKey(StoreKey),
    /// How far the node is relieved of batch work, after the welcome and whenever it changes.
    Relief {
        /// Index of the log up to which the sender knows: of several the newest is right.
        applied: u64,
        /// How far.
        relief: Relief,
    },
    /// The knobs that the cluster agrees on, after the welcome and whenever they change; not said before there
    /// are any.
    Knobs(Box<KnobSet>),
    /// The API keys there are, and what the node is to the cluster, after the welcome and whenever either
    /// changes: others are none any more. Rented nodes are told of none.
    Keys {
        /// Index of the log up to which the sender knows: of several the newest is right.
        applied: u64,
        /// Their names.
        ids: Vec<KeyId>,
        /// The node's role.
        role: MachineRole,
    },
    /// One of them, when the node does not know it as it is.
    Key {
        /// As above.
        applied: u64,
        /// Its name.
        id: KeyId,
        /// What it is good for.
        record: Box<KeyRecord>,
    },
    /// What keys have taken, as far as that is news.
    Spent {
        /// As above.
        applied: u64,
        /// By account, the latest minutes and the day.
        spent: Vec<(Account, Windows)>,
        /// The node's latest batch that is in it.
        charged: Option<Charged>,
    },
    /// Where requests go, in which order, likewise as the knobs.
    Fallbacks(Box<Fallbacks>),
    /// Power of the node's machine up to which its person finds it comfortable, once its chip is known and
    /// whenever it changes.
    Comfort {
        /// Index of the log up to which the sender knows: of several the newest is right.
        applied: u64,
        /// None where nobody minds.
        watts: Option<Watts>,
    },
    /// How much may wait and how answers are to come, likewise as the knobs.
    Slos(Box<SloSet>),
}

impl CoordinatorMessage {
    /// As a peer of a version of the protocol can know it.
    #[must_use]
    pub fn known_to(self, protocol: u16) -> Self {
        match self {
            CoordinatorMessage::Fallbacks(lists) => {
                CoordinatorMessage::Fallbacks(Box::new(lists.known_to(protocol)))
            }
            CoordinatorMessage::Relief { applied, relief } => CoordinatorMessage::Relief {
                applied,
                relief: relief.known_to(protocol),
            },
            other => other,
        }
    }

    /// Version of the protocol that brought it.
    pub fn since(&self) -> u16 {
        match self {
            CoordinatorMessage::Lease { .. } | CoordinatorMessage::Evict => 2,
            CoordinatorMessage::Through(_) | CoordinatorMessage::Give | CoordinatorMessage::StoreKey(_) => 3,
            CoordinatorMessage::Relief { .. } | CoordinatorMessage::Knobs(_) => 4,
            CoordinatorMessage::Keys { .. }
            | CoordinatorMessage::Key { .. }
            | CoordinatorMessage::Spent { .. } => 5,
            CoordinatorMessage::Fallbacks(lists) if lists.name_clouds() => 7,
            CoordinatorMessage::Fallbacks(_) => 6,
            CoordinatorMessage::Comfort { .. } => 8,
            CoordinatorMessage::Slos(_) => 9,
            _ => 1,
        }
    }
}

/// First message on a stream beside the control stream. A coordinator asks a node for what is
/// there; a node asks a coordinator for what is anywhere else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StreamRequest {
    /// Answer a prompt: [`GenerationEvent`](crate::generation::GenerationEvent)s follow.
    Generate(Box<Generation>),
    /// Send what tokenising for this model needs: one [`TextBundle`] follows.
    FetchText(ModelName),
    /// Answer a prompt on machines of these kinds; a peer of before version 5 is not asked.
    GenerateIn(Box<Generation>, Pools),
    /// Have a prompt answered by a cloud, as the list of its class says.
    Spill(Box<TextAsk>),
    /// As `GenerateIn`, of a model that takes text.
    GenerateText(Box<Generation>, Pools, Box<TextAsk>),
    /// As `GenerateIn`, or `GenerateText`, of an answer that the asker makes meanwhile: see [`Seek::Better`]. A peer of
    /// before version 10 is asked for batch as for any other, and for what a person waits for not at all before version
    /// 12: it would ask other people's laptops.
    GenerateBetter(Box<Generation>, Pools, Option<Box<TextAsk>>),
}

/// Version of the protocol that brought [`StreamRequest::GenerateBetter`].
const BETTER: u16 = 10;
/// Version from which on it spares people's machines what other people wait for.
const SPARES_PEOPLE: u16 = 12;

/// Whether a peer that speaks this version knows what such an answer may be left to.
pub fn knows(seek: Seek, class: Class, protocol: u16) -> bool {
    seek == Seek::Any || class == Class::Batch || protocol >= SPARES_PEOPLE
}

impl StreamRequest {
    /// The request for a generation, with what travels beside it, to a peer that speaks this version.
    pub fn generate(mut generation: Generation, protocol: u16) -> Self {
        if protocol < BETTER && generation.class == Class::Batch {
            generation.seek = Seek::Any;
        }
        let pools = generation.pools.clone();
        let text = generation.text.as_deref().cloned().map(Box::new);
        if generation.seek == Seek::Better {
            StreamRequest::GenerateBetter(Box::new(generation), pools, text)
        } else if let Some(text) = text {
            StreamRequest::GenerateText(Box::new(generation), pools, text)
        } else if pools.is_any() {
            StreamRequest::Generate(Box::new(generation))
        } else {
            StreamRequest::GenerateIn(Box::new(generation), pools)
        }
    }

    /// As it was sent, with what travelled beside the generation where it belongs.
    #[must_use]
    pub fn whole(self) -> Self {
        match self {
            StreamRequest::GenerateIn(mut generation, pools) => {
                generation.pools = pools;
                StreamRequest::Generate(generation)
            }
            StreamRequest::GenerateText(mut generation, pools, text) => {
                generation.pools = pools;
                generation.text = Some(Arc::new(*text));
                StreamRequest::Generate(generation)
            }
            StreamRequest::GenerateBetter(mut generation, pools, text) => {
                generation.pools = pools;
                generation.text = text.map(|text| Arc::new(*text));
                generation.seek = Seek::Better;
                StreamRequest::Generate(generation)
            }
            other => other,
        }
    }

    /// Version of the protocol that brought it.
    pub fn since(&self) -> u16 {
        match self {
            StreamRequest::Generate(_) | StreamRequest::FetchText(_) => 1,
            StreamRequest::GenerateIn(..) => 5,
            StreamRequest::Spill(_) | StreamRequest::GenerateText(..) => 7,
            StreamRequest::GenerateBetter(generation, ..) if generation.class == Class::Batch => BETTER,
            StreamRequest::GenerateBetter(..) => SPARES_PEOPLE,
        }
    }
}

/// Everything that turns text into token ids and back for one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextBundle {
    /// `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// Jinja source; empty when the model has no chat template.
    pub chat_template: String,
    /// Tokens that end an answer.
    pub stop_tokens: Vec<u32>,
    /// Text of the beginning-of-sequence token; templates refer to it.
    pub bos_token: String,
    /// Text of the end-of-sequence token.
    pub eos_token: String,
    /// Whether plain completions start with the beginning-of-sequence token.
    pub add_bos: bool,
    /// Size of the model's vocabulary.
    pub vocab: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_asked_to_spare_people_who_does_not_know_how() -> Result<(), crate::id::IdError> {
        for class in Class::ALL {
            for protocol in 1..=PROTOCOL {
                let better = Generation {
                    class,
                    seek: Seek::Better,
                    ..Generation::canary("m".parse()?)
                };
                let request = StreamRequest::generate(better, protocol);
                let is_sent = request.since() <= protocol;
                assert_eq!(
                    is_sent,
                    knows(Seek::Better, class, protocol),
                    "{class} {protocol}"
                );
                assert_eq!(
                    is_sent,
                    class == Class::Batch || protocol >= 12,
                    "{class} {protocol}"
                );
                // Batch is asked of older ones as it always was.
                let is_better = matches!(request, StreamRequest::GenerateBetter(..));
                assert_eq!(
                    is_better,
                    class != Class::Batch || protocol >= 10,
                    "{class} {protocol}"
                );
            }
        }
        Ok(())
    }
}
