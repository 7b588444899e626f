//! Whether a node has too much to do, by what it reports.

use pomona_common::conditions::Supply;
use pomona_common::report::Thermal;
use pomona_common::unit::Reading;
use pomona_common::{MachineRole, Rung, Watts};

use super::NodeSignals;
use crate::planner::PRESSURE_MAX;
use crate::scarcity::PRESSURE_LEFT;

/// A node that was stressed is until its watts are below this share of its comfort: those of a machine
/// at the edge come and go.
const COMFORT_LEFT: f32 = 0.95;

/// Steps below this share of their usual speed, in percent, say that a chip throttles: a Mac without a fan comes down
/// to 75 % in stress tests (`tests/sim/macs.toml` has the source).
const SLOWED: u32 = 80;
/// They did until they are above this.
const SLOWED_LEFT: u32 = 88;

/// Where less than this is comfortable, a screen and its person's own requests leave batch next to nothing: a sixth of
/// a MacBook Air's time, which has no fan. What warmth batch adds there slows down its person's requests for minutes: of
/// the simulated day (`sim day`) Airs made a hundredth of the tokens, and had three quarters of the missed minutes.
pub(super) const LITTLE_COMFORT: Watts = Watts(10.0);

/// Too much.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stress {
    /// How far it may be relieved for that.
    pub(super) up_to: Rung,
    /// Whether that will hardly be over in a minute: where a machine is too warm, it often is.
    pub(super) lasts: bool,
    /// Whether it is short of memory.
    pub(super) frees_memory: bool,
    /// How far it must be relieved without waiting for a moment.
    pub(super) sudden_to: Rung,
    /// Everything that stresses it.
    pub(super) reason: String,
}

/// What a node is to be spared, besides what its report says.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) role: MachineRole,
    pub(super) comfort: Option<Watts>,
    /// Power, smoothed.
    pub(super) watts: Option<f32>,
    /// Whether little is comfortable there, and batch has no need of it.
    pub(super) is_needless: bool,
    /// Whether another node takes what works there.
    pub(super) can_go: bool,
    /// How far its gates want it relieved, and why.
    pub(super) gates: Vec<(Rung, String)>,
}

/// What it was at the last look: to be so no more it has to be clearly better.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// In any way.
    pub(super) stressed: bool,
    /// Of memory.
    pub(super) short: bool,
}

/// Whether it is stressed.
pub(super) fn stress(signals: &NodeSignals, limits: Limits, before: Before) -> Option<Stress> {
    let mut reasons: Vec<(Rung, String)> = Vec::new();
    let (mut frees_memory, mut sudden_to, mut lasts) = (false, Rung::Normal, false);
    if let (Some(watts), Some(comfort)) = (limits.watts, limits.comfort.map(Watts::get)) {
        let limit = if before.stressed {
            comfort * COMFORT_LEFT
        } else {
            comfort
        };
        if watts > limit {
            let how = match signals.power {
                Reading::Scripted(_) => " (scripted)",
                _ => "",
            };
            let text = format!("{watts:.0} W{how}, comfortable are {comfort:.0} W");
            reasons.push((Rung::MoveRunning, text));
        }
    }
    if let Some(comfort) = limits.comfort.filter(|_| limits.is_needless) {
        lasts = true;
        let text = format!(
            "its {:.0} W of comfort leave no room while its person is there, and others have its models",
            comfort.get()
        );
        // What nobody takes goes on at its pace.
        let up_to = if limits.can_go {
            Rung::MoveRunning
        } else {
            Rung::Hold
        };
        reasons.push((up_to, text));
    }
    if let Some(thermal) = signals.thermal.filter(|thermal| *thermal >= Thermal::Serious) {
        sudden_to = Rung::MoveRunning;
        reasons.push((Rung::MoveRunning, format!("its thermal state is {thermal}")));
    }
    let limit = PRESSURE_MAX - if before.short { PRESSURE_LEFT } else { 0.0 };
    if let Some(pressure) = signals.pressure.filter(|pressure| *pressure > limit) {
        (frees_memory, sudden_to) = (true, Rung::MoveRunning);
        reasons.push((Rung::Unload, format!("memory pressure is {pressure:.0} %")));
    }
    if limits.role == MachineRole::Laptop && signals.supply == Some(Supply::Battery) {
        lasts = true;
        reasons.push((Rung::MoveRunning, "it runs on its battery".into()));
    }
    if signals.low_power == Some(true) {
        lasts = true;
        reasons.push((Rung::MoveRunning, "it saves power".into()));
    }
    if let Some(percent) = slowed(signals, &limits, before) {
        let text = format!("its steps have slowed down to {percent} %, whatever its thermal state says");
        reasons.push((Rung::MoveRunning, text));
    }
    if signals.occupied {
        // What competes with a build is kept small; whether it is too much, watts say.
        reasons.push((Rung::Tighten, "a person's own work keeps it busy".into()));
    }
    if let Some(late) = &signals.late {
        reasons.push((Rung::Tighten, late.clone()));
    }
    // They have waited for their time.
    let gates = limits.gates.iter().map(|(rung, _)| *rung).max();
    sudden_to = sudden_to.max(gates.unwrap_or_default());
    reasons.extend(limits.gates);
    let up_to = reasons.iter().map(|(rung, _)| *rung).max()?;
    let texts: Vec<String> = reasons.into_iter().map(|(_, text)| text).collect();
    Some(Stress {
        up_to,
        lasts,
        frees_memory,
        sudden_to,
        reason: texts.join(", "),
    })
}

/// To which speed the steps of a machine have come down whose comfort somebody minds. A chip throttles long before
/// macOS says more than *fair*; a build slows steps down as well, and is known.
fn slowed(signals: &NodeSignals, limits: &Limits, before: Before) -> Option<u32> {
    let limit = if before.stressed { SLOWED_LEFT } else { SLOWED };
    let percent = signals.speeds?.steps_percent.filter(|percent| *percent < limit);
    percent.filter(|_| limits.comfort.is_some() && !signals.occupied && signals.batch() > 0)
}
