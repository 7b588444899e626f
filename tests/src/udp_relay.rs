//! A hop between two machines: a small UDP relay that delays, loses, cuts one direction, and changes
//! the address that the far end sees, as a NAT does. It runs in a process of its own, because hosts
//! are network namespaces, and is told what to do on its standard input.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Random;
use crate::lan::Errand;

/// The word by which a test program knows that it is to be the relay.
pub const ARGUMENT: &str = "--udp-relay";
/// Datagrams that are under way in one direction; more are lost, as in a router.
const QUEUE: usize = 4096;
/// Clients whose packets are passed on.
const CLIENTS: usize = 64;

/// What happens to datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Hop {
    delay: Duration,
    /// In percent.
    loss: u64,
    /// No datagram gets to the target.
    cut_up: bool,
    /// None comes back.
    cut_down: bool,
}

impl Hop {
    fn loses(&self, up: bool, random: &mut Random) -> bool {
        let cut = if up { self.cut_up } else { self.cut_down };
        cut || random.between(0, 100) < self.loss
    }
}

/// A relay that another process is; it ends with the value.
pub struct UdpRelay(Errand);

impl UdpRelay {
    /// Starts this very program as a relay on a host.
    pub fn start(host: &str, listens: &str, target: &str) -> Self {
        Self(Errand::start(host, &[ARGUMENT, listens, target]))
    }

    /// Tells it: `delay MS`, `loss PERCENT`, `cut up|down|none`, `rebind`.
    pub fn tell(&mut self, command: &str) {
        writeln!(self.0.input(), "{command}").expect("the relay runs");
    }
}

struct Shared {
    hop: Mutex<Hop>,
    random: Mutex<Random>,
    /// The sockets that the target sees, by client.
    upstream: Mutex<BTreeMap<SocketAddr, Arc<UdpSocket>>>,
}

/// Is the relay until standard input ends: `listens` and `target` are addresses.
pub fn run(listens: &str, target: &str) {
    let socket = Arc::new(UdpSocket::bind(listens).expect("the relay's port"));
    let target: SocketAddr = target.parse().expect("the relay's target");
    let shared = Arc::new(Shared {
        hop: Mutex::default(),
        random: Mutex::new(Random::new(1)),
        upstream: Mutex::default(),
    });
    let passes = shared.clone();
    std::thread::spawn(move || pass_up(&socket, target, &passes));
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let mut hop = lock(&shared.hop);
        match words[..] {
            ["delay", ms] => hop.delay = Duration::from_millis(ms.parse().expect("milliseconds")),
            ["loss", percent] => hop.loss = percent.parse().expect("percent"),
            ["cut", which] => (hop.cut_up, hop.cut_down) = (which == "up", which == "down"),
            // The next datagram of each client leaves by a port of its own.
            ["rebind"] => lock(&shared.upstream).clear(),
            _ => panic!("the relay does not know `{line}`"),
        }
    }
}

/// Takes datagrams from clients; each client has a socket toward the target.
fn pass_up(socket: &Arc<UdpSocket>, target: SocketAddr, shared: &Arc<Shared>) {
    let due = queue(|bytes, upstream: &Arc<UdpSocket>| {
        let _ = upstream.send(bytes);
    });
    let mut buffer = vec![0; 65_536];
    while let Ok((len, client)) = socket.recv_from(&mut buffer) {
        let hop = *lock(&shared.hop);
        if hop.loses(true, &mut lock(&shared.random)) {
            continue;
        }
        let known = lock(&shared.upstream).get(&client).cloned();
        let upstream = known.unwrap_or_else(|| open(socket, client, target, shared));
        let _ = due.try_send((Instant::now() + hop.delay, buffer[..len].to_vec(), upstream));
    }
}

/// A new socket toward the target for a client, and who passes its answers back.
fn open(
    socket: &Arc<UdpSocket>,
    client: SocketAddr,
    target: SocketAddr,
    shared: &Arc<Shared>,
) -> Arc<UdpSocket> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let upstream = Arc::new(UdpSocket::bind(any).expect("a port"));
    upstream.connect(target).expect("the target");
    let mut open = lock(&shared.upstream);
    assert!(open.len() < CLIENTS, "more than {CLIENTS} clients");
    open.insert(client, upstream.clone());
    let (back, from, shared) = (socket.clone(), upstream.clone(), shared.clone());
    std::thread::spawn(move || {
        let due = queue(move |bytes, client: &SocketAddr| {
            let _ = back.send_to(bytes, client);
        });
        let mut buffer = vec![0; 65_536];
        loop {
            // Nobody listens there for a moment: that is told by an error, and passes.
            let Ok(len) = from.recv(&mut buffer) else {
                continue;
            };
            let hop = *lock(&shared.hop);
            if !hop.loses(false, &mut lock(&shared.random)) {
                let _ = due.try_send((Instant::now() + hop.delay, buffer[..len].to_vec(), client));
            }
        }
    });
    upstream
}

/// A thread that hands datagrams over when they are due, in order.
fn queue<T: Send + 'static>(
    deliver: impl Fn(&[u8], &T) + Send + 'static,
) -> SyncSender<(Instant, Vec<u8>, T)> {
    let (sender, receiver): (_, Receiver<(Instant, Vec<u8>, T)>) = sync_channel(QUEUE);
    std::thread::spawn(move || {
        for (at, bytes, to) in receiver {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            deliver(&bytes, &to);
        }
    });
    sender
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
