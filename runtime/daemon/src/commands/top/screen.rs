//! The full-screen view of the nodes.

use std::io;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row, Table};
use ratatui::{DefaultTerminal, Frame};

use super::nodes::{COLUMNS, Nodes};
use crate::terminal;

/// The terminal in raw mode on its alternate screen, until this is dropped.
pub(super) struct Screen(DefaultTerminal);

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        ratatui::try_init().map(Self)
    }

    pub(super) fn draw(&mut self, nodes: &Nodes, lost: Option<&str>) -> io::Result<()> {
        self.0.draw(|frame| draw(frame, nodes, lost)).map(drop)
    }

    /// Whether the user has pressed a key that leaves.
    pub(super) fn is_left() -> io::Result<bool> {
        while event::poll(Duration::ZERO)? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
            {
                let interrupt =
                    key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn draw(frame: &mut Frame<'_>, nodes: &Nodes, lost: Option<&str>) {
    let rows = nodes.rows();
    let reasons: Vec<Line<'_>> = rows
        .iter()
        .filter_map(|(cells, reason)| Some(Line::from(format!("{}: {}", cells[0], reason.as_ref()?))))
        .collect();
    let height = u16::try_from(reasons.len()).unwrap_or(u16::MAX);
    let [table, notes, foot] = Layout::vertical([
        Constraint::Min(3),
        Constraint::Length(height),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let header = Row::new(COLUMNS.map(|(name, _)| Cell::from(name))).bold();
    let body = rows.iter().map(|(cells, _)| {
        let state = Style::new().fg(colour(&cells[1]));
        Row::new(cells.iter().enumerate().map(|(n, cell)| {
            let cell = Cell::from(cell.as_str());
            if n == 1 { cell.style(state) } else { cell }
        }))
    });
    let widths = COLUMNS.map(|(_, width)| Constraint::Length(width));
    frame.render_widget(Table::new(body, widths).header(header).column_spacing(1), table);
    frame.render_widget(Paragraph::new(reasons), notes);
    let foot_text = match lost {
        Some(reason) => Line::from(format!("{}; trying again", terminal::line(reason))).red(),
        None => Line::from("q leaves").dim(),
    };
    frame.render_widget(foot_text, foot);
}

fn colour(state: &str) -> Color {
    match state {
        "ready" => Color::Green,
        "degraded" => Color::Red,
        "offline" => Color::DarkGray,
        _ => Color::Yellow,
    }
}
