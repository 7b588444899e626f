//! A Mac: how fast it is, what it draws, how warm it gets, what its person does on it.

use std::collections::BTreeMap;

use pomona_common::conditions::{Activity, Conditions, Supply};
use pomona_common::report::{MachineReport, ProcessReport, Thermal};
use pomona_common::unit::{Bytes, Percent, Reading};
use pomona_common::{MachineRole, Watts};
use pomona_tests::Random;
use serde::Deserialize;

const GIB: f64 = (1u64 << 30) as f64;
/// Bytes of the weights that the data file's speeds are for.
pub const MEASURED_WEIGHTS: f64 = 3.82e9;
/// Time constant in seconds with which sensors follow.
const SENSOR_S: f64 = 3.0;
/// A hot chip is so until it draws this share of what its cooling takes away.
const COOL_AGAIN: f64 = 0.9;
/// Seconds after which its probe looks for builds again, as `node/probe/src/macos.rs` does.
const LOOKS_S: f64 = 10.0;
/// A chip's system calls it `fair` from this share of what its cooling takes away. Estimate.
const FAIR: f64 = 0.85;
/// What is left of a chip's speed for the engine while a build takes cores and bandwidth. Estimate.
const BESIDE_BUILD: f64 = 0.8;
/// Of the memory, what the system and open programs take. Estimate.
const SYSTEM_GIB: f64 = 4.0;
/// Bytes a second that a machine writes to swap that says it does.
const WRITES: f64 = 1e6;

/// Where the numbers come from.
pub const DATA: &str = include_str!("../macs.toml");

/// A number of the data file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Number {
    pub value: f64,
    pub source: String,
}

/// A kind of Mac, as the data file describes it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    pub chip: String,
    pub role: MachineRole,
    pub memory_gib: Number,
    pub prefill_tok_s: Number,
    pub decode_tok_s: Number,
    pub bandwidth_gb_s: Number,
    pub batch_8: Number,
    pub idle_w: Number,
    pub prefill_w: Number,
    pub decode_w: Number,
    pub build_w: Number,
    pub call_w: Number,
    pub sustained_w: Number,
    pub heat_s: Number,
    pub slow_prefill: Number,
    pub slow_decode: Number,
    pub battery_wh: Number,
}

impl Kind {
    /// All numbers of which machines of a kind differ by themselves.
    fn differing(&mut self) -> [&mut Number; 14] {
        [
            &mut self.memory_gib,
            &mut self.prefill_tok_s,
            &mut self.decode_tok_s,
            &mut self.batch_8,
            &mut self.idle_w,
            &mut self.prefill_w,
            &mut self.decode_w,
            &mut self.build_w,
            &mut self.call_w,
            &mut self.sustained_w,
            &mut self.heat_s,
            &mut self.slow_prefill,
            &mut self.slow_decode,
            &mut self.battery_wh,
        ]
    }

    /// One of its kind: each number within this share of the usual one. Memory is as much faster as one sequence
    /// is, which it is the reason of, and nothing is faster for being hot.
    #[must_use]
    pub fn drawn(&self, random: &mut Random, share: f64) -> Self {
        let mut one = self.clone();
        for number in one.differing() {
            let unit = random.between(0, 2_000_001) as f64 / 1e6 - 1.0;
            number.value *= 1.0 + share * unit;
        }
        one.bandwidth_gb_s.value *= one.decode_tok_s.value / self.decode_tok_s.value;
        for slow in [&mut one.slow_prefill, &mut one.slow_decode] {
            slow.value = slow.value.min(1.0);
        }
        one
    }
}

/// The kinds of the data file, by name.
pub fn kinds(text: &str) -> anyhow::Result<BTreeMap<String, Kind>> {
    Ok(toml::from_str(text)?)
}

/// What a step has to do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Work {
    pub weight_bytes: u64,
    pub kv_bytes_per_token: u64,
    /// Rows that decode.
    pub rows: u32,
    /// Prompt tokens.
    pub prefill: u32,
    /// Tokens of KV cache that are read.
    pub context: u64,
    /// Bytes of KV caches that are read and written to move them.
    pub moved: u64,
}

