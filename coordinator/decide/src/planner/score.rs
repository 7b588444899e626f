//! Which of the nodes that can take a model takes it: points, in whole numbers so that the same
//! inventory gives the same plan everywhere.

use std::fmt;

use pomona_common::conditions::Supply;
use pomona_common::report::Thermal;
use pomona_common::{MachineRole, ModelRecord};

use crate::planner::fit::Site;

/// It answers there already: moving costs a load.
const LOADED: i64 = 400;
/// The weights are there already.
const STORED: i64 = 500;
/// A machine that nobody sits at.
const RACK: i64 = 200;
/// Rent that is paid whether the machine works or not.
const RENT_IS_PAID: i64 = 150;
/// All memory free after it; less in proportion.
const HEADROOM: i64 = 300;
/// A joule a token; at most four times that.
const JOULE: i64 = -50;
/// By thermal state.
const WARM: [(Thermal, i64); 3] = [
    (Thermal::Fair, -100),
    (Thermal::Serious, -300),
    (Thermal::Critical, -600),
];
/// The battery feeds it.
const ON_BATTERY: i64 = -300;
/// It saves power.
const LOW_POWER: i64 = -150;
/// A person's own work keeps it busy.
const OCCUPIED: i64 = -150;
/// Each other model that it holds.
const CROWDED: i64 = -25;
/// Another replica is on this kind of machine, and the policy asks for spread.
const SAME_POOL: i64 = -400;

/// Points with what they are for, the terms that are zero left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Score {
    /// The sum.
    pub points: i64,
    /// Its parts.
    pub parts: Vec<(&'static str, i64)>,
}

impl Score {
    fn add(&mut self, what: &'static str, points: i64) {
        if points != 0 {
            self.points += points;
            self.parts.push((what, points));
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} points", self.points)?;
        for (i, (what, points)) in self.parts.iter().enumerate() {
            let before = if i == 0 { ": " } else { ", " };
            write!(f, "{before}{what} {points:+}")?;
        }
        Ok(())
    }
}

/// How well a model would be placed on a node; `pools` are the kinds of machine that have a
/// replica, for policies that ask for spread.
pub(crate) fn score(site: &Site<'_>, model: &ModelRecord, pools: Option<&[MachineRole]>) -> Score {
    let node = site.node;
    let mut score = Score::default();
    score.add("loaded", LOADED * i64::from(node.loaded.contains(&model.name)));
    score.add("stored", STORED * i64::from(site.stored(model).is_some()));
    let role = site.record.role;
    score.add("rack", RACK * i64::from(role == MachineRole::Rack));
    score.add(
        "rent is paid",
        RENT_IS_PAID * i64::from(role == MachineRole::Rented),
    );
    if let (Some(room), Some(total)) = (site.room(), node.memory_total) {
        let mine = if site.holds.contains(&model.name) {
            0
        } else {
            site.need(model)
        };
        let left = room.saturating_sub(mine);
        let share = u128::from(left) * HEADROOM.unsigned_abs() as u128 / u128::from(total.max(1));
        score.add("headroom", i64::try_from(share).unwrap_or(0));
    }
    if let Some(joules) = node.joules_per_token {
        score.add("energy", (joules.clamp(0.0, 4.0) * JOULE as f32) as i64);
    }
    let warm = WARM.iter().find(|(state, _)| node.thermal == Some(*state));
    score.add("heat", warm.map_or(0, |(_, points)| *points));
    score.add(
        "battery",
        ON_BATTERY * i64::from(node.supply == Some(Supply::Battery)),
    );
    score.add("saves power", LOW_POWER * i64::from(node.low_power == Some(true)));
    score.add("a person's work", OCCUPIED * i64::from(node.occupied));
    let others = site.holds.len() - usize::from(site.holds.contains(&model.name));
    score.add("other models", CROWDED * i64::try_from(others).unwrap_or(0));
    let same = pools.is_some_and(|pools| pools.contains(&role));
    score.add("same kind of machine", SAME_POOL * i64::from(same));
    score
}
