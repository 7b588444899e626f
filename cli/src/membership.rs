//! Tokens and joining.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, bail};
use hyper::Method;
use pomona_cluster_config::Config;
use pomona_common::limits;
use pomona_discovery::Discovery;
use pomona_link::JoinToken;
use pomona_link::join::Joined;
use serde_json::{Value, json};

use crate::admin::{ask, tell};
use crate::arguments::TokenCommand;
use crate::{leases, tables};

pub(crate) fn token(config: &Config, command: &TokenCommand, json: bool) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create {
            minutes,
            role,
            name,
            lease_hours,
            drain_minutes,
        } => {
            let warning =
                format!("The token lets one machine join, as {role}. Whoever has it can be that machine.");
            let lease = lease_hours.map(|hours| leases::lease(hours, *drain_minutes));
            let wanted = json!({
                "ttl_s": minutes.saturating_mul(60), "role": role.to_string(), "name": name, "lease": lease,
            });
            make_token(config, *minutes, &wanted, json, ("pomona node", &warning))?;
        }
        TokenCommand::List => tables::asked(config, "/admin/v1/tokens", json, tables::tokens)?,
        TokenCommand::Revoke { id } => {
            ask(config, &Method::DELETE, &format!("/admin/v1/tokens/{id}"))?;
            tables::say("The token is closed.");
        }
    }
    Ok(())
}

/// Makes a token and says what to type on the new machine: `start` after joining.
pub(crate) fn make_token(
    config: &Config,
    minutes: u64,
    wanted: &Value,
    json: bool,
    (start, warning): (&str, &str),
) -> anyhow::Result<()> {
    let made = tell(config, &Method::POST, "/admin/v1/tokens", wanted)?;
    if json {
        tables::print_json(&made);
        return Ok(());
    }
    let text = |field: &str| made[field].as_str().unwrap_or_default().to_owned();
    tables::say(&format!(
        "On the new machine, within {minutes} minutes:\n\n  pomona join {} --coordinator {}\n  {start}\n\n{warning}",
        text("token"),
        text("coordinator"),
    ));
    let reached = text("coordinator").parse::<SocketAddr>();
    if reached.is_ok_and(|address| address.ip().is_loopback()) {
        tables::say(
            "\nThis coordinator listens on loopback only. To let other machines in, start it with\n\
             POMONA_QUIC=0.0.0.0:7712 (or `quic.listen` in the configuration).",
        );
    }
    Ok(())
}

pub(crate) fn join(
    config: &Config,
    token: &str,
    coordinator: Option<&str>,
    name: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    let token: JoinToken = token.parse()?;
    let addresses = addresses(config, coordinator, &token)?;
    let name = name.map_or_else(|| pomona_node::default_name(config), str::to_owned);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut failures = Vec::new();
    for address in addresses {
        match runtime.block_on(pomona_node::join_cluster(config, &token, address, &name)) {
            Ok(joined) => {
                say_joined(config, &joined, &token, address, json);
                return Ok(());
            }
            Err(error) => failures.push(format!("{:#}", anyhow::Error::from(error))),
        }
    }
    bail!("not joined: {}", failures.join("; "))
}

fn say_joined(config: &Config, joined: &Joined, token: &JoinToken, at: SocketAddr, json: bool) {
    let cluster = token.cluster();
    match joined {
        Joined::Node {
            membership,
            key,
            approved,
        } => {
            let (node, words) = (membership.node(), key.words());
            if json {
                tables::print_json(&json!({
                    "node": node, "cluster": cluster, "coordinator": at, "approved": approved, "words": words,
                }));
                return;
            }
            let place = format!("node {} of cluster {cluster}", node.short());
            tables::say(&format!("This machine is {place}. Start it with `pomona node`."));
            if !approved {
                tables::say(&format!(
                    "An operator must approve it first: its key reads {words}."
                ));
            }
        }
        Joined::Coordinator(commission) => {
            let number = commission.number();
            if json {
                tables::print_json(&json!({ "number": number, "cluster": cluster, "coordinator": at }));
                return;
            }
            tables::say(&format!(
                "This machine is coordinator {number} of cluster {cluster}. Start it with `pomona coordinator`,\n\
                 or `pomona up` to answer requests here as well."
            ));
            if config.quic.ip().is_loopback() && !at.ip().is_loopback() {
                tables::say(
                    "It must listen where the others reach it: set POMONA_QUIC=0.0.0.0:7712, or `quic.listen` in the\n\
                     configuration.",
                );
            }
        }
    }
}

/// Coordinators of a LAN answer within a second; some are slow.
const LOOK: Duration = Duration::from_secs(3);

/// What was typed, else what the configuration says, else who is found on the LAN, else this
/// machine.
fn addresses(
    config: &Config,
    coordinator: Option<&str>,
    token: &JoinToken,
) -> anyhow::Result<Vec<SocketAddr>> {
    if let Some(text) = coordinator {
        let found = text
            .to_socket_addrs()
            .with_context(|| format!("`{text}` is not HOST:PORT, or the host is not known"))?;
        return Ok(found.collect());
    }
    if !config.coordinators.is_empty() {
        return Ok(config.coordinators.clone());
    }
    let mut addresses = if config.mdns {
        found_on_lan(token)?
    } else {
        Vec::new()
    };
    addresses.push(config.own_coordinator());
    Ok(addresses)
}

/// The first coordinator that is found is enough: the others are known to it.
fn found_on_lan(token: &JoinToken) -> anyhow::Result<Vec<SocketAddr>> {
    let (sender, sightings) = std::sync::mpsc::sync_channel(limits::CONTACTS);
    let _discovery = Discovery::start(token.cluster(), None, move |sighting| {
        if sighting.coordinator().is_some() {
            // A full channel has enough of them.
            let _ = sender.try_send(sighting.address);
        }
    })?;
    let first = sightings.recv_timeout(LOOK).ok();
    // Its other addresses come with it.
    Ok(first.into_iter().chain(sightings.try_iter().take(8)).collect())
}
