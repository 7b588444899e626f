//! In which order a request looks for somebody who answers it: one written list a class.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::cloud::CloudName;
use crate::limits;
use crate::machine::MachineRole;

/// How long a request is held where a list says `pause` without a time.
const PAUSE_S: u32 = 10;
/// Version of the protocol that brought clouds.
const CLOUDS_SINCE: u16 = 7;
/// Targets of one list, `pause` included.
const MOST: usize = 8;

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The machine whose own endpoint was asked.
    Local,
    /// Machines of this kind.
    Pool(MachineRole),
    /// Holds what finds no free place for so many seconds and tries again; then it is refused.
    Pause {
        /// At most [`limits::QUEUE`]'s wait.
        seconds: u32,
    },
    /// A service outside the cluster, if it is approved. Peers of before protocol 7 know none.
    Cloud(CloudName),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Local => f.write_str("local"),
            Target::Pool(role) => role.fmt(f),
            Target::Pause { seconds } => write!(f, "pause:{seconds}"),
            Target::Cloud(name) => write!(f, "cloud:{name}"),
        }
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("cloud:") {
            let name = name.parse::<CloudName>().map_err(|error| error.to_string())?;
            return Ok(Target::Cloud(name));
        }
        let seconds = match text.split_once(':') {
            Some(("pause", seconds)) => seconds.parse().ok(),
            _ if text == "pause" => Some(PAUSE_S),
            _ => None,
        };
        match (text, seconds) {
            ("local", _) => Ok(Target::Local),
            (_, Some(seconds)) => Ok(Target::Pause { seconds }),
            _ => text.parse().map(Target::Pool).map_err(|_| {
                let shown: String = text.chars().take(40).collect();
                format!(
                    "`{shown}` is nowhere to go: use local, laptop, rack, rented, cloud:NAME, and pause or pause:SECONDS"
                )
            }),
        }
    }
}

/// The list of one class, the first choice first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback(pub Vec<Target>);

impl Fallback {
    /// What holds as long as nobody has said anything: the rack before machines that cost rent, those before
    /// people's own; batch work comes back to the machine that asked when nobody else takes it.
    pub fn of(class: Class) -> Self {
        use MachineRole::{Laptop, Rack, Rented};
        use Target::{Local, Pause, Pool};
        Self(match class {
            Class::Interactive | Class::Background => {
                vec![
                    Local,
                    Pool(Rack),
                    Pool(Rented),
                    Pool(Laptop),
                    Pause { seconds: 5 },
                ]
            }
            Class::Batch => vec![
                Pool(Rack),
                Pool(Rented),
                Pool(Laptop),
                Local,
                Pause { seconds: PAUSE_S },
            ],
        })
    }

    /// The list of a class, by what a cluster has agreed on, if it has.
    pub fn in_force(agreed: Option<&Fallbacks>, class: Class) -> Cow<'_, Self> {
        match agreed {
            Some(lists) => Cow::Borrowed(lists.class(class)),
            None => Cow::Owned(Self::of(class)),
        }
    }

    /// Its place in the order of kinds of machine; none for a kind that is not to answer.
    pub fn rank(&self, role: MachineRole) -> Option<usize> {
        self.0.iter().position(|target| *target == Target::Pool(role))
    }

    /// Whether the machine whose endpoint was asked answers itself, and if so whether before all others.
    pub fn local(&self) -> Option<bool> {
        let place = self.0.iter().position(|target| *target == Target::Local)?;
        Some(place == 0)
    }

    /// How long a request is held that finds no free place.
    pub fn hold(&self) -> Duration {
        let pauses = self.0.iter().filter_map(|target| match target {
            Target::Pause { seconds } => Some(u64::from(*seconds)),
            Target::Local | Target::Pool(_) | Target::Cloud(_) => None,
        });
        Duration::from_secs(pauses.sum())
    }

    /// The clouds that may answer when no machine does, in order.
    pub fn clouds(&self) -> impl Iterator<Item = &CloudName> {
        self.0.iter().filter_map(|target| match target {
            Target::Cloud(name) => Some(name),
            Target::Local | Target::Pool(_) | Target::Pause { .. } => None,
        })
    }

    /// Every contradiction in the list of a class, in the user's terms.
    fn problems(&self, class: Class) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |sound: bool, text: &str| {
            if !sound {
                problems.push(format!("{class}: {text}"));
            }
        };
        let targets = &self.0;
        check(targets.len() <= MOST, "a list has at most 8 entries");
        let is_pause = |target: &&Target| matches!(target, Target::Pause { .. });
        let is_machine = |target: &Target| matches!(target, Target::Local | Target::Pool(_));
        check(
            targets.iter().any(is_machine),
            "the list names nobody who answers: a cloud alone is no list",
        );
        let clouds_from = targets
            .iter()
            .position(|target| matches!(target, Target::Cloud(_)));
        check(
            clouds_from.is_none_or(|from| !targets[from..].iter().any(is_machine)),
            "clouds come after all machines",
        );
        let twice = (1..targets.len()).any(|i| targets[..i].contains(&targets[i]));
        check(!twice, "the list names something twice");
        let before_last = targets.len().saturating_sub(1);
        check(
            !targets[..before_last].iter().any(|target| is_pause(&target)),
            "pause ends a list: nothing comes after it",
        );
        let longest = limits::QUEUE.wait;
        check(
            self.hold() <= longest,
            &format!("a request is held for at most {} s", longest.as_secs()),
        );
        let is_last = |place: usize| !targets[place + 1..].iter().any(is_machine);
        let local = targets.iter().position(|target| *target == Target::Local);
        check(
            local.is_none_or(|place| place == 0 || is_last(place)),
            "local comes first, or after all kinds of machine",
        );
        check(
            class == Class::Batch || self.local() == Some(true),
            "local comes first: what a person waits for is not taken from their own machine",
        );
        problems
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets: Vec<String> = self.0.iter().map(Target::to_string).collect();
        f.write_str(&targets.join(", "))
    }
}

