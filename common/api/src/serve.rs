//! The HTTP server: bounds on connections, headers and patience.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use pomona_common::limits;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// How long running responses may go on after the stop.
const GRACE: Duration = Duration::from_secs(5);

/// Why a server ends by itself.
#[derive(Debug, thiserror::Error)]
#[error("the listener failed")]
pub struct ServeError(#[source] io::Error);

/// Serves `router` until `stop` completes, then lets responses finish for a moment.
///
/// # Errors
/// The connection limit's semaphore is gone, which does not happen.
pub async fn serve_http(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_READ_TIMEOUT)
        .max_buf_size(4 * limits::HEADER_BYTES)
        .max_headers(limits::HEADER_COUNT)
        .half_close(false);
    let permits = Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS));
    let (stop_sender, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit.map_err(|error| ServeError(io::Error::other(error)))?,
            () = &mut stop => break,
        };
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of file descriptors, most likely: wait for some to close.
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        while connections.try_join_next().is_some() {}
        // Small writes are the tokens of a stream: they must not wait for company.
        let _ = socket.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(socket), service);
        let mut stopped = stopped.clone();
        connections.spawn(async move {
            let _permit = permit;
            tokio::pin!(connection);
            tokio::select! {
                // An error here is a client that went away or broke the protocol.
                _ = connection.as_mut() => return,
                _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
    stop_sender.send_replace(true);
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, finish).await.is_err() {
        connections.shutdown().await;
    }
    Ok(())
}
