//! What each request took, one line of JSON a request, for reports: who asked, what for, where it was answered,
//! tokens, time by phase, the version of the knobs, and the share of energy. Neither prompts nor answers.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pomona_clocks::wall_ms;
use pomona_common::{Accounting, Class, ClassReason, CloudName, Energy, KeyId, ModelName, RequestId, Slo};
use pomona_journal::{Bounds, Journal};
use serde::Serialize;

use crate::access::Ticket;
use crate::entry_stats::{Budget, EntryStats};

/// 256 MiB: half a million requests and more.
const BOUNDS: Bounds = Bounds {
    file_bytes: 8 << 20,
    files: 32,
};
/// Records that wait for the disk; what comes then is lost, and counted.
const WAITING: usize = 1024;

/// Where records go. Clones share it.
#[derive(Debug, Clone)]
pub struct UsageLog {
    queue: SyncSender<Record>,
    lost: Arc<AtomicU64>,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Record {
    /// When it came, in milliseconds since 1970.
    at_ms: u64,
    request: RequestId,
    key: Option<KeyId>,
    model: ModelName,
    class: Class,
    class_reason: &'static str,
    /// Who answered, where it was no machine of the cluster. What it cost is in `pomona cloud list`.
    #[serde(skip_serializing_if = "Option::is_none")]
    cloud: Option<CloudName>,
    /// `finished`, `left` when the client went, else the code of the failure.
    outcome: &'static str,
    /// From arrival to the end.
    took_ms: f64,
    /// What was promised and missed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missed: Vec<Budget>,
    answers: Vec<Answer>,
}

/// One of the answers. Energy that is not known stays out, and so does what only the engine could tell of an answer
/// that was cut off: nobody knows its times, its version of the knobs or who made the last of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum Answer {
    Whole(Box<Whole>),
    CutOff {
        prompt_tokens: u32,
        completion_tokens: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Whole {
    #[serde(flatten)]
    accounting: Accounting,
    /// As its maker told, see [`Energy`].
    #[serde(skip_serializing_if = "Option::is_none")]
    joules: Option<f64>,
    /// What that power was read from; `scripted` is no measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    power_source: Option<String>,
}

impl UsageLog {
    /// Writes to this folder, on a thread of its own, until the last clone is gone.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn start(folder: &Path) -> io::Result<Self> {
        let mut journal = Journal::open(folder, BOUNDS)?;
        let (queue, records) = sync_channel::<Record>(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let losses = lost.clone();
        let write = move || {
            for record in records {
                let line = serde_json::to_string(&record).map_err(io::Error::from);
                if let Err(error) = line.and_then(|line| journal.add(&line, false))
                    && losses.fetch_add(1, Ordering::Relaxed) == 0
                {
                    tracing::warn!(%error, "usage is not written down");
                }
            }
        };
        std::thread::Builder::new()
            .name("usage".into())
            .spawn(write)
            .map(|_| Self { queue, lost })
    }

    /// Records that could not be written since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn add(&self, record: Record) {
        // A disk that is stuck must not keep answers waiting.
        if self.queue.try_send(record).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Who asked, and what for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) request: RequestId,
    pub(crate) key: Option<KeyId>,
    pub(crate) model: ModelName,
    pub(crate) class: Class,
    pub(crate) class_reason: ClassReason,
    /// Who answers, where that is no machine of the cluster.
    pub(crate) cloud: Option<CloudName>,
    pub(crate) began: Instant,
    pub(crate) prompt_tokens: u32,
    pub(crate) choices: u32,
    /// What was promised.
    pub(crate) slo: Slo,
}

/// Counts what a request takes, for its key and for the log; dropping it closes the account.
pub(crate) struct Tally {
    asked: Asked,
    at_ms: u64,
    ticket: Option<Ticket>,
    stats: Arc<EntryStats>,
    log: UsageLog,
    so_far: Mutex<SoFar>,
}

#[derive(Debug, Default)]
struct SoFar {
    finished: Vec<(Accounting, Option<Energy>)>,
    /// When the first and the last token came, from arrival on.
    first: Option<Duration>,
    last: Duration,
    /// Of all answers, as they came.
    tokens: u64,
    failed: Option<&'static str>,
}

impl Tally {
    pub(crate) fn new(asked: Asked, ticket: Option<Ticket>, stats: Arc<EntryStats>, log: UsageLog) -> Self {
        Self {
            at_ms: wall_ms(),
            asked,
            ticket,
            stats,
            log,
            so_far: Mutex::default(),
        }
    }

