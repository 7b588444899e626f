//! What is kept of a report.

use std::fmt;
use std::str::FromStr;

use pomona_common::conditions::Supply;
use pomona_common::report::{NodeReport, Thermal};
use pomona_common::unit::{Bytes, Reading};

macro_rules! series {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// One thing that is followed over time.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Series {
            $($(#[$doc])* $name,)*
        }

        impl Series {
            /// All of them; the position is the place in a [`Sample`].
            pub const ALL: &[Series] = &[$(Series::$name),*];

            /// Its name for people and scripts.
            pub const fn name(self) -> &'static str {
                match self { $(Series::$name => $text),* }
            }
        }
    };
}

series! {
    /// Watts.
    Power = "power",
    /// Swap in use, mebibytes.
    Swap = "swap",
    /// Memory to be had without swapping, mebibytes.
    MemoryAvailable = "memory_available",
    /// Memory pressure, percent.
    Pressure = "pressure",
    /// Memory that holds compressed pages, mebibytes.
    Compressed = "compressed",
    /// Thermal state: 0 nominal, 1 fair, 2 serious, 3 critical.
    Thermal = "thermal",
    /// Resident memory of the agent, mebibytes.
    AgentRss = "agent_rss",
    /// Resident memory of the engine, mebibytes.
    EngineRss = "engine_rss",
    /// Footprint of the engine, mebibytes.
    EngineFootprint = "engine_footprint",
    /// KV cache in use, mebibytes.
    KvUsed = "kv_used",
    /// Sequences in a slot.
    Running = "running",
    /// Sequences that wait for one.
    Waiting = "waiting",
    /// Tokens per second since the report before.
    TokenRate = "token_rate",
    /// GPU use, percent.
    Gpu = "gpu",
    /// Charge of the battery, percent.
    Battery = "battery",
    /// Whether the battery feeds the machine, 1 or 0.
    OnBattery = "on_battery",
}

/// How many there are.
pub(crate) const SERIES: usize = Series::ALL.len();

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Series::ALL.iter().find(|series| series.name() == text);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = Series::ALL.iter().map(|series| series.name()).collect();
            format!("no series of that name: there are {}", names.join(", "))
        })
    }
}

/// The values of one report, by [`Series`]; NaN is missing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample(pub [f32; SERIES]);

impl Sample {
    /// One value; NaN when it is missing.
    pub fn of_series(&self, series: Series) -> f32 {
        self.0[series as usize]
    }

    /// What a report says; `token_rate` is known from the report before.
    pub fn of(report: &NodeReport, token_rate: Option<f32>) -> Self {
        let machine = &report.machine;
        let conditions = &machine.conditions;
        let engine = report.engine.as_ref();
        let sequences = |count: fn(&pomona_common::report::ClassReport) -> u32| {
            engine.map(|engine| engine.classes.values().map(count).sum::<u32>() as f32)
        };
        let value = |series: Series| match series {
            Series::Power => machine.power.value().map(|watts| watts.get()),
            Series::Swap => mib(machine.swap_used),
            Series::MemoryAvailable => mib(machine.memory_available),
            Series::Pressure => machine.pressure.value().map(|percent| percent.get()),
            Series::Compressed => mib(conditions.compressed),
            Series::Thermal => machine.thermal.value().map(level),
            Series::AgentRss => mib(machine.agent.rss),
            Series::EngineRss => mib(machine.engine.rss),
            Series::EngineFootprint => mib(machine.engine.footprint),
            Series::KvUsed => engine.map(|engine| as_mib(engine.kv_used)),
            Series::Running => sequences(|class| class.running),
            Series::Waiting => sequences(|class| class.waiting),
            Series::TokenRate => token_rate,
            Series::Gpu => conditions.gpu.value().map(|percent| percent.get()),
            Series::Battery => conditions.battery.value().map(|percent| percent.get()),
            Series::OnBattery => {
                let supply = conditions.supply.value();
                supply.map(|supply| f32::from(supply == Supply::Battery))
            }
        };
        let mut values = [f32::NAN; SERIES];
        for (place, series) in values.iter_mut().zip(Series::ALL) {
            *place = value(*series).unwrap_or(f32::NAN);
        }
        Self(values)
    }
}

/// Tokens that the node's engine has emitted.
pub(crate) fn tokens(report: &NodeReport) -> u64 {
    let engine = report.engine.as_ref();
    engine.map_or(0, |engine| {
        engine.classes.values().map(|class| class.tokens).sum()
    })
}

fn level(thermal: Thermal) -> f32 {
    match thermal {
        Thermal::Nominal => 0.0,
        Thermal::Fair => 1.0,
        Thermal::Serious => 2.0,
        Thermal::Critical => 3.0,
    }
}

fn mib(reading: Reading<Bytes>) -> Option<f32> {
    reading.value().map(|bytes| as_mib(bytes.get()))
}

fn as_mib(bytes: u64) -> f32 {
    (bytes as f64 / (1024.0 * 1024.0)) as f32
}
