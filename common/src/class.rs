//! The three classes of load, and how a request gets its class.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a request needs: low latency, or throughput.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// A person waits: editor completions, chat. Never delayed by a batch window.
    Interactive,
    /// Helpers of a person: after interactive, before batch.
    Background,
    /// Bulk: counted in tokens per second over all slots.
    Batch,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Class; 3] = [Class::Interactive, Class::Background, Class::Batch];

    /// Position in [`Class::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Lower-case name, as in headers, metrics and configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Interactive => "interactive",
            Class::Background => "background",
            Class::Batch => "batch",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Class {
    type Err = UnknownClass;
    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Class::ALL
            .into_iter()
            .find(|class| class.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownClass(text.chars().take(40).collect()))
    }
}

/// A class name nobody knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown class `{0}`: use interactive, background or batch")]
pub struct UnknownClass(String);

/// Why a request has its class; the text of `x-pomona-class-reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ClassReason {
    /// The header `x-pomona-class`.
    Header,
    /// The body's `service_tier`.
    ServiceTier,
    /// Nothing said otherwise.
    Default,
    /// The node itself asks whether its engine still makes tokens.
    Canary,
    /// The header `x-smg-priority`.
    Priority,
    /// The program that asks is known.
    Client,
    /// The end of the model's name.
    Alias,
    /// The API key gives all its requests this class.
    Key,
}

impl ClassReason {
    /// The reason as one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            ClassReason::Header => "header",
            ClassReason::ServiceTier => "service_tier",
            ClassReason::Default => "default",
            ClassReason::Canary => "canary",
            ClassReason::Priority => "priority",
            ClassReason::Client => "client",
            ClassReason::Alias => "alias",
            ClassReason::Key => "key",
        }
    }

    /// Version of the [protocol](crate::control::PROTOCOL) that brought it.
    pub const fn since(self) -> u16 {
        match self {
            ClassReason::Header | ClassReason::ServiceTier | ClassReason::Default | ClassReason::Canary => 1,
            ClassReason::Priority | ClassReason::Client | ClassReason::Alias => 4,
            ClassReason::Key => 5,
        }
    }
}

/// What a request says that may give it a class.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hints<'a> {
    /// What the API key says.
    pub key: Option<Class>,
    /// The header `x-pomona-class`.
    pub class: Option<&'a str>,
    /// The header `x-smg-priority`, as the gateway SMG names priorities.
    pub priority: Option<&'a str>,
    /// The body's `service_tier`.
    pub service_tier: Option<&'a str>,
    /// The header `x-app`; Claude Code marks what it does in the background.
    pub app: Option<&'a str>,
    /// The header `user-agent`.
    pub user_agent: Option<&'a str>,
    /// The class at the end of the model's name, see [`split_alias`].
    pub alias: Option<Class>,
}

/// Parts of the user agents of editors: a person waits.
const EDITORS: [&str; 8] = [
    "Zed/",
    "Xcode/",
    "vscode",
    "Visual Studio Code",
    "GitHubCopilotChat",
    "JetBrains",
    "Continue/",
    "Cursor/",
];

/// Decides the class. What the operator said of the key goes first, then what says it most plainly: the
/// header made for it, the header of another gateway, the tier (`flex` is batch, `priority` interactive), the
/// program that asks, the model's name; else interactive. What is unknown of names that are not ours says nothing, so that
/// it breaks no client. An endpoint that is for one class only would come after the tier: there is none yet, completions
/// are asked for by editors and by batch tools alike.
///
/// # Errors
/// The header `x-pomona-class` names no class.
pub fn classify(hints: Hints<'_>) -> Result<(Class, ClassReason), UnknownClass> {
    if let Some(class) = hints.key {
        return Ok((class, ClassReason::Key));
    }
    if let Some(text) = hints.class {
        return Ok((text.trim().parse()?, ClassReason::Header));
    }
    let priority = hints.priority.and_then(|text| match text.trim() {
        "system" | "interactive" => Some(Class::Interactive),
        "bulk" => Some(Class::Batch),
        _ => None,
    });
    let tier = hints.service_tier.and_then(|tier| match tier {
        "flex" => Some(Class::Batch),
        "priority" => Some(Class::Interactive),
        _ => None,
    });
    let is_editor = |agent: &str| EDITORS.iter().any(|editor| agent.contains(editor));
    let client = match (hints.app, hints.user_agent) {
        (Some("cli-bg"), _) => Some(Class::Background),
        (_, Some(agent)) if is_editor(agent) => Some(Class::Interactive),
        _ => None,
    };
    let said = [
        (priority, ClassReason::Priority),
        (tier, ClassReason::ServiceTier),
        (client, ClassReason::Client),
        (hints.alias, ClassReason::Alias),
    ];
    let first = said
        .into_iter()
        .find_map(|(class, reason)| Some((class?, reason)));
    Ok(first.unwrap_or((Class::Interactive, ClassReason::Default)))
}

