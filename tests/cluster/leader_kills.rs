//! The leader is killed again and again while clients write and read through every coordinator:
//! how long nothing can be written, and whether the whole history is linearizable.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use pomona_tests::linear::{self, Operation, Outcome as Done};
use pomona_tests::{Machine, Stops, eventually};
use serde_json::{Value, json};

use crate::former::{SOON, found, is_whole, status, token};
use crate::{Outcome, Scale, keep, quantile};

/// Nodes whose names are the registers.
const REGISTERS: usize = 3;
/// Clients that write, each at one coordinator after the other.
const WRITERS: usize = 3;
/// Clients that read.
const READERS: usize = 3;

/// Between the return of one leader and the death of the next.
const BETWEEN: Duration = Duration::from_secs(1);

struct Shared {
    began: Instant,
    machines: Vec<RwLock<Machine>>,
    registers: Vec<String>,
    next: AtomicU64,
    stop: AtomicBool,
    history: Mutex<Vec<(usize, Operation)>>,
}

pub(crate) fn run(scale: Scale) -> Outcome {
    let mut machines = [(); 3].map(|()| Machine::empty());
    found(&mut machines, |first| vec!["--coordinator".into(), first.quic()]);
    let registers: Vec<String> = (0..REGISTERS).map(|i| register(&machines[0], i)).collect();
    let shared = Shared {
        began: Instant::now(),
        machines: machines.into_iter().map(RwLock::new).collect(),
        registers,
        next: AtomicU64::new(1),
        stop: AtomicBool::new(false),
        history: Mutex::default(),
    };
    let kills = scale.pick(15, 50);
    let mut gaps = Vec::new();
    std::thread::scope(|scope| {
        let _stops = Stops(&shared.stop);
        for i in 0..WRITERS + READERS {
            let shared = &shared;
            scope.spawn(move || shared.client(i));
        }
        for _ in 0..kills {
            std::thread::sleep(BETWEEN);
            gaps.push(shared.kill_leader());
        }
    });
    let history = shared.history.into_inner().expect("no client panicked");
    let count = |done| history.iter().filter(|(_, op)| op.outcome == done).count();
    let figures = json!({
        "kills": kills, "unavailable_median_s": quantile(&gaps, 0.5), "unavailable_max_s": quantile(&gaps, 1.0),
        "operations": history.len(), "failed": count(Done::Failed), "unknown": count(Done::Unknown),
    });
    keep(
        "leader_kills",
        &json!({ "figures": figures, "unavailable_s": gaps, "history": history }),
    );
    for register in 0..REGISTERS {
        let own: Vec<Operation> = history
            .iter()
            .filter(|(r, _)| *r == register)
            .map(|(_, op)| op.clone())
            .collect();
        assert!(own.len() > 20 * kills, "only {} operations", own.len());
        linear::check(&first_name(register), &own).unwrap_or_else(|why| panic!("register {register}: {why}"));
    }
    assert!(quantile(&gaps, 0.5) <= 1.0, "{figures}");
    assert!(quantile(&gaps, 1.0) <= 3.0, "{figures}");
    Outcome::Figures(figures)
}

fn first_name(register: usize) -> String {
    format!("register-{register}")
}

/// A node that joined and was never started: its name is a replicated register. Gives its id.
fn register(at: &Machine, i: usize) -> String {
    let token = token(at, "rack", &first_name(i));
    let joined = Machine::empty().json(&["join", &token, "--coordinator", &at.quic()]);
    joined["node"].as_str().expect("an id").to_owned()
}

impl Shared {
    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Reads or writes until the stop, at another coordinator after every failure.
    fn client(&self, number: usize) {
        let mut machine = number % self.machines.len();
        let mut turn = number;
        while !self.stop.load(Ordering::Relaxed) {
            turn += 1;
            let register = turn % REGISTERS;
            let asked = self.now();
            let (write, value, outcome) = if number < WRITERS {
                let value = format!("value-{}", self.next.fetch_add(1, Ordering::Relaxed));
                let answer = self.ask(machine, "PATCH", register, &json!({ "name": value }));
                (true, value, judged(&answer))
            } else {
                let answer = self.ask(machine, "GET", register, &Value::Null);
                let value = answer
                    .as_ref()
                    .ok()
                    .and_then(|(_, node)| node["name"].as_str())
                    .unwrap_or_default();
                (false, value.to_owned(), judged(&answer))
            };
            let operation = Operation {
                write,
                value,
                asked,
                answered: self.now(),
                outcome,
            };
            if outcome != Done::Done {
                machine = (machine + 1) % self.machines.len();
                std::thread::sleep(Duration::from_millis(10));
            }
            if write || outcome == Done::Done {
                self.history.lock().unwrap().push((register, operation));
            }
        }
    }

    fn ask(
        &self,
        machine: usize,
        method: &str,
        register: usize,
        body: &Value,
    ) -> std::io::Result<(u16, Value)> {
        let path = format!("/admin/v1/nodes/{}", self.registers[register]);
        // Not held while the answer is waited for: the machine may be killed meanwhile.
        let socket = self.machines[machine].read().unwrap().admin_socket();
        pomona_tests::admin_at(&socket, method, &path, body)
    }

    /// Kills the leader, waits for a write to be acknowledged, starts it anew. Gives the seconds
    /// from the kill to the first acknowledged write that began after it.
    fn kill_leader(&self) -> f64 {
        let leader = self.leader();
        let killed = self.now();
        self.machines[leader].write().unwrap().kill();
        let mut first = None;
        eventually("somebody can write", SOON, || {
            let history = self.history.lock().unwrap();
            let recent = history.iter().rev().take(2000).map(|(_, op)| op);
            let after = recent.filter(|op| {
                op.write && op.outcome == Done::Done && op.answered > killed && op.asked > killed
            });
            first = after.map(|op| op.answered).min();
            first.is_some()
        });
        self.machines[leader].write().unwrap().start_coordinator();
        for machine in &self.machines {
            eventually("all are back", SOON, || is_whole(&machine.read().unwrap(), 3));
        }
        (first.expect("a write") - killed) as f64 / 1e6
    }

    fn leader(&self) -> usize {
        let mut found = 0;
        eventually("somebody leads", SOON, || {
            let leads = |machine: &RwLock<Machine>| status(&machine.read().unwrap())["raft"]["leads"] == true;
            self.machines
                .iter()
                .position(leads)
                .inspect(|at| found = *at)
                .is_some()
        });
        found
    }
}

/// What an answer says of what was asked.
fn judged(answer: &std::io::Result<(u16, Value)>) -> Done {
    match answer {
        Ok((200, _)) => Done::Done,
        Ok((503, body))
            if body["error"]
                .as_str()
                .is_some_and(|why| why.contains("nothing was changed")) =>
        {
            Done::Failed
        }
        Ok((503, _)) => Done::Unknown,
        Ok((code, body)) => panic!("{code}: {body}"),
        // Nobody was there to ask.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound
            ) =>
        {
            Done::Failed
        }
        Err(_) => Done::Unknown,
    }
}
