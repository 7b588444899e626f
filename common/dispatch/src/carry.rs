//! One answer over as many places as it takes.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pomona_api::{GenerationStream, Unwanted, enough};
use pomona_common::generation::GenerationEvent;
use pomona_common::{Accounting, Class, Failure, Generation, Maker, Rung, Seek, limits};
use pomona_decide::{Next, Relay};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use crate::promise::Promise;

/// An answer whose place is lost waits this long for another one. The client hears keep-alives
/// meanwhile.
const REPLACE: Duration = Duration::from_secs(12);
/// As that for batch, which nobody waits for: longer than the ladder has a node be calm. The only place that has its
/// model may be spared for as long, and would have kept the answer meanwhile.
const REPLACE_BATCH: Duration = Duration::from_secs(300);
/// Between two looks for one.
const LOOK: Duration = Duration::from_millis(200);
/// Longest time between two looks of an answer that nobody waits for.
const LOOK_BATCH: Duration = Duration::from_secs(5);
/// Batch answers of one process that ask for other places at once; they ask again after [`STAY`].
const ASK: usize = 4;
/// An answer that found no other place stays for so long before it asks again.
const STAY: Duration = Duration::from_secs(2);

/// Another place is being looked for.
type Search<'a, P> = Pin<Box<dyn Future<Output = Option<(P, Promise)>> + Send + 'a>>;

/// Where answers can be made.
pub trait Places: Send + Sync + 'static {
    /// One of them.
    type Place: Copy + Eq + Debug + Send + Sync;

    /// Asks places until one promises of those that the generation seeks; those in `avoid` last.
    fn place(
        &self,
        generation: &Generation,
        avoid: &[Self::Place],
    ) -> impl Future<Output = Result<(Self::Place, Promise), Failure>> + Send;

    /// Whether a place has tried others by itself before it gives an answer up.
    fn tries_others(place: Self::Place) -> bool;

    /// Comes back when a place is relieved so far that batch answers leave it. Cancel-safe.
    fn leaving(&self, place: Self::Place, from: Rung) -> impl Future<Output = ()> + Send;

    /// Comes back when the first token of what was asked for then, for which somebody waits, comes late at its place, and
    /// would come sooner at another one. Cancel-safe.
    fn comes_late(
        &self,
        _place: Self::Place,
        _generation: &Generation,
        _asked: Instant,
    ) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// An answer has ended as it should, of which this was asked, and which one machine made from its first token on.
    fn ended(&self, _generation: &Generation, _accounting: &Accounting) {}

    /// Permits for batch answers that leave a place which still makes them, see [`moves`].
    fn moves(&self) -> &Semaphore;
}

/// Permits for as many batch answers as ask for other places at a time: where they go their prompts are prefilled
/// again, which others there feel if all come at once.
pub fn moves() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(ASK))
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
    let (enough, unwanted) = enough();
    #[expect(clippy::disallowed_methods, reason = "ends with either end of the stream")]
    tokio::spawn(carry(places, promise, relay, (sender, unwanted)));
    Ok(GenerationStream {
        maker: Maker::Node(node),
        events,
        enough,
    })
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
    (sender, mut unwanted): (mpsc::Sender<GenerationEvent>, Unwanted),
) {
    let places = &places;
    // While another place is looked for, the present one goes on; what comes twice is dropped.
    let mut search: Option<Search<'_, P::Place>> = None;
    let asked = Instant::now();
    let mut not_before = asked;
    let mut is_enough = false;
    loop {
        let next = tokio::select! {
            // What has come is not left for what was found.
            biased;
            () = sender.closed() => return,
            () = unwanted.said() => {
                is_enough = true;
                search = None;
                promise.enough();
                continue;
            }
            event = promise.next() => match event {
                // One that kills engines must not do so everywhere, once more for every place.
                Some(event @ GenerationEvent::Failed(Failure::EngineLost)) if P::tries_others(relay.place()) => {
                    Next::Last(event)
                }
                Some(event) => relay.on_event(event),
                None => relay.on_lost(),
            },
            found = outcome(&mut search) => {
                if let Some(found) = found {
                    relay.shift();
                    take_over(&mut relay, &mut promise, found);
                }
                search = None;
                not_before = Instant::now() + STAY;
                continue;
            }
            () = leaving(places, &relay, asked, not_before), if search.is_none() && !is_enough => {
                search = Some(Box::pin(elsewhere(places, relay.rest().clone(), relay.place())));
                continue;
            }
        };
        match next {
            Next::Wait => {}
            Next::Pass(event) => {
                // It came late, but it is there: to leave now would cost more.
                if relay.rest().class != Class::Batch {
                    search = None;
                }
                // A reader that is that far behind is gone for all purposes.
                if sender.try_send(event).is_err() {
                    return;
                }
            }
            Next::Last(event) => {
                if let GenerationEvent::Finished { accounting, .. } = &event
                    && relay.is_whole(accounting)
                {
                    places.ended(relay.rest(), accounting);
                }
                // Who has no room for both is told of the end.
                if let Some(energy) = relay.energy().filter(|_| sender.capacity() > 1) {
                    let _ = sender.try_send(GenerationEvent::Energy(energy));
                }
                // Fails when the client is gone as well.
                let _ = sender.try_send(event);
                promise.finish();
                return;
            }
            // Only the account is missing.
            Next::Move if is_enough => return,
            Next::Move => {
                search = None;
                let found = tokio::select! {
                    found = replace(places, &relay) => found,
                    () = sender.closed() => return,
                };
                match found {
                    Ok(found) => take_over(&mut relay, &mut promise, found),
                    Err(failure) => {
                        let _ = sender.try_send(GenerationEvent::Failed(failure));
                        return;
                    }
                }
            }
        }
    }
}

