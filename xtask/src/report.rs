//! What ran and what was skipped, and why. In CI a skip of something that this machine could do
//! is a failure.

use std::time::{Duration, Instant};

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Report {
    ran: Vec<(String, Duration)>,
    skipped: Vec<(String, String)>,
}

impl Report {
    /// Runs a step and notes how long it took; a failure ends the command.
    pub(crate) fn step(
        &mut self,
        name: &str,
        step: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        println!("\n── {name}");
        let began = Instant::now();
        step().map_err(|error| error.context(format!("step `{name}` failed")))?;
        self.ran.push((name.to_owned(), began.elapsed()));
        Ok(())
    }

    /// Notes that something was not done because this machine cannot.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        println!("\n── SKIPPED {name}: {why}");
        self.skipped.push((name.to_owned(), why.to_owned()));
    }

    /// Prints no summary: what ran has said so itself.
    pub(crate) fn forget(&mut self) {
        self.ran.clear();
    }

    /// Prints the summary.
    pub(crate) fn print(&self) {
        if self.ran.is_empty() && self.skipped.is_empty() {
            return;
        }
        println!("\nran:");
        for (name, took) in &self.ran {
            println!("  {:6.1} s  {name}", took.as_secs_f64());
        }
        println!(
            "skipped: {}",
            if self.skipped.is_empty() { "nothing" } else { "" }
        );
        for (name, why) in &self.skipped {
            println!("  {name}: {why}");
        }
    }
}

/// Whether this is CI.
pub(crate) fn in_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true" || value == "1")
}
