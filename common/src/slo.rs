//! Service levels: how much of a class may wait at a machine and for how long, and how soon and how fast it is to be
//! answered. What a cluster agrees on; nodes begin with what their configuration says of queues.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::class::Class;
use crate::limits::{self, QueueBound};

/// Fewer tokens after the first one have no speed to speak of.
const SPEED_TOKENS: u32 = 8;

/// The names of what can be set, in the order in which it is shown.
pub const SLO_NAMES: [&str; 5] = ["queue", "wait_s", "ttft_ms", "ttft_us_per_token", "tok_s"];

/// The service level of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slo {
    /// Requests of this class, and of more urgent ones, that wait for a slot at one machine, at most; one more is
    /// refused at once, and asked for elsewhere.
    pub queue: u32,
    /// Seconds that a request waits for its first slot, at most.
    pub wait_s: u32,
    /// Milliseconds within which the first token is to come; 0 is no budget.
    pub ttft_ms: u32,
    /// Microseconds more for each prompt token that has to be computed.
    pub ttft_us_per_token: u32,
    /// Tokens a second that are to come after the first one; 0 is no budget.
    pub tok_s: u32,
}

impl Slo {
    /// What holds as long as nobody has said anything. Interactive: estimates of ours for a laptop's chip and a small
    /// model. Background: a helper of an agent, which gives up after some ten seconds. No speed is promised:
    /// those of models differ more than tenfold.
    pub const fn of(class: Class) -> Self {
        let queue = limits::QUEUE.capacity as u32;
        let wait_s = limits::QUEUE.wait.as_secs() as u32;
        match class {
            Class::Interactive => Self {
                queue,
                wait_s,
                ttft_ms: 800,
                ttft_us_per_token: 150,
                tok_s: 0,
            },
            Class::Background => Self {
                queue,
                wait_s,
                ttft_ms: 5000,
                ttft_us_per_token: 1000,
                tok_s: 0,
            },
            // Nobody waits for it: it stays for as long as a request may take.
            Class::Batch => Self {
                queue,
                wait_s: limits::BATCH_WALL_CLOCK.as_secs() as u32,
                ttft_ms: 0,
                ttft_us_per_token: 0,
                tok_s: 0,
            },
        }
    }

    /// How much may wait, and for how long.
    pub fn queue_bound(&self) -> QueueBound {
        QueueBound {
            capacity: self.queue as usize,
            wait: Duration::from_secs(self.wait_s.into()),
        }
    }

    /// Milliseconds within which the first token of a prompt is to come of which so many tokens have to be
    /// computed; none where nothing is promised.
    pub fn ttft_budget_ms(&self, uncached: u32) -> Option<f64> {
        let more = f64::from(uncached) * f64::from(self.ttft_us_per_token) / 1e3;
        (self.ttft_ms > 0).then(|| f64::from(self.ttft_ms) + more)
    }

    /// Whether an answer of so many tokens came slower than is promised, `decode_ms` being from the first of them to
    /// the last; none where nothing is promised, or too few came to have a speed.
    pub fn is_slow(&self, tokens: u32, decode_ms: f64) -> Option<bool> {
        let after = tokens.saturating_sub(1);
        let has_speed = self.tok_s > 0 && after >= SPEED_TOKENS && decode_ms > 0.0;
        has_speed.then(|| f64::from(after) * 1e3 / decode_ms < f64::from(self.tok_s))
    }

    /// One of [`SLO_NAMES`], to set.
    fn value_mut(&mut self, name: &str) -> Option<&mut u32> {
        Some(match name {
            "queue" => &mut self.queue,
            "wait_s" => &mut self.wait_s,
            "ttft_ms" => &mut self.ttft_ms,
            "ttft_us_per_token" => &mut self.ttft_us_per_token,
            "tok_s" => &mut self.tok_s,
            _ => return None,
        })
    }

    fn problems(&self, class: Class) -> Vec<String> {
        let longest = limits::wall_clock(class).as_secs();
        let most = limits::QUEUE.capacity;
        let within = |value: u32, least: u64, most: u64| (least..=most).contains(&value.into());
        let checks = [
            (
                within(self.queue, 1, most as u64),
                format!("queue must be 1 to {most}"),
            ),
            (
                within(self.wait_s, 1, longest),
                format!("wait_s must be 1 to {longest}: a request takes no longer"),
            ),
            (
                within(self.ttft_ms, 0, longest * 1000),
                format!("ttft_ms must be at most {}", longest * 1000),
            ),
            (
                within(self.ttft_us_per_token, 0, 1_000_000),
                "ttft_us_per_token must be at most 1000000, which is a second a token".into(),
            ),
            (
                self.ttft_ms > 0 || self.ttft_us_per_token == 0,
                "ttft_us_per_token adds to ttft_ms, which says that there is no budget".into(),
            ),
            (
                within(self.tok_s, 0, 10_000),
                "tok_s must be at most 10000".into(),
            ),
        ];
        let broken = checks.into_iter().filter(|(sound, _)| !sound);
        broken.map(|(_, text)| format!("{class}: {text}")).collect()
    }
}