    /// Tokens of answers, as they come.
    pub(crate) fn took(&self, tokens: usize) {
        let mut so_far = self.so_far();
        so_far.tokens += tokens as u64;
        if tokens > 0 {
            so_far.last = self.asked.began.elapsed();
            let last = so_far.last;
            so_far.first.get_or_insert(last);
        }
        drop(so_far);
        if let Some(ticket) = &self.ticket {
            ticket.took(tokens as u64);
        }
    }

    /// One of the answers is whole.
    pub(crate) fn finished(&self, accounting: &Accounting, energy: Option<Energy>) {
        self.so_far().finished.push((accounting.clone(), energy));
    }

    /// The rest will not come.
    pub(crate) fn failed(&self, code: &'static str) {
        self.so_far().failed = Some(code);
    }

    fn so_far(&self) -> MutexGuard<'_, SoFar> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether each promise was kept, as far as that can be told, by what the client saw. What ended before anything
    /// came has missed its time if that was over by then; how soon it would have come, nobody knows. Several answers at
    /// once have no speed.
    fn judged(&self, so_far: &SoFar) -> impl Iterator<Item = (Budget, bool)> {
        let asked = &self.asked;
        // Siblings find the prompt of the first one in the cache.
        let cached = so_far.finished.iter().map(|(one, _)| one.cached_tokens).min();
        let budget_ms = asked
            .slo
            .ttft_budget_ms(asked.prompt_tokens.saturating_sub(cached.unwrap_or(0)));
        let waited = so_far.first.unwrap_or_else(|| asked.began.elapsed());
        let is_late = budget_ms.map(|budget_ms| waited.as_secs_f64() * 1e3 > budget_ms);
        let is_late = is_late.filter(|is_late| so_far.first.is_some() || *is_late);
        // A text may be several tokens, as their maker counts them in the end.
        let counted = so_far.finished.iter().map(|(one, _)| one.completion_tokens).sum();
        let tokens = u32::try_from(so_far.tokens).unwrap_or(u32::MAX).max(counted);
        let decoded = so_far.last.saturating_sub(waited);
        let is_slow = asked.slo.is_slow(tokens, decoded.as_secs_f64() * 1e3);
        let is_slow = is_slow.filter(|_| asked.choices == 1);
        [(Budget::Ttft, is_late), (Budget::TokS, is_slow)]
            .into_iter()
            .filter_map(|(budget, missed)| Some((budget, missed?)))
    }

