//! Clouds: OpenAI-compatible services outside the cluster that an operator has set up and approved. Names, and
//! what they cost.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Header of every request to a cloud: an endpoint of Pomona that is asked by another one sends it on to no cloud,
/// so that two that have each other as a cloud do not pass a request to and fro.
pub const SPILLED: &str = "x-pomona-spilled";
/// Characters of a cloud's name.
const NAME_CHARS: usize = 40;

/// What people call a cloud: `cloud:NAME` in lists of fallbacks, `[cloud.NAME]` in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct CloudName(String);

/// A text that is no name of a cloud.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a name of a cloud: use 1 to {NAME_CHARS} small letters, digits, `-` and `_`, a letter or digit first"
)]
pub struct NotACloud(String);

impl CloudName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CloudName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CloudName {
    type Err = NotACloud;

    fn from_str(text: &str) -> Result<Self, NotACloud> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let is_sound = (1..=NAME_CHARS).contains(&text.len())
            && text.bytes().next().is_some_and(is_plain)
            && text
                .bytes()
                .all(|byte| is_plain(byte) || matches!(byte, b'-' | b'_'));
        if is_sound {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotACloud(text.chars().take(2 * NAME_CHARS).collect()))
        }
    }
}

impl From<CloudName> for String {
    fn from(name: CloudName) -> String {
        name.0
    }
}

impl TryFrom<String> for CloudName {
    type Error = NotACloud;

    fn try_from(text: String) -> Result<Self, NotACloud> {
        text.parse()
    }
}

/// An amount of money in millionths, of whatever currency a team's prices are in: sums of small amounts are exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Money(pub u64);

impl Money {
    /// One of the currency.
    pub const ONE: Self = Self(1_000_000);

    /// Both together, or the most there is.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Without the other, or nothing.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / Self::ONE.0, self.0 % Self::ONE.0);
        let rest = format!("{rest:06}");
        let rest = rest.trim_end_matches('0');
        write!(f, "{whole}.{rest:0<2}")
    }
}

/// A text that is no amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount of money such as 20 or 0.15: not negative, with at most 6 decimals")]
pub struct NotMoney(String);

impl FromStr for Money {
    type Err = NotMoney;

    fn from_str(text: &str) -> Result<Self, NotMoney> {
        let refused = || NotMoney(text.chars().take(40).collect());
        let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(rest) || rest.len() > 6 {
            return Err(refused());
        }
        let whole: u64 = whole.parse().map_err(|_| refused())?;
        let rest: u64 = format!("{rest:0<6}").parse().map_err(|_| refused())?;
        let whole = whole.checked_mul(Self::ONE.0).ok_or_else(refused)?;
        whole.checked_add(rest).map(Self).ok_or_else(refused)
    }
}

/// Where an OpenAI-compatible server is: from the configuration, never from a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerAddress {
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Its name or address; an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What its paths begin with, such as `/v1`; no slash at the end.
    pub base: String,
}

impl ServerAddress {
    /// Host and port, as `Host` has it.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let usual = if self.tls { 443 } else { 80 };
        if self.port == usual {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base)
    }
}

/// What a cloud takes for a model, by a million tokens, as price lists say it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// For a million tokens of prompts.
    pub input: Money,
    /// For a million tokens of answers.
    pub output: Money,
}

impl Prices {
    /// What so many tokens cost, rounded up.
    pub fn cost(&self, prompt_tokens: u64, answer_tokens: u64) -> Money {
        let cost = |price: Money, tokens: u64| u128::from(price.0) * u128::from(tokens);
        let millionths = cost(self.input, prompt_tokens) + cost(self.output, answer_tokens);
        let money = millionths.div_ceil(1_000_000);
        Money(u64::try_from(money).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_apart_from_the_rest_of_a_list() {
        for good in ["openai", "a", "lite-llm_2", "0"] {
            assert!(good.parse::<CloudName>().is_ok(), "{good}");
        }
        let long = "a".repeat(41);
        for bad in ["", "-a", "_", "A", "a b", "a,b", "a:b", "a/b", "a.b", "ä", &long] {
            assert!(bad.parse::<CloudName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn money_is_read_as_it_is_shown() -> Result<(), NotMoney> {
        for (text, millionths, shown) in [
            ("20", 20_000_000, "20.00"),
            ("0.15", 150_000, "0.15"),
            ("0.000001", 1, "0.000001"),
            ("1.5", 1_500_000, "1.50"),
        ] {
            let money: Money = text.parse()?;
            assert_eq!((money, money.to_string()), (Money(millionths), shown.into()));
            assert_eq!(shown.parse(), Ok(money));
        }
        for bad in [
            "",
            "-1",
            "1.",
            ".5",
            "1.0000001",
            "1e3",
            "NaN",
            "99999999999999",
            "$1",
        ] {
            assert!(bad.parse::<Money>().is_err(), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn costs_are_those_of_the_list_and_never_less() {
        let prices = Prices {
            input: Money(150_000),
            output: Money(600_000),
        };
        assert_eq!(prices.cost(1_000_000, 1_000_000), Money(750_000));
        assert_eq!(prices.cost(1, 0), Money(1));
        assert_eq!(prices.cost(0, 0), Money(0));
        let most = Prices {
            input: Money(u64::MAX),
            output: Money(u64::MAX),
        };
        assert_eq!(most.cost(u64::MAX, u64::MAX), Money(u64::MAX));
    }
}
