//! The terminal: a page in place of the one before, cut to its size. Without a terminal, pages follow each other.

use std::io::{self, Write};

use crate::interrupt::terminal_size;

/// The alternate screen, without a cursor, so that the shell's lines are there again at the end.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l";
const END: &str = "\x1b[?25h\x1b[?1049l";
/// To the first line; to the end of the line, or of the page, empty.
const HOME: &str = "\x1b[H";
const REST_OF_LINE: &str = "\x1b[K";
const REST_OF_PAGE: &str = "\x1b[J";

/// Where pages are shown. The terminal is as before when this is dropped.
pub(super) struct Screen<W: Write> {
    out: W,
    is_terminal: bool,
}

impl<W: Write> Screen<W> {
    /// Takes the whole terminal, if standard output is one.
    ///
    /// # Errors
    /// If nothing can be written.
    pub(super) fn begin(out: W) -> io::Result<Self> {
        let mut screen = Self { out, is_terminal: terminal_size().is_some() };
        if screen.is_terminal {
            screen.put(BEGIN)?;
        }
        Ok(screen)
    }

    /// Shows a page.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn show(&mut self, lines: &[String]) -> io::Result<()> {
        let text = match terminal_size().filter(|_| self.is_terminal) {
            Some((width, height)) => fitted(lines, width, height),
            None => lines.iter().map(|line| format!("{line}\n")).collect::<String>() + "\n",
        };
        self.put(&text)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

impl<W: Write> Drop for Screen<W> {
    fn drop(&mut self) {
        if self.is_terminal {
            // The terminal may be gone.
            let _gone = self.put(END);
        }
    }
}

/// The page for a terminal of this size. There is no line break after its last line, which would scroll.
fn fitted(lines: &[String], width: usize, height: usize) -> String {
    let shown: Vec<_> = lines.iter().take(height).map(|line| cut(line, width)).collect();
    format!("{HOME}{}{REST_OF_LINE}{REST_OF_PAGE}", shown.join(&format!("{REST_OF_LINE}\r\n")))
}

/// The line, or what fits of it and a mark.
fn cut(line: &str, width: usize) -> String {
    match line.char_indices().nth(width) {
        None => line.to_owned(),
        Some(_) => line.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_to_the_terminal() {
        let lines = ["site-a  UP", "  rx  1.0 Mbit/s", "  tx"].map(str::to_owned);
        let shown = fitted(&lines, 10, 2);
        assert_eq!(shown, "\x1b[Hsite-a  UP\x1b[K\r\n  rx  1.0…\x1b[K\x1b[J");
        assert_eq!(fitted(&lines, 1, 1), "\x1b[H…\x1b[K\x1b[J");
        assert_eq!(fitted(&[], 80, 24), "\x1b[H\x1b[K\x1b[J");
    }

    #[test]
    fn without_a_terminal_pages_follow_each_other() {
        let mut out = Vec::new();
        let mut screen = Screen { out: &mut out, is_terminal: false };
        screen.show(&["a".to_owned(), "b".to_owned()]).unwrap();
        drop(screen);
        assert_eq!(out, b"a\nb\n\n");
    }
}
