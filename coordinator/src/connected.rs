//! One connected node: its session, what it said of itself, and what it said last.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_common::control::CoordinatorMessage;
use pomona_common::plausible::keep_short;
use pomona_common::report::NodeReport;
use pomona_common::signs::{Signs, Speeds};
use pomona_common::spending::Batch;
use pomona_common::{KnobSet, MachineRole, ModelName, ModelRecord, limits};
use pomona_decide::{Heard, Presence, presence};
use pomona_link::Session;

/// A node that was heard of within this time is there: two reports, and some slack.
const ALIVE: Duration = Duration::from_millis(2500);

/// What a node says of itself first.
pub(crate) struct Hello {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) instance: u64,
    pub(crate) models: Vec<ModelRecord>,
}

/// One connected node.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) session: Session,
    pub(crate) name: String,
    pub(crate) version: String,
    /// Drawn by its process.
    pub(crate) instance: u64,
    pub(crate) since: Instant,
    /// Requests of this coordinator that run there.
    pub(crate) in_flight: AtomicU32,
    /// Its weights are needed through this coordinator.
    pub(crate) give: tokio::sync::Notify,
    soft: Mutex<Soft>,
}

#[derive(Debug, Clone, Default)]
struct Soft {
    stored: Vec<ModelRecord>,
    report: Option<(Instant, Arc<NodeReport>)>,
    /// None of a node that tells none, or not yet.
    signs: Option<Arc<Signs>>,
    speeds: Option<Speeds>,
    /// What was said of the latest kill of its engine, by model.
    kill_causes: BTreeMap<ModelName, String>,
    /// Knobs of its configuration; none of a node that tells none, or not yet.
    configured: Option<KnobSet>,
    /// Port on which it gives weights.
    serves: Option<u16>,
    /// Free bytes of the disk with its store.
    disk_free: Option<u64>,
    /// What API keys took at its endpoint, as told last.
    spent: Option<(Instant, Batch)>,
    /// How long its machine slept before this session, if that is why there is a new one.
    slept_ms: Option<u64>,
}

impl Connected {
    pub(crate) fn new(session: Session, hello: Hello) -> Self {
        Self {
            session,
            name: hello.name.chars().take(limits::NODE_NAME_CHARS).collect(),
            version: hello.version,
            instance: hello.instance,
            since: Instant::now(),
            in_flight: AtomicU32::new(0),
            give: tokio::sync::Notify::new(),
            soft: Mutex::new(Soft {
                stored: bounded(hello.models),
                ..Soft::default()
            }),
        }
    }

    pub(crate) fn set_stored(&self, models: Vec<ModelRecord>) {
        self.soft().stored = bounded(models);
    }

    pub(crate) fn set_slept(&self, slept_ms: u64) {
        self.soft().slept_ms = Some(slept_ms);
    }

    pub(crate) fn set_serves(&self, port: u16) {
        self.soft().serves = (port > 0).then_some(port);
    }

    pub(crate) fn set_disk_free(&self, bytes: u64) {
        self.soft().disk_free = Some(bytes);
    }

    /// Whether it is the first report of this session.
    pub(crate) fn set_report(&self, report: NodeReport) -> bool {
        let report = (Instant::now(), Arc::new(report));
        self.soft().report.replace(report).is_none()
    }

    pub(crate) fn set_signs(&self, mut signs: Signs) {
        signs.keep_plausible();
        self.soft().signs = Some(Arc::new(signs));
    }

    pub(crate) fn set_speeds(&self, speeds: Speeds) {
        self.soft().speeds = Some(speeds);
    }

    pub(crate) fn set_kill_causes(&self, mut causes: BTreeMap<ModelName, String>) {
        keep_short(&mut causes);
        self.soft().kill_causes = causes;
    }

    /// What was said of the latest kill of its engine, by model.
    pub(crate) fn kill_causes(&self) -> BTreeMap<ModelName, String> {
        self.soft().kill_causes.clone()
    }

    pub(crate) fn set_configured(&self, knobs: KnobSet) {
        self.soft().configured = Some(knobs);
    }

