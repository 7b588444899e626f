//! The node's session with one coordinator, from the dial to the end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pomona_common::control::{CoordinatorMessage, NodeMessage, StreamRequest};
use pomona_common::{Failure, KnobSet, NodeId, REVOKED, StoreKey};
use pomona_link::{
    CERTIFICATE_LIFE, Dialler, FrameReceiver, FrameSender, Identity, LinkError, Purpose, Session, renew,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::coordinators::Coordinators;
use crate::credentials::Credentials;
use crate::entry::Entry;
use crate::fetcher::{Fetcher, Wish};
use crate::giver::Giver;
use crate::instructions::Instructed;
use crate::keys::Keys;
use crate::last_told::LastTold;
use crate::lease::Lease;
use crate::reporter::Reporter;
use crate::store::Store;
use crate::supervisor::Supervisor;
use crate::vault::Vault;

/// How often is looked whether the certificate is to be renewed.
const RENEW_LOOK: Duration = Duration::from_secs(60);
/// How often is looked how much room there is on the disk, and by how much it changes before that is said.
const ROOM_LOOK: Duration = Duration::from_secs(10);
const ROOM_CHANGE_BYTES: u64 = 256 * 1024 * 1024;
/// What API keys took here is told this often at most.
const SPENDING: Duration = Duration::from_secs(1);
/// A coordinator answers a hello, and a peer sends its first frame, within this time.
const ANSWER: Duration = Duration::from_secs(5);

/// What every session of this node works with.
pub(crate) struct SessionContext {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) instance: u64,
    pub(crate) credentials: Arc<Credentials>,
    /// Held while a certificate is renewed that has run out.
    pub(crate) renewing: tokio::sync::Mutex<()>,
    pub(crate) entry: Entry,
    pub(crate) store: Store,
    pub(crate) supervisor: Supervisor,
    pub(crate) fetcher: Fetcher,
    pub(crate) giver: Giver,
    /// Nodes of the cluster, as coordinators say.
    pub(crate) members: watch::Sender<Arc<BTreeSet<NodeId>>>,
    /// Port on which this node gives weights.
    pub(crate) serves: u16,
    /// The knobs of its configuration.
    pub(crate) configured: KnobSet,
    pub(crate) reporter: Reporter,
    pub(crate) drain: Drain,
    pub(crate) lease: Lease,
    pub(crate) vault: Arc<Vault>,
    pub(crate) instructed: Instructed,
    pub(crate) last_told: LastTold,
    pub(crate) keys: Keys,
    pub(crate) dialler: Dialler,
}

/// How a node stops serving coordinators: no new answers, the running ones finish.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drain {
    begun: CancellationToken,
    answers: TaskTracker,
}

impl Drain {
    /// Comes back when no answer runs any more, or after `at_most`.
    pub(crate) async fn run(&self, at_most: Duration) {
        self.begun.cancel();
        self.answers.close();
        let _ = tokio::time::timeout(at_most, self.answers.wait()).await;
    }
}

impl SessionContext {
    /// Dials, says hello, and serves until the session ends.
    pub(crate) async fn run(
        &self,
        address: SocketAddr,
        coordinators: &Coordinators,
    ) -> Result<(), LinkError> {
        let outcome = self.talk(address, coordinators).await;
        if let Err(error) = &outcome
            && error.to_string().contains(REVOKED)
        {
            self.lease.shut_out();
        }
        outcome
    }

