//! Manual pages in roff: vpnd(8) and a page for each command from the definition of the command line, vpnd.toml(5) and
//! vpnd(7) from `docs/`.

use std::env;
use std::time::{Duration, SystemTime};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::table;

/// The page that describes the configuration and the command line.
pub(super) const CONFIGURATION: &str = include_str!("../../../../docs/configuration.md");
/// The page that specifies the profile.
const PROFILE: &str = include_str!("../../../../docs/profile.md");

const MANUAL: &str = "vpnd manual";

/// The files that vpnd(8) names.
const FILES: [(&str, &str); 5] = [
    ("/etc/vpnd/NAME.toml", "The configuration of the tunnel NAME, and of its service vpnd@NAME."),
    ("/etc/vpnd/NAME.key, NAME.psk", "Its private key and its preshared key, mode 0600."),
    ("/run/vpnd/NAME.sock", "The control socket of the running tunnel."),
    ("/run/vpnd/NAME.changes", "What vpnd has changed in the system, for the start after a crash."),
    ("/var/lib/vpnd/NAME.floor", "The timestamp of the last handshake."),
];

/// Every page: its file's name and its text.
///
/// # Errors
///
/// If a page cannot be written to memory.
pub(super) fn all(command: &Command) -> anyhow::Result<Vec<(String, String)>> {
    let mut command = command.clone().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    commands(&command, &mut pages)?;
    let version = command.get_version().unwrap_or_default();
    let of_docs = [
        ("vpnd.toml", "5", "configuration of a vpnd tunnel", CONFIGURATION),
        ("vpnd", "7", "the protocol between two vpnd", PROFILE),
    ];
    for (title, section, about, page) in of_docs {
        let mut text = Roff::new();
        text.control("TH", [title, section, &date(), &format!("vpnd {version}"), MANUAL]);
        text.control("SH", ["NAME"]).text([roman(format!("{title} - {about}"))]);
        text.extend([document(page), see_also(&["vpnd(8)", "vpnd.toml(5)", "vpnd(7)"])]);
        pages.push((format!("{title}.{section}"), text.render()));
    }
    Ok(pages)
}

/// The page of `command`, and those of its subcommands.
fn commands(command: &Command, pages: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    let man = Man::new(command.clone()).section("8").date(date()).manual(MANUAL);
    let version = format!("vpnd {}", env!("CARGO_PKG_VERSION"));
    let man = man.source(version);
    let mut text = Vec::new();
    man.render(&mut text)?;
    // clap_mangen writes an empty line between two breaks, which is a paragraph.
    let mut text = String::from_utf8(text)?.replace(".br\n\n.br\n", ".sp\n");
    let is_root = man.get_filename() == "vpnd.8";
    let more = if is_root { of_program() } else { see_also(&["vpnd(8)"]) };
    text.push_str(&more.to_roff());
    pages.push((man.get_filename(), text));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        commands(sub, pages)?;
    }
    Ok(())
}

/// What vpnd(8) has besides the commands: exit codes, files, other pages.
fn of_program() -> Roff {
    let mut text = Roff::new();
    text.control("SH", ["EXIT STATUS"]);
    let codes =
        table::all(CONFIGURATION).into_iter().filter(|table| table.header == ["code", "meaning"]);
    for row in codes.flat_map(|table| table.rows) {
        define(&mut text, vec![bold(&row[0])], [vec![roman(&row[1])]]);
    }
    text.control("SH", ["FILES"]);
    for (path, contents) in FILES {
        define(&mut text, vec![italic(path)], [vec![roman(contents)]]);
    }
    text.extend([see_also(&["vpnd.toml(5)", "vpnd(7)", "ip(8)", "systemd.service(5)", "wg(8)"])]);
    text
}

fn see_also(pages: &[&str]) -> Roff {
    let mut text = Roff::new();
    text.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
    text
}

/// An entry of a list of definitions.
fn define(text: &mut Roff, term: Vec<Inline>, lines: impl IntoIterator<Item = Vec<Inline>>) {
    text.control("TP", []).text(term);
    for (index, line) in lines.into_iter().enumerate() {
        if index > 0 {
            text.control("br", []);
        }
        text.text(line);
    }
}

/// The date of the pages: `SOURCE_DATE_EPOCH`, so that a build can be repeated, or else today.
fn date() -> String {
    let fixed = env::var("SOURCE_DATE_EPOCH").ok().and_then(|seconds| seconds.parse().ok());
    let time = fixed.map_or_else(SystemTime::now, |seconds| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    });
    humantime::format_rfc3339(time).to_string().chars().take(10).collect()
}

/// A page of `docs/`, without its title.
fn document(page: &str) -> Roff {
    let mut writer = Writer::default();
    writer.text.control("SH", ["DESCRIPTION"]);
    writer.is_fresh = true;
    for event in Parser::new_ext(page, Options::ENABLE_TABLES) {
        writer.take(event);
    }
    writer.text
}

