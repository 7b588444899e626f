//! Who takes part in the next step.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{Class, ModelName};

use crate::admission::window_left;
use crate::scheduler::{Decision, RowWork, Scheduler, Step};
use crate::sequence::{Phase, Sequence, SequenceId};

pub(crate) fn compose(scheduler: &mut Scheduler, now: Duration, admitted: Vec<SequenceId>) -> Decision {
    let Some(model) = pick_model(scheduler) else {
        let wake = Class::ALL
            .iter()
            .filter_map(|class| window_left(scheduler, *class, now))
            .min();
        return wake.map_or(Decision::Idle, |at| Decision::WaitUntil(at, "batch window"));
    };
    scheduler.step_count += 1;
    scheduler.last_run.insert(model.clone(), scheduler.step_count);
    let takes_part = share_steps(scheduler);
    let prefill_class = most_urgent_prefill(scheduler, &model, &takes_part);
    let mut budget = prefill_class.map_or(0, |class| scheduler.knobs.class(class).prefill_chunk);

    let mut rows = Vec::new();
    let mut paused = Vec::new();
    for (id, sequence) in in_order_of_admission(scheduler, &model) {
        let joins = takes_part[sequence.class.index()];
        match sequence.phase {
            Phase::Waiting => {}
            Phase::Decode if joins => {
                let fed = sequence.known - 1;
                rows.extend(row(scheduler, id, fed, 1, true));
            }
            Phase::Prefill { done } if joins && prefill_class == Some(sequence.class) && budget > 0 => {
                let len = (sequence.known - done).min(budget);
                budget -= len;
                rows.extend(row(scheduler, id, done, len, done + len == sequence.known));
            }
            Phase::Decode | Phase::Prefill { .. } => paused.push(id),
        }
    }
    rows.sort_by(|a, b| a.place.cmp(&b.place));
    Decision::Step(Step {
        model,
        admitted,
        rows,
        paused,
    })
}

/// The model that runs: one with work of the most urgent class first token first, then whoever
/// waited longest. A model with only less urgent work gets its turn when it has not run since
/// the urgent one, and its class has earned a step.
fn pick_model(scheduler: &Scheduler) -> Option<ModelName> {
    let mut urgency: BTreeMap<&ModelName, (Class, bool)> = BTreeMap::new();
    for sequence in scheduler.sequences.values().filter(|s| s.is_running()) {
        let first_token =
            sequence.class == Class::Interactive && matches!(sequence.phase, Phase::Prefill { .. });
        let entry = urgency.entry(&sequence.model).or_insert((sequence.class, false));
        entry.0 = entry.0.min(sequence.class);
        entry.1 |= first_token;
    }
    let last = |model: &ModelName| scheduler.last_run.get(model).copied().unwrap_or(0);
    let waiting_for_first = urgency
        .iter()
        .filter(|(_, (_, first_token))| *first_token)
        .min_by_key(|(model, _)| last(model));
    if let Some((model, _)) = waiting_for_first {
        return Some((*model).clone());
    }
    let top = urgency.values().map(|(class, _)| *class).min()?;
    urgency
        .iter()
        .filter(|(_, (class, _))| *class == top || has_earned(scheduler, *class))
        .min_by_key(|(model, (class, _))| (last(model), *class))
        .map(|(model, _)| (*model).clone())
}

fn has_earned(scheduler: &Scheduler, class: Class) -> bool {
    scheduler.credit[class.index()] + scheduler.knobs.class(class).step_share >= 100
}

/// Which classes take part in a step: a class always does when nothing more urgent runs, else
/// in its share of the steps.
fn share_steps(scheduler: &mut Scheduler) -> [bool; 3] {
    let running = Class::ALL.map(|class| scheduler.population(Some(class), None).1 > 0);
    let mut takes_part = [true; 3];
    for class in Class::ALL {
        let i = class.index();
        let contested = running[..i].iter().any(|runs| *runs);
        if !running[i] || !contested {
            scheduler.credit[i] = 0;
            continue;
        }
        scheduler.credit[i] += scheduler.knobs.class(class).step_share;
        takes_part[i] = scheduler.credit[i] >= 100;
        if takes_part[i] {
            scheduler.credit[i] -= 100;
        }
    }
    takes_part
}

fn most_urgent_prefill(scheduler: &Scheduler, model: &ModelName, takes_part: &[bool; 3]) -> Option<Class> {
    scheduler
        .sequences
        .values()
        .filter(|s| s.model == *model && takes_part[s.class.index()])
        .filter(|s| matches!(s.phase, Phase::Prefill { .. }))
        .map(|s| s.class)
        .min()
}

fn in_order_of_admission(scheduler: &Scheduler, model: &ModelName) -> Vec<(SequenceId, Sequence)> {
    let mut running: Vec<(SequenceId, Sequence)> = scheduler
        .sequences
        .iter()
        .filter(|(_, s)| s.model == *model && s.is_running())
        .map(|(id, s)| (*id, s.clone()))
        .collect();
    running.sort_by_key(|(_, s)| s.admitted);
    running
}

fn row(scheduler: &Scheduler, id: SequenceId, start: u32, len: u32, emits: bool) -> Option<RowWork> {
    let place = scheduler.pool.place(id)?;
    Some(RowWork {
        id,
        place,
        start,
        len,
        emits,
    })
}
