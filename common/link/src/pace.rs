//! How fast weights may go: as fast as they can while nobody waits for tokens, and at a fixed rate
//! while somebody does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes a second while the engine works: a third of a gigabit link, and little of a core.
const BUSY_BYTES_S: f64 = 40.0 * 1024.0 * 1024.0;

/// Shorter waits are added up.
const SHORTEST: Duration = Duration::from_millis(5);

/// See the module's documentation. Clones share the rate.
#[derive(Clone)]
pub struct Pace(Arc<Inner>);

struct Inner {
    is_busy: Box<dyn Fn() -> bool + Send + Sync>,
    /// When the bytes that were let through so far are paid for.
    paid: Mutex<Instant>,
}

impl Pace {
    /// Asks `is_busy` before every chunk.
    pub fn new(is_busy: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            is_busy: Box::new(is_busy),
            paid: Mutex::new(Instant::now()),
        }))
    }

    /// Waits until this many bytes may go.
    pub async fn admit(&self, bytes: usize) {
        if !(self.0.is_busy)() {
            return;
        }
        let wait = {
            let mut paid = self.0.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            let begin = (*paid).max(now);
            *paid = begin + Duration::from_secs_f64(bytes as f64 / BUSY_BYTES_S);
            begin - now
        };
        // Timers are no finer: many small pieces would each wait for one.
        if wait >= SHORTEST {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn small_pieces_go_as_fast_as_large_ones() {
        let pace = Pace::new(|| true);
        let began = Instant::now();
        for _ in 0..(8 << 20) / 2048 {
            pace.admit(2048).await;
        }
        let took = began.elapsed();
        assert!((150..400).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test]
    async fn a_busy_engine_slows_weights_down_and_an_idle_one_does_not() {
        let took = |busy: bool| async move {
            let pace = Pace::new(move || busy);
            let began = Instant::now();
            for _ in 0..5 {
                pace.admit(4 << 20).await;
            }
            began.elapsed()
        };
        assert!(took(false).await < Duration::from_millis(100));
        // The first goes at once, each of the others waits a tenth of a second.
        assert!(took(true).await >= Duration::from_millis(395));
    }
}
