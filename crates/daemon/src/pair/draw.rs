//! A drawing of what `pair` makes: a box for each site, side by side if the terminal is wide enough.

use std::env;

use super::networks::is_default;
use super::plan::{End, Link, Plan};

/// The characters of a drawing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strokes {
    across: char,
    down: char,
    /// Upper left, upper right, lower left, lower right.
    corners: [char; 4],
    /// Where the path between the sites leaves a box, on its right and on its left.
    path: [char; 2],
    /// The same for the tunnel.
    tunnel: [char; 2],
    double: char,
    /// Arrows to the left and to the right: who initiates.
    arrows: [char; 2],
}

const LINES: Strokes = Strokes {
    across: '─',
    down: '│',
    corners: ['┌', '┐', '└', '┘'],
    path: ['├', '┤'],
    tunnel: ['╞', '╡'],
    double: '═',
    arrows: ['◄', '►'],
};

const ASCII: Strokes = Strokes {
    across: '-',
    down: '|',
    corners: ['+'; 4],
    path: ['+'; 2],
    tunnel: ['+'; 2],
    double: '=',
    arrows: ['<', '>'],
};

impl Strokes {
    /// Those that the locale of the environment has.
    pub(crate) fn of_environment() -> Self {
        let set = |name| env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        Self::of_locale(locale.as_deref().unwrap_or_default())
    }

    fn of_locale(locale: &str) -> Self {
        let charset = locale.rsplit_once('.').map_or("", |(_, charset)| charset);
        let charset = charset.to_ascii_lowercase();
        if charset.starts_with("utf-8") || charset.starts_with("utf8") { LINES } else { ASCII }
    }
}

/// Draws a plan, at most `columns` wide if its words are not longer.
pub(crate) fn draw(plan: &Plan, strokes: Strokes, columns: usize) -> String {
    let [a, b] = plan.ends().map(|end| cells(end, strokes));
    let beside = Beside::new(plan, strokes, &a, &b);
    let lines =
        if beside.width() <= columns { beside.lines() } else { stacked(plan, strokes, &a, &b) };
    lines.iter().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// What a box says about a site: the last two lines are the ends of the tunnel and of the path below it.
fn cells(end: End<'_>, strokes: Strokes) -> Vec<String> {
    let mut cells = vec![end.site().name.to_string()];
    match end.bridge() {
        Some(bridge) => {
            cells.push(format!("LAN {0}{0} {bridge}", strokes.across));
        }
        None => cells.extend(end.behind().iter().map(|net| match is_default(net) {
            true => format!("everything ({net}), masqueraded"),
            false => format!("LAN {net}"),
        })),
    }
    let addresses: Vec<_> = end.addresses().iter().map(ToString::to_string).collect();
    cells.push(format!("{} {}", end.device(), addresses.join(" ")).trim_end().to_owned());
    cells.push(match &end.site().endpoint {
        Some(endpoint) => format!("UDP {endpoint}"),
        None => "any address, as behind a NAT".to_owned(),
    });
    cells
}

fn tunnel_word(plan: &Plan) -> &'static str {
    match plan.link() {
        Link::Routed(_) => " IP packets ",
        Link::Bridged(_) => " Ethernet ",
    }
}

/// Whether each site can initiate: it knows the other's endpoint.
fn initiates(plan: &Plan) -> [bool; 2] {
    plan.ends().map(|end| end.peer().endpoint.is_some())
}

/// Two boxes of the same height with lines between them.
struct Beside<'a> {
    strokes: Strokes,
    cells: [&'a [String]; 2],
    widths: [usize; 2],
    tunnel: String,
    path: String,
}

impl<'a> Beside<'a> {
    fn new(plan: &Plan, strokes: Strokes, a: &'a [String], b: &'a [String]) -> Self {
        let Strokes { across, double, arrows, .. } = strokes;
        let lines = |c: char, count| String::from(c).repeat(count);
        let word = tunnel_word(plan);
        let tunnel = format!("{0}{word}{0}", lines(double, 5));
        let [from_a, from_b] = initiates(plan);
        let left = if from_b { arrows[0] } else { across };
        let right = if from_a { arrows[1] } else { across };
        let mut path = format!("{left}{0} encrypted UDP {0}{right}", lines(across, 1));
        let (long, short) = (tunnel.chars().count(), path.chars().count());
        let missing = lines(across, long.saturating_sub(short));
        path.insert_str(path.len() - right.len_utf8(), &missing);
        let tunnel = tunnel + &lines(double, short.saturating_sub(long));
        Self { strokes, cells: [a, b], widths: [a, b].map(width), tunnel, path }
    }

    fn width(&self) -> usize {
        // Each box has a frame and a space on both sides.
        self.widths.iter().map(|width| width + 4).sum::<usize>() + self.tunnel.chars().count()
    }

