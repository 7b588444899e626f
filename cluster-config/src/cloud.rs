//! `[cloud.NAME]`: services outside the cluster that answer when no machine does, once they are approved.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pomona_common::{CloudName, ModelName, Money, Prices, ServerAddress, limits};
use toml::Value;
use url::{Host, Url};

use crate::file::Reader;

/// Answers of one cloud at once where nothing else is said: providers count requests in a minute, and few teams
/// have more.
const PARALLEL: usize = 16;
/// And at most.
pub(crate) const PARALLEL_MAX: usize = 256;
/// Seconds for the first text where nothing else is said, and at most: a coordinator asks for no longer.
const FIRST_TEXT_S: u64 = 60;
const FIRST_TEXT_MAX_S: u64 = 300;
/// Characters of the name that a cloud has for a model.
const NAME_CHARS: usize = 200;

/// A cloud as it is configured. Nothing is sent to it before it is approved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudConfig {
    /// Where it is.
    pub address: ServerAddress,
    /// Where its API key is.
    pub key: CloudKey,
    /// Answers under way at once.
    pub parallel: usize,
    /// Requests in a minute, by each coordinator's own count.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute, likewise.
    pub tokens_per_minute: Option<u64>,
    /// How long it may think before its first text.
    pub first_text: Duration,
    /// A file with the certificates of authorities beside those that browsers trust.
    pub authorities: Option<PathBuf>,
    /// What it calls the longest answer.
    pub max_tokens_field: String,
    /// Models of the catalogue that it has, and nothing else: no other model takes the place of one.
    pub models: BTreeMap<ModelName, CloudModel>,
}

/// Where the API key of a cloud is: never in the configuration itself, which people show around.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CloudKey {
    /// It wants none.
    None,
    /// In this variable.
    Variable(String),
    /// In this file.
    File(PathBuf),
}

/// A model of the catalogue at a cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudModel {
    /// What it is called there.
    pub name: String,
    /// What it costs.
    pub prices: Prices,
}

pub(crate) fn clouds(reader: &mut Reader<'_>, value: &Value) -> BTreeMap<CloudName, CloudConfig> {
    let mut clouds = BTreeMap::new();
    reader.nested("cloud", value, |reader, section, value| {
        let name = section.trim_start_matches("cloud.");
        match name.parse::<CloudName>() {
            Ok(name) => {
                if let Some(cloud) = cloud(reader, section, value) {
                    clouds.insert(name, cloud);
                }
            }
            Err(error) => reader.problems.push(format!("{section}: {error}")),
        }
        true
    });
    clouds
}

