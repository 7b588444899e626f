use std::sync::Arc;

use pomona_common::signs::{FirstToken, Signs, Speeds};
use pomona_common::unit::Reading;
use pomona_common::{MachineRole, ModelDigests, ModelRecord, Rung, Watts};
use proptest::prelude::*;

use super::book::SAMPLES;
use super::rules::Remedy;
use super::*;
use crate::apply::apply;
use crate::command::Reply;
use crate::heard::Heard;
use crate::ladder::Ladder;
use crate::state::NodeRecord;

/// A node with its gates and its ladder, looked at once a second.
struct World {
    state: ClusterState,
    watch: GateWatch,
    ladder: Ladder,
    node: NodeSignals,
    now_s: u64,
    /// When which gate came to which stage.
    passed: Vec<(u64, Gate, Stage)>,
}

const NODE: NodeId = NodeId::from_bits(1);

fn model(name: &str) -> ModelName {
    name.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn record(name: &str) -> ModelRecord {
    ModelRecord {
        name: model(name),
        digests: ModelDigests {
            weights: "w".into(),
            tokenizer: "t".into(),
            template: "c".into(),
        },
        weight_bytes: 9,
        dequantized_bytes: 9,
        kv_bytes_per_token: 1,
        context: 1024,
        created_s: 0,
    }
}

impl World {
    fn new() -> Self {
        let mut state = ClusterState::default();
        let record = NodeRecord {
            role: MachineRole::Laptop,
            name: "anna's laptop".into(),
            approved: true,
            ..NodeRecord::default()
        };
        state.nodes.insert(NODE, record);
        for name in ["large", "small"] {
            state.catalogue.insert(model(name), self::record(name));
        }
        Self {
            state,
            watch: GateWatch::default(),
            ladder: Ladder::default(),
            node: NodeSignals {
                power: Reading::Measured(Watts(10.0)),
                chip: "Apple M4 Max".into(),
                swap_used: Some(2_000_000_000),
                resident: Some(40.0),
                weights: [(model("large"), 9), (model("small"), 2)].into(),
                heard: Heard::NOW,
                ..NodeSignals::default()
            },
            now_s: 1_000_000,
            passed: Vec::new(),
        }
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now_s += 1;
            let now = Duration::from_secs(self.now_s);
            let signals = [(NODE, self.node.clone())].into();
            for step in self.watch.steps(&self.state, &signals, now, self.now_s) {
                assert_eq!(apply(&mut self.state, &step), Reply::Done, "{step:?}");
                if let Command::PassGate(transition) = step {
                    assert!(transition.samples.len() <= SAMPLES);
                    self.passed
                        .push((self.now_s - 1_000_000, transition.subject.0, transition.to));
                }
            }
            let mut signals = signals;
            self.watch.advise(&self.state, &mut signals, now, self.now_s);
            for step in self.ladder.steps(&self.state, &signals, now, self.now_s) {
                assert_eq!(apply(&mut self.state, &step), Reply::Done, "{step:?}");
            }
        }
    }

    fn answers(&mut self, count: u64, ttft_ms: f32) {
        let answers = self.node.signs.as_ref().map_or(0, |signs| signs.answers) + count;
        let one = FirstToken {
            model: model("small"),
            uncached: 20,
            ttft_ms,
            took_ms: 0,
            given_up: false,
        };
        self.node.signs = Some(Arc::new(Signs {
            answers,
            first_tokens: vec![one; count as usize],
            ..Signs::default()
        }));
    }

    fn rung(&self) -> Rung {
        self.state.relief(NODE).rung
    }

    fn stage(&self, gate: Gate) -> Stage {
        self.state.gates.stage(NODE, &(gate, None))
    }
}