/// A model's name with a class at its end, such as `org/model:batch`: the name, and the class.
pub fn split_alias(name: &str) -> Option<(&str, Class)> {
    let (model, class) = name.rsplit_once(':')?;
    let known = Class::ALL.into_iter().find(|known| known.as_str() == class)?;
    (!model.is_empty()).then_some((model, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything at once; each test takes some of it away.
    const ALL: Hints<'_> = Hints {
        key: Some(Class::Background),
        class: Some("batch"),
        priority: Some("interactive"),
        service_tier: Some("flex"),
        app: Some("cli-bg"),
        user_agent: Some("Zed/0.2"),
        alias: Some(Class::Batch),
    };

    #[test]
    fn what_says_it_most_plainly_wins() {
        let mut hints = ALL;
        assert_eq!(classify(hints), Ok((Class::Background, ClassReason::Key)));
        hints.key = None;
        assert_eq!(classify(hints), Ok((Class::Batch, ClassReason::Header)));
        hints.class = None;
        assert_eq!(classify(hints), Ok((Class::Interactive, ClassReason::Priority)));
        hints.priority = Some("default");
        assert_eq!(classify(hints), Ok((Class::Batch, ClassReason::ServiceTier)));
        hints.service_tier = Some("auto");
        assert_eq!(classify(hints), Ok((Class::Background, ClassReason::Client)));
        hints.app = Some("cli");
        assert_eq!(classify(hints), Ok((Class::Interactive, ClassReason::Client)));
        hints.user_agent = Some("OpenAI/Python 1.99");
        assert_eq!(classify(hints), Ok((Class::Batch, ClassReason::Alias)));
        hints.alias = None;
        assert_eq!(classify(hints), Ok((Class::Interactive, ClassReason::Default)));
    }

    #[test]
    fn whoever_asks_from_an_editor_waits() {
        for agent in [
            "Zed/0.198.3 (macos; aarch64)",
            "Xcode/24000 CFNetwork/3826",
            "vscode-copilot/1.104",
            "Visual Studio Code/1.104.0",
            "GitHubCopilotChat/0.31.2",
            "JetBrains-AI/2026.1",
            "Continue/1.2.0",
            "Cursor/1.6.45",
        ] {
            let hints = Hints {
                user_agent: Some(agent),
                alias: Some(Class::Batch),
                ..Hints::default()
            };
            assert_eq!(
                classify(hints),
                Ok((Class::Interactive, ClassReason::Client)),
                "{agent}"
            );
        }
    }

    #[test]
    fn only_our_own_header_is_strict() {
        let class = |hints| classify(hints).map(|(class, _)| class);
        let tier = |tier| Hints {
            service_tier: Some(tier),
            ..Hints::default()
        };
        assert_eq!(class(tier("priority")), Ok(Class::Interactive));
        assert_eq!(class(tier("no-such-tier")), Ok(Class::Interactive));
        let priority = |priority| Hints {
            priority: Some(priority),
            ..Hints::default()
        };
        assert_eq!(class(priority("bulk")), Ok(Class::Batch));
        assert_eq!(class(priority("urgent")), Ok(Class::Interactive));
        let header = Hints {
            class: Some("urgent"),
            ..Hints::default()
        };
        assert!(class(header).is_err());
    }

    #[test]
    fn a_class_ends_a_name_and_a_tag_does_not() {
        assert_eq!(split_alias("org/m:batch"), Some(("org/m", Class::Batch)));
        assert_eq!(
            split_alias("llama3:8b:background"),
            Some(("llama3:8b", Class::Background))
        );
        for plain in ["llama3:8b", "m", ":batch", "m:Batch", ""] {
            assert_eq!(split_alias(plain), None, "{plain}");
        }
    }
}
