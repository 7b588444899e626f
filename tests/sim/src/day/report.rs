//! Figures of many runs, side by side.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::day::figures::Figures;
use crate::policy::Policy;

/// Mean of some runs and the half of its 95 % interval.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    pub mean: f64,
    pub half: f64,
}

/// Student's t for 95 % at so many degrees of freedom, from 1 on; the last one holds beyond.
const T: [f64; 20] = [
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11,
    2.10, 2.09, 2.09,
];

impl Mean {
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n.max(1.0);
        if values.len() < 2 {
            return Self { mean, half: 0.0 };
        }
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let t = T[(values.len() - 2).min(T.len() - 1)];
        Self {
            mean,
            half: t * (variance / n).sqrt(),
        }
    }
}

/// A column of the table.
struct Column {
    name: &'static str,
    title: &'static str,
    of: fn(&Figures) -> f64,
    digits: usize,
}

const COLUMNS: [Column; 7] = [
    Column {
        name: "missed_minutes",
        title: "missed min",
        of: |run| run.missed_minutes,
        digits: 2,
    },
    Column {
        name: "ttft_p95_ms",
        title: "TTFT p95",
        of: |run| run.ttft_p95,
        digits: 0,
    },
    Column {
        name: "aggregate_tok_s",
        title: "agg tok/s",
        of: |run| run.aggregate_tok_s,
        digits: 1,
    },
    Column {
        name: "joules_per_token",
        title: "J/token",
        of: |run| run.joules_per_token,
        digits: 2,
    },
    Column {
        name: "hot_s",
        title: "hot s",
        of: |run| run.hot_s,
        digits: 0,
    },
    Column {
        name: "hot_with_aggregate_s",
        title: "hot s (agg)",
        of: |run| run.hot_with_aggregate_s,
        digits: 0,
    },
    Column {
        name: "speed",
        title: "x real time",
        of: |run| run.speed,
        digits: 0,
    },
];

/// What the figures mean.
const DEFINITIONS: [(&str, &str); 5] = [
    (
        "missed minute",
        "of one person: TTFT p95 (of fewer than five requests: any) over 800 ms and what the laptop needs for the prompt tokens that no cache had, or a stream that stalls for 2 s",
    ),
    (
        "capacity",
        "aggregate tokens a second that the machines sustain with no interactive load, each within its comfortable watts, of conversations that stay with it",
    ),
    (
        "load",
        "an hour of requests is a day of eight: whole conversations at eight times their time, with their own time between turns; interactive ones dealt in turn to those whose lid is open, aggregate ones thinned or repeated to the wanted share of capacity",
    ),
    (
        "hot s",
        "seconds of all laptops together above comfortable watts; (agg): with aggregate work there",
    ),
    (
        "tuning",
        "six slots for aggregate work on each machine, a latency buffer of 1: the best of those tried (src/policy.rs)",
    ),
];

/// All runs, by load and policy.
pub struct Report<'a> {
    by: BTreeMap<(u32, Policy), Vec<&'a Figures>>,
}

impl<'a> Report<'a> {
    pub fn of(runs: &'a [Figures]) -> Self {
        let mut by: BTreeMap<(u32, Policy), Vec<&Figures>> = BTreeMap::new();
        for run in runs {
            by.entry((run.load, run.policy)).or_default().push(run);
        }
        Self { by }
    }

    fn mean(&self, load: u32, policy: Policy, of: fn(&Figures) -> f64) -> Option<Mean> {
        let runs = self.by.get(&(load, policy))?;
        Some(Mean::of(&runs.iter().map(|run| of(run)).collect::<Vec<f64>>()))
    }

    fn loads(&self) -> Vec<u32> {
        let mut loads: Vec<u32> = self.by.keys().map(|(load, _)| *load).collect();
        loads.dedup();
        loads
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (what, means) in DEFINITIONS {
            text += &format!("{what}: {means}\n");
        }
        for load in self.loads() {
            text += &format!("\naggregate load at {load} % of capacity; mean ± half of the 95 % interval\n");
            text += &format!("{:14}", "");
            for column in &COLUMNS {
                text += &format!("{:>17}", column.title);
            }
            text.push('\n');
            for policy in Policy::ALL {
                if !self.by.contains_key(&(load, policy)) {
                    continue;
                }
                text += &format!("{policy:14}", policy = policy.to_string());
                for column in &COLUMNS {
                    let Mean { mean, half } = self.mean(load, policy, column.of).unwrap_or_default();
                    let digits = column.digits;
                    let cell = format!("{mean:.digits$} ± {half:.digits$}");
                    text += &format!("{cell:>17}");
                }
                text.push('\n');
            }
        }
        text
    }

