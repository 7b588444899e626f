//! One day under one policy.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use pomona_common::Class;
use pomona_tests::Random;

use crate::client::{End, Request};
use crate::cluster::node_id;
use crate::day::capacity;
use crate::day::figures::{Figures, Interactive, Share, budget, minutes, percentile};
use crate::day::fleet::{self, Machine, PEOPLE, agent, editor};
use crate::day::load::{AT_ONCE, Due, HOURS, LENGTH, Load, conversations};
use crate::day::people::Day;
use crate::day::traces::{Hour, tokens};
use crate::policy::{Policy, Tuning};
use crate::wire::Id;
use crate::world::World;

/// Milliseconds in which models are loaded before the day begins.
const BEFORE: u64 = 60_000;
/// A client whose batch request was refused asks again after so many milliseconds.
const AGAIN: u64 = 10_000;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub policy: Policy,
    pub tuning: Tuning,
    /// Aggregate load, percent of capacity.
    pub load: u32,
    pub seed: u64,
    /// Hours of the day that are run.
    pub hours: u64,
}

struct Running<'a> {
    case: Case,
    machines: &'a [Machine],
    load: &'a Load,
    people: &'a [Day],
    world: World,
    /// Answers under way, by their number: which request each is.
    asked: BTreeMap<u64, usize>,
    /// Requests that are asked again, and when.
    again: BTreeSet<(u64, usize)>,
    /// Conversations with a turn that is not answered, and the turns that wait for it.
    talks: BTreeMap<usize, VecDeque<usize>>,
    /// Of each person.
    tools: Vec<Tools>,
    interactive: Vec<Interactive>,
    /// What each editor waits for.
    awaited: Vec<Option<u64>>,
    /// Tokens that clients got, of interactive and of aggregate answers.
    delivered: [u64; 2],
    refused: usize,
    finished: usize,
}

/// Aggregate requests of a person that are under way, and those that wait for it: of conversations that have begun,
/// which go first, and of others.
#[derive(Debug, Clone, Default)]
struct Tools {
    under_way: usize,
    begun: VecDeque<usize>,
    new: VecDeque<usize>,
}

/// Runs a case.
///
/// # Errors
/// The data file of the Macs is not as described.
pub fn run(case: Case, hour: &Hour) -> anyhow::Result<Figures> {
    let machines = fleet::machines(case.seed)?;
    let mut random = Random::new(case.seed ^ 0xda7);
    let talks = conversations(hour, agent().context);
    let of_machine = |machine: &Machine| capacity::of_machine(machine, &talks, &mut random);
    let capacities: Vec<f64> = machines.iter().map(of_machine).collect();
    let capacity: f64 = capacities.iter().sum();
    let people: Vec<Day> = (0..PEOPLE)
        .map(|node| Day::draw(node, LENGTH, &mut random))
        .collect();
    let wanted = capacity * f64::from(case.load) / 100.0;
    let load = Load::deal(hour, &people, wanted, agent().context, &mut random);
    let mut world = fleet::world(case.seed, &machines, case.policy, case.tuning);
    for (at, action) in people.iter().flat_map(|day| &day.actions) {
        world.at(BEFORE + at, action.clone());
    }
    let mut running = Running {
        case,
        machines: &machines,
        load: &load,
        people: &people,
        world,
        asked: BTreeMap::new(),
        again: BTreeSet::new(),
        talks: BTreeMap::new(),
        tools: vec![Tools::default(); PEOPLE],
        interactive: Vec::new(),
        awaited: vec![None; PEOPLE],
        delivered: [0, 0],
        refused: 0,
        finished: 0,
    };
    let began = Instant::now();
    running.work();
    let speed = running.world.now as f64 / 1000.0 / began.elapsed().as_secs_f64();
    Ok(running.figures(&capacities, speed))
}

