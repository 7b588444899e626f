//! Nodes with a store and a weights server, in one process.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pomona_common::{ClusterId, ModelRecord, NodeId};
use pomona_link::{Authority, Endpoint, Identity, Pace, Role};
use pomona_node::store::{Store, write_record};
use pomona_node::weights::WeightsServer;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const MODEL: &str = "org/big";

pub(crate) struct Cluster {
    _folder: tempfile::TempDir,
    authority: Authority,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(folder.path(), ClusterId::from_bits(1)).unwrap();
        Self {
            _folder: folder,
            authority,
        }
    }

    pub(crate) fn identity(&self, id: NodeId) -> Identity {
        self.authority.issue(Role::Node(id)).unwrap()
    }

    /// A node that serves every node with an id below ten.
    pub(crate) fn site(&self, id: u128) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let id = NodeId::from_bits(id);
        let endpoint = Endpoint::server(([127, 0, 0, 1], 0).into(), self.identity(id)).unwrap();
        let address = endpoint.local_address().unwrap();
        let mut tasks = JoinSet::new();
        let stop = CancellationToken::new();
        let store = Store::open(folder.path().to_owned(), &mut tasks, stop.clone());
        let everybody: BTreeSet<NodeId> = (0..10).map(NodeId::from_bits).collect();
        let (members, reader) = watch::channel(Arc::new(everybody));
        let server = WeightsServer::new(Arc::new(endpoint), store.clone(), Pace::new(|| false), reader);
        tasks.spawn(Arc::new(server).run(stop));
        Site {
            folder,
            id,
            address,
            members,
            store,
            _tasks: tasks,
        }
    }
}

pub(crate) struct Site {
    folder: tempfile::TempDir,
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) members: watch::Sender<Arc<BTreeSet<NodeId>>>,
    store: Store,
    _tasks: JoinSet<()>,
}

impl Site {
    pub(crate) fn models(&self) -> &Path {
        self.folder.path()
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("org--big")
    }

    /// Waits until its store has noticed what is in the folder.
    pub(crate) async fn has_scanned(&self) {
        let mut models = self.store.models();
        let found = models.wait_for(|models| !models.is_empty());
        tokio::time::timeout(Duration::from_secs(20), found)
            .await
            .expect("a scan")
            .unwrap();
    }

    pub(crate) fn records(&self) -> Vec<ModelRecord> {
        self.store.models().borrow().to_vec()
    }

    /// What lies in the folder beside the model.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "org--big").collect()
    }

    /// Changes a byte of its weights behind everybody's back.
    pub(crate) fn damage(&self) {
        let file = File::options()
            .write(true)
            .open(self.model().join("model-2.safetensors"))
            .unwrap();
        file.write_all_at(b"!", 12_000_000).unwrap();
    }
}

/// The tiny model with a second shard of `bytes` that look random.
pub(crate) fn big_model(site: &Site, bytes: usize) -> ModelRecord {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("engine/tests/tiny/q4");
    let folder = site.model();
    fs::create_dir_all(&folder).unwrap();
    fs::copy(tiny.join("config.json"), folder.join("config.json")).unwrap();
    fs::copy(tiny.join("model.safetensors"), folder.join("model-1.safetensors")).unwrap();
    let tokenizer =
        r#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
    fs::write(folder.join("tokenizer.json"), tokenizer).unwrap();
    let header = format!(
        r#"{{"extra":{{"dtype":"F32","shape":[{}],"data_offsets":[0,{bytes}]}}}}"#,
        bytes / 4
    );
    let mut out = std::io::BufWriter::new(File::create(folder.join("model-2.safetensors")).unwrap());
    out.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    out.write_all(header.as_bytes()).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..bytes / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_le_bytes()).unwrap();
    }
    out.flush().unwrap();
    drop(out);
    write_record(&folder, MODEL.parse().unwrap(), &mut |_| ()).unwrap()
}
