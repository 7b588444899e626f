//! `pomona knobs`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum KnobsCommand {
    /// The knobs in force, and who changed them.
    Show,
    /// Change some. From the first change on they replace what nodes have in their configurations.
    Set {
        /// Such as `batch.window_ms=200` or `slice_ms=20`.
        #[arg(required = true, value_name = "NAME=VALUE")]
        knobs: Vec<String>,
        /// Although a gate forbids it; who did it is recorded.
        #[arg(long)]
        force: bool,
    },
    /// Make those of an earlier version the ones in force; 0 is what Pomona comes with.
    Rollback {
        /// As `pomona knobs show` lists it.
        version: u64,
        /// Although a gate forbids it; who did it is recorded.
        #[arg(long)]
        force: bool,
    },
}
