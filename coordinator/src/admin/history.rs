//! `GET /admin/v1/history/SERIES/SECONDS`: what the nodes reported over time.

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use pomona_decide::Series;
use serde_json::{Map, Value, json};

use super::{Admin, Answer, Asked, reply};

pub(super) fn routes() -> Router<Admin> {
    Router::new().route("/admin/v1/history/{series}/{span_s}", get(history))
}

async fn history(admin: Asked, Path((series, span_s)): Path<(String, u64)>) -> Answer {
    let series: Series = match series.parse() {
        Ok(series) => series,
        Err(why) => return reply(StatusCode::BAD_REQUEST, &json!({ "error": why })),
    };
    let collector = &admin.backend.sessions.collector;
    let nodes: Map<String, Value> = collector
        .points(series, span_s)
        .into_iter()
        .map(|(node, points)| {
            let points = points
                .iter()
                .map(|point| json!([point.age_s, point.step_s, point.mean, point.max]))
                .collect();
            (node.to_string(), Value::Array(points))
        })
        .collect();
    let body = json!({
        "series": series.name(),
        "fields": ["age_s", "step_s", "mean", "max"],
        "nodes": nodes,
        "bytes": collector.bytes(),
    });
    reply(StatusCode::OK, &body)
}