fn cloud(reader: &mut Reader<'_>, section: &str, value: &Value) -> Option<CloudConfig> {
    let before = reader.problems.len();
    let (mut url, mut allow_http, mut parallel) = (String::new(), false, PARALLEL);
    let (mut key_env, mut key_file, mut authorities) = (String::new(), None, None);
    let mut max_tokens_field = "max_tokens".to_owned();
    let (mut requests, mut tokens) = (u32::MAX, u64::MAX);
    let mut first_text_s = FIRST_TEXT_S;
    let mut models = BTreeMap::new();
    reader.nested(section, value, |reader, name, value| {
        match name.strip_prefix(section).unwrap_or_default() {
            ".url" => reader.text(name, value, &mut url),
            ".allow_http" => reader.boolean(name, value, &mut allow_http),
            ".key_env" => reader.text(name, value, &mut key_env),
            ".key_file" => reader.optional_path(name, value, &mut key_file),
            ".parallel" => reader.number(name, value, &mut parallel),
            ".requests_per_minute" => reader.number(name, value, &mut requests),
            ".tokens_per_minute" => reader.number(name, value, &mut tokens),
            ".first_text_s" => reader.number(name, value, &mut first_text_s),
            ".authorities" => reader.optional_path(name, value, &mut authorities),
            ".max_tokens_field" => reader.text(name, value, &mut max_tokens_field),
            ".models" => models = models_of(reader, name, value),
            _ => return false,
        }
        true
    });
    let mut problem = |text: String| reader.problems.push(format!("{section}{text}"));
    let address = match server_address(&url, allow_http) {
        Ok(address) => Some(address),
        Err(why) => {
            problem(format!(".url: {why}"));
            None
        }
    };
    if !(1..=PARALLEL_MAX).contains(&parallel) {
        problem(format!(".parallel: must be 1 to {PARALLEL_MAX}"));
    }
    if !["max_tokens", "max_completion_tokens"].contains(&max_tokens_field.as_str()) {
        problem(".max_tokens_field: must be max_tokens or max_completion_tokens".to_owned());
    }
    if !(1..=FIRST_TEXT_MAX_S).contains(&first_text_s) {
        problem(format!(".first_text_s: must be 1 to {FIRST_TEXT_MAX_S}"));
    }
    if requests == 0 || tokens == 0 {
        problem(": a minute without requests or tokens lets nothing through".to_owned());
    }
    if models.is_empty() {
        problem(".models: names no model, so nothing would ever go there".to_owned());
    }
    let key = match (key_env.is_empty(), key_file) {
        (true, None) => CloudKey::None,
        (false, None) => CloudKey::Variable(key_env),
        (true, Some(file)) => CloudKey::File(file),
        (false, Some(_)) => {
            problem(": has both key_env and key_file".to_owned());
            CloudKey::None
        }
    };
    (reader.problems.len() == before).then_some(CloudConfig {
        address: address?,
        key,
        parallel,
        requests_per_minute: (requests < u32::MAX).then_some(requests),
        tokens_per_minute: (tokens < u64::MAX).then_some(tokens),
        first_text: Duration::from_secs(first_text_s),
        authorities,
        max_tokens_field,
        models,
    })
}

fn models_of(reader: &mut Reader<'_>, section: &str, value: &Value) -> BTreeMap<ModelName, CloudModel> {
    let mut models = BTreeMap::new();
    let Some(table) = value.as_table() else {
        reader.problems.push(format!("{section}: must be a table"));
        return models;
    };
    if table.len() > limits::MODELS {
        reader
            .problems
            .push(format!("{section}: has more models than a catalogue"));
        return models;
    }
    for (model, value) in table {
        let section = format!("{section}.{model}");
        let Ok(model) = model.parse::<ModelName>() else {
            reader.problems.push(format!("{section}: is no name of a model"));
            continue;
        };
        let (mut name, mut input, mut output) = (String::new(), None, None);
        reader.nested(&section, value, |reader, field, value| {
            match field.strip_prefix(&section).unwrap_or_default() {
                ".name" => reader.text(field, value, &mut name),
                ".input" => input = money(reader, field, value),
                ".output" => output = money(reader, field, value),
                _ => return false,
            }
            true
        });
        if name.is_empty() || name.chars().count() > NAME_CHARS {
            let text = format!("{section}.name: must be what the cloud calls the model");
            reader.problems.push(text);
        }
        match (input, output) {
            (Some(input), Some(output)) => {
                let prices = Prices { input, output };
                models.insert(model, CloudModel { name, prices });
            }
            _ => reader.problems.push(format!(
                "{section}: needs `input` and `output`, the prices of a million tokens; 0 where it is free"
            )),
        }
    }
    models
}

fn money(reader: &mut Reader<'_>, name: &str, value: &Value) -> Option<Money> {
    let text = match value {
        Value::Float(number) => number.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => String::new(),
    };
    match text.parse() {
        Ok(money) => Some(money),
        Err(error) => {
            reader.problems.push(format!("{name}: {error}"));
            None
        }
    }
}

