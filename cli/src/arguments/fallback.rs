//! `pomona fallback`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum FallbackCommand {
    /// The list of each class, and who changed them.
    Show,
    /// Change the lists of some classes.
    Set {
        /// Such as `batch=rack,rented,pause:20`. A list names, in order, `local` (the machine whose own endpoint
        /// was asked), kinds of machine (`laptop`, `rack`, `rented`), then clouds that are approved (`cloud:NAME`, see
        /// `pomona cloud`), and last, if requests are to wait, `pause` or `pause:SECONDS`: what nobody takes is held
        /// so long, and then refused with the time to come back. What is not named does not answer.
        #[arg(required = true, value_name = "CLASS=LIST")]
        lists: Vec<String>,
    },
    /// Make those of an earlier version the ones in force; 0 is what Pomona comes with.
    Rollback {
        /// As `pomona fallback show` lists it.
        version: u64,
    },
}
