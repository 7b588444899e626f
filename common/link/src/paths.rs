//! Which of a coordinator's addresses leads to it fastest. All are dialled at once and the first that
//! answers is taken; from then on all are measured again and again, because cables are plugged in, and
//! a machine that fell back to a slow line is not to stay there without a word.
//!
//! Pure: time is a parameter, and what was measured as well.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// First measurement after a session began, and the longest time between two; doubled in between.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);
/// When a change could not be made.
const SOON: Duration = Duration::from_secs(10);
/// After so many changes within this time each, a line is tried more rarely: it is no good one.
const CHANGES: u32 = 3;
const SETTLED: Duration = Duration::from_secs(600);
/// Another line must take less than half the time, and this much less: a session that changes costs
/// more than the difference otherwise.
const GAIN: Duration = Duration::from_micros(500);
/// It must be faster so often in a row: Wi-Fi is slow once in a while.
const ROUNDS: u32 = 2;

/// One line is faster than another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faster {
    /// Where it leads to.
    pub address: SocketAddr,
    /// Its round trip.
    pub round_trip: Duration,
    /// The round trip of the line in use.
    pub in_use: Duration,
}

#[derive(Debug)]
struct Peer {
    in_use: Option<SocketAddr>,
    /// As it was last measured.
    round_trips: BTreeMap<SocketAddr, Duration>,
    wait: Duration,
    next: Duration,
    /// How often in a row another line was faster.
    better: u32,
    /// When another line was taken last, and how often within a short time.
    changed: Option<Duration>,
    changes: u32,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Paths {
    peers: BTreeMap<u64, Peer>,
}

impl Paths {
    /// A session with a coordinator began. Gives a faster line, if one was known.
    pub fn began(
        &mut self,
        peer: u64,
        address: SocketAddr,
        round_trip: Duration,
        now: Duration,
    ) -> Option<Faster> {
        let peer = self.peers.entry(peer).or_insert_with(|| Peer {
            in_use: None,
            round_trips: BTreeMap::new(),
            wait: FIRST,
            next: now,
            better: 0,
            changed: None,
            changes: 0,
        });
        peer.in_use = Some(address);
        peer.round_trips.insert(address, round_trip);
        // A line that passes handshakes and breaks under traffic is tried ever more rarely.
        if peer.changes < CHANGES || peer.changed.is_none_or(|at| now > at + SETTLED) {
            peer.wait = FIRST;
        }
        (peer.next, peer.better) = (now + peer.wait, 0);
        peer.faster()
    }

    /// The session with a coordinator ended.
    pub fn ended(&mut self, peer: u64) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.in_use = None;
        }
    }

    /// A coordinator whose lines are to be measured now.
    pub fn due(&mut self, now: Duration) -> Option<u64> {
        let is_due = |peer: &Peer| peer.in_use.is_some() && peer.next <= now;
        let (number, peer) = self.peers.iter_mut().find(|(_, peer)| is_due(peer))?;
        peer.wait = (peer.wait * 2).min(LONGEST);
        peer.next = now + peer.wait;
        Some(*number)
    }

    /// A line is to be taken, and answers are on their way over the one in use: it is looked again soon.
    pub fn again(&mut self, peer: u64, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.next = now + SOON;
        }
    }

    /// The session with a coordinator ends so that a faster line is taken.
    pub fn changes(&mut self, peer: u64, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            let is_soon = peer.changed.is_some_and(|at| now <= at + SETTLED);
            peer.changes = if is_soon { peer.changes + 1 } else { 1 };
            peer.changed = Some(now);
        }
    }

    /// What was measured of all lines to a coordinator, the one in use among them; those that did not
    /// answer are left out. Gives the line that is to be taken instead, if one is.
    pub fn measured(&mut self, peer: u64, round_trips: BTreeMap<SocketAddr, Duration>) -> Option<Faster> {
        let peer = self.peers.get_mut(&peer)?;
        peer.round_trips = round_trips;
        let faster = peer.faster();
        peer.better = if faster.is_some() { peer.better + 1 } else { 0 };
        faster.filter(|_| peer.better >= ROUNDS)
    }
}

