//! How others would route the same requests over the same Macs: what Pomona is compared with. Their rules are
//! written down from their sources; what an operator would tune of them is in [`Tuning`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use pomona_common::generation::GenerationEvent;
use pomona_common::{Class, Generation, MachineRole, NodeId};
use pomona_tests::Random;
use serde::Serialize;

/// LiteLLM keeps so many latencies of a deployment, and forgets all of them after this time in milliseconds
/// (`router_strategy/lowest_latency.py`, 1.110.2: `max_latency_list_size`, `ttl`).
const SAMPLES: usize = 10;
const FORGET: u64 = 3_600_000;
/// Prompts of fewer tokens LiteLLM does not remember; here, beginnings.
const PROMPT: u32 = 1024;
/// Latencies of which Ollama Herd takes the 75th percentile.
const HERD_SAMPLES: usize = 500;

/// Who routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The product: entries, router, ladder, gates.
    Pomona,
    /// Everything on the machine of the person whose request it is.
    Local,
    /// Interactive on the person's machine, aggregate on the rack, the least busy one.
    Split,
    /// All machines in turn.
    RoundRobin,
    /// The machine with the fewest requests (LiteLLM `least-busy`).
    LeastBusy,
    /// The same, but what begins with a prompt that a machine had lately goes there, as LiteLLM's check `prompt_caching`
    /// has it, with Pomona's memory of prompts: longer, and of any beginning.
    Sticky,
    /// The machine with the lowest latency lately (LiteLLM `latency-based-routing`).
    Latency,
    /// A score of queue, waiting time, kind of machine and whether its person is busy (Ollama Herd 0.11.4).
    Score,
}

impl Policy {
    pub const ALL: [Policy; 8] = [
        Policy::Pomona,
        Policy::Local,
        Policy::Split,
        Policy::RoundRobin,
        Policy::LeastBusy,
        Policy::Latency,
        Policy::Score,
        Policy::Sticky,
    ];
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Policy::Pomona => "pomona",
            Policy::Local => "all local",
            Policy::Split => "static split",
            Policy::RoundRobin => "round robin",
            Policy::LeastBusy => "least busy",
            Policy::Sticky => "sticky",
            Policy::Latency => "latency-based",
            Policy::Score => "score-based",
        })
    }
}

/// What an operator would tune.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tuning {
    /// Aggregate sequences that a machine works on at once.
    pub slots: u32,
    /// `lowest_latency_buffer`: who is slower than the fastest by this share gets requests as well.
    pub buffer: f64,
}

impl Tuning {
    /// What suits best: of 4, 6, 8, 10, 16 and 24 slots six, or within a hundredth of what does for each, since prompts of
    /// these traces are long and prefill gains nothing by company; of buffers of 0, 0.1, 0.25, 0.5 and 1 the last
    /// (`sim day --seeds 4 --loads 70 --slots N --buffer B`).
    pub const BEST: Self = Self {
        slots: 6,
        buffer: 1.0,
    };
}

/// What is known of a machine when a request is routed.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub node: NodeId,
    /// Whether camera or microphone are in use.
    pub calls: bool,
    /// Whether the processor is busy with other things.
    pub builds: bool,
    /// Tokens of the prompt's beginning that it was asked for lately.
    pub warm: u32,
}

#[derive(Debug, Clone, Default)]
struct Latencies {
    /// Seconds until the first token, of streams.
    first: VecDeque<f64>,
    /// Seconds a token of the answer.
    each: VecDeque<f64>,
    /// Seconds of whole answers.
    whole: VecDeque<f64>,
}

struct Asked {
    node: NodeId,
    class: Class,
    at: u64,
    first: Option<u64>,
}

/// A gateway in front of all machines.
pub struct Router {
    policy: Policy,
    tuning: Tuning,
    /// Kind and memory bandwidth in GB/s.
    machines: BTreeMap<NodeId, (MachineRole, f64)>,
    /// Whose request it is.
    owners: BTreeMap<u64, NodeId>,
    asked: BTreeMap<u64, Asked>,
    latencies: BTreeMap<(Class, NodeId), Latencies>,
    /// Since when latencies of a class are kept.
    since: BTreeMap<Class, u64>,
    count: u64,
}