#[test]
fn swap_of_before_does_not_count_and_that_of_batch_halts_it() {
    let mut world = World::new();
    world.run(200);
    world.node.running = 4;
    world.run(200);
    assert_eq!(world.passed, []);
    world.node.swap_used = Some(2_800_000_000);
    world.run(89);
    assert_eq!(world.passed, []);
    world.run(10);
    assert_eq!(world.passed, [(491, Gate::Swap, Stage::Tripped)]);
    assert_eq!(world.rung(), Rung::Hold, "no new batch, and nothing more");
    let reason = &world.state.offload.relieved[&NODE].reason;
    assert!(
        reason.contains("swap gate has tripped: 800.0 MB for 90 s"),
        "{reason}"
    );
    // What runs finishes, and what it has left in swap still counts.
    world.node.running = 0;
    world.run(70);
    assert_eq!(world.stage(Gate::Swap), Stage::Tripped);
    world.node.swap_used = Some(2_100_000_000);
    world.run(70);
    assert_eq!(world.stage(Gate::Swap), Stage::Clear);
    world.run(70);
    assert_eq!(world.rung(), Rung::Normal);
    let transitions = &world.state.gates.transitions;
    assert_eq!(
        transitions.iter().map(|one| one.number).collect::<Vec<_>>(),
        [1, 2]
    );
    assert!(
        transitions[0].samples.iter().any(|sample| sample.value == 0.0),
        "the samples before"
    );
}

#[test]
fn literally_all_swap_counts() {
    let mut world = World::new();
    world.watch = GateWatch::new(Choices { literal_swap: true });
    world.run(85);
    assert_eq!(world.stage(Gate::Swap), Stage::Clear);
    world.run(10);
    assert_eq!(
        world.stage(Gate::Swap),
        Stage::Tripped,
        "2 GB from before, and no batch work"
    );
}

#[test]
fn swap_that_is_being_written_counts_whole() {
    let mut world = World::new();
    for written in 0..120 {
        world.node.swapped_out = Some(written);
        world.run(1);
    }
    assert_eq!(world.stage(Gate::Swap), Stage::Tripped);
}

#[test]
fn a_tail_trips_when_batch_is_tightened_already_and_then_interactive_work_is_alone() {
    let mut world = World::new();
    world.node.running = 4;
    let mut rungs = Vec::new();
    for second in 0..400 {
        world.answers(1, if second % 10 == 0 { 3000.0 } else { 300.0 });
        world.run(1);
        rungs.push((world.rung(), world.stage(Gate::Tail)));
    }
    rungs.dedup();
    assert_eq!(
        rungs,
        [
            (Rung::Normal, Stage::Clear),
            (Rung::Hold, Stage::Clear),
            (Rung::Tighten, Stage::Clear),
            (Rung::Pause, Stage::Tripped),
            (Rung::Pause, Stage::Escalated),
        ],
        "nobody else is there to take the batch"
    );
    let forbidden = world.state.gates.forbids(Remedy::EnlargeBatch);
    assert_eq!(forbidden, Some((NODE, Gate::Tail)));
    // As long as late ones count, and then as long as it takes to clear.
    for _ in 0..430 {
        world.answers(1, 300.0);
        world.run(1);
    }
    assert_eq!(world.stage(Gate::Tail), Stage::Clear);
}

/// One in twenty is the tail: a few more are one, a few less are none.
#[test]
fn a_tail_is_one_in_twenty_and_clears_at_its_own_limit() {
    let late = |every: u64, usual: f32, late: f32| {
        let mut world = World::new();
        world.node.running = 4;
        for second in 0..600 {
            world.answers(1, if second % every == 0 { late } else { usual });
            world.run(1);
        }
        world
    };
    assert_eq!(late(25, 300.0, 3000.0).passed, [], "four of a hundred");
    let mut world = late(16, 300.0, 3000.0);
    assert_ne!(world.stage(Gate::Tail), Stage::Clear, "six of a hundred");
    // Two and a half times as late as most, and over budget: not clear, however long.
    for (late, is_clear) in [(1000.0, false), (860.0, true)] {
        for second in 0..700 {
            world.answers(1, if second % 10 == 0 { late } else { 400.0 });
            world.run(1);
        }
        assert_eq!(world.stage(Gate::Tail) == Stage::Clear, is_clear, "{late} ms");
    }
}

