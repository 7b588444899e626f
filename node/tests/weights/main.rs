//! Weights from node to node: several sources, damage, interruption, strangers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

mod site;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pomona_common::ModelRecord;
use pomona_link::Pace;
use pomona_node::weights::{FetchError, Givers, fetch};
use site::{Cluster, MODEL, Site, big_model};

const MIB: usize = 1 << 20;

async fn get(cluster: &Cluster, to: &Site, record: &ModelRecord, from: &[&Site]) -> Result<(), FetchError> {
    let givers = Givers::Nodes(from.iter().map(|site| site.address).collect());
    let pace = Pace::new(|| false);
    fetch(
        to.models(),
        record,
        &givers,
        &cluster.identity(to.id),
        &pace,
        |_, _| (),
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_comes_from_several_nodes_and_is_the_same() {
    let cluster = Cluster::new();
    let (a, b, to) = (cluster.site(1), cluster.site(2), cluster.site(3));
    let record = big_model(&a, 40 * MIB);
    assert_eq!(big_model(&b, 40 * MIB).digests, record.digests);
    a.has_scanned().await;
    b.has_scanned().await;
    get(&cluster, &to, &record, &[&a, &b]).await.unwrap();
    to.has_scanned().await;
    assert_eq!(to.records()[0].digests, record.digests);
    assert!(to.leftovers().is_empty(), "{:?}", to.leftovers());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_source_is_left_and_the_other_one_completes() {
    let cluster = Cluster::new();
    let (damaged, sound, to) = (cluster.site(1), cluster.site(2), cluster.site(3));
    let record = big_model(&damaged, 40 * MIB);
    big_model(&sound, 40 * MIB);
    damaged.has_scanned().await;
    sound.has_scanned().await;
    damaged.damage();
    // Every attempt brings something, or says that nobody gives it: others are asked then.
    for attempt in 1.. {
        match get(&cluster, &to, &record, &[&damaged]).await {
            Err(FetchError::Broken(_, why)) if why.contains("digest") && attempt < 10 => {}
            Err(FetchError::NoSource(_, why)) if why.contains("digest") => break,
            other => panic!("attempt {attempt}: {other:?}"),
        }
    }
    get(&cluster, &to, &record, &[&damaged, &sound]).await.unwrap();
    to.has_scanned().await;
    assert_eq!(to.records()[0].digests, record.digests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_fetch_goes_on_where_it_stopped() {
    let cluster = Cluster::new();
    let (from, to) = (cluster.site(1), cluster.site(2));
    let record = big_model(&from, 80 * MIB);
    from.has_scanned().await;
    let (done, first) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let count = done.clone();
    let identity = cluster.identity(to.id);
    // Busy, so that there is time to interrupt it.
    let busy = Pace::new(|| true);
    let givers = Givers::Nodes(vec![from.address]);
    let fetching = fetch(
        to.models(),
        &record,
        &givers,
        &identity,
        &busy,
        move |bytes, _| {
            count.store(bytes, Ordering::Relaxed);
        },
    );
    let some_came = async {
        // More than the first chunk of an attempt that begins anew.
        while done.load(Ordering::Relaxed) < 8 * MIB as u64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        ended = fetching => panic!("too fast: {ended:?}"),
        () = some_came => {}
    }
    let before = done.load(Ordering::Relaxed);

    let start = first.clone();
    let idle = Pace::new(|| false);
    fetch(
        to.models(),
        &record,
        &givers,
        &identity,
        &idle,
        move |bytes, _| {
            let _ = start.compare_exchange(0, bytes, Ordering::Relaxed, Ordering::Relaxed);
        },
    )
    .await
    .unwrap();
    assert!(first.load(Ordering::Relaxed) > before, "it began anew");
    to.has_scanned().await;
    assert_eq!(to.records()[0].digests, record.digests);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_nothing_and_other_contents_are_not_kept() {
    let cluster = Cluster::new();
    let (from, to) = (cluster.site(1), cluster.site(2));
    let record = big_model(&from, 9 * MIB);
    from.has_scanned().await;
    let mut other = record.clone();
    other.digests.weights = "0".repeat(64);
    let refused = get(&cluster, &to, &other, &[&from]).await;
    assert!(matches!(refused, Err(FetchError::OtherContents(name)) if name == MODEL));
    assert!(to.records().is_empty() && to.leftovers().is_empty());
    // Whoever is shut out has a certificate for a while, and gets nothing with it.
    from.members.send_replace(Arc::new([from.id].into()));
    let refused = get(&cluster, &to, &record, &[&from]).await;
    assert!(matches!(&refused, Err(FetchError::NoSource(..))), "{refused:?}");
    // A node of another cluster does not even get in.
    let stranger = Cluster::new();
    from.members.send_replace(Arc::new([from.id, to.id].into()));
    let refused = get(&stranger, &to, &record, &[&from]).await;
    assert!(
        matches!(&refused, Err(FetchError::NoSource(_, why)) if why.contains("reach")),
        "{refused:?}"
    );
}
