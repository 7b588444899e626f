//! The rows of the next step.

use std::time::Duration;

use pomona_common::{Class, ModelName};

use crate::admission::window_left;
use crate::scheduler::{Decision, RowWork, Scheduler, Step};
use crate::sequence::{Phase, Sequence, SequenceId};
use crate::turns::{self, Turn};

pub(crate) fn compose(scheduler: &mut Scheduler, now: Duration) -> Decision {
    match turns::next(scheduler) {
        Some(Turn::Resume(class)) => match scheduler.unpark(class) {
            Some(step) => Decision::Resume(step),
            None => Decision::Idle,
        },
        Some(Turn::Begin { class, model, rides }) => Decision::Begin(begin(scheduler, class, model, rides)),
        None => {
            let wake = Class::ALL
                .iter()
                .filter_map(|class| window_left(scheduler, *class, now))
                .min();
            wake.map_or(Decision::Idle, |at| Decision::WaitUntil(at, "batch window"))
        }
    }
}

fn begin(scheduler: &Scheduler, class: Class, model: ModelName, rides: [bool; 3]) -> Step {
    let mut budget = scheduler.knobs.class(class).prefill_chunk;
    let mut rows = Vec::new();
    let mut paused = Vec::new();
    for (id, sequence) in in_order_of_admission(scheduler, &model) {
        let rows_before = rows.len();
        if turns::takes_part(sequence, class, rides) && !scheduler.is_parked(id) {
            let (start, len) = match sequence.phase {
                Phase::Prefill { done } => (done, (sequence.known - done).min(budget)),
                Phase::Decode | Phase::Waiting => (sequence.known - 1, 1),
            };
            if let Phase::Prefill { .. } = sequence.phase {
                budget -= len;
            }
            let work = (len > 0).then(|| row(scheduler, id, start, len, start + len == sequence.known));
            rows.extend(work.flatten());
        }
        if rows.len() == rows_before {
            paused.push(id);
        }
    }
    rows.sort_by(|a, b| a.place.cmp(&b.place));
    Step {
        class,
        model,
        rows,
        paused,
    }
}

fn in_order_of_admission<'a>(scheduler: &'a Scheduler, model: &ModelName) -> Vec<(SequenceId, &'a Sequence)> {
    let mut running: Vec<(SequenceId, &Sequence)> = scheduler
        .running()
        .filter(|(_, s)| s.model == *model)
        .map(|(id, s)| (*id, s))
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
