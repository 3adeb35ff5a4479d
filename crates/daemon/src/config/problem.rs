//! Problems of a configuration and their positions: collected, then shown together with the line.

use std::error::Error;
use std::fmt;
use std::io::IsTerminal;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use crate::terminal::{self, Printable, PrintableLines};

/// The number of problems that are shown, so that a file of another kind is reported quickly.
const MOST: usize = 20;
/// The maximum length of a quoted line, and of a message.
const LONGEST: usize = 1000;

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    severity: Severity,
    /// A range of bytes in the file; `None` if no position is to blame.
    span: Option<Range<usize>>,
    message: String,
    help: Option<String>,
    /// Whether the line may be shown: not when it holds a secret.
    quote: bool,
}

/// Whether the daemon can start all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Error,
    Warning,
    Note,
}

impl Problem {
    /// An error of the whole file.
    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            span: None,
            message: message.into(),
            help: None,
            quote: true,
        }
    }

    /// A valid value that is rarely intended.
    pub(crate) fn warning(message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(message) }
    }

    /// Something that may be intended; the file does not show whether it is.
    pub(crate) fn note(message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::error(message) }
    }

    /// The problem in one sentence, with the advice.
    pub(crate) fn sentence(&self) -> String {
        match &self.help {
            Some(help) => format!("{}; {help}", self.message),
            None => self.message.clone(),
        }
    }

    /// Sets the position in the file.
    pub(crate) fn at(self, span: impl Into<Option<Range<usize>>>) -> Self {
        Self { span: span.into(), ..self }
    }

    /// Sets the advice.
    pub(crate) fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// Marks the line as secret: it is not shown.
    pub(crate) fn secret(self) -> Self {
        Self { quote: false, ..self }
    }

    /// Puts the subject in front of the message.
    pub(super) fn of(self, subject: &str) -> Self {
        Self { message: format!("{subject}: {}", self.message), ..self }
    }

    /// Makes the texts safe for a terminal, and no longer than people read.
    fn shown(&self) -> Self {
        let fit = |text: &String| {
            let cut = text.char_indices().nth(LONGEST).map(|(at, _)| &text[..at]);
            let text = PrintableLines(cut.unwrap_or(text)).to_string();
            if cut.is_some() { text + "…" } else { text }
        };
        Self { message: fit(&self.message), help: self.help.as_ref().map(fit), ..self.clone() }
    }

    fn start(&self) -> usize {
        self.span.as_ref().map_or(0, |span| span.start)
    }
}

/// All problems of one file, in the order of the file.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    file: String,
    source: String,
    problems: Vec<Problem>,
}

impl Report {
    /// A report about `file`, whose contents are `source`.
    pub(crate) fn new(file: String, source: String, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(Problem::start);
        if problems.len() > MOST {
            // Errors come first, so that they are among the problems that are shown.
            problems.sort_by_key(|problem| problem.severity != Severity::Error);
        }
        Self { file, source, problems }
    }

    /// Adds problems that arise on this host.
    pub(crate) fn and(mut self, more: Vec<Problem>) -> Self {
        self.problems.extend(more);
        Self::new(self.file, self.source, self.problems)
    }

    /// The contents of the file.
    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    /// Whether the daemon cannot start with this.
    pub(crate) fn is_fatal(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Whether there is no problem.
    pub(crate) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// One line for each problem: `site-a.toml:14:1: message; help`, and the number of those left out.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        self.findings().map(|finding| finding.to_string()).chain(self.more())
    }

    /// The number of problems that are not shown.
    pub(crate) fn left_out(&self) -> usize {
        self.problems.len().saturating_sub(MOST)
    }

    fn more(&self) -> Option<String> {
        (self.left_out() > 0).then(|| format!("and {} more problems", self.left_out()))
    }