impl Running<'_> {
    fn work(&mut self) {
        let end = BEFORE + LENGTH * self.case.hours / HOURS;
        let load = self.load;
        let mut due = load.due.iter().enumerate().peekable();
        loop {
            let next = due.peek().map(|(_, one)| BEFORE + one.at);
            let again = self.again.first().copied();
            let at = next.into_iter().chain(again.map(|(at, _)| at)).min();
            let Some(at) = at.filter(|at| *at < end) else {
                break;
            };
            self.world.run_until(at);
            self.collect();
            if let Some((_, index)) = again.filter(|(again, _)| *again == at) {
                self.again.pop_first();
                self.ask(index);
            } else if let Some((index, _)) = due.next() {
                self.comes(index);
            }
        }
        self.world.run_until(end);
        self.collect();
    }

    /// A request is there to be asked, at once or when the person's tools get to it.
    fn comes(&mut self, index: usize) {
        let due = &self.load.due[index];
        if due.interactive {
            let before = self.awaited[due.owner].take();
            let clients = &self.world.clients;
            let is_awaited = |number: &u64| clients.get(number).is_some_and(|client| client.first.is_none());
            if let Some(before) = before.filter(is_awaited) {
                self.world.give_up(before);
                self.collect();
            }
            self.ask(index);
            return;
        }
        match self.talks.entry(due.conversation) {
            Entry::Occupied(mut turns) => turns.get_mut().push_back(index),
            Entry::Vacant(turns) => {
                turns.insert(VecDeque::new());
                let tools = &mut self.tools[due.owner];
                match due.follows {
                    true => tools.begun.push_back(index),
                    false => tools.new.push_back(index),
                }
                self.use_tools(due.owner);
            }
        }
    }

    /// A person's tools ask for as much as they may.
    fn use_tools(&mut self, owner: usize) {
        while self.tools[owner].under_way < AT_ONCE {
            let tools = &mut self.tools[owner];
            let Some(next) = tools.begun.pop_front().or_else(|| tools.new.pop_front()) else {
                return;
            };
            tools.under_way += 1;
            self.ask(next);
        }
    }

    /// An aggregate answer has come: what waited for it follows.
    fn goes_on(&mut self, index: usize) {
        let due = &self.load.due[index];
        self.tools[due.owner].under_way -= 1;
        match self
            .talks
            .get_mut(&due.conversation)
            .and_then(VecDeque::pop_front)
        {
            Some(next) => self.tools[due.owner].begun.push_back(next),
            None => drop(self.talks.remove(&due.conversation)),
        }
        self.use_tools(due.owner);
    }

    fn ask(&mut self, index: usize) {
        let Due {
            owner,
            interactive,
            request,
            ..
        } = &self.load.due[index];
        let (model, class) = match interactive {
            true => (editor().name, Class::Interactive),
            false => (agent().name, Class::Batch),
        };
        let entry = match self.case.policy {
            Policy::Pomona if *interactive => Id::Node(*owner),
            _ => Id::Coordinator(1),
        };
        let asked = Request {
            model,
            class,
            prompt: tokens(request),
            tokens: request.answer,
        };
        match self.world.ask(entry, asked, Some(node_id(*owner))) {
            Some(number) => {
                self.asked.insert(number, index);
                if *interactive {
                    self.awaited[*owner] = Some(number);
                }
            }
            // A person who has just closed the lid asks for nothing.
            None if *interactive => {}
            None => drop(self.again.insert((self.world.now + AGAIN, index))),
        }
    }

    /// Looks at the answers that have ended.
    fn collect(&mut self) {
        for number in std::mem::take(&mut self.world.ended) {
            let (Some(client), Some(index)) =
                (self.world.clients.remove(&number), self.asked.remove(&number))
            else {
                continue;
            };
            let finished = client.end == Some(End::Finished);
            let due = &self.load.due[index];
            if due.interactive {
                self.delivered[0] += u64::from(client.got);
                let kind = &self.machines[due.owner].mac.kind;
                // Whoever closes the lid on an answer waits no longer.
                let closes = self.people[due.owner].closes(due.at).map(|at| BEFORE + at);
                let closed = closes.filter(|at| !finished && *at < self.world.now);
                let given_up = client.end == Some(End::GivenUp) || closed.is_some();
                let until = closed.unwrap_or(self.world.now);
                let waited = client.first.unwrap_or(until).saturating_sub(client.asked);
                let uncached = due.request.prompt.saturating_sub(client.cached);
                let budget = budget(kind, editor().weight_bytes, uncached);
                // Who knows whether it would have come in time.
                if given_up && client.first.is_none() && waited as f64 <= budget {
                    continue;
                }
                let pause = closed.map_or(0, |at| at.saturating_sub(client.last));
                self.interactive.push(Interactive {
                    owner: due.owner,
                    at: due.at,
                    ttft: (finished || given_up).then_some(waited),
                    budget,
                    longest_pause: client.longest_pause.max(pause),
                    finished: finished || given_up,
                    given_up,
                });
            } else if finished || client.end == Some(End::TooLarge) {
                // What nobody has the memory for is not asked again.
                self.delivered[1] += if finished { u64::from(client.got) } else { 0 };
                self.finished += usize::from(finished);
                self.goes_on(index);
            } else {
                self.refused += 1;
                self.again.insert((self.world.now + AGAIN, index));
            }
        }
    }

    fn figures(mut self, capacities: &[f64], speed: f64) -> Figures {
        // What is under way when the day ends is as much work as what was before it began is not.
        let under_way = self
            .asked
            .iter()
            .filter(|(_, index)| !self.load.due[**index].interactive);
        let tokens = under_way
            .filter_map(|(number, _)| self.world.clients.get(number))
            .map(|one| u64::from(one.got));
        self.delivered[1] += tokens.sum::<u64>();
        let seconds = (LENGTH * self.case.hours / HOURS) as f64 / 1000.0;
        let came = self.interactive.iter().filter(|one| !one.given_up);
        let mut ttft: Vec<u64> = came.filter_map(|one| one.ttft).collect();
        ttft.sort_unstable();
        let (asked, missed) = minutes(&self.interactive);
        let nodes = &self.world.nodes;
        let joules: f64 = nodes.iter().map(|node| node.joules).sum();
        let delivered = self.delivered[0] + self.delivered[1];
        let aggregate = self.load.due.iter().filter(|due| !due.interactive).count();
        let of_batch = Class::Batch.index();
        let machines = nodes.iter().zip(capacities).map(|(node, capacity)| Share {
            chip: node.mac.kind.chip.clone(),
            capacity_tok_s: *capacity,
            made_tok_s: node.engine.tokens[of_batch] as f64 / seconds,
            prefilled_tok_s: node.engine.prefilled[of_batch] as f64 / seconds,
            cached_tok_s: node.engine.cached[of_batch] as f64 / seconds,
            busy_h: node.busy_s / 3600.0,
            joules: node.joules,
            hot_s: node.hot_s,
        });
        let mut by_chip: BTreeMap<String, f64> = BTreeMap::new();
        for owner in 0..PEOPLE {
            let of_owner = self.interactive.iter().filter(|one| one.owner == owner).copied();
            let (_, missed) = minutes(&of_owner.collect::<Vec<Interactive>>());
            let chip = self.machines[owner].mac.kind.chip.clone();
            *by_chip.entry(chip).or_default() += missed as f64;
        }
        Figures {
            policy: self.case.policy,
            load: self.case.load,
            seed: self.case.seed,
            missed_minutes: missed as f64 / PEOPLE as f64,
            missed_by_chip: by_chip,
            asked_minutes: asked as f64 / PEOPLE as f64,
            ttft_p50: percentile(&ttft, 0.5),
            ttft_p95: percentile(&ttft, 0.95),
            interactive_failed: self.interactive.iter().filter(|one| !one.finished).count(),
            aggregate_tok_s: self.delivered[1] as f64 / seconds,
            offered_tok_s: self.load.offered,
            capacity_tok_s: capacities.iter().sum(),
            joules_per_token: joules / delivered.max(1) as f64,
            hot_s: nodes.iter().map(|node| node.hot_s.0).sum(),
            hot_with_aggregate_s: nodes.iter().map(|node| node.hot_s.1).sum(),
            refused: self.refused,
            unfinished: aggregate - self.finished,
            machines: machines.collect(),
            rungs: self.world.rungs.len(),
            broken: self.world.broken.len(),
            speed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first hours of a day: reproducible, nothing broken, and laptops cooler than when nobody moves anything.
    #[test]
    fn a_morning_repeats_itself_and_breaks_no_promise() {
        let hour = Hour::fitted(0);
        let morning = |policy| {
            let tuning = Tuning::BEST;
            let case = Case {
                policy,
                tuning,
                load: 70,
                seed: 5,
                hours: 2,
            };
            let mut figures = run(case, &hour).unwrap();
            figures.speed = 0.0;
            figures
        };
        let ours = morning(Policy::Pomona);
        let again = serde_json::to_string(&morning(Policy::Pomona)).unwrap();
        assert_eq!(serde_json::to_string(&ours).unwrap(), again);
        assert_eq!(ours.broken, 0);
        assert!(
            ours.aggregate_tok_s > 0.0 && ours.asked_minutes > 10.0,
            "{ours:?}"
        );
        let busy = morning(Policy::LeastBusy);
        assert!(
            ours.hot_with_aggregate_s < 0.5 * busy.hot_with_aggregate_s,
            "{ours:?} {busy:?}"
        );
        assert!(ours.missed_minutes < busy.missed_minutes, "{ours:?} {busy:?}");
    }
}
