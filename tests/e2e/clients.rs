//! Clients that people use: the `openai` package, and curl.

use std::process::Command;

use pomona_tests::{Cluster, MODEL, root};

#[test]
fn the_openai_package_and_curl_are_served() {
    let _lock = super::engine_lock();
    let cluster = Cluster::start("mlx");
    let make = |arguments: &[&str]| {
        let made = cluster.json(&[&["key", "create"], arguments].concat());
        made["key"].as_str().unwrap().to_owned()
    };
    let key = make(&["helpers", "--class", "background"]);
    let hasty = make(&["hasty", "--limit", "rpm=1"]);
    match std::env::var_os("POMONA_TEST_CLIENTS") {
        Some(packages) => {
            let output = Command::new("python3")
                .arg(root().join("tests/e2e/openai_client.py"))
                .args([cluster.base(), MODEL.to_owned(), key, hasty])
                .env("PYTHONPATH", packages)
                .output()
                .expect("python3");
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && text.contains("all good"),
                "{text}{errors}"
            );
        }
        None => {
            assert!(
                std::env::var_os("CI").is_none(),
                "in CI the openai package must be there"
            );
            println!("SKIPPED openai client: POMONA_TEST_CLIENTS is not set, run `cargo xtask test`");
        }
    }
    let body = format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"What is the capital of France?"}}],"temperature":0,"stream":true}}"#
    );
    let output = Command::new("curl")
        .args([
            "-sN",
            "--noproxy",
            "*",
            &format!("{}/chat/completions", cluster.base()),
            "-d",
            &body,
        ])
        .output();
    match output {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(
                text.contains("Paris") && text.ends_with("data: [DONE]\n\n"),
                "{text}"
            );
        }
        Err(error) => println!("SKIPPED curl: {error}"),
    }
}
