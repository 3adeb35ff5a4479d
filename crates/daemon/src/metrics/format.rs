//! The two formats that Prometheus reads: OpenMetrics, and the older text format, for programs that read nothing else
//! (`promtool check metrics` is one).

/// A format of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus's text format 0.0.4.
    Text,
}

impl Format {
    /// The format for a client that accepts these media types: OpenMetrics, unless only the other one is named.
    pub(super) fn among(accepted: &[&str]) -> Self {
        let names = |wanted: &str| accepted.iter().any(|list| list.contains(wanted));
        let only_text = names("text/plain") && !names("application/openmetrics-text");
        if only_text { Self::Text } else { Self::OpenMetrics }
    }

    /// The media type.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Translates OpenMetrics to the text format. There a family has the name of its samples, has no unit, and is of no other
/// types than counters and gauges (of those that vpnd uses).
pub(super) fn as_text(metrics: &str) -> String {
    let (mut text, mut suffix) = (String::with_capacity(metrics.len()), "");
    let mut lines = metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let words: Vec<_> = line.splitn(4, ' ').collect();
        let line = match words.as_slice() {
            ["#", "UNIT", ..] | ["#", "EOF"] => continue,
            ["#", "HELP", name, help] => {
                suffix = suffix_of(lines.peek().copied());
                format!("# HELP {name}{suffix} {help}")
            }
            ["#", "TYPE", name, "info"] => format!("# TYPE {name}{suffix} gauge"),
            ["#", "TYPE", name, kind] => format!("# TYPE {name}{suffix} {kind}"),
            _ => line.to_owned(),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// What is added to a family's name in its samples, by the line of its type.
fn suffix_of(line: Option<&str>) -> &'static str {
    match line.and_then(|line| line.rsplit(' ').next()) {
        Some("counter") => "_total",
        Some("info") => "_info",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_chooses() {
        let of = Format::among;
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(of(&[]), Format::OpenMetrics);
        assert_eq!(of(&["*/*"]), Format::OpenMetrics);
        assert_eq!(of(&[prometheus]), Format::OpenMetrics);
        assert_eq!(of(&["text/plain;version=0.0.4;q=1,*/*;q=0.1"]), Format::Text);
        assert_eq!(of(&["text/plain", "application/openmetrics-text"]), Format::OpenMetrics);
    }

    #[test]
    fn the_older_format_has_the_same_samples() {
        let metrics = "# HELP a_build Which.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                       # HELP a_bytes How many.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
                       a_bytes_total 7\n# HELP b_seconds How long.\n# TYPE b_seconds gauge\n\
                       # UNIT b_seconds seconds\nb_seconds 0.5\n# EOF\n";
        let expected = "# HELP a_build_info Which.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
                        # HELP a_bytes_total How many.\n# TYPE a_bytes_total counter\na_bytes_total 7\n\
                        # HELP b_seconds How long.\n# TYPE b_seconds gauge\nb_seconds 0.5\n";
        assert_eq!(as_text(metrics), expected);
    }
}