    fn lines(&self) -> Vec<String> {
        let gap = " ".repeat(self.tunnel.chars().count());
        let frame = |top| {
            let [a, b] = self.widths.map(|width| edge(self.strokes, width, top));
            format!("{a}{gap}{b}")
        };
        let height = self.cells.iter().map(|cells| cells.len()).max().unwrap_or(0);
        let row = |line: usize| {
            // The lines that differ in number are those in the middle.
            let [a, b] = [0, 1].map(|at| cell(self.cells[at], line, height));
            let [a, b] = [format!("{a:<0$}", self.widths[0]), format!("{b:<0$}", self.widths[1])];
            let down = self.strokes.down;
            let ([right, left], between) = match height - line {
                1 => (self.strokes.path, &self.path),
                2 => (self.strokes.tunnel, &self.tunnel),
                _ => ([down; 2], &gap),
            };
            format!("{down} {a} {right}{between}{left} {b} {down}")
        };
        let rows = (0..height).map(row);
        [frame(true)].into_iter().chain(rows).chain([frame(false)]).collect()
    }
}

/// The text of a line in a box with `height` lines.
fn cell(cells: &[String], line: usize, height: usize) -> &str {
    let tail = 2;
    let head = cells.len().saturating_sub(tail);
    let from_end = height - line;
    let at = if from_end <= tail {
        cells.len().checked_sub(from_end)
    } else {
        Some(line).filter(|line| *line < head)
    };
    at.and_then(|at| cells.get(at)).map_or("", String::as_str)
}

fn width(cells: &[String]) -> usize {
    cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0)
}

fn edge(strokes: Strokes, width: usize, top: bool) -> String {
    let [left, right] = if top { [0, 1] } else { [2, 3] }.map(|at| strokes.corners[at]);
    format!("{left}{}{right}", String::from(strokes.across).repeat(width + 2))
}

/// One box above the other, for a narrow terminal.
fn stacked(plan: &Plan, strokes: Strokes, a: &[String], b: &[String]) -> Vec<String> {
    let inner = width(a).max(width(b));
    let boxed = |cells: &[String]| {
        let rows = cells.iter().map(|cell| format!("{0} {cell:<inner$} {0}", strokes.down));
        let (top, bottom) = (edge(strokes, inner, true), edge(strokes, inner, false));
        [top].into_iter().chain(rows).chain([bottom]).collect::<Vec<_>>()
    };
    let word = tunnel_word(plan).trim();
    let who = match initiates(plan) {
        [true, true] => "both initiate".to_owned(),
        [first, _] => format!("{} initiates", plan.sites()[usize::from(!first)].name),
    };
    let between = format!("  {} {word} in encrypted UDP; {who}", strokes.down);
    [boxed(a), vec![between], boxed(b)].concat()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{both_families, bridged, routed};
    use super::*;

    #[test]
    fn beside_each_other() {
        let plan = routed(
            ["site-a=a.example.net:51820", "site-b"],
            [&["192.168.10.0/24"], &["192.168.20.0/24", "192.168.21.0/24"]],
            &["10.99.0.0/30"],
        );
        let drawn = draw(&plan.unwrap(), LINES, 120);
        let expected = "\
┌─────────────────────────┐                      ┌──────────────────────────────┐
│ site-a                  │                      │ site-b                       │
│ LAN 192.168.10.0/24     │                      │ LAN 192.168.20.0/24          │
│                         │                      │ LAN 192.168.21.0/24          │
│ vpn-site-a 10.99.0.1/30 ╞═════ IP packets ═════╡ vpn-site-b 10.99.0.2/30      │
│ UDP a.example.net:51820 ├◄─ encrypted UDP ─────┤ any address, as behind a NAT │
└─────────────────────────┘                      └──────────────────────────────┘
";
        assert_eq!(drawn, expected, "\n{drawn}");
    }

    #[test]
    fn every_line_of_a_drawing_is_as_wide_as_the_others() {
        for plan in [both_families(), bridged()] {
            for strokes in [LINES, ASCII] {
                let drawn = draw(&plan, strokes, 200);
                let widths: Vec<_> = drawn.lines().map(|line| line.chars().count()).collect();
                assert!(widths.iter().all(|width| *width == widths[0]), "\n{drawn}");
            }
        }
    }

    #[test]
    fn a_narrow_terminal_has_one_above_the_other() {
        let drawn = draw(&bridged(), ASCII, 60);
        assert!(drawn.lines().all(|line| line.chars().count() <= 60), "\n{drawn}");
        assert!(drawn.contains("| Ethernet in encrypted UDP; site-b initiates\n"), "\n{drawn}");
        assert!(draw(&both_families(), ASCII, 60).contains("both initiate"));
    }

    #[test]
    fn without_utf_8_the_drawing_is_ascii() {
        for locale in ["", "C", "POSIX", "de_DE.ISO-8859-1", "de_DE@euro"] {
            assert!(draw(&both_families(), Strokes::of_locale(locale), 200).is_ascii(), "{locale}");
        }
        for locale in ["C.UTF-8", "de_DE.utf8", "en_US.UTF-8@x"] {
            assert!(draw(&bridged(), Strokes::of_locale(locale), 200).contains('╞'), "{locale}");
        }
    }
}
