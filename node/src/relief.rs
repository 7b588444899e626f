//! How far this node is relieved of batch work, as coordinators say.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pomona_common::Relief;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Without news from any coordinator for so long nobody is there who would let the node go again: it
/// does what it is asked for.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// A handle on it; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Relieved {
    told: Arc<Mutex<Told>>,
    relief: watch::Sender<Relief>,
}

#[derive(Debug)]
struct Told {
    /// Index of the log of whoever said so.
    applied: u64,
    /// When a coordinator was last in reach.
    reached: Instant,
}

impl Relieved {
    pub(crate) fn new() -> Self {
        Self {
            told: Arc::new(Mutex::new(Told {
                applied: 0,
                reached: Instant::now(),
            })),
            relief: watch::Sender::new(Relief::default()),
        }
    }

    /// A coordinator that knows the log up to `applied` says it.
    pub(crate) fn learn(&self, applied: u64, relief: Relief) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        // One that lags behind knows no better.
        if applied < told.applied {
            return;
        }
        told.applied = applied;
        told.reached = Instant::now();
        let changed = self.relief.send_if_modified(|known| {
            let changed = *known != relief;
            *known = relief;
            changed
        });
        if changed {
            tracing::info!(rung = %relief.rung, "relieved of batch work");
        }
    }

    /// How far it is, and news of it.
    pub(crate) fn watch(&self) -> watch::Receiver<Relief> {
        self.relief.subscribe()
    }

    /// Forgets what was said when nobody has been in reach for long; `in_reach` says whether somebody is.
    pub(crate) async fn run(self, in_reach: impl Fn() -> bool, stopped: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stopped.cancelled() => return,
            }
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if in_reach() {
                told.reached = Instant::now();
            } else if told.reached.elapsed() > FORGOTTEN {
                self.relief
                    .send_if_modified(|relief| std::mem::take(relief) != Relief::default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pomona_common::Rung;

    use super::*;

    fn to(rung: Rung) -> Relief {
        Relief {
            rung,
            frees_memory: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_word_counts_until_nobody_is_there() {
        let relieved = Relieved::new();
        let now = relieved.watch();
        relieved.learn(7, to(Rung::Pause));
        relieved.learn(5, to(Rung::Normal));
        assert_eq!(
            now.borrow().rung,
            Rung::Pause,
            "one that lags behind knows no better"
        );
        let stop = CancellationToken::new();
        let looks = relieved.clone().run(|| false, stop.clone());
        let ends = async {
            tokio::time::sleep(FORGOTTEN - LOOK).await;
            assert_eq!(now.borrow().rung, Rung::Pause);
            tokio::time::sleep(3 * LOOK).await;
            assert_eq!(now.borrow().rung, Rung::Normal);
            stop.cancel();
        };
        tokio::join!(looks, ends);
    }
}
