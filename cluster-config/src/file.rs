//! The TOML file. Read value by value, so that one mistake does not hide the next.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use pomona_common::{Class, ClassKnobs, EngineKnobs, Slo, SloSet};
use toml::{Table, Value};

use crate::{Config, EngineKind, cloud};

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn default() -> Config {
    Config {
        state: PathBuf::new(),
        coordinator_http: loopback(7711),
        quic: loopback(7712),
        node_quic: loopback(0),
        node_http: loopback(7710),
        coordinators: Vec::new(),
        mdns: true,
        approve_manually: false,
        require_keys: false,
        literal_swap: false,
        clouds: BTreeMap::new(),
        node_name: String::new(),
        engine: EngineKind::Mlx,
        engine_program: None,
        knobs: EngineKnobs::default(),
        slos: SloSet::default(),
        probe_interval: Duration::from_secs(1),
        probe_power: true,
        probe_script: None,
        clock_script: None,
    }
}

/// Reads a file over the defaults; problems are added to `problems`.
pub(crate) fn parse(text: &str, problems: &mut Vec<String>) -> Config {
    let mut config = default();
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            problems.push(format!("the file is not TOML: {error}"));
            return config;
        }
    };
    let mut reader = Reader { problems };
    reader.section(&table, "", |reader, name, value| {
        match name {
            "state" => reader.path(name, value, &mut config.state),
            "http" => reader.nested(name, value, |reader, name, value| {
                match name {
                    "http.coordinator" => reader.address(name, value, &mut config.coordinator_http),
                    "http.node" => reader.address(name, value, &mut config.node_http),
                    _ => return false,
                }
                true
            }),
            "quic" => reader.nested(name, value, |reader, name, value| {
                match name {
                    "quic.listen" => reader.address(name, value, &mut config.quic),
                    "quic.node" => reader.address(name, value, &mut config.node_quic),
                    _ => return false,
                }
                true
            }),
            "discovery" => reader.nested(name, value, |reader, name, value| {
                match name {
                    "discovery.mdns" => reader.boolean(name, value, &mut config.mdns),
                    _ => return false,
                }
                true
            }),
            "security" => reader.nested(name, value, |reader, name, value| {
                match name {
                    "security.approve" => {
                        let mut policy = String::new();
                        reader.text(name, value, &mut policy);
                        match policy.as_str() {
                            "token" => config.approve_manually = false,
                            "manual" => config.approve_manually = true,
                            other => reader
                                .problems
                                .push(format!("{name}: `{other}` is neither `token` nor `manual`")),
                        }
                    }
                    "security.require_keys" => reader.boolean(name, value, &mut config.require_keys),
                    _ => return false,
                }
                true
            }),
            "gates" => reader.nested(name, value, |reader, name, value| match name {
                "gates.swap" => {
                    reader.nested(name, value, |reader, name, value| {
                        if name != "gates.swap.literal" {
                            return false;
                        }
                        reader.boolean(name, value, &mut config.literal_swap);
                        true
                    });
                    true
                }
                _ => false,
            }),
            "node" => reader.nested(name, value, |reader, name, value| {
                match name {
                    "node.name" => reader.text(name, value, &mut config.node_name),
                    "node.coordinators" => reader.addresses(name, value, &mut config.coordinators),
                    _ => return false,
                }
                true
            }),
            "cloud" => config.clouds = cloud::clouds(reader, value),
            "engine" => engine(reader, value, &mut config),
            "probe" => reader.nested(name, value, |reader, name, value| {
                match name {
                    "probe.interval_ms" => {
                        let mut ms = 0;
                        reader.number(name, value, &mut ms);
                        config.probe_interval = Duration::from_millis(ms);
                    }
                    "probe.power" => reader.boolean(name, value, &mut config.probe_power),
                    "probe.script" => reader.optional_path(name, value, &mut config.probe_script),
                    _ => return false,
                }
                true
            }),
            _ => return false,
        }
        true
    });
    config
}

fn engine(reader: &mut Reader<'_>, value: &Value, config: &mut Config) {
    reader.nested("engine", value, |reader, name, value| {
        match name {
            "engine.kind" => {
                let mut kind = String::new();
                reader.text(name, value, &mut kind);
                match engine_kind(&kind) {
                    Ok(kind) => config.engine = kind,
                    Err(problem) => reader.problems.push(format!("{name}: {problem}")),
                }
            }
            "engine.program" => reader.optional_path(name, value, &mut config.engine_program),
            "engine.total_slots" => reader.number(name, value, &mut config.knobs.total_slots),
            "engine.slice_ms" => reader.number(name, value, &mut config.knobs.slice_ms),
            "engine.kv_budget_mib" => {
                let mut mib: u64 = 0;
                reader.number(name, value, &mut mib);
                config.knobs.kv_budget_bytes = mib.saturating_mul(1024 * 1024);
            }
            _ => {
                let class = Class::ALL
                    .into_iter()
                    .find(|class| name == format!("engine.{class}"));
                let Some(class) = class else {
                    return false;
                };
                let (knobs, slo) = (config.knobs.class_mut(class), config.slos.class_mut(class));
                of_class(reader, name, value, knobs, slo);
            }
        }
        true
    });
}