#[test]
fn what_is_comfortable_again_is_a_little_less() {
    let mut world = World::new();
    let comfort = world
        .state
        .comfort(NODE, &world.node.chip)
        .map(|watts| watts.get());
    let comfort = comfort.unwrap_or_else(|| panic!("a laptop has one"));
    world.node.power = Reading::Measured(Watts(comfort * 1.1));
    world.run(120);
    assert_eq!(world.stage(Gate::Comfort), Stage::Tripped);
    world.node.power = Reading::Measured(Watts(comfort * 0.97));
    world.run(600);
    assert_eq!(world.stage(Gate::Comfort), Stage::Tripped);
    world.node.power = Reading::Measured(Watts(comfort * 0.93));
    world.run(50);
    assert_eq!(world.stage(Gate::Comfort), Stage::Tripped);
    world.run(90);
    assert_eq!(world.stage(Gate::Comfort), Stage::Clear);
}

#[test]
fn a_large_engine_is_throttled_and_then_gives_up_what_no_person_uses() {
    let mut world = World::new();
    world.node.resident = Some(83.0);
    world.run(30);
    world.answers(1, 10.0);
    world.run(576);
    assert_eq!(world.stage(Gate::Residency), Stage::Tripped);
    assert_eq!(world.rung(), Rung::Hold, "there is no batch to tighten");
    world.run(320);
    assert_eq!(world.stage(Gate::Residency), Stage::Escalated);
    let relocates = |world: &World| world.state.gates.relocates(NODE, &model("large"), world.now_s);
    assert!(relocates(&world) && world.state.gates.tickets.is_empty());
    // It left, and there is too much still: nothing but the person's is left.
    world.node.weights.remove(&model("large"));
    world.run(600);
    assert_eq!(world.passed.len(), 3, "{:?}", world.passed);
    assert_eq!(world.state.gates.tickets.len(), 1, "that is said once");
    world.node.resident = Some(60.0);
    world.run(130);
    assert_eq!(world.stage(Gate::Residency), Stage::Clear);
    assert!(relocates(&world), "it would fill the memory again");
    world.now_s += 24 * 3600;
    assert!(!relocates(&world));
}

#[test]
fn where_everything_is_a_persons_a_ticket_is_opened() {
    let mut world = World::new();
    world.node.resident = Some(83.0);
    world.node.weights = [(model("small"), 2)].into();
    world.answers(1, 10.0);
    world.run(920);
    assert_eq!(world.stage(Gate::Residency), Stage::Escalated);
    let gates = &world.state.gates;
    assert!(!gates.relocates(NODE, &model("small"), world.now_s));
    let tickets: Vec<_> = world
        .state
        .gates
        .tickets
        .iter()
        .map(|ticket| &ticket.text)
        .collect();
    assert!(
        matches!(&tickets[..], [text] if text.contains("anna's laptop")),
        "{tickets:?}"
    );
}

#[test]
fn two_kills_within_a_week_quarantine_the_pair_until_they_are_old_or_forgiven() {
    let mut world = World::new();
    let killed = |world: &mut World, instance, total| {
        let totals = [(model("large"), total), (model("unknown"), 5)].into();
        let now_s = world.now_s;
        let command = Command::CountKills {
            node: NODE,
            instance,
            totals,
            now_s,
        };
        apply(&mut world.state, &command)
    };
    assert_eq!(killed(&mut world, 7, 1), Reply::Done);
    assert_eq!(killed(&mut world, 7, 1), Reply::Unchanged);
    world.run(5);
    assert!(!world.state.gates.quarantines(NODE, &model("large")));
    // Another process of the node counts from zero.
    assert_eq!(killed(&mut world, 8, 1), Reply::Done);
    world.node.kill_causes = [(model("large"), "jetsam ended it: per-process-limit".into())].into();
    world.run(1);
    assert!(world.state.gates.quarantines(NODE, &model("large")));
    assert!(!world.state.gates.quarantines(NODE, &model("unknown")));
    assert_eq!(world.state.gates.tickets.len(), 1);
    let reason = &world.state.gates.tickets[0].reason;
    assert!(
        reason.ends_with("; the latest: jetsam ended it: per-process-limit"),
        "{reason}"
    );
    let forgive = Command::ForgiveKills {
        node: NODE,
        model: model("large"),
    };
    assert_eq!(apply(&mut world.state, &forgive), Reply::Done);
    world.run(1);
    assert!(!world.state.gates.quarantines(NODE, &model("large")));
    assert!(world.state.gates.tickets[0].closed);

    assert_eq!(killed(&mut world, 8, 3), Reply::Done);
    world.run(1);
    assert!(world.state.gates.quarantines(NODE, &model("large")));
    world.now_s += rules::WEEK_S;
    world.run(1);
    assert!(!world.state.gates.quarantines(NODE, &model("large")));
}

