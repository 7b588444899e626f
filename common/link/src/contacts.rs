//! Which address to dial next. A process wants one session with every coordinator and hears of
//! their addresses from several sides; what is only a hint is bounded and distrusted.
//!
//! Pure: time is a parameter, `next_dial` is asked until it has nothing, `poll_timeout` says when
//! to ask again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use pomona_common::limits;

/// First wait after a failure; doubled with each more.
const AGAIN_FIRST: Duration = Duration::from_millis(100);
/// Longest wait for an address that the configuration or the cluster names: a coordinator that
/// was restarted is reached soon, and there are five at most.
const AGAIN_KNOWN: Duration = Duration::from_secs(1);
/// The same for one that answers and then refuses.
const AGAIN_REFUSED: Duration = Duration::from_secs(3);
/// Who answers twice within this time refuses or fails what comes after the handshake, and is
/// waited for as if it had not answered.
const FLAPPING: Duration = Duration::from_secs(10);
/// Longest wait for a hint.
const AGAIN_HINT: Duration = Duration::from_secs(60);
/// Hints are dialled at most this often: whoever floods the LAN with forged ones makes this
/// process knock at one door after the other, and no faster.
const HINT_PACE: Duration = Duration::from_millis(200);
/// How much sooner an address is dialled than the others, where one is known to be faster: longer than
/// a handshake over a slow line.
const HEAD_START: Duration = Duration::from_millis(1500);
/// A hint that failed this often is forgotten; the next announcement brings it back.
const HINT_FAILURES: u32 = 4;

/// Who named an address, the most trusted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Somebody on the LAN.
    Hint,
    /// The cluster.
    Cluster,
    /// The configuration, or the coordinator that this machine joined at.
    Configured,
}

#[derive(Debug, Clone)]
struct Contact {
    source: Source,
    /// The coordinator that answered there last, or is said to.
    peer: Option<u64>,
    failures: u32,
    next: Duration,
    dialling: bool,
    /// When somebody answered there last.
    answered: Option<Duration>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Contacts {
    contacts: BTreeMap<SocketAddr, Contact>,
    /// Coordinators with sessions, and how many.
    live: BTreeMap<u64, u32>,
    hint_dialled: Option<Duration>,
}

impl Contacts {
    /// Somebody says that a coordinator is at `address`.
    pub fn learn(&mut self, address: SocketAddr, source: Source, peer: Option<u64>, now: Duration) {
        if let Some(known) = self.contacts.get_mut(&address) {
            known.source = known.source.max(source);
            if source > Source::Hint || known.peer.is_none() {
                known.peer = peer.or(known.peer);
            }
            return;
        }
        let hints = self
            .contacts
            .values()
            .filter(|contact| contact.source == Source::Hint);
        if source == Source::Hint && hints.count() >= limits::CONTACTS / 2 {
            // The one that failed most makes room; one that never failed keeps its place.
            let worst = self
                .contacts
                .iter()
                .filter(|(_, c)| c.source == Source::Hint && !c.dialling && c.failures > 0)
                .max_by_key(|(_, c)| c.failures)
                .map(|(address, _)| *address);
            let Some(worst) = worst else {
                return;
            };
            self.contacts.remove(&worst);
        }
        if self.contacts.len() >= limits::CONTACTS {
            return;
        }
        let contact = Contact {
            source,
            peer,
            failures: 0,
            next: now,
            dialling: false,
            answered: None,
        };
        self.contacts.insert(address, contact);
    }

    /// The cluster says where all its coordinators are.
    pub fn learn_cluster(&mut self, coordinators: &[(u64, SocketAddr)], now: Duration) {
        self.contacts.retain(|address, contact| {
            contact.source != Source::Cluster
                || contact.dialling
                || is_live(&self.live, contact)
                || coordinators.iter().any(|(_, named)| named == address)
        });
        for (peer, address) in coordinators {
            self.learn(*address, Source::Cluster, Some(*peer), now);
        }
    }

    /// The next address to dial, if one is due; it counts as being dialled until
    /// [`Contacts::dialled`].
    pub fn next_dial(&mut self, now: Duration) -> Option<SocketAddr> {
        let may_hint = self.hint_dialled.is_none_or(|at| now >= at + HINT_PACE);
        let (address, contact) = self
            .contacts
            .iter_mut()
            .filter(|(_, c)| !c.dialling && c.next <= now && !is_live(&self.live, c))
            .filter(|(_, c)| may_hint || c.source != Source::Hint)
            .min_by_key(|(_, c)| (std::cmp::Reverse(c.source), c.failures, c.next))?;
        contact.dialling = true;
        if contact.source == Source::Hint {
            self.hint_dialled = Some(now);
        }
        Some(*address)
    }

