//! What the machines can make of aggregate load: the tokens a second that they sustain with no interactive load,
//! each within the watts that are comfortable there.

use std::collections::{BTreeMap, VecDeque};

use pomona_common::Class;
use pomona_tests::Random;

use crate::client::Request;
use crate::day::fleet::{Machine, agent};
use crate::day::traces::{Recorded, tokens};
use crate::engine::{Asker, Engine};

/// Simulated milliseconds for which a machine is kept busy, after a time in which it warms up.
const WARMS: u64 = 600_000;
const BUSY: u64 = 1_800_000;
const TICK: u64 = 1_000;

/// Conversations that a machine has at once: the same load for everybody, whatever they tune.
const TALKS: u32 = 4;

/// Of one machine with these conversations. One that would be too warm if it worked all the time works for a share of it.
pub fn of_machine(machine: &Machine, talks: &[Vec<&Recorded>], random: &mut Random) -> f64 {
    let (mut mac, model) = (machine.mac.clone(), agent());
    let mut knobs = machine.knobs.clone();
    knobs.batch.max_slots = TALKS;
    let mut engine = Engine::new(knobs, 0);
    engine.add_model(&model);
    // What is left of each conversation, by the number of the turn under way.
    let mut under_way: BTreeMap<u64, VecDeque<&Recorded>> = BTreeMap::new();
    let (mut asked, mut joules, mut before) = (0, 0.0, 0);
    for now in (TICK..WARMS + BUSY).step_by(TICK as usize) {
        let is_made = |number: &u64| engine.makes((Asker::Here, *number)).is_some();
        let (made, ended): (BTreeMap<_, _>, BTreeMap<_, _>) =
            under_way.into_iter().partition(|(number, _)| is_made(number));
        under_way = made;
        let mut go_on = ended.into_values().filter(|left| !left.is_empty());
        while under_way.len() < TALKS as usize {
            let mut turns = go_on.next().unwrap_or_else(|| {
                let talk = &talks[random.between(0, talks.len() as u64) as usize];
                talk.iter().copied().collect()
            });
            let Some(request) = turns.pop_front() else {
                break;
            };
            asked += 1;
            under_way.insert(asked, turns);
            let request = Request {
                model: model.name.clone(),
                class: Class::Batch,
                prompt: tokens(request),
                tokens: request.answer,
            };
            engine.start((Asker::Here, asked), request.generation(asked));
        }
        engine.advance(&mac, now * 1000);
        let (spent, _) = engine.take_spent();
        mac.pass(TICK, spent);
        if now < WARMS {
            before = engine.tokens[Class::Batch.index()];
        } else {
            joules += spent;
        }
    }
    let seconds = BUSY as f64 / 1000.0;
    let tokens = (engine.tokens[Class::Batch.index()] - before) as f64 / seconds;
    let share = machine.comfort.map_or(1.0, |comfort| {
        let room = f64::from(comfort.get()) - mac.kind.idle_w.value;
        (room / (joules / seconds)).clamp(0.0, 1.0)
    });
    tokens * share
}
