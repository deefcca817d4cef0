//! The progress of a download or copy, file by file.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use phi_edge_models::{Event, Size};

/// Progress bars on a terminal; elsewhere one line for each finished file.
pub(crate) struct ProgressBars {
    bars: Option<MultiProgress>,
    files: Mutex<HashMap<String, ProgressBar>>,
}

impl ProgressBars {
    pub(crate) fn new() -> Self {
        Self {
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            files: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn show(&self, event: &Event<'_>) {
        match *event {
            Event::Kept { file, size } => self.line(&format!("{file}: there already, {}", Size(size))),
            Event::Begun { file, size, have } => self.begin(file, size, have),
            Event::At { file, bytes } => self.with(file, |bar| bar.set_position(bytes)),
            Event::Retry { file, why, wait } => {
                self.line(&format!("{file}: {why}; again in {:.1} s", wait.as_secs_f32()));
            }
            Event::Done { file } if self.bars.is_none() => self.line(&format!("{file}: done")),
            Event::Done { file } => self.with(file, ProgressBar::finish),
            Event::Dropped { name } => self.line(&format!(
                "{name}: the version before this one is removed for room"
            )),
        }
    }

    /// Removes the bars from the terminal, before anything else is printed.
    pub(crate) fn end(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }

    fn begin(&self, file: &str, size: u64, have: u64) {
        let Some(bars) = &self.bars else {
            if have > 0 {
                self.line(&format!("{file}: goes on at {} of {}", Size(have), Size(size)));
            }
            return;
        };
        let style = ProgressStyle::with_template(
            "{msg:40!} {bar:30} {bytes:>10}/{total_bytes:10} {binary_bytes_per_sec} {eta}",
        );
        let bar = bars
            .add(ProgressBar::new(size))
            .with_message(file.to_owned())
            .with_position(have);
        if let Ok(style) = style {
            bar.set_style(style);
        }
        // What an earlier pull brought must not count for the speed.
        bar.reset_eta();
        self.files.lock().insert(file.to_owned(), bar);
    }

    fn with(&self, file: &str, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.files.lock().get(file) {
            act(bar);
        }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }
}
