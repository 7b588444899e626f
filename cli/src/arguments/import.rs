//! `pomona import`.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum ImportCommand {
    /// Print a LiteLLM proxy's config.yaml as clouds for the configuration of coordinators.
    ///
    /// What was not carried over, and what to do next, stand above it as comments. Nothing is changed.
    Litellm {
        /// Its config.yaml.
        file: PathBuf,
        /// The cluster's model for a `model_name` of the file (may be repeated), such as
        /// `gpt-4o=mlx-community/Qwen3-8B`. Others keep their names.
        #[arg(long = "model", value_name = "FROM=TO")]
        models: Vec<String>,
    },
}
