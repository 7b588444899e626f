//! `pomona cloud`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum CloudCommand {
    /// The clouds, which of them may be asked, and what they took this month.
    List,
    /// Let a cloud be asked by lists that name it (`pomona fallback set batch=rack,cloud:NAME,pause`).
    ///
    /// What is configured at another address later is not approved. Approving again replaces what was approved.
    Approve {
        /// Its name: `[cloud.NAME]` of the configuration.
        name: String,
        /// Days until somebody has to approve it anew.
        #[arg(long)]
        days: f64,
        /// The most that it may cost in a month (UTC), in the currency of its prices, such as 20 or 0.50.
        #[arg(long, allow_hyphen_values = true)]
        money: String,
        /// The most tokens of prompts and answers in a month, such as 5000000 or 5M.
        #[arg(long)]
        tokens: String,
    },
    /// Ask a cloud no more, from now on.
    Revoke {
        /// Its name.
        name: String,
    },
    /// Every request that went to a cloud, and whether their chain of hashes holds.
    Spills {
        /// How many, the latest.
        #[arg(long, default_value_t = 20)]
        last: usize,
        /// NUMBER:HASH as shown before: fails unless it is still there.
        #[arg(long)]
        noted: Option<String>,
    },
    /// Say how much of clouds an API key may take in a month; `none` for as much as there is.
    Budget {
        /// Its name or id, as `pomona key list` shows it.
        key: String,
        /// Such as 20 or 0.50.
        money: String,
    },
    /// Keep the prompts for a model on the team's own machines: they go to no cloud and to no rented Mac.
    Private {
        /// The model, as `pomona models` shows it.
        model: String,
        /// Undo that.
        #[arg(long)]
        no: bool,
    },
}