impl Router {
    pub fn new(policy: Policy, tuning: Tuning, machines: BTreeMap<NodeId, (MachineRole, f64)>) -> Self {
        Self {
            policy,
            tuning,
            machines,
            owners: BTreeMap::new(),
            asked: BTreeMap::new(),
            latencies: BTreeMap::new(),
            since: BTreeMap::new(),
            count: 0,
        }
    }

    /// A request of this person's machine.
    pub fn enters(&mut self, number: u64, owner: NodeId) {
        self.owners.insert(number, owner);
    }

    pub fn asked(&mut self, node: NodeId, number: u64, class: Class, now: u64) {
        self.count += 1;
        let asked = Asked {
            node,
            class,
            at: now,
            first: None,
        };
        self.asked.insert(number, asked);
    }

    pub fn heard(&mut self, number: u64, event: &GenerationEvent, now: u64) {
        if let (GenerationEvent::Chunk(_), Some(asked)) = (event, self.asked.get_mut(&number)) {
            asked.first.get_or_insert(now);
        }
    }

    /// Its client went away.
    pub fn given_up(&mut self, number: u64) {
        self.owners.remove(&number);
        self.asked.remove(&number);
    }

    pub fn ended(&mut self, number: u64, event: &GenerationEvent, now: u64) {
        self.owners.remove(&number);
        let Some(asked) = self.asked.remove(&number) else {
            return;
        };
        let GenerationEvent::Finished { accounting, .. } = event else {
            return;
        };
        let since = self.since.entry(asked.class).or_insert(now);
        if now >= *since + FORGET {
            // Those of a group of deployments go together.
            *since = now;
            for (_, known) in self
                .latencies
                .iter_mut()
                .filter(|((class, _), _)| *class == asked.class)
            {
                known.first.clear();
                known.each.clear();
            }
        }
        let known = self.latencies.entry((asked.class, asked.node)).or_default();
        let seconds = |until: u64| (until - asked.at) as f64 / 1000.0;
        let push = |list: &mut VecDeque<f64>, most: usize, value: f64| {
            list.push_back(value);
            if list.len() > most {
                list.pop_front();
            }
        };
        if let Some(first) = asked.first {
            push(&mut known.first, SAMPLES, seconds(first));
        }
        let tokens = f64::from(accounting.completion_tokens.max(1));
        push(&mut known.each, SAMPLES, seconds(now) / tokens);
        push(&mut known.whole, HERD_SAMPLES, seconds(now));
    }

    /// Who is asked, the best first.
    pub fn order(&self, generation: &Generation, seen: &[Seen]) -> Vec<NodeId> {
        let owner = self.owners.get(&(generation.request.bits() as u64)).copied();
        // Of equals the first of a list in which an operator has the rack and then the fastest first.
        let mut nodes: Vec<Seen> = seen.to_vec();
        nodes.sort_by(|a, b| self.place(a.node).total_cmp(&self.place(b.node)));
        let mut asked: BTreeMap<NodeId, u32> = BTreeMap::new();
        for one in self.asked.values().filter(|one| one.class == generation.class) {
            *asked.entry(one.node).or_default() += 1;
        }
        let asked = |node: NodeId| asked.get(&node).copied().unwrap_or(0);
        let least_busy = |nodes: &mut Vec<Seen>| nodes.sort_by_key(|one| asked(one.node));
        match self.policy {
            Policy::Pomona => {}
            Policy::Local => nodes.retain(|one| Some(one.node) == owner),
            Policy::Split if generation.class == Class::Interactive => {
                nodes.retain(|one| Some(one.node) == owner);
            }
            Policy::Split => {
                nodes.retain(|one| self.role(one.node) == MachineRole::Rack);
                least_busy(&mut nodes);
            }
            Policy::RoundRobin => {
                let first = self.count as usize % nodes.len().max(1);
                nodes.rotate_left(first);
            }
            Policy::LeastBusy => least_busy(&mut nodes),
            Policy::Sticky => {
                least_busy(&mut nodes);
                nodes.sort_by_key(|one| Reverse(if one.warm < PROMPT { 0 } else { one.warm }));
            }
            Policy::Latency => self.by_latency(generation.class, &mut nodes),
            Policy::Score => {
                nodes.retain(|one| !one.calls);
                let score = |one: &Seen| self.score(generation.class, one, asked(one.node));
                nodes.sort_by(|a, b| score(b).total_cmp(&score(a)));
            }
        }
        nodes.into_iter().map(|one| one.node).collect()
    }

