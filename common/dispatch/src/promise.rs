//! A promise to answer, and asking a peer for one.

use std::time::Duration;

use pomona_api::Enough;
use pomona_common::control::{StreamRequest, TextBundle};
use pomona_common::generation::GenerationEvent;
use pomona_common::{ClassReason, Failure, Generation, ModelName, NodeId};
use pomona_link::{FrameReceiver, FrameSender, LinkError, Session};
use tokio::sync::mpsc;

/// An answer that somebody has promised. Dropping it cancels the answer where it is made.
pub struct Promise {
    /// Who makes it.
    pub node: NodeId,
    events: Events,
    _held: Option<Box<dyn Send>>,
}

enum Events {
    Here {
        events: mpsc::Receiver<GenerationEvent>,
        enough: Enough,
    },
    There {
        send: Option<FrameSender>,
        receive: FrameReceiver,
    },
}

impl Promise {
    /// An answer of this process.
    pub fn here(node: NodeId, events: mpsc::Receiver<GenerationEvent>, enough: Enough) -> Self {
        Self {
            node,
            events: Events::Here { events, enough },
            _held: None,
        }
    }

    /// Keeps a value as long as the answer runs, such as a count.
    #[must_use]
    pub fn holding(mut self, value: impl Send + 'static) -> Self {
        self._held = Some(Box::new(value));
        self
    }

    /// Names who makes it.
    #[must_use]
    pub fn made_by(mut self, node: NodeId) -> Self {
        self.node = node;
        self
    }

    /// The next event; `None` when whoever made the answer is gone. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<GenerationEvent> {
        match &mut self.events {
            Events::Here { events, .. } => events.recv().await,
            Events::There { receive, .. } => receive.next().await.ok().flatten(),
        }
    }

    /// No more of the answer is wanted, but its last event. Peers that do not know of it go on until the promise is
    /// dropped.
    pub(crate) fn enough(&mut self) {
        match &mut self.events {
            Events::Here { enough, .. } => enough.say(),
            Events::There { send, .. } => {
                if let Some(send) = send.take() {
                    send.finish();
                }
            }
        }
    }

    /// Nothing more is wanted or comes.
    pub(crate) fn finish(self) {
        if let Events::There { send: Some(send), .. } = self.events {
            send.finish();
        }
    }
}

/// Asks a peer; its first event, which is its answer, comes within `patience`. `node` is who
/// makes the answer when the peer names nobody.
///
/// # Errors
/// The peer's refusal, or [`Failure::NodeLost`] when it is gone or silent.
pub async fn ask(
    session: &Session,
    node: NodeId,
    mut generation: Generation,
    patience: Duration,
) -> Result<Promise, Failure> {
    if generation.class_reason.since() > session.version() {
        generation.class_reason = ClassReason::Default;
    }
    let lost = |error: LinkError| {
        tracing::debug!(%error, "stream to peer failed");
        Failure::NodeLost
    };
    let request = StreamRequest::generate(generation, session.version());
    if request.since() > session.version() {
        // It would not know where it may not be answered.
        return Err(Failure::NodeLost);
    }
    let (mut send, mut receive) = session.open().await.map_err(lost)?;
    send.send(&request).await.map_err(lost)?;
    let node = match receive.expect::<GenerationEvent>(patience).await.map_err(lost)? {
        GenerationEvent::Granted => node,
        GenerationEvent::GrantedBy(node) => node,
        GenerationEvent::Failed(failure) => return Err(failure),
        // Tokens were asked for.
        GenerationEvent::GrantedByCloud(_)
        | GenerationEvent::Text(_)
        | GenerationEvent::Energy(_)
        | GenerationEvent::Chunk(_)
        | GenerationEvent::Finished { .. } => return Err(Failure::NodeLost),
    };
    Ok(Promise {
        node,
        events: Events::There {
            send: Some(send),
            receive,
        },
        _held: None,
    })
}

/// Tokenizers are megabytes, and a coordinator fetches them from a node.
const FETCH: Duration = Duration::from_secs(30);

/// Fetches what tokenising for a model needs from a peer.
///
/// # Errors
/// The peer does not have it, or is gone.
pub async fn fetch_text(session: &Session, model: &ModelName) -> Result<TextBundle, LinkError> {
    let (mut send, mut receive) = session.open().await?;
    send.send(&StreamRequest::FetchText(model.clone())).await?;
    let bundle = receive.expect(FETCH).await?;
    send.finish();
    Ok(bundle)
}