    async fn talk(&self, address: SocketAddr, coordinators: &Coordinators) -> Result<(), LinkError> {
        // A store that is not read yet looks empty, and whoever plans would act on it.
        self.store.scanned().await;
        let identity = self.identity(address).await?;
        // Of this session: its coordinator knows of no other's renewals.
        let mut renewed = self.credentials.are_fresh().then(pomona_clocks::wall);
        let session = self.dialler.dial(address, Purpose::Control, &identity).await?;
        let Some(mut live) = coordinators.began(&session) else {
            // Another address of the same coordinator: known from now on.
            coordinators.answered(address, &session);
            session.close("there is another session");
            return Ok(());
        };
        let (mut send, mut receive) = session.open().await?;
        let mut models = self.store.models();
        let hello = NodeMessage::Hello {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance,
            models: models.borrow_and_update().to_vec(),
        };
        send.send(&hello).await?;
        let CoordinatorMessage::Welcome { version } = receive.expect(ANSWER).await? else {
            return Err(LinkError::Closed("no welcome".into()));
        };
        coordinators.answered(address, &session);
        live.taken_in(&session);
        send.send(&NodeMessage::Serves { port: self.serves }).await?;
        let configured = Box::new(self.configured.clone());
        send.send(&NodeMessage::Configured(configured)).await?;
        let mut said = None;
        if let Some(slept_ms) = coordinators.slept_ms() {
            send.send(&NodeMessage::Woke { slept_ms }).await?;
        }
        tracing::info!(%address, coordinator = %session.peer().role, version, "session with coordinator");
        let mut streams = JoinSet::new();
        let mut reports = self.reporter.latest();
        let mut renewals = tokio::time::interval(RENEW_LOOK);
        let mut rooms = tokio::time::interval(ROOM_LOOK);
        let mut spending = tokio::time::interval(SPENDING);
        spending.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut told = None;
        let mut gone = self.lease.gone();
        gone.mark_changed();
        loop {
            tokio::select! {
                // The first tick comes at once: a machine that slept may have little time left.
                _ = renewals.tick() => if is_due(renewed) {
                    let public_key = identity.public_key()?;
                    send.send(&NodeMessage::Renew { public_key }).await?;
                },
                // The first tick comes at once here as well.
                _ = rooms.tick() => if let Some(room) = self.room(&mut said) {
                    send.send(&room).await?;
                },
                _ = spending.tick() => if let Some(batch) = self.keys.access().batch()
                    && told.replace(batch.number) != Some(batch.number)
                {
                    send.send(&NodeMessage::Spent(batch)).await?;
                },
                message = receive.next::<CoordinatorMessage>() => match message? {
                    Some(CoordinatorMessage::Renewed { certificate }) => {
                        renewed = Some(pomona_clocks::wall());
                        if let Err(error) = self.credentials.renewed(certificate) {
                            tracing::error!(%error, "renewed certificate is not on disk");
                        }
                    }
                    Some(message) => self.on_message(&session, message, coordinators).await,
                    None => return Err(LinkError::Closed("coordinator left".into())),
                },
                stream = session.accept() => {
                    let (send, receive) = stream?;
                    streams.spawn(serve_stream(self.entry.clone(), self.store.clone(), self.drain.clone(), send, receive));
                }
                _ = streams.join_next(), if !streams.is_empty() => {}
                Ok(()) = gone.changed() => {
                    let is_gone = *gone.borrow_and_update();
                    if is_gone {
                        send.send(&NodeMessage::Evicted).await?;
                    }
                }
                changed = models.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let models = models.borrow_and_update().to_vec();
                    send.send(&NodeMessage::Store { models }).await?;
                }
                changed = reports.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let reported = reports.borrow_and_update().clone();
                    let mut report = (*reported.report).clone();
                    // The one that lay there while the machine slept is not of now, and its clock is what is gone by.
                    report.wall_ms = pomona_clocks::wall_ms();
                    send.send(&NodeMessage::Report(Box::new(report))).await?;
                    if !reported.kill_causes.is_empty() {
                        send.send(&NodeMessage::KillCauses(reported.kill_causes.clone())).await?;
                    }
                    send.send(&NodeMessage::Signs(Box::new(reported.signs.clone()))).await?;
                    send.send(&NodeMessage::Speeds(reported.speeds)).await?;
                }
            }
        }
    }

    /// Whether no answer for a coordinator runs.
    pub(crate) fn is_idle(&self) -> bool {
        self.drain.answers.is_empty()
    }

    /// What this node proves to a coordinator who it is with. One that slept past its certificate gets
    /// another one first.
    async fn identity(&self, address: SocketAddr) -> Result<Identity, LinkError> {
        // One at a time: a coordinator that is asked when another one has just given a certificate
        // would take this node for one that comes back once more.
        let _one = self.renewing.lock().await;
        let identity = self.credentials.identity(self.id)?;
        if identity.is_current() {
            return Ok(identity);
        }
        let certificate = renew::renew(address, &identity).await?;
        tracing::info!(%address, "certificate renewed that had run out");
        let renewed = identity.with_certificate(certificate.clone());
        if let Err(error) = self.credentials.renewed(certificate) {
            tracing::error!(%error, "renewed certificate is not on disk");
        }
        Ok(renewed)
    }

    /// How much room there is for models, when that is not what was `said` about it.
    fn room(&self, said: &mut Option<u64>) -> Option<NodeMessage> {
        // What is half brought is planned for as a whole.
        let disk = pomona_probe::disk_free(self.store.folder())?;
        // An encrypted volume says how large it may become; it grows on the disk beneath.
        let beneath = self.vault.disk().and_then(pomona_probe::disk_free);
        let free_bytes = beneath.map_or(disk, |beneath| disk.min(beneath)) + self.store.half_brought();
        if said.is_some_and(|said| said.abs_diff(free_bytes) < ROOM_CHANGE_BYTES) {
            return None;
        }
        *said = Some(free_bytes);
        Some(NodeMessage::Room { free_bytes })
    }

    /// Attaches the store's volume, beside everything else.
    fn open_vault(&self, key: StoreKey) {
        self.lease.note_rented();
        if self.vault.begin() {
            let vault = self.vault.clone();
            // Not waited for: what follows asks how far it is, and a stop waits for it to close it.
            drop(tokio::task::spawn_blocking(move || vault.open(&key)));
        }
    }

    async fn on_message(&self, session: &Session, message: CoordinatorMessage, coordinators: &Coordinators) {
        match message {
            // Taken in where they are waited for.
            CoordinatorMessage::Welcome { .. } | CoordinatorMessage::Renewed { .. } => {}
            CoordinatorMessage::Coordinators(list) => {
                if let Err(error) = self.credentials.keep_coordinators(&list) {
                    tracing::error!(%error, "addresses of coordinators are not on disk");
                }
                coordinators.learn_cluster(&list);
            }
            CoordinatorMessage::Catalogue { applied, models } => {
                coordinators.learn_catalogue(session.peer().role, applied, models)
            }
            CoordinatorMessage::Members(members) => {
                self.members.send_replace(Arc::new(members.into_iter().collect()));
            }
            CoordinatorMessage::Fetch { record, sources } => self.fetcher.wish(Wish {
                record,
                nodes: sources,
                coordinators: Vec::new(),
            }),
            CoordinatorMessage::Through(record) => self.fetcher.wish(Wish {
                record,
                nodes: Vec::new(),
                coordinators: vec![session.remote_address()],
            }),
            CoordinatorMessage::StoreKey(key) => self.open_vault(key),
            CoordinatorMessage::Give => self.giver.give_through(session.remote_address()),
            CoordinatorMessage::Lease { applied, ends_s } => self.lease.learn(applied, ends_s),
            CoordinatorMessage::Evict => self.lease.end(),
            CoordinatorMessage::Relief { applied, relief } => self.instructed.relieve(applied, relief),
            CoordinatorMessage::Comfort { applied, watts } => self.instructed.set_comfort(applied, watts),
            CoordinatorMessage::Knobs(set) => self.instructed.agree(|agreed| &mut agreed.knobs, *set),
            CoordinatorMessage::Fallbacks(set) => self.instructed.agree(|agreed| &mut agreed.fallbacks, *set),
            CoordinatorMessage::Slos(set) => self.instructed.agree(|agreed| &mut agreed.slos, *set),
            CoordinatorMessage::Keys { .. }
            | CoordinatorMessage::Key { .. }
            | CoordinatorMessage::Spent { .. } => self.keys.learn(message),
            CoordinatorMessage::Target(target) => {
                self.last_told.learn_target(&target);
                self.supervisor.follow(target, &self.store).await;
            }
        }
    }
}

