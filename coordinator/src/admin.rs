//! The admin API, on a Unix socket whose peer must be the same user.

mod agreed;
mod asked;
mod audit;
mod clouds;
mod coordinators;
mod fallback;
mod gates;
mod history;
mod keys;
mod knobs;
mod leases;
mod membership;
mod offload;
mod placement;
mod slo;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path as UrlPath};
use axum::http::{StatusCode, header};
use axum::routing::{delete, get};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pomona_api::Backend;
use pomona_clocks::wall_s;
use pomona_common::{ModelName, limits};
use pomona_decide::gates::Choices;
use pomona_decide::{Audited, ClusterState, Command, Reply, presence};
use pomona_link::Authority;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::audit::Chain;
use crate::backend::CoordinatorBackend;
use crate::peers::Peers;
use asked::Asked;

/// Admin connections at once: a few terminals and a dashboard.
const CONNECTIONS: usize = 32;

/// What the admin API works on.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) backend: Arc<CoordinatorBackend>,
    pub(crate) authority: Arc<Authority>,
    pub(crate) peers: Peers,
    /// What the operator chose about gates.
    pub(crate) choices: Choices,
    /// The log of changes.
    pub(crate) audit: Chain,
    /// The log of what went to clouds.
    pub(crate) spills: Chain,
    /// Where nodes dial in.
    pub(crate) quic: SocketAddr,
}

/// Serves the admin API on `path` until the stop.
pub(crate) fn serve(
    path: &Path,
    admin: Admin,
    tasks: &mut JoinSet<()>,
    stop: CancellationToken,
) -> io::Result<()> {
    // Left over from a process that was killed; a running one holds the HTTP port.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(path)?);
    let router = Router::new()
        .route("/admin/v1/status", get(status))
        .route(
            "/admin/v1/models/{*name}",
            delete(remove_model).patch(placement::change_policy),
        )
        .merge(membership::routes())
        .merge(audit::routes())
        .merge(clouds::routes())
        .merge(coordinators::routes())
        .merge(fallback::routes())
        .merge(slo::routes())
        .merge(gates::routes())
        .merge(history::routes())
        .merge(keys::routes())
        .merge(knobs::routes())
        .merge(leases::routes())
        .merge(offload::routes())
        .merge(placement::routes())
        .layer(DefaultBodyLimit::max(limits::ADMIN_BODY_BYTES))
        .with_state(admin);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let socket = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => socket,
                    Err(_) => continue,
                },
                _ = connections.join_next(), if !connections.is_empty() => continue,
                () = stop.cancelled() => return,
            };
            let same_user = socket.peer_cred().is_ok_and(|peer| peer.uid() == owner);
            if !same_user || connections.len() >= CONNECTIONS {
                continue;
            }
            let service = TowerToHyperService::new(router.clone());
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(limits::HEADER_READ_TIMEOUT);
            let connection = builder.serve_connection(TokioIo::new(socket), service);
            connections.spawn(async move {
                let _ = connection.await;
            });
        }
    });
    Ok(())
}

