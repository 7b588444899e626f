//! Many hours of trouble, and what broke.

use serde::Serialize;

use crate::client::End;
use crate::side_by_side::side_by_side;
use crate::trouble;

/// What came of some runs.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Faults {
    /// Of simulated time.
    pub hours: f64,
    pub seeds: u64,
    pub answers: usize,
    pub finished: usize,
    /// Answers that ended with an error after they had moved as often as one may.
    pub unlucky: usize,
    /// Steps of the offload ladder.
    pub rungs: usize,
    /// Promises that were broken, each with its seed: the first ones.
    pub broken: Vec<(u64, String)>,
}

/// So many broken promises are told.
const TOLD: usize = 20;

/// Runs these seeds; stops at the first that breaks a promise if that is wanted. `heard` is told how many are done.
///
/// # Errors
/// A run panicked.
pub fn run(
    seeds: std::ops::Range<u64>,
    until_broken: bool,
    heard: impl Fn(usize) + Sync,
) -> anyhow::Result<Faults> {
    let of_seed = |seed| Ok(Faults::of(seed));
    let mut runs = side_by_side(seeds, of_seed, |done, run| {
        heard(done);
        !until_broken || run.broken.is_empty()
    })?;
    runs.sort_by_key(|run| run.broken.first().map(|(seed, _)| *seed));
    Ok(runs.into_iter().fold(Faults::default(), Faults::and))
}

impl Faults {
    fn of(seed: u64) -> Self {
        let world = trouble::run(seed);
        let ends = |end| {
            let clients = world.clients.values();
            clients.filter(|client| client.end == Some(end)).count()
        };
        Self {
            hours: trouble::LENGTH as f64 / 3_600_000.0,
            seeds: 1,
            answers: world.clients.len(),
            finished: ends(End::Finished),
            unlucky: ends(End::Failed { moves: 3 }),
            rungs: world.rungs.len(),
            broken: trouble::broken(&world)
                .into_iter()
                .map(|text| (seed, text))
                .collect(),
        }
    }

    fn and(mut self, other: Self) -> Self {
        self.hours += other.hours;
        self.seeds += other.seeds;
        self.answers += other.answers;
        self.finished += other.finished;
        self.unlucky += other.unlucky;
        self.rungs += other.rungs;
        let room = TOLD.saturating_sub(self.broken.len());
        self.broken.extend(other.broken.into_iter().take(room));
        self
    }
}
