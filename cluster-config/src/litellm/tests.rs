use std::error::Error;

use super::*;
use crate::{CloudKey, Config};

/// In the shape of the examples of LiteLLM's documentation.
const FILE: &str = r#"
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/OPENAI_API_KEY
      rpm: 500
      tpm: 30000
      max_parallel_requests: 8
    model_info:
      input_cost_per_token: 0.0000025
      output_cost_per_token: 0.00001
      mode: chat
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o-eu
      api_base: https://llm.eu.example.com/v1/
      api_key: sk-in-the-file
      order: 2
      weight: 3
      input_cost_per_token: 3e-06
      output_cost_per_token: 0.000012
  - model_name: qwen
    litellm_params: { model: hosted_vllm/Qwen/Qwen3-8B, api_base: "http://10.0.0.9:8000/v1", order: 3 }
    model_info: { input_cost_per_token: 0, output_cost_per_token: 0 }
  - model_name: claude
    litellm_params: { model: anthropic/claude-sonnet-4-5, api_key: os.environ/ANTHROPIC_API_KEY }
  - model_name: "openai/*"
    litellm_params: { model: "openai/*" }
  - model_name: mystery
    litellm_params: { model: groq/llama-3.3-70b-versatile }
litellm_settings:
  fallbacks: [{"qwen": ["gpt-4o"]}, {"gpt-4o": ["claude"]}]
  context_window_fallbacks: [{"qwen": ["gpt-4o"]}]
  max_budget: 100
  budget_duration: 30d
  num_retries: 3
router_settings:
  routing_strategy: least-busy
general_settings:
  master_key: sk-1234
"#;

fn names(pairs: &[(&str, &str)]) -> Result<BTreeMap<String, ModelName>, Box<dyn Error>> {
    let pair = |(from, to): &(&str, &str)| Ok(((*from).to_owned(), to.parse::<ModelName>()?));
    pairs.iter().map(pair).collect()
}

#[test]
fn what_can_be_carried_over_is_and_the_rest_is_named() -> Result<(), Box<dyn Error>> {
    let imported = import(FILE, &names(&[("qwen", "mlx-community/Qwen3-8B")])?)?;
    let clouds: Vec<&str> = imported.clouds.iter().map(CloudName::as_str).collect();
    // Who has what was asked for is asked before who answers with another model.
    let order = [
        "openai",
        "groq",
        "llm",
        "10",
        "openai-for-others",
        "llm-for-others",
    ];
    assert_eq!(clouds, order);
    assert_eq!(imported.monthly, Some("100".parse()?));
    // What has no price waits for somebody who writes it: the rest loads.
    let mut toml = imported.toml.clone();
    assert!(
        toml.contains("# models.\"mystery\" = { name = \"llama-3.3-70b-versatile\", input = ?, output = ? }"),
        "{toml}"
    );
    toml = toml
        .replace("# models.\"mystery\"", "models.\"mystery\"")
        .replace('?', "1");
    let config = Config::load(&toml, &BTreeMap::<String, String>::new())?;

    let openai = &config.clouds[&"openai".parse::<CloudName>()?];
    assert_eq!(openai.address.to_string(), "https://api.openai.com/v1");
    assert_eq!(openai.key, CloudKey::Variable("OPENAI_API_KEY".into()));
    assert_eq!(
        (
            openai.parallel,
            openai.requests_per_minute,
            openai.tokens_per_minute
        ),
        (8, Some(500), Some(30_000))
    );
    let gpt = &openai.models[&"gpt-4o".parse::<ModelName>()?];
    assert_eq!(
        (gpt.name.as_str(), gpt.prices.input, gpt.prices.output),
        ("gpt-4o", "2.5".parse()?, "10".parse()?)
    );
    // The file says that it answers for the other one.
    let qwen = "mlx-community/Qwen3-8B".parse::<ModelName>()?;
    assert!(!openai.models.contains_key(&qwen));
    let others = &config.clouds[&"openai-for-others".parse::<CloudName>()?];
    assert_eq!(others.models[&qwen].name, "gpt-4o");
    assert_eq!((others.models.len(), others.requests_per_minute), (1, Some(500)));
    assert_eq!((&others.address, &others.key), (&openai.address, &openai.key));
    let own = &config.clouds[&"10".parse::<CloudName>()?];
    assert_eq!(
        (own.models[&qwen].name.as_str(), own.key.clone()),
        ("Qwen/Qwen3-8B", CloudKey::None)
    );
    let eu = &config.clouds[&"llm".parse::<CloudName>()?];
    assert_eq!(
        eu.models[&"gpt-4o".parse::<ModelName>()?].prices.input,
        "3".parse()?
    );

    let has = |lines: &[String], text: &str| lines.iter().any(|line| line.contains(text));
    for text in [
        "model_list[1]: its key stands in the file",
        "for `qwen` clouds `…-for-others` answer with `gpt-4o`",
        "max_budget",
    ] {
        assert!(has(&imported.changed, text), "{text}: {:#?}", imported.changed);
    }
    for text in [
        "model_list[0].model_info.mode",
        "model_list[1].litellm_params.weight",
        "model_list[3]: `anthropic` does not speak",
        "model_list[4]: `openai/*` stands for many",
        "`mystery`: its prices",
        "`gpt-4o` to `claude`",
        "context_window_fallbacks: another model",
        "litellm_settings.num_retries",
        "router_settings.routing_strategy",
        "general_settings.master_key: make keys",
    ] {
        assert!(has(&imported.left, text), "{text}: {:#?}", imported.left);
    }
    let all = format!("{imported:?}");
    assert!(
        !all.contains("sk-in-the-file") && !all.contains("sk-1234"),
        "{all}"
    );
    Ok(())
}

