//! The table of bad bodies.

use pomona_tests::MODEL;
use serde_json::{Value, json};

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) path: &'static str,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: Vec<u8>,
    pub(crate) status: u16,
    pub(crate) code: &'static str,
}

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    raw(&mut cases);
    fields(&mut cases);
    messages(&mut cases);
    prompts(&mut cases);
    models(&mut cases);
    headers(&mut cases);
    cases
}

fn case(name: impl Into<String>, path: &'static str, body: Vec<u8>, status: u16, code: &'static str) -> Case {
    Case {
        name: name.into(),
        path,
        headers: Vec::new(),
        body,
        status,
        code,
    }
}

fn chat(field: &str, value: Value) -> Vec<u8> {
    let mut body =
        json!({ "model": MODEL, "max_tokens": 2, "messages": [{ "role": "user", "content": "hi" }] });
    body[field] = value;
    body.to_string().into_bytes()
}

fn text(field: &str, value: Value) -> Vec<u8> {
    let mut body = json!({ "model": MODEL, "max_tokens": 2, "prompt": "hi" });
    body[field] = value;
    body.to_string().into_bytes()
}

/// Bytes that are not a JSON object.
fn raw(cases: &mut Vec<Case>) {
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let deep_but_parsed = format!("{{\"a\":{}1{}}}", "[".repeat(60), "]".repeat(60));
    let many: Vec<String> = (0..2000).map(|i| format!("\"k{i}\":0")).collect();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("empty", b"".to_vec()),
        ("space", b"   ".to_vec()),
        ("text", b"hello".to_vec()),
        ("open brace", b"{".to_vec()),
        ("close brace", b"}".to_vec()),
        ("null", b"null".to_vec()),
        ("number", b"42".to_vec()),
        ("string", b"\"{}\"".to_vec()),
        ("array", b"[]".to_vec()),
        ("true", b"true".to_vec()),
        ("single quotes", b"{'model':'x'}".to_vec()),
        ("trailing comma", b"{\"model\":\"x\",}".to_vec()),
        ("comment", b"{/* */}".to_vec()),
        ("two objects", b"{}{}".to_vec()),
        ("garbage after", b"{} x".to_vec()),
        ("NaN", b"{\"temperature\":NaN}".to_vec()),
        ("Infinity", b"{\"temperature\":Infinity}".to_vec()),
        ("huge exponent", b"{\"temperature\":1e999}".to_vec()),
        ("leading zero", b"{\"n\":01}".to_vec()),
        ("hex", b"{\"n\":0x1}".to_vec()),
        ("unpaired surrogate", b"{\"model\":\"\\ud800\"}".to_vec()),
        ("bad escape", b"{\"model\":\"\\q\"}".to_vec()),
        ("control character", b"{\"model\":\"\x01\"}".to_vec()),
        ("invalid UTF-8", b"{\"model\":\"\xff\xfe\"}".to_vec()),
        ("overlong UTF-8", b"{\"model\":\"\xc0\xaf\"}".to_vec()),
        (
            "UTF-16",
            "{\"model\":\"x\"}"
                .encode_utf16()
                .flat_map(u16::to_le_bytes)
                .collect(),
        ),
        ("byte order mark", b"\xef\xbb\xbf{}x".to_vec()),
        ("zero bytes", vec![0; 64]),
        ("random bytes", (0..=255).collect()),
        ("gzip magic", vec![0x1f, 0x8b, 8, 0, 0, 0]),
        ("form", b"model=x&prompt=y".to_vec()),
        ("xml", b"<model/>".to_vec()),
        ("deeper than the parser goes", deep.into_bytes()),
        ("deeper than allowed", deep_but_parsed.into_bytes()),
        ("too many keys", format!("{{{}}}", many.join(",")).into_bytes()),
    ];
    for (name, body) in bodies {
        for path in [CHAT, TEXT] {
            cases.push(case(
                format!("{path} {name}"),
                path,
                body.clone(),
                400,
                "invalid_json",
            ));
        }
    }
}

