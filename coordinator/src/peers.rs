//! Sessions with the other coordinators: dialled by whoever knows the other's address, used by
//! both ends, the newest first.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_link::{Contacts, Endpoint, Purpose, Session, Source};
use pomona_raft::{CallError, Replica, RpcKind, Transport};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::raft_link;

/// How often a session's right to be there is looked at: removal takes two commits.
const LOOK: Duration = Duration::from_millis(500);

/// See the module's documentation. Clones share the sessions.
#[derive(Clone)]
pub(crate) struct Peers(Arc<Inner>);

struct Inner {
    number: u64,
    endpoint: Arc<Endpoint>,
    began: Instant,
    book: Mutex<Book>,
    news: Notify,
}

#[derive(Default)]
struct Book {
    contacts: Contacts,
    sessions: BTreeMap<u64, Vec<Session>>,
    /// What a coordinator said of itself last; one that is away comes back with it.
    versions: BTreeMap<u64, u16>,
}

impl Peers {
    /// No sessions yet; `known` is where other coordinators may be.
    pub(crate) fn new(number: u64, endpoint: Arc<Endpoint>, known: &[SocketAddr]) -> Self {
        let mut book = Book::default();
        // Nobody needs a session with oneself.
        book.contacts.began(number);
        for address in known {
            let source = Source::Configured;
            book.contacts.learn(*address, source, None, Duration::ZERO);
        }
        Self(Arc::new(Inner {
            number,
            endpoint,
            began: Instant::now(),
            book: Mutex::new(book),
            news: Notify::new(),
        }))
    }

    /// This coordinator's own number.
    pub(crate) fn number(&self) -> u64 {
        self.0.number
    }

    /// Ends all sessions; they are dialled anew.
    pub(crate) fn close_all(&self, why: &str) {
        let book = self.book();
        book.sessions
            .values()
            .flatten()
            .for_each(|session| session.close(why));
    }

    /// Somebody on the LAN says that a coordinator is there.
    pub(crate) fn hint(&self, number: u64, address: SocketAddr) {
        let now = self.now();
        let hint = Source::Hint;
        self.book().contacts.learn(address, hint, Some(number), now);
        self.0.news.notify_one();
    }

    /// Another coordinator's address as it is reached from here, the one with the lowest number.
    pub(crate) fn some_peer(&self) -> Option<IpAddr> {
        let book = self.book();
        let session = book.sessions.values().flatten().next()?;
        Some(session.remote_address().ip())
    }

    /// Keeps a session with every coordinator that is known, until the stop.
    pub(crate) async fn run(self, replica: Replica, stop: CancellationToken) {
        let mut state = replica.state();
        let mut dials = JoinSet::new();
        loop {
            let addresses = state.borrow_and_update().coordinator_addresses();
            let now = self.now();
            let due: Vec<SocketAddr> = {
                let mut book = self.book();
                book.contacts.learn_cluster(&addresses, now);
                std::iter::from_fn(|| book.contacts.next_dial(now)).collect()
            };
            for address in due {
                let (this, replica) = (self.clone(), replica.clone());
                dials.spawn(async move { this.dial(address, &replica).await });
            }
            let next = self.book().contacts.poll_timeout();
            let wait = next.map_or(Duration::from_secs(3600), |at| at.saturating_sub(self.now()));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.0.news.notified() => {}
                changed = state.changed() => if changed.is_err() { return },
                _ = dials.join_next(), if !dials.is_empty() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn dial(&self, address: SocketAddr, replica: &Replica) {
        let dialled = self.0.endpoint.dial(address, Purpose::Raft).await;
        let answered = match &dialled {
            Ok(session) => session.peer().role.coordinator(),
            Err(error) => {
                tracing::debug!(%address, %error, "coordinator not reached");
                None
            }
        };
        let now = self.now();
        self.book().contacts.dialled(address, answered, now);
        self.0.news.notify_one();
        if let Ok(session) = dialled {
            self.serve(session, replica).await;
        }
    }

    /// Uses a session with another coordinator, whoever dialled it, until it ends.
    pub(crate) async fn serve(&self, session: Session, replica: &Replica) {
        let Some(peer) = session
            .peer()
            .role
            .coordinator()
            .filter(|peer| *peer != self.0.number)
        else {
            session.close("it is this coordinator itself");
            return;
        };
        if is_removed(replica, peer) {
            session.close("this coordinator was removed from the cluster");
            return;
        }
        let first = {
            let mut book = self.book();
            book.sessions.entry(peer).or_default().push(session.clone());
            book.versions.insert(peer, session.version());
            book.contacts.began(peer)
        };
        if first {
            tracing::info!(peer, address = %session.remote_address(), "coordinator connected");
        }
        tokio::select! {
            () = raft_link::serve(&session, replica) => {}
            () = removed(replica, peer) => {
                session.close("this coordinator was removed from the cluster");
            }
        }
        let last = {
            let mut book = self.book();
            book.contacts.ended(peer);
            let sessions = book.sessions.entry(peer).or_default();
            sessions.retain(|other| other.stable_id() != session.stable_id());
            let last = sessions.is_empty();
            if last {
                book.sessions.remove(&peer);
            }
            last
        };
        if last {
            tracing::info!(peer, "coordinator lost");
        }
        self.0.news.notify_one();
    }

    /// The newest session with a coordinator.
    fn session(&self, peer: u64) -> Option<Session> {
        let book = self.book();
        let mut sessions = book.sessions.get(&peer).into_iter().flatten().rev();
        sessions.find(|session| session.is_open()).cloned()
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Transport for Peers {
    fn peers(&self) -> Vec<u64> {
        self.book().sessions.keys().copied().collect()
    }

    fn version(&self, peer: u64) -> Option<u16> {
        self.book().versions.get(&peer).copied()
    }

    async fn call(&self, peer: u64, kind: RpcKind, body: Vec<u8>) -> Result<Vec<u8>, CallError> {
        let session = self.session(peer).ok_or(CallError::NotConnected)?;
        raft_link::call(&session, kind, &body)
            .await
            .map_err(|error| CallError::Unanswered(io::Error::other(error)))
    }
}

/// Whether a coordinator is neither known nor a member: one that was removed while it led still
/// has to hand over.
fn is_removed(replica: &Replica, peer: u64) -> bool {
    replica.known().has_removed_coordinator(peer) && !replica.members().contains(peer)
}

async fn removed(replica: &Replica, peer: u64) {
    while !is_removed(replica, peer) {
        tokio::time::sleep(LOOK).await;
    }
}
