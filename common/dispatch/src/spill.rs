//! Asking a coordinator to have a cloud answer.

use std::time::Duration;

use pomona_api::{GenerationStream, enough};
use pomona_common::control::StreamRequest;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Failure, Maker, TextAsk, limits};
use pomona_link::{LinkError, Session};
use tokio::sync::mpsc;

/// A coordinator asks one cloud after the other for at most so long: the longest that one may think, and a bit.
pub const SPILL: Duration = Duration::from_secs(330);
/// What the way to the coordinator takes beside that.
const WAY: Duration = Duration::from_secs(5);

/// Asks a coordinator; the answer has begun when this comes back. Nobody goes on with it elsewhere: other servers
/// have other tokens.
///
/// # Errors
/// [`Failure::NoCloud`], what is wrong with the request, or [`Failure::NodeLost`] when the coordinator is gone.
pub async fn ask_cloud(session: &Session, ask: &TextAsk) -> Result<GenerationStream, Failure> {
    let lost = |error: LinkError| {
        tracing::debug!(%error, "stream to coordinator failed");
        Failure::NodeLost
    };
    let request = StreamRequest::Spill(Box::new(ask.clone()));
    if request.since() > session.version() {
        return Err(Failure::NoCloud {
            detail: "the coordinator is older than clouds: update it".to_owned(),
            asked: false,
        });
    }
    let (mut send, mut receive) = session.open().await.map_err(|error| Failure::NoCloud {
        detail: format!("the coordinator is not reached: {error}"),
        asked: false,
    })?;
    send.send(&request).await.map_err(lost)?;
    let first = receive.expect::<GenerationEvent>(SPILL + WAY).await;
    let cloud = match first.map_err(lost)? {
        GenerationEvent::GrantedByCloud(cloud) => cloud,
        GenerationEvent::Failed(failure) => return Err(failure),
        _ => return Err(Failure::NodeLost),
    };
    let (sender, events) = mpsc::channel(limits::STREAM_EVENTS);
    let maker = Maker::Cloud(cloud.clone());
    #[expect(clippy::disallowed_methods, reason = "ends with either end of the stream")]
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = receive.next::<GenerationEvent>() => event.ok().flatten(),
                () = sender.closed() => return,
            };
            let event = event.unwrap_or_else(|| {
                let detail = "the coordinator went away".to_owned();
                GenerationEvent::Failed(Failure::CloudLost {
                    cloud: cloud.clone(),
                    detail,
                })
            });
            let is_last = matches!(
                event,
                GenerationEvent::Finished { .. } | GenerationEvent::Failed(_)
            );
            // Whoever reads slowly slows the cloud down, until they count as gone.
            let sent = tokio::time::timeout(limits::IDLE_WRITE_TIMEOUT, sender.send(event)).await;
            if is_last {
                return send.finish();
            }
            if !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    // Whoever answers with text knows of stop strings itself.
    let (enough, _) = enough();
    Ok(GenerationStream {
        maker,
        events,
        enough,
    })
}
