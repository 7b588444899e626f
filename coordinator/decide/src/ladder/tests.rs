mod limits;

use pomona_common::conditions::Supply;
use pomona_common::report::Thermal;
use pomona_common::signs::Speeds;
use pomona_common::unit::Reading;
use pomona_common::{MachineRole, ModelName, Watts};
use proptest::prelude::*;

use super::*;
use crate::apply::apply;
use crate::command::Reply;
use crate::heard::Heard;
use crate::state::NodeRecord;

/// The leader looks twice a second.
const LOOK_MS: u64 = 500;

struct World {
    ladder: Ladder,
    state: ClusterState,
    signals: BTreeMap<NodeId, NodeSignals>,
    now_ms: u64,
    /// When which node came to which rung, and why.
    steps: Vec<(u64, NodeId, Rung, String)>,
}

fn model() -> ModelName {
    match "m".parse() {
        Ok(model) => model,
        Err(error) => panic!("{error}"),
    }
}

fn steps(steps_percent: Option<u32>) -> Speeds {
    Speeds {
        steps_percent,
        ..Speeds::default()
    }
}

impl World {
    /// Laptops first, then machines in a rack; all have the model, and free slots.
    fn new(laptops: usize, racks: usize) -> Self {
        let mut world = Self {
            ladder: Ladder::default(),
            state: ClusterState::default(),
            signals: BTreeMap::new(),
            now_ms: 1_000_000,
            steps: Vec::new(),
        };
        for i in 0..laptops + racks {
            let id = NodeId::from_bits(i as u128);
            let role = if i < laptops {
                MachineRole::Laptop
            } else {
                MachineRole::Rack
            };
            let record = NodeRecord {
                role,
                ..NodeRecord::default()
            };
            world.state.nodes.insert(id, record);
            let signals = NodeSignals {
                power: Reading::Measured(Watts(10.0)),
                chip: "Apple M4 Max".into(),
                free_slots: 8,
                loaded: [model()].into(),
                heard: Heard::NOW,
                ..NodeSignals::default()
            };
            world.signals.insert(id, signals);
        }
        world
    }

    fn node(&mut self, i: usize) -> &mut NodeSignals {
        self.signals.entry(NodeId::from_bits(i as u128)).or_default()
    }

    fn works(&mut self, i: usize, running: u32, waiting: u32) {
        let node = self.node(i);
        (node.running, node.waiting) = (running, waiting);
        node.busy = if running + waiting > 0 {
            [model()].into()
        } else {
            Default::default()
        };
    }

    fn rung(&self, i: usize) -> Rung {
        self.state.relief(NodeId::from_bits(i as u128)).rung
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 1000 / LOOK_MS {
            self.now_ms += LOOK_MS;
            let now = Duration::from_millis(self.now_ms);
            let steps = self
                .ladder
                .steps(&self.state, &self.signals, now, self.now_ms / 1000);
            for step in steps {
                assert_eq!(apply(&mut self.state, &step), Reply::Done, "{step:?}");
                if let Command::Relieve { node, relieved, .. } | Command::Unload { node, relieved, .. } = step
                {
                    let (rung, why) = (relieved.relief.rung, relieved.reason);
                    self.steps.push((self.now_ms, node, rung, why));
                }
            }
        }
    }

    fn rungs(&self) -> Vec<Rung> {
        self.steps.iter().map(|(_, _, rung, _)| *rung).collect()
    }
}