    /// Everything of the table, and what is to be shown, as one object.
    pub fn json(&self) -> Value {
        let mut loads = serde_json::Map::new();
        for load in self.loads() {
            let mut policies = serde_json::Map::new();
            for policy in Policy::ALL {
                let Some(runs) = self.by.get(&(load, policy)) else {
                    continue;
                };
                let mut cells = serde_json::Map::new();
                cells.insert("runs".into(), json!(runs.len()));
                for column in &COLUMNS {
                    let Mean { mean, half } = self.mean(load, policy, column.of).unwrap_or_default();
                    cells.insert(column.name.into(), json!({ "mean": mean, "half_interval": half }));
                }
                policies.insert(policy.to_string(), Value::Object(cells));
            }
            let judged = self.judge(load);
            loads.insert(
                load.to_string(),
                json!({ "policies": policies, "promised": judged }),
            );
        }
        let definitions: BTreeMap<&str, &str> = DEFINITIONS.into();
        loads.insert("definitions".into(), json!(definitions));
        Value::Object(loads)
    }

    /// What Pomona promises, against the best of the others for each figure.
    fn judge(&self, load: u32) -> Value {
        let others = |of: fn(&Figures) -> f64, pick: fn(f64, f64) -> f64| {
            let others = Policy::ALL.into_iter().filter(|policy| *policy != Policy::Pomona);
            let means = others.filter_map(|policy| Some(self.mean(load, policy, of)?.mean));
            means.reduce(pick)
        };
        let ours = |of: fn(&Figures) -> f64| self.mean(load, Policy::Pomona, of).map(|mean| mean.mean);
        let against = |ours: Option<f64>, other: Option<f64>, holds: fn(f64, f64) -> bool| {
            let (ours, other) = (ours?, other?);
            Some(json!({ "pomona": ours, "best_other": other, "holds": holds(ours, other) }))
        };
        let row = |of: fn(&Figures) -> f64, pick: fn(f64, f64) -> f64, holds: fn(f64, f64) -> bool| {
            against(ours(of), others(of, pick), holds)
        };
        // Who keeps batch off the laptops has what their people's own work does there, and no hot seconds with batch.
        let uses_laptops = |policy: &Policy| !matches!(policy, Policy::Pomona | Policy::Split);
        let on_laptops = Policy::ALL.into_iter().filter(uses_laptops);
        let hot = on_laptops
            .filter_map(|policy| Some(self.mean(load, policy, |run| run.hot_with_aggregate_s)?.mean));
        let least_bad = hot.reduce(f64::min);
        json!({
            "laptop seconds above comfort with batch there at most 10 % of the least bad other's that uses laptops":
                against(ours(|run| run.hot_with_aggregate_s), least_bad, |ours, other| ours <= 0.1 * other),
            "missed minutes at most 25 % of the best other's":
                row(|run| run.missed_minutes, f64::min, |ours, best| ours <= 0.25 * best),
            "missed minutes at most 1 a person and day": ours(|run| run.missed_minutes).map(|ours| ours <= 1.0),
            "aggregate throughput at least 95 % of the best other's":
                row(|run| run.aggregate_tok_s, f64::max, |ours, best| ours >= 0.95 * best),
            "joules a token at most 105 % of the best other's":
                row(|run| run.joules_per_token, f64::min, |ours, best| ours <= 1.05 * best),
            "every run at least 500 times real time on its core":
                self.by.values().flatten().map(|run| run.speed).reduce(f64::min).map(|slowest| slowest >= 500.0),
            "laptop seconds above comfort at most 10 % of the least bad other's":
                row(|run| run.hot_s, f64::min, |ours, best| ours <= 0.1 * best),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_student_s() {
        let Mean { mean, half } = Mean::of(&[1.0, 2.0, 3.0]);
        assert!((mean - 2.0).abs() < 1e-9 && (half - 2.484).abs() < 0.01, "{half}");
        assert_eq!(Mean::of(&[4.0]), Mean { mean: 4.0, half: 0.0 });
    }
}
