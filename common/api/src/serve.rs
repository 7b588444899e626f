//! The HTTP server: bounds on connections, headers and patience.

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
use tokio_io_timeout::TimeoutStream;

/// How long running responses may go on after the stop.
const GRACE: Duration = Duration::from_secs(5);

/// A running server; dropping it cuts every connection.
#[derive(Debug)]
pub struct HttpServer {
    task: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl HttpServer {
    /// Serves `router` on connections that `listener` accepts.
    pub fn start(listener: TcpListener, router: Router) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(serve(listener, router, stopped));
        Self { task, stop }
    }

    /// Accepts no more, and comes back when all responses are finished or had five seconds.
    pub async fn stop(&mut self) {
        self.stop.send_replace(true);
        while self.task.join_next().await.is_some() {}
    }
}

async fn serve(listener: TcpListener, router: Router, stopped: watch::Receiver<bool>) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_READ_TIMEOUT)
        .max_buf_size(4 * limits::HEADER_BYTES)
        .max_headers(limits::HEADER_COUNT)
        .half_close(false);
    let permits = Arc::new(Semaphore::new(limits::HTTP_CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stop = stopped.clone();
    loop {
        let permit = tokio::select! {
            permit = permits.clone().acquire_owned() => permit,
            _ = stop.changed() => break,
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
            _ = stop.changed() => break,
        };
        while connections.try_join_next().is_some() {}
        // Small writes are the tokens of a stream: they must not wait for company.
        let _ = socket.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let mut socket = Box::pin(TimeoutStream::new(socket));
        // A client that stops reading: hyper's buffer is full, and nothing leaves any more.
        socket
            .as_mut()
            .set_write_timeout_pinned(Some(limits::IDLE_WRITE_TIMEOUT));
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
    let finish = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, finish).await.is_err() {
        connections.shutdown().await;
    }
}