    /// Who answered at an address that was dialled, if a coordinator of this cluster did. `false`
    /// when that was not waited for: the end of what had answered before.
    pub fn dialled(&mut self, address: SocketAddr, answered: Option<u64>, now: Duration) -> bool {
        let Some(contact) = self.contacts.get_mut(&address).filter(|contact| contact.dialling) else {
            return false;
        };
        contact.dialling = false;
        if let Some(peer) = answered {
            contact.peer = Some(peer);
            let flaps = contact.answered.is_some_and(|at| now < at + FLAPPING);
            contact.answered = Some(now);
            if !flaps {
                contact.failures = 0;
                contact.next = now + AGAIN_FIRST;
                return true;
            }
        }
        contact.failures += 1;
        let longest = match contact.source {
            Source::Hint => AGAIN_HINT,
            Source::Cluster | Source::Configured if answered.is_some() => AGAIN_REFUSED,
            Source::Cluster | Source::Configured => AGAIN_KNOWN,
        };
        contact.next = now + (AGAIN_FIRST * 2u32.pow(contact.failures.min(12))).min(longest);
        if contact.source == Source::Hint && contact.failures >= HINT_FAILURES {
            self.contacts.remove(&address);
        }
        true
    }

    /// Where a coordinator may be reached, the most trusted first: where it has answered or is by the word
    /// of the cluster, then what is only said.
    pub fn addresses(&self, peer: u64) -> Vec<SocketAddr> {
        let of_peer = |(_, contact): &(&SocketAddr, &Contact)| contact.peer == Some(peer);
        let mut contacts: Vec<_> = self.contacts.iter().filter(of_peer).collect();
        contacts.sort_by_key(|(_, contact)| {
            let is_hint = contact.source == Source::Hint;
            (is_hint && contact.answered.is_none(), is_hint, contact.failures)
        });
        contacts.into_iter().map(|(address, _)| *address).collect()
    }

    /// An address is to be dialled before the others of its coordinator.
    pub fn prefer(&mut self, address: SocketAddr, now: Duration) {
        let Some(peer) = self.contacts.get(&address).and_then(|contact| contact.peer) else {
            return;
        };
        for (other, contact) in &mut self.contacts {
            if *other == address {
                contact.next = now;
            } else if contact.peer == Some(peer) {
                contact.next = contact.next.max(now + HEAD_START);
            }
        }
    }

    /// A session with a coordinator began, whoever dialled it. `false` when there is one already.
    pub fn began(&mut self, peer: u64) -> bool {
        let sessions = self.live.entry(peer).or_default();
        *sessions += 1;
        *sessions == 1
    }

    /// A session with a coordinator ended.
    pub fn ended(&mut self, peer: u64) {
        if let Some(sessions) = self.live.get_mut(&peer) {
            *sessions = sessions.saturating_sub(1);
            if *sessions == 0 {
                self.live.remove(&peer);
            }
        }
    }

    /// When [`Contacts::next_dial`] has something next, if ever.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let waiting = self
            .contacts
            .values()
            .filter(|contact| !contact.dialling && !is_live(&self.live, contact));
        let due = |contact: &Contact| match (contact.source, self.hint_dialled) {
            (Source::Hint, Some(at)) => contact.next.max(at + HINT_PACE),
            _ => contact.next,
        };
        waiting.map(due).min()
    }
}

