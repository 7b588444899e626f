//! Somebody on the LAN who announces services that are not there, as fast as is asked. It runs in a
//! process of its own, because hosts are network namespaces.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use crate::Random;
use crate::lan::Errand;

/// The word by which a test program knows that it is to be the forger.
pub const ARGUMENT: &str = "--mdns-forger";
/// Seconds that a forged record is to be kept: the longest that anybody takes seriously.
const LIFE_S: u32 = 4500;

/// Starts this very program as a forger on a host; it ends with the value.
pub fn start(host: &str, cluster: &str, services_a_minute: u64) -> Errand {
    Errand::start(host, &[ARGUMENT, cluster, &services_a_minute.to_string()])
}

/// Is the forger, until it is ended.
pub fn run(cluster: &str, services_a_minute: u64) {
    // Answers come from the port of mDNS (RFC 6762, §6); nobody else is on this host.
    let socket = UdpSocket::bind("0.0.0.0:5353").expect("the port of mDNS");
    let mut random = Random::new(7);
    let began = Instant::now();
    for i in 0u64.. {
        let due = Duration::from_secs_f64(i as f64 * 60.0 / services_a_minute as f64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        let packet = service(cluster, i, random.draw());
        // A full queue loses one.
        let _ = socket.send_to(&packet, "224.0.0.251:5353");
    }
}

/// An answer with all four records of one service: it claims to be a coordinator of the cluster.
fn service(cluster: &str, i: u64, draw: u64) -> Vec<u8> {
    let kind = ["_pomona", "_udp", "local"];
    let instance = format!("coordinator-{i}-{draw:08x}");
    let host = format!("forged-{i}-{draw:08x}");
    let (instance, host) = (
        [instance.as_str(), kind[0], kind[1], kind[2]],
        [host.as_str(), "local"],
    );
    let mut packet = vec![0, 0, 0x84, 0, 0, 0, 0, 4, 0, 0, 0, 0];
    let mut record = |owner: &[&str], kind: u16, data: Vec<u8>| {
        packet.extend(name(owner));
        packet.extend(kind.to_be_bytes());
        packet.extend(1u16.to_be_bytes());
        packet.extend(LIFE_S.to_be_bytes());
        packet.extend((data.len() as u16).to_be_bytes());
        packet.extend(data);
    };
    record(&kind, 12, name(&instance));
    let port = 1024 + (draw % 60_000) as u16;
    record(
        &instance,
        33,
        [&[0, 0, 0, 0][..], &port.to_be_bytes(), &name(&host)].concat(),
    );
    let text = [
        "v=1".to_owned(),
        format!("cluster={cluster}"),
        format!("n={}", draw % 1_000_000),
    ];
    let text = text
        .iter()
        .flat_map(|part| [&[part.len() as u8], part.as_bytes()].concat());
    record(&instance, 16, text.collect());
    record(&host, 1, [&[10, 77], &(draw as u16).to_be_bytes()[..]].concat());
    packet
}

fn name(labels: &[&str]) -> Vec<u8> {
    let labels = labels
        .iter()
        .flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    labels.chain([0]).collect()
}
