//! Requests of an hour: recorded ones where their files are, else drawn from distributions that are fitted to
//! them.
//!
//! The files are `azure_code_2023.csv` and `azure_conv_2023.csv` (Azure LLM inference traces 2023; Patel et al.,
//! "Splitwise", ISCA 2024; CC-BY 4.0) and `mooncake_conversation.jsonl` (Qin et al., "Mooncake", FAST 2025;
//! Apache-2.0).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use pomona_tests::Random;
use serde::Deserialize;

/// Prompt tokens that one id of Mooncake's stands for.
const BLOCK: u32 = 512;
const HOUR_MS: u64 = 3_600_000;

/// A request as it was recorded.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Milliseconds since the first.
    pub at: u64,
    pub prompt: u32,
    pub answer: u32,
    /// One id for each 512 tokens of the prompt: equal ids at its beginning say that the beginning is the same.
    pub blocks: Arc<[u32]>,
    /// Requests with the same are turns of one conversation.
    pub conversation: u32,
}

impl Recorded {
    /// Whether a model with this context can answer it.
    pub fn fits(&self, context: u32) -> bool {
        self.prompt + self.answer < context
    }

    /// The same lengths at the same time, of a conversation that has nothing in common with that of another round.
    pub fn in_other_words(&self, round: u32) -> Self {
        let other = |block: &u32| match round {
            0 => *block,
            _ => (block ^ round.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b),
        };
        Self {
            blocks: self.blocks.iter().map(other).collect(),
            ..self.clone()
        }
    }
}

/// The requests of an hour.
#[derive(Debug, Clone)]
pub struct Hour {
    /// Where they come from.
    pub source: &'static str,
    /// Completions of an editor.
    pub code: Vec<Recorded>,
    /// What nobody waits for.
    pub aggregate: Vec<Recorded>,
}

impl Hour {
    /// The recorded ones.
    ///
    /// # Errors
    /// A file is missing, or a line of it is not as described.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let code = azure(&folder.join("azure_code_2023.csv"))?;
        let mut aggregate = azure(&folder.join("azure_conv_2023.csv"))?;
        aggregate.extend(mooncake(&folder.join("mooncake_conversation.jsonl"))?);
        aggregate.sort_by_key(|request| request.at);
        Ok(Self {
            source: "Azure code 2023 (interactive), Azure conversation 2023 and Mooncake conversation (aggregate)",
            code,
            aggregate,
        })
    }

    /// Drawn ones: as many in an hour, with log-normal lengths of the same mean and deviation, in minutes that are
    /// as unequal.
    pub fn fitted(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let code = Fit {
            requests: 8_819,
            minutes: 1.4,
            prompt: (7.00, 1.36, 7_437),
            answer: (2.79, 0.85, 1_899),
        };
        let conv = Fit {
            requests: 19_366,
            minutes: 0.2,
            prompt: (6.63, 0.99, 14_050),
            answer: (5.02, 0.86, 1_000),
        };
        // First turns of conversations, and those that follow.
        let long = Fit {
            requests: 7_404,
            minutes: 0.1,
            prompt: (8.34, 1.12, 123_192),
            answer: (5.34, 1.36, 2_000),
        };
        let mut aggregate = conv.draw(&mut random);
        let first = long.draw(&mut random);
        aggregate.extend(
            first
                .iter()
                .flat_map(|first| TURNS.draw(first, &long, &mut random)),
        );
        aggregate.extend(first);
        aggregate.sort_by_key(|request| request.at);
        Self {
            source: "a generator fitted to the Azure and Mooncake traces (give --traces DIR for the recorded ones)",
            code: code.draw(&mut random),
            aggregate,
        }
    }
}

/// Mean and deviation of the logarithms of lengths, and the longest.
type LogNormal = (f64, f64, u32);

/// How conversations of Mooncake's trace go on.
struct Turns {
    /// How many turns in a thousand are followed by another.
    go_on: u64,
    /// Seconds between two.
    gap: LogNormal,
    /// Prompt tokens that come on top of the last prompt and its answer.
    more: LogNormal,
}

const TURNS: Turns = Turns {
    go_on: 385,
    gap: (4.85, 0.98, 3_600),
    more: (4.67, 2.45, 60_000),
};

impl Turns {
    /// The turns that follow one, within the hour.
    fn draw(&self, first: &Recorded, fit: &Fit, random: &mut Random) -> Vec<Recorded> {
        let mut turns = Vec::new();
        let mut last = first.clone();
        while random.between(0, 1000) < self.go_on {
            let at = last.at + u64::from(length(random, self.gap)) * 1000;
            let prompt = last.prompt + last.answer + length(random, self.more);
            if at >= HOUR_MS || prompt > fit.prompt.2 {
                break;
            }
            last = Recorded {
                at,
                prompt,
                answer: length(random, fit.answer),
                blocks: blocks(first.conversation, prompt),
                conversation: first.conversation,
            };
            turns.push(last.clone());
        }
        turns
    }
}

struct Fit {
    requests: usize,
    /// Deviation of the logarithms of requests a minute.
    minutes: f64,
    prompt: LogNormal,
    answer: LogNormal,
}

