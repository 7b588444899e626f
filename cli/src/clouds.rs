//! Clouds.

use anyhow::{Context, bail};
use hyper::Method;
use pomona_cluster_config::Config;
use serde_json::{Value, json};

use crate::admin::{ask, encoded, tell};
use crate::arguments::CloudCommand;
use crate::audit;
use crate::tables::{self, list, text};

const PATH: &str = "/admin/v1/clouds";

pub(crate) fn run(config: &Config, command: &CloudCommand, json: bool) -> anyhow::Result<()> {
    match command {
        CloudCommand::List => tables::asked(config, PATH, json, show)?,
        CloudCommand::Approve {
            name,
            days,
            money,
            tokens,
        } => {
            if !(days.is_finite() && *days > 0.0 && *days <= 366.0) {
                bail!("{days} is no number of days that an approval could last: up to 366");
            }
            let wanted = json!({
                "lasts_s": (days * 86_400.0) as u64, "money": money, "tokens": tokens_of(tokens)?,
            });
            tell(
                config,
                &Method::PUT,
                &format!("{PATH}/{}", encoded(name)),
                &wanted,
            )?;
            tables::say(
                "It is asked where a list names it, when no machine answers: `pomona fallback show`. \
                 Each request that goes there is written down: `pomona cloud spills`.",
            );
        }
        CloudCommand::Revoke { name } => {
            ask(config, &Method::DELETE, &format!("{PATH}/{}", encoded(name)))?;
            tables::say("Nothing more goes there. What is under way ends by itself.");
        }
        CloudCommand::Spills { last, noted } => {
            let log = audit::Log {
                path: "/admin/v1/spills",
                empty: "Nothing went to a cloud yet.",
            };
            audit::run(config, &log, *last, noted.as_deref(), json)?;
        }
        CloudCommand::Budget { key, money } => {
            let monthly = (money != "none").then_some(money);
            let path = format!("/admin/v1/keys/{}/budget", encoded(key));
            tell(config, &Method::PUT, &path, &json!({ "monthly": monthly }))?;
            tables::say("It holds from now on, for this month too: `pomona cloud list`.");
        }
        CloudCommand::Private { model, no } => {
            let path = format!("/admin/v1/private/{}", encoded(model));
            tell(config, &Method::PUT, &path, &json!({ "private": !no }))?;
            tables::say(if *no {
                "Its prompts may go where the lists say."
            } else {
                "Its prompts go to no cloud and to no rented Mac from now on."
            });
        }
    }
    Ok(())
}

/// A number of tokens as people write it.
fn tokens_of(text: &str) -> anyhow::Result<u64> {
    let (digits, times) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1_000),
        Some((at, 'M')) => (&text[..at], 1_000_000),
        _ => (text, 1),
    };
    let count: u64 = digits
        .parse()
        .with_context(|| format!("`{text}` is no number of tokens, such as 5000000 or 5M"))?;
    count
        .checked_mul(times)
        .context("that is more tokens than there are")
}

fn show(answer: &Value) {
    let clouds = list(&answer["clouds"]);
    if clouds.is_empty() {
        tables::say(
            "No cloud is configured: [cloud.NAME] in the configuration of coordinators, see the README.",
        );
    } else {
        let rows = clouds.iter().map(row).collect();
        tables::table(&["CLOUD", "WHERE", "APPROVED", "THIS MONTH", "STATE"], rows);
    }
    for budget in list(&answer["budgets"]) {
        tables::say(&format!(
            "Key {}: {} of {} taken this month",
            text(&budget["key"]),
            text(&budget["spent"]),
            text(&budget["monthly"])
        ));
    }
    let private: Vec<String> = list(&answer["private_models"]).iter().map(text).collect();
    if !private.is_empty() {
        tables::say(&format!("Private: {}", private.join(", ")));
    }
}

fn row(cloud: &Value) -> Vec<String> {
    let (approval, month) = (&cloud["approval"], &cloud["month"]);
    let approved = match (approval["until_s"].as_u64(), approval["holds"].as_bool()) {
        (Some(until_s), Some(true)) => {
            format!("by {}, ends {}", text(&approval["by"]), tables::until(until_s))
        }
        (Some(_), _) if approval["address"] != cloud["address"] && !cloud["address"].is_null() => {
            format!("only at {}", text(&approval["address"]))
        }
        (Some(_), _) => "not any more".to_owned(),
        (None, _) => "no".to_owned(),
    };
    let taken = if approval.is_null() {
        format!("{}, {} tokens", text(&month["money"]), month["tokens"])
    } else {
        format!(
            "{} of {}, {} of {} tokens",
            text(&month["money"]),
            text(&approval["monthly_money"]),
            month["tokens"],
            approval["monthly_tokens"]
        )
    };
    let state = match (cloud["problem"].as_str(), cloud["left_alone_s"].as_u64()) {
        (Some(problem), _) => problem.to_owned(),
        (None, Some(0)) => "failed lately, the next request tries it".to_owned(),
        (None, Some(seconds)) => format!("failed lately, left alone for {seconds} s"),
        (None, None) => format!("{} answers under way", cloud["under_way"]),
    };
    let address = match &cloud["address"] {
        Value::Null => text(&approval["address"]),
        address => text(address),
    };
    vec![text(&cloud["name"]), address, approved, taken, state]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_written_as_people_do() {
        for (said, tokens) in [("5", 5), ("12k", 12_000), ("3M", 3_000_000)] {
            assert_eq!(tokens_of(said).ok(), Some(tokens));
        }
        for bad in ["", "M", "-1", "1.5M", "5G", "99999999999999M"] {
            assert!(tokens_of(bad).is_err(), "{bad}");
        }
    }
}
