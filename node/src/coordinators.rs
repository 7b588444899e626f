//! The coordinators that this node knows: it keeps a session with each, dials anew what it
//! loses, and follows where they say they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::ModelRecord;
use pomona_decide::Reachable;
use pomona_link::{Contacts, Faster, Paths, Role, Session, Source};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::paths;
use crate::session::SessionContext;

/// New sessions follow a wake within this time.
const AWAKE: Duration = Duration::from_secs(30);
/// That no coordinator is in reach is said this often.
const COMPLAIN: Duration = Duration::from_secs(10);

/// See the module's documentation. Clones share it.
#[derive(Clone)]
pub(crate) struct Coordinators(Arc<Inner>);

struct Inner {
    began: Instant,
    contacts: Mutex<Contacts>,
    paths: Mutex<Paths>,
    /// Those that took this node in, by number.
    sessions: Mutex<BTreeMap<u64, Session>>,
    /// What the cluster serves, by the coordinator that said so, with the index of its log.
    catalogues: Mutex<BTreeMap<u64, Catalogue>>,
    news: Notify,
    /// When the machine woke last, and after how long, in milliseconds.
    woke: Mutex<Option<(Instant, u64)>>,
}

/// Index of a coordinator's log, and the models that it knew of then.
type Catalogue = (u64, Arc<Vec<ModelRecord>>);

/// A session that counts until it is dropped.
pub(crate) struct Live {
    coordinators: Coordinators,
    peer: u64,
    /// The session, once the coordinator took this node in.
    entered: Option<Session>,
}

impl Coordinators {
    /// Those that may be at these addresses.
    pub(crate) fn new(known: &[SocketAddr]) -> Self {
        let mut contacts = Contacts::default();
        for address in known {
            contacts.learn(*address, Source::Configured, None, Duration::ZERO);
        }
        Self(Arc::new(Inner {
            began: Instant::now(),
            contacts: Mutex::new(contacts),
            paths: Mutex::default(),
            sessions: Mutex::default(),
            catalogues: Mutex::default(),
            news: Notify::new(),
            woke: Mutex::default(),
        }))
    }