    /// The knobs that it was configured with.
    pub(crate) fn configured(&self) -> Option<KnobSet> {
        self.soft().configured.clone()
    }

    /// How fast answers come, as told last.
    pub(crate) fn speeds(&self) -> Option<Speeds> {
        self.soft().speeds
    }

    pub(crate) fn set_spent(&self, mut batch: Batch) {
        batch.spent.truncate(limits::BATCH_ENTRIES);
        self.soft().spent = Some((Instant::now(), batch));
    }

    /// What API keys took at its endpoint, as told last, and when that was.
    pub(crate) fn spent(&self) -> Option<(Instant, Batch)> {
        self.soft().spent.clone()
    }

    /// What gates count, as told last.
    pub(crate) fn signs(&self) -> Option<Arc<Signs>> {
        self.soft().signs.clone()
    }

    pub(crate) fn stored(&self) -> Vec<ModelRecord> {
        self.soft().stored.clone()
    }

    /// Whether it stores this very model.
    pub(crate) fn stores(&self, record: &ModelRecord) -> bool {
        let soft = self.soft();
        let mut stored = soft.stored.iter();
        stored.any(|own| own.name == record.name && own.digests == record.digests)
    }

    /// Whether it knows of weights through a coordinator.
    pub(crate) fn relays(&self) -> bool {
        self.session.version() >= CoordinatorMessage::Give.since()
    }

    /// Whether it gives weights through a coordinator; it has said where it gives them by itself.
    pub(crate) fn gives_through(&self) -> bool {
        self.relays() && self.soft().serves.is_some()
    }

    /// The last report and its age.
    pub(crate) fn report(&self) -> Option<(Duration, Arc<NodeReport>)> {
        let soft = self.soft();
        soft.report
            .as_ref()
            .map(|(at, report)| (at.elapsed(), report.clone()))
    }

    /// How long its machine slept before this session, in milliseconds, if it did.
    pub(crate) fn slept_ms(&self) -> Option<u64> {
        self.soft().slept_ms
    }

    /// Whether it is there.
    pub(crate) fn presence(&self, role: MachineRole) -> Presence {
        presence(role, Some(self.heard()))
    }

    /// When it was heard of last.
    pub(crate) fn heard(&self) -> Heard {
        Heard {
            age_ms: self.heard_ago().as_millis() as u64,
            line: self.session.line(),
        }
    }

    /// Free bytes of the disk with its store, as far as it has said.
    pub(crate) fn disk_free(&self) -> Option<u64> {
        self.soft().disk_free
    }

    /// Where it gives weights to a node that is seen at `asker`.
    pub(crate) fn gives_at(&self, asker: SocketAddr) -> Option<SocketAddr> {
        let ip = self.session.remote_address().ip();
        // One that dialled over loopback is reached by nobody else there.
        let reachable = !ip.is_loopback() || asker.ip().is_loopback();
        let port = self.soft().serves.filter(|_| reachable)?;
        Some(SocketAddr::new(ip, port))
    }

    /// Whether it gives weights to others, by itself or through a coordinator.
    pub(crate) fn serves(&self) -> bool {
        self.relays() || self.soft().serves.is_some()
    }

    /// Whether it was heard of so lately that it is certainly there.
    pub(crate) fn is_alive(&self) -> bool {
        self.session.is_open() && self.heard_ago() < ALIVE
    }

    /// Age of its last report, or of the session while there is none.
    fn heard_ago(&self) -> Duration {
        self.report().map_or(self.since.elapsed(), |(age, _)| age)
    }

    fn soft(&self) -> MutexGuard<'_, Soft> {
        self.soft.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request while it runs on a node.
pub(crate) struct InFlight(Arc<Connected>);

impl InFlight {
    pub(crate) fn new(connected: Arc<Connected>) -> Self {
        connected.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(connected)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn bounded(mut models: Vec<ModelRecord>) -> Vec<ModelRecord> {
    models.truncate(limits::MODELS);
    models.retain(ModelRecord::is_plausible);
    models
}
