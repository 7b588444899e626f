//! The one place that turns failures into HTTP: status, OpenAI envelope, stable code.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use pomona_common::Failure;
use pomona_common::failure::InvalidCode;
use pomona_keys::Denied;
use serde_json::{Value, json};

/// Why a request is not answered.
#[derive(Debug)]
pub(crate) enum Refusal {
    Failed(Failure),
    Denied(Denied),
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Refusal::Failed(failure)
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Refusal::Denied(denied)
    }
}

/// Status, `type` and `code` of a failure.
fn classify(failure: &Failure) -> (StatusCode, &'static str, &'static str) {
    match failure {
        Failure::Invalid {
            code: InvalidCode::BodyTooLarge,
            ..
        } => (
            StatusCode::PAYLOAD_TOO_LARGE,
            "invalid_request_error",
            "request_too_large",
        ),
        Failure::Invalid { code, .. } => (StatusCode::BAD_REQUEST, "invalid_request_error", code.as_str()),
        Failure::UnknownModel { .. } => (StatusCode::NOT_FOUND, "invalid_request_error", "model_not_found"),
        Failure::TooLarge { .. } => (
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "kv_budget_exceeded",
        ),
        Failure::ModelNotLoaded { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable_error",
            "model_not_loaded",
        ),
        Failure::Overloaded { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "overloaded"),
        Failure::EngineLost => (
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable_error",
            "engine_lost",
        ),
        Failure::NodeLost => (
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable_error",
            "node_lost",
        ),
        Failure::TimedOut { .. } => (StatusCode::REQUEST_TIMEOUT, "timeout_error", "request_timeout"),
        Failure::NoCloud { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable_error",
            "no_cloud",
        ),
        Failure::CloudLost { .. } => (StatusCode::BAD_GATEWAY, "service_unavailable_error", "cloud_lost"),
        Failure::Internal { .. } => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            "internal_error",
        ),
    }
}

/// The stable code of a failure.
pub(crate) fn code(failure: &Failure) -> &'static str {
    classify(failure).2
}

/// The OpenAI envelope.
pub(crate) fn envelope(failure: &Failure) -> Value {
    let (_, kind, code) = classify(failure);
    let parameter = match failure {
        Failure::Invalid { parameter, .. } => parameter.as_deref(),
        Failure::UnknownModel { .. } => Some("model"),
        _ => None,
    };
    body(&failure.to_string(), kind, parameter, code)
}

fn body(message: &str, kind: &str, parameter: Option<&str>, code: &str) -> Value {
    json!({ "error": { "message": message, "type": kind, "param": parameter, "code": code } })
}

/// A whole response.
pub(crate) fn response(failure: &Failure) -> Response<Body> {
    let (status, _, _) = classify(failure);
    let mut response = json_response(status, &envelope(failure));
    if let Failure::Overloaded { retry_after_s, .. } = failure {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_s));
    }
    response
}

/// A whole response, for whoever holds the key or shows none.
pub(crate) fn denied(denied: &Denied) -> Response<Body> {
    let (status, kind, code) = match denied {
        Denied::Missing => (
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "missing_api_key",
        ),
        Denied::Invalid => (
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "invalid_api_key",
        ),
        Denied::Model(_) => (StatusCode::FORBIDDEN, "permission_error", "model_not_allowed"),
        Denied::Class(_) => (StatusCode::FORBIDDEN, "permission_error", "class_not_allowed"),
        Denied::Limited { .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "rate_limit_exceeded",
        ),
        Denied::TooMuch { .. } => (
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "key_limit_exceeded",
        ),
    };
    let parameter = matches!(denied, Denied::Model(_)).then_some("model");
    let mut response = json_response(status, &body(&denied.to_string(), kind, parameter, code));
    let headers = response.headers_mut();
    if let Denied::Limited { retry_after_s, .. } = denied {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after_s));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// A response for what no route answers.
pub(crate) fn plain(status: StatusCode, code: &'static str, message: &str) -> Response<Body> {
    json_response(status, &body(message, "invalid_request_error", None, code))
}

/// JSON with a status.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
