//! Many hours of trouble, and what broke: of eight seeds, seven are minutes in which everything happens at once
//! ([`trouble`]), and one the better part of an hour for what takes its time ([`gates`]).

use serde::Serialize;

use crate::client::{Client, End};
use crate::side_by_side::side_by_side;
use crate::world::World;
use crate::{gates, trouble};

/// What came of some runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Faults {
    /// Of simulated time, and of that hours of gates, in which less else happens.
    pub hours: f64,
    pub hours_of_gates: f64,
    /// The first seed, and how many there were.
    pub first: u64,
    pub seeds: u64,
    pub answers: usize,
    pub finished: usize,
    /// Answers that ended with an error before anything of them had come: nobody had room, or was in reach.
    pub refused: usize,
    /// Answers that their clients gave up, or that went with their entry: it was killed.
    pub left: usize,
    /// Answers that ended with an error after they had moved as often as one may.
    pub unlucky: usize,
    /// Engines that were wedged, and found so.
    pub wedged: u64,
    /// Steps of the offload ladder.
    pub rungs: usize,
    /// Transitions of gates.
    pub gates: u64,
    /// Requests that the log let out to a cloud, and those that it refused.
    pub spills: (usize, usize),
    /// Promises that were broken, each with its seed: the first ones.
    pub broken: Vec<(u64, String)>,
}

fn hours(ms: u64) -> f64 {
    ms as f64 / 3_600_000.0
}

/// What is judged of every seed: each that is broken is in [`Faults::broken`], by name.
pub const PROMISED: [&str; 9] = [
    "no interactive answer leaves a node that is well: has the model, is cool, and has no build beside it",
    "nothing is planned past the memory reserve, or onto a node that drains",
    "nothing goes to a cloud without an approval, past a ceiling, or though it is private",
    "no node swings: down a rung and up again within the ladder's times",
    "no batch answer that has begun is lost",
    "every token of every answer comes once, in its order",
    "every gate trips, escalates and clears in its time, and no other does",
    "what keys are charged is what was told, once",
    "when trouble is over all coordinators agree, the plan rests, and nobody works for nobody",
];

/// So many broken promises are told.
const TOLD: usize = 20;

/// One seed in so many is of gates.
const OF_GATES: u64 = 8;

fn is_of_gates(seed: u64) -> bool {
    seed % OF_GATES == OF_GATES - 1
}

/// Milliseconds of this seed's run.
fn length(seed: u64) -> u64 {
    if is_of_gates(seed) {
        gates::LENGTH
    } else {
        trouble::LENGTH
    }
}

/// How many seeds from this one on make so many hours.
pub fn seeds_of(hours: f64, first: u64) -> u64 {
    let (mut left, mut seed) = (hours * 3_600_000.0, first);
    while left > 0.0 {
        left -= length(seed) as f64;
        seed += 1;
    }
    seed - first
}

/// One seed's run, and what broke in it.
pub fn run_one(seed: u64) -> (World, Vec<String>) {
    let world = match is_of_gates(seed) {
        true => gates::run(seed / OF_GATES),
        false => trouble::run(seed),
    };
    let broken = trouble::broken(&world);
    (world, broken)
}

/// What came of each of these seeds; stops at the first that breaks a promise if that is wanted. `heard` is told how many
/// are done.
///
/// # Errors
/// A run panicked.
pub fn run(
    seeds: std::ops::Range<u64>,
    until_broken: bool,
    heard: impl Fn(usize) + Sync,
) -> anyhow::Result<Vec<Faults>> {
    let of_seed = |seed| Ok(Faults::of(seed));
    let mut runs = side_by_side(seeds, of_seed, |done, run| {
        heard(done);
        !until_broken || run.broken.is_empty()
    })?;
    runs.sort_by_key(|run| run.first);
    Ok(runs)
}

impl Faults {
    fn of(seed: u64) -> Self {
        let (world, broken) = run_one(seed);
        let ended = |is_so: &dyn Fn(&Client) -> bool| {
            let clients = world.clients.values();
            clients.filter(|client| is_so(client)).count()
        };
        let ends = |end| ended(&|client| client.end == Some(end));
        Self {
            first: seed,
            seeds: 1,
            hours: hours(length(seed)),
            hours_of_gates: if is_of_gates(seed) {
                hours(length(seed))
            } else {
                0.0
            },
            answers: world.clients.len(),
            finished: ends(End::Finished),
            refused: ended(&|client| {
                client.got == 0 && matches!(client.end, Some(End::Failed { moves }) if moves < 3)
            }),
            left: ends(End::WithEntry) + ends(End::GivenUp),
            unlucky: ends(End::Failed { moves: 3 }),
            wedged: world.nodes.iter().map(|node| node.wedged).sum(),
            rungs: world.rungs.len(),
            gates: world.gates_passed(),
            spills: (world.book.let_out, world.book.refused),
            broken: broken.into_iter().map(|text| (seed, text)).collect(),
        }
    }

    /// All of them together.
    pub fn of_all(runs: &[Self]) -> Self {
        let first = runs.first().map_or(0, |run| run.first);
        runs.iter().cloned().fold(
            Self {
                first,
                ..Self::default()
            },
            Self::and,
        )
    }

    fn and(mut self, other: Self) -> Self {
        self.hours += other.hours;
        self.hours_of_gates += other.hours_of_gates;
        self.seeds += other.seeds;
        self.answers += other.answers;
        self.finished += other.finished;
        self.refused += other.refused;
        self.left += other.left;
        self.unlucky += other.unlucky;
        self.wedged += other.wedged;
        self.rungs += other.rungs;
        self.gates += other.gates;
        self.spills.0 += other.spills.0;
        self.spills.1 += other.spills.1;
        let room = TOLD.saturating_sub(self.broken.len());
        self.broken.extend(other.broken.into_iter().take(room));
        self
    }
}