fn is_live(live: &BTreeMap<u64, u32>, contact: &Contact) -> bool {
    contact.peer.is_some_and(|peer| live.contains_key(&peer))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address(n: u32) -> SocketAddr {
        (std::net::Ipv4Addr::from(0x0a00_0000 + n), 7712).into()
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_session_a_coordinator_is_enough_whatever_addresses_it_has() {
        let mut contacts = Contacts::default();
        for n in 0..3 {
            contacts.learn(address(n), Source::Hint, Some(1), Duration::ZERO);
        }
        let first = contacts.next_dial(Duration::ZERO);
        assert!(first.is_some());
        contacts.dialled(first.unwrap_or(address(0)), Some(1), Duration::ZERO);
        assert!(contacts.began(1));
        assert_eq!(contacts.next_dial(SECOND * 100), None);
        assert_eq!(contacts.poll_timeout(), None);
        contacts.ended(1);
        assert!(contacts.next_dial(SECOND * 100).is_some());
    }

    #[test]
    fn who_answers_and_refuses_is_not_asked_all_the_time() {
        let mut contacts = Contacts::default();
        contacts.learn(address(1), Source::Configured, None, Duration::ZERO);
        let mut dials = 0;
        for ms in 0..60_000 {
            let now = Duration::from_millis(ms);
            while let Some(next) = contacts.next_dial(now) {
                dials += 1;
                contacts.dialled(next, Some(1), now);
                contacts.began(1);
                contacts.ended(1);
            }
        }
        assert!((15..=30).contains(&dials), "{dials} dials");
    }

    #[test]
    fn what_the_cluster_says_replaces_what_it_said() {
        let mut contacts = Contacts::default();
        contacts.learn_cluster(&[(1, address(1)), (2, address(2))], Duration::ZERO);
        contacts.learn_cluster(&[(1, address(3))], Duration::ZERO);
        assert_eq!(contacts.next_dial(Duration::ZERO), Some(address(3)));
        assert_eq!(contacts.next_dial(SECOND), None);
    }

    /// Ten thousand forged announcements a minute: memory stays bounded, no more than five doors
    /// a second are knocked at, and the coordinators that the cluster names are reached at once.
    #[test]
    fn a_flood_of_forged_hints_costs_little() {
        let mut contacts = Contacts::default();
        let mut dials = 0;
        for ms in 0..60_000u64 {
            let now = Duration::from_millis(ms);
            if ms % 6 == 0 {
                contacts.learn(address(1000 + ms as u32), Source::Hint, Some(ms), now);
            }
            assert!(contacts.contacts.len() <= limits::CONTACTS);
            while let Some(next) = contacts.next_dial(now) {
                dials += 1;
                contacts.dialled(next, None, now);
            }
        }
        assert!(dials <= 301, "{dials} dials");
        let now = SECOND * 60;
        contacts.learn_cluster(&[(1, address(1)), (2, address(2))], now);
        assert_eq!(contacts.next_dial(now), Some(address(1)));
        assert_eq!(contacts.next_dial(now), Some(address(2)));
    }

    proptest! {
        /// Whatever happens, nothing is dialled twice at once or while its coordinator has a
        /// session, and what `poll_timeout` promises is there.
        #[test]
        fn dials_are_single_and_promises_kept(
            script in prop::collection::vec((0..6u8, 0..8u32, 0..400u64), 1..300),
        ) {
            let mut contacts = Contacts::default();
            let mut now = Duration::ZERO;
            let mut dialling = std::collections::BTreeSet::new();
            let mut sessions: BTreeMap<u64, u32> = BTreeMap::new();
            for (what, n, wait) in script {
                now += Duration::from_millis(wait);
                let peer = u64::from(n % 3);
                match what {
                    0 => contacts.learn(address(n), Source::Hint, None, now),
                    1 => contacts.learn_cluster(&[(peer, address(n))], now),
                    2 => {
                        if dialling.remove(&address(n)) {
                            contacts.dialled(address(n), Some(peer), now);
                            contacts.began(peer);
                            *sessions.entry(peer).or_default() += 1;
                        }
                    }
                    3 => {
                        if dialling.remove(&address(n)) {
                            contacts.dialled(address(n), None, now);
                        }
                    }
                    4 => {
                        if let Some(count) = sessions.get_mut(&peer).filter(|count| **count > 0) {
                            *count -= 1;
                            contacts.ended(peer);
                        }
                    }
                    _ => {
                        let promised = contacts.poll_timeout();
                        match contacts.next_dial(now) {
                            Some(next) => {
                                prop_assert!(promised.is_some_and(|at| at <= now));
                                prop_assert!(dialling.insert(next), "dialled twice");
                                let peer = contacts.contacts[&next].peer;
                                let live = peer.is_some_and(|peer| sessions.get(&peer).is_some_and(|count| *count > 0));
                                prop_assert!(!live, "it has a session");
                            }
                            None => prop_assert!(promised.is_none_or(|at| at > now)),
                        }
                    }
                }
            }
        }
    }
}
