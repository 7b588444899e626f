//! Whether a model may and can be on a node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use pomona_common::gate::{Gate, Stage};
use pomona_common::{MachineRole, ModelName, ModelRecord, NodeId};

use crate::clouds::CloudBook;
use crate::gates::GateBook;
use crate::lease::Phase;
use crate::placement::{Availability, ModelPolicy, Replicas};
use crate::planner::inventory::NodeInventory;
use crate::state::{ClusterState, NodeRecord};

/// Memory that is never planned for: the system, the agent, and the person's own programs.
pub const RESERVE_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// Of the reserve, what a load must leave of the memory that is to be had at the moment: the rest of it
/// is in use by those programs already.
pub const RESERVE_NOW_BYTES: u64 = RESERVE_BYTES / 4;
/// Room that stays on a disk: the system swaps there, and a Mac whose disk is full stops.
const RESERVE_DISK_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Nothing more is loaded on a node whose memory pressure is higher, in percent.
pub const PRESSURE_MAX: f32 = 80.0;

/// Why a node does not take a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Rejected {
    /// It was not heard of.
    Away,
    /// An operator has to approve it.
    Unapproved,
    /// Its last report is late.
    Suspected,
    /// It takes nothing new.
    Cordoned,
    /// It gives up what it has.
    Draining,
    /// It gives up what it has because its lease ends.
    LeaseEnds,
    /// The engine was killed with it too often.
    Quarantined,
    /// It leaves because memory is short.
    Relocated,
    /// The policy is for other kinds of machine.
    OtherPool(MachineRole),
    /// The model is private, and the machine is rented.
    Private,
    /// Its engine is a server of another program.
    Lent,
    /// The weights are not there.
    NotStored,
    /// Other weights are there under the name.
    OtherContents,
    /// How much memory it has is not known.
    UnknownMemory,
    /// Not within physical memory.
    TooLarge {
        /// Bytes that the weights take there.
        need: u64,
        /// Bytes that nothing is planned for.
        room: u64,
    },
    /// Its disk has no room for the weights.
    NoDisk {
        /// Bytes of the weights.
        need: u64,
        /// Free bytes that nothing is planned for.
        room: u64,
    },
    /// Within physical memory, and not at the moment.
    NoMemoryNow {
        /// Bytes that the weights take there.
        need: u64,
        /// Bytes to be had.
        available: u64,
    },
    /// The system is short of memory.
    Pressure(f32),
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejected::Away => f.write_str("not connected"),
            Rejected::Unapproved => f.write_str("awaits approval: `pomona node approve`"),
            Rejected::Suspected => f.write_str("its last report is late"),
            Rejected::Cordoned => f.write_str("cordoned: `pomona node uncordon` opens it"),
            Rejected::Draining => f.write_str("draining: `pomona node uncordon` ends that"),
            Rejected::LeaseEnds => f.write_str("its lease ends: `pomona node lease` prolongs it"),
            Rejected::Quarantined => f.write_str(
                "the engine was killed with it twice within 7 days: `pomona gates` has the ticket",
            ),
            Rejected::Relocated => {
                f.write_str("memory is, or was within the hour, short there: `pomona gates`, `pomona nodes`")
            }
            Rejected::UnknownMemory => {
                f.write_str("it does not say how much memory it has, or what cannot be: `pomona nodes`")
            }
            Rejected::OtherPool(role) => write!(f, "the policy is not for {role} machines"),
            Rejected::Private => {
                f.write_str("the model is private and this machine is rented: `pomona cloud private`")
            }
            Rejected::Lent => {
                f.write_str("a server of another program has its GPU: `pomona engine show` there")
            }
            Rejected::NotStored => {
                f.write_str("not in its store, and no other node gives it: `pomona model pull` there")
            }
            Rejected::OtherContents => f.write_str("other contents under this name"),
            Rejected::TooLarge { need, room } => {
                write!(f, "needs {}, room for {}", Gib(*need), Gib(*room))
            }
            Rejected::NoDisk { need, room } => {
                write!(f, "needs {} of disk, room for {}", Gib(*need), Gib(*room))
            }
            Rejected::NoMemoryNow { need, available } => {
                write!(f, "needs {}, {} available now", Gib(*need), Gib(*available))
            }
            Rejected::Pressure(percent) => write!(f, "memory pressure {percent:.0} %"),
        }
    }
}

/// Bytes for people.
pub(crate) struct Gib(pub(crate) u64);

impl fmt::Display for Gib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} GiB", self.0 as f64 / (1u64 << 30) as f64)
    }
}

