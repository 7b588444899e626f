//! A request body into what is to be done: every field checked, every fault named.

use pomona_common::failure::InvalidCode;
use pomona_common::{Failure, Sampling, limits};
use pomona_text::Message;
use serde_json::{Map, Value};

use crate::attribution;

/// The prompt as the client gave it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// A conversation.
    Chat(Vec<Message>),
    /// Plain text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A validated request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    pub(crate) model: String,
    pub(crate) prompt: Prompt,
    pub(crate) sampling: Sampling,
    /// Whether the client chose the seed.
    pub(crate) seeded: bool,
    pub(crate) max_tokens: Option<u32>,
    /// Whether the answer goes on after the model's own end (vLLM's name).
    pub(crate) ignore_eos: bool,
    pub(crate) stops: Vec<String>,
    pub(crate) choices: u32,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) echo: bool,
    pub(crate) service_tier: Option<String>,
}

/// Which endpoint a body was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// Parses and validates a body.
pub(crate) fn parse(kind: Kind, body: &[u8]) -> Result<Ask, Failure> {
    let fields = object(body)?;
    let prompt = match kind {
        Kind::Chat => Prompt::Chat(messages(&fields)?),
        Kind::Text => prompt(&fields)?,
    };
    refuse_unsupported(kind, &fields)?;
    let seed = integer(&fields, "seed", i64::MIN, i64::MAX)?;
    let (max_tokens, max_name) = match integer(&fields, "max_completion_tokens", 1, 1 << 24)? {
        Some(max) => (Some(max), "max_completion_tokens"),
        None => (integer(&fields, "max_tokens", 1, 1 << 24)?, "max_tokens"),
    };
    let max_tokens = max_tokens
        .map(|max| u32::try_from(max).map_err(|_| out_of_range(max_name, "a positive integer")))
        .transpose()?;
    let sampling = sampling(kind, &fields, seed.unwrap_or(0))?;
    let stream = boolean(&fields, "stream")?.unwrap_or(false);
    Ok(Ask {
        model: text(&fields, "model")?.ok_or_else(|| missing("model"))?,
        prompt,
        sampling,
        seeded: seed.is_some(),
        max_tokens,
        ignore_eos: boolean(&fields, "ignore_eos")?.unwrap_or(false),
        stops: stops(&fields)?,
        choices: integer(&fields, "n", 1, i64::from(limits::CHOICES))?.unwrap_or(1) as u32,
        stream,
        include_usage: stream_options(&fields, stream)?,
        echo: boolean(&fields, "echo")?.unwrap_or(false),
        service_tier: text(&fields, "service_tier")?,
    })
}

fn object(body: &[u8]) -> Result<Map<String, Value>, Failure> {
    let invalid = |message: String| Failure::invalid("", InvalidCode::InvalidJson, message);
    if std::str::from_utf8(body).is_err() {
        return Err(invalid("the body is not UTF-8".into()));
    }
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the body is not valid JSON: {error}")))?;
    if depth(&value) > limits::JSON_DEPTH {
        return Err(invalid(format!(
            "the body is nested deeper than {}",
            limits::JSON_DEPTH
        )));
    }
    match value {
        Value::Object(fields) if fields.len() <= limits::JSON_OBJECT_KEYS => Ok(fields),
        Value::Object(_) => Err(invalid("the body has too many fields".into())),
        _ => Err(invalid("the body is not a JSON object".into())),
    }
}

/// `serde_json` bounds the recursion at 128.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

fn messages(fields: &Map<String, Value>) -> Result<Vec<Message>, Failure> {
    let value = fields.get("messages").ok_or_else(|| missing("messages"))?;
    let items = value.as_array().ok_or_else(|| wrong_type("messages", "a list"))?;
    if items.is_empty() || items.len() > limits::MESSAGES {
        return Err(out_of_range(
            "messages",
            &format!("a list of 1 to {} messages", limits::MESSAGES),
        ));
    }
    let messages: Vec<Message> = items
        .iter()
        .enumerate()
        .filter_map(|(i, item)| message(i, item).transpose())
        .collect::<Result<_, _>>()?;
    if messages.is_empty() {
        return Err(out_of_range("messages", "a list with something for the model"));
    }
    Ok(messages)
}

