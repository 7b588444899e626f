//! A session with one peer, and its streams of frames.

use std::sync::Arc;
use std::time::Duration;

use pomona_common::Line;
use pomona_wire::{Message, WireError};
use quinn::VarInt;
use tokio::task::JoinSet;

use crate::endpoint::Purpose;
use crate::identity::Peer;
use crate::pace::Pace;
use crate::{LinkError, farewell};

/// Opening a stream waits at most this long for the peer to allow one more.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that takes no bytes for this long is stuck.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// How often is looked within the time that a peer may be silent.
const LOOKS: u32 = 10;
/// Bytes of a stream that are passed on at once.
const PASSED_AT_ONCE: usize = 256 * 1024;
/// The code of a stream that was given up.
const CANCELLED: VarInt = VarInt::from_u32(1);

/// A session; clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct Session {
    connection: quinn::Connection,
    peer: Peer,
    purpose: Purpose,
    version: u16,
    _watch: Arc<Watch>,
}

/// Ends a session whose peer is silent for longer than their line allows; the transport's own limit is
/// that of the longest line. It ends with the last handle.
#[derive(Debug)]
struct Watch {
    _task: JoinSet<()>,
}

impl Watch {
    fn start(connection: quinn::Connection) -> Self {
        let mut task = JoinSet::new();
        task.spawn(async move {
            tokio::select! {
                // Said to the peer, which may be there and not be heard: a line cut in one direction.
                () = silence(&connection) => farewell::close(&connection, 0, b"the peer is silent"),
                _ = connection.closed() => {}
            }
        });
        Self { _task: task }
    }
}

impl Session {
    pub(crate) fn new(connection: quinn::Connection, peer: Peer, purpose: Purpose, version: u16) -> Self {
        let watch = Arc::new(Watch::start(connection.clone()));
        Self {
            connection,
            peer,
            purpose,
            version,
            _watch: watch,
        }
    }

    /// The other end.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Where the other end is now.
    pub fn remote_address(&self) -> std::net::SocketAddr {
        self.connection.remote_address()
    }

    /// Round trip, smoothed.
    pub fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// What lies between the two, by the round trip.
    pub fn line(&self) -> Line {
        Line::of(self.round_trip())
    }

    pub(crate) fn connection(&self) -> &quinn::Connection {
        &self.connection
    }

    /// What tells this session from every other one of the process.
    pub fn stable_id(&self) -> usize {
        self.connection.stable_id()
    }

    /// What it is for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// Version of the protocol that both ends know.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Opens a stream. The peer learns of it with the first frame.
    ///
    /// # Errors
    /// The session has ended, or too many streams are open for too long.
    pub async fn open(&self) -> Result<(FrameSender, FrameReceiver), LinkError> {
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.connection.open_bi())
            .await
            .map_err(|_| LinkError::Deadline(OPEN_TIMEOUT))?;
        let (send, receive) = opened.map_err(closed)?;
        Ok((FrameSender::new(send, self.version), FrameReceiver::new(receive)))
    }

    /// The next stream that the peer opens.
    ///
    /// # Errors
    /// The session has ended.
    pub async fn accept(&self) -> Result<(FrameSender, FrameReceiver), LinkError> {
        let (send, receive) = self.connection.accept_bi().await.map_err(closed)?;
        Ok((FrameSender::new(send, self.version), FrameReceiver::new(receive)))
    }

    /// Waits for the end of the session.
    pub async fn ended(&self) -> String {
        self.connection.closed().await.to_string()
    }

    /// Whether nothing has ended it yet.
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Ends the session.
    pub fn close(&self, reason: &str) {
        farewell::close(&self.connection, 0, reason.as_bytes());
    }
}

/// Sends frames. Dropping it without [`FrameSender::finish`] resets the stream, so that the
/// peer never takes half an answer for a whole one.
#[derive(Debug)]
pub struct FrameSender {
    inner: quinn::SendStream,
    version: u16,
    finished: bool,
}

impl FrameSender {
    pub(crate) fn new(inner: quinn::SendStream, version: u16) -> Self {
        Self {
            inner,
            version,
            finished: false,
        }
    }

    /// Sends one frame. What came into the protocol after the version that the peer knows is left
    /// out: such messages are notices, which it has done without so far.
    ///
    /// # Errors
    /// The peer stopped the stream, is stuck, or the session has ended.
    pub async fn send<M: Message>(&mut self, message: &M) -> Result<(), LinkError> {
        if !self.knows(message) {
            return Ok(());
        }
        let frame = pomona_wire::encode(message)?;
        self.send_bytes(&frame).await
    }

    /// Whether the peer's version has this message.
    pub fn knows<M: Message>(&self, message: &M) -> bool {
        message.since() <= self.version
    }

