//! The commands that go through the log.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pomona_common::key::{KeyHash, KeyRecord, KeyTerms};
use pomona_common::plan::Plan;
use pomona_common::spending::{Batch, EntryId};
use pomona_common::{
    CloudName, ClusterId, Fallbacks, KeyId, KeyPrint, KnobSet, ModelName, ModelRecord, Money, NodeId, Rung,
    SloSet, TokenId,
};
use serde::{Deserialize, Serialize};

use crate::audit::Audited;
use crate::clouds::{Approval, Spill, SpillId, Took};
use crate::gates::Transition;
use crate::lease::Lease;
use crate::offload::{Comfort, Relieved};
use crate::placement::{Availability, ModelPolicy, PlanStep};
use crate::sets::Made;
use crate::state::TokenRecord;

/// A change of the replicated state. Times come with the command: `apply` has no clock.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Names the cluster; the first command of every log.
    Found(ClusterId),
    /// Admits a node that needs no token: it holds the cluster's authority itself.
    AdmitNode {
        /// The node.
        id: NodeId,
        /// What people call it.
        name: String,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Opens a join token. Not written any more, see `OpenToken`; logs have it.
    MakeToken {
        /// Its public name.
        id: TokenId,
        /// What it is good for.
        token: TokenRecord,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Closes a join token that was not used.
    RevokeToken(TokenId),
    /// Admits the machine that showed a token, as what the token says, and closes the token.
    ConsumeToken {
        /// The token.
        token: TokenId,
        /// The id that the machine has drawn.
        node: NodeId,
        /// What it calls itself; the token's name goes before it.
        name: String,
        /// Its key.
        key: KeyPrint,
        /// Whether a node may serve at once, by the policy of the coordinator that it asked.
        approved: bool,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Lets a node serve that joined under a policy of manual approval.
    ApproveNode(NodeId),
    /// Shuts a node out for good: neither its id nor its key is admitted again.
    RevokeNode {
        /// The node.
        node: NodeId,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Gives a node another name.
    RenameNode {
        /// The node.
        node: NodeId,
        /// What people will call it.
        name: String,
    },
    /// Puts a model into the catalogue.
    AddModel(ModelRecord),
    /// Takes a model out of it.
    RemoveModel(ModelName),
    /// Replaces the target; its parent must be the present one.
    /// Not written any more, see `Replan`; logs have it.
    SetPlan(Plan),
    /// Engines were killed on a node. Counted by what its process reports in all, so that no kill
    /// is forgotten or counted twice when the leader changes.
    RecordKills {
        /// On this node.
        node: NodeId,
        /// The node's process.
        instance: u64,
        /// Kills that it has seen since it started.
        total: u64,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// A coordinator says where it is.
    AnnounceCoordinator {
        /// Its number.
        number: u64,
        /// What people call its machine.
        name: String,
        /// Whether its machine is carried about.
        laptop: bool,
        /// Where the others and the nodes reach it.
        address: SocketAddr,
    },
    /// Takes a coordinator out of the cluster.
    RemoveCoordinator(u64),
    /// Takes a step from the target in force to the next.
    Replan {
        /// The step.
        step: PlanStep,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Says what is wanted of a model.
    SetPolicy {
        /// The model.
        model: ModelName,
        /// What is wanted.
        policy: ModelPolicy,
    },
    /// Says whether a node takes replicas.
    SetAvailability {
        /// The node.
        node: NodeId,
        /// Whether it does.
        availability: Availability,
    },
    /// These models were asked for.
    UseModels {
        /// The models.
        models: Vec<ModelName>,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Opens a join token, with the lease of the machine that joins with it.
    OpenToken {
        /// Its public name.
        id: TokenId,
        /// What it is good for.
        token: TokenRecord,
        /// Until when the machine stays; only a rented one leaves by itself.
        lease: Option<Lease>,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Says until when a rented node stays.
    SetLease {
        /// The node.
        node: NodeId,
        /// Its lease; none for as long as it likes.
        lease: Option<Lease>,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Tells a node with a lease to destroy what it holds.
    Evict {
        /// The node.
        node: NodeId,
        /// The lease that makes it so: one that was prolonged meanwhile stays. None when an operator says it.
        seen: Option<Lease>,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Shuts a node out whose lease is over, unless it was prolonged meanwhile.
    EndLease {
        /// The node.
        node: NodeId,
        /// The lease that is over.
        seen: Lease,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// A node came back with a certificate that had run out: it must be approved again.
    DoubtNode(NodeId),
    /// It was, and gets its certificate.
    TrustNode(NodeId),
    /// A node comes to another rung of the offload ladder.
    Relieve {
        /// The node.
        node: NodeId,
        /// The rung that it is on.
        seen: Rung,
        /// The rung that it comes to, and why.
        relieved: Relieved,
    },
    /// Says how many watts are comfortable at a node.
    SetComfort {
        /// The node.
        node: NodeId,
        /// What is said.
        comfort: Comfort,
    },
    /// Makes a set of knobs.
    SetKnobs(Made<KnobSet>),
    /// A gate of a node acts, or has done so.
    PassGate(Box<Transition>),
    /// Engines were killed on a node, by model; counted as in `RecordKills`.
    CountKills {
        /// On this node.
        node: NodeId,
        /// The node's process.
        instance: u64,
        /// Kills that it has seen since it started.
        totals: BTreeMap<ModelName, u64>,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// An operator has seen to a ticket, by its number.
    CloseTicket(u64),
    /// An operator has seen to what killed engines on a node with a model.
    ForgiveKills {
        /// The node.
        node: NodeId,
        /// The model.
        model: ModelName,
    },
    /// Makes an API key.
    MakeKey {
        /// Its public name.
        id: KeyId,
        /// What it is good for.
        record: Box<KeyRecord>,
    },
    /// Gives a key another secret.
    RotateKey {
        /// The key.
        id: KeyId,
        /// The hash of its new secret.
        secret: KeyHash,
        /// Until when the one before still opens, in seconds since 1970.
        grace_until_s: u64,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// Says what a key is good for from now on.
    ChangeKey {
        /// The key.
        id: KeyId,
        /// All of it.
        terms: Box<KeyTerms>,
    },
    /// Ends a key at once.
    RevokeKey(KeyId),
    /// What entries let keys take. A batch that was counted before is not counted again.
    ChargeKeys {
        /// One batch an entry.
        charges: Vec<(EntryId, Batch)>,
        /// Now, in seconds since 1970.
        now_s: u64,
    },
    /// A change that an operator makes, written down with who did it.
    Audited(Box<Audited>),
    /// Says where requests go, in which order.
    SetFallbacks(Made<Fallbacks>),
    /// Lets a cloud be asked, or changes how.
    ApproveCloud {
        /// The cloud.
        cloud: CloudName,
        /// Until when, and for how much.
        approval: Approval,
    },
    /// Ends that.
    RevokeCloud(CloudName),
    /// Says whether a model's prompts stay on the team's own machines.
    SetPrivate {
        /// The model.
        model: ModelName,
        /// Whether they do.
        private: bool,
    },
    /// Says how much a key may take of clouds in a month.
    SetBudget {
        /// The key.
        key: KeyId,
        /// How much; none for as much as there is.
        monthly: Option<Money>,
    },
    /// A request goes to a cloud: not before this is done.
    ReserveSpill(Box<Spill>),
    /// What it took in the end.
    SettleSpill {
        /// The request.
        id: SpillId,
        /// Tokens, and money.
        took: Took,
    },
    /// Makes a set of service levels.
    SetSlos(Made<SloSet>),
    /// As `Relieve`, to the highest rung, or one more model at it: where memory is short, one that no person uses there
    /// makes room.
    Unload {
        /// The node.
        node: NodeId,
        /// The model.
        model: ModelName,
        /// It does not come back before, in seconds since 1970.
        until_s: u64,
        /// The rung that the node is on.
        seen: Rung,
        /// The highest, and why.
        relieved: Relieved,
    },
}

/// What a command did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It changed the state.
    Done,
    /// The state was already so.
    #[default]
    Unchanged,
    /// It was refused.
    Refused(String),
}