/// One message; none when nothing of it is for the model.
fn message(i: usize, item: &Value) -> Result<Option<Message>, Failure> {
    let at = |field: &str| format!("messages[{i}].{field}");
    let item = item
        .as_object()
        .ok_or_else(|| wrong_type(&format!("messages[{i}]"), "an object"))?;
    let role = match item.get("role") {
        None => return Err(missing(&at("role"))),
        Some(role) => role.as_str().ok_or_else(|| wrong_type(&at("role"), "a string"))?,
    };
    let role = match role {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        other => {
            let shown: String = other.chars().take(40).collect();
            let text = format!("`{shown}` is not a role: use system, developer, user or assistant");
            return Err(Failure::invalid(&at("role"), InvalidCode::InvalidValue, text));
        }
    };
    let mut content = match item.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => text_parts(&at("content"), parts)?,
        None | Some(Value::Null) => return Err(missing(&at("content"))),
        Some(_) => {
            return Err(wrong_type(&at("content"), "a string or a list of text parts"));
        }
    };
    if role == "system" {
        let kept = attribution::without(&content);
        if kept.is_empty() && !content.is_empty() {
            return Ok(None);
        }
        content.drain(..content.len() - kept.len());
    }
    Ok(Some(Message {
        role: role.to_owned(),
        content,
    }))
}

fn text_parts(at: &str, parts: &[Value]) -> Result<String, Failure> {
    let mut content = String::new();
    for part in parts {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => content.push_str(text),
            (Some("text"), None) => return Err(wrong_type(at, "text parts with a string `text`")),
            (Some(other), _) => {
                let shown: String = other.chars().take(40).collect();
                let text = format!("parts of type `{shown}` are not supported, only text");
                return Err(Failure::invalid(at, InvalidCode::Unsupported, text));
            }
            (None, _) => return Err(wrong_type(at, "parts with a `type`")),
        }
    }
    Ok(content)
}

fn prompt(fields: &Map<String, Value>) -> Result<Prompt, Failure> {
    let expected = || {
        wrong_type(
            "prompt",
            "a string, a list with one string, or a list of token ids",
        )
    };
    let value = fields.get("prompt").ok_or_else(|| missing("prompt"))?;
    match value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(items) => match items.as_slice() {
            [Value::String(text)] => Ok(Prompt::Text(text.clone())),
            [] | [Value::String(_), ..] => Err(expected()),
            ids => ids
                .iter()
                .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
                .collect::<Option<Vec<u32>>>()
                .map(Prompt::Tokens)
                .ok_or_else(expected),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(expected()),
    }
}

/// Fields that change the answer and are not offered yet are refused, not ignored.
fn refuse_unsupported(kind: Kind, fields: &Map<String, Value>) -> Result<(), Failure> {
    let says_something = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::String(_) | Value::Number(_) | Value::Bool(true) | Value::Object(_) => true,
    };
    for name in [
        "tools",
        "functions",
        "audio",
        "suffix",
        "logits_processors",
        "adapters",
        "draft_model",
    ] {
        if fields.get(name).is_some_and(says_something) {
            let text = format!("`{name}` is not supported");
            return Err(Failure::invalid(name, InvalidCode::Unsupported, text));
        }
    }
    let format = fields
        .get("response_format")
        .and_then(|format| format["type"].as_str());
    if !matches!(format, None | Some("text")) {
        let text = "only `response_format` of type text is supported";
        return Err(Failure::invalid(
            "response_format",
            InvalidCode::Unsupported,
            text,
        ));
    }
    let best_of = integer(fields, "best_of", 1, 20)?;
    if best_of.is_some_and(|best_of| best_of != 1) && kind == Kind::Text {
        return Err(Failure::invalid(
            "best_of",
            InvalidCode::Unsupported,
            "`best_of` is not supported",
        ));
    }
    Ok(())
}

fn sampling(kind: Kind, fields: &Map<String, Value>, seed: i64) -> Result<Sampling, Failure> {
    let default = Sampling::default();
    let real = |name: &'static str, default: f32| Ok(number(fields, name)?.unwrap_or(default));
    let sampling = Sampling {
        temperature: real("temperature", default.temperature)?,
        top_p: real("top_p", default.top_p)?,
        top_k: integer(fields, "top_k", -1, 1_000_000)?.unwrap_or(0).max(0) as u32,
        min_p: real("min_p", default.min_p)?,
        repetition_penalty: real("repetition_penalty", default.repetition_penalty)?,
        presence_penalty: real("presence_penalty", default.presence_penalty)?,
        frequency_penalty: real("frequency_penalty", default.frequency_penalty)?,
        logit_bias: logit_bias(fields)?,
        seed: seed as u64,
        top_logprobs: top_logprobs(kind, fields)?,
    };
    sampling
        .validate()
        .map_err(|error| out_of_range(error.parameter, error.expected))?;
    Ok(sampling)
}

