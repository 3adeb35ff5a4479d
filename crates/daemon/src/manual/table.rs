//! The tables of a page in `docs/`, as plain text.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// A table, and the section that it is in.
#[derive(Default)]
pub(super) struct Table {
    /// The first words in code of the section's heading: `[peer]` of "`[peer]`: the other end"; else empty.
    pub(super) section: String,
    /// The cells of the header.
    pub(super) header: Vec<String>,
    /// The cells of each row.
    pub(super) rows: Vec<Vec<String>>,
}

/// All tables of a page, in order.
pub(super) fn all(page: &str) -> Vec<Table> {
    let mut reader = Reader::default();
    for event in Parser::new_ext(page, Options::ENABLE_TABLES) {
        reader.take(event);
    }
    reader.tables
}

#[derive(Default)]
struct Reader {
    tables: Vec<Table>,
    section: String,
    in_heading: bool,
    cells: Vec<String>,
    cell: String,
}

impl Reader {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(Tag::Heading { level: HeadingLevel::H2, .. }) => {
                self.section.clear();
                self.in_heading = true;
            }
            Event::End(TagEnd::Heading(_)) => self.in_heading = false,
            Event::Code(code) if self.in_heading && self.section.is_empty() => {
                self.section = code.into_string();
            }
            Event::Start(Tag::Table(_)) => {
                self.tables.push(Table { section: self.section.clone(), ..Table::default() });
            }
            Event::Start(Tag::TableCell) => self.cell.clear(),
            Event::Text(text) | Event::Code(text) => self.cell.push_str(&text),
            Event::End(TagEnd::TableCell) => self.cells.push(std::mem::take(&mut self.cell)),
            Event::End(TagEnd::TableHead) => self.end_row(|table, cells| table.header = cells),
            Event::End(TagEnd::TableRow) => self.end_row(|table, cells| table.rows.push(cells)),
            _ => {}
        }
    }

    fn end_row(&mut self, keep: impl FnOnce(&mut Table, Vec<String>)) {
        let cells = std::mem::take(&mut self.cells);
        if let Some(table) = self.tables.last_mut() {
            keep(table, cells);
        }
    }
}
