//! `pomona slo`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum SloCommand {
    /// The service levels in force, and who changed them.
    Show,
    /// Change some. From the first change on they replace what nodes have in their configurations.
    Set {
        /// Such as `interactive.ttft_ms=600` or `batch.queue=64`. There are, of each class: `queue`, how many requests
        /// of it and of more urgent ones wait for a slot at one machine; `wait_s`, how long one waits; `ttft_ms` and
        /// `ttft_us_per_token`, within which the first token is to come, the second for each prompt token that is not
        /// in the cache; `tok_s`, how many tokens a second are to follow. A budget of 0 is none. Interactive
        /// answers that are late or slow while batch work is there make batch yield, and late ones pass the tail gate;
        /// `/metrics` counts what was missed.
        #[arg(required = true, value_name = "NAME=VALUE")]
        values: Vec<String>,
    },
    /// Make those of an earlier version the ones in force; 0 is what Pomona comes with.
    Rollback {
        /// As `pomona slo show` lists it.
        version: u64,
    },
}
