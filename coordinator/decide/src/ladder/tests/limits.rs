//! Limits, their bands, and how long a rest is.

use pomona_common::Fallbacks;

use super::*;
use crate::planner::PRESSURE_MAX;
use crate::sets::Made;

/// Batch goes where the list of its class has it, and stands still rather than anywhere else.
#[test]
fn batch_moves_only_where_its_list_allows() -> Result<(), String> {
    for (list, up_to) in [("local", Rung::Pause), ("local, rack", Rung::MoveRunning)] {
        let mut world = World::new(1, 1);
        let mut set = Fallbacks {
            version: 1,
            ..Fallbacks::default()
        };
        set.set(Class::Batch, list.parse()?);
        let made = Made {
            set,
            by: String::new(),
            at_s: 1,
        };
        world.state.fallbacks.add(&made);
        world.works(0, 2, 1);
        world.node(0).thermal = Some(Thermal::Serious);
        world.run(120);
        assert_eq!(world.rung(0), up_to);
    }
    Ok(())
}

#[test]
fn a_mac_that_saves_power_hands_its_batch_over_soon() {
    let mut world = World::new(1, 1);
    world.works(0, 2, 0);
    world.node(0).low_power = Some(true);
    world.run(50);
    assert_eq!(world.rung(0), Rung::MoveRunning);
    world.node(0).low_power = Some(false);
    world.works(0, 0, 0);
    world.run(60);
    assert_eq!(world.rung(0), Rung::Normal);
}

/// Each limit is a band: what is between its ends changes nothing.
#[test]
fn what_is_just_below_a_limit_ends_no_stress_and_begins_none() {
    let with = |set: fn(&mut NodeSignals, bool)| {
        let mut world = World::new(1, 1);
        world.works(0, 2, 0);
        set(world.node(0), false);
        world.run(200);
        assert_eq!(world.rung(0), Rung::Normal, "in the band, from below");
        world.works(1, 0, 0);
        world.node(1).free_slots = 0;
        set(world.node(0), true);
        world.run(100);
        let rung = world.rung(0);
        assert!(rung > Rung::Normal);
        set(world.node(0), false);
        world.run(300);
        assert_eq!(world.rung(0), rung, "in the band, from above");
    };
    with(|node, above| node.power = Reading::Measured(Watts(if above { 50.0 } else { 44.0 })));
    with(|node, above| {
        node.pressure = Some(if above {
            PRESSURE_MAX + 2.0
        } else {
            PRESSURE_MAX - 5.0
        })
    });
    with(|node, above| node.speeds = Some(steps(Some(if above { 70 } else { 84 }))));
}

#[test]
fn where_a_rest_was_in_vain_the_next_one_is_short_but_for_a_build() {
    for (relapses, occupied, moves) in [(0, false, false), (1, false, true), (1, true, false)] {
        let mut world = World::new(1, 1);
        world.works(0, 2, 0);
        let relieved = Relieved {
            relief: Relief {
                rung: Rung::Hold,
                ..Relief::default()
            },
            since_s: world.now_ms / 1000,
            relapses,
            ..Relieved::default()
        };
        world
            .state
            .offload
            .relieved
            .insert(NodeId::from_bits(0), relieved);
        world.node(0).occupied = occupied;
        world.node(0).power = Reading::Measured(Watts(70.0));
        world.run(100);
        let moved = world.rung(0) == Rung::MoveRunning;
        assert_eq!(moved, moves, "{relapses} {occupied}: {:?}", world.steps);
    }
}
