//! Names of things. Each kind has its own type, so that one cannot stand for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

/// A text that is not a valid id or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not exactly 32 hexadecimal digits.
    #[error("expected 32 hexadecimal digits, got `{0}`")]
    NotHex(String),
    /// Empty, too long, or with a character outside the alphabet of names.
    #[error(
        "`{0}` is not a name: use 1 to {max} letters, digits and `. _ - /`, starting with a letter or digit, without `..` or an empty part",
        max = limits::MODEL_NAME_CHARS
    )]
    NotAName(String),
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(u128);

        impl $name {
            /// The id with these 128 bits; callers draw them at random.
            pub const fn from_bits(bits: u128) -> Self {
                Self(bits)
            }

            /// The 128 bits.
            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(IdError::NotHex(text.chars().take(64).collect()));
                }
                u128::from_str_radix(text, 16)
                    .map(Self)
                    .map_err(|_| IdError::NotHex(text.to_owned()))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }
    };
}

id128!(
    /// One cluster, drawn when its certificate authority is made.
    ClusterId
);
id128!(
    /// One node, stable across restarts.
    NodeId
);
id128!(
    /// One request of a client, the same on every machine it touches.
    RequestId
);

id128!(
    /// One join token; not secret.
    TokenId
);

id128!(
    /// One API key; not secret.
    KeyId
);

impl NodeId {
    /// The first eight digits: enough for a table a person reads.
    pub fn short(self) -> String {
        format!("{:08x}", self.bits() >> 96)
    }
}

/// The name of a model: an alphabet that is safe as a path below the store, as a URL part and
/// as a metrics label (`mlx-community/SmolLM2-135M-Instruct`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct ModelName(String);

impl ModelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as one path component: `/` becomes `--`, as the Hugging Face cache does.
    pub fn as_folder(&self) -> String {
        self.0.replace('/', "--")
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ModelName {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let refused = || IdError::NotAName(text.chars().take(160).collect());
        if text.is_empty() || text.len() > limits::MODEL_NAME_CHARS {
            return Err(refused());
        }
        let part_is_sound = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && !part.contains("..")
                && !part.contains("--")
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if text.split('/').count() > 2 || !text.split('/').all(part_is_sound) {
            return Err(refused());
        }
        Ok(Self(text.to_owned()))
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> String {
        name.0
    }
}

impl TryFrom<String> for ModelName {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_text() {
        let id = NodeId::from_bits(0x00ab << 100);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert_eq!(id.short().len(), 8);
    }

    #[test]
    fn ids_of_the_wrong_length_are_refused() {
        for text in [
            "",
            "ab",
            &"g".repeat(32),
            &"a".repeat(33),
            "+0000000000000000000000000000001",
        ] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_that_could_leave_the_store_are_refused() {
        for text in [
            "",
            ".",
            "..",
            "/etc",
            "a/../b",
            "a//b",
            "a/b/c",
            "-x",
            "a\\b",
            "a b",
            "ä",
            "a\0",
            "x/.hidden",
            "a--b",
            "a/",
            "~",
            "a:b",
            "%2e%2e",
        ] {
            assert!(text.parse::<ModelName>().is_err(), "{text:?}");
        }
        assert!("a".repeat(200).parse::<ModelName>().is_err());
    }

    #[test]
    fn hub_names_are_accepted() -> Result<(), IdError> {
        let name: ModelName = "mlx-community/SmolLM2-135M-Instruct".parse()?;
        assert_eq!(name.as_folder(), "mlx-community--SmolLM2-135M-Instruct");
        Ok(())
    }
}