    /// Its place in an operator's list.
    fn place(&self, node: NodeId) -> f64 {
        let (role, bandwidth) = self.machines.get(&node).copied().unwrap_or_default();
        let behind = if role == MachineRole::Rack { 0.0 } else { 1e6 };
        behind - bandwidth
    }

    fn role(&self, node: NodeId) -> MachineRole {
        self.machines
            .get(&node)
            .map(|(role, _)| *role)
            .unwrap_or_default()
    }

    /// The mean of the last latencies, of streams to the first token, else a token; who has none counts as
    /// nought. One of those within the buffer of the best at random, then the others.
    fn by_latency(&self, class: Class, nodes: &mut Vec<Seen>) {
        let mean = |one: &Seen| {
            let known = self.latencies.get(&(class, one.node));
            let list = known.map(|known| match class {
                Class::Interactive => &known.first,
                Class::Background | Class::Batch => &known.each,
            });
            let list = list.filter(|list| !list.is_empty());
            list.map_or(0.0, |list| list.iter().sum::<f64>() / list.len() as f64)
        };
        let best = nodes.iter().map(mean).fold(f64::INFINITY, f64::min);
        let limit = best * (1.0 + self.tuning.buffer);
        let (mut within, mut others): (Vec<Seen>, Vec<Seen>) =
            nodes.iter().partition(|one| mean(one) <= limit);
        if !within.is_empty() {
            let drawn = Random::new(self.count).draw() as usize;
            let first = drawn % within.len();
            within.rotate_left(first);
        }
        others.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
        *nodes = within.into_iter().chain(others).collect();
    }

    /// As `fleet_manager/server/scorer.py` has it, for a model that is loaded everywhere: of its terms those that
    /// differ between machines. Its rebalancer of waiting requests is left out, and that a machine is passed over after
    /// two minutes of a busy processor.
    fn score(&self, class: Class, one: &Seen, asked: u32) -> f64 {
        let mut bandwidths: Vec<f64> = self.machines.values().map(|(_, bandwidth)| *bandwidth).collect();
        bandwidths.sort_by(f64::total_cmp);
        let median = bandwidths.get(bandwidths.len() / 2).copied().unwrap_or(1.0);
        let bandwidth = self
            .machines
            .get(&one.node)
            .map_or(median, |(_, bandwidth)| *bandwidth);
        let queued = f64::from(asked);
        let queue = -(6.0 * queued / (bandwidth / median).clamp(0.25, 4.0)).min(30.0);
        let whole = self.latencies.get(&(class, one.node)).map(|known| &known.whole);
        let percentile =
            whole
                .filter(|whole| !whole.is_empty())
                .map_or(100.0 / (1.2 * bandwidth).max(10.0), |whole| {
                    let mut sorted: Vec<f64> = whole.iter().copied().collect();
                    sorted.sort_by(f64::total_cmp);
                    sorted[(sorted.len() * 3 / 4).min(sorted.len() - 1)]
                });
        let wait = -(queued * percentile / 10.0).min(25.0);
        let by_bandwidth = (5.0 + bandwidth / 40.0).min(25.0);
        // Models below 8 GB belong on small machines.
        let role = (18.0 - 0.6 * by_bandwidth).max(3.0);
        let busy = if one.builds { 0.9 } else { 0.1 };
        // Racks have nobody whose use of them would be learnt.
        let available = match self.role(one.node) {
            MachineRole::Laptop => 10.0 * (0.84 - 0.68 * busy),
            MachineRole::Rack | MachineRole::Rented => 0.0,
        };
        queue + wait + role + available
    }
}
