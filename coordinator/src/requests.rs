//! What a node asks of the cluster for its own endpoint: answers that are made elsewhere, and
//! the text side of models that it does not have.

use std::sync::Arc;
use std::time::Duration;

use pomona_api::Backend;
use pomona_common::control::StreamRequest;
use pomona_link::{FrameReceiver, FrameSender, LinkError};

use crate::backend::CoordinatorBackend;

/// A node sends its request within this time after it has opened the stream.
const REQUEST: Duration = Duration::from_secs(5);

/// Serves one stream that a node opened.
pub(crate) async fn serve(backend: Arc<CoordinatorBackend>, send: FrameSender, receive: FrameReceiver) {
    if let Err(error) = answer(&backend, send, receive).await {
        tracing::debug!(%error, "stream of a node ended");
    }
}

async fn answer(
    backend: &CoordinatorBackend,
    send: FrameSender,
    mut receive: FrameReceiver,
) -> Result<(), LinkError> {
    match receive.expect::<StreamRequest>(REQUEST).await? {
        StreamRequest::Generate(generation) => {
            let answer = backend.generate(*generation).await;
            pomona_dispatch::serve(answer, send).await
        }
        StreamRequest::FetchText(model) => {
            let record = backend.models().into_iter().find(|record| record.name == model);
            let Some(record) = record else {
                return Err(LinkError::Closed(format!("no model `{model}` in the catalogue")));
            };
            match backend.fetch_text(&record).await {
                Ok(bundle) => pomona_dispatch::send_last(send, &bundle).await,
                // The reset of the stream tells the node.
                Err(failure) => Err(LinkError::Closed(failure.to_string())),
            }
        }
    }
}