impl FromStr for Fallback {
    type Err = String;

    /// Targets with commas between them.
    fn from_str(text: &str) -> Result<Self, String> {
        let targets = text.split(',').map(|target| target.trim().parse());
        targets.collect::<Result<_, _>>().map(Self)
    }
}

/// The lists of all classes, under one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallbacks {
    /// Counts what a cluster has agreed on, from 1; 0 is what programs come with.
    pub version: u64,
    /// Interactive class.
    pub interactive: Fallback,
    /// Background class.
    pub background: Fallback,
    /// Batch class.
    pub batch: Fallback,
}

impl Default for Fallbacks {
    fn default() -> Self {
        Self {
            version: 0,
            interactive: Fallback::of(Class::Interactive),
            background: Fallback::of(Class::Background),
            batch: Fallback::of(Class::Batch),
        }
    }
}

impl Fallbacks {
    /// The list of one class.
    pub const fn class(&self, class: Class) -> &Fallback {
        match class {
            Class::Interactive => &self.interactive,
            Class::Background => &self.background,
            Class::Batch => &self.batch,
        }
    }

    /// Sets the list of one class.
    pub fn set(&mut self, class: Class, list: Fallback) {
        *match class {
            Class::Interactive => &mut self.interactive,
            Class::Background => &mut self.background,
            Class::Batch => &mut self.batch,
        } = list;
    }

    /// As peers of a version of the protocol know them: those of before clouds go by the rest of the lists.
    #[must_use]
    pub fn known_to(&self, protocol: u16) -> Self {
        let mut known = self.clone();
        if protocol < CLOUDS_SINCE {
            for list in [&mut known.interactive, &mut known.background, &mut known.batch] {
                list.0.retain(|target| !matches!(target, Target::Cloud(_)));
            }
        }
        known
    }

    /// Whether any list names a cloud.
    pub fn name_clouds(&self) -> bool {
        let names = |class| self.class(class).clouds().next().is_some();
        Class::ALL.into_iter().any(names)
    }

    /// Every contradiction, in the user's terms; empty when the lists are sound.
    pub fn problems(&self) -> Vec<String> {
        let of_class = |class| self.class(class).problems(class);
        Class::ALL.into_iter().flat_map(of_class).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_they_are_shown() -> Result<(), String> {
        for class in Class::ALL {
            let usual = Fallback::of(class);
            assert_eq!(usual.to_string().parse::<Fallback>()?, usual);
        }
        let list: Fallback = "local, rack ,pause".parse()?;
        assert_eq!(list.hold(), Duration::from_secs(10));
        assert_eq!(
            (list.rank(MachineRole::Rack), list.rank(MachineRole::Rented)),
            (Some(1), None)
        );
        let list: Fallback = "local, rack, cloud:openai, cloud:own-2, pause:3".parse()?;
        let clouds: Vec<&str> = list.clouds().map(CloudName::as_str).collect();
        assert_eq!(clouds, ["openai", "own-2"]);
        assert_eq!(list.to_string().parse::<Fallback>()?, list);
        for bad in [
            "rak",
            "",
            "rack,",
            "pause:soon",
            "pause:-1",
            "rack:3",
            "local:1",
            "cloud",
            "cloud:",
            "cloud:A",
        ] {
            assert!(bad.parse::<Fallback>().is_err(), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn contradictions_are_named() -> Result<(), String> {
        assert_eq!(Fallbacks::default().problems(), Vec::<String>::new());
        for (class, list, why) in [
            (Class::Batch, "pause", "nobody who answers"),
            (Class::Batch, "rack, rented, rack", "twice"),
            (Class::Batch, "rack, pause, rented", "pause ends a list"),
            (Class::Batch, "rack, pause:31", "at most 30 s"),
            (Class::Interactive, "rack, local", "local comes first: "),
            (Class::Background, "rack, pause", "local comes first: "),
            (Class::Batch, "rack, local, rented", "after all kinds"),
            (Class::Batch, "rack, cloud:a, rented", "clouds come after"),
            (Class::Batch, "cloud:a, pause", "nobody who answers"),
            (Class::Batch, "rack, cloud:a, cloud:a", "twice"),
            (Class::Interactive, "rack, cloud:a", "local comes first: "),
        ] {
            let mut lists = Fallbacks::default();
            lists.set(class, list.parse()?);
            let problems = lists.problems();
            assert!(problems.len() == 1 && problems[0].contains(why), "{problems:?}");
        }
        let mut lists = Fallbacks::default();
        lists.set(Class::Batch, "rack, cloud:a, pause".parse()?);
        assert!(lists.name_clouds() && lists.known_to(7) == lists);
        let older = lists.known_to(6);
        assert_eq!(
            (older.batch.to_string().as_str(), older.name_clouds()),
            ("rack, pause:10", false)
        );
        let mut lists = Fallbacks::default();
        lists.set(Class::Batch, "local, rack".parse()?);
        assert_eq!(lists.problems(), Vec::<String>::new());
        Ok(())
    }
}
