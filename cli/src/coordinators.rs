//! The coordinators of the cluster.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::{Value, json};

use crate::admin::ask;
use crate::arguments::CoordinatorCommand;
use crate::membership::make_token;
use crate::{service, tables};

const PATH: &str = "/admin/v1/coordinators";
/// Handing over takes two commits; longer means that nobody is there to hand over to.
const HAND_OVER: Duration = Duration::from_secs(20);

pub(crate) fn run(
    config: &Config,
    file: Option<&Path>,
    command: &CoordinatorCommand,
    json: bool,
) -> anyhow::Result<()> {
    match command {
        CoordinatorCommand::Add { minutes, name } => {
            let warning = "The token makes one machine a coordinator: it is given the cluster's authority. Whoever has\n\
                           the token can be the cluster, so hand it over as you would a key. Three coordinators go on\n\
                           when one is lost; with two, the second only follows.";
            let start = "POMONA_QUIC=0.0.0.0:7712 pomona coordinator";
            let wanted = json!({ "ttl_s": minutes.saturating_mul(60), "role": "coordinator", "name": name });
            make_token(config, *minutes, &wanted, json, (start, warning))
        }
        CoordinatorCommand::List => list(config, json),
        CoordinatorCommand::InstallService(options) => {
            service::install((config, file), "coordinator", options)
        }
        CoordinatorCommand::UninstallService => service::uninstall(config, "coordinator"),
        CoordinatorCommand::Remove { number } => {
            ask(config, &Method::DELETE, &format!("{PATH}/{number}"))?;
            tables::say(&format!(
                "Coordinator {number} is removed; the others refuse it from now on. It has known the cluster's\n\
                 authority: when its machine is not yours any more, found a new cluster."
            ));
            Ok(())
        }
        CoordinatorCommand::Move => hand_over(config),
    }
}

fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    let listed = ask(config, &Method::GET, PATH)?;
    if json {
        tables::print_json(&listed);
        return Ok(());
    }
    let records = listed.as_array().map_or(&[][..], Vec::as_slice);
    let rows = records.iter().map(row).collect();
    tables::table(&["NUMBER", "NAME", "ADDRESS", "PART", "STATE"], rows);
    for warning in warnings(records) {
        tables::say(&warning);
    }
    Ok(())
}

fn row(record: &Value) -> Vec<String> {
    let text = |field: &str| record[field].as_str().unwrap_or("-").to_owned();
    let part = if record["leads"] == true {
        "leads".to_owned()
    } else if record["votes"] == true {
        "votes".to_owned()
    } else {
        match record["behind"].as_u64() {
            Some(behind) => format!("follows, {behind} behind"),
            None => "follows".to_owned(),
        }
    };
    let state = match (record["this"] == true, record["connected"] == true) {
        (true, _) => "this one",
        (false, true) => "up",
        (false, false) => "not in reach",
    };
    vec![
        record["number"].to_string(),
        text("name"),
        text("address"),
        part,
        state.to_owned(),
    ]
}

/// What an operator should know about the coordinators.
pub(crate) fn warnings(records: &[Value]) -> Vec<String> {
    let voters: Vec<&Value> = records.iter().filter(|record| record["votes"] == true).collect();
    let mut warnings = Vec::new();
    let spare = voters.iter().filter(|record| record["connected"] == true).count();
    let majority = voters.len() / 2 + 1;
    if voters.len() > 1 && spare < majority {
        warnings.push(format!(
            "warning: {spare} of {} voters are in reach, and {majority} are needed: requests are answered, nothing can be changed",
            voters.len()
        ));
    } else if voters.len() > 1 && spare == majority {
        warnings.push("warning: the loss of one more coordinator stops all changes".to_owned());
    }
    for laptop in voters.iter().filter(|record| record["laptop"] == true) {
        warnings.push(format!(
            "warning: coordinator {} runs on a laptop, which sleeps and leaves; `pomona coordinator move` there takes the cluster off it",
            laptop["number"]
        ));
    }
    warnings
}

/// Removes this machine's coordinator, once another one has everything.
fn hand_over(config: &Config) -> anyhow::Result<()> {
    let listed = ask(config, &Method::GET, PATH)?;
    let records = listed.as_array().map_or(&[][..], Vec::as_slice);
    let Some(own) = records.iter().find(|record| record["this"] == true) else {
        bail!("this machine's coordinator is not part of the cluster any more");
    };
    let ready = |record: &&Value| {
        record["this"] != true
            && record["connected"] == true
            && (record["votes"] == true || record["behind"].is_u64())
    };
    if !records.iter().any(|record| ready(&record)) {
        bail!(
            "no other coordinator is ready to take over; add one with `pomona coordinator add`, and look with `pomona coordinator list`"
        );
    }
    let number = own["number"].clone();
    ask(config, &Method::DELETE, &format!("{PATH}/{number}"))?;
    let deadline = Instant::now() + HAND_OVER;
    while Instant::now() < deadline {
        let status = ask(config, &Method::GET, "/admin/v1/status")?;
        if status["raft"]["member"] == false {
            tables::say(&format!(
                "The cluster goes on without coordinator {number}. Stop it here; a node on this machine needs the address\n\
                 of another coordinator, which it has learned while it was connected."
            ));
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("the others have not taken over within {HAND_OVER:?}; look with `pomona coordinator list`")
}
