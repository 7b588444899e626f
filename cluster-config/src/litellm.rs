//! A LiteLLM proxy's `config.yaml` as clouds of ours: `model_list`, `fallbacks`, `rpm`, `tpm` and
//! `max_parallel_requests`, by LiteLLM's documentation of its configuration. What it says otherwise is named, and
//! not carried over. Keys that stand in the file are not copied.

mod written;

use std::collections::{BTreeMap, BTreeSet};

use pomona_common::{CloudName, ModelName, Money};
use serde_json::{Map, Value};

use self::written::{hint, name};

/// Providers whose own API is OpenAI's, and where it is.
const PROVIDERS: &[(&str, &str, &str)] = &[
    ("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
    ("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    ("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    ("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    ("together_ai", "https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    ("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    (
        "fireworks_ai",
        "https://api.fireworks.ai/inference/v1",
        "FIREWORKS_AI_API_KEY",
    ),
    ("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
];
/// Prefixes of servers that speak OpenAI's API wherever `api_base` says.
const COMPATIBLE: &[&str] = &[
    "openai",
    "hosted_vllm",
    "lm_studio",
    "litellm_proxy",
    "custom_openai",
    "text-completion-openai",
];
/// Prices of an entry, and of what is beside it.
const PRICES: [&str; 2] = ["input_cost_per_token", "output_cost_per_token"];
/// Limits of an entry.
const LIMITS: [&str; 3] = ["max_parallel_requests", "rpm", "tpm"];
/// Characters that a line says of a value.
const SHOWN: usize = 80;

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Sections for the configuration of coordinators.
    pub toml: String,
    /// Clouds in the order in which LiteLLM would ask, the first choice first; those that answer with another model
    /// than the one that was asked for, as the file's `fallbacks` say, come last.
    pub clouds: Vec<CloudName>,
    /// Money for a month, where the file has a budget.
    pub monthly: Option<Money>,
    /// What means something a little different, in the user's terms.
    pub changed: Vec<String>,
    /// What was not carried over, and why.
    pub left: Vec<String>,
}

/// One entry of `model_list` that can be asked.
#[derive(Debug, Clone, PartialEq)]
struct Deployment {
    /// What clients call it: `model_name`.
    group: String,
    /// What the server calls it.
    there: String,
    order: i64,
    prices: Option<(String, String)>,
}

/// Deployments with one address and one key.
#[derive(Debug, Clone, Default)]
struct Cloud {
    deployments: Vec<Deployment>,
    parallel: Option<u64>,
    rpm: Option<u64>,
    tpm: Option<u64>,
}

/// Address, and variable of the key; none where it wants none.
type Place = (String, Option<String>);

#[derive(Default)]
struct Import {
    clouds: BTreeMap<Place, Cloud>,
    /// In the order of the file.
    places: Vec<Place>,
    /// The provider's name, for the cloud's.
    hints: BTreeMap<Place, String>,
    changed: Vec<String>,
    left: Vec<String>,
}

/// Reads a file; `names` are models of the cluster by the names that LiteLLM's clients use.
///
/// # Errors
/// It is not YAML, or not a configuration of LiteLLM.
pub fn import(text: &str, names: &BTreeMap<String, ModelName>) -> Result<Imported, String> {
    let file: Value = serde_saphyr::from_str(text).map_err(|error| format!("this is not YAML: {error}"))?;
    let file = file
        .as_object()
        .ok_or("this is no configuration of LiteLLM: it has no sections")?;
    let models = file.get("model_list").and_then(Value::as_array);
    let models = models.ok_or("this is no configuration of LiteLLM: it has no `model_list`")?;
    let mut import = Import::default();
    for (i, entry) in models.iter().enumerate() {
        import.deployment(&format!("model_list[{i}]"), entry);
    }
    let mut monthly = None;
    let mut fallbacks = Vec::new();
    for (section, value) in file.iter().filter(|(section, _)| *section != "model_list") {
        let Some(settings) = value.as_object() else {
            import.left.push(format!("{section}: {}", shown(value)));
            continue;
        };
        for (name, value) in settings {
            let path = format!("{section}.{name}");
            match (section.as_str(), name.as_str()) {
                ("router_settings" | "litellm_settings", "fallbacks") => {
                    fallbacks.extend(import.fallbacks(&path, value));
                }
                ("litellm_settings", "max_budget") => monthly = import.budget(settings, value),
                ("litellm_settings", "budget_duration") if settings.contains_key("max_budget") => {}
                _ => import.left.push(format!("{path}: {}", reason(name))),
            }
        }
    }
    Ok(import.finish(&fallbacks, names, monthly))
}

/// Why a setting is not carried over.
fn reason(name: &str) -> &'static str {
    match name {
        "default_fallbacks" | "context_window_fallbacks" | "content_policy_fallbacks" => {
            "another model would answer than the one that was asked for"
        }
        "num_retries" | "retry_policy" | "allowed_fails" | "cooldown_time" | "allowed_fails_policy" => {
            "a cloud that fails three times in a row is left alone for 5 s and longer, and the next in the list asked"
        }
        "routing_strategy" => "machines come before clouds, and clouds in the order of the list",
        "master_key" => "make keys with `pomona key create`",
        "database_url" => "keys are in the cluster's own log: make them with `pomona key create`",
        "request_timeout" | "timeout" | "stream_timeout" => "each phase of an answer has its own time",
        "drop_params" => "what a cloud would not understand is not sent there: such requests stay",
        "callbacks" | "success_callback" | "failure_callback" => {
            "usage is in `coordinator/usage`, metrics at /metrics"
        }
        _ => "there is nothing like it here",
    }
}

impl Import {
    fn deployment(&mut self, at: &str, entry: &Value) {
        let group = entry["model_name"].as_str().unwrap_or_default().to_owned();
        let Some(params) = entry["litellm_params"].as_object() else {
            self.left.push(format!("{at}: has no litellm_params"));
            return;
        };
        let text = |name: &str| params.get(name).and_then(Value::as_str);
        let model = text("model").unwrap_or_default();
        if group.is_empty() || model.is_empty() {
            self.left.push(format!("{at}: names no model"));
            return;
        }
        if group.contains('*') || model.contains('*') {
            self.left
                .push(format!("{at}: `{group}` stands for many models: name each"));
            return;
        }
        let (provider, there) = match model.split_once('/') {
            Some((provider, there)) => (provider, there),
            None => ("openai", model),
        };
        let of_provider = PROVIDERS.iter().find(|(name, ..)| *name == provider);
        let base = text("api_base").or(text("base_url"));
        let address = match (base, of_provider) {
            (Some(base), known) if known.is_some() || COMPATIBLE.contains(&provider) => base,
            (None, Some((_, address, _))) => address,
            _ => {
                self.left.push(format!(
                    "{at}: `{provider}` does not speak OpenAI's API by itself: keep LiteLLM in front of it, and make that a cloud"
                ));
                return;
            }
        };
        let key = self.key(
            at,
            params.get("api_key"),
            of_provider.map(|(.., key)| *key),
            base.is_some(),
        );
        let place = (address.trim_end_matches('/').to_owned(), key);
        let [parallel, rpm, tpm] = LIMITS.map(|name| self.number(at, name, params.get(name)));
        self.rest(at, entry, params);
        let deployment = Deployment {
            group,
            there: there.to_owned(),
            order: params.get("order").and_then(Value::as_i64).unwrap_or(0),
            prices: prices(&entry["model_info"], params),
        };
        if !self.places.contains(&place) {
            self.places.push(place.clone());
            self.hints.insert(place.clone(), hint(provider, &place.0));
        }
        let cloud = self.clouds.entry(place).or_default();
        // Several deployments of one account share what it may take.
        let sums = [&mut cloud.parallel, &mut cloud.rpm, &mut cloud.tpm];
        for ((sum, more), name) in sums.into_iter().zip([parallel, rpm, tpm]).zip(LIMITS) {
            if !cloud.deployments.is_empty() && (sum.is_some() || more.is_some()) {
                self.changed.push(format!(
                    "{at}.litellm_params.{name}: is added up with those of the other models at this address: a cloud has one"
                ));
            }
            *sum = more.map_or(*sum, |more| Some(sum.unwrap_or(0).saturating_add(more)));
        }
        cloud.deployments.push(deployment);
    }

    /// A limit; one that is none is named.
    fn number(&mut self, at: &str, name: &str, said: Option<&Value>) -> Option<u64> {
        let said = said.filter(|said| !said.is_null())?;
        let text = said.as_str().and_then(|text| text.trim().parse().ok());
        let number = said.as_u64().or(text).filter(|number| *number > 0);
        if number.is_none() {
            let shown = shown(said);
            self.left.push(format!(
                "{at}.litellm_params.{name}: {shown} is no limit: write it yourself"
            ));
        }
        number
    }

    /// The variable that a key is in.
    fn key(&mut self, at: &str, said: Option<&Value>, usual: Option<&str>, own_base: bool) -> Option<String> {
        match said.and_then(Value::as_str) {
            Some(text) => match text.strip_prefix("os.environ/") {
                Some(variable) => Some(variable.to_owned()),
                None if ["", "none", "None", "sk-none", "EMPTY"].contains(&text) => None,
                None => {
                    let variable = usual.unwrap_or("CLOUD_API_KEY");
                    self.changed.push(format!(
                        "{at}: its key stands in the file and was not copied: put it into the variable {variable}"
                    ));
                    Some(variable.to_owned())
                }
            },
            None if own_base => None,
            None => usual.map(str::to_owned),
        }
    }

    /// Names what an entry says beside that.
    fn rest(&mut self, at: &str, entry: &Value, params: &Map<String, Value>) {
        const KNOWN: &[&str] = &["model", "api_base", "base_url", "api_key", "order"];
        let is_known = |name: &str| KNOWN.contains(&name) || LIMITS.contains(&name) || PRICES.contains(&name);
        for name in params.keys().filter(|name| !is_known(name)) {
            let why = match name.as_str() {
                "weight" => "clouds are asked in order",
                other => reason(other),
            };
            self.left.push(format!("{at}.litellm_params.{name}: {why}"));
        }
        let beside = entry.as_object().into_iter().flat_map(Map::keys);
        for name in
            beside.filter(|name| !["model_name", "litellm_params", "model_info"].contains(&name.as_str()))
        {
            self.left.push(format!("{at}.{name}: {}", reason(name)));
        }
        let info = entry["model_info"].as_object().into_iter().flat_map(Map::keys);
        for name in info.filter(|name| !PRICES.contains(&name.as_str())) {
            self.left
                .push(format!("{at}.model_info.{name}: models say this themselves here"));
        }
    }

    /// Pairs of a group and one that answers for it, in order.
    fn fallbacks(&mut self, path: &str, value: &Value) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for (i, item) in value.as_array().into_iter().flatten().enumerate() {
            for (group, others) in item.as_object().into_iter().flatten() {
                for other in others.as_array().into_iter().flatten() {
                    match other.as_str() {
                        Some(other) => pairs.push((group.clone(), other.to_owned())),
                        None => self
                            .left
                            .push(format!("{path}[{i}]: {} is no name", shown(other))),
                    }
                }
            }
        }
        if pairs.is_empty() {
            self.left
                .push(format!("{path}: is no list of models and who answers for them"));
        }
        pairs
    }

    fn budget(&mut self, settings: &Map<String, Value>, value: &Value) -> Option<Money> {
        let lasts = settings
            .get("budget_duration")
            .and_then(Value::as_str)
            .unwrap_or("30d");
        let money = value.as_f64().and_then(|money| format!("{money}").parse().ok());
        let Some(money) = money else {
            self.left.push(format!(
                "litellm_settings.max_budget: {} is no amount",
                shown(value)
            ));
            return None;
        };
        if !["30d", "1mo", "31d"].contains(&lasts) {
            self.left.push(format!(
                "litellm_settings.max_budget: is for {lasts}, and ceilings are for a month: say it with `pomona cloud approve`"
            ));
            return None;
        }
        self.changed.push(
            "litellm_settings.max_budget: is the monthly ceiling of each cloud, in months of the calendar"
                .to_owned(),
        );
        Some(money)
    }

    fn finish(
        mut self,
        fallbacks: &[(String, String)],
        names: &BTreeMap<String, ModelName>,
        monthly: Option<Money>,
    ) -> Imported {
        let first = |place: &Place| {
            let deployments = self.clouds.get(place).map(|cloud| &cloud.deployments);
            deployments.into_iter().flatten().map(|one| one.order).min()
        };
        self.places.sort_by_key(first);
        let answering = self.answering(fallbacks, names);
        let taken = |place: &Place| Some((place.clone(), self.clouds.remove(place)?, ""));
        let mut sections: Vec<(Place, Cloud, &str)> = self.places.iter().filter_map(taken).collect();
        self.name_disorder(&sections);
        sections.extend(
            answering
                .into_iter()
                .map(|(place, cloud)| (place, cloud, "-for-others")),
        );
        let (mut toml, mut clouds, mut taken) = (String::new(), Vec::new(), BTreeSet::new());
        for (place, cloud, suffix) in sections {
            let hint = self.hints.get(&place).cloned().unwrap_or_default();
            let Some(name) = name(&hint, suffix, &mut taken) else {
                continue;
            };
            self.section(&mut toml, &name, &place, cloud, names);
            clouds.push(name);
        }
        Imported {
            toml,
            clouds,
            monthly,
            changed: self.changed,
            left: self.left,
        }
    }

    /// A model's clouds are asked in the one order of the list: names those that the file has in another.
    fn name_disorder(&mut self, sections: &[(Place, Cloud, &str)]) {
        let mut last: BTreeMap<&str, i64> = BTreeMap::new();
        for one in sections.iter().flat_map(|(_, cloud, _)| &cloud.deployments) {
            let before = last.insert(&one.group, one.order);
            if before.is_some_and(|before| before > one.order) {
                let group = &one.group;
                self.changed.push(format!(
                    "`{group}`: its `order` is another one than that of other models at these addresses: clouds are asked in one order for all"
                ));
            }
        }
    }

    /// Models that answer for others, as the file says, at clouds of their own: they are asked after every cloud that
    /// has what was asked for, in the order of the file.
    fn answering(
        &mut self,
        pairs: &[(String, String)],
        names: &BTreeMap<String, ModelName>,
    ) -> Vec<(Place, Cloud)> {
        let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
        // By rank, and within it in the order of the file.
        let mut answering: BTreeMap<(usize, usize), Cloud> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for (group, other) in pairs {
            if group == other || !seen.insert((group, other)) {
                continue;
            }
            if model_of(group, names).is_none() {
                self.left.push(format!(
                    "fallbacks: `{group}` is no name that a model of the cluster can have: name each"
                ));
                continue;
            }
            let rank = ranks.entry(group).or_default();
            let mut found = false;
            for (i, place) in self.places.iter().enumerate() {
                let cloud = self.clouds.get(place).cloned().unwrap_or_default();
                let Some(of_other) = cloud.deployments.iter().find(|one| one.group == *other) else {
                    continue;
                };
                found = true;
                let group = group.clone();
                let deployment = Deployment {
                    group,
                    ..of_other.clone()
                };
                let nothing = Cloud {
                    deployments: Vec::new(),
                    ..cloud
                };
                let clouds = answering.entry((*rank, i)).or_insert(nothing);
                clouds.deployments.push(deployment);
            }
            if found {
                *rank += 1;
                self.changed.push(format!(
                    "fallbacks: for `{group}` clouds `…-for-others` answer with `{other}`, as the file says, after all that have `{group}`; their limits count apart. Take the line out where that is not meant"
                ));
            } else {
                self.left.push(format!(
                    "fallbacks: `{group}` to `{other}`: no entry of model_list that was carried over has it"
                ));
            }
        }
        let placed = answering.into_iter();
        placed
            .map(|((_, i), cloud)| (self.places[i].clone(), cloud))
            .collect()
    }
}

/// What the cluster calls a model of LiteLLM's clients.
fn model_of(group: &str, names: &BTreeMap<String, ModelName>) -> Option<ModelName> {
    names.get(group).cloned().or_else(|| group.parse().ok())
}

/// Prices of a million tokens, from those of one.
fn prices(info: &Value, params: &Map<String, Value>) -> Option<(String, String)> {
    let price = |name: &str| {
        let one = params.get(name).or(info.get(name))?.as_f64()?;
        let million = format!("{:.6}", one * 1e6);
        let money: Money = million.parse().ok()?;
        Some(money.to_string())
    };
    let [input, output] = PRICES;
    Some((price(input)?, price(output)?))
}

fn shown(value: &Value) -> String {
    value.to_string().chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests;
