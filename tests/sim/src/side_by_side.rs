//! Runs that know nothing of each other, two at a time.

use std::sync::{Mutex, PoisonError};

/// Threads: one a core of the smallest machine that runs this.
pub const AT_ONCE: usize = 2;

/// What each of these jobs comes to, in the order in which they end. `heard` is told how many have, with the latest,
/// and says whether to go on.
///
/// # Errors
/// A job failed, or panicked.
pub fn side_by_side<J: Send, R: Send>(
    jobs: impl Iterator<Item = J> + Send,
    run: impl Fn(J) -> anyhow::Result<R> + Sync,
    heard: impl Fn(usize, &R) -> bool + Sync,
) -> anyhow::Result<Vec<R>> {
    // None when nothing more is to be begun.
    let left = Mutex::new(Some(jobs));
    let done: Mutex<Vec<R>> = Mutex::default();
    let work = || -> anyhow::Result<()> {
        loop {
            let mut jobs = left.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(job) = jobs.as_mut().and_then(Iterator::next) else {
                return Ok(());
            };
            drop(jobs);
            let outcome = run(job)?;
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            if !heard(done.len() + 1, &outcome) {
                *left.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            done.push(outcome);
        }
    };
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a run panicked"))??;
        }
        Ok(())
    })?;
    Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
}