#[test]
fn a_hot_laptop_hands_its_batch_over_rung_by_rung_and_comes_back() {
    let mut world = World::new(1, 1);
    world.works(0, 4, 2);
    world.run(60);
    assert!(world.steps.is_empty());
    world.node(0).power = Reading::Scripted(Watts(70.0));
    world.run(200);
    let up = [Rung::Hold, Rung::Pause, Rung::MoveQueued, Rung::MoveRunning];
    assert_eq!(world.rungs(), up);
    let times: Vec<u64> = world
        .steps
        .iter()
        .map(|(at, ..)| (at - 1_060_000) / 1000)
        .collect();
    // The smoothed watts pass 45 after four seconds, and stay there for a minute; longer than that stands what is there.
    assert!((62..=68).contains(&times[0]), "{times:?}");
    assert!((160..=172).contains(&times[2]), "{times:?}");
    assert!((170..=182).contains(&times[3]), "{times:?}");
    let why = &world.steps[0].3;
    assert!(why.contains("(scripted), comfortable are 45 W"), "{why}");

    world.works(0, 0, 0);
    world.node(0).power = Reading::Measured(Watts(12.0));
    world.steps.clear();
    world.run(20);
    assert!(world.steps.is_empty(), "it is not calm for long enough");
    world.run(40);
    assert_eq!(world.rungs(), [Rung::Hold, Rung::Normal]);
    // Stressed again soon: it has to be calm for twice as long.
    world.works(0, 2, 0);
    world.node(0).power = Reading::Measured(Watts(70.0));
    world.run(90);
    world.works(0, 0, 0);
    world.node(0).power = Reading::Measured(Watts(12.0));
    world.steps.clear();
    world.run(40);
    assert!(world.steps.is_empty());
    world.run(40);
    assert_eq!(world.rung(0), Rung::Normal);
}

#[test]
fn without_a_place_to_go_work_stands_still_and_goes_on_here_later() {
    let mut world = World::new(1, 1);
    world.works(0, 3, 3);
    world.node(1).free_slots = 0;
    world.node(0).thermal = Some(Thermal::Serious);
    world.run(60);
    assert_eq!(world.rungs(), [Rung::Hold, Rung::Pause]);
    assert!(
        world.steps[0].0 <= 1_004_000,
        "a chip that throttles does not wait"
    );
    world.node(0).thermal = Some(Thermal::Nominal);
    world.steps.clear();
    world.run(100);
    assert_eq!(world.rungs(), [Rung::Hold, Rung::Normal]);
    // And when there is a place after all, it may soon go on here: what has begun, and what is being prefilled.
    world.node(0).thermal = Some(Thermal::Serious);
    world.run(40);
    assert_eq!(world.rung(0), Rung::Pause);
    world.node(0).thermal = None;
    world.node(1).free_slots = 1;
    world.run(10);
    assert_eq!(world.rung(0), Rung::Pause);
    // Nothing is lost with what only waits: it goes without being stressed.
    world.works(0, 0, 3);
    world.run(1);
    assert_eq!(world.rung(0), Rung::MoveQueued);
    world.works(0, 3, 0);
    world.node(0).thermal = Some(Thermal::Serious);
    world.run(10);
    assert_eq!(world.rung(0), Rung::MoveRunning);
}

#[test]
fn what_a_person_does_keeps_batch_small_and_memory_is_given_back_when_it_is_short() {
    let mut world = World::new(1, 1);
    world.works(0, 1, 0);
    world.node(0).occupied = true;
    world.run(300);
    assert_eq!(world.rungs(), [Rung::Hold, Rung::Tighten]);
    world.node(0).pressure = Some(95.0);
    world.run(30);
    let relief = world.state.relief(NodeId::from_bits(0));
    assert_eq!((relief.rung, relief.frees_memory), (Rung::MoveRunning, true));
    // The build goes on when the memory is there again: as far down as that allows.
    world.node(0).pressure = Some(10.0);
    world.run(300);
    let relief = world.state.relief(NodeId::from_bits(0));
    assert_eq!((relief.rung, relief.frees_memory), (Rung::Tighten, false));
}

/// Memory that is in use all the time is none that is short, whatever else stresses the node; and watts that have just
/// come wait for their time, however long a build has been going on.
#[test]
fn one_stress_takes_no_other_along() {
    let mut world = World::new(1, 1);
    world.works(0, 2, 0);
    world.node(0).pressure = Some(75.0);
    world.node(0).occupied = true;
    world.run(300);
    assert_eq!(world.rungs(), [Rung::Hold, Rung::Tighten]);
    assert!(!world.state.relief(NodeId::from_bits(0)).frees_memory);
    world.node(0).power = Reading::Measured(Watts(70.0));
    world.run(50);
    assert_eq!(world.rung(0), Rung::Tighten);
    world.run(30);
    assert_eq!(world.rung(0), Rung::Pause);
}