/// What a person does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Person {
    pub builds: bool,
    pub calls: bool,
    /// Watts of anything else.
    pub watts: f64,
    /// Bytes that their programs take beyond the usual.
    pub bytes: f64,
    pub unplugged: bool,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Mac {
    pub kind: Kind,
    pub person: Person,
    /// Power as its sensors see it.
    pub watts: f64,
    /// Power over the time in which it warms up.
    warmth: f64,
    hot: bool,
    /// Whether its probe found a build when it looked last, and for how many seconds that was so.
    found: (bool, f64),
    /// What is left in the battery, in joules.
    battery: f64,
    pub swap: f64,
    pub swapped_out: f64,
    /// Bytes that the engine holds.
    pub engine_bytes: f64,
    /// What somebody wrote down, whatever is so.
    pub says: Says,
}

/// What a machine says of itself, where that is made up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Says {
    pub watts: Option<f32>,
    /// Memory pressure, percent.
    pub pressure: Option<f32>,
    /// The engine's footprint, percent of the memory.
    pub resident: Option<f32>,
    /// Swap in use in MB, and whether more is being written.
    pub swap: Option<(f32, bool)>,
    /// Memory in all and what is free of it, of what there is in all.
    pub memory: Option<(f64, f64)>,
}

impl Mac {
    pub fn new(kind: Kind) -> Self {
        Self {
            person: Person::default(),
            watts: kind.idle_w.value,
            warmth: kind.idle_w.value,
            hot: false,
            found: (false, 0.0),
            battery: kind.battery_wh.value * 3600.0,
            swap: 0.0,
            swapped_out: 0.0,
            engine_bytes: 0.0,
            says: Says::default(),
            kind,
        }
    }

    /// Microseconds that a step takes, and the watts that it takes beyond what the machine draws without it.
    ///
    /// Weights are read once for all rows, and prompt tokens are worked on meanwhile; each row costs some time
    /// of its own, so that eight of them make `batch_8` times the tokens of one; KV caches are read as fast as
    /// weights are, and moved.
    pub fn step(&self, work: &Work) -> (u64, f64) {
        let kind = &self.kind;
        let scale = work.weight_bytes as f64 / MEASURED_WEIGHTS;
        let one = scale / kind.decode_tok_s.value;
        let row = one * (8.0 / kind.batch_8.value - 1.0).max(0.0) / 7.0;
        let weights = (one - row).max(0.0);
        let prompt = scale * f64::from(work.prefill) / kind.prefill_tok_s.value;
        let kv_bytes = work.context as f64 * work.kv_bytes_per_token as f64 + work.moved as f64;
        let kv = kv_bytes / (MEASURED_WEIGHTS * kind.decode_tok_s.value);
        let decode = f64::from(work.rows) * row + kv;
        let (slow_prefill, slow_decode) = match self.hot {
            true => (kind.slow_prefill.value, kind.slow_decode.value),
            false => (1.0, 1.0),
        };
        let beside = if self.person.builds { BESIDE_BUILD } else { 1.0 };
        let prefills = prompt > weights;
        let seconds = match prefills {
            true => (prompt / slow_prefill + decode / slow_decode) / beside,
            false => (weights + decode) / slow_decode / beside,
        };
        let cold = if prefills {
            kind.prefill_w.value
        } else {
            kind.decode_w.value
        };
        let slow = if prefills { slow_prefill } else { slow_decode };
        // A chip that is slowed down runs at less voltage as well.
        let watts = (cold - kind.idle_w.value).max(0.0) * slow * slow;
        ((seconds * 1e6) as u64, watts)
    }

