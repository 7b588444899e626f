//! Where a request that came to a node's own endpoint is answered: here, or through which coordinator.
//!
//! The table, for a machine with a coordinator in reach; *here* is its engine, *cluster* whatever machine a
//! coordinator finds, and what is named second is asked when the first refuses (its queue is full, say):
//!
//! | the machine | interactive | background | batch |
//! |---|---|---|---|
//! | is well, and has the model | here, cluster | here, cluster | cluster, here |
//! | its queue is full | cluster, here | cluster, here | cluster, here |
//! | is slowed down, so that a prompt so long comes late, and sooner elsewhere | cluster if it begins at once, here, cluster | as interactive | cluster, here |
//! | is pressured (hot, short of memory, busy with a person) | here, cluster | cluster, here | cluster, here (which refuses) |
//! | is asleep soon (on its battery) | here, cluster | cluster, here | cluster, here (which refuses) |
//! | is drained, and still has the model | here, cluster | here, cluster | cluster, here |
//! | is drained, and the model has gone elsewhere | cluster | cluster | cluster |
//! | loads the model, or loads it again | cluster, here (which waits) | cluster, here | cluster, here |
//! | has not the model | cluster | cluster | cluster |
//!
//! Batch's column is for a list of fallbacks that names `local` after others: where it begins with it, batch is as
//! background, and where it does not name it, this engine is never asked for batch. With no coordinator in reach
//! *cluster* is nobody, and where this engine is not to be asked either, the request is refused with the reason.

use pomona_common::{Class, Fallback, Rung, Seek};

/// One place to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPlace {
    /// This node's engine: no network, no coordinator.
    Here,
    /// Whatever node the coordinator with this number finds.
    Coordinator(u64),
}

/// What this node has of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here {
    /// The engine answers for it.
    Loaded,
    /// As that, and a prompt so long comes late by what slows the machine down (see [`Promptness`](crate::Promptness)).
    Late,
    /// It is to be loaded, or loaded again: requests wait for it.
    Expected,
    /// Nothing, or other contents under the name, or the request may not be answered here.
    Absent,
}

/// A coordinator with which there is a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reachable {
    /// Its number.
    pub number: u64,
    /// Round trip to it, microseconds, smoothed.
    pub rtt_us: u64,
}

/// One place to ask, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// The place.
    pub place: EntryPlace,
    /// Which machines will do.
    pub seek: Seek,
    /// Why now.
    pub why: &'static str,
}