/// The commonest file: both models at one account.
#[test]
fn fallbacks_at_the_same_address_come_after_and_limits_that_change_are_named() -> Result<(), Box<dyn Error>> {
    let text = r#"
model_list:
  - model_name: big
    litellm_params: { model: openai/gpt-4o, rpm: "500", max_parallel_requests: 400, order: 2 }
    model_info: { input_cost_per_token: 0, output_cost_per_token: 0 }
  - model_name: small
    litellm_params: { model: openai/gpt-4o-mini, rpm: 5000, tpm: os.environ/TPM, order: 1 }
    model_info: { input_cost_per_token: 0, output_cost_per_token: 0 }
  - model_name: small
    litellm_params: { model: groq/mini }
    model_info: { input_cost_per_token: 0, output_cost_per_token: 0 }
  - model_name: big
    litellm_params: { model: groq/big, order: 3 }
    model_info: { input_cost_per_token: 0, output_cost_per_token: 0 }
litellm_settings:
  fallbacks: [{"big": ["small", "nobody", "small", "big"]}, {"*": ["small"]}]
  budget_duration: 30d
"#;
    let imported = import(text, &BTreeMap::new())?;
    let clouds: Vec<&str> = imported.clouds.iter().map(CloudName::as_str).collect();
    assert_eq!(clouds, ["groq", "openai", "groq-for-others", "openai-for-others"]);
    let config = Config::load(&imported.toml, &BTreeMap::<String, String>::new())?;
    let big = "big".parse::<ModelName>()?;
    for (cloud, there) in [("openai", "gpt-4o"), ("openai-for-others", "gpt-4o-mini")] {
        assert_eq!(
            config.clouds[&cloud.parse::<CloudName>()?].models[&big].name,
            there
        );
    }
    let openai = &config.clouds[&"openai".parse::<CloudName>()?];
    assert_eq!((openai.requests_per_minute, openai.parallel), (Some(5500), 256));
    let has = |lines: &[String], text: &str| lines.iter().any(|line| line.contains(text));
    for text in [
        "for `big` clouds `…-for-others` answer with `small`",
        "model_list[1].litellm_params.rpm: is added up",
        "`big`: its `order` is another one",
        "400 requests at once are 256",
    ] {
        assert!(has(&imported.changed, text), "{text}: {:#?}", imported.changed);
    }
    for text in [
        "model_list[1].litellm_params.tpm: \"os.environ/TPM\" is no limit",
        "`big` to `nobody`",
        "fallbacks: `*` is no name",
        "litellm_settings.budget_duration",
    ] {
        assert!(has(&imported.left, text), "{text}: {:#?}", imported.left);
    }
    Ok(())
}

#[test]
fn what_is_no_configuration_is_said_so() {
    let none = BTreeMap::new();
    for (text, why) in [
        ("", "no configuration of LiteLLM"),
        ("a: [", "not YAML"),
        ("- 1", "no configuration of LiteLLM"),
        ("general_settings: {}", "no `model_list`"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\ni: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
            "not YAML",
        ),
    ] {
        assert!(
            import(text, &none).is_err_and(|error| error.contains(why)),
            "{why}"
        );
    }
    // Entries that make no sense are named one by one.
    let odd = "model_list: [1, {model_name: a}, {model_name: a, litellm_params: {model: 5}}, {litellm_params: {}}]\nx: 3\nlitellm_settings: {fallbacks: 7, max_budget: -1}\n";
    let imported = import(odd, &none);
    assert!(imported.is_ok_and(|imported| imported.left.len() == 7 && imported.clouds.is_empty()));
}
