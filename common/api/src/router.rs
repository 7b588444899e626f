//! The route table: the only place that exposes a path.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::StreamExt;
use pomona_common::failure::InvalidCode;
use pomona_common::{Failure, limits};
use serde_json::{Value, json};

use crate::access::Caller;
use crate::backend::Backend;
use crate::completions::complete;
use crate::request::Kind;
use crate::{error, metrics, stats};

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteRow {
    /// Method.
    pub method: &'static str,
    /// Path.
    pub path: &'static str,
    /// Who may call it without a key: [`EVERYBODY`], or callers of a loopback bind.
    pub open_to: &'static str,
    /// What it does beyond reading.
    pub effect: &'static str,
}

/// See [`RouteRow::open_to`].
const EVERYBODY: &str = "everybody";

/// Every path of `/v1` and its neighbours.
pub const ROUTES: &[RouteRow] = &[
    RouteRow {
        method: "GET",
        path: "/healthz",
        open_to: EVERYBODY,
        effect: "none",
    },
    RouteRow {
        method: "GET",
        path: "/metrics",
        open_to: "loopback",
        effect: "none",
    },
    RouteRow {
        method: "GET",
        path: "/v1/ready",
        open_to: "loopback",
        effect: "none",
    },
    RouteRow {
        method: "GET",
        path: "/v1/models",
        open_to: "loopback",
        effect: "none",
    },
    RouteRow {
        method: "GET",
        path: "/v1/models/{*id}",
        open_to: "loopback",
        effect: "none",
    },
    RouteRow {
        method: "GET",
        path: "/v1/batch/stats",
        open_to: "loopback",
        effect: "none",
    },
    RouteRow {
        method: "POST",
        path: "/v1/chat/completions",
        open_to: "loopback",
        effect: "generates",
    },
    RouteRow {
        method: "POST",
        path: "/v1/completions",
        open_to: "loopback",
        effect: "generates",
    },
];

/// The routes over a backend.
pub fn router<B: Backend>(backend: Arc<B>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/metrics", get(metrics_text::<B>))
        .route("/v1/ready", get(ready::<B>))
        .route("/v1/models", get(models::<B>))
        .route("/v1/models/{*id}", get(model::<B>))
        .route("/v1/batch/stats", get(batch_stats::<B>))
        .route("/v1/chat/completions", post(chat::<B>))
        .route("/v1/completions", post(text::<B>))
        .method_not_allowed_fallback(|| async {
            error::plain(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this path has other methods",
            )
        })
        .fallback(|| async {
            error::plain(
                StatusCode::NOT_FOUND,
                "not_found",
                "no such path; see `GET /v1/models` for a start",
            )
        })
        .layer(middleware::from_fn_with_state(backend.clone(), identify::<B>))
        .layer(middleware::from_fn_with_state(backend.clone(), guard::<B>))
        .with_state(backend)
}

/// Finds out who asks, before anything else is read. What is open to everybody is not asked for a key.
async fn identify<B: Backend>(
    State(backend): State<Arc<B>>,
    mut request: Request,
    next: Next,
) -> Response<Body> {
    let path = request.uri().path();
    let is_open = ROUTES
        .iter()
        .any(|row| row.path == path && row.open_to == EVERYBODY);
    let caller = if is_open {
        Ok(Caller::default())
    } else {
        backend.access().caller(request.headers())
    };
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => error::denied(&denied),
    }
}

/// Keeps browsers' pages of other sites away: a cross-site request is refused, and the `Host` must be this
/// machine where no key is needed (DNS rebinding, CVE-2024-28224).
async fn guard<B: Backend>(State(backend): State<Arc<B>>, request: Request, next: Next) -> Response<Body> {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text("host").unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.bytes().all(|b| b.is_ascii_digit()) {
            name
        } else {
            host
        }
    });
    let is_here = matches!(name, "localhost" | "127.0.0.1" | "[::1]" | "");
    if !is_here && !backend.access().is_required() {
        return error::plain(
            StatusCode::FORBIDDEN,
            "host_not_allowed",
            "this endpoint answers to localhost only",
        );
    }
    if text("sec-fetch-site") == Some("cross-site") {
        return error::plain(
            StatusCode::FORBIDDEN,
            "cross_site",
            "requests of web pages are refused",
        );
    }
    if request.uri().to_string().len() > limits::URI_BYTES {
        return error::plain(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            "the request target is too long",
        );
    }
    next.run(request).await
}