    /// Sends bytes that are framed already.
    ///
    /// # Errors
    /// As [`FrameSender::send`].
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        tokio::time::timeout(SEND_TIMEOUT, self.inner.write_all(bytes))
            .await
            .map_err(|_| LinkError::Deadline(SEND_TIMEOUT))?
            .map_err(closed)
    }

    /// Sends bytes that are no frames, without copying them.
    ///
    /// # Errors
    /// As [`FrameSender::send`].
    pub async fn send_owned(&mut self, bytes: Vec<u8>) -> Result<(), LinkError> {
        tokio::time::timeout(SEND_TIMEOUT, self.inner.write_chunk(bytes.into()))
            .await
            .map_err(|_| LinkError::Deadline(SEND_TIMEOUT))?
            .map_err(closed)
    }

    /// Ends the stream after what was sent.
    pub fn finish(mut self) {
        // Fails only when the stream has ended already.
        let _ = self.inner.finish();
        self.finished = true;
    }

    /// Waits until the peer gives the stream up or the session ends.
    pub fn given_up(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.inner.stopped();
        async move {
            let _ = stopped.await;
        }
    }
}

/// Waits until nothing has come for as long as the line allows. Looks are counted, not seconds: a
/// process that was stopped has missed nothing meanwhile.
async fn silence(connection: &quinn::Connection) {
    let heard = || connection.stats().udp_rx.datagrams;
    let (mut last, mut silent) = (heard(), 0);
    while silent < LOOKS {
        tokio::time::sleep(Line::of(connection.rtt()).silence() / LOOKS).await;
        let now = heard();
        silent = if now == last { silent + 1 } else { 0 };
        last = now;
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only when the stream has ended already.
            let _ = self.inner.reset(CANCELLED);
        }
    }
}

/// Receives frames. Dropping it tells the peer to stop.
#[derive(Debug)]
pub struct FrameReceiver {
    inner: quinn::RecvStream,
    /// The beginning of a frame.
    partial: Vec<u8>,
}

impl FrameReceiver {
    pub(crate) fn new(inner: quinn::RecvStream) -> Self {
        Self {
            inner,
            partial: Vec::new(),
        }
    }

    /// The next frame; `None` at the end of the stream. Cancel-safe: what was read of a frame is
    /// kept for the next call.
    ///
    /// # Errors
    /// The peer gave up, the session ended, or the frame is bad.
    pub async fn next<M: Message>(&mut self) -> Result<Option<M>, LinkError> {
        loop {
            let wanted = match self.partial.first_chunk::<4>() {
                Some(length) => 4 + pomona_wire::body_len::<M>(*length)?,
                None => 4,
            };
            if wanted > 4 && self.partial.len() == wanted {
                let message = pomona_wire::decode_body(&self.partial[4..])?;
                self.partial.clear();
                return Ok(Some(message));
            }
            let missing = wanted - self.partial.len();
            // One chunk at a time: `read_chunk` takes nothing when it is cancelled.
            match self.inner.read_chunk(missing, true).await.map_err(closed)? {
                Some(chunk) => self.partial.extend_from_slice(&chunk.bytes),
                None if self.partial.is_empty() => return Ok(None),
                None => return Err(LinkError::Frame(WireError::Truncated)),
            }
        }
    }

    /// The next frame, within a deadline.
    ///
    /// # Errors
    /// As [`FrameReceiver::next`], or nothing came in time or at all.
    pub async fn expect<M: Message>(&mut self, within: Duration) -> Result<M, LinkError> {
        tokio::time::timeout(within, self.next())
            .await
            .map_err(|_| LinkError::Deadline(within))??
            .ok_or(LinkError::Frame(WireError::Truncated))
    }

    /// Fills a buffer with the next bytes of the stream, which are no frames.
    ///
    /// # Errors
    /// The stream ended before, the peer gave up, or the session ended.
    pub async fn fill(&mut self, buffer: &mut [u8]) -> Result<(), LinkError> {
        self.inner.read_exact(buffer).await.map_err(closed)
    }

    /// Passes everything up to the end of the stream on, unread and as fast as `pace` lets it; the other
    /// stream stays open.
    ///
    /// # Errors
    /// More bytes than `limit`, none within `patience`, or one of the two ended; with the bytes that
    /// were passed on.
    pub async fn pass_on(
        &mut self,
        to: &mut FrameSender,
        pace: &Pace,
        (limit, patience): (usize, Duration),
    ) -> Result<(), (usize, LinkError)> {
        let mut passed = 0;
        // What has arrived is taken together: a datagram brings little more than a kilobyte.
        let mut buffer = vec![0; PASSED_AT_ONCE];
        loop {
            let read = tokio::time::timeout(patience, self.inner.read(&mut buffer)).await;
            let read = read.map_err(|_| (passed, LinkError::Deadline(patience)))?;
            let Some(len) = read.map_err(|error| (passed, closed(error)))? else {
                return Ok(());
            };
            if passed + len > limit {
                return Err((passed, LinkError::Closed(format!("more than {limit} bytes"))));
            }
            pace.admit(len).await;
            let sent = to.send_bytes(&buffer[..len]).await;
            sent.map_err(|error| (passed.max(1), error))?;
            passed += len;
        }
    }

    /// All bytes up to the end of the stream, at most `limit`.
    ///
    /// # Errors
    /// More bytes, or the session ended.
    pub async fn rest(&mut self, limit: usize) -> Result<Vec<u8>, LinkError> {
        self.inner.read_to_end(limit).await.map_err(closed)
    }
}

/// quinn says "connection lost" and keeps the peer's reason among the causes.
pub(crate) fn closed(error: impl std::error::Error) -> LinkError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    LinkError::Closed(text)
}
