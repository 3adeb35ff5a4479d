//! A bar chart of the medians, as a self-contained SVG.

use std::fmt::Write;

use crate::contender::Contender;
use crate::figure::{Figure, Records};

/// One panel is this wide, and two stand side by side.
const PANEL: f64 = 440.0;
const GAP: f64 = 32.0;
const COLUMNS: usize = 2;
/// A letter of a name, at most, and what stands between a name and its bar.
const LETTER: f64 = 7.5;
const SPACE: f64 = 8.0;
/// Behind the longest bar, for its value.
const VALUES: f64 = 64.0;
/// From one bar to the next, and its height.
const STEP: f64 = 22.0;
const BAR: f64 = 14.0;
/// Above the bars, for the title.
const HEAD: f64 = 34.0;
const MARGIN: f64 = 16.0;

/// Both modes a page may be read in; the colours keep their contrast on black and on white.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#24292f}\
.title{font-size:14px;font-weight:600}\
.value,.unit{fill:#57606a}\
.bar{fill:#8c959f}.bare{fill:#c8ccd1}.vpnd{fill:#0969da}\
@media(prefers-color-scheme:dark){\
text{fill:#e6edf3}.value,.unit{fill:#9198a1}\
.bar{fill:#6e7681}.bare{fill:#3d444d}.vpnd{fill:#4493f8}}";

/// A panel for each figure that has values, in the order of the tables.
pub(crate) fn svg(contenders: &[Contender], records: &Records) -> String {
    let panels: Vec<Panel> = Figure::SHOWN
        .into_iter()
        .filter_map(|figure| Panel::new(figure, contenders, records))
        .collect();
    let rows: Vec<&[Panel]> = panels.chunks(COLUMNS).collect();
    let width = 2.0 * MARGIN + PANEL * COLUMNS as f64 + GAP;
    let mut body = String::new();
    let mut y = MARGIN;
    for row in rows {
        for (column, panel) in row.iter().enumerate() {
            let x = MARGIN + (PANEL + GAP) * column as f64;
            body += &format!("<g transform=\"translate({x} {y})\">{}</g>\n", panel.draw());
        }
        y += row.iter().map(Panel::height).fold(0.0, f64::max) + GAP;
    }
    let height = y - GAP + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" role=\"img\">\n\
         <title>vpnd beside other tunnels: medians</title>\n<style>{STYLE}</style>\n{body}</svg>\n"
    )
}

struct Panel {
    figure: Figure,
    /// Room for the longest name, before the bars.
    names: f64,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    class: &'static str,
    value: f64,
}

impl Panel {
    /// None without a value.
    fn new(figure: Figure, contenders: &[Contender], records: &Records) -> Option<Self> {
        let bar = |one: &Contender| {
            let value = records.median(&one.name, figure)?;
            Some(Bar { name: one.name.clone(), class: class(one), value })
        };
        let bars: Vec<_> = contenders.iter().filter_map(bar).collect();
        let letters = contenders.iter().map(|one| one.name.chars().count()).max()?;
        let names = LETTER * letters as f64 + SPACE;
        (!bars.is_empty()).then_some(Self { figure, names, bars })
    }

    fn height(&self) -> f64 {
        HEAD + STEP * self.bars.len() as f64
    }

    fn draw(&self) -> String {
        let unit = self.figure.unit();
        let wish = if unit.more_is_better() { "more is better" } else { "less is better" };
        let mut drawn = format!(
            "<text class=\"title\" y=\"14\">{} <tspan class=\"unit\" font-weight=\"400\">{}, {wish}</tspan></text>",
            escaped(self.figure.title()),
            escaped(unit.name()),
        );
        let largest = self.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        for (place, bar) in self.bars.iter().enumerate() {
            let y = HEAD + STEP * place as f64;
            let longest = (PANEL - self.names - VALUES).max(LETTER);
            let length = (longest * bar.value / largest).max(1.0);
            drawn += &bar.draw((self.names, y), length, &unit.show(bar.value));
        }
        drawn
    }
}

impl Bar {
    /// Its name, itself from (x, y) on, and its value, on one line.
    fn draw(&self, (x, y): (f64, f64), length: f64, value: &str) -> String {
        let Self { name, class, .. } = self;
        let (name, baseline) = (escaped(name), y + BAR - 3.0);
        let (end, behind) = (x - SPACE, x + length + SPACE);
        let mut drawn = String::new();
        // Writing to a String does not fail.
        let _ = write!(
            drawn,
            "<text x=\"{end}\" y=\"{baseline}\" text-anchor=\"end\">{name}</text>\
             <rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\"/>\
             <text class=\"value\" x=\"{behind:.1}\" y=\"{baseline}\">{value}</text>"
        );
        drawn
    }
}

fn class(contender: &Contender) -> &'static str {
    if contender.is_peer() {
        "bar"
    } else if contender.is_bare() {
        "bare"
    } else {
        "vpnd"
    }
}

/// As text of XML; names come from the command line.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Record;

    fn chart(values: &[(&str, Figure, f64)]) -> String {
        let records = values.iter().map(|(name, figure, value)| Record {
            round: 1,
            contender: (*name).to_owned(),
            figure: *figure,
            value: Ok(*value),
        });
        let contenders = ["bare", "a<b & \"c\"", "gotatun"].map(Contender::named);
        svg(&contenders, &Records(records.collect()))
    }

    #[test]
    fn names_cannot_break_out() {
        let svg = chart(&[("a<b & \"c\"", Figure::TcpOne, 1.0)]);
        assert!(svg.contains(">a&lt;b &amp; &quot;c&quot;</text>"), "{svg}");
        assert!(!svg.contains("a<b"), "{svg}");
    }

    #[test]
    fn the_longest_bar_fills_its_panel_and_the_others_are_in_proportion() {
        let svg = chart(&[("bare", Figure::TcpOne, 400.0), ("gotatun", Figure::TcpOne, 100.0)]);
        assert!(svg.contains("width=\"300.5\"") && svg.contains("width=\"75.1\""), "{svg}");
        assert!(svg.contains(">400</text>") && svg.contains(">100</text>"), "{svg}");
    }

    #[test]
    fn what_was_not_measured_has_no_panel() {
        let svg = chart(&[("bare", Figure::Udp64, 400.0)]);
        assert_eq!(svg.matches("class=\"title\"").count(), 1);
        assert_eq!(svg.matches("<g ").count(), svg.matches("</g>").count());
    }
}
