//! What finds no free place is held at the entry that its client asked, as long as the list of its class says:
//! there the whole list is tried again, and a client that leaves is noticed at once.

use std::sync::OnceLock;
use std::time::Duration;

use pomona_api::GenerationStream;
use pomona_common::{Class, Failure, Fallback, limits};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::carry::is_last_word;

/// First time between two tries.
const FIRST: Duration = Duration::from_millis(100);

/// Longest time between two tries: each carries the whole prompt, and for batch nobody waits.
const fn longest_pause(class: Class) -> Duration {
    match class {
        Class::Interactive | Class::Background => Duration::from_secs(1),
        Class::Batch => Duration::from_secs(5),
    }
}

/// Room for what is held at one entry, by class, so that batch keeps nobody else out.
#[derive(Debug)]
pub struct Waiting([Semaphore; Class::ALL.len()]);

impl Default for Waiting {
    fn default() -> Self {
        Self(Class::ALL.map(|_| Semaphore::new(limits::QUEUE.capacity)))
    }
}

impl Waiting {
    /// Asks machines, and the clouds of the list when none of them answers; what finds no free place is held, and
    /// asked again. `clouds` is how they are asked, or why none may be. One that was asked is not asked for the same
    /// again: it may want to be paid for each time.
    ///
    /// # Errors
    /// What machines say, as [`hold`](Self::hold), with why no cloud answers either.
    pub async fn hold_or_spill<M, C>(
        &self,
        (class, list): (Class, &Fallback),
        machines: impl Fn() -> M,
        clouds: Result<impl Fn() -> C, &'static str>,
    ) -> Result<GenerationStream, Failure>
    where
        M: Future<Output = Result<GenerationStream, Failure>>,
        C: Future<Output = Result<GenerationStream, Failure>>,
    {
        // Whoever was asked, and why they do not answer.
        let done: OnceLock<String> = OnceLock::new();
        let ask = || async {
            let failure = match machines().await {
                Err(failure) if failure.may_spill() && list.clouds().next().is_some() => failure,
                answered => return answered,
            };
            let why = match (&clouds, done.get()) {
                (Err(why), _) => (*why).to_owned(),
                (Ok(_), Some(why)) => why.clone(),
                (Ok(clouds), None) => match clouds().await {
                    Err(Failure::NoCloud { detail, asked }) => {
                        if asked {
                            let _ = done.set(detail.clone());
                        }
                        detail
                    }
                    Err(Failure::Overloaded {
                        detail,
                        retry_after_s,
                    }) => return Err(failure.and_full_clouds(&detail, retry_after_s)),
                    answered => return answered,
                },
            };
            Err(failure.and_no_cloud(&why))
        };
        self.hold(class, list.hold(), ask).await
    }

    /// Asks, again and again while everybody is at capacity, for at most `hold`.
    ///
    /// # Errors
    /// The last refusal that named a time to come back, else the only one.
    pub async fn hold<F>(
        &self,
        class: Class,
        hold: Duration,
        ask: impl Fn() -> F,
    ) -> Result<GenerationStream, Failure>
    where
        F: Future<Output = Result<GenerationStream, Failure>>,
    {
        let ends = Instant::now() + hold;
        let (mut permit, mut pause) = (None, FIRST);
        let mut full: Option<Failure> = None;
        loop {
            let failure = match ask().await {
                Ok(stream) => return Ok(stream),
                Err(failure) if is_last_word(&failure) => return Err(failure),
                Err(failure) => failure,
            };
            let told = match (failure, full.take()) {
                (failure @ Failure::Overloaded { .. }, _) | (failure, None) => failure,
                // A coordinator that starts anew, say: that passes as well.
                (_, Some(full)) => full,
            };
            let left = ends.saturating_duration_since(Instant::now());
            if !matches!(told, Failure::Overloaded { .. }) || left.is_zero() {
                return Err(told);
            }
            if permit.is_none() {
                let Ok(one) = self.0[class.index()].try_acquire() else {
                    return Err(told);
                };
                permit = Some(one);
            }
            full = Some(told);
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(longest_pause(class));
        }
    }
}

