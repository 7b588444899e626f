//! A machine that shows no certificate: it asks one thing and is answered once. Both ends of it, for
//! joining and for renewing.

use std::net::SocketAddr;
use std::time::Duration;

use pomona_common::{ClusterId, limits};
use pomona_wire::Message;

use crate::endpoint::{any_port_toward, client_socket, connect};
use crate::identity::Role;
use crate::session::{FrameReceiver, FrameSender, closed};
use crate::{LinkError, farewell};

/// The whole exchange takes at most this long.
pub(crate) const EXCHANGE: Duration = Duration::from_secs(10);
/// Who comes sends its request at once.
const REQUEST: Duration = Duration::from_secs(2);

/// The end of the machine.
pub(crate) struct Visit {
    endpoint: quinn::Endpoint,
    pub(crate) connection: quinn::Connection,
}

impl Visit {
    /// Dials a coordinator of a cluster.
    pub(crate) async fn dial(
        address: SocketAddr,
        config: quinn::ClientConfig,
        cluster: ClusterId,
    ) -> Result<Self, LinkError> {
        let endpoint = client_socket(any_port_toward(address))?;
        let server_name = Role::Coordinator(0).server_name(cluster);
        let connection = connect(&endpoint, config, address, &server_name).await?;
        Ok(Self { endpoint, connection })
    }

    /// Sends the request and gives the answer.
    pub(crate) async fn ask<Q: Message, A: Message>(&self, request: &Q) -> Result<A, LinkError> {
        let (send, receive) = self.connection.open_bi().await.map_err(closed)?;
        let (mut send, mut receive) = (FrameSender::new(send, 1), FrameReceiver::new(receive));
        send.send(request).await?;
        send.finish();
        receive.expect(EXCHANGE).await
    }

    /// Says that the answer is here.
    pub(crate) async fn end(self) {
        farewell::close(&self.connection, 0, b"done");
        self.endpoint.wait_idle().await;
    }
}

/// The end of the coordinator.
pub(crate) struct Visitor {
    connection: quinn::Connection,
}

impl Visitor {
    pub(crate) fn new(connection: quinn::Connection) -> Self {
        // One small request is all that it may send.
        connection.set_max_concurrent_bi_streams(1u32.into());
        connection.set_receive_window((limits::JOIN_FRAME_BYTES as u32).into());
        Self { connection }
    }

    /// Reads the request, lets `decide` answer it with the session's exporter, sends the answer;
    /// the session is closed with `ended` as the reason.
    pub(crate) async fn serve<Q: Message, A: Message, F: Future<Output = A>>(
        self,
        (label, ended): (&[u8], &[u8]),
        decide: impl FnOnce(Q, [u8; 32]) -> F,
    ) -> Result<(), LinkError> {
        let exchange = async {
            let (send, receive) = tokio::time::timeout(REQUEST, self.connection.accept_bi())
                .await
                .map_err(|_| LinkError::Deadline(REQUEST))?
                .map_err(closed)?;
            let (mut send, mut receive) = (FrameSender::new(send, 1), FrameReceiver::new(receive));
            let request: Q = receive.expect(REQUEST).await?;
            let answer = decide(request, exporter(&self.connection, label)?).await;
            send.send(&answer).await?;
            send.finish();
            // The machine closes once it has the answer.
            self.connection.closed().await;
            Ok(())
        };
        let served = tokio::time::timeout(EXCHANGE, exchange).await;
        farewell::close(&self.connection, 1, ended);
        served.map_err(|_| LinkError::Deadline(EXCHANGE))?
    }
}

/// What binds a proof to one TLS session.
pub(crate) fn exporter(connection: &quinn::Connection, label: &[u8]) -> Result<[u8; 32], LinkError> {
    let mut secret = [0; 32];
    connection
        .export_keying_material(&mut secret, label, b"")
        .map_err(|_| LinkError::Closed("the session exports no key".into()))?;
    Ok(secret)
}
