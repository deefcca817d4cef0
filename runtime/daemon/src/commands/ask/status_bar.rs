//! The line on standard error that shows what `phi-edge ask` waits for.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// The time between two frames of the spinner.
const TICK: Duration = Duration::from_millis(120);
/// The template of the bar.
const TEMPLATE: &str = "reading the prompt {bar:30} {pos}/{len} tokens {eta}";

/// A spinner, then a bar for a prompt that is computed in several parts; nothing where standard error is no terminal.
pub(super) struct StatusBar {
    shown: Option<ProgressBar>,
    is_bar: bool,
}

impl StatusBar {
    /// A spinner with a message.
    pub(super) fn new(message: String) -> Self {
        let shown = Self::is_possible().then(|| {
            let spinner = ProgressBar::new_spinner().with_message(message);
            spinner.enable_steady_tick(TICK);
            spinner
        });
        Self { shown, is_bar: false }
    }

    /// Whether there is a terminal to show it on.
    pub(super) fn is_possible() -> bool {
        std::io::stderr().is_terminal()
    }

    /// Replaces the spinner's message.
    pub(super) fn set_message(&self, message: &'static str) {
        if let Some(shown) = &self.shown {
            shown.set_message(message);
        }
    }

    /// Shows the part of the prompt that is computed.
    pub(super) fn set_progress(&mut self, done: u64, total: u64) {
        let Some(shown) = &self.shown else { return };
        // A prompt that one run computes needs no bar.
        if !self.is_bar && done < total {
            let bar = ProgressBar::new(total);
            if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
                bar.set_style(style);
            }
            shown.finish_and_clear();
            self.shown = Some(bar);
            self.is_bar = true;
        }
        if self.is_bar
            && let Some(bar) = &self.shown
        {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Removes it from the terminal, before anything else is printed.
    pub(super) fn clear(&mut self) {
        if let Some(shown) = self.shown.take() {
            shown.finish_and_clear();
        }
    }
}
