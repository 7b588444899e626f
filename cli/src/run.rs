//! The long-running commands.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use pomona_cluster_config::Config;
use pomona_common::ClusterId;
use pomona_coordinator::Coordinator;
use pomona_link::Authority;
use pomona_node::Node;
use tokio::signal::unix::{SignalKind, signal};

use crate::progress::Progress;
use crate::tables;

/// Threads that serve requests, where there are so many cores: the agent's work is small, and the
/// cores belong to the engine.
const WORKERS_MAX: usize = 4;

/// Runs as an engine that asks a server of another program.
pub(crate) fn adopted_engine() -> anyhow::Result<()> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build()?;
    Ok(runtime.block_on(pomona_node::adopted::engine::run())?)
}

/// What to run in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    Both,
    Coordinator,
    Node,
}

/// Runs until SIGINT or SIGTERM.
pub(crate) fn run(config: &Config, parts: Parts, progress: &Progress) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS_MAX.min(std::thread::available_parallelism().map_or(1, Into::into)))
        .max_blocking_threads(8)
        .enable_all()
        .build()?;
    runtime.block_on(run_parts(config, parts, progress))
}

async fn run_parts(config: &Config, parts: Parts, progress: &Progress) -> anyhow::Result<()> {
    keep_private(&config.state)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let authority_folder = pomona_coordinator::authority_folder(config);
    let authority = match parts {
        Parts::Both | Parts::Coordinator => Some(pomona_coordinator::open_authority(config, new_cluster()?)?),
        // On the machine of the coordinator the node uses the same authority.
        Parts::Node if authority_folder.join("ca.key").exists() => {
            Some(Authority::open(&authority_folder)?.into())
        }
        Parts::Node => None,
    };
    let mut coordinator = match (parts, &authority) {
        (Parts::Both | Parts::Coordinator, Some(authority)) => {
            let machine = (pomona_node::default_name(config), pomona_node::is_laptop());
            Some(Coordinator::start(config, authority.clone(), machine).await?)
        }
        _ => None,
    };
    let mut node = match parts {
        Parts::Both | Parts::Node => Some(Node::start(config, authority).await?),
        Parts::Coordinator => None,
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = show_loads(node.as_ref(), progress) => {}
        () = departed(node.as_ref()) => {
            tables::say("The lease of this machine has ended. Nothing of the cluster is left on it.");
        }
    }
    tracing::info!("stopping");
    // Answers go through coordinator and node: both accept no more before either ends.
    tokio::join!(
        async {
            if let Some(coordinator) = &mut coordinator {
                coordinator.drain().await;
            }
        },
        async {
            if let Some(node) = &mut node {
                node.drain().await;
            }
        },
    );
    if let Some(node) = node {
        node.stop().await;
    }
    if let Some(coordinator) = coordinator {
        coordinator.stop().await;
    }
    Ok(())
}

/// Shows how far loads are for as long as the process runs.
async fn show_loads(node: Option<&Node>, progress: &Progress) {
    if let Some(node) = node {
        let mut bars = progress.loads();
        node.follow_loads(|loads| bars.show(loads)).await;
    }
    std::future::pending().await
}

/// A machine whose lease has ended has nothing more to do.
async fn departed(node: Option<&Node>) {
    match node {
        Some(node) => node.departed().await,
        None => std::future::pending().await,
    }
}

/// Keys, tokens and the replicated state are nobody else's: other users of the machine do not
/// look into the folder.
fn keep_private(state: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(state)
        .and_then(|()| fs::set_permissions(state, fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("cannot use {}", state.display()))
}

/// Makes the cluster's authority, unless there is one.
pub(crate) fn init(config: &Config, json: bool) -> anyhow::Result<()> {
    keep_private(&config.state)?;
    if let Ok(authority) = Authority::open(&pomona_coordinator::authority_folder(config)) {
        bail!("this machine has cluster {} already", authority.cluster());
    }
    let authority = pomona_coordinator::open_authority(config, new_cluster()?)?;
    if json {
        tables::print_json(&serde_json::json!({ "cluster": authority.cluster() }));
    } else {
        tables::say(&format!(
            "Cluster {} is made. Start it with `pomona up`, or `pomona coordinator` for a machine without engine.",
            authority.cluster()
        ));
    }
    Ok(())
}

fn new_cluster() -> anyhow::Result<ClusterId> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).context("the system gives no randomness")?;
    Ok(ClusterId::from_bits(u128::from_le_bytes(bits)))
}