/// Comes back when an answer should leave the place that makes it.
async fn leaving<P: Places>(places: &P, relay: &Relay<P::Place>, asked: Instant, not_before: Instant) {
    if !relay.may_shift() {
        return std::future::pending().await;
    }
    tokio::time::sleep_until(not_before).await;
    match (relay.rest().class, relay.has_begun()) {
        (Class::Batch, true) => places.leaving(relay.place(), Rung::MoveRunning).await,
        (Class::Batch, false) => places.leaving(relay.place(), Rung::MoveQueued).await,
        (Class::Interactive | Class::Background, _) if relay.is_silent() => {
            places.comes_late(relay.place(), relay.rest(), asked).await;
        }
        (Class::Interactive | Class::Background, _) => std::future::pending().await,
    }
}

/// Another place that has promised to go on; until then the present one keeps the answer.
async fn elsewhere<P: Places>(
    places: &P,
    mut rest: Generation,
    present: P::Place,
) -> Option<(P::Place, Promise)> {
    // For others somebody waits.
    let _permit = match rest.class {
        Class::Batch => Some(places.moves().try_acquire().ok()?),
        Class::Interactive | Class::Background => None,
    };
    rest.seek = Seek::Better;
    places.place(&rest, &[present]).await.ok()
}

/// What a search has found; never comes back without one. Cancel-safe.
async fn outcome<P>(search: &mut Option<Search<'_, P>>) -> Option<(P, Promise)> {
    match search {
        Some(search) => search.as_mut().await,
        None => std::future::pending().await,
    }
}

fn take_over<P: Copy + Eq + Debug>(
    relay: &mut Relay<P>,
    promise: &mut Promise,
    (place, found): (P, Promise),
) {
    tracing::info!(
        from = %promise.node, to = %found.node, ?place, request = %relay.rest().request,
        tokens = relay.rest().resume.len(), "answer goes on elsewhere"
    );
    relay.moved(place, found.node);
    *promise = found;
}

/// Another place for an answer, or the same one again when there is no other and it comes back
/// in time.
async fn replace<P: Places>(places: &P, relay: &Relay<P::Place>) -> Result<(P::Place, Promise), Failure> {
    let patience = match relay.rest().class {
        Class::Batch => REPLACE_BATCH,
        Class::Interactive | Class::Background => REPLACE,
    };
    let (deadline, mut pause) = (Instant::now() + patience, LOOK);
    loop {
        match places.place(relay.rest(), relay.failed()).await {
            Ok(found) => return Ok(found),
            Err(failure) if is_last_word(&failure) || Instant::now() >= deadline => return Err(failure),
            Err(_) => tokio::time::sleep(pause).await,
        }
        if relay.rest().class == Class::Batch {
            // Many may wait for few, and each question carries the whole prompt.
            pause = (pause * 2).min(LOOK_BATCH);
        }
    }
}
