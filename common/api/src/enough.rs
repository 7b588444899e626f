//! Saying that no more of an answer is wanted, while its account still is: a stop string has come.

use tokio::sync::oneshot;

/// Says it.
#[derive(Debug)]
pub struct Enough(Option<oneshot::Sender<()>>);

/// Hears it.
#[derive(Debug)]
pub struct Unwanted(Option<oneshot::Receiver<()>>);

/// Both ends for one answer.
#[must_use]
pub fn enough() -> (Enough, Unwanted) {
    let (say, hear) = oneshot::channel();
    (Enough(Some(say)), Unwanted(Some(hear)))
}

impl Enough {
    /// Whoever makes the answer ends it, and says in its last event what it took; unless it has ended already, or is an
    /// older peer that only dropping the answer stops. Once is enough.
    pub fn say(&mut self) {
        if let Some(say) = self.0.take() {
            // Nobody hears it when the last event is there.
            let _ = say.send(());
        }
    }

    /// Whether it was said.
    pub fn is_said(&self) -> bool {
        self.0.is_none()
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