/// One field wrong, the rest right.
fn fields(cases: &mut Vec<Case>) {
    let wrong_type = "invalid_type";
    let range = "invalid_value";
    let table: Vec<(&str, Vec<Value>, &'static str)> = vec![
        (
            "temperature",
            vec![json!("hot"), json!([]), json!({}), json!(true)],
            wrong_type,
        ),
        (
            "temperature",
            vec![json!(-0.1), json!(2.1), json!(-1e30), json!(1e30)],
            range,
        ),
        ("top_p", vec![json!("1"), json!([1])], wrong_type),
        ("top_p", vec![json!(0), json!(-1), json!(1.01), json!(1e9)], range),
        ("top_k", vec![json!("5"), json!(1.5), json!({})], wrong_type),
        (
            "top_k",
            vec![json!(-2), json!(i64::MAX), json!(u64::MAX), json!(1e300)],
            range,
        ),
        ("ignore_eos", vec![json!("yes"), json!(1)], wrong_type),
        ("min_p", vec![json!("0")], wrong_type),
        ("min_p", vec![json!(-0.5), json!(1.5)], range),
        (
            "repetition_penalty",
            vec![json!("1"), json!(null_list())],
            wrong_type,
        ),
        ("repetition_penalty", vec![json!(0), json!(-1), json!(100)], range),
        ("presence_penalty", vec![json!("1")], wrong_type),
        ("presence_penalty", vec![json!(-2.5), json!(3)], range),
        ("frequency_penalty", vec![json!({})], wrong_type),
        ("frequency_penalty", vec![json!(-9), json!(9)], range),
        (
            "max_tokens",
            vec![json!("10"), json!(1.5), json!([]), json!(true)],
            wrong_type,
        ),
        (
            "max_tokens",
            vec![json!(0), json!(-1), json!(i64::MIN), json!(u64::MAX), json!(1e18)],
            range,
        ),
        ("max_completion_tokens", vec![json!("10")], wrong_type),
        ("max_completion_tokens", vec![json!(0), json!(-5)], range),
        ("n", vec![json!("2"), json!(1.2)], wrong_type),
        ("n", vec![json!(0), json!(-1), json!(5), json!(1_000_000)], range),
        ("seed", vec![json!("x"), json!(0.5), json!([])], wrong_type),
        ("seed", vec![json!(1e30)], range),
        ("stream", vec![json!("yes"), json!(1), json!([])], wrong_type),
        (
            "stop",
            vec![json!(5), json!({}), json!([1]), json!([["a"]])],
            wrong_type,
        ),
        (
            "stop",
            vec![
                json!(""),
                json!(["a", ""]),
                json!(vec!["a"; 9]),
                json!("x".repeat(300)),
            ],
            range,
        ),
        (
            "logit_bias",
            vec![
                json!([]),
                json!("x"),
                json!({ "a": 1 }),
                json!({ "-1": 1 }),
                json!({ "1": "x" }),
            ],
            wrong_type,
        ),
        (
            "logit_bias",
            vec![json!({ "1": 101 }), json!({ "1": -1000 }), many_biases()],
            range,
        ),
        ("service_tier", vec![json!(1), json!([]), json!({})], wrong_type),
        (
            "model",
            vec![json!(1), json!([]), json!({}), json!(true)],
            wrong_type,
        ),
    ];
    for (field, values, code) in table {
        for value in values {
            let shown: String = value.to_string().chars().take(24).collect();
            cases.push(case(
                format!("chat {field} = {shown}"),
                CHAT,
                chat(field, value.clone()),
                400,
                code,
            ));
            cases.push(case(
                format!("text {field} = {shown}"),
                TEXT,
                text(field, value),
                400,
                code,
            ));
        }
    }
    for (field, value, code) in [
        ("logprobs", json!("yes"), wrong_type),
        ("top_logprobs", json!(21), range),
        ("top_logprobs", json!(-1), range),
        ("top_logprobs", json!(2), range),
        ("stream_options", json!(5), wrong_type),
        ("stream_options", json!({ "include_usage": true }), range),
        ("tools", json!([{ "type": "function" }]), "unsupported_parameter"),
        ("functions", json!([{}]), "unsupported_parameter"),
        (
            "response_format",
            json!({ "type": "json_object" }),
            "unsupported_parameter",
        ),
        ("draft_model", json!("x"), "unsupported_parameter"),
    ] {
        cases.push(case(
            format!("chat {field} = {value}"),
            CHAT,
            chat(field, value),
            400,
            code,
        ));
    }
    for (field, value, code) in [
        ("logprobs", json!(21), range),
        ("logprobs", json!(true), wrong_type),
        ("echo", json!("yes"), wrong_type),
        ("best_of", json!(4), "unsupported_parameter"),
        ("suffix", json!("end"), "unsupported_parameter"),
    ] {
        cases.push(case(
            format!("text {field} = {value}"),
            TEXT,
            text(field, value),
            400,
            code,
        ));
    }
}

