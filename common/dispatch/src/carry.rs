//! One answer over as many places as it takes.

use std::fmt::Debug;
use std::time::Duration;

use pomona_api::GenerationStream;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Failure, Generation, limits};
use pomona_decide::{Next, Relay};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::promise::Promise;

/// An answer whose place is lost waits this long for another one. The client hears keep-alives
/// meanwhile.
const REPLACE: Duration = Duration::from_secs(12);
/// Between two looks for one.
const LOOK: Duration = Duration::from_millis(200);

/// Where answers can be made.
pub trait Places: Send + Sync + 'static {
    /// One of them.
    type Place: Copy + Eq + Debug + Send + Sync;

    /// Asks places until one promises; those in `avoid` last.
    fn place(
        &self,
        generation: &Generation,
        avoid: &[Self::Place],
    ) -> impl Future<Output = Result<(Self::Place, Promise), Failure>> + Send;

    /// Whether a place has tried others by itself before it gives an answer up.
    fn tries_others(place: Self::Place) -> bool;
}

/// Starts an answer; it moves to another place by itself when its own is lost.
///
/// # Errors
/// Every place refused.
pub async fn generate<P: Places>(places: P, generation: Generation) -> Result<GenerationStream, Failure> {
    let (place, promise) = places.place(&generation, &[]).await?;
    let node = promise.node;
    let (sender, events) = mpsc::channel(limits::STREAM_EVENTS);
    let relay = Relay::new(generation, place, node);
    #[expect(clippy::disallowed_methods, reason = "ends with either end of the stream")]
    tokio::spawn(carry(places, promise, relay, sender));
    Ok(GenerationStream { node, events })
}

/// Whether every place would say the same.
pub fn is_last_word(failure: &Failure) -> bool {
    matches!(failure, Failure::Invalid { .. })
}

/// Passes an answer's events on until its end. When the client goes away, dropping the promise
/// tells whoever makes it at once.
async fn carry<P: Places>(
    places: P,
    mut promise: Promise,
    mut relay: Relay<P::Place>,
    sender: mpsc::Sender<GenerationEvent>,
) {
    loop {
        let next = tokio::select! {
            event = promise.next() => match event {
                // One that kills engines must not do so everywhere, once more for every place.
                Some(event @ GenerationEvent::Failed(Failure::EngineLost)) if P::tries_others(relay.place()) => {
                    Next::Last(event)
                }
                Some(event) => relay.on_event(event),
                None => relay.on_lost(),
            },
            () = sender.closed() => return,
        };
        match next {
            Next::Wait => {}
            Next::Pass(event) => {
                // A reader that is that far behind is gone for all purposes.
                if sender.try_send(event).is_err() {
                    return;
                }
            }
            Next::Last(event) => {
                // Fails when the client is gone as well.
                let _ = sender.try_send(event);
                promise.finish();
                return;
            }
            Next::Move => {
                let found = tokio::select! {
                    found = replace(&places, &relay) => found,
                    () = sender.closed() => return,
                };
                match found {
                    Ok((place, found)) => {
                        tracing::info!(
                            from = %promise.node, to = %found.node, ?place, request = %relay.rest().request,
                            tokens = relay.rest().resume.len(), "answer goes on elsewhere"
                        );
                        relay.moved(place, found.node);
                        promise = found;
                    }
                    Err(failure) => {
                        let _ = sender.try_send(GenerationEvent::Failed(failure));
                        return;
                    }
                }
            }
        }
    }
}

/// Another place for an answer, or the same one again when there is no other and it comes back
/// in time.
async fn replace<P: Places>(places: &P, relay: &Relay<P::Place>) -> Result<(P::Place, Promise), Failure> {
    let deadline = Instant::now() + REPLACE;
    loop {
        match places.place(relay.rest(), relay.failed()).await {
            Ok(found) => return Ok(found),
            Err(failure) if is_last_word(&failure) || Instant::now() >= deadline => return Err(failure),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}
