//! Coordinators and nodes found on the LAN over mDNS (`_pomona._udp.local.`, RFC 6762 and 6763). Everything
//! that comes from here is a hint: whoever is there proves over TLS who it is, and presence is
//! never decided by it. The one crate that touches mdns-sd.
#![forbid(unsafe_code)]

mod sighting;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mdns_sd::{IfKind, Receiver, RecvTimeoutError, ServiceDaemon, ServiceEvent, ServiceInfo};
use pomona_common::ClusterId;

pub use sighting::{Sighting, Who};

const SERVICE: &str = "_pomona._udp.local.";
/// How often the thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(250);
/// How often the daemon's memory is looked at.
const WEIGH: Duration = Duration::from_secs(2);
/// Records that the daemon may keep: it has no bound of its own, and whoever floods the LAN
/// chooses how long they live. A LAN with all nodes of the largest cluster has some hundreds.
const RECORDS: i64 = 4096;
/// A daemon that was flooded, or did not start, is started anew after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// What somebody says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// Its cluster.
    pub cluster: ClusterId,
    /// Who it is.
    pub who: Who,
    /// Its QUIC port, on every interface.
    pub port: u16,
}

/// Looks for others until it is dropped.
#[derive(Debug)]
pub struct Discovery {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Discovery {
    /// Looks for coordinators and nodes of one cluster, and announces one if asked to. `found` is called in
    /// a thread of its own, again and again for one that stays.
    ///
    /// # Errors
    /// The system gives no thread. Without multicast nothing is found, which is logged.
    pub fn start(
        cluster: ClusterId,
        own: Option<Announcement>,
        mut found: impl FnMut(Sighting) + Send + 'static,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("discovery".into())
            .spawn(move || {
                let mut last = String::new();
                while !stopped.load(Ordering::Relaxed) {
                    let why = match watch(cluster, own, &stopped, &mut found) {
                        Ok(()) => continue,
                        Err(error) => error.to_string(),
                    };
                    if why != last {
                        tracing::info!(why, "discovery starts anew");
                        last = why;
                    }
                    std::thread::sleep(AGAIN);
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Fails only when the thread panicked, which is logged then.
            let _ = thread.join();
        }
    }
}

/// Why a daemon is given up.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("mDNS does not work here: {0}")]
    Daemon(#[from] mdns_sd::Error),
    #[error("somebody floods the LAN with services: {0} records")]
    Flood(i64),
    #[error("the mDNS daemon has ended")]
    Ended,
}

/// Runs one daemon until the stop, or until it is to be given up.
fn watch(
    cluster: ClusterId,
    own: Option<Announcement>,
    stopped: &AtomicBool,
    found: &mut impl FnMut(Sighting),
) -> Result<(), Trouble> {
    let daemon = ServiceDaemon::new()?;
    let outcome = look(&daemon, cluster, own, stopped, found);
    if let Ok(ended) = daemon.shutdown() {
        let _ = ended.recv_timeout(LOOK);
    }
    outcome
}

fn look(
    daemon: &ServiceDaemon,
    cluster: ClusterId,
    own: Option<Announcement>,
    stopped: &AtomicBool,
    found: &mut impl FnMut(Sighting),
) -> Result<(), Trouble> {
    // Nobody on this machine needs to be found by the LAN.
    daemon.disable_interface(vec![IfKind::LoopbackV4, IfKind::LoopbackV6])?;
    if let Some(own) = own {
        daemon.register(service(own)?)?;
    }
    let events = daemon.browse(SERVICE)?;
    let mut weighed = Instant::now();
    while !stopped.load(Ordering::Relaxed) {
        match events.recv_timeout(LOOK) {
            Ok(ServiceEvent::ServiceResolved(service)) => {
                for sighting in sighting::of(&service) {
                    if sighting.cluster == cluster {
                        found(sighting);
                    }
                }
            }
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Trouble::Ended),
        }
        if weighed.elapsed() >= WEIGH {
            weighed = Instant::now();
            let records = records(&daemon.get_metrics()?);
            if records > RECORDS {
                return Err(Trouble::Flood(records));
            }
        }
    }
    Ok(())
}

/// Records in the daemon's cache.
fn records(metrics: &Receiver<mdns_sd::Metrics>) -> i64 {
    let metrics = metrics.recv_timeout(LOOK).unwrap_or_default();
    let kinds = [
        "cached-ptr",
        "cached-srv",
        "cached-addr",
        "cached-txt",
        "cached-nsec",
        "cached-subtype",
    ];
    kinds.iter().filter_map(|kind| metrics.get(*kind)).sum()
}

fn service(own: Announcement) -> Result<ServiceInfo, mdns_sd::Error> {
    let short = &own.cluster.to_string()[..8];
    let (kind, key, id) = match own.who {
        Who::Coordinator(number) => ("coordinator", "n", number.to_string()),
        Who::Node(node) => ("node", "node", node.to_string()),
    };
    let name = format!("{kind}-{id}-{short}");
    let host = format!("pomona-{id}-{short}.local.");
    let cluster = own.cluster.to_string();
    let properties = [("v", "1"), ("cluster", cluster.as_str()), (key, id.as_str())];
    // The addresses are the daemon's business: they change.
    Ok(ServiceInfo::new(SERVICE, &name, &host, "", own.port, &properties[..])?.enable_addr_auto())
}
