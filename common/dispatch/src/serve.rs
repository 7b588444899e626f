//! The other end of [`ask`](crate::ask).

use pomona_api::GenerationStream;
use pomona_common::Failure;
use pomona_common::generation::GenerationEvent;
use pomona_link::{FrameSender, LinkError};
use pomona_wire::Message;

/// Passes an answer's events on until the end, or until the peer gives the stream up: then
/// dropping the events cancels the answer. The peer is told who makes it.
///
/// # Errors
/// The session ended, or the peer is stuck.
pub async fn serve(
    answer: Result<GenerationStream, Failure>,
    mut send: FrameSender,
) -> Result<(), LinkError> {
    let mut stream = match answer {
        Ok(stream) => stream,
        Err(failure) => return send_last(send, &GenerationEvent::Failed(failure)).await,
    };
    send.send(&GenerationEvent::GrantedBy(stream.node)).await?;
    loop {
        let event = tokio::select! {
            event = stream.events.recv() => event,
            () = send.given_up() => return Ok(()),
        };
        let Some(event) = event else {
            return send_last(send, &GenerationEvent::Failed(Failure::EngineLost)).await;
        };
        let last = matches!(
            event,
            GenerationEvent::Finished { .. } | GenerationEvent::Failed(_)
        );
        send.send(&event).await?;
        if last {
            send.finish();
            return Ok(());
        }
    }
}

/// Sends a message and ends the stream.
///
/// # Errors
/// As [`serve`].
pub async fn send_last<M: Message>(mut send: FrameSender, message: &M) -> Result<(), LinkError> {
    send.send(message).await?;
    send.finish();
    Ok(())
}