    /// Time goes by, in which the engine took so much energy.
    pub fn pass(&mut self, milliseconds: u64, engine_joules: f64) {
        let seconds = milliseconds as f64 / 1000.0;
        let kind = &self.kind;
        let beyond_idle = |is_so: bool, watts: &Number| match is_so {
            true => (watts.value - kind.idle_w.value).max(0.0),
            false => 0.0,
        };
        let person = self.person.watts
            + beyond_idle(self.person.builds, &kind.build_w)
            + beyond_idle(self.person.calls, &kind.call_w);
        let joules = (kind.idle_w.value + person) * seconds + engine_joules;
        let watts = joules / seconds;
        let towards = |constant: f64| 1.0 - (-seconds / constant).exp();
        self.watts += (watts - self.watts) * towards(SENSOR_S);
        self.warmth += (watts - self.warmth) * towards(kind.heat_s.value);
        let limit = kind.sustained_w.value * if self.hot { COOL_AGAIN } else { 1.0 };
        self.hot = self.warmth > limit;
        self.found.1 += seconds;
        if self.found.1 >= LOOKS_S {
            self.found = (self.person.builds, 0.0);
        }
        let full = kind.battery_wh.value * 3600.0;
        self.battery = match self.person.unplugged {
            true => (self.battery - joules).max(0.0),
            false => (self.battery + joules).min(full),
        };
        // What does not fit is swapped out, and stays there until the memory is needed less.
        let over = (self.used() - self.total()).max(0.0);
        self.swapped_out += (over - self.swap).max(0.0);
        self.swap = over.max(self.swap * 0.999);
        if self.says.swap.is_some_and(|(_, writes)| writes) {
            self.swapped_out += WRITES * seconds;
        }
    }

    /// How many times as long as usual a prompt takes now.
    pub fn times(&self) -> f64 {
        let hot = if self.hot {
            self.kind.slow_prefill.value
        } else {
            1.0
        };
        let beside = if self.person.builds { BESIDE_BUILD } else { 1.0 };
        1.0 / hot / beside
    }

    /// Milliseconds that a prompt of so many tokens takes of a model when nothing slows it down.
    pub fn usual_ms(&self, weight_bytes: u64, tokens: u32) -> f64 {
        let scale = weight_bytes as f64 / MEASURED_WEIGHTS;
        1000.0 * scale * f64::from(tokens) / self.kind.prefill_tok_s.value
    }

    /// The battery holds so many percent.
    pub fn charge(&mut self, percent: f64) {
        self.battery = self.kind.battery_wh.value * 3600.0 * percent / 100.0;
    }

    /// Whether it has a battery, and nothing is left in it.
    pub fn has_gone_out(&self) -> bool {
        self.kind.battery_wh.value > 0.0 && self.battery <= 0.0
    }

    /// It slept for so long, and gave off what warmth it had.
    pub fn cool(&mut self, milliseconds: u64) {
        let seconds = milliseconds as f64 / 1000.0;
        self.warmth *= (-seconds / self.kind.heat_s.value).exp();
        self.watts *= (-seconds / SENSOR_S).exp();
        self.hot &= self.warmth > self.kind.sustained_w.value * COOL_AGAIN;
    }

    pub fn total(&self) -> f64 {
        self.kind.memory_gib.value * GIB
    }

    fn used(&self) -> f64 {
        SYSTEM_GIB * GIB + self.person.bytes + self.engine_bytes
    }

    /// macOS says `fair` long before it slows down, and no more than that when it does.
    fn thermal(&self) -> Thermal {
        let is_fair = self.hot || self.warmth > FAIR * self.kind.sustained_w.value;
        if is_fair { Thermal::Fair } else { Thermal::Nominal }
    }

    /// Memory pressure, percent.
    pub fn pressure(&self) -> f32 {
        let share = 100.0 * self.used() / self.total();
        self.says.pressure.unwrap_or(share.min(100.0) as f32)
    }

