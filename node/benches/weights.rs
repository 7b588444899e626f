//! A gigabyte from one node to another on loopback, against the same bytes on one plain stream of the
//! same QUIC. The last line is one JSON object.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark"
)]

#[path = "../tests/weights/site.rs"]
#[allow(dead_code, reason = "shared with the test")]
mod site;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pomona_link::Pace;
use pomona_link::{Accepted, Endpoint, Purpose};
use pomona_node::weights::{Givers, fetch};
use serde_json::json;
use site::{Cluster, big_model};

const BYTES: usize = 1 << 30;
const PIECE: usize = 4 << 20;
const ROUNDS: usize = 5;

/// Seconds of one stream: written in pieces, read into a buffer and forgotten.
async fn plain(cluster: &Cluster) -> f64 {
    let (from, to) = (
        pomona_common::NodeId::from_bits(1),
        pomona_common::NodeId::from_bits(2),
    );
    let server = Endpoint::server(([127, 0, 0, 1], 0).into(), cluster.identity(from)).unwrap();
    let address = server.local_address().unwrap();
    let mut sending = tokio::task::JoinSet::new();
    sending.spawn(async move {
        let Accepted::Session(session) = server.accept().await.unwrap().finish().await.unwrap() else {
            panic!("a member does not join");
        };
        let (mut send, mut receive) = session.accept().await.unwrap();
        let mut start = [0; 1];
        receive.fill(&mut start).await.unwrap();
        let piece = vec![7; PIECE];
        for _ in 0..BYTES / PIECE {
            send.send_bytes(&piece).await.unwrap();
        }
        send.finish();
        session.ended().await;
    });
    let client = Endpoint::client(([127, 0, 0, 1], 0).into(), cluster.identity(to)).unwrap();
    let session = client.dial(address, Purpose::Weights).await.unwrap();
    let (mut send, mut receive) = session.open().await.unwrap();
    let began = Instant::now();
    send.send_bytes(&[1]).await.unwrap();
    let mut buffer = vec![0; PIECE];
    for _ in 0..BYTES / PIECE {
        receive.fill(&mut buffer).await.unwrap();
    }
    let seconds = began.elapsed().as_secs_f64();
    session.close("done");
    sending.join_next().await.unwrap().unwrap();
    seconds
}

/// Seconds until every chunk is checked and written, and until the model is in its place.
async fn weights(cluster: &Cluster) -> (f64, f64) {
    let (from, to) = (cluster.site(1), cluster.site(2));
    let record = big_model(&from, BYTES);
    from.has_scanned().await;
    warm_memory(to.models());
    let there = Arc::new(Mutex::new(Duration::ZERO));
    let (seen, began) = (there.clone(), Instant::now());
    let progress = move |done: u64, total: u64| {
        if done == total {
            *seen.lock().unwrap() = began.elapsed();
        }
    };
    let givers = Givers::Nodes(vec![from.address]);
    let pace = Pace::new(|| false);
    fetch(
        to.models(),
        &record,
        &givers,
        &cluster.identity(to.id),
        &pace,
        progress,
    )
    .await
    .unwrap();
    let placed = began.elapsed().as_secs_f64();
    let there = there.lock().unwrap().as_secs_f64();
    (there, placed)
}

/// Writes and removes as many bytes as will come. A virtual machine may take seconds for the first
/// touch of a gigabyte of its memory, which says nothing about either side of the comparison.
fn warm_memory(folder: &std::path::Path) {
    let path = folder.join("warm.partial");
    std::fs::write(&path, vec![1; BYTES]).unwrap();
    std::fs::remove_file(path).unwrap();
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[tokio::main]
async fn main() {
    let cluster = Cluster::new();
    let (mut plains, mut there, mut placed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plains.push(plain(&cluster).await);
        let (fetched, done) = weights(&cluster).await;
        there.push(fetched);
        placed.push(done);
    }
    let rate = |samples: &[f64]| BYTES as f64 / 1e6 / median(samples);
    let figures = json!({
        "plain_stream_mb_s": rate(&plains),
        "weights_mb_s": rate(&there),
        "ratio": rate(&there) / rate(&plains),
        "until_in_place_mb_s": rate(&placed),
    });
    let raw = json!({ "bytes": BYTES, "plain_s": plains, "weights_s": there, "in_place_s": placed });
    println!(
        "{}",
        json!({ "figures": figures, "raw": raw, "ran": ["plain", "weights"], "skipped": [] })
    );
}
