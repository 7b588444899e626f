//! The choice of the next token: a pure function of logits, parameters, history and position.

use std::collections::{BTreeMap, BTreeSet};

use pomona_common::Sampling;
use pomona_common::generation::TokenLogprob;

/// Chooses the token at `position` of the answer. `logits` are changed in place.
///
/// The order is that of mlx-lm: bias and penalties, then `top_p`, `min_p` and `top_k` on the
/// distribution, then temperature for the draw.
pub fn choose(
    logits: &mut [f32],
    sampling: &Sampling,
    prompt: &[u32],
    answer: &[u32],
    position: u32,
) -> (u32, Option<TokenLogprob>) {
    if sampling.changes_logits() {
        apply_penalties(logits, sampling, prompt, answer);
    }
    let chosen = if sampling.temperature == 0.0 {
        likeliest(logits)
    } else {
        draw(logits, sampling, &Gumbel::new(sampling.seed, position))
    };
    let logprob = sampling.top_logprobs.map(|top| report(logits, chosen, top));
    (chosen, logprob)
}

/// Standard Gumbel noise that depends on seed, position and token alone: rounds of SplitMix64
/// (Steele, Lea and Flood, 2014), so that neighbours are unrelated.
struct Gumbel {
    key: u64,
}

impl Gumbel {
    fn new(seed: u64, position: u32) -> Self {
        let keyed = mix(seed.wrapping_add(GAMMA));
        let key = mix(keyed.wrapping_add(GAMMA.wrapping_mul(u64::from(position) + 1)));
        Self { key }
    }

    fn of(&self, token: u32) -> f64 {
        let bits = mix(self.key.wrapping_add(GAMMA.wrapping_mul(u64::from(token) + 1)));
        // In (0, 1), both ends excluded.
        let unit = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -(-unit.ln()).ln()
    }
}

/// The golden ratio in 64 bits, SplitMix64's increment.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn apply_penalties(logits: &mut [f32], sampling: &Sampling, prompt: &[u32], answer: &[u32]) {
    for (token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    if sampling.repetition_penalty != 1.0 {
        let seen: BTreeSet<u32> = prompt.iter().chain(answer).copied().collect();
        for token in seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / sampling.repetition_penalty
                } else {
                    *logit * sampling.repetition_penalty
                };
            }
        }
    }
    if sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0 {
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for token in answer {
            *counts.entry(*token).or_default() += 1;
        }
        for (token, count) in counts {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit -= sampling.presence_penalty + sampling.frequency_penalty * count as f32;
            }
        }
    }
}

/// The first of the largest logits.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Draws by the Gumbel-max trick (Gumbel, 1954): the largest of logit over temperature plus
/// noise. Against an inverse cumulative distribution it is two orders of magnitude less
/// sensitive to the rounding of logits, which differs with the size of a batch.
fn draw(logits: &[f32], sampling: &Sampling, noise: &Gumbel) -> u32 {
    let temperature = f64::from(sampling.temperature);
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    // Noise lies between -3.7 and 37: what is further below the likeliest can never win.
    let floor = max - 41.0 * temperature;
    let perturbed = |token: u32| f64::from(logits[token as usize]) / temperature + noise.of(token);
    let filtered = sampling.top_p < 1.0 || sampling.min_p > 0.0 || sampling.top_k > 0;
    let candidates: Vec<u32> = if filtered {
        filter(logits, sampling, max)
    } else {
        (0..logits.len() as u32)
            .filter(|token| f64::from(logits[*token as usize]) >= floor)
            .collect()
    };
    candidates
        .into_iter()
        .map(|token| (perturbed(token), token))
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
        .map_or(0, |(_, token)| token)
}

/// The tokens that `top_k`, `min_p` and `top_p` leave, in this order.
fn filter(logits: &[f32], sampling: &Sampling, max: f64) -> Vec<u32> {
    let mut order: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(i, logit)| (i as u32, (f64::from(*logit) - max).exp()))
        .collect();
    // Ties by token id, so that the order is one.
    order.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k as usize);
    }
    if sampling.min_p > 0.0 {
        let least = f64::from(sampling.min_p) * order[0].1;
        order.retain(|(_, weight)| *weight >= least);
    }
    if sampling.top_p < 1.0 {
        let total: f64 = order.iter().map(|(_, weight)| weight).sum();
        let mut mass = 0.0;
        let kept = order
            .iter()
            .position(|(_, weight)| {
                mass += weight / total;
                mass >= f64::from(sampling.top_p)
            })
            .map_or(order.len(), |last| last + 1);
        order.truncate(kept);
    }
    order.into_iter().map(|(token, _)| token).collect()
}

