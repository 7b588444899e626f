//! Saying that no more of an answer is wanted, while its account still is: a stop string has come.

use tokio::sync::oneshot;

/// Says it.
#[derive(Debug)]
pub struct Enough(oneshot::Sender<()>);

/// Hears it.
#[derive(Debug)]
pub struct Unwanted(Option<oneshot::Receiver<()>>);

/// Both ends for one answer.
#[must_use]
pub fn enough() -> (Enough, Unwanted) {
    let (say, hear) = oneshot::channel();
    (Enough(say), Unwanted(Some(hear)))
}

impl Enough {
    /// Whether whoever makes the answer hears it: it ends the answer then, and its last event says what it took.
    /// Otherwise only dropping the answer ends it.
    pub fn say(self) -> bool {
        self.0.send(()).is_ok()
    }
}

impl Unwanted {
    /// Comes back once it was said; never where it was not, or was heard before. Cancel-safe.
    pub async fn said(&mut self) {
        if let Some(hear) = &mut self.0 {
            let said = hear.await.is_ok();
            self.0 = None;
            if said {
                return;
            }
        }
        std::future::pending().await
    }
}