type Answer = (StatusCode, [(header::HeaderName, &'static str); 1], String);

fn reply(status: StatusCode, body: &Value) -> Answer {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
}

/// What was asked for makes no sense.
fn bad(why: impl Into<String>) -> Answer {
    reply(StatusCode::BAD_REQUEST, &json!({ "error": why.into() }))
}

/// It makes sense, and cannot be done now.
fn unavailable(why: &dyn std::fmt::Display) -> Answer {
    reply(
        StatusCode::SERVICE_UNAVAILABLE,
        &json!({ "error": why.to_string() }),
    )
}

/// A body as it has to be.
fn parsed<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    serde_json::from_slice(body).map_err(|error| bad(error.to_string()))
}

async fn status(admin: Asked) -> Answer {
    let backend = &admin.backend;
    let raft = backend.replica.summary();
    let member = backend.replica.belongs().await;
    let state = backend.replica.known();
    let nodes: Vec<Value> = state
        .nodes
        .iter()
        .map(|(id, record)| {
            let connected = backend.sessions.get(*id);
            let report = connected.as_ref().and_then(|connected| connected.report());
            json!({
                "id": id,
                "name": record.name,
                "role": record.role,
                "joined_s": record.joined_s,
                "approved": record.approved,
                "key": record.key.map(|key| key.to_string()),
                "words": record.key.map(|key| key.words()),
                "connected": connected.is_some(),
                "connected_s": connected.as_ref().map(|connected| connected.since.elapsed().as_secs()),
                "version": connected.as_ref().map(|connected| connected.version.clone()),
                "report_age_ms": report.as_ref().map(|(age, _)| age.as_millis() as u64),
                "report": report.as_ref().map(|(_, report)| report),
                "target": state.plan.nodes.get(id),
                "kills_s": record.kills_s,
                "availability": state.availability(*id, wall_s()),
                "presence": connected.as_ref().map_or(presence(record.role, None), |connected| {
                    connected.presence(record.role)
                }),
                "line": connected.as_ref().map(|connected| connected.session.line()),
                "round_trip_ms": connected.as_ref().map(|connected| {
                    connected.session.round_trip().as_secs_f64() * 1e3
                }),
                "address": connected.as_ref().map(|connected| connected.session.remote_address()),
                "disk_free_bytes": connected.as_ref().and_then(|connected| connected.disk_free()),
                "slept_ms": connected.as_ref().and_then(|connected| connected.slept_ms()),
                "lease": state.leases.of_nodes.get(id),
                "relieved": state.offload.relieved.get(id),
                "speeds": connected.as_ref().and_then(|connected| connected.speeds()),
                "comfort_watts": report
                    .as_ref()
                    .and_then(|(_, report)| state.comfort(*id, &report.machine.chip)),
            })
        })
        .collect();
    let body = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cluster": state.cluster,
        "raft": {
            "number": backend.replica.number(), "term": raft.term, "applied": raft.applied,
            "leader": raft.leader, "leads": backend.replica.is_leader(),
            "member": member,
            "stopped": backend.replica.stopped(),
        },
        "coordinators": coordinators::listed(&backend.replica, &admin.peers),
        "plan": state.plan.id,
        "nodes": nodes,
        "models": state.catalogue.values().collect::<Vec<_>>(),
        "loaded": backend.loaded(),
        "not_ready": backend.not_ready(),
    });
    reply(StatusCode::OK, &body)
}

/// Takes a model out of the catalogue. One that a connected node still stores comes back with
/// the next round, so the store is cleared first.
async fn remove_model(admin: Asked, UrlPath(name): UrlPath<String>) -> Answer {
    let name: ModelName = match name.parse() {
        Ok(name) => name,
        Err(error) => return bad(error.to_string()),
    };
    write(&admin, Command::RemoveModel(name)).await
}

/// The state with everything that was acknowledged anywhere, for answers that decide something.
async fn current(admin: &Admin) -> Result<Arc<ClusterState>, Answer> {
    admin
        .backend
        .replica
        .read()
        .await
        .map_err(|error| unavailable(&error))
}

/// Commits a command with who wants it, and says how that went.
async fn write(asked: &Asked, command: Command) -> Answer {
    let replica = &asked.backend.replica;
    let deed = audit::deed(&replica.known(), &command, &asked.by);
    let mut audited = Command::Audited(Box::new(Audited { deed, command }));
    // While a coordinator is there that knows of no log, changes are made without.
    if replica.too_new(&audited).is_some()
        && let Command::Audited(inner) = audited
    {
        audited = inner.command;
    }
    match replica.write(audited).await {
        Ok(Reply::Done) => reply(StatusCode::OK, &json!({ "changed": true })),
        Ok(Reply::Unchanged) => reply(StatusCode::OK, &json!({ "changed": false })),
        Ok(Reply::Refused(why)) => reply(StatusCode::CONFLICT, &json!({ "error": why })),
        Err(error) => unavailable(&error),
    }
}