/// A connected node while a plan is made: what it holds, and what is left of it.
pub(crate) struct Site<'a> {
    pub(crate) id: NodeId,
    pub(crate) node: &'a NodeInventory,
    pub(crate) record: &'a NodeRecord,
    pub(crate) availability: Availability,
    /// Whether its lease is why.
    lease_ends: bool,
    /// How far its gates have acted.
    gates: &'a GateBook,
    clouds: &'a CloudBook,
    now_s: u64,
    /// Models that no other node could be given.
    pub(crate) homeless: BTreeSet<&'a ModelName>,
    /// What is stored there, sorted by name.
    stored: Vec<&'a ModelRecord>,
    /// Digests of the weights that some node gives to others.
    offered: Rc<BTreeSet<&'a str>>,
    /// What it is to hold by the plan so far.
    pub(crate) holds: BTreeSet<&'a ModelName>,
    /// Bytes of weights of that.
    planned: u64,
    /// Of those, bytes that are not loaded yet.
    coming: u64,
    /// Bytes of models that it is to hold and does not store yet.
    fetching: u64,
}

impl<'a> Site<'a> {
    pub(crate) fn new(
        state: &'a ClusterState,
        id: NodeId,
        record: &'a NodeRecord,
        node: &'a NodeInventory,
        offered: Rc<BTreeSet<&'a str>>,
        now_s: u64,
    ) -> Self {
        let mut stored: Vec<&ModelRecord> = node.stored.iter().collect();
        stored.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            id,
            node,
            record,
            availability: state.availability(id, now_s),
            lease_ends: !matches!(state.lease_phase(id, now_s), None | Some(Phase::Running)),
            gates: &state.gates,
            clouds: &state.clouds,
            now_s,
            homeless: BTreeSet::new(),
            stored,
            offered,
            holds: BTreeSet::new(),
            planned: 0,
            coming: 0,
            fetching: 0,
        }
    }

    /// Bytes that the weights take here, by what the node itself has: otherwise the node that brought
    /// a model into the catalogue would decide for all.
    pub(crate) fn need(&self, model: &ModelRecord) -> u64 {
        let model = self.stored(model).unwrap_or(model);
        if self.node.dequantizes {
            model.dequantized_bytes
        } else {
            model.weight_bytes
        }
    }

    pub(crate) fn take(&mut self, model: &'a ModelRecord) {
        if self.holds.insert(&model.name) {
            self.planned = self.planned.saturating_add(self.need(model));
            if !self.node.loaded.contains(&model.name) {
                self.coming = self.coming.saturating_add(self.need(model));
            }
            if self.stored(model).is_none() {
                self.fetching = self.fetching.saturating_add(model.weight_bytes);
            }
        }
    }

    pub(crate) fn give_up(&mut self, model: &ModelRecord) {
        if self.holds.remove(&model.name) {
            self.planned = self.planned.saturating_sub(self.need(model));
            if !self.node.loaded.contains(&model.name) {
                self.coming = self.coming.saturating_sub(self.need(model));
            }
            if self.stored(model).is_none() {
                self.fetching = self.fetching.saturating_sub(model.weight_bytes);
            }
        }
    }

    /// Bytes of weights that nothing is planned for; `None` when the node cannot tell its memory.
    pub(crate) fn room(&self) -> Option<u64> {
        let total = self.node.memory_total?;
        Some(total.saturating_sub(self.spoken_for()))
    }

    /// Bytes of physical memory that something is planned for.
    fn spoken_for(&self) -> u64 {
        let fixed = RESERVE_BYTES.saturating_add(self.node.kv_budget);
        fixed.saturating_add(self.planned)
    }

    /// Whether more is planned for it than it has memory for.
    pub(crate) fn is_overfull(&self) -> bool {
        let total = self.node.memory_total;
        self.planned > 0 && total.is_some_and(|total| total < self.spoken_for())
    }

    /// Whether it may hold what it holds, or must give it up at once.
    pub(crate) fn may_hold(&self, model: &ModelRecord) -> Result<(), Rejected> {
        if !self.record.approved {
            return Err(Rejected::Unapproved);
        }
        if self.node.lent && !model.digests.is_adopted() {
            return Err(Rejected::Lent);
        }
        if self.record.role == MachineRole::Rented && self.clouds.is_private(&model.name) {
            return Err(Rejected::Private);
        }
        if self.gates.quarantines(self.id, &model.name) {
            return Err(Rejected::Quarantined);
        }
        match self.stored(model) {
            Some(own) if own.digests == model.digests => Ok(()),
            Some(_) => Err(Rejected::OtherContents),
            // It brings them from there.
            None if self.offered.contains(model.digests.weights.as_str()) => Ok(()),
            None => Err(Rejected::NotStored),
        }
    }

    /// Whether a model is to go elsewhere when it can; not when somebody pins it here.
    pub(crate) fn relocates(&self, model: &ModelName, policy: &ModelPolicy) -> bool {
        !policy.pins.contains(&self.id) && self.gates.relocates(self.id, model, self.now_s)
    }

    /// Whether a model that went elsewhere may come back, since nobody else has it.
    fn is_taken_back(&self, model: &ModelRecord) -> bool {
        self.homeless.contains(&model.name)
            && self.gates.stage(self.id, &(Gate::Residency, None)) == Stage::Clear
    }

    /// What is in its store under the name of a model.
    pub(crate) fn stored(&self, model: &ModelRecord) -> Option<&'a ModelRecord> {
        let found = self
            .stored
            .binary_search_by(|stored| stored.name.cmp(&model.name));
        found.ok().map(|at| self.stored[at])
    }

    /// Whether it could be given a model that it does not hold.
    pub(crate) fn could_take(&self, model: &ModelRecord, policy: &ModelPolicy) -> Result<(), Rejected> {
        self.may_take(model, policy)?;
        self.fits(model, &[])
    }

    /// Whether it may be given a model that it does not hold, memory aside.
    pub(crate) fn may_take(&self, model: &ModelRecord, policy: &ModelPolicy) -> Result<(), Rejected> {
        self.may_hold(model)?;
        let pinned = policy.pins.contains(&self.id);
        if policy.replicas == Replicas::Everywhere && !pinned && self.stored(model).is_none() {
            // Everywhere it is stored: nothing is copied to every machine by default.
            return Err(Rejected::NotStored);
        }
        match self.availability {
            Availability::Open => {}
            Availability::Cordoned => return Err(Rejected::Cordoned),
            Availability::Draining { .. } if self.lease_ends => return Err(Rejected::LeaseEnds),
            Availability::Draining { .. } => return Err(Rejected::Draining),
        }
        if self.relocates(&model.name, policy) && !self.is_taken_back(model) {
            return Err(Rejected::Relocated);
        }
        if !is_in_pool(policy, self.record.role) && !pinned {
            return Err(Rejected::OtherPool(self.record.role));
        }
        if self.node.heard.is_late() {
            return Err(Rejected::Suspected);
        }
        self.fits_on_disk(model)
    }

    /// Whether the weights fit on its disk, if it has to fetch them.
    fn fits_on_disk(&self, model: &ModelRecord) -> Result<(), Rejected> {
        let free = self.node.disk_free.filter(|_| self.stored(model).is_none());
        let room = free.map(|free| free.saturating_sub(RESERVE_DISK_BYTES.saturating_add(self.fetching)));
        match room {
            Some(room) if model.weight_bytes > room => Err(Rejected::NoDisk {
                need: model.weight_bytes,
                room,
            }),
            _ => Ok(()),
        }
    }

    /// Whether a model that it does not hold fits, once these are gone.
    pub(crate) fn fits(&self, model: &ModelRecord, victims: &[&ModelRecord]) -> Result<(), Rejected> {
        let need = self.need(model);
        if need == 0 {
            // A server of another program has it in memory already.
            return Ok(());
        }
        // What is not loaded yet frees what is `coming` for it.
        let freed = victims
            .iter()
            .fold(0u64, |freed, victim| freed.saturating_add(self.need(victim)));
        let is_loaded = self.node.loaded.contains(&model.name);
        let room = self.node.memory_total;
        let room = room.map(|total| total.saturating_add(freed).saturating_sub(self.spoken_for()));
        match room {
            None if !is_loaded => return Err(Rejected::UnknownMemory),
            Some(room) if need > room => return Err(Rejected::TooLarge { need, room }),
            // One that is loaded takes nothing more.
            _ if is_loaded => return Ok(()),
            _ => {}
        }
        if let Some(pressure) = self.node.pressure.filter(|pressure| *pressure > PRESSURE_MAX) {
            return Err(Rejected::Pressure(pressure));
        }
        let coming = self.coming.saturating_add(RESERVE_NOW_BYTES);
        let available = self.node.memory_available;
        let available = available.map(|now| now.saturating_add(freed).saturating_sub(coming));
        match available {
            Some(available) if need > available => Err(Rejected::NoMemoryNow { need, available }),
            _ => Ok(()),
        }
    }
}

