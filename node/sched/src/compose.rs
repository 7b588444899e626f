//! The rows of the next step.

use std::collections::BTreeMap;
use std::time::Duration;

use pomona_common::{Class, ModelName};

use crate::admission::window_left;
use crate::scheduler::{Decision, RowWork, Scheduler, Step};
use crate::sequence::{Sequence, SequenceId};
use crate::turns::{self, Turn};

pub(crate) fn compose(scheduler: &mut Scheduler, now: Duration) -> Decision {
    scheduler.pace.end(now);
    let turn = turns::next(scheduler, now);
    if let Some(
        Turn::Resume(Class::Batch)
        | Turn::Begin {
            class: Class::Batch, ..
        },
    ) = turn
    {
        scheduler.pace.begin(now);
    }
    match turn {
        Some(Turn::Resume(class)) => match scheduler.unpark(class) {
            Some(step) => Decision::Resume(step),
            None => Decision::Idle,
        },
        Some(Turn::Begin { class, model, rides }) => Decision::Begin(begin(scheduler, class, model, rides)),
        None => {
            let windows = Class::ALL
                .iter()
                .filter_map(|class| window_left(scheduler, *class, now));
            let window = windows.min().map(|at| (at, "batch window"));
            let works = scheduler.population(Some(Class::Batch), None).1 > 0;
            let rest = scheduler.pace.rest(now).filter(|_| works);
            let wake = rest.map(|at| (at, "pace")).into_iter().chain(window).min();
            wake.map_or(Decision::Idle, |(at, why)| Decision::WaitUntil(at, why))
        }
    }
}

fn begin(scheduler: &Scheduler, class: Class, model: ModelName, rides: [bool; 3]) -> Step {
    let running = in_order_of_admission(scheduler, &model);
    let takes_part =
        |id: SequenceId, s: &Sequence| turns::takes_part(s, class, rides) && !scheduler.is_parked(id);
    let prompts: Vec<(SequenceId, u32)> = running
        .iter()
        .filter(|(id, s)| takes_part(*id, s))
        .filter_map(|(id, s)| Some((*id, s.known - s.prefilled()?)))
        .collect();
    let chunks = share_chunk(&prompts, scheduler.knobs.class(class).prefill_chunk);
    let mut rows = Vec::new();
    let mut paused = Vec::new();
    for (id, sequence) in running {
        let span = match sequence.prefilled() {
            Some(done) => chunks.get(&id).map(|len| (done, *len)),
            None => takes_part(id, sequence).then_some((sequence.known - 1, 1)),
        };
        let work =
            span.and_then(|(start, len)| row(scheduler, id, start, len, start + len == sequence.known));
        match work {
            Some(work) => rows.push(work),
            None => paused.push(id),
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

/// Shares a chunk among prompts, given with the tokens they have left, in order of admission.
/// Half of it may go to prompts that it finishes, the shortest first, so that a short one never
/// waits for the whole of a long one; the rest goes in order.
fn share_chunk(prompts: &[(SequenceId, u32)], chunk: u32) -> BTreeMap<SequenceId, u32> {
    let mut shares = BTreeMap::new();
    let mut left = chunk;
    let mut by_length: Vec<&(SequenceId, u32)> = prompts.iter().skip(1).collect();
    by_length.sort_by_key(|(_, tokens)| *tokens);
    for (id, tokens) in by_length {
        if *tokens <= (chunk / 2).saturating_sub(chunk - left) {
            shares.insert(*id, *tokens);
            left -= tokens;
        }
    }
    for (id, tokens) in prompts {
        if left > 0 && !shares.contains_key(id) {
            let len = left.min(*tokens);
            shares.insert(*id, len);
            left -= len;
        }
    }
    shares
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_prompts_share_a_chunk_with_a_long_one() {
        let share = |prompts: &[(SequenceId, u32)]| Vec::from_iter(share_chunk(prompts, 100));
        assert_eq!(share(&[(1, 900)]), [(1, 100)]);
        assert_eq!(share(&[(1, 900), (2, 20), (3, 800)]), [(1, 80), (2, 20)]);
        assert_eq!(
            share(&[(1, 900), (2, 40), (3, 30)]),
            [(1, 70), (3, 30)],
            "half of it at most"
        );
        assert_eq!(share(&[(1, 30), (2, 900), (3, 900)]), [(1, 30), (2, 70)]);
        assert_eq!(Vec::from_iter(share_chunk(&[(1, 5), (2, 1)], 1)), [(1, 1)]);
    }
}
