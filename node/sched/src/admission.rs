//! Who enters a slot: classes in order of urgency, by their places in line within a class,
//! slots and KV budget permitting. The batch class waits for company within its window unless
//! its batch is running already: then it joins.

use std::time::Duration;

use pomona_common::{Class, ModelName, limits};

use crate::scheduler::Scheduler;
use crate::sequence::{FIRST, Phase, SequenceId};

pub(crate) fn admit(scheduler: &mut Scheduler, now: Duration) -> Vec<SequenceId> {
    let mut admitted = Vec::new();
    let paced = scheduler.paced_knobs();
    for class in Class::ALL {
        if scheduler.knobs.class(class).is_paused() || window_left(scheduler, class, now).is_some() {
            continue;
        }
        let before = admitted.len();
        let queue: Vec<(Duration, SequenceId)> = scheduler.waiting[class.index()].iter().copied().collect();
        let idle = scheduler.population(Some(class), None).1 == 0;
        for (place, id) in queue {
            if scheduler.population(Some(class), None).1 >= paced.class(class).max_slots {
                // Its own bound holds it, which is nothing to others.
                break;
            }
            if !make_room(scheduler, class, id) {
                // Nobody passes the first in line, in its own class or in a less urgent one:
                // passing would take the memory that it waits for.
                return admitted;
            }
            enter(scheduler, class, id, place, now);
            admitted.push(id);
        }
        if admitted.len() > before && idle {
            let arrived = |id: &SequenceId| scheduler.sequences[id].arrived;
            let held = admitted[before..].iter().map(arrived).min().unwrap_or(now);
            let stats = &mut scheduler.stats[class.index()];
            stats.batches += 1;
            if scheduler.knobs.class(class).window_ms > 0 && stats.windows.len() < 1024 {
                stats.windows.push(now.saturating_sub(held));
            }
        }
    }
    admitted
}

/// When the window of a class ends, if it is open and its batch is not full yet.
pub(crate) fn window_left(scheduler: &Scheduler, class: Class, now: Duration) -> Option<Duration> {
    let paced = scheduler.paced_knobs();
    let knobs = paced.class(class);
    let queue = &scheduler.waiting[class.index()];
    let (place, id) = queue.first()?;
    if *place == FIRST {
        // Its client has half of it.
        return None;
    }
    if knobs.is_paused() || knobs.window_ms == 0 || queue.len() as u32 >= knobs.max_slots {
        return None;
    }
    let model = &scheduler.sequences[id].model;
    if batch_is_running(scheduler, class, model) {
        return None;
    }
    // Places in line are not of when somebody came.
    let arrived = queue.iter().map(|(_, id)| scheduler.sequences[id].arrived);
    let ends = arrived.min()? + Duration::from_millis(u64::from(knobs.window_ms));
    (ends > now).then_some(ends)
}

fn batch_is_running(scheduler: &Scheduler, class: Class, model: &ModelName) -> bool {
    scheduler.population(Some(class), Some(model)).1 > 0
}

/// Whether the sequence may enter, after less urgent ones were sent back to the queue if that
/// helps. They lose their KV row and are prefilled again later: no token is lost.
fn make_room(scheduler: &mut Scheduler, class: Class, id: SequenceId) -> bool {
    let sequence = &scheduler.sequences[&id];
    let (model, need) = (sequence.model.clone(), sequence.need());
    let mut victims = Vec::new();
    let mut candidates = preemption_order(scheduler, class);
    loop {
        let slots = free_slots(scheduler, class) + victims.len() as u32;
        if slots > 0 && scheduler.pool.would_fit(&model, need, &victims) {
            break;
        }
        let Some(victim) = candidates.pop() else {
            return false;
        };
        victims.push(victim);
    }
    for victim in victims {
        preempt(scheduler, victim);
    }
    true
}

/// Slots this class may still take: those that are free and not reserved for another class.
fn free_slots(scheduler: &Scheduler, class: Class) -> u32 {
    let paced = scheduler.paced_knobs();
    let reserved: u32 = Class::ALL
        .iter()
        .filter(|other| **other != class)
        .map(|other| {
            let running = scheduler.population(Some(*other), None).1;
            paced.class(*other).reserved_slots.saturating_sub(running)
        })
        .sum();
    let running = scheduler.population(None, None).1;
    scheduler.knobs.total_slots.saturating_sub(running + reserved)
}

/// Slots that who comes now may enter, as the class's own bound and the others leave them.
pub(crate) fn slots_left(scheduler: &Scheduler, class: Class) -> u32 {
    let paced = scheduler.paced_knobs();
    let of_class = paced.class(class);
    if of_class.is_paused() {
        return 0;
    }
    let running = |class| scheduler.population(Some(class), None).1;
    // Batch makes way.
    let held = match class {
        Class::Interactive | Class::Background => running(Class::Batch),
        Class::Batch => 0,
    };
    let left = of_class.max_slots.saturating_sub(running(class));
    left.min(free_slots(scheduler, class) + held)
}

/// Running sequences that may be sent back for `class`, the first to go last: only batch, and
/// only for a more urgent class; of those the latest admitted, which have the least to lose.
fn preemption_order(scheduler: &Scheduler, class: Class) -> Vec<SequenceId> {
    if class == Class::Batch {
        return Vec::new();
    }
    let mut order: Vec<(u64, SequenceId)> = scheduler
        .sequences
        .iter()
        .filter(|(_, sequence)| sequence.class == Class::Batch && sequence.is_running())
        .map(|(id, sequence)| (sequence.admitted, *id))
        .collect();
    order.sort_unstable();
    order.into_iter().map(|(_, id)| id).collect()
}

/// Sends batch sequences back to the queue that are more than their slots, the latest admitted first. When
/// there are no slots at all, memory is short: what nobody uses of the slabs goes back as well.
pub(crate) fn give_back(scheduler: &mut Scheduler) {
    let slots = scheduler.knobs.batch.max_slots as usize;
    let order = preemption_order(scheduler, Class::Interactive);
    for id in order.into_iter().skip(slots) {
        preempt(scheduler, id);
    }
    if slots == 0 {
        scheduler.pool.shrink();
    }
}

fn preempt(scheduler: &mut Scheduler, id: SequenceId) {
    scheduler.vacate(id);
    if let Some(sequence) = scheduler.sequences.get_mut(&id) {
        sequence.goes_back();
        scheduler.waiting[sequence.class.index()].insert((sequence.place, id));
    }
}

fn enter(scheduler: &mut Scheduler, class: Class, id: SequenceId, place: Duration, now: Duration) {
    scheduler.waiting[class.index()].remove(&(place, id));
    scheduler.turnover[class.index()].left(now);
    scheduler.admissions += 1;
    let order = scheduler.admissions;
    let Some(sequence) = scheduler.sequences.get_mut(&id) else {
        return;
    };
    let (model, need) = (sequence.model.clone(), sequence.need());
    sequence.phase = Phase::Prefill { done: 0 };
    sequence.admitted = order;
    // It was its first slot that it could not wait for.
    sequence.expires = now + limits::wall_clock(class);
    let taken = scheduler.pool.take(id, &model, need);
    assert!(taken.is_ok(), "make_room checked that the row fits");
}