fn report(logits: &[f32], chosen: u32, top: u32) -> TokenLogprob {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let log_sum = sum.ln() as f32;
    let logprob = |token: usize| logits[token] - max - log_sum;
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let top = (top as usize).min(order.len());
    if top > 0 && top < order.len() {
        order.select_nth_unstable_by(top - 1, |a, b| logits[*b].total_cmp(&logits[*a]));
    }
    order.truncate(top);
    order.sort_unstable_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    TokenLogprob {
        logprob: logprob(chosen as usize),
        top: order
            .into_iter()
            .map(|token| (token as u32, logprob(token)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampled(sampling: &Sampling, position: u32) -> u32 {
        let mut logits = [1.0, 2.0, 3.0, 0.0];
        choose(&mut logits, sampling, &[], &[], position).0
    }

    #[test]
    fn greedy_takes_the_likeliest() {
        assert_eq!(sampled(&Sampling::greedy(), 0), 2);
    }

    #[test]
    fn draws_depend_on_seed_and_position_alone() {
        let sampling = Sampling {
            seed: 9,
            ..Sampling::default()
        };
        let first: Vec<u32> = (0..50).map(|position| sampled(&sampling, position)).collect();
        let again: Vec<u32> = (0..50).map(|position| sampled(&sampling, position)).collect();
        assert_eq!(first, again);
        let other = Sampling {
            seed: 10,
            ..Sampling::default()
        };
        assert_ne!(
            first,
            (0..50)
                .map(|position| sampled(&other, position))
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn draws_follow_the_distribution() {
        let sampling = Sampling {
            seed: 1,
            ..Sampling::default()
        };
        let mut counts = [0.0; 4];
        for position in 0..20_000 {
            counts[sampled(&sampling, position) as usize] += 1.0 / 20_000.0;
        }
        let total: f64 = [1.0f64, 2.0, 3.0, 0.0].iter().map(|l| l.exp()).sum();
        for (token, logit) in [1.0f64, 2.0, 3.0, 0.0].iter().enumerate() {
            let expected = logit.exp() / total;
            assert!(
                (counts[token] - expected).abs() < 0.01,
                "{token}: {} {expected}",
                counts[token]
            );
        }
    }

    #[test]
    fn filters_keep_only_what_they_say() {
        let only =
            |sampling: &Sampling| -> BTreeSet<u32> { (0..500).map(|p| sampled(sampling, p)).collect() };
        let base = Sampling {
            temperature: 2.0,
            ..Sampling::default()
        };
        assert_eq!(
            only(&Sampling {
                top_k: 2,
                ..base.clone()
            }),
            BTreeSet::from([1, 2])
        );
        assert_eq!(
            only(&Sampling {
                top_p: 0.5,
                ..base.clone()
            }),
            BTreeSet::from([2])
        );
        assert_eq!(
            only(&Sampling {
                min_p: 0.3,
                ..base.clone()
            }),
            BTreeSet::from([1, 2])
        );
        assert_eq!(only(&base).len(), 4);
    }

    #[test]
    fn penalties_and_biases_move_the_choice() {
        let choose = |sampling: Sampling, prompt: &[u32], answer: &[u32]| {
            choose(&mut [1.0, 2.0, 3.0, 0.0], &sampling, prompt, answer, 0).0
        };
        let greedy = Sampling::greedy();
        assert_eq!(
            choose(
                Sampling {
                    repetition_penalty: 2.0,
                    ..greedy.clone()
                },
                &[2],
                &[]
            ),
            1
        );
        assert_eq!(
            choose(
                Sampling {
                    presence_penalty: 1.5,
                    ..greedy.clone()
                },
                &[],
                &[2]
            ),
            1
        );
        assert_eq!(
            choose(
                Sampling {
                    presence_penalty: 1.5,
                    ..greedy.clone()
                },
                &[2],
                &[]
            ),
            2
        );
        assert_eq!(
            choose(
                Sampling {
                    frequency_penalty: 0.6,
                    ..greedy.clone()
                },
                &[],
                &[2, 2]
            ),
            1
        );
        assert_eq!(
            choose(
                Sampling {
                    logit_bias: vec![(3, 9.0)],
                    ..greedy
                },
                &[],
                &[]
            ),
            3
        );
    }

    #[test]
    fn log_probabilities_are_normalised_and_ordered() {
        let sampling = Sampling {
            top_logprobs: Some(4),
            ..Sampling::greedy()
        };
        let (_, logprob) = choose(&mut [1.0, 2.0, 3.0, 0.0], &sampling, &[], &[], 0);
        let top = logprob.map(|l| l.top).unwrap_or_default();
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1, 0, 3]);
        let mass: f32 = top.iter().map(|t| t.1.exp()).sum();
        assert!((mass - 1.0).abs() < 1e-5);
    }
}
