//! `pomona key`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key. It is shown this once: the cluster keeps a hash of it.
    Create {
        /// What to call it, such as a team or a program.
        name: String,
        /// Days until it ends by itself; it has no end otherwise.
        #[arg(long)]
        days: Option<f64>,
        #[command(flatten)]
        terms: KeyTerms,
    },
    /// List the keys: what they are good for, and what they took today.
    List,
    /// Give a key a new secret, which is shown this once. The one before opens too for a while, so that
    /// programs can be changed over.
    Rotate {
        /// Its name or id.
        key: String,
        /// How long the secret of before is good for; 0 ends it now.
        #[arg(long, default_value_t = 24.0)]
        grace_hours: f64,
    },
    /// Change what a key is good for. What is not named stays as it is.
    Change {
        /// Its name or id.
        key: String,
        #[command(flatten)]
        terms: KeyTerms,
    },
    /// End a key, everywhere, within about a second.
    Revoke {
        /// Its name or id.
        key: String,
    },
}

/// What a key is good for; everything, unless something is said.
#[derive(Debug, Args)]
pub(crate) struct KeyTerms {
    /// Class of all its requests, whatever they say: interactive, background or batch; `any` leaves it to them.
    #[arg(long)]
    pub(crate) class: Option<String>,
    /// A class that its requests may have (may be repeated); `any` for all.
    #[arg(long = "allow-class", value_name = "CLASS")]
    pub(crate) classes: Vec<String>,
    /// A model that it may ask for (may be repeated); `any` for all.
    #[arg(long = "model", value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// A kind of machine that may answer, laptop, rack or rented (may be repeated); `any` for all.
    #[arg(long = "pool", value_name = "ROLE")]
    pub(crate) pools: Vec<String>,
    /// Rented machines see nothing of it, unless `--pool rented` says so.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub(crate) private: Option<bool>,
    /// NAME=N, or MODEL:NAME=N for one model (may be repeated): concurrency, requests_per_minute,
    /// tokens_per_minute, tokens_per_day; LiteLLM's max_parallel_requests, rpm and tpm mean the same.
    /// NAME=none lifts a limit.
    #[arg(long = "limit", value_name = "[MODEL:]NAME=N")]
    pub(crate) limits: Vec<String>,
}
