//! The node's report, once a second.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pomona_api::EntryStats;
use pomona_cluster_config::Config;
use pomona_common::ModelName;
use pomona_common::report::{MachineReport, NodeReport, REPORT_VERSION};
use pomona_common::signs::{Signs, Speeds};
use pomona_common::unit::{Bytes, Reading};
use pomona_probe::{Probe, Watched};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::supervisor::{EngineView, Family, Supervisor};

/// A handle on the latest report; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    latest: watch::Receiver<Arc<Reported>>,
}

/// What is told once a second.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    pub(crate) report: Arc<NodeReport>,
    pub(crate) signs: Signs,
    pub(crate) speeds: Speeds,
    pub(crate) kill_causes: BTreeMap<ModelName, String>,
}

impl Reporter {
    pub(crate) fn start(
        config: &Config,
        supervisor: &Supervisor,
        not_brought: Option<watch::Receiver<BTreeSet<ModelName>>>,
        entry_stats: Arc<EntryStats>,
        tasks: &mut JoinSet<()>,
        stopped: CancellationToken,
    ) -> Self {
        let mut probe = Probe::new(config.probe_power, config.probe_script.clone());
        let interval = config.probe_interval;
        let (supervisor, engine) = (supervisor.clone(), supervisor.view());
        let first = report(0, MachineReport::default(), &engine, &entry_stats);
        let (publish, latest) = watch::channel(Arc::new(Reported {
            report: Arc::new(first),
            ..Reported::default()
        }));
        tasks.spawn(async move {
            let mut sequence = 0;
            loop {
                sequence += 1;
                let (serves, pid) = {
                    let view = engine.borrow();
                    (view.serves, view.pid)
                };
                let served = serves.map(Watched::WithChildren);
                let machine = probe.sample(served.or(pid.map(Watched::Alone)));
                let family = serves.map(|server| Family {
                    server,
                    started: probe.started(),
                });
                supervisor.note_machine(&machine, family.unwrap_or_default());
                let mut report = report(sequence, machine, &engine, &entry_stats);
                if let Some(not_brought) = &not_brought {
                    report.failed.extend(not_brought.borrow().iter().cloned());
                }
                // Read before, not while the engine's state is borrowed.
                let swapped_out = probe.swapped_out();
                let (signs, speeds, kill_causes) = {
                    let view = engine.borrow();
                    (signs(&view, swapped_out), view.speeds, view.kill_causes.clone())
                };
                let report = Arc::new(report);
                publish.send_replace(Arc::new(Reported {
                    report,
                    signs,
                    speeds,
                    kill_causes,
                }));
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = stopped.cancelled() => return,
                }
            }
        });
        Self { latest }
    }

    /// The latest report, and news of it.
    pub(crate) fn latest(&self) -> watch::Receiver<Arc<Reported>> {
        self.latest.clone()
    }
}

fn report(
    sequence: u64,
    machine: MachineReport,
    engine: &watch::Receiver<EngineView>,
    entry_stats: &EntryStats,
) -> NodeReport {
    let view = engine.borrow();
    NodeReport {
        version: REPORT_VERSION,
        wall_ms: pomona_clocks::wall_ms(),
        sequence,
        machine,
        engine: view.report.as_deref().cloned(),
        first_byte_ms: entry_stats.first_bytes(),
        // The MLX back end of anything but a Mac is the CPU.
        dequantizes: !cfg!(target_os = "macos"),
        kv_budget_bytes: view.kv_budget_bytes,
        engine_kills: view.kills,
        reached_generation: view.generation,
        blocked: view.blocked(),
        failed: view.failed.keys().cloned().collect(),
    }
}

fn signs(view: &EngineView, swapped_out: Reading<Bytes>) -> Signs {
    Signs {
        swapped_out,
        kills: view.kills_of.clone(),
        answers: view.answers,
        first_tokens: view.first_tokens.iter().cloned().collect(),
    }
}