fn null_list() -> Value {
    json!([null])
}

fn many_biases() -> Value {
    let entries = (0..1025).map(|i| (i.to_string(), json!(1))).collect();
    Value::Object(entries)
}

fn messages(cases: &mut Vec<Case>) {
    let with = |messages: Value| chat("messages", messages);
    let one = |message: Value| chat("messages", json!([message]));
    let missing = json!({ "model": MODEL });
    cases.push(case(
        "no messages",
        CHAT,
        missing.to_string().into_bytes(),
        400,
        "missing_required_parameter",
    ));
    for (name, body, code) in [
        ("messages null", with(Value::Null), "invalid_type"),
        ("messages string", with(json!("hi")), "invalid_type"),
        ("messages object", with(json!({ "role": "user" })), "invalid_type"),
        ("messages empty", with(json!([])), "invalid_value"),
        (
            "too many messages",
            with(json!(vec![json!({ "role": "user", "content": "a" }); 1025])),
            "invalid_value",
        ),
        ("message string", one(json!("hi")), "invalid_type"),
        ("message null", one(Value::Null), "invalid_type"),
        ("message empty", one(json!({})), "missing_required_parameter"),
        (
            "no role",
            one(json!({ "content": "x" })),
            "missing_required_parameter",
        ),
        (
            "role number",
            one(json!({ "role": 1, "content": "x" })),
            "invalid_type",
        ),
        (
            "role unknown",
            one(json!({ "role": "wizard", "content": "x" })),
            "invalid_value",
        ),
        (
            "role empty",
            one(json!({ "role": "", "content": "x" })),
            "invalid_value",
        ),
        (
            "role long",
            one(json!({ "role": "u".repeat(5000), "content": "x" })),
            "invalid_value",
        ),
        (
            "role upper case",
            one(json!({ "role": "USER", "content": "x" })),
            "invalid_value",
        ),
        (
            "role tool",
            one(json!({ "role": "tool", "content": "x" })),
            "invalid_value",
        ),
        (
            "no content",
            one(json!({ "role": "user" })),
            "missing_required_parameter",
        ),
        (
            "content null",
            one(json!({ "role": "user", "content": null })),
            "missing_required_parameter",
        ),
        (
            "content number",
            one(json!({ "role": "user", "content": 5 })),
            "invalid_type",
        ),
        (
            "content object",
            one(json!({ "role": "user", "content": {} })),
            "invalid_type",
        ),
        (
            "part without type",
            one(json!({ "role": "user", "content": [{}] })),
            "invalid_type",
        ),
        (
            "part string",
            one(json!({ "role": "user", "content": ["x"] })),
            "invalid_type",
        ),
        (
            "part without text",
            one(json!({ "role": "user", "content": [{ "type": "text" }] })),
            "invalid_type",
        ),
        (
            "image",
            one(
                json!({ "role": "user", "content": [{ "type": "image_url", "image_url": { "url": "http://10.0.0.1/x" } }] }),
            ),
            "unsupported_parameter",
        ),
        (
            "longer than the context",
            one(json!({ "role": "user", "content": "apple pear ".repeat(9000) })),
            "context_length_exceeded",
        ),
    ] {
        cases.push(case(name, CHAT, body, 400, code));
    }
    let huge = one(json!({ "role": "user", "content": "x".repeat(10 * 1024 * 1024) }));
    cases.push(case("10 MB prompt", CHAT, huge, 413, "request_too_large"));
}