    /// What its probe says. A person is at a laptop while it is awake.
    pub fn report(&self) -> MachineReport {
        let bytes = |bytes: f64| Reading::Measured(Bytes(bytes.max(0.0) as u64));
        let person = &self.person;
        let is_laptop = self.kind.role == MachineRole::Laptop;
        let supply = match person.unplugged {
            true => Supply::Battery,
            false => Supply::Mains,
        };
        let of_total = |percent| f64::from(percent) * self.total() / 100.0;
        let resident = self.says.resident.map_or(self.engine_bytes, of_total);
        let memory = (self.total(), self.total() - self.used());
        let of_all = |(total, free): (f64, f64)| (total * self.total(), free * self.total());
        let (total, available) = self.says.memory.map_or(memory, of_all);
        let full = self.kind.battery_wh.value * 3600.0;
        let battery = (100.0 * self.battery / full.max(1.0)) as f32;
        MachineReport {
            memory_total: bytes(total),
            memory_available: bytes(available),
            pressure: Reading::Measured(Percent(self.pressure())),
            power: Reading::Measured(Watts(self.says.watts.unwrap_or(self.watts as f32))),
            swap_used: bytes(self.says.swap.map_or(self.swap, |(mb, _)| f64::from(mb) * 1e6)),
            thermal: Reading::Measured(self.thermal()),
            engine: ProcessReport {
                rss: bytes(resident),
                footprint: bytes(resident),
            },
            chip: self.kind.chip.clone(),
            conditions: Conditions {
                supply: Reading::Measured(supply),
                battery: if is_laptop {
                    Reading::Measured(Percent(battery))
                } else {
                    Reading::default()
                },
                activity: Activity {
                    indexing: Reading::Measured(self.found.0),
                    video: Reading::Measured(person.calls),
                    capture: Reading::Measured(person.calls),
                    locked: Reading::Measured(false),
                    idle_s: Reading::Measured(if is_laptop { 0 } else { 86_400 }),
                },
                ..Conditions::default()
            },
            ..MachineReport::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(name: &str) -> Mac {
        Mac::new(kinds(DATA).unwrap()[name].clone())
    }

    #[test]
    fn every_number_says_where_it_comes_from() {
        for (name, mut kind) in kinds(DATA).unwrap() {
            // Some have no battery.
            let nothing = usize::from(kind.battery_wh.value == 0.0);
            let numbers = kind.differing();
            let sound = numbers.iter().filter(|number| number.value > 0.0).count();
            assert_eq!(sound + nothing, numbers.len(), "{name}");
            for number in numbers {
                assert!(number.source.len() > 5, "{name}: {number:?}");
            }
        }
    }

    #[test]
    fn steps_take_as_long_as_measured() {
        let mac = mac("mbp14-m4-pro");
        let per_second = |work: Work, tokens: u32| f64::from(tokens) * 1e6 / mac.step(&work).0 as f64;
        let decode = |rows| Work {
            weight_bytes: MEASURED_WEIGHTS as u64,
            rows,
            ..Work::default()
        };
        let one = per_second(decode(1), 1);
        assert!((one - 50.7).abs() < 0.5, "{one}");
        let eight = per_second(decode(8), 8) / one;
        assert!((eight - 3.1).abs() < 0.05, "{eight}");
        let prefill = Work {
            prefill: 512,
            ..decode(0)
        };
        let prefill = per_second(prefill, 512);
        assert!((prefill - 439.8).abs() < 1.0, "{prefill}");
    }

    #[test]
    fn a_fanless_mac_slows_down_in_minutes_and_recovers() {
        let mut air = mac("air-m4");
        let work = Work {
            weight_bytes: MEASURED_WEIGHTS as u64,
            prefill: 512,
            ..Work::default()
        };
        let (cold, watts) = air.step(&work);
        for _ in 0..3000 {
            air.pass(100, watts * 0.1);
        }
        let (hot, hot_watts) = air.step(&work);
        assert!(hot > cold * 13 / 10 && hot_watts < watts, "{cold} {hot}");
        for _ in 0..6000 {
            air.pass(100, 0.0);
        }
        assert_eq!(air.step(&work).0, cold);
    }
}
