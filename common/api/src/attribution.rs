//! What Claude Code puts in front of its system prompt for the biller of another API: a line like
//! `x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=0aaa9;`. It says nothing to the
//! model, and its last value changes with every request (anthropics/claude-code 68900): left there, no
//! conversation ever finds its KV cache again. It is taken out; what follows it stays.

const NAME: &str = "x-anthropic-billing-header:";

/// The system prompt without that line.
pub(crate) fn without(system: &str) -> &str {
    let Some(mut rest) = system.strip_prefix(NAME) else {
        return system;
    };
    // Parts of a prompt may be joined without a line's end: the values end the line.
    while let Some((pair, after)) = rest.split_once(';') {
        if !is_value(pair) {
            break;
        }
        rest = after;
    }
    rest.trim_start()
}

/// Whether it is ` name=value`.
fn is_value(pair: &str) -> bool {
    let is_word = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
    pair.trim_start_matches(' ')
        .split_once('=')
        .is_some_and(|(name, value)| is_word(name) && (value.is_empty() || is_word(value)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::request::{Kind, Prompt, parse};

    #[test]
    fn only_the_line_is_taken_out() {
        let header = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=0aaa9;";
        for (between, rest) in [
            ("", ""),
            ("", "You are"),
            ("\n", "You are; a=b;"),
            (" ", "Be = brief;"),
        ] {
            assert_eq!(without(&format!("{header}{between}{rest}")), rest);
        }
        assert_eq!(without("x-anthropic-billing-header: cch=;\n\nYou"), "You");
        for kept in ["", "You are", "Say x-anthropic-billing-header: cch=1;"] {
            assert_eq!(without(kept), kept);
        }
    }

    /// Roles and texts that a template gets.
    fn asked(messages: &Value) -> Option<Vec<(String, String)>> {
        let body = json!({ "model": "m", "messages": messages }).to_string();
        match parse(Kind::Chat, body.as_bytes()).ok()?.prompt {
            Prompt::Chat(messages) => Some(messages.into_iter().map(|one| (one.role, one.content)).collect()),
            _ => None,
        }
    }

    #[test]
    fn two_requests_of_one_conversation_begin_alike() {
        let conversation = |cch: &str| {
            let header = format!("{NAME} cc_version=2.1.177.01c; cch={cch};");
            let parts = json!([
                { "type": "text", "text": header },
                { "type": "text", "text": "You are a helper." },
            ]);
            [
                json!([{ "role": "system", "content": header },
                    { "role": "system", "content": "You are a helper." }, { "role": "user", "content": "Hi" }]),
                json!([{ "role": "system", "content": parts }, { "role": "user", "content": "Hi" }]),
            ]
        };
        let expected = [("system", "You are a helper."), ("user", "Hi")];
        let expected = expected.map(|(role, text)| (role.to_owned(), text.to_owned()));
        for messages in conversation("0aaa9").iter().chain(&conversation("36ee5")) {
            assert_eq!(asked(messages).as_deref(), Some(&expected[..]), "{messages}");
        }
    }

    #[test]
    fn an_empty_system_prompt_stays_and_a_person_may_say_anything() {
        let header = format!("{NAME} cch=1;");
        let messages = json!([{ "role": "system", "content": "" }, { "role": "user", "content": header }]);
        let expected = [("system".to_owned(), String::new()), ("user".to_owned(), header)];
        assert_eq!(asked(&messages).as_deref(), Some(&expected[..]));
    }
}