pub(crate) fn is_in_pool(policy: &ModelPolicy, role: MachineRole) -> bool {
    policy.pools.is_empty() || policy.pools.contains(&role)
}

/// The connected nodes that the cluster knows, each with what it holds by the plan in force, as far
/// as the catalogue knows that.
pub(crate) fn sites<'a>(
    state: &'a ClusterState,
    inventory: &'a BTreeMap<NodeId, NodeInventory>,
    now_s: u64,
) -> BTreeMap<NodeId, Site<'a>> {
    let serving = inventory.values().filter(|node| node.serves);
    let offered = serving.flat_map(|node| &node.stored);
    // What a server of another program has, no node gives.
    let offered = offered.filter(|model| !model.digests.is_adopted());
    let offered: Rc<BTreeSet<&str>> = Rc::new(offered.map(|model| model.digests.weights.as_str()).collect());
    inventory
        .iter()
        .filter_map(|(id, node)| {
            let mut site = Site::new(state, *id, state.nodes.get(id)?, node, offered.clone(), now_s);
            let targets = state.plan.nodes.get(id).into_iter();
            for name in targets.flat_map(|target| target.models.keys()) {
                if let Some(model) = state.catalogue.get(name) {
                    site.take(model);
                }
            }
            Some((*id, site))
        })
        .collect()
}