impl Peer {
    fn faster(&self) -> Option<Faster> {
        let in_use = *self.round_trips.get(&self.in_use?)?;
        let (address, round_trip) = self
            .round_trips
            .iter()
            .min_by_key(|(_, round_trip)| **round_trip)?;
        let is_faster = *round_trip < in_use / 2 && *round_trip + GAIN < in_use;
        is_faster.then_some(Faster {
            address: *address,
            round_trip: *round_trip,
            in_use,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn at(n: u8) -> SocketAddr {
        ([10, 0, 0, n], 7712).into()
    }

    /// Measures both lines whenever they are due until `until`; when a change was asked for.
    fn follow(paths: &mut Paths, slow: u32, fast: u32, until: Duration) -> Option<(Duration, Faster)> {
        (0..until.as_millis() as u64)
            .map(Duration::from_millis)
            .find_map(|now| {
                let peer = paths.due(now)?;
                let measured = [(at(1), MS * slow), (at(2), MS * fast)].into();
                Some((now, paths.measured(peer, measured)?))
            })
    }

    #[test]
    fn a_line_that_stays_faster_is_taken_soon_and_one_that_is_as_fast_never() {
        let mut paths = Paths::default();
        assert_eq!(paths.began(1, at(1), MS * 8, Duration::ZERO), None);
        let taken = follow(&mut paths, 8, 1, SECOND * 60);
        let (when, faster) = taken.unwrap_or_else(|| unreachable!("never taken"));
        assert_eq!((when, faster.address), (SECOND * 6, at(2)));
        // Back on the slow line, with the fast one known: that is said at once.
        paths.ended(1);
        assert_eq!(
            paths.due(SECOND * 100),
            None,
            "nothing is measured without a session"
        );
        assert!(paths.began(1, at(1), MS * 8, SECOND * 100).is_some());
        for fast in [5, 8, 20] {
            let mut paths = Paths::default();
            paths.began(1, at(1), MS * 8, Duration::ZERO);
            assert_eq!(follow(&mut paths, 8, fast, SECOND * 600), None, "{fast}");
        }
    }

    #[test]
    fn a_line_that_breaks_again_and_again_is_tried_ever_more_rarely() {
        let mut paths = Paths::default();
        let (mut now, mut changes) = (Duration::ZERO, 0);
        paths.began(1, at(1), MS * 8, now);
        while now < SECOND * 3600 {
            now += SECOND;
            let Some(peer) = paths.due(now) else {
                continue;
            };
            if paths
                .measured(peer, [(at(1), MS * 8), (at(2), MS)].into())
                .is_some()
            {
                changes += 1;
                paths.changes(1, now);
                paths.began(1, at(2), MS, now);
                // It breaks at once.
                paths.ended(1);
                paths.began(1, at(1), MS * 8, now);
            }
        }
        assert!((20..40).contains(&changes), "{changes} changes an hour");
    }

    #[test]
    fn one_slow_moment_changes_nothing_and_measurements_become_rare() {
        let mut paths = Paths::default();
        paths.began(1, at(1), MS, Duration::ZERO);
        let mut rounds = 0;
        for s in 0..600 {
            if let Some(peer) = paths.due(SECOND * s) {
                rounds += 1;
                let slow = if rounds % 2 == 0 { 30 } else { 1 };
                let measured = [(at(1), MS * slow), (at(2), MS * 2)].into();
                assert_eq!(paths.measured(peer, measured), None);
            }
        }
        assert!((10..20).contains(&rounds), "{rounds}");
        // The line in use does not answer, though its session lives: nothing to compare with.
        assert_eq!(paths.measured(1, [(at(2), MS)].into()), None);
    }
}
