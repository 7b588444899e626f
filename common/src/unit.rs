//! Numbers with their unit in the type, and readings that know whether they were measured.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty), $suffix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number, for arithmetic inside one function and for the wire.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{}", $suffix), self.0)
            }
        }
    };
}

unit!(
    /// Electrical power, averaged over the sampling period.
    Watts(f32), " W"
);
unit!(
    /// An amount of memory or of data.
    Bytes(u64), " B"
);
unit!(
    /// A number of model tokens.
    Tokens(u32), " tok"
);
unit!(
    /// A span of time.
    Millis(f64), " ms"
);
unit!(
    /// A share, 0 to 100.
    Percent(f32), " %"
);

impl Bytes {
    /// This many mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }

    /// In gibibytes, for people.
    pub fn as_gib(self) -> f64 {
        self.0 as f64 / (1024.0 * 1024.0 * 1024.0)
    }
}

/// A value together with where it came from. What a machine cannot measure is
/// [`Reading::Unavailable`], never zero.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub enum Reading<T> {
    /// Read from the machine.
    Measured(T),
    /// Set by a script (tests, simulator), and says so.
    Scripted(T),
    /// This machine has no such source, or it did not answer.
    #[default]
    Unavailable,
}

impl<T> Reading<T> {
    /// The value, whatever its origin.
    pub fn value(self) -> Option<T> {
        match self {
            Reading::Measured(value) | Reading::Scripted(value) => Some(value),
            Reading::Unavailable => None,
        }
    }

    /// `Measured` when there is a value.
    pub fn measured(value: Option<T>) -> Self {
        value.map_or(Reading::Unavailable, Reading::Measured)
    }
}

impl<T: fmt::Display> fmt::Display for Reading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reading::Measured(value) => write!(f, "{value}"),
            Reading::Scripted(value) => write!(f, "{value} (scripted)"),
            Reading::Unavailable => f.write_str("unavailable"),
        }
    }
}