#[test]
fn batteries_count_on_laptops_and_watts_not_in_racks() {
    let mut world = World::new(1, 1);
    world.node(0).supply = Some(Supply::Battery);
    world.node(1).supply = Some(Supply::Battery);
    world.node(1).power = Reading::Measured(Watts(150.0));
    world.run(60);
    assert_eq!((world.rung(0), world.rung(1)), (Rung::Hold, Rung::Normal));
}

#[test]
fn a_node_that_is_not_heard_of_stays_where_it_is() {
    let mut world = World::new(1, 1);
    world.works(0, 1, 0);
    world.node(0).power = Reading::Measured(Watts(70.0));
    world.run(80);
    let before = world.steps.len();
    assert!(before > 0);
    world.node(0).heard.age_ms = 10_000;
    world.node(0).power = Reading::Measured(Watts(5.0));
    world.run(600);
    assert_eq!(world.steps.len(), before);
}

#[test]
fn reports_that_are_late_now_and_then_do_not_keep_a_node_relieved() {
    let mut world = World::new(1, 1);
    world.node(0).power = Reading::Measured(Watts(70.0));
    world.run(80);
    assert_eq!(world.rung(0), Rung::Hold);
    world.node(0).power = Reading::Measured(Watts(10.0));
    for _ in 0..60 {
        world.node(0).heard.age_ms = 1600;
        world.run(1);
        world.node(0).heard.age_ms = 0;
        world.run(2);
    }
    assert_eq!(world.rung(0), Rung::Normal);
}

#[test]
fn watts_that_nobody_minds_stop_no_work_that_has_nowhere_to_go() {
    let mut world = World::new(1, 1);
    world.works(0, 2, 0);
    world.node(0).power = Reading::Measured(Watts(70.0));
    world.node(0).is_alone = true;
    world.node(1).free_slots = 0;
    world.run(120);
    assert_eq!(world.rung(0), Rung::Normal);
    // Somebody comes back.
    world.node(0).is_alone = false;
    world.run(120);
    assert_eq!(world.rung(0), Rung::Pause);
}

#[test]
fn few_nodes_hand_over_at_a_time() {
    let mut world = World::new(8, 4);
    for i in 0..8 {
        world.works(i, 2, 0);
        world.node(i).power = Reading::Measured(Watts(80.0));
    }
    for _ in 0..600 {
        world.run(1);
        let hands_over = |i: &usize| {
            world.rung(*i) >= Rung::MoveQueued && world.signals[&NodeId::from_bits(*i as u128)].batch() > 0
        };
        let handing: Vec<usize> = (0..8).filter(hands_over).collect();
        assert!(handing.len() <= 3, "{handing:?}");
        // One that hands over is empty a moment later.
        for i in handing {
            if world.steps.iter().any(|(at, node, rung, _)| {
                node.bits() == i as u128 && *rung == Rung::MoveRunning && at + 3000 < world.now_ms
            }) {
                world.works(i, 0, 0);
            }
        }
    }
    assert!((0..8).all(|i| world.signals[&NodeId::from_bits(i as u128)].batch() == 0));
}

#[derive(Debug, Clone)]
struct Reported {
    seconds: u64,
    watts: f32,
    battery: bool,
    pressure: f32,
    serious: bool,
    occupied: bool,
    late: bool,
    running: u32,
    waiting: u32,
    room: bool,
}

fn reported() -> impl Strategy<Value = Reported> {
    let machine = (1..200u64, 0.0..90.0f32, prop::bool::weighted(0.2), 0.0..110.0f32);
    let rest = (
        prop::bool::weighted(0.1),
        any::<bool>(),
        prop::bool::weighted(0.1),
    );
    (machine, rest, 0..5u32, 0..5u32, any::<bool>()).prop_map(
        |((seconds, watts, battery, pressure), (serious, occupied, late), running, waiting, room)| Reported {
            seconds,
            watts,
            battery,
            pressure,
            serious,
            occupied,
            late,
            running,
            waiting,
            room,
        },
    )
}