/// Whether a certificate of 24 hours is to be renewed: at half its life, by the wall clock, which counts
/// the time that the machine slept. A clock that was set back says nothing about the age.
fn is_due(renewed: Option<SystemTime>) -> bool {
    let age = renewed.map(|at| pomona_clocks::wall().duration_since(at));
    !matches!(age, Some(Ok(age)) if age < CERTIFICATE_LIFE / 2)
}

async fn serve_stream(
    entry: Entry,
    store: Store,
    drain: Drain,
    send: FrameSender,
    mut receive: FrameReceiver,
) {
    let _answer = drain.answers.token();
    let request = receive.expect::<StreamRequest>(ANSWER).await;
    let outcome = match request.map(StreamRequest::whole) {
        // Whoever asks has chosen this machine.
        Ok(
            StreamRequest::Generate(generation)
            | StreamRequest::GenerateIn(generation, _)
            | StreamRequest::GenerateText(generation, ..)
            | StreamRequest::GenerateBetter(generation, ..),
        ) => {
            let answer = if drain.begun.is_cancelled() {
                // The coordinator tries elsewhere.
                Err(Failure::NodeLost)
            } else {
                entry.generate_here(*generation).await
            };
            pomona_dispatch::serve(answer, (send, receive)).await
        }
        Ok(StreamRequest::FetchText(model)) => {
            let bundle = tokio::task::spawn_blocking(move || store.text(&model)).await;
            match bundle {
                Ok(Ok(bundle)) => pomona_dispatch::send_last(send, &bundle).await,
                // The reset of the stream tells the coordinator.
                Ok(Err(_)) | Err(_) => Ok(()),
            }
        }
        // Clouds are asked by coordinators.
        Ok(StreamRequest::Spill(_)) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "stream ended");
    }
}