/// The address of a server. What prompts and keys would cross a network with in the clear is refused, unless
/// somebody says that they may.
///
/// # Errors
/// What is wrong with it.
pub fn server_address(url: &str, allow_http: bool) -> Result<ServerAddress, String> {
    let parsed = Url::parse(url).map_err(|error| format!("`{url}` is no URL: {error}"))?;
    let tls = match parsed.scheme() {
        "https" => true,
        "http" => false,
        other => return Err(format!("`{other}` is neither https nor http")),
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("names a user: keys belong into key_env or key_file".to_owned());
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err("must end with its path, such as /v1".to_owned());
    }
    let (host, is_here) = match parsed.host() {
        Some(Host::Domain(name)) => (name.to_owned(), name == "localhost"),
        Some(Host::Ipv4(address)) => (address.to_string(), address.is_loopback()),
        Some(Host::Ipv6(address)) => (address.to_string(), address.is_loopback()),
        None => return Err("names no host".to_owned()),
    };
    if !tls && !is_here && !allow_http {
        return Err(
            "is http, so that everybody on the way reads prompts and key: use https, or set allow_http = true".to_owned(),
        );
    }
    Ok(ServerAddress {
        tls,
        host,
        port: parsed.port_or_known_default().ok_or("names no port")?,
        base: parsed.path().trim_end_matches('/').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use crate::{Config, ConfigError};
    use std::collections::BTreeMap;

    use super::*;

    fn load(file: &str) -> Result<Config, ConfigError> {
        Config::load(file, &BTreeMap::<String, String>::new())
    }

    const GOOD: &str = r#"
        [cloud.openai]
        url = "https://api.example.com/v1/"
        key_env = "EXAMPLE_KEY"
        parallel = 4
        max_tokens_field = "max_completion_tokens"
        models."org/a" = { name = "big-1", input = 0.15, output = "0.6" }
        models.b = { name = "small", input = 0, output = 1 }
    "#;

    #[test]
    fn a_cloud_is_read_with_its_models_and_prices() -> Result<(), Box<dyn std::error::Error>> {
        let config = load(GOOD)?;
        let cloud = &config.clouds[&"openai".parse::<CloudName>()?];
        assert_eq!(cloud.address.to_string(), "https://api.example.com/v1");
        assert_eq!(cloud.key, CloudKey::Variable("EXAMPLE_KEY".into()));
        let model = &cloud.models[&"org/a".parse::<ModelName>()?];
        let prices = Prices {
            input: "0.15".parse()?,
            output: "0.6".parse()?,
        };
        assert_eq!((model.name.as_str(), model.prices), ("big-1", prices));
        assert_eq!(cloud.models.len(), 2);
        Ok(())
    }

    #[test]
    fn what_is_wrong_with_a_cloud_is_named() {
        for (change, to, why) in [
            ("https://api", "http://api", "everybody on the way reads"),
            (
                "https://api.example.com/v1/",
                "ftp://a/",
                "neither https nor http",
            ),
            ("https://api.example.com/v1/", "api.example.com", "no URL"),
            ("https://api", "https://me:secret@api", "names a user"),
            ("/v1/", "/v1?key=1", "must end with its path"),
            (
                "input = 0.15",
                "input = -1",
                "cloud.openai.models.org/a.input: `-1` is not an amount",
            ),
            ("input = 0.15, ", "", "needs `input` and `output`"),
            ("input = 0.15", "input = nan", "`NaN` is not an amount"),
            ("\"big-1\"", "\"\"", "what the cloud calls the model"),
            ("parallel = 4", "parallel = 0", "must be 1 to 256"),
            ("parallel = 4", "tokens_per_minute = 0", "lets nothing through"),
            (
                "parallel = 4",
                "paralel = 4",
                "cloud.openai.paralel: no such setting",
            ),
            ("parallel = 4", "key_file = \"/k\"", "both key_env and key_file"),
            (
                "max_completion_tokens",
                "tokens",
                "max_tokens or max_completion_tokens",
            ),
            ("[cloud.openai]", "[cloud.Open_AI]", "not a name of a cloud"),
        ] {
            let problems =
                load(&GOOD.replace(change, to)).map_or_else(|error| error.problems, |_| Vec::new());
            assert!(
                problems.iter().any(|problem| problem.contains(why)),
                "{to}: {problems:?}"
            );
        }
        let local = GOOD.replace("https://api.example.com", "http://127.0.0.1:4000");
        assert!(load(&local).is_ok());
        let lan = GOOD.replace("https://api.example.com", "http://10.0.0.5:4000");
        assert!(load(&lan).is_err());
        assert!(load(&lan.replace("parallel", "allow_http = true\nparallel")).is_ok());
        assert!(load("[cloud.a]\nurl = \"https://a\"\n").is_err());
    }
}
