//! The live screen of `top`. ratatui restores the terminal at the end and in a panic.

use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row as TableRow, Table, TableState};
use ratatui::{DefaultTerminal, Frame};
use tokio::sync::mpsc;

use super::{Meter, SortKey, Usage, sample, sort};
use crate::context::Ctx;
use crate::failure::Failure;
use crate::printer::Row;

/// Keys typed ahead; more are nobody's intention.
const KEYS_MAX: usize = 32;

struct Screen {
    rows: Vec<Usage>,
    key: SortKey,
    /// What is wrong with the last look; the rows are older then.
    trouble: Option<String>,
    table: TableState,
}

pub async fn run(ctx: &Ctx, mut meter: Meter, key: SortKey, interval: Duration) -> Result<(), Failure> {
    let mut terminal = ratatui::try_init().map_err(|e| Failure::io("cannot use the terminal", &e))?;
    let mut screen = Screen { rows: Vec::new(), key, trouble: None, table: TableState::default() };
    let result = live(ctx, &mut terminal, &mut screen, &mut meter, interval).await;
    ratatui::restore();
    result
}

async fn live(ctx: &Ctx, terminal: &mut DefaultTerminal, screen: &mut Screen, meter: &mut Meter, every: Duration) -> Result<(), Failure> {
    let mut keys = read_keys();
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| draw(frame, screen)).map_err(|e| Failure::io("cannot draw", &e))?;
        tokio::select! {
            _ = tick.tick() => match sample(ctx).await {
                Ok(stats) => {
                    screen.rows = meter.feed(stats);
                    screen.trouble = None;
                    sort(&mut screen.rows, screen.key);
                }
                Err(Failure::Error(e)) if e.code.retryable() => screen.trouble = Some(e.message),
                Err(e) => return Err(e),
            },
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    let ctrl_c = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                    if ctrl_c || press(screen, key.code) == Press::Quit {
                        return Ok(());
                    }
                }
                Some(_) => {}
                None => return Ok(()),
            },
        }
    }
}

fn read_keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    receiver
}

#[derive(PartialEq)]
enum Press {
    Quit,
    Stay,
}

fn press(screen: &mut Screen, code: KeyCode) -> Press {
    match code {
        KeyCode::Char('q') | KeyCode::Esc => return Press::Quit,
        KeyCode::Char('c') => screen.key = SortKey::Cpu,
        KeyCode::Char('m') => screen.key = SortKey::Memory,
        KeyCode::Char('d') => screen.key = SortKey::Disk,
        KeyCode::Char('n') => screen.key = SortKey::Net,
        KeyCode::Char('a') => screen.key = SortKey::Name,
        KeyCode::Down | KeyCode::Char('j') => screen.table.select_next(),
        KeyCode::Up | KeyCode::Char('k') => screen.table.select_previous(),
        _ => {}
    }
    sort(&mut screen.rows, screen.key);
    Press::Stay
}

fn draw(frame: &mut Frame<'_>, screen: &mut Screen) {
    let [title, body, foot] = Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    let running = format!("vmkeep top: {} running", screen.rows.len());
    frame.render_widget(Line::from(screen.trouble.clone().map_or(running, |t| format!("vmkeep top: {t}"))), title);
    let sorted = match screen.key {
        SortKey::Name => 0,
        SortKey::Cpu => 1,
        SortKey::Memory => 4,
        SortKey::Disk => 5,
        SortKey::Net => 7,
    };
    let head = Usage::HEAD.iter().enumerate().map(|(i, h)| {
        Cell::from(*h).style(if i == sorted {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new().add_modifier(Modifier::BOLD)
        })
    });
    let rows = screen.rows.iter().map(|u| TableRow::new(u.cells().into_iter().map(|c| c.0)));
    let widths = std::iter::once(Constraint::Min(16)).chain(std::iter::repeat_n(Constraint::Length(10), Usage::HEAD.len() - 1));
    let table = Table::new(rows, widths).header(TableRow::new(head)).row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    frame.render_stateful_widget(table, body, &mut screen.table);
    frame.render_widget(Line::from("order: c CPU  m memory  d disk  n network  a name    q quits"), foot);
}
