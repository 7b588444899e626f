//! How coordinators want this node to work: how far it is relieved of batch work, and what the cluster agrees on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pomona_common::{Fallbacks, KnobSet, Relief, SloSet, Versioned, Watts};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Without news from any coordinator for so long nobody is there who would let the node go again: it
/// does what it is asked for.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// See the module's documentation.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Instructions {
    pub(crate) relief: Relief,
    /// Power up to which the machine's person finds it comfortable, if anybody minds.
    pub(crate) comfort: Option<Watts>,
    pub(crate) agreed: Agreed,
}

/// What the cluster agrees on; none of what the node's configuration, or the program, still decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Agreed {
    /// How engines work.
    pub(crate) knobs: Option<KnobSet>,
    /// Where requests go.
    pub(crate) fallbacks: Option<Fallbacks>,
    /// How much may wait, and how answers are to come.
    pub(crate) slos: Option<SloSet>,
}

/// A handle on them; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Instructed {
    told: Arc<Mutex<Told>>,
    now: watch::Sender<Instructions>,
}

#[derive(Debug)]
struct Told {
    /// Index of the log of whoever said so.
    applied: u64,
    comfort_applied: u64,
    /// When a coordinator was last in reach.
    reached: Instant,
    /// What was on disk and no coordinator has said anything about since.
    from_disk: Agreed,
}

impl Instructed {
    pub(crate) fn new() -> Self {
        Self {
            told: Arc::new(Mutex::new(Told {
                applied: 0,
                comfort_applied: 0,
                reached: Instant::now(),
                from_disk: Agreed::default(),
            })),
            now: watch::Sender::new(Instructions::default()),
        }
    }

    /// A coordinator that knows the log up to `applied` says how far it is relieved.
    pub(crate) fn relieve(&self, applied: u64, relief: Relief) {
        let mut told = self.told();
        // One that lags behind knows no better.
        if applied < told.applied {
            return;
        }
        told.applied = applied;
        told.reached = Instant::now();
        let changed = self
            .now
            .send_if_modified(|now| std::mem::replace(&mut now.relief, relief) != relief);
        if changed {
            tracing::info!(rung = %relief.rung, "relieved of batch work");
        }
    }

    /// A coordinator that knows the log up to `applied` says what is comfortable here.
    pub(crate) fn set_comfort(&self, applied: u64, watts: Option<Watts>) {
        let mut told = self.told();
        if applied < told.comfort_applied {
            return;
        }
        told.comfort_applied = applied;
        self.now
            .send_if_modified(|now| std::mem::replace(&mut now.comfort, watts) != watts);
    }

    /// Begins with what was on disk.
    pub(crate) fn resume(&self, agreed: Agreed) {
        self.told().from_disk = agreed.clone();
        self.now.send_modify(|now| now.agreed = agreed);
    }

    /// A coordinator says what the cluster agrees on; of several sets the newest counts.
    pub(crate) fn agree<T: Versioned>(&self, of: impl Fn(&mut Agreed) -> &mut Option<T>, set: T) {
        // Held until it is said: of two coordinators at once only one is the first.
        let mut told = self.told();
        let is_first = of(&mut told.from_disk).take().is_some();
        let version = set.version();
        if self
            .now
            .send_if_modified(|now| learn(of(&mut now.agreed), set, is_first))
        {
            tracing::info!(version, "{} of the cluster", T::NAME);
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The instructions, and news of them.
    pub(crate) fn watch(&self) -> watch::Receiver<Instructions> {
        self.now.subscribe()
    }

    /// Forgets the relief when nobody has been in reach for long; `in_reach` says whether somebody is.
    pub(crate) async fn run(self, in_reach: impl Fn() -> bool, stopped: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = stopped.cancelled() => return,
            }
            let mut told = self.told();
            if in_reach() {
                told.reached = Instant::now();
            } else if told.reached.elapsed() > FORGOTTEN {
                self.now
                    .send_if_modified(|now| std::mem::take(&mut now.relief) != Relief::default());
            }
        }
    }
}

/// Takes a set for what is known if it is newer, or the first one after what was on disk: the cluster may have
/// been set back meanwhile. Whether it is something else.
fn learn<T: Versioned>(known: &mut Option<T>, set: T, is_first: bool) -> bool {
    if !is_first {
        return set.replace_in(known);
    }
    let is_news = known.as_ref() != Some(&set);
    *known = Some(set);
    is_news
}

#[cfg(test)]
mod tests {
    use pomona_common::{EngineKnobs, Rung};

    use super::*;

    fn to(rung: Rung) -> Relief {
        Relief {
            rung,
            frees_memory: false,
        }
    }

    #[test]
    fn of_several_sets_of_knobs_the_newest_counts() {
        let instructed = Instructed::new();
        let set = |version| KnobSet {
            version,
            ..KnobSet::of(&EngineKnobs::default())
        };
        for version in [2, 1, 3, 3] {
            instructed.agree(|agreed| &mut agreed.knobs, set(version));
        }
        let now = instructed.watch().borrow().clone();
        assert_eq!(now.agreed.knobs.map(|set| set.version), Some(3));
    }

    #[test]
    fn the_first_word_counts_more_than_what_was_on_disk() {
        let instructed = Instructed::new();
        let lists = |version| Fallbacks {
            version,
            ..Fallbacks::default()
        };
        let version = || {
            let now = instructed.watch().borrow().clone();
            now.agreed.fallbacks.map(|lists| lists.version)
        };
        instructed.resume(Agreed {
            fallbacks: Some(lists(9)),
            ..Agreed::default()
        });
        assert_eq!(version(), Some(9));
        // The cluster was set back; after that the newest counts again.
        for (said, known) in [(4, 4), (3, 4), (5, 5)] {
            instructed.agree(|agreed| &mut agreed.fallbacks, lists(said));
            assert_eq!(version(), Some(known));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_word_counts_until_nobody_is_there() {
        let instructed = Instructed::new();
        let now = instructed.watch();
        instructed.relieve(7, to(Rung::Pause));
        instructed.relieve(5, to(Rung::Normal));
        assert_eq!(
            now.borrow().relief.rung,
            Rung::Pause,
            "one that lags behind knows no better"
        );
        let stop = CancellationToken::new();
        let looks = instructed.clone().run(|| false, stop.clone());
        let ends = async {
            tokio::time::sleep(FORGOTTEN - LOOK).await;
            assert_eq!(now.borrow().relief.rung, Rung::Pause);
            tokio::time::sleep(3 * LOOK).await;
            assert_eq!(now.borrow().relief.rung, Rung::Normal);
            stop.cancel();
        };
        tokio::join!(looks, ends);
    }
}