#[test]
fn a_node_that_is_not_heard_of_neither_trips_nor_clears() {
    let mut world = World::new();
    world.node.resident = Some(90.0);
    world.run(599);
    world.node.heard = Heard {
        age_ms: 9000,
        ..Heard::NOW
    };
    world.run(8);
    assert_eq!(world.passed, []);
    world.node.heard = Heard::NOW;
    world.run(10);
    assert_eq!(world.passed.len(), 1);
    // After longer it is measured anew.
    let mut world = World::new();
    world.node.resident = Some(90.0);
    world.run(599);
    world.node.heard = Heard {
        age_ms: 60_000,
        ..Heard::NOW
    };
    world.run(60);
    world.node.heard = Heard::NOW;
    world.run(590);
    assert_eq!(world.passed, []);
}

#[test]
fn what_is_not_measured_neither_trips_nor_clears() {
    let mut world = World::new();
    world.node.power = Reading::Measured(Watts(80.0));
    world.run(55);
    world.node.power = Reading::Unavailable;
    world.run(30);
    assert_eq!(world.passed, []);
    world.node.power = Reading::Measured(Watts(80.0));
    world.run(40);
    assert_eq!(world.stage(Gate::Comfort), Stage::Clear);
    world.run(40);
    assert_eq!(world.stage(Gate::Comfort), Stage::Tripped);
}

#[test]
fn time_in_which_a_session_is_dialled_anew_does_not_count() {
    let mut world = World::new();
    world.node.resident = Some(90.0);
    world.run(595);
    for _ in 0..8 {
        world.now_s += 1;
        let now = Duration::from_secs(world.now_s);
        let steps = world
            .watch
            .steps(&world.state, &BTreeMap::new(), now, world.now_s);
        assert_eq!(steps, []);
    }
    world.run(3);
    assert_eq!(world.stage(Gate::Residency), Stage::Clear);
    world.run(5);
    assert_eq!(world.stage(Gate::Residency), Stage::Tripped);
}

#[test]
fn the_gates_of_a_node_that_is_away_do_not_stay() {
    let mut world = World::new();
    world.node.resident = Some(90.0);
    world.run(610);
    assert_eq!(world.stage(Gate::Residency), Stage::Tripped);
    for _ in 0..610 {
        world.now_s += 1;
        let now = Duration::from_secs(world.now_s);
        for step in world
            .watch
            .steps(&world.state, &BTreeMap::new(), now, world.now_s)
        {
            assert_eq!(apply(&mut world.state, &step), Reply::Done);
        }
    }
    assert_eq!(world.stage(Gate::Residency), Stage::Clear);
}

#[test]
fn answers_that_are_late_without_batch_are_no_reason_to_hold_it() {
    let mut world = World::new();
    for second in 0..400 {
        world.answers(1, if second % 10 == 0 { 3000.0 } else { 300.0 });
        world.run(1);
        assert_eq!(world.rung(), Rung::Normal);
    }
    assert_eq!(world.passed, []);
}

