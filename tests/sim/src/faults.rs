//! Many hours of trouble, and what broke.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::client::End;
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

/// Runs these seeds, two at a time; stops at the first that breaks a promise if that is wanted. `done` hears of each.
///
/// # Errors
/// A run panicked.
pub fn run(
    seeds: std::ops::Range<u64>,
    until_broken: bool,
    done: &(dyn Fn(u64) + Sync),
) -> anyhow::Result<Faults> {
    let (next, all): (AtomicU64, Mutex<Faults>) = (AtomicU64::new(seeds.start), Mutex::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let world = trouble::run(seed);
            let broken = trouble::broken(&world);
            let Ok(mut all) = all.lock() else { return };
            all.hours += trouble::LENGTH as f64 / 3_600_000.0;
            all.seeds += 1;
            all.answers += world.clients.len();
            let ends = || world.clients.values().filter_map(|client| client.end);
            all.finished += ends().filter(|end| *end == End::Finished).count();
            all.unlucky += ends().filter(|end| *end == End::Failed { moves: 3 }).count();
            all.rungs += world.rungs.len();
            let room = TOLD.saturating_sub(all.broken.len());
            all.broken
                .extend(broken.into_iter().take(room).map(|text| (seed, text)));
            if until_broken && !all.broken.is_empty() {
                next.store(seeds.end, Ordering::Relaxed);
            }
            done(all.seeds);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        let joined = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.collect::<Result<Vec<()>, _>>()
    })
    .map_err(|_| anyhow::anyhow!("a run panicked"))?;
    all.into_inner().map_err(|_| anyhow::anyhow!("a run panicked"))
}
