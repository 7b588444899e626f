//! What keeps this machine from working in a cluster. What is there is gathered here; what it means
//! is decided in `findings`, which is pure.

mod facts;
mod findings;

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::bail;
use hyper::Method;
use pomona_cluster_config::{Config, EngineKind};
use pomona_common::{ClusterId, limits};
use pomona_discovery::Discovery;
use pomona_link::Authority;
use pomona_node::reach::Belonging;
use serde_json::json;

use crate::admin::ask;
use crate::{service, tables};
use facts::{Facts, Port};
use findings::{Level, findings};

/// An engine that is asked what it is answers sooner.
const ENGINE: Duration = Duration::from_secs(15);
/// Coordinators of a LAN answer within a second; some are slow.
const LOOK: Duration = Duration::from_secs(2);

/// Looks, prints what was found, and fails when something is broken.
pub(crate) fn run(config: &Config, json: bool) -> anyhow::Result<()> {
    let found = findings(&facts(config));
    if json {
        let listed: Vec<_> = found
            .iter()
            .map(|one| {
                json!({ "what": one.what, "level": one.level.to_string().to_lowercase(), "found": one.found, "advice": one.advice })
            })
            .collect();
        tables::print_json(&listed.into());
    } else {
        let rows = found
            .iter()
            .map(|one| {
                let text = match &one.advice {
                    Some(advice) => format!("{}\n→ {advice}", one.found),
                    None => one.found.clone(),
                };
                vec![one.level.to_string(), one.what.to_owned(), text]
            })
            .collect();
        tables::table(&["", "WHAT", "FOUND"], rows);
    }
    let broken = found.iter().filter(|one| one.level == Level::Bad).count();
    match broken {
        0 => Ok(()),
        1 => bail!("1 thing is broken"),
        many => bail!("{many} things are broken"),
    }
}

fn facts(config: &Config) -> Facts {
    let metadata = std::fs::metadata(&config.state).ok();
    let status = ask(config, &Method::GET, tables::STATUS).ok();
    let is_coordinator = pomona_coordinator::authority_folder(config)
        .join("ca.key")
        .exists();
    let (belonging, damaged) = match pomona_node::reach::belonging(config) {
        Ok(belonging) => (belonging, None),
        Err(error) => (None, Some(format!("{:#}", anyhow::Error::from(error)))),
    };
    let joined = belonging.as_ref();
    Facts {
        macos: cfg!(target_os = "macos"),
        state: config.state.clone(),
        state_mode: metadata.map(|metadata| metadata.permissions().mode() & 0o777),
        disk_free: pomona_node::disk_free(&config.state),
        engine: engine(config),
        ports: [
            ("node's HTTP port", config.node_http),
            ("coordinator's HTTP port", config.coordinator_http),
        ]
        .map(|(what, address)| (what, address, port(address)))
        .into(),
        is_coordinator,
        is_laptop: pomona_node::is_laptop(),
        listens_on_loopback: config.quic.ip().is_loopback(),
        node: joined.map(|joined| joined.node),
        expired: joined.is_some_and(Belonging::has_expired),
        damaged,
        coordinators: joined.map(reach).unwrap_or_default(),
        sightings: cluster_of(config, joined)
            .filter(|_| config.mdns)
            .and_then(sightings),
        mdns: config.mdns,
        services: service::installed(),
        status,
    }
}

fn reach(belonging: &Belonging) -> Vec<(SocketAddr, Result<Duration, String>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else {
        return Vec::new();
    };
    let coordinators = belonging.coordinators.iter();
    coordinators
        .map(|address| {
            let reached = runtime.block_on(belonging.reach(*address));
            (*address, reached.map_err(|error| error.to_string()))
        })
        .collect()
}

/// What the engine says about itself; `None` when none is configured.
fn engine(config: &Config) -> Option<Result<String, String>> {
    if config.engine != EngineKind::Mlx {
        return None;
    }
    let Some(program) = pomona_node::engine_path(config) else {
        return Some(Err("pomona-engine is not beside this program".into()));
    };
    let output = info(&program);
    Some(match output {
        Ok(output) if output.status.success() => {
            let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let text = |field: &str| info[field].as_str().unwrap_or("?").to_owned();
            Ok(format!("{}, {}", text("backend"), text("precision")))
        }
        Ok(output) => Err(format!("{} ends with {}", program.display(), output.status)),
        Err(error) => Err(format!("{}: {error}", program.display())),
    })
}

/// Asks the engine, for as long as a sound one takes.
fn info(program: &Path) -> std::io::Result<Output> {
    let mut child = Command::new(program)
        .arg("info")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + ENGINE;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(std::io::Error::other("it does not answer; is the GPU stuck?"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output()
}

fn port(address: SocketAddr) -> Port {
    if TcpStream::connect_timeout(&address, LOOK).is_err() {
        return Port::Free;
    }
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(LOOK))
        .proxy(None)
        .build()
        .into();
    match agent.get(format!("http://{address}/healthz")).call() {
        Ok(_) => Port::Ours,
        Err(_) => Port::Taken,
    }
}

/// The cluster that this machine joined, or founded.
fn cluster_of(config: &Config, joined: Option<&Belonging>) -> Option<ClusterId> {
    let founded = || Authority::open(&pomona_coordinator::authority_folder(config)).ok();
    joined
        .map(|joined| joined.cluster)
        .or_else(|| Some(founded()?.cluster()))
}

/// The coordinators that are seen on the LAN within a moment; `None` when nobody can look.
fn sightings(cluster: ClusterId) -> Option<Vec<u64>> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(limits::CONTACTS);
    let _discovery = Discovery::start(cluster, None, move |sighting| {
        if let Some(number) = sighting.coordinator() {
            // A full channel has enough of them.
            let _ = sender.try_send(number);
        }
    })
    .ok()?;
    std::thread::sleep(LOOK);
    let mut seen: Vec<u64> = receiver.try_iter().collect();
    seen.sort_unstable();
    seen.dedup();
    Some(seen)
}
