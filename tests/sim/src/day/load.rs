//! How an hour of requests becomes a working day of a team: one rule.
//!
//! 1. A recorded hour becomes a day of eight: the time at which a conversation begins is multiplied by eight. Prompts,
//!    answers and the time between two turns stay as they were.
//! 2. Interactive requests are dealt in turn to the people whose lid is open: the bursts of a service with thousands
//!    of users are not those of one of them. An editor that asks anew gives up what has not begun to come.
//! 3. Aggregate requests are thinned, or repeated at other times of the day and with other words, whole conversations
//!    at a time, until the tokens that they ask for are the wanted share of what the machines can make. Each
//!    conversation is one of the same people's, at random.
//! 4. A person's tools have at most sixteen aggregate requests under way: what comes meanwhile waits with them, and
//!    what is refused is asked again. A turn is not asked before the last one is answered, but before conversations
//!    that have not begun.
//! 5. What does not fit into the model's context is left out, and counted.

use std::collections::BTreeMap;

use pomona_tests::Random;

use crate::day::people::Day;
use crate::day::traces::{Hour, Recorded};

/// An hour becomes so many.
pub const HOURS: u64 = 8;
/// Aggregate requests that a person's tools have under way at once.
pub const AT_ONCE: usize = 16;
/// Milliseconds of the day.
pub const LENGTH: u64 = HOURS * 3_600_000;

/// A request of the day.
#[derive(Debug, Clone)]
pub struct Due {
    pub at: u64,
    /// Whose it is: the number of the node.
    pub owner: usize,
    pub interactive: bool,
    /// Aggregate requests with the same number follow each other.
    pub conversation: usize,
    /// Whether another turn of its conversation is before it.
    pub follows: bool,
    pub request: Recorded,
}

/// The requests of a day, in order.
#[derive(Debug, Clone, Default)]
pub struct Load {
    pub due: Vec<Due>,
    /// Left out: longer than the context.
    pub too_long: usize,
    /// Tokens a second that aggregate requests ask for.
    pub offered: f64,
}

impl Load {
    /// Of so many aggregate tokens a second, over the people at these nodes.
    pub fn deal(hour: &Hour, people: &[Day], wanted: f64, context: u32, random: &mut Random) -> Self {
        let mut load = Self::default();
        let mut asked: Vec<(u64, usize)> = (0..people.len()).map(|node| (0, node)).collect();
        for request in &hour.code {
            let at = request.at * HOURS;
            let open = asked.iter_mut().filter(|(_, node)| people[*node].is_open(at));
            if let Some((last, owner)) = open.min().filter(|_| at < LENGTH) {
                let owner = *owner;
                *last = at + 1;
                load.due.push(Due {
                    at,
                    owner,
                    interactive: true,
                    conversation: 0,
                    follows: false,
                    request: request.clone(),
                });
            }
        }
        let talks = conversations(hour, context);
        let fitting: usize = talks.iter().map(Vec::len).sum();
        load.too_long = hour.aggregate.len() - fitting;
        let tokens: u64 = talks.iter().flatten().map(|one| u64::from(one.answer)).sum();
        let times = wanted * LENGTH as f64 / 1000.0 / tokens.max(1) as f64;
        let (mut offered, mut number) = (0, 0);
        for talk in &talks {
            for round in 0..times.ceil() as u32 {
                let left = times - f64::from(round);
                if left < 1.0 && (random.between(0, 1 << 32) as f64) >= left * (1u64 << 32) as f64 {
                    break;
                }
                number += 1;
                let elsewhere = if round == 0 { 0 } else { random.between(0, LENGTH) };
                let begins = (talk[0].at * HOURS + elsewhere) % LENGTH;
                let owner = random.between(0, people.len().max(1) as u64) as usize;
                for (turn, request) in talk.iter().enumerate() {
                    let at = begins + request.at - talk[0].at;
                    if at >= LENGTH {
                        // The day is over.
                        break;
                    }
                    offered += u64::from(request.answer);
                    load.due.push(Due {
                        at,
                        owner,
                        interactive: false,
                        conversation: number,
                        follows: turn > 0,
                        request: request.in_other_words(round),
                    });
                }
            }
        }
        load.offered = offered as f64 / (LENGTH as f64 / 1000.0);
        load.due.sort_by_key(|due| due.at);
        load
    }
}

/// The turns of each conversation that this context can take, in order; first the one that begins first.
pub fn conversations(hour: &Hour, context: u32) -> Vec<Vec<&Recorded>> {
    let mut talks: BTreeMap<u32, Vec<&Recorded>> = BTreeMap::new();
    for request in hour.aggregate.iter().filter(|one| one.fits(context)) {
        talks.entry(request.conversation).or_default().push(request);
    }
    let mut talks: Vec<Vec<&Recorded>> = talks.into_values().collect();
    talks.sort_by_key(|talk| talk[0].at);
    talks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_asks_for_what_is_wanted_of_people_who_are_there() {
        let hour = Hour::fitted(3);
        let mut random = Random::new(3);
        let people: Vec<Day> = (0..4).map(|node| Day::draw(node, LENGTH, &mut random)).collect();
        for wanted in [50.0, 900.0] {
            let load = Load::deal(&hour, &people, wanted, 32_768, &mut random);
            assert!(
                (load.offered / wanted - 1.0).abs() < 0.05,
                "{} of {wanted}",
                load.offered
            );
            let there = |due: &&Due| !due.interactive || people[due.owner].is_open(due.at);
            assert!(load.due.iter().all(|due| there(&due) && due.at < LENGTH));
            assert!(load.due.iter().filter(|due| due.interactive).count() > 6_000);
            assert!(load.too_long > 0 && load.too_long < hour.aggregate.len() / 5);
        }
    }
}
