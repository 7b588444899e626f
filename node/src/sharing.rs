//! What a member of a cluster runs so that weights come and go.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pomona_cluster_config::Config;
use pomona_common::NodeId;
use pomona_link::{CERTIFICATE_LIFE, Endpoint, LinkError, Pace};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::credentials::Credentials;
use crate::fetcher::Fetcher;
use crate::giver::Giver;
use crate::neighbours::Neighbours;
use crate::store::Store;
use crate::supervisor::Supervisor;
use crate::vault::Vault;
use crate::weights::WeightsServer;

/// How often is looked whether the sessions have renewed the certificate.
const LOOK: Duration = Duration::from_secs(20);

/// See the module's documentation.
pub(crate) struct Sharing {
    pub(crate) fetcher: Fetcher,
    pub(crate) giver: Giver,
    /// Nodes that were seen on the LAN.
    pub(crate) neighbours: Neighbours,
    /// Nodes that are given weights.
    pub(crate) members: watch::Sender<Arc<BTreeSet<NodeId>>>,
    /// Port on which they are.
    pub(crate) port: u16,
}

impl Sharing {
    /// Opens the port, and starts to serve and to fetch.
    ///
    /// # Errors
    /// The port is taken, or the certificate is unusable.
    pub(crate) fn start(
        config: &Config,
        id: NodeId,
        credentials: &Arc<Credentials>,
        (store, models, vault): (&Store, PathBuf, Arc<Vault>),
        supervisor: &Supervisor,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<Self, LinkError> {
        let endpoint = Arc::new(Endpoint::server(config.node_quic, credentials.identity(id)?)?);
        let port = endpoint.local_address()?.port();
        let view = supervisor.view();
        let pace = Pace::new(move || {
            let view = view.borrow();
            let classes = view.report.iter().flat_map(|report| report.classes.values());
            classes
                .into_iter()
                .any(|class| class.running > 0 || class.waiting > 0)
        });
        let (members, reader) = watch::channel(Arc::default());
        let neighbours = Neighbours::new(id, reader.clone());
        let server = WeightsServer::new(endpoint.clone(), store.clone(), pace.clone(), reader);
        let server = Arc::new(server);
        tasks.spawn(server.clone().run(stop.clone()));
        let giver = Giver::start(id, credentials.clone(), server, tasks, stop.clone());
        tasks.spawn(renew(endpoint, id, credentials.clone(), stop.clone()));
        let place = (models, vault);
        let near = neighbours.clone();
        let fetcher = Fetcher::start(id, place, near, credentials.clone(), pace, tasks, stop.clone());
        Ok(Self {
            fetcher,
            giver,
            neighbours,
            members,
            port,
        })
    }
}

/// The port shows the certificate that the sessions have: one that a late renewal gave as well.
async fn renew(endpoint: Arc<Endpoint>, id: NodeId, credentials: Arc<Credentials>, stop: CancellationToken) {
    let mut shown = String::new();
    let mut issued = pomona_clocks::wall();
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.cancelled() => return,
        }
        let now = pomona_clocks::wall();
        let is_young = now
            .duration_since(issued)
            .is_ok_and(|age| age < CERTIFICATE_LIFE / 2);
        if credentials.are_fresh() && is_young {
            continue;
        }
        let renewed = credentials.identity(id).and_then(|identity| {
            if identity.certificate_pem() != shown {
                identity.certificate_pem().clone_into(&mut shown);
                issued = now;
                endpoint.renew(identity)?;
            }
            Ok(())
        });
        if let Err(error) = renewed {
            tracing::error!(%error, "certificate of the weights port not renewed");
        }
    }
}