impl Fit {
    fn draw(&self, random: &mut Random) -> Vec<Recorded> {
        let weights: Vec<f64> = (0..60).map(|_| (self.minutes * normal(random)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut requests = Vec::new();
        for (minute, weight) in (0u64..).zip(&weights) {
            let share = (self.requests as f64 * weight / sum).round() as usize;
            for _ in 0..share {
                let at = minute * 60_000 + random.between(0, 60_000);
                let prompt = length(random, self.prompt);
                let conversation = random.between(1, 1 << 31) as u32;
                requests.push(Recorded {
                    at,
                    prompt,
                    answer: length(random, self.answer),
                    blocks: blocks(conversation, prompt),
                    conversation,
                });
            }
        }
        requests.sort_by_key(|request| request.at);
        requests
    }
}

fn length(random: &mut Random, (mean, deviation, most): LogNormal) -> u32 {
    ((mean + deviation * normal(random)).exp() as u32).clamp(1, most)
}

/// Blocks of which nothing but the conversation is known.
fn blocks(conversation: u32, prompt: u32) -> Arc<[u32]> {
    let blocks = 0..prompt.div_ceil(BLOCK);
    blocks.map(|i| conversation.wrapping_add(i)).collect()
}

/// A normal deviate (Box and Muller, 1958).
pub fn normal(random: &mut Random) -> f64 {
    let unit = |random: &mut Random| (random.between(0, 1 << 32) as f64 + 0.5) / (1u64 << 32) as f64;
    let (radius, angle) = (
        (-2.0 * unit(random).ln()).sqrt(),
        std::f64::consts::TAU * unit(random),
    );
    radius * angle.cos()
}

fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let file = File::open(path).with_context(|| format!("cannot open the trace {}", path.display()))?;
    let lines: Result<Vec<String>, _> = BufReader::new(file).lines().collect();
    lines.with_context(|| format!("cannot read the trace {}", path.display()))
}

fn azure(path: &Path) -> anyhow::Result<Vec<Recorded>> {
    let mut requests = Vec::new();
    let mut first = None;
    for (number, line) in (0u32..).zip(lines(path)?).skip(1) {
        let bad = || format!("{}: line {} is no request: `{line}`", path.display(), number + 1);
        let fields: Vec<&str> = line.split(',').collect();
        let [at, prompt, answer] = fields[..] else {
            bail!(bad())
        };
        let at = time_of_day(at).with_context(bad)?;
        let first = *first.get_or_insert(at);
        let prompt: u32 = prompt.parse().with_context(bad)?;
        // Nothing is known of what they have in common.
        let conversation = number << 8 | 1 << 31;
        requests.push(Recorded {
            at: at.saturating_sub(first) % (24 * HOUR_MS),
            prompt: prompt.max(1),
            answer: answer.trim().parse::<u32>().with_context(bad)?.max(1),
            blocks: blocks(conversation, prompt),
            conversation,
        });
    }
    requests.sort_by_key(|request| request.at);
    Ok(requests)
}

/// Milliseconds since midnight of `2023-11-16 18:17:03.9799600`.
fn time_of_day(text: &str) -> anyhow::Result<u64> {
    let clock = text.split(' ').nth(1).context("no time")?;
    let fields: Vec<&str> = clock.split(':').collect();
    let [hours, minutes, seconds] = fields[..] else {
        bail!("no time")
    };
    let (hours, minutes): (u64, u64) = (hours.parse()?, minutes.parse()?);
    let seconds: f64 = seconds.parse()?;
    Ok((hours * 3600 + minutes * 60) * 1000 + (seconds * 1000.0) as u64)
}

#[derive(Deserialize)]
struct Mooncake {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u32>,
}

fn mooncake(path: &Path) -> anyhow::Result<Vec<Recorded>> {
    let parse = |(number, line): (usize, &String)| {
        let read: Mooncake = serde_json::from_str(line)
            .with_context(|| format!("{}: line {} is no request", path.display(), number + 1))?;
        // The first block is a system prompt that all have.
        let conversation = read.hash_ids.get(1).copied();
        Ok(Recorded {
            at: read.timestamp,
            prompt: read.input_length.max(1),
            answer: read.output_length.max(1),
            blocks: read.hash_ids.into(),
            conversation: conversation.unwrap_or(number as u32 | 1 << 30),
        })
    };
    lines(path)?.iter().enumerate().map(parse).collect()
}

/// The tokens of a prompt: the same where their block is.
pub fn tokens(request: &Recorded) -> Vec<u32> {
    let of_block = |i: u32| request.blocks.get((i / BLOCK) as usize).copied().unwrap_or(i);
    (0..request.prompt).map(of_block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_requests_are_as_long_as_the_recorded_ones() {
        let hour = Hour::fitted(1);
        let mean = |requests: &[Recorded], of: fn(&Recorded) -> u32| {
            requests.iter().map(|one| f64::from(of(one))).sum::<f64>() / requests.len() as f64
        };
        // The recorded means are 2,048 and 28; 254 for answers of both aggregate traces.
        let near = |value: f64, wanted: f64| (value / wanted - 1.0).abs() < 0.25;
        assert!(near(mean(&hour.code, |one| one.prompt), 2048.0));
        assert!(near(mean(&hour.code, |one| one.answer), 28.0));
        assert!(near(mean(&hour.aggregate, |one| one.answer), 261.0));
        assert!((hour.code.len() as i64 - 8819).abs() < 60);
        assert!(hour.aggregate.iter().all(|one| one.at < HOUR_MS));
    }

    #[test]
    fn files_that_are_no_traces_are_named() {
        let folder = std::env::temp_dir();
        let error = Hour::read(&folder).unwrap_err().to_string();
        assert!(error.contains("azure_code_2023.csv"), "{error}");
        assert_eq!(time_of_day("2023-11-16 18:17:03.9799600").unwrap(), 65_823_979);
        assert!(time_of_day("18:17").is_err());
    }
}
