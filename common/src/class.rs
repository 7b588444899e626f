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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClassReason {
    /// The header `x-pomona-class`.
    Header,
    /// The body's `service_tier`.
    ServiceTier,
    /// Nothing said otherwise.
    Default,
    /// The node itself asks whether its engine still makes tokens.
    Canary,
}

impl ClassReason {
    /// The reason as one word.
    pub const fn as_str(self) -> &'static str {
        match self {
            ClassReason::Header => "header",
            ClassReason::ServiceTier => "service_tier",
            ClassReason::Default => "default",
            ClassReason::Canary => "canary",
        }
    }
}

/// Decides the class: the header, then `service_tier` (`flex` is batch, `priority` is
/// interactive; other tiers say nothing, so that unknown ones do not break a client), else
/// interactive.
///
/// # Errors
/// The header is there and names no class.
pub fn classify(
    header: Option<&str>,
    service_tier: Option<&str>,
) -> Result<(Class, ClassReason), UnknownClass> {
    if let Some(text) = header {
        return Ok((text.trim().parse()?, ClassReason::Header));
    }
    Ok(match service_tier {
        Some("flex") => (Class::Batch, ClassReason::ServiceTier),
        Some("priority") => (Class::Interactive, ClassReason::ServiceTier),
        _ => (Class::Interactive, ClassReason::Default),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_wins_over_the_tier() {
        assert_eq!(
            classify(Some("batch"), Some("priority")),
            Ok((Class::Batch, ClassReason::Header))
        );
    }

    #[test]
    fn tiers_map_to_classes_and_unknown_ones_to_the_default() {
        let class = |tier| classify(None, Some(tier)).map(|(class, _)| class);
        assert_eq!(class("flex"), Ok(Class::Batch));
        assert_eq!(class("priority"), Ok(Class::Interactive));
        assert_eq!(class("no-such-tier"), Ok(Class::Interactive));
    }

    #[test]
    fn an_unknown_class_in_the_header_is_an_error() {
        assert!(classify(Some("urgent"), None).is_err());
    }
}