/// Translates the events of a Markdown page.
#[derive(Default)]
struct Writer {
    text: Roff,
    /// The present line of text.
    line: Vec<Inline>,
    /// Text of links, emphasis and the like.
    style: Style,
    /// A paragraph that begins here needs no macro.
    is_fresh: bool,
    /// The next number of each open list; without one it has bullets.
    lists: Vec<Option<u64>>,
    is_code: bool,
    header: Vec<String>,
    cells: Vec<Vec<Inline>>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Style {
    #[default]
    Roman,
    Bold,
    Italic,
}

impl Writer {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.is_code => self.code(&text),
            Event::Text(text) => self.line.push(match self.style {
                Style::Roman => roman(text),
                Style::Bold => bold(text),
                Style::Italic => italic(text),
            }),
            Event::Code(text) => self.line.push(bold(text)),
            Event::SoftBreak | Event::HardBreak => self.line.push(roman(" ")),
            _ => {}
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::Paragraph => self.paragraph(),
            Tag::List(first) => {
                self.flush();
                if !self.lists.is_empty() {
                    self.text.control("RS", ["2"]);
                }
                self.lists.push(*first);
            }
            Tag::Item => self.item(),
            Tag::CodeBlock(_) => {
                self.flush();
                self.is_code = true;
                self.text.control("IP", ["\"\"", "4"]).control("EX", []);
            }
            Tag::Strong => self.style = Style::Bold,
            Tag::Emphasis => self.style = Style::Italic,
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(level) => self.heading(level),
            TagEnd::Paragraph | TagEnd::Item => self.flush(),
            TagEnd::List(_) => {
                self.lists.pop();
                if !self.lists.is_empty() {
                    self.text.control("RE", []);
                }
            }
            TagEnd::CodeBlock => {
                self.is_code = false;
                self.text.control("EE", []);
                self.is_fresh = false;
            }
            TagEnd::Strong | TagEnd::Emphasis => self.style = Style::Roman,
            TagEnd::TableCell => self.cells.push(std::mem::take(&mut self.line)),
            TagEnd::TableHead => {
                self.header = self.cells.drain(..).map(|cell| plain(&cell)).collect();
            }
            TagEnd::TableRow => self.row(),
            _ => {}
        }
    }

    /// The title of the page is its NAME.
    fn heading(&mut self, level: HeadingLevel) {
        let title = plain(&std::mem::take(&mut self.line)).replace('"', "");
        match level {
            HeadingLevel::H1 => return,
            HeadingLevel::H2 => self.text.control("SH", [title.to_uppercase().as_str()]),
            _ => self.text.control("SS", [title.as_str()]),
        };
        self.is_fresh = true;
    }

    fn paragraph(&mut self) {
        match (self.is_fresh, self.lists.is_empty()) {
            (true, _) => {}
            (false, true) => {
                self.text.control("PP", []);
            }
            (false, false) => {
                self.text.control("IP", ["\"\"", "4"]);
            }
        }
    }

    fn item(&mut self) {
        self.flush();
        match self.lists.last_mut() {
            Some(Some(number)) => {
                self.text.control("IP", [format!("{number}.").as_str(), "4"]);
                *number += 1;
            }
            _ => {
                self.text.control("IP", [r"\(bu", "4"]);
            }
        }
        self.is_fresh = true;
    }

    fn code(&mut self, lines: &str) {
        for line in lines.lines() {
            self.text.text([roman(line)]);
        }
    }

    /// The first cell is a term, the others define it. A single further column needs no label, nor has `meaning` one.
    fn row(&mut self) {
        let mut cells = self.cells.drain(..);
        let Some(term) = cells.next() else { return };
        let term = if plain(&term).is_empty() { vec![roman("(none)")] } else { term };
        let labels = self.header.iter().skip(1);
        let is_single = self.header.len() == 2;
        let lines = labels.zip(cells).filter(|(_, cell)| !plain(cell).is_empty());
        let lines: Vec<_> = lines
            .map(|(label, cell)| match label.as_str() {
                "meaning" => cell,
                _ if is_single => cell,
                label => [vec![roman(format!("{label}: "))], cell].concat(),
            })
            .collect();
        define(&mut self.text, term, lines);
        self.is_fresh = false;
    }

    fn flush(&mut self) {
        if !self.line.is_empty() {
            self.text.text(std::mem::take(&mut self.line));
            self.is_fresh = false;
        }
    }
}

fn plain(line: &[Inline]) -> String {
    let texts = line.iter().map(|part| match part {
        Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text.as_str(),
        Inline::LineBreak => " ",
    });
    texts.collect()
}