fn of_class(reader: &mut Reader<'_>, section: &str, value: &Value, knobs: &mut ClassKnobs, slo: &mut Slo) {
    reader.nested(section, value, |reader, name, value| {
        match name.rsplit('.').next().unwrap_or_default() {
            "window_ms" => reader.number(name, value, &mut knobs.window_ms),
            "max_slots" => reader.number(name, value, &mut knobs.max_slots),
            "reserved_slots" => reader.number(name, value, &mut knobs.reserved_slots),
            "prefill_chunk" => reader.number(name, value, &mut knobs.prefill_chunk),
            "step_share" => reader.number(name, value, &mut knobs.step_share),
            "queue" => reader.number(name, value, &mut slo.queue),
            "wait_s" => reader.number(name, value, &mut slo.wait_s),
            _ => return false,
        }
        true
    });
}

/// The engine by its name in file and environment: `mlx`, `none`, `echo` or `echo:MS`.
pub(crate) fn engine_kind(text: &str) -> Result<EngineKind, String> {
    match text.split_once(':') {
        None if text == "mlx" => Ok(EngineKind::Mlx),
        None if text == "none" => Ok(EngineKind::None),
        None if text == "echo" => Ok(EngineKind::Echo { step_ms: 0 }),
        Some(("echo", ms)) => {
            let step_ms = ms
                .parse()
                .map_err(|_| format!("`{ms}` is not a number of milliseconds"))?;
            Ok(EngineKind::Echo { step_ms })
        }
        _ => Err(format!(
            "`{text}` is not an engine: use mlx, echo, echo:MILLISECONDS or none"
        )),
    }
}

pub(crate) struct Reader<'a> {
    pub(crate) problems: &'a mut Vec<String>,
}

impl Reader<'_> {
    /// Calls `entry` with the full name of every setting; those it does not know are problems.
    fn section(
        &mut self,
        table: &Table,
        prefix: &str,
        mut entry: impl FnMut(&mut Self, &str, &Value) -> bool,
    ) {
        for (key, value) in table {
            let name = if prefix.is_empty() {
                key.clone()
            } else {
                format!("{prefix}.{key}")
            };
            if !entry(self, &name, value) {
                self.problems.push(format!("{name}: no such setting"));
            }
        }
    }

    pub(crate) fn nested(
        &mut self,
        name: &str,
        value: &Value,
        entry: impl FnMut(&mut Self, &str, &Value) -> bool,
    ) {
        match value.as_table() {
            Some(table) => self.section(table, name, entry),
            None => self.problems.push(format!("{name}: must be a table")),
        }
    }

    fn expect<T>(&mut self, name: &str, value: Option<T>, expected: &str, target: &mut T) {
        match value {
            Some(value) => *target = value,
            None => self.problems.push(format!("{name}: must be {expected}")),
        }
    }

    pub(crate) fn text(&mut self, name: &str, value: &Value, target: &mut String) {
        self.expect(name, value.as_str().map(str::to_owned), "a string", target);
    }

    pub(crate) fn boolean(&mut self, name: &str, value: &Value, target: &mut bool) {
        self.expect(name, value.as_bool(), "true or false", target);
    }

    pub(crate) fn number<T: TryFrom<i64>>(&mut self, name: &str, value: &Value, target: &mut T) {
        let number = value.as_integer().and_then(|number| T::try_from(number).ok());
        self.expect(name, number, "a whole number, not negative", target);
    }

    fn path(&mut self, name: &str, value: &Value, target: &mut PathBuf) {
        self.expect(name, value.as_str().map(PathBuf::from), "a path", target);
    }

    pub(crate) fn optional_path(&mut self, name: &str, value: &Value, target: &mut Option<PathBuf>) {
        self.expect(
            name,
            value.as_str().map(|path| Some(path.into())),
            "a path",
            target,
        );
    }

    fn address(&mut self, name: &str, value: &Value, target: &mut SocketAddr) {
        let address = value.as_str().and_then(|text| text.parse().ok());
        self.expect(
            name,
            address,
            "an address and port like \"127.0.0.1:7710\"",
            target,
        );
    }

    fn addresses(&mut self, name: &str, value: &Value, target: &mut Vec<SocketAddr>) {
        let addresses = value.as_array().filter(|list| !list.is_empty()).and_then(|list| {
            list.iter()
                .map(|item| item.as_str().and_then(|text| text.parse().ok()))
                .collect()
        });
        self.expect(
            name,
            addresses,
            "a list of addresses like [\"127.0.0.1:7712\"]",
            target,
        );
    }
}
