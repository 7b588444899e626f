//! Progress bars on standard error, and log lines of this process that do not tear them.

use std::collections::BTreeMap;
use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use pomona_common::ModelName;

/// All bars of this process; clones share the terminal.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(MultiProgress);

impl Progress {
    /// A bar over bytes, without length yet.
    pub(crate) fn bytes(&self) -> ProgressBar {
        let bar = self.0.add(ProgressBar::no_length());
        let template = "{msg:32!} {bar:30} {bytes:>10}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    }

    /// Bars for models that a node loads.
    pub(crate) fn loads(&self) -> LoadBars {
        LoadBars {
            progress: self.clone(),
            bars: BTreeMap::new(),
        }
    }

    /// A writer for log lines: bars step aside while one is written.
    pub(crate) fn log(&self) -> LogWriter {
        LogWriter(self.clone())
    }
}

/// See [`Progress::log`].
pub(crate) struct LogWriter(Progress);

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.0.suspend(|| io::stderr().lock().write(line))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

/// One bar a model while it is loaded.
pub(crate) struct LoadBars {
    progress: Progress,
    bars: BTreeMap<ModelName, ProgressBar>,
}

impl LoadBars {
    /// Shows bytes read and in all for each model; a model that is gone from the list is loaded.
    pub(crate) fn show(&mut self, loads: &BTreeMap<ModelName, (u64, u64)>) {
        self.bars.retain(|model, bar| {
            let loads = loads.contains_key(model);
            if !loads {
                bar.finish_and_clear();
            }
            loads
        });
        for (model, (done, total)) in loads {
            let bar = self.bars.entry(model.clone()).or_insert_with(|| {
                let bar = self.progress.bytes();
                bar.set_message(format!("loading {model}"));
                bar
            });
            if *total > 0 {
                bar.set_length(*total);
                bar.set_position(*done);
            }
        }
    }
}