    fn record(&self) -> Record {
        let so_far = self.so_far();
        let mut missed = Vec::new();
        for (budget, is_missed) in self.judged(&so_far) {
            self.stats.judge(self.asked.class, budget, is_missed);
            missed.extend(is_missed.then_some(budget));
        }
        let is_whole = so_far.finished.len() >= self.asked.choices as usize;
        let outcome = so_far
            .failed
            .unwrap_or(if is_whole { "finished" } else { "left" });
        let known: u64 = so_far
            .finished
            .iter()
            .map(|(one, _)| u64::from(one.completion_tokens))
            .sum();
        let rest = so_far.tokens.saturating_sub(known);
        let cut_off = (rest > 0 && !is_whole).then_some(Answer::CutOff {
            prompt_tokens: self.asked.prompt_tokens,
            completion_tokens: rest,
        });
        let answer = |(accounting, energy): &(Accounting, Option<Energy>)| {
            let energy = energy.clone();
            let (joules, power_source) = energy.map(|energy| (energy.joules, energy.source)).unzip();
            Answer::Whole(Box::new(Whole {
                accounting: accounting.clone(),
                joules,
                power_source,
            }))
        };
        let asked = &self.asked;
        Record {
            at_ms: self.at_ms,
            request: asked.request,
            key: asked.key,
            model: asked.model.clone(),
            class: asked.class,
            class_reason: asked.class_reason.as_str(),
            cloud: asked.cloud.clone(),
            outcome,
            took_ms: asked.began.elapsed().as_secs_f64() * 1e3,
            missed,
            answers: so_far.finished.iter().map(answer).chain(cut_off).collect(),
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.log.add(self.record());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pomona_common::NodeId;
    use serde_json::Value;

    use super::*;

    fn tally(log: &UsageLog, stats: &Arc<EntryStats>, choices: u32) -> Option<Tally> {
        let asked = Asked {
            request: RequestId::from_bits(1),
            key: Some(KeyId::from_bits(2)),
            model: "org/a".parse().ok()?,
            class: Class::Batch,
            class_reason: ClassReason::Key,
            cloud: None,
            // A second ago.
            began: Instant::now().checked_sub(Duration::from_secs(1))?,
            prompt_tokens: 1000,
            choices,
            slo: Slo {
                ttft_ms: 900,
                ttft_us_per_token: 1000,
                tok_s: 50,
                ..Slo::of(Class::Batch)
            },
        };
        Some(Tally::new(asked, None, stats.clone(), log.clone()))
    }

    fn accounting(node: Option<NodeId>) -> Accounting {
        Accounting {
            step_share_ms: 200.0,
            completion_tokens: 21,
            cached_tokens: 990,
            knob_version: 3,
            node,
            ..Accounting::default()
        }
    }

    #[test]
    fn a_record_says_what_was_taken_however_it_ended() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let log = UsageLog::start(folder.path())?;
        let node = Some(NodeId::from_bits(9));
        let stats = Arc::new(EntryStats::default());
        for (finished, failed) in [(2, None), (1, None), (0, Some("node_lost"))] {
            let tally = tally(&log, &stats, 2).ok_or(io::ErrorKind::Other)?;
            tally.took(27);
            let energy = || {
                Some(Energy {
                    joules: 10.0,
                    source: "scripted".into(),
                })
            };
            (0..finished).for_each(|_| tally.finished(&accounting(node), energy()));
            failed.into_iter().for_each(|code| tally.failed(code));
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while pomona_journal::lines(folder.path())?.len() < 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let lines = pomona_journal::lines(folder.path())?;
        let records: Vec<Value> = lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let outcomes: Vec<&str> = records.iter().filter_map(|one| one["outcome"].as_str()).collect();
        assert_eq!(outcomes, ["finished", "left", "node_lost"]);
        let answer = &records[0]["answers"][0];
        assert_eq!(
            (&answer["joules"], &answer["power_source"]),
            (&10.0.into(), &"scripted".into())
        );
        assert_eq!(
            (&answer["knob_version"], &records[0]["class"]),
            (&3.into(), &"batch".into())
        );
        // What the client did not wait for was made all the same.
        let rest = &records[1]["answers"][1];
        assert_eq!(rest["completion_tokens"], 6);
        assert!(rest["joules"].is_null(), "nobody knows");
        assert_eq!(log.lost(), 0);
        // A second is too late where only ten tokens had to be computed; with all of them it was promised in two.
        let missed = records.iter().map(|record| record["missed"].to_string());
        let missed: Vec<String> = missed.collect();
        assert_eq!(missed, [r#"["ttft"]"#, r#"["ttft"]"#, "null"]);
        let of = |budget| stats.missed().get(&(Class::Batch, budget)).copied();
        let several = (of(Budget::Ttft), of(Budget::TokS));
        assert_eq!(several, (Some((3, 2)), None), "several answers have no speed");
        // Ten tokens in 0.3 s, where fifty a second are promised.
        let one = tally(&log, &stats, 1).ok_or(io::ErrorKind::Other)?;
        one.took(1);
        std::thread::sleep(Duration::from_millis(300));
        one.took(10);
        drop(one);
        assert_eq!(of(Budget::TokS), Some((1, 1)));
        Ok(())
    }
}
