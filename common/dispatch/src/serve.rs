//! The other end of [`ask`](crate::ask).

use pomona_api::GenerationStream;
use pomona_common::generation::GenerationEvent;
use pomona_common::{Failure, Maker};
use pomona_link::{FrameReceiver, FrameSender, LinkError};
use pomona_wire::Message;

/// Events that wait are sent together, up to about this many bytes.
const FRAMES_BYTES: usize = 16 * 1024;

/// Passes an answer's events on until the end, or until the peer gives the stream up: then
/// dropping the events cancels the answer. A peer that ends its own direction wants no more of it but the last event.
/// The peer is told who makes it.
///
/// # Errors
/// The session ended, or the peer is stuck.
pub async fn serve(
    answer: Result<GenerationStream, Failure>,
    (mut send, mut receive): (FrameSender, FrameReceiver),
) -> Result<(), LinkError> {
    let mut stream = match answer {
        Ok(stream) => stream,
        Err(failure) => return send_last(send, &GenerationEvent::Failed(failure)).await,
    };
    let granted = match &stream.maker {
        Maker::Node(node) => GenerationEvent::GrantedBy(*node),
        Maker::Cloud(cloud) => GenerationEvent::GrantedByCloud(cloud.clone()),
    };
    let mut frames = pomona_wire::encode(&granted)?;
    // A short answer may be there already: then it goes out in one packet.
    tokio::task::yield_now().await;
    let mut next = stream.events.try_recv().ok();
    loop {
        let mut last = false;
        while let Some(event) = next.take() {
            last = matches!(
                event,
                GenerationEvent::Finished { .. } | GenerationEvent::Failed(_)
            );
            if send.knows(&event) {
                frames.extend(pomona_wire::encode(&event)?);
            }
            if last || frames.len() >= FRAMES_BYTES {
                break;
            }
            next = stream.events.try_recv().ok();
        }
        send.send_bytes(&frames).await?;
        frames.clear();
        if last {
            send.finish();
            return Ok(());
        }
        next = tokio::select! {
            event = stream.events.recv() => event,
            () = send.given_up() => return Ok(()),
            more = receive.next::<GenerationEvent>(), if !stream.enough.is_said() => match more {
                Ok(None) => {
                    stream.enough.say();
                    continue;
                }
                Ok(Some(_)) | Err(_) => return Ok(()),
            },
        };
        if next.is_none() {
            return send_last(send, &GenerationEvent::Failed(Failure::EngineLost)).await;
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
