//! Chat templates: Jinja from model authors, rendered with fuel and without environment.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use pomona_common::control::TextBundle;
use serde::Serialize;

/// Enough for a thousand long messages; a loop without end stops in well under a second.
const FUEL: u64 = 20_000_000;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, …
    pub role: String,
    /// Its text.
    pub content: String,
}

/// Why a conversation is not rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model has no template.
    #[error("this model has no chat template: use /v1/completions")]
    Missing,
    /// The template itself raised an error, about the conversation.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// The template is broken or ran out of fuel.
    #[error("the model's chat template failed: {0}")]
    Broken(String),
}

#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    bos_token: String,
    eos_token: String,
}

#[derive(Serialize)]
struct Context<'a> {
    messages: &'a [Message],
    add_generation_prompt: bool,
    bos_token: &'a str,
    eos_token: &'a str,
}

impl Template {
    pub(crate) fn new(bundle: &TextBundle) -> Result<Self, TemplateError> {
        let broken = |error: Error| TemplateError::Broken(error.to_string());
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(broken)?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned("chat", bundle.chat_template.clone())
            .map_err(broken)?;
        Ok(Self {
            environment,
            bos_token: bundle.bos_token.clone(),
            eos_token: bundle.eos_token.clone(),
        })
    }

    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let context = Context {
            messages,
            add_generation_prompt: true,
            bos_token: &self.bos_token,
            eos_token: &self.eos_token,
        };
        let template = self
            .environment
            .get_template("chat")
            .map_err(|error| TemplateError::Broken(error.to_string()))?;
        template
            .render(Serde(&context))
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidOperation => {
                    TemplateError::Refused(error.detail().unwrap_or("no reason given").to_owned())
                }
                _ => TemplateError::Broken(error.to_string()),
            })
    }
}

/// The day, for templates that tell the model; only the directives that published ones use.
fn strftime_now(format: &str) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (year, month, day) = civil_from_days((seconds / 86_400) as i64);
    let name = MONTHS[month as usize - 1];
    format
        .replace("%Y", &year.to_string())
        .replace("%m", &format!("{month:02}"))
        .replace("%d", &format!("{day:02}"))
        .replace("%B", name)
        .replace("%b", &name[..3])
}

/// Days since 1970 into year, month, day (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// `tojson` as transformers renders it: no HTML escapes.
fn tojson(value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    let text = match indent {
        Some(_) => serde_json::to_string_pretty(value),
        None => serde_json::to_string(value),
    };
    text.map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> Result<Template, TemplateError> {
        Template::new(&TextBundle {
            tokenizer_json: Vec::new(),
            chat_template: source.into(),
            stop_tokens: Vec::new(),
            bos_token: "<s>".into(),
            eos_token: "</s>".into(),
            add_bos: false,
            vocab: 1,
        })
    }

    fn hello() -> Vec<Message> {
        vec![Message {
            role: "user".into(),
            content: "hi <b>".into(),
        }]
    }

    #[test]
    fn chatml_renders_without_escapes() -> Result<(), TemplateError> {
        let source = "{% for m in messages %}{{ m.role + ': ' + m['content'].strip() + eos_token }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
        assert_eq!(
            template(source)?.render(&hello())?,
            "user: hi <b></s>\nassistant:"
        );
        Ok(())
    }

    #[test]
    fn a_template_that_raises_refuses_the_conversation() -> Result<(), TemplateError> {
        let refused = template("{{ raise_exception('roles must alternate') }}")?.render(&hello());
        assert!(matches!(refused, Err(TemplateError::Refused(why)) if why == "roles must alternate"));
        Ok(())
    }

    #[test]
    fn an_endless_template_runs_out_of_fuel() -> Result<(), TemplateError> {
        let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x{% endfor %}{% endfor %}{% endfor %}";
        assert!(matches!(
            template(source)?.render(&hello()),
            Err(TemplateError::Broken(_))
        ));
        Ok(())
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(20_779), (2026, 11, 22));
        assert_eq!(civil_from_days(19_782), (2024, 2, 29));
    }
}
