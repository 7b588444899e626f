//! Asking a coordinator to have a cloud answer.

use std::time::Duration;

use pomona_api::GenerationStream;
use pomona_common::control::StreamRequest;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Failure, Maker, TextAsk, limits};
use pomona_link::{LinkError, Session};
use tokio::sync::mpsc;

/// A coordinator asks one cloud after the other for at most so long.
pub const SPILL: Duration = Duration::from_secs(90);
/// What the way to the coordinator takes beside that.
const WAY: Duration = Duration::from_secs(5);

/// Asks a coordinator; the answer has begun when this comes back. Nobody goes on with it elsewhere: other servers
/// have other tokens.
///
/// # Errors
/// [`Failure::NoCloud`], or [`Failure::NodeLost`] when the coordinator is gone or knows of no clouds.
pub async fn ask_cloud(session: &Session, ask: &TextAsk) -> Result<GenerationStream, Failure> {
    let lost = |error: LinkError| {
        tracing::debug!(%error, "stream to coordinator failed");
        Failure::NodeLost
    };
    let request = StreamRequest::Spill(Box::new(ask.clone()));
    if request.since() > session.version() {
        return Err(Failure::NodeLost);
    }
    let (mut send, mut receive) = session.open().await.map_err(lost)?;
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
            // A reader that is that far behind is gone for all purposes.
            if sender.try_send(event).is_err() || is_last {
                if is_last {
                    send.finish();
                }
                return;
            }
        }
    });
    Ok(GenerationStream { maker, events })
}