    /// The problems with their lines and columns.
    pub(crate) fn findings(&self) -> impl Iterator<Item = Finding<'_>> {
        self.problems.iter().take(MOST).map(|problem| {
            let place = problem.span.as_ref().map(|span| position(&self.source, span.start));
            let Problem { severity, message, help, .. } = problem;
            Finding { severity: *severity, file: &self.file, place, message, help }
        })
    }

    /// Renders the report with the file's text made safe for a terminal.
    fn render(&self, renderer: &Renderer) -> String {
        let problems = self.problems.iter().take(MOST).map(Problem::shown).collect();
        let file = Printable(&self.file).to_string();
        let shown = Self { file, source: terminal::in_place(&self.source), problems };
        let groups: Vec<_> = shown.problems.iter().map(|problem| shown.group(problem)).collect();
        let texts = groups.chunks(1).map(|group| renderer.render(group));
        texts.chain(self.more()).collect::<Vec<_>>().join("\n\n")
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let title = level.primary_title(&problem.message);
        let group = match &problem.span {
            Some(span) if problem.quote && self.is_short(span) => {
                title.element(self.snippet(span.clone()))
            }
            Some(span) => title.element(self.origin(span.start)),
            None => title.element(Origin::path(&self.file)),
        };
        group.elements(problem.help.as_ref().map(|help| Level::HELP.message(help)))
    }

    fn snippet(&self, span: Range<usize>) -> Snippet<'_, annotate_snippets::Annotation<'_>> {
        let annotation = AnnotationKind::Primary.span(span);
        Snippet::source(&self.source).path(&self.file).annotation(annotation)
    }

    /// Whether the quoted line is short enough to be read.
    fn is_short(&self, span: &Range<usize>) -> bool {
        let begin =
            self.source.get(..span.start).and_then(|before| before.rfind('\n')).unwrap_or(0);
        let end = self.source.get(span.end..).and_then(|after| after.find('\n'));
        let end = end.map_or(self.source.len(), |end| span.end + end);
        end - begin <= LONGEST
    }

    fn origin(&self, start: usize) -> Origin<'_> {
        let Place { line, column } = position(&self.source, start);
        Origin::path(&self.file).line(line).char_column(column)
    }
}

/// For people: in colour if standard error is a terminal.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colour = std::io::stderr().is_terminal();
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        f.write_str(&self.render(&renderer))
    }
}

impl Error for Report {}

/// A problem for programs to read.
#[derive(Debug, Serialize)]
pub(crate) struct Finding<'a> {
    severity: Severity,
    file: &'a str,
    #[serde(flatten)]
    place: Option<Place>,
    message: &'a str,
    help: &'a Option<String>,
}

impl fmt::Display for Finding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        self.place.iter().try_for_each(|Place { line, column }| write!(f, "{line}:{column}:"))?;
        write!(f, " {}", self.message)?;
        self.help.iter().try_for_each(|help| write!(f, "; {help}"))
    }
}

/// Line and column count from 1; columns are characters.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Place {
    line: usize,
    column: usize,
}

fn position(source: &str, byte: usize) -> Place {
    let before = source.get(..byte).unwrap_or(source);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    Place { line, column: before[line_start..].chars().count() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters() {
        assert_eq!(position("", 0), Place { line: 1, column: 1 });
        assert_eq!(position("a\nbc", 3), Place { line: 2, column: 2 });
        assert_eq!(position("é = 1", 3), Place { line: 1, column: 3 });
        assert_eq!(position("short", 99), Place { line: 1, column: 6 });
    }

    #[test]
    fn nothing_in_a_file_reaches_the_terminal_as_it_is() {
        let source = "k\u{9b}ey = \"\x1b[2J\u{202e}\"\r\n";
        let problem = Problem::error("unknown key `k\u{9b}ey`").at(0..6).help("\x1b]0;title\x07");
        let report = Report::new("f\u{85}".into(), source.into(), vec![problem]);
        let text = report.render(&Renderer::plain());
        assert!(!text.contains(|c| terminal::is_unfit(c) && c != '\n'), "{text:?}");
        assert!(text.contains(r"`k\u{9b}ey`") && text.contains("k??ey"), "{text}");
    }

    #[test]
    fn many_problems_end_at_twenty_with_the_errors_first() {
        let source = "x\n".repeat(400_000);
        let warning = |line: usize| Problem::warning(format!("w{line}")).at(2 * line..2 * line + 1);
        let mut problems: Vec<_> = (0..300_000).map(warning).collect();
        problems.push(Problem::error("the one").at(700_000..700_001));
        let report = Report::new("f".into(), source, problems);
        let lines: Vec<_> = report.lines().collect();
        assert_eq!((lines.len(), report.findings().count()), (21, 20));
        assert_eq!(lines[0], "f:350001:1: the one");
        assert_eq!(lines[20], "and 299981 more problems");
        let text = report.render(&Renderer::plain());
        assert!(text.starts_with("error: the one"), "{text}");
        assert!(text.ends_with("\n\nand 299981 more problems"), "{text}");
    }

    #[test]
    fn a_line_that_nobody_reads_is_not_quoted() {
        let source = format!("k = '{}'", "x".repeat(100_000));
        let problem = Problem::error("y".repeat(100_000)).at(4..100_006);
        let text = Report::new("f".into(), source, vec![problem]).render(&Renderer::plain());
        assert!(text.len() < 3000 && text.contains("y…") && text.contains("f:1:5"), "{text}");
    }

    #[test]
    fn a_secret_line_is_not_shown() {
        let problem = Problem::error("a key itself").at(4..10).secret();
        let report = Report::new("f".into(), "k = 'hunter2'".into(), vec![problem]);
        let text = report.render(&Renderer::plain());
        assert!(text.contains("f:1:5") && !text.contains("hunter2"), "{text}");
    }
}
