//! Turns a command's output into log lines, with a limited length and number and without control characters. So
//! a command can neither fill the log nor forge other lines.

use crate::terminal::Printable;

/// The number of bytes after which a line is cut.
const MAX_LINE: usize = 400;
/// The number of lines of one command that are logged; further ones are only counted.
const MAX_LINES: usize = 50;

/// Splits output into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    passed: usize,
    left_out: usize,
}

impl Lines {
    /// Adds output, and returns the lines that it completes.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line.extend(piece.iter().take(room).filter(|byte| **byte != b'\n'));
            if ends {
                lines.extend(self.end_line());
            }
        }
        lines
    }

    /// The last, incomplete line, after the output has ended.
    pub(super) fn rest(&mut self) -> Vec<String> {
        let mut lines: Vec<_> = self.end_line().into_iter().collect();
        if self.left_out > 0 {
            lines.push(format!("({} more lines)", self.left_out));
        }
        lines
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&line);
        let text = Printable(text.trim_end().replace('\t', " ")).to_string();
        if text.is_empty() {
            return None;
        }
        if self.passed == MAX_LINES {
            self.left_out += 1;
            return None;
        }
        self.passed += 1;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_when_they_are_whole() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(b"one\ntw"), ["one"]);
        assert_eq!(lines.take(b"o\n\n\r\nthree"), ["two"]);
        assert_eq!(lines.rest(), ["three"]);
        assert!(lines.rest().is_empty());
    }

    #[test]
    fn neither_long_nor_many_nor_coloured() {
        let mut lines = Lines::default();
        assert_eq!(lines.take(&[b'x'; 10_000]), Vec::<String>::new());
        assert_eq!(
            lines.take(b"y\n\x1b[31mred\n"),
            ["x".repeat(MAX_LINE), r"\u{1b}[31mred".into()]
        );
        assert_eq!(lines.take(&b"more\n".repeat(1000)).len(), MAX_LINES - 2);
        assert_eq!(lines.rest(), ["(952 more lines)"]);
    }
}