#[test]
fn a_tail_that_outlives_the_batch_work_becomes_a_ticket() {
    let mut world = World::new();
    world.node.running = 4;
    for second in 0..1200 {
        world.answers(1, if second % 10 == 0 { 3000.0 } else { 300.0 });
        world.run(1);
        if world.stage(Gate::Tail) == Stage::Escalated {
            world.node.running = 0;
        }
    }
    let tail = world.passed.iter().filter(|(_, gate, _)| *gate == Gate::Tail);
    let stages: Vec<Stage> = tail.map(|(_, _, stage)| *stage).collect();
    assert_eq!(stages, [Stage::Tripped, Stage::Escalated, Stage::Clear]);
    let ticket = &world.state.gates.tickets[0];
    assert!(
        ticket.text.contains("with no batch work there"),
        "{}",
        ticket.text
    );
    let close = Command::CloseTicket(ticket.number);
    assert_eq!(apply(&mut world.state, &close), Reply::Done);
    assert_eq!(apply(&mut world.state, &close), Reply::Unchanged);
}

#[test]
fn two_leaders_do_not_pass_a_gate_twice() {
    let mut world = World::new();
    world.node.resident = Some(90.0);
    world.run(610);
    let transition = world.state.gates.transitions[0].clone();
    let again = Command::PassGate(Box::new(transition));
    assert!(matches!(apply(&mut world.state, &again), Reply::Refused(_)));
}

/// The comfort and residency gates as the README's table says it, over a whole history: passed for so long
/// without a break, and calm for so long without one.
fn reference(values: &[f32], limit: f32, trips_s: usize, clears_at: f32, clears_s: usize) -> Vec<bool> {
    let mut open = false;
    let mut changed_at = 0;
    (0..values.len())
        .map(|i| {
            let lasted = |s: usize, is: &dyn Fn(f32) -> bool| {
                i >= changed_at + s && values[i - s..=i].iter().all(|value| is(*value))
            };
            if !open && lasted(trips_s, &|value| value > limit) {
                (open, changed_at) = (true, i + 1);
            } else if open && lasted(clears_s, &|value| value <= clears_at) {
                (open, changed_at) = (false, i + 1);
            }
            open
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn residency_trips_and_clears_as_the_table_says(
        spells in prop::collection::vec((prop::sample::select(vec![70.0f32, 77.9, 80.0, 82.1, 95.0]), 1usize..900), 1..12)
    ) {
        let values: Vec<f32> = spells
            .iter()
            .flat_map(|(value, seconds)| std::iter::repeat_n(*value, *seconds))
            .collect();
        let expected = reference(&values, 82.0, 600, 78.0, 120);
        let mut world = World::new();
        for (second, (value, open)) in values.iter().zip(expected).enumerate() {
            world.node.resident = Some(*value);
            world.run(1);
            prop_assert_eq!(world.stage(Gate::Residency) > Stage::Clear, open, "second {}", second);
        }
    }
}

#[test]
fn slow_answers_tighten_batch_and_no_more() {
    let mut world = World::new();
    (world.node.running, world.node.loaded) = (4, [model("small")].into());
    let mut speeds = Speeds::default();
    let mut run = |world: &mut World, is_slow: bool| {
        speeds.answers += 1;
        speeds.slow += u64::from(is_slow);
        world.node.speeds = Some(speeds);
        world.run(1);
    };
    let mut highest = Rung::Normal;
    for second in 0..400 {
        run(&mut world, second % 10 == 0);
        highest = highest.max(world.rung());
        assert!(second > 30 || world.rung() == Rung::Normal);
    }
    assert_eq!(highest, Rung::Tighten);
    // A session that is dialled anew says nothing at first.
    world.node.speeds = None;
    world.run(2);
    for _ in 0..600 {
        run(&mut world, false);
    }
    assert_eq!(world.rung(), Rung::Normal);
    // Where it does not help for ten minutes, it has another reason.
    for second in 0..1200 {
        run(&mut world, true);
        assert!(second < 1000 || world.rung() == Rung::Normal);
    }
    // Without batch work it has one anyway.
    world.node.running = 0;
    world.run(100);
    for _ in 0..300 {
        run(&mut world, true);
        assert_eq!(world.rung(), Rung::Normal);
    }
    assert!(world.passed.is_empty(), "{:?}", world.passed);
}