fn prompts(cases: &mut Vec<Case>) {
    let missing = json!({ "model": MODEL });
    cases.push(case(
        "no prompt",
        TEXT,
        missing.to_string().into_bytes(),
        400,
        "missing_required_parameter",
    ));
    for (name, value, code) in [
        ("prompt null", Value::Null, "invalid_type"),
        ("prompt number", json!(5), "invalid_type"),
        ("prompt object", json!({}), "invalid_type"),
        ("prompt empty list", json!([]), "invalid_type"),
        ("prompt two strings", json!(["a", "b"]), "invalid_type"),
        ("prompt mixed", json!([1, "b"]), "invalid_type"),
        ("prompt negative id", json!([-1]), "invalid_type"),
        ("prompt fractional id", json!([1.5]), "invalid_type"),
        ("prompt huge id", json!([u64::MAX]), "invalid_type"),
        ("prompt id beyond vocabulary", json!([49_152]), "invalid_value"),
        ("prompt id at the end of u32", json!([u32::MAX]), "invalid_value"),
        ("prompt empty string", json!(""), "invalid_value"),
        (
            "prompt longer than the context",
            json!(vec![5; 9000]),
            "context_length_exceeded",
        ),
        (
            "prompt exactly the context",
            json!(vec![5; 8192]),
            "context_length_exceeded",
        ),
    ] {
        cases.push(case(name, TEXT, text("prompt", value), 400, code));
    }
    let huge = text("prompt", json!("x".repeat(10 * 1024 * 1024)));
    cases.push(case("10 MB plain prompt", TEXT, huge, 413, "request_too_large"));
}

/// A model is never loaded because a client asked, whatever the name looks like.
fn models(cases: &mut Vec<Case>) {
    let no_model = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    cases.push(case(
        "no model",
        CHAT,
        no_model.to_string().into_bytes(),
        400,
        "missing_required_parameter",
    ));
    for name in [
        "",
        " ",
        "gpt-4",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "http://127.0.0.1:1/x",
        "file:///etc",
        "mlx-community/Other",
        "a\u{0}b",
        "💥",
        "smollm2-135m-instruct ",
        "SMOLLM2-135M-INSTRUCT",
        "smollm2-135m-instruct/",
        "%2e%2e",
        "{{7*7}}",
        "$(id)",
        "null",
    ] {
        cases.push(case(
            format!("model {name:?}"),
            CHAT,
            chat("model", json!(name)),
            404,
            "model_not_found",
        ));
        cases.push(case(
            format!("text model {name:?}"),
            TEXT,
            text("model", json!(name)),
            404,
            "model_not_found",
        ));
    }
    cases.push(case(
        "model of 1 MB",
        CHAT,
        chat("model", json!("m".repeat(1 << 20))),
        404,
        "model_not_found",
    ));
}

fn headers(cases: &mut Vec<Case>) {
    for value in ["urgent", "", "batch;", "interactive batch"] {
        let mut case = case(
            format!("class {value:?}"),
            CHAT,
            chat("n", json!(1)),
            400,
            "invalid_value",
        );
        case.headers.push(("x-pomona-class", value));
        cases.push(case);
    }
    for (name, value, code) in [
        ("sec-fetch-site", "cross-site", "cross_site"),
        ("host", "evil.example", "host_not_allowed"),
        ("host", "127.0.0.1.evil.example", "host_not_allowed"),
        ("host", "192.168.1.5:7711", "host_not_allowed"),
    ] {
        let mut case = case(format!("{name}: {value}"), CHAT, chat("n", json!(1)), 403, code);
        case.headers.push((name, value));
        cases.push(case);
    }
    for path in [
        "/v1/nothing",
        "/",
        "/v1",
        "/admin/v1/status",
        "/v1/../admin",
        "/v1/chat/completions/x",
    ] {
        cases.push(case(
            format!("path {path}"),
            path,
            b"{}".to_vec(),
            404,
            "not_found",
        ));
    }
    for path in [
        "/v1/models",
        "/healthz",
        "/metrics",
        "/v1/ready",
        "/v1/batch/stats",
    ] {
        cases.push(case(
            format!("POST {path}"),
            path,
            b"{}".to_vec(),
            405,
            "method_not_allowed",
        ));
    }
}