/// The service levels of all classes, under one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SloSet {
    /// Counts what a cluster has agreed on, from 1; 0 is what programs come with.
    pub version: u64,
    /// Interactive class.
    pub interactive: Slo,
    /// Background class.
    pub background: Slo,
    /// Batch class.
    pub batch: Slo,
}

impl Default for SloSet {
    fn default() -> Self {
        Self {
            version: 0,
            interactive: Slo::of(Class::Interactive),
            background: Slo::of(Class::Background),
            batch: Slo::of(Class::Batch),
        }
    }
}

impl SloSet {
    /// The service level of a class, by what a cluster has agreed on, if it has.
    pub const fn in_force(agreed: Option<&Self>, class: Class) -> Slo {
        match agreed {
            Some(set) => *set.class(class),
            None => Slo::of(class),
        }
    }

    /// The service level of one class.
    pub const fn class(&self, class: Class) -> &Slo {
        match class {
            Class::Interactive => &self.interactive,
            Class::Background => &self.background,
            Class::Batch => &self.batch,
        }
    }

    /// That, to change.
    pub const fn class_mut(&mut self, class: Class) -> &mut Slo {
        match class {
            Class::Interactive => &mut self.interactive,
            Class::Background => &mut self.background,
            Class::Batch => &mut self.batch,
        }
    }

    /// Sets one value by class and name, as in `batch.queue`.
    ///
    /// # Errors
    /// Nothing has the name; what there is.
    pub fn set(&mut self, name: &str, value: u32) -> Result<(), String> {
        let (class, what) = name.split_once('.').unwrap_or_default();
        let class = class.parse::<Class>().ok();
        let slot = class.and_then(|class| self.class_mut(class).value_mut(what));
        *slot.ok_or_else(|| {
            let shown: String = name.chars().take(40).collect();
            format!(
                "no service level is called `{shown}`: there are {} of interactive, background and batch, as in interactive.ttft_ms",
                SLO_NAMES.join(", ")
            )
        })? = value;
        Ok(())
    }

    /// Every contradiction, in the user's terms; empty when all are sound.
    pub fn problems(&self) -> Vec<String> {
        let of_class = |class| self.class(class).problems(class);
        Class::ALL.into_iter().flat_map(of_class).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_grow_with_what_has_to_be_computed() {
        let slos = SloSet::default();
        assert_eq!(slos.interactive.ttft_budget_ms(2000), Some(1100.0));
        assert_eq!(slos.batch.ttft_budget_ms(2000), None);
        assert_eq!(slos.interactive.is_slow(100, 1e6), None);
        let promised = Slo {
            tok_s: 10,
            ..slos.interactive
        };
        let judged = [(101, 10_100.0), (101, 9900.0), (8, 1e6), (101, 0.0)]
            .map(|(tokens, ms)| promised.is_slow(tokens, ms));
        assert_eq!(judged, [Some(true), Some(false), None, None]);
        assert_eq!(slos.batch.queue_bound().wait, limits::BATCH_WALL_CLOCK);
    }

    #[test]
    fn contradictions_are_named() -> Result<(), String> {
        assert_eq!(SloSet::default().problems(), Vec::<String>::new());
        for (name, value, why) in [
            ("batch.queue", 0, "queue must be 1"),
            ("batch.queue", 257, "queue must be 1 to 256"),
            ("interactive.wait_s", 601, "1 to 600"),
            ("batch.wait_s", 3601, "1 to 3600"),
            ("interactive.ttft_ms", 0, "no budget"),
            ("batch.ttft_us_per_token", 5, "no budget"),
            ("background.tok_s", 20_000, "at most 10000"),
        ] {
            let mut slos = SloSet::default();
            slos.set(name, value)?;
            let problems = slos.problems();
            assert!(problems.len() == 1 && problems[0].contains(why), "{problems:?}");
        }
        for bad in ["queue", "batch.que", "nobody.queue", ""] {
            let refused = SloSet::default().set(bad, 1);
            assert!(refused.is_err_and(|why| why.contains("ttft_ms")), "{bad}");
        }
        for name in SLO_NAMES {
            SloSet::default().set(&format!("interactive.{name}"), 1)?;
        }
        Ok(())
    }
}