/// Which of two refusals of one request says more of when to come back: a time, and the sooner one.
pub fn hopeful(before: Failure, now: Failure) -> Failure {
    let wait = |failure: &Failure| match failure {
        Failure::Overloaded { retry_after_s, .. } => *retry_after_s,
        _ => u32::MAX,
    };
    if wait(&before) < wait(&now) { before } else { now }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn full(retry_after_s: u32) -> Failure {
        Failure::Overloaded {
            detail: "full".into(),
            retry_after_s,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_full_is_tried_until_the_time_is_up_or_it_is_no_more() {
        let (waiting, hold) = (Waiting::default(), Duration::from_secs(10));
        for (class, tries) in [(Class::Interactive, 5..20), (Class::Batch, 5..10)] {
            let asked = Cell::new(0);
            let began = Instant::now();
            let ask = || async {
                asked.set(asked.get() + 1);
                Err(full(7))
            };
            let outcome = waiting.hold(class, hold, ask).await;
            assert_eq!(outcome.err(), Some(full(7)));
            assert_eq!(began.elapsed(), hold, "{class}");
            assert!(tries.contains(&asked.get()), "{class}: {}", asked.get());
        }
        // Another failure, and no time, are answered at once.
        let began = Instant::now();
        for (hold, failure) in [(hold, Failure::NodeLost), (Duration::ZERO, full(1))] {
            let outcome = waiting
                .hold(Class::Batch, hold, || async { Err(failure.clone()) })
                .await;
            assert_eq!(outcome.err(), Some(failure));
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        // Another failure in between passes, and the time that was told stays.
        let asked = Cell::new(0);
        let ask = || async {
            asked.set(asked.get() + 1);
            Err(if asked.get() == 1 {
                full(7)
            } else {
                Failure::NodeLost
            })
        };
        let outcome = waiting.hold(Class::Batch, hold, ask).await;
        assert_eq!((outcome.err(), began.elapsed()), (Some(full(7)), hold));
    }

    /// Machines stay full, and the cloud has its reason: asked or not, and only when the list names one.
    #[tokio::test(start_paused = true)]
    async fn a_cloud_that_was_asked_is_not_asked_again_while_a_request_is_held() -> Result<(), String> {
        let waiting = Waiting::default();
        let no_cloud = |asked| Failure::NoCloud {
            detail: "it refuses".into(),
            asked,
        };
        for (list, asked, times) in [
            ("rack, cloud:a, pause:3", true, 1..2),
            ("rack, cloud:a, pause:3", false, 3..20),
            ("rack, pause:3", false, 0..1),
        ] {
            let list: Fallback = list.parse()?;
            let count = Cell::new(0);
            let cloud = || async {
                count.set(count.get() + 1);
                Err(no_cloud(asked))
            };
            let machines = || async { Err(full(7)) };
            let outcome = waiting
                .hold_or_spill((Class::Batch, &list), machines, Ok(cloud))
                .await;
            let said = outcome
                .err()
                .map(|failure| failure.to_string())
                .unwrap_or_default();
            assert_eq!(
                said.contains("no cloud answers it either: it refuses"),
                times.end > 1,
                "{said}"
            );
            assert!(times.contains(&count.get()), "{list}: {}", count.get());
        }
        Ok(())
    }

    /// No machine has the model, and the cloud's minute is full: that passes, and its time is told.
    #[tokio::test(start_paused = true)]
    async fn a_cloud_that_has_room_again_is_waited_for() -> Result<(), String> {
        let list: Fallback = "rack, cloud:a, pause:3".parse()?;
        let (waiting, began) = (Waiting::default(), Instant::now());
        let cloud = || async {
            Err(Failure::Overloaded {
                detail: "cloud:a: its minute is full".into(),
                retry_after_s: 12,
            })
        };
        for (machines, soonest) in [
            (
                Failure::ModelNotLoaded {
                    model: "m".into(),
                    detail: "no room".into(),
                },
                12,
            ),
            (full(30), 12),
            (full(7), 7),
        ] {
            let machines = || async { Err(machines.clone()) };
            let outcome = waiting
                .hold_or_spill((Class::Batch, &list), machines, Ok(cloud))
                .await;
            let Err(Failure::Overloaded {
                detail,
                retry_after_s,
            }) = outcome
            else {
                return Err("it is at capacity".into());
            };
            assert_eq!(retry_after_s, soonest);
            assert!(detail.contains("its minute is full"), "{detail}");
        }
        assert_eq!(began.elapsed(), Duration::from_secs(9));
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_held_than_there_is_room_for() {
        let waiting = Waiting::default();
        let all = waiting.0[Class::Batch.index()].try_acquire_many(limits::QUEUE.capacity as u32);
        assert!(all.is_ok());
        let (began, hold) = (Instant::now(), Duration::from_secs(3));
        for (class, held) in [(Class::Batch, Duration::ZERO), (Class::Interactive, hold)] {
            let outcome = waiting.hold(class, hold, || async { Err(full(1)) }).await;
            assert!(outcome.is_err());
            assert_eq!(began.elapsed(), held, "{class}");
        }
    }

    #[test]
    fn the_soonest_time_is_told() {
        assert_eq!(hopeful(full(60), full(5)), full(5));
        assert_eq!(hopeful(full(5), full(60)), full(5));
        assert_eq!(hopeful(full(5), Failure::NodeLost), full(5));
        assert_eq!(hopeful(Failure::NodeLost, full(5)), full(5));
        assert_eq!(
            hopeful(Failure::NodeLost, Failure::EngineLost),
            Failure::EngineLost
        );
    }
}
