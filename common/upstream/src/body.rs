//! What is sent: a request as servers of the OpenAI API understand it.

use pomona_common::{TextAsk, TextPrompt};
use serde_json::{Value, json};

/// The path below the server's base, and the body.
pub(crate) fn body(ask: &TextAsk, model: &str, max_tokens_field: &str) -> (&'static str, Value) {
    let mut body = json!({
        "model": model,
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    body[max_tokens_field] = ask.max_tokens.into();
    let path = match &ask.prompt {
        TextPrompt::Chat(messages) => {
            let messages = messages.iter();
            let messages = messages.map(|(role, content)| json!({ "role": role, "content": content }));
            body["messages"] = messages.collect();
            "/chat/completions"
        }
        TextPrompt::Text(prompt) => {
            body["prompt"] = prompt.as_str().into();
            "/completions"
        }
    };
    // Said also where it is OpenAI's default: other servers have others.
    for (name, value) in [("temperature", ask.temperature), ("top_p", ask.top_p)] {
        body[name] = exact(value);
    }
    for (name, value) in [
        ("presence_penalty", ask.presence_penalty),
        ("frequency_penalty", ask.frequency_penalty),
    ] {
        // No penalty is the default everywhere, and not everybody knows them.
        if value != 0.0 {
            body[name] = exact(value);
        }
    }
    if !ask.stops.is_empty() {
        body["stop"] = ask.stops.as_slice().into();
    }
    if let Some(seed) = ask.seed {
        // Signed, as the client wrote it.
        body["seed"] = (seed as i64).into();
    }
    (path, body)
}

/// The number as it was written: 0.7 and not 0.699999988.
fn exact(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_said_is_sent_and_nothing_is_left_to_other_defaults()
    -> Result<(), Box<dyn std::error::Error>> {
        let mut ask = TextAsk::new(
            "org/a".parse()?,
            TextPrompt::Chat(vec![("user".into(), "Hello".into())]),
            9,
        );
        let usual = json!({
            "model": "m", "stream": true, "stream_options": { "include_usage": true }, "max_tokens": 9,
            "messages": [{ "role": "user", "content": "Hello" }], "temperature": 1.0, "top_p": 1.0,
        });
        assert_eq!(body(&ask, "m", "max_tokens"), ("/chat/completions", usual));
        ask.prompt = TextPrompt::Text("Once".into());
        ask.temperature = 0.7;
        ask.stops = vec!["END".into()];
        ask.seed = Some(-3i64 as u64);
        let all = json!({
            "model": "m", "stream": true, "stream_options": { "include_usage": true },
            "max_completion_tokens": 9, "prompt": "Once", "temperature": 0.7, "top_p": 1.0, "stop": ["END"], "seed": -3,
        });
        assert_eq!(body(&ask, "m", "max_completion_tokens"), ("/completions", all));
        Ok(())
    }
}