impl World {
    fn report(&mut self, reported: &Reported) {
        let node = self.node(0);
        node.power = Reading::Measured(Watts(reported.watts));
        node.supply = Some(if reported.battery {
            Supply::Battery
        } else {
            Supply::Mains
        });
        node.pressure = Some(reported.pressure);
        node.thermal = Some(if reported.serious {
            Thermal::Serious
        } else {
            Thermal::Nominal
        });
        node.occupied = reported.occupied;
        node.heard.age_ms = if reported.late { 10_000 } else { 0 };
        self.node(1).free_slots = u32::from(reported.room);
        self.works(0, reported.running, reported.waiting);
        self.run(reported.seconds);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is reported: nobody is let go who was not calm for a while, nobody is held back again
    /// at once, and when nothing changes any more the ladder comes to rest within its rungs.
    #[test]
    fn it_neither_oscillates_nor_runs_on(script in prop::collection::vec(reported(), 1..12)) {
        let mut world = World::new(1, 1);
        for reported in &script {
            world.report(reported);
        }
        let mut last: Option<(u64, Rung, bool)> = None;
        for (at, _, rung, why) in &world.steps {
            if let Some((before_at, before, rose)) = last {
                if *rung == before {
                    prop_assert!(why.contains("memory"), "{:?}", world.steps);
                    continue;
                }
                let rises = *rung > before;
                let passed = at - before_at;
                prop_assert!(passed >= STEP_UP_SUDDEN.as_millis() as u64, "{:?}", world.steps);
                if rose && !rises {
                    let calm = CALM.as_millis() as u64;
                    // What justifies less than where it is counts as calm, and may have begun before.
                    prop_assert!(passed >= STEP_DOWN.as_millis() as u64, "{:?}", world.steps);
                    prop_assert!(at - 1_000_000 >= calm, "{:?}", world.steps);
                }
                prop_assert_eq!(rises || why.contains("calm"), true);
            }
            let rose = last.is_none_or(|(_, before, _)| *rung > before);
            last = Some((*at, *rung, rose));
        }
        world.steps.clear();
        world.run(3 * 3600);
        prop_assert!(world.steps.len() <= Rung::ALL.len() + 2, "{:?}", world.steps);
        let rest = world.steps.len();
        world.run(3600);
        prop_assert_eq!(world.steps.len(), rest, "it runs on: {:?}", &world.steps[rest..]);
    }
}

#[test]
fn a_model_that_nobody_uses_makes_room_where_memory_stays_short() {
    let mut world = World::new(1, 1);
    let node = NodeId::from_bits(0);
    let model = model();
    // On its battery for long, and short for a moment.
    world.node(0).supply = Some(Supply::Battery);
    world.node(0).spare = Some(model.clone());
    world.run(300);
    world.node(0).pressure = Some(90.0);
    world.run(30);
    world.node(0).pressure = Some(50.0);
    world.run(10);
    assert_eq!(world.rungs(), [Rung::Hold]);
    world.node(0).spare = None;
    world.node(0).pressure = Some(90.0);
    world.run(120);
    assert_eq!(world.rungs(), [Rung::Hold], "there is none");
    world.node(0).spare = Some(model.clone());
    world.run(1);
    assert_eq!(world.rungs(), [Rung::Hold, Rung::Unload]);
    let leaves = |world: &World, after_s| {
        let now_s = world.now_ms / 1000 + after_s;
        world.state.gates.relocates(node, &model, now_s)
    };
    assert!(leaves(&world, 3500) && !leaves(&world, 3700));
    // The next one five minutes later, if it is still short by then.
    world.run(290);
    assert_eq!(world.steps.len(), 2);
    world.run(20);
    assert_eq!(world.steps.len(), 3);
    world.node(0).pressure = Some(50.0);
    world.node(0).supply = None;
    world.run(120);
    assert_eq!(world.rung(0), Rung::Normal);
    assert!(leaves(&world, 0), "it does not fill the memory at once again");
    // What works there goes first.
    world.works(0, 2, 0);
    world.node(0).pressure = Some(90.0);
    world.node(1).free_slots = 0;
    world.run(200);
    assert_eq!(world.rung(0), Rung::Pause);
}

#[test]
fn a_chip_that_throttles_is_relieved_whatever_it_says() {
    let mut world = World::new(2, 1);
    for i in 0..3 {
        world.works(i, 4, 0);
        world.node(i).thermal = Some(Thermal::Nominal);
        world.node(i).speeds = Some(steps(Some(70)));
    }
    // Its person's build is why.
    world.node(1).occupied = true;
    world.node(2).free_slots = 8;
    world.run(55);
    assert_eq!(world.rungs(), []);
    world.run(30);
    assert_eq!(world.rung(0), Rung::Pause);
    let reasons = &world.state.offload.relieved;
    let why = reasons
        .get(&NodeId::from_bits(0))
        .map(|relieved| relieved.reason.as_str());
    assert!(
        why.is_some_and(|why| why.contains("slowed down to 70 %")),
        "{why:?}"
    );
    // A machine in a rack is nobody's comfort.
    assert_eq!(world.rung(2), Rung::Normal);
    assert!(world.rung(1) <= Rung::Tighten);
    // It stands still: how fast it would be nobody knows.
    world.node(0).speeds = Some(steps(None));
    world.run(60);
    assert_eq!(world.rung(0), Rung::Normal);
}

#[test]
fn a_machine_without_a_fan_leaves_batch_to_others_while_its_person_is_there() {
    let mut world = World::new(2, 1);
    let cramp = |world: &mut World, i: usize| {
        let node = world.node(i);
        (node.chip, node.is_attended) = ("Apple M4".into(), true);
        node.power = Reading::Measured(Watts(4.0));
    };
    cramp(&mut world, 0);
    world.works(0, 2, 0);
    world.run(19);
    assert_eq!(world.rungs(), []);
    world.run(61);
    assert_eq!(world.rung(0), Rung::MoveRunning);
    let why = world.steps.first().map(|(.., why)| why.as_str());
    assert!(why.is_some_and(|why| why.contains("8 W of comfort")), "{why:?}");
    // What nobody takes goes on at its own pace.
    for i in 1..3 {
        world.node(i).free_slots = 0;
    }
    world.run(120);
    assert_eq!(world.rung(0), Rung::Hold);
    world.works(0, 0, 0);
    world.node(0).is_attended = false;
    world.run(120);
    assert_eq!(
        world.rung(0),
        Rung::Normal,
        "nobody knows whether somebody is there"
    );
    // Those who have what it has are needed, are there, and take batch themselves.
    type Change = fn(&mut World);
    let cases: [(Change, Rung); 6] = [
        (|_| {}, Rung::Hold),
        (|world| world.node(1).supply = Some(Supply::Battery), Rung::Normal),
        (|world| world.node(1).loaded.clear(), Rung::Normal),
        (|world| world.node(0).loaded.clear(), Rung::Normal),
        (|world| world.node(1).heard.age_ms = 9_000, Rung::Normal),
        (
            |world| (world.node(1).chip, world.node(1).is_attended) = ("Apple M4".into(), true),
            Rung::Normal,
        ),
    ];
    for (number, (change, rung)) in cases.into_iter().enumerate() {
        let mut world = World::new(2, 0);
        change(&mut world);
        world.run(60);
        cramp(&mut world, 0);
        world.run(60);
        assert_eq!(world.rung(0), rung, "case {number}");
    }
    // Of three such machines beside two others none is held.
    let mut world = World::new(5, 0);
    (0..3).for_each(|i| cramp(&mut world, i));
    world.run(60);
    assert_eq!(world.rungs(), []);
    cramp(&mut world, 0);
    world.node(2).is_attended = false;
    world.run(60);
    assert_eq!(
        [0, 1, 2].map(|i| world.rung(i)),
        [Rung::Hold, Rung::Hold, Rung::Normal]
    );
}
