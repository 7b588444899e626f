//! `pomona engine`.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum EngineCommand {
    /// Look for servers of other programs on this machine that could be adopted, at the ports that they usually take.
    Detect,
    /// Let a server of another program answer for this node, instead of its own engine.
    ///
    /// It stays the program that it is: started, updated and ended by you. Its model joins the cluster's, its answers
    /// go through `/v1`, and how much it does at once is decided by the node. The GPU is lent to it for that time:
    /// the node's own engine ends, because two programs that compute on one Mac's GPU can take the Mac down.
    Adopt {
        /// Where it is, such as http://127.0.0.1:8080/v1.
        url: String,
        /// Which of its models, where it has several.
        #[arg(long)]
        model: Option<String>,
        /// What the cluster calls the model; its own name otherwise.
        #[arg(long)]
        name: Option<String>,
        /// Answers that it makes at once. One of several is kept free of batch work, which it could not stop.
        #[arg(long, default_value_t = 2)]
        slots: u32,
        /// Longest prompt and answer together, in tokens.
        #[arg(long, default_value_t = 32_768)]
        context: u32,
        /// A file with its API key, where it asks for one. After another key was written into it, adopt the server again.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        /// Adopt it although it leaves the system less than 2 GiB of memory.
        #[arg(long)]
        force: bool,
    },
    /// The servers that are adopted.
    Show,
    /// Give the GPU back to the node's own engine, and forget the servers. They go on by themselves.
    Release,
}