/// When the engine here is asked, beside the coordinators, and why.
enum Turn {
    First(&'static str),
    /// After machines elsewhere where it begins at once.
    Second(&'static str),
    Last(&'static str),
    Never,
}

/// Orders the places, the best first; those in `avoid`, which failed this answer, come last. Of coordinators
/// the nearest goes first, ties by number.
pub fn entry(
    class: Class,
    (here, rung): (Here, Rung),
    list: &Fallback,
    coordinators: &[Reachable],
    avoid: &[EntryPlace],
) -> Vec<Ask> {
    let mut nearest: Vec<&Reachable> = coordinators.iter().collect();
    // Half a millisecond is noise.
    nearest.sort_by_key(|reachable| (reachable.rtt_us / 500, reachable.number));
    let through = |seek, why| {
        let ask = move |reachable: &&Reachable| Ask {
            place: EntryPlace::Coordinator(reachable.number),
            seek,
            why,
        };
        nearest.iter().map(ask)
    };
    let here_for = |why| Ask {
        place: EntryPlace::Here,
        seek: Seek::Any,
        why,
    };
    let elsewhere = through(Seek::Any, "elsewhere in the cluster");
    let mut order: Vec<Ask> = match turn(class, (here, rung), list.local()) {
        Turn::First(why) => [here_for(why)].into_iter().chain(elsewhere).collect(),
        Turn::Second(why) => {
            let sooner = through(Seek::Better, "sooner than on this node, which is slowed down");
            sooner.chain([here_for(why)]).chain(elsewhere).collect()
        }
        Turn::Last(why) => elsewhere.chain([here_for(why)]).collect(),
        Turn::Never => elsewhere.collect(),
    };
    // Stable: the order within both parts stays.
    order.sort_by_key(|ask| avoid.contains(&ask.place));
    order
}

/// The module's table.
fn turn(class: Class, (here, rung): (Here, Rung), local: Option<bool>) -> Turn {
    let is_spared = rung.spares(class);
    match (here, local) {
        (Here::Absent, _) | (_, None) => Turn::Never,
        // While it loads, a replica elsewhere is sooner.
        (Here::Expected, Some(_)) => Turn::Last("about to be loaded on this node"),
        (_, Some(_)) if is_spared => Turn::Last("loaded on this node, which is spared"),
        (Here::Late, Some(true)) => Turn::Second("late on this node, and nobody else begins at once"),
        (Here::Loaded, Some(true)) => Turn::First("loaded on this node"),
        // Nobody waits for it: whoever sees all machines says where it goes.
        (_, Some(false)) => Turn::Last("loaded on this node, and no coordinator has a place"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(class: Class, here: Here, rung: Rung, avoid: &[EntryPlace]) -> Vec<Ask> {
        let at = |number, rtt_us| Reachable { number, rtt_us };
        let three = [at(1, 9_000), at(2, 300), at(3, 100)];
        entry(class, (here, rung), &Fallback::of(class), &three, avoid)
    }

    fn places(class: Class, here: Here, rung: Rung, avoid: &[EntryPlace]) -> Vec<EntryPlace> {
        let order = asks(class, here, rung, avoid).into_iter();
        order.map(|ask| ask.place).collect()
    }

    /// Its name, the model, rungs, who refused, and where each class goes.
    type Row<'a> = (&'a str, Here, &'a [Rung], &'a [EntryPlace], [&'a [EntryPlace]; 3]);

    #[test]
    fn every_cell_of_the_table() {
        use EntryPlace::{Coordinator, Here as Engine};
        let cluster = vec![Coordinator(2), Coordinator(3), Coordinator(1)];
        let here_first = [&[Engine], &cluster[..]].concat();
        let here_last = [&cluster[..], &[Engine]].concat();
        let here_second = [&here_last[..], &cluster[..]].concat();
        let (well, spared) = (&Rung::ALL[..1], &Rung::ALL[1..]);
        // What a machine goes through reaches this decision as a rung, a refusal, or a model that is gone.
        let rows: [Row<'_>; 10] = [
            (
                "well",
                Here::Loaded,
                well,
                &[],
                [&here_first, &here_first, &here_last],
            ),
            ("full", Here::Loaded, &Rung::ALL, &[Engine], [&here_last; 3]),
            (
                "slowed down",
                Here::Late,
                well,
                &[],
                [&here_second, &here_second, &here_last],
            ),
            (
                "slowed down and pressured",
                Here::Late,
                spared,
                &[],
                [&here_second, &here_last, &here_last],
            ),
            (
                "pressured",
                Here::Loaded,
                spared,
                &[],
                [&here_first, &here_last, &here_last],
            ),
            (
                "asleep soon",
                Here::Loaded,
                spared,
                &[],
                [&here_first, &here_last, &here_last],
            ),
            (
                "drained",
                Here::Loaded,
                well,
                &[],
                [&here_first, &here_first, &here_last],
            ),
            ("drained, and gone", Here::Absent, well, &[], [&cluster; 3]),
            ("loads", Here::Expected, &Rung::ALL, &[], [&here_last; 3]),
            ("without", Here::Absent, &Rung::ALL, &[], [&cluster; 3]),
        ];
        for (row, here, rungs, refused, wanted) in rows {
            for (rung, (class, wanted)) in rungs.iter().flat_map(|rung| {
                let cells = Class::ALL.into_iter().zip(wanted);
                cells.map(move |cell| (*rung, cell))
            }) {
                let found = places(class, here, rung, refused);
                assert_eq!(found, *wanted, "{row}: {class}, {rung}");
                let alone = entry(class, (here, rung), &Fallback::of(class), &[], refused);
                let is_there = usize::from(here != Here::Absent);
                assert_eq!(alone.len(), is_there, "{row}: {class}");
            }
        }
    }

    #[test]
    fn nobody_else_is_asked_to_keep_waiting_what_is_late_here() {
        let order = asks(Class::Interactive, Here::Late, Rung::Normal, &[]);
        let seeks: Vec<Seek> = order.iter().map(|ask| ask.seek).collect();
        assert_eq!(seeks, [&[Seek::Better; 3][..], &[Seek::Any; 4]].concat());
        for here in [Here::Loaded, Here::Expected, Here::Absent] {
            for rung in Rung::ALL {
                let order = asks(Class::Interactive, here, rung, &[]);
                assert!(order.iter().all(|ask| ask.seek == Seek::Any), "{order:?}");
            }
        }
    }

    #[test]
    fn what_failed_comes_last_and_nobody_is_left_out() {
        use EntryPlace::{Coordinator, Here as Engine};
        let failed = [Engine, Coordinator(2)];
        assert_eq!(
            places(Class::Interactive, Here::Loaded, Rung::Normal, &failed),
            [Coordinator(3), Coordinator(1), Engine, Coordinator(2)]
        );
        let well = (Here::Loaded, Rung::Normal);
        let alone = entry(
            Class::Interactive,
            well,
            &Fallback::of(Class::Interactive),
            &[],
            &[Engine],
        );
        assert_eq!(alone.len(), 1, "the engine here is all there is");
    }

    #[test]
    fn batch_goes_where_its_list_says() -> Result<(), String> {
        let at = [Reachable { number: 1, rtt_us: 0 }];
        let (here, cluster) = (EntryPlace::Here, EntryPlace::Coordinator(1));
        for (list, rung, wanted) in [
            ("local, rack", Rung::Normal, vec![here, cluster]),
            ("local, rack", Rung::Hold, vec![cluster, here]),
            ("rack, local", Rung::Normal, vec![cluster, here]),
            ("rack, pause", Rung::Normal, vec![cluster]),
        ] {
            let order = entry(Class::Batch, (Here::Loaded, rung), &list.parse()?, &at, &[]);
            let order: Vec<EntryPlace> = order.into_iter().map(|ask| ask.place).collect();
            assert_eq!(order, wanted, "{list}, {rung}");
        }
        Ok(())
    }
}