async fn chat<B: Backend>(
    State(backend): State<Arc<B>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    generate(&backend, Kind::Chat, &caller, &headers, body).await
}

async fn text<B: Backend>(
    State(backend): State<Arc<B>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    generate(&backend, Kind::Text, &caller, &headers, body).await
}

async fn generate<B: Backend>(
    backend: &Arc<B>,
    kind: Kind,
    caller: &Caller,
    headers: &HeaderMap,
    body: Body,
) -> Response<Body> {
    match read_body(body).await {
        Ok(body) => complete(backend, kind, caller, headers, body).await,
        Err(failure) => error::response(&failure),
    }
}

/// Reads a body within its limits of size and time. What is over the size is read and dropped,
/// up to a bound: a client that is still writing would not see the answer.
async fn read_body(body: Body) -> Result<Bytes, Failure> {
    let limit_s = limits::BODY_READ_TIMEOUT.as_secs();
    let read = async {
        let mut stream = body.into_data_stream();
        let mut bytes = Vec::new();
        let mut dropped = 0;
        while let Some(part) = stream.next().await {
            let Ok(part) = part else {
                return Err("the body is cut off".to_owned());
            };
            if bytes.len() + part.len() <= limits::CHAT_BODY_BYTES && dropped == 0 {
                bytes.extend_from_slice(&part);
                continue;
            }
            dropped += part.len();
            if dropped > limits::DRAIN_BYTES {
                break;
            }
        }
        if dropped > 0 {
            return Err(format!(
                "the body is larger than {} bytes",
                limits::CHAT_BODY_BYTES
            ));
        }
        Ok(Bytes::from(bytes))
    };
    let read = tokio::time::timeout(limits::BODY_READ_TIMEOUT, read).await;
    read.map_err(|_| Failure::TimedOut { limit_s })?
        .map_err(|message| Failure::invalid("", InvalidCode::BodyTooLarge, message))
}

/// The models that the caller may ask for.
async fn models<B: Backend>(
    State(backend): State<Arc<B>>,
    Extension(caller): Extension<Caller>,
) -> Response<Body> {
    let models = backend.models();
    let allowed = models.iter().filter(|model| caller.may_ask(&model.name).is_ok());
    let data: Vec<Value> = allowed.map(model_json).collect();
    error::json_response(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

async fn model<B: Backend>(
    State(backend): State<Arc<B>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Response<Body> {
    match backend.model(&id) {
        Some(record) => match caller.may_ask(&record.name) {
            Ok(()) => error::json_response(StatusCode::OK, &model_json(&record)),
            Err(denied) => error::denied(&denied),
        },
        None => error::response(&Failure::unknown_model(&id)),
    }
}

fn model_json(record: &pomona_common::ModelRecord) -> Value {
    json!({
        "id": record.name,
        "object": "model",
        "created": record.created_s,
        "owned_by": "pomona",
        "context_window": record.context,
    })
}

async fn ready<B: Backend>(State(backend): State<Arc<B>>) -> Response<Body> {
    let failing = backend.not_ready();
    let status = if failing.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({ "ready": failing.is_empty(), "failing": failing, "loaded": backend.loaded() });
    error::json_response(status, &body)
}

async fn batch_stats<B: Backend>(State(backend): State<Arc<B>>) -> Response<Body> {
    error::json_response(StatusCode::OK, &stats::batch_stats(&backend.reports()))
}

async fn metrics_text<B: Backend>(State(backend): State<Arc<B>>) -> Response<Body> {
    let mut response = Response::new(Body::from(metrics::render(
        &backend.reports(),
        backend.entry_stats(),
        backend.usage().lost(),
    )));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
