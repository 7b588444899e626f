//! Where a request that came to a node's own endpoint is answered: here, or through which
//! coordinator.

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
    /// It does, and the work is such as nobody waits for: whoever sees all machines says where it goes.
    Shared,
    /// It is to be loaded, or loaded again: requests wait for it.
    Expected,
    /// It may be there, and the machine is spared work of this class.
    Spared,
    /// Nothing, or other contents under the name.
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

/// Orders the places, the best first; those in `avoid`, which failed this answer, come last.
///
/// The engine here goes first when it answers at once; batch work goes through a coordinator, which knows the
/// racks. While it loads, a replica elsewhere is sooner; nobody in reach, the request waits here. On a machine that is spared the engine is asked
/// last, and says why it takes nothing. Of coordinators the nearest goes first, ties by number.
pub fn entry(
    here: Here,
    coordinators: &[Reachable],
    avoid: &[EntryPlace],
) -> Vec<(EntryPlace, &'static str)> {
    let mut nearest: Vec<&Reachable> = coordinators.iter().collect();
    // Half a millisecond is noise.
    nearest.sort_by_key(|reachable| (reachable.rtt_us / 500, reachable.number));
    let through = nearest.into_iter().map(|reachable| {
        (
            EntryPlace::Coordinator(reachable.number),
            "elsewhere in the cluster",
        )
    });
    let mut order = Vec::with_capacity(1 + coordinators.len());
    match here {
        Here::Loaded => {
            order.push((EntryPlace::Here, "loaded on this node"));
            order.extend(through);
        }
        Here::Shared => {
            order.extend(through);
            order.push((
                EntryPlace::Here,
                "loaded on this node, and no coordinator has a place",
            ));
        }
        Here::Expected => {
            order.extend(through);
            order.push((EntryPlace::Here, "about to be loaded on this node"));
        }
        Here::Spared => {
            order.extend(through);
            order.push((EntryPlace::Here, "this machine is spared"));
        }
        Here::Absent => order.extend(through),
    }
    // Stable: the order within both parts stays.
    order.sort_by_key(|(place, _)| avoid.contains(place));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn here_first_when_loaded_then_the_nearest_coordinator() {
        use EntryPlace::{Coordinator, Here as Engine};
        let at = |number, rtt_us| Reachable { number, rtt_us };
        let three = [at(1, 9_000), at(2, 300), at(3, 100)];
        let places = |here, coordinators: &[Reachable], avoid: &[EntryPlace]| -> Vec<EntryPlace> {
            let order = entry(here, coordinators, avoid);
            order.into_iter().map(|(place, _)| place).collect()
        };
        let far = [Coordinator(2), Coordinator(3), Coordinator(1)];
        assert_eq!(places(Here::Loaded, &three, &[]), [&[Engine], &far[..]].concat());
        assert_eq!(
            places(Here::Expected, &three, &[]),
            [&far[..], &[Engine]].concat()
        );
        assert_eq!(places(Here::Shared, &three, &[]), [&far[..], &[Engine]].concat());
        assert_eq!(places(Here::Shared, &[], &[]), [Engine]);
        assert_eq!(places(Here::Spared, &three, &[]), [&far[..], &[Engine]].concat());
        assert_eq!(places(Here::Absent, &three, &[]), far);
        // One that failed comes last, and nobody is left out.
        assert_eq!(
            places(Here::Loaded, &three, &[Engine, Coordinator(2)]),
            [Coordinator(3), Coordinator(1), Engine, Coordinator(2)]
        );
        // No coordinator in reach: the engine here is all there is.
        assert_eq!(places(Here::Loaded, &[], &[Engine]), [Engine]);
        assert_eq!(places(Here::Expected, &[], &[]), [Engine]);
        assert!(places(Here::Absent, &[], &[]).is_empty());
    }
}