fn top_logprobs(kind: Kind, fields: &Map<String, Value>) -> Result<Option<u32>, Failure> {
    let limit = i64::from(limits::TOP_LOGPROBS);
    if kind == Kind::Text {
        return Ok(integer(fields, "logprobs", 0, limit)?.map(|top| top as u32));
    }
    let top = integer(fields, "top_logprobs", 0, limit)?;
    match (boolean(fields, "logprobs")?.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as u32)),
        (false, Some(top)) if top > 0 => {
            let text = "`top_logprobs` needs `logprobs: true`";
            Err(Failure::invalid("top_logprobs", InvalidCode::InvalidValue, text))
        }
        (false, _) => Ok(None),
    }
}

fn logit_bias(fields: &Map<String, Value>) -> Result<Vec<(u32, f32)>, Failure> {
    let Some(value) = fields.get("logit_bias").filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let expected = || wrong_type("logit_bias", "an object of token ids and numbers");
    let entries = value.as_object().ok_or_else(expected)?;
    entries
        .iter()
        .map(|(token, bias)| {
            let token = token.parse().map_err(|_| expected())?;
            let bias = bias.as_f64().ok_or_else(expected)?;
            Ok((token, bias as f32))
        })
        .collect()
}

fn stops(fields: &Map<String, Value>) -> Result<Vec<String>, Failure> {
    let expected = || wrong_type("stop", "a string or a list of strings");
    let stops: Vec<String> = match fields.get("stop") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(expected)?,
        Some(_) => return Err(expected()),
    };
    let sound = stops.len() <= limits::STOP_STRINGS
        && stops
            .iter()
            .all(|stop| (1..=limits::STOP_STRING_BYTES).contains(&stop.len()));
    if !sound {
        let text = format!(
            "at most {} strings of 1 to {} bytes",
            limits::STOP_STRINGS,
            limits::STOP_STRING_BYTES
        );
        return Err(out_of_range("stop", &text));
    }
    Ok(stops)
}

fn stream_options(fields: &Map<String, Value>, stream: bool) -> Result<bool, Failure> {
    match fields.get("stream_options") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Object(_)) if !stream => {
            let text = "`stream_options` needs `stream: true`";
            Err(Failure::invalid(
                "stream_options",
                InvalidCode::InvalidValue,
                text,
            ))
        }
        Some(Value::Object(options)) => Ok(boolean(options, "include_usage")?.unwrap_or(false)),
        Some(_) => Err(wrong_type("stream_options", "an object")),
    }
}

fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(wrong_type(name, "a string")),
    }
}

fn boolean(fields: &Map<String, Value>, name: &str) -> Result<Option<bool>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(value)) => Ok(Some(*value)),
        Some(_) => Err(wrong_type(name, "true or false")),
    }
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<Option<f32>, Failure> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().map(|number| number as f32) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong_type(name, "a number")),
        },
    }
}

fn integer(fields: &Map<String, Value>, name: &str, min: i64, max: i64) -> Result<Option<i64>, Failure> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    let Value::Number(number) = value else {
        return Err(wrong_type(name, "an integer"));
    };
    // 4.0 is an integer to most clients' JSON libraries.
    let whole = number
        .as_f64()
        .filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15)
        .map(|f| f as i64);
    match number.as_i64().or(whole) {
        Some(n) if (min..=max).contains(&n) => Ok(Some(n)),
        Some(_) => Err(out_of_range(name, &format!("between {min} and {max}"))),
        None if number.is_f64() && number.as_f64().is_some_and(|f| f.fract() != 0.0) => {
            Err(wrong_type(name, "an integer"))
        }
        None => Err(out_of_range(name, &format!("between {min} and {max}"))),
    }
}

fn missing(name: &str) -> Failure {
    Failure::invalid(name, InvalidCode::MissingField, format!("`{name}` is missing"))
}

fn wrong_type(name: &str, expected: &str) -> Failure {
    Failure::invalid(
        name,
        InvalidCode::InvalidType,
        format!("`{name}` must be {expected}"),
    )
}

fn out_of_range(name: &str, expected: &str) -> Failure {
    Failure::invalid(
        name,
        InvalidCode::InvalidValue,
        format!("`{name}` must be {expected}"),
    )
}