    /// Keeps the sessions until the stop.
    pub(crate) async fn run(self, context: SessionContext, stopped: CancellationToken) {
        let context = Arc::new(context);
        let mut sessions = JoinSet::new();
        let mut complained: Option<Instant> = None;
        let mut paths = JoinSet::new();
        paths.spawn(paths::watch(self.clone(), context.clone(), stopped.clone()));
        loop {
            while let Some(address) = self.next_dial() {
                let (this, context) = (self.clone(), context.clone());
                sessions.spawn(async move { (address, context.run(address, &this).await) });
            }
            let next = self.contacts().poll_timeout();
            let wait = next.map_or(Duration::from_secs(3600), |at| at.saturating_sub(self.now()));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.0.news.notified() => {}
                Some(ended) = sessions.join_next() => {
                    let Ok((address, outcome)) = ended else {
                        continue;
                    };
                    let now = self.now();
                    let failed = self.contacts().dialled(address, None, now);
                    let Err(error) = outcome else {
                        continue;
                    };
                    if !failed {
                        tracing::info!(%address, %error, "session with coordinator ended");
                    } else if complained.is_none_or(|at| at.elapsed() > COMPLAIN) {
                        complained = Some(Instant::now());
                        tracing::info!(%address, %error, "coordinator not reached");
                    }
                }
                () = stopped.cancelled() => return,
            }
        }
    }

    /// A session with a coordinator stands; `None` when there is another one with it.
    pub(crate) fn began(&self, session: &Session) -> Option<Live> {
        let peer = session.peer().role.coordinator()?;
        let first = self.contacts().began(peer);
        // Dropping what is not wanted takes the count back.
        let live = Live {
            coordinators: self.clone(),
            peer,
            entered: None,
        };
        first.then_some(live)
    }

    /// The machine has slept: the coordinators have given this node's sessions up, so nothing more is
    /// taken from them, and all are dialled anew.
    pub(crate) fn woke(&self, slept: Duration) {
        *lock(&self.0.woke) = Some((Instant::now(), slept.as_millis() as u64));
        for session in lock(&self.0.sessions).values() {
            session.close("the node's machine slept");
        }
        self.0.news.notify_one();
    }

    /// A coordinator whose lines are to be measured now, and its addresses, the one in use first.
    pub(crate) fn paths_due(&self) -> Option<(u64, Vec<SocketAddr>)> {
        let peer = lock(&self.0.paths).due(self.now())?;
        let in_use = self.session(peer).map(|session| session.remote_address());
        let mut addresses = self.contacts().addresses(peer);
        addresses.retain(|address| Some(*address) != in_use);
        Some((peer, in_use.into_iter().chain(addresses).collect()))
    }

    /// What was measured; a line that is to be taken instead of the one in use.
    pub(crate) fn paths_measured(
        &self,
        peer: u64,
        round_trips: BTreeMap<SocketAddr, Duration>,
    ) -> Option<Faster> {
        lock(&self.0.paths).measured(peer, round_trips)
    }

    /// Ends the session with a coordinator, so that this line is taken.
    pub(crate) fn take_line(&self, peer: u64, address: SocketAddr) {
        let now = self.now();
        lock(&self.0.paths).changes(peer, now);
        self.contacts().prefer(address, now);
        if let Some(session) = self.session(peer) {
            session.close("the node takes a faster line");
        }
    }

    /// A line could not be taken now.
    pub(crate) fn take_line_later(&self, peer: u64) {
        let now = self.now();
        lock(&self.0.paths).again(peer, now);
    }

    /// How long the machine slept, in milliseconds, if it has just woken.
    pub(crate) fn slept_ms(&self) -> Option<u64> {
        let woke = *lock(&self.0.woke);
        woke.filter(|(at, _)| at.elapsed() < AWAKE)
            .map(|(_, slept_ms)| slept_ms)
    }

    /// A coordinator took this node in, or has another session with it.
    pub(crate) fn answered(&self, address: SocketAddr, session: &Session) {
        let now = self.now();
        self.contacts()
            .dialled(address, session.peer().role.coordinator(), now);
    }

    /// A coordinator says what the cluster serves.
    pub(crate) fn learn_catalogue(&self, peer: Role, applied: u64, models: Vec<ModelRecord>) {
        if let Some(number) = peer.coordinator() {
            lock(&self.0.catalogues).insert(number, (applied, Arc::new(models)));
        }
    }

    /// What the cluster serves, by the coordinator in reach that knows most; empty without any.
    pub(crate) fn catalogue(&self) -> Arc<Vec<ModelRecord>> {
        let catalogues = lock(&self.0.catalogues);
        let newest = catalogues.values().max_by_key(|(applied, _)| *applied);
        newest.map(|(_, models)| models.clone()).unwrap_or_default()
    }

    /// Those that can be asked now.
    pub(crate) fn reachable(&self) -> Vec<Reachable> {
        let sessions = lock(&self.0.sessions);
        let open = sessions.iter().filter(|(_, session)| session.is_open());
        open.map(|(number, session)| Reachable {
            number: *number,
            rtt_us: session.round_trip().as_micros() as u64,
        })
        .collect()
    }

    /// Whether any can be asked now.
    pub(crate) fn any(&self) -> bool {
        lock(&self.0.sessions).values().any(Session::is_open)
    }

    /// The session with one of them.
    pub(crate) fn session(&self, number: u64) -> Option<Session> {
        lock(&self.0.sessions).get(&number).cloned()
    }

    /// A coordinator says where all of them are.
    pub(crate) fn learn_cluster(&self, list: &[(u64, SocketAddr)]) {
        let now = self.now();
        self.contacts().learn_cluster(list, now);
        self.0.news.notify_one();
    }

    /// Somebody on the LAN says that a coordinator is there.
    pub(crate) fn hint(&self, number: u64, address: SocketAddr) {
        let now = self.now();
        self.contacts().learn(address, Source::Hint, Some(number), now);
        self.0.news.notify_one();
    }

    fn next_dial(&self) -> Option<SocketAddr> {
        let now = self.now();
        self.contacts().next_dial(now)
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    fn contacts(&self) -> MutexGuard<'_, Contacts> {
        lock(&self.0.contacts)
    }
}

impl Live {
    /// The coordinator took this node in: it can be asked until this is dropped.
    pub(crate) fn taken_in(&mut self, session: &Session) {
        let (address, round_trip) = (session.remote_address(), session.round_trip());
        let now = self.coordinators.now();
        let known = lock(&self.coordinators.0.paths).began(self.peer, address, round_trip, now);
        if let Some(faster) = known {
            tracing::warn!(coordinator = self.peer, %address, ?faster, "on a slower line than before");
        }
        lock(&self.coordinators.0.sessions).insert(self.peer, session.clone());
        self.entered = Some(session.clone());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(session) = self.entered.take() {
            lock(&self.coordinators.0.sessions).remove(&self.peer);
            lock(&self.coordinators.0.catalogues).remove(&self.peer);
            lock(&self.coordinators.0.paths).ended(self.peer);
            // Answers that come through it hold handles of it.
            session.close("the node ends this session");
        }
        self.coordinators.contacts().ended(self.peer);
        self.coordinators.0.news.notify_one();
    }
}
