//! Bad input: every case gets a 4xx in the OpenAI shape, nothing is a 5xx, nothing panics, and a
//! stream that runs meanwhile goes on to its end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs,
    reason = "a test"
)]

mod bodies;
mod sockets;

use std::io::{BufRead, BufReader};

use pomona_tests::{Cluster, agent, greedy};
use serde_json::Value;

use bodies::{Case, cases};

#[test]
fn every_bad_body_is_a_named_4xx_and_streams_go_on() {
    let cluster = Cluster::start("echo:20");
    let cases = cases();
    assert!(cases.len() >= 200, "{} cases", cases.len());
    let mut long = greedy("Go on.", 2000);
    long["stream"] = true.into();
    let response = agent()
        .post(format!("{}/chat/completions", cluster.base()))
        .send_json(&long)
        .unwrap();
    assert_eq!(response.status(), 200);
    let mut stream = BufReader::new(response.into_body().into_reader()).lines();

    let mut failures = Vec::new();
    for case in &cases {
        if let Err(problem) = check(&cluster, case) {
            failures.push(format!("{}: {problem}", case.name));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );

    let events = stream
        .by_ref()
        .take(50)
        .filter(|line| line.as_ref().is_ok_and(|l| l.starts_with("data: ")))
        .count();
    assert!(events >= 20, "the stream stopped");
    assert!(!cluster.log().contains("panicked"), "{}", cluster.log());
    assert_eq!(
        cluster.post("/v1/chat/completions", &greedy("Still there?", 2)).0,
        200
    );
}

fn check(cluster: &Cluster, case: &Case) -> Result<(), String> {
    let url = format!("http://127.0.0.1:{}{}", cluster.coordinator, case.path);
    let mut request = agent().post(url).header("content-type", "application/json");
    for (name, value) in &case.headers {
        request = request.header(*name, *value);
    }
    let mut response = request.send(&case.body[..]).map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let text = response
        .body_mut()
        .read_to_string()
        .map_err(|error| error.to_string())?;
    let body: Value =
        serde_json::from_str(&text).map_err(|_| format!("status {status}, not JSON: {text}"))?;
    let shown: String = text.chars().take(200).collect();
    if status != case.status {
        return Err(format!("status {status}, expected {}: {shown}", case.status));
    }
    let error = &body["error"];
    let shaped = error["message"]
        .as_str()
        .is_some_and(|message| !message.is_empty())
        && error["type"].is_string()
        && error["code"].is_string()
        && error.get("param").is_some();
    if !shaped {
        return Err(format!("not the OpenAI shape: {shown}"));
    }
    if !case.code.is_empty() && error["code"] != case.code {
        return Err(format!("code {}, expected {}", error["code"], case.code));
    }
    Ok(())
}
