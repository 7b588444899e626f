//! What a cluster agrees on version by version, the newest being in force.

use crate::fallback::Fallbacks;
use crate::knobs::KnobSet;
use crate::slo::SloSet;

/// See the module's documentation.
pub trait Versioned: Clone + PartialEq {
    /// What people call it, and the command that shows it.
    const NAME: &'static str;

    /// Counts what was agreed on, from 1.
    fn version(&self) -> u64;

    /// Takes the place of what is known, if it is newer, or says more under the same version: an older program was
    /// told, and has kept, only what it could read of it. Whether it is news.
    fn replace_in(&self, known: &mut Option<Self>) -> bool {
        let is_news = known.as_ref().is_none_or(|known| {
            known.version() < self.version() || known.version() == self.version() && known != self
        });
        if is_news {
            *known = Some(self.clone());
        }
        is_news
    }
}

impl Versioned for KnobSet {
    const NAME: &'static str = "knobs";

    fn version(&self) -> u64 {
        self.version
    }
}

impl Versioned for Fallbacks {
    const NAME: &'static str = "fallback";

    fn version(&self) -> u64 {
        self.version
    }
}

impl Versioned for SloSet {
    const NAME: &'static str = "slo";

    fn version(&self) -> u64 {
        self.version
    }
}
