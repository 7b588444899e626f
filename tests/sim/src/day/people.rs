//! What eight people do on their laptops in a working day. Rules of ours: no record of it is at hand.

use pomona_tests::Random;

use crate::actions::Action;
use crate::mac::Person;
use crate::wire::Id;

const MINUTE: u64 = 60_000;
/// Gigabytes that an editor, a browser and a chat take beyond the system's own.
const PROGRAMS: f64 = 5e9;
/// What a build takes on top.
const BUILD: f64 = 3e9;

/// A stretch of time in milliseconds.
type Span = (u64, u64);

/// A person's day.
#[derive(Debug, Clone)]
pub struct Day {
    /// When the lid is open.
    pub open: Vec<Span>,
    /// What happens, in order.
    pub actions: Vec<(u64, Action)>,
}

impl Day {
    /// Of the person at this node: here from the first half hour on, lunch with the lid closed for most, three
    /// calls of 15 to 45 minutes, one of them unplugged with a share of the people, and a build every quarter of an
    /// hour or so, of half a minute to three.
    pub fn draw(node: usize, length: u64, random: &mut Random) -> Self {
        let mut minutes = |low: u64, high: u64| random.between(low * MINUTE, high * MINUTE);
        let arrives = minutes(1, 30);
        let lunch = length / 2 + minutes(0, 45);
        let lunch = (lunch - 20 * MINUTE, lunch - 20 * MINUTE + minutes(25, 60));
        let leaves = length - minutes(0, 30);
        let calls: Vec<Span> = [1, 3, 5]
            .map(|part| {
                let begins = part * length / 7 + minutes(0, 40);
                (begins, begins + minutes(15, 45))
            })
            .into();
        let unplugged = random.between(0, calls.len() as u64 + 1) as usize;
        let mut builds = Vec::new();
        let mut at = arrives;
        while at < leaves {
            at += random.between(4 * MINUTE, 26 * MINUTE);
            builds.push((at, at + random.between(MINUTE / 2, 3 * MINUTE)));
        }
        let is_in = |spans: &[Span], at: u64| spans.iter().any(|(from, to)| (*from..*to).contains(&at));
        let open = vec![(arrives, lunch.0), (lunch.1, leaves)];
        let mut moments: Vec<u64> = [&open, &calls, &builds]
            .into_iter()
            .flatten()
            .flat_map(|(from, to)| [*from, *to])
            .collect();
        moments.sort_unstable();
        moments.dedup();
        let mut actions = vec![(100, Action::Sleep(Id::Node(node)))];
        for at in moments.into_iter().filter(|at| *at < length) {
            if open.iter().any(|(from, _)| *from == at) {
                actions.push((at, Action::Wake(Id::Node(node))));
            }
            let calls_now = calls.iter().position(|(from, to)| (*from..*to).contains(&at));
            let person = Person {
                builds: is_in(&builds, at) && calls_now.is_none(),
                calls: calls_now.is_some(),
                watts: 0.0,
                bytes: PROGRAMS + if is_in(&builds, at) { BUILD } else { 0.0 },
                unplugged: calls_now == Some(unplugged),
            };
            actions.push((at, Action::Person(node, person)));
            if open.iter().any(|(_, to)| *to == at) {
                actions.push((at, Action::Sleep(Id::Node(node))));
            }
        }
        Self { open, actions }
    }

    pub fn is_open(&self, at: u64) -> bool {
        self.closes(at).is_some()
    }

    /// When the lid that is open then is closed.
    pub fn closes(&self, at: u64) -> Option<u64> {
        let open = self.open.iter().find(|(from, to)| (*from..*to).contains(&at));
        open.map(|(_, to)| *to)
    }
}
