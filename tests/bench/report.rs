//! The tables of medians and ratios, in Markdown, to be pasted into a document.

use crate::contender::Contender;
use crate::figure::{Figure, Records};

const NONE: &str = "–";

/// Medians of every contender beside vpnd's lead, then each as a share of the bare cable, then
/// what failed.
pub(crate) fn text(contenders: &[Contender], records: &Records) -> String {
    let report = Report { contenders, records, figures: tried(contenders, records) };
    let parts = [report.medians(), report.shares(), report.failures()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

struct Report<'a> {
    contenders: &'a [Contender],
    records: &'a Records,
    figures: Vec<Figure>,
}

fn tried(contenders: &[Contender], records: &Records) -> Vec<Figure> {
    let tried = |figure: &Figure| contenders.iter().any(|one| records.tried(&one.name, *figure));
    Figure::ALL.into_iter().filter(tried).collect()
}

impl Report<'_> {
    fn medians(&self) -> Option<String> {
        let cells = |figure: Figure| {
            let mut cells: Vec<_> =
                self.contenders.iter().map(|one| self.value(one, figure)).collect();
            cells.push(
                self.lead(figure).map_or_else(|| NONE.to_owned(), |lead| format!("{lead:.2}")),
            );
            cells
        };
        Some(self.table("median", Some("vpnd ÷ best peer"), cells))
    }

    /// Without the bare cable there are none.
    fn shares(&self) -> Option<String> {
        self.figures.iter().find_map(|figure| self.records.median("bare", *figure))?;
        let cells =
            |figure: Figure| self.contenders.iter().map(|one| self.share(one, figure)).collect();
        Some(self.table("share of bare", None, cells))
    }

    fn failures(&self) -> Option<String> {
        let lines: Vec<_> = self
            .records
            .failures()
            .map(|(record, why)| {
                let first = why.lines().next().unwrap_or_default();
                let (round, figure) = (record.round, record.figure.title());
                format!("- {}, round {round}, {figure}: {first}\n", record.contender)
            })
            .collect();
        (!lines.is_empty()).then(|| format!("Failed:\n\n{}", lines.concat()))
    }

    fn table(
        &self,
        corner: &str,
        last: Option<&str>,
        cells: impl Fn(Figure) -> Vec<String>,
    ) -> String {
        let mut heads: Vec<_> = self.contenders.iter().map(|one| one.name.clone()).collect();
        heads.extend(last.map(str::to_owned));
        let rule = vec!["---:".to_owned(); heads.len()];
        let mut lines = vec![row(corner, &heads), row("---", &rule)];
        for figure in &self.figures {
            let title = format!("{} ({})", figure.title(), figure.unit());
            lines.push(row(&title, &cells(*figure)));
        }
        lines.concat()
    }

    fn value(&self, contender: &Contender, figure: Figure) -> String {
        match self.records.median(&contender.name, figure) {
            Some(value) => figure.show(value),
            None if self.records.tried(&contender.name, figure) => "failed".to_owned(),
            None => NONE.to_owned(),
        }
    }

    fn share(&self, contender: &Contender, figure: Figure) -> String {
        let medians =
            (self.records.median(&contender.name, figure), self.records.median("bare", figure));
        let (Some(value), Some(bare)) = medians else { return NONE.to_owned() };
        format!("{:.3}", value / bare)
    }

    /// vpnd as a multiple of the best of the others' tunnels: of the highest rate, of the least
    /// delay.
    fn lead(&self, figure: Figure) -> Option<f64> {
        let peers = self.contenders.iter().filter(|one| one.is_peer());
        let values = peers.filter_map(|one| self.records.median(&one.name, figure));
        let best = if figure.more_is_better() {
            values.max_by(f64::total_cmp)
        } else {
            values.min_by(f64::total_cmp)
        };
        Some(self.records.median("vpnd", figure)? / best?)
    }
}

fn row(first: &str, cells: &[String]) -> String {
    format!("| {first} | {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Record;

    #[test]
    fn medians_shares_and_the_lead_are_shown() {
        let contenders: Vec<_> =
            ["bare", "vpnd", "boringtun", "gotatun"].map(Contender::named).into();
        let values = [
            ("bare", Ok(900.0)),
            ("vpnd", Ok(300.0)),
            ("boringtun", Ok(100.0)),
            ("gotatun", Err("broke\nlog")),
        ];
        let record = |(name, value): (&str, Result<f64, &str>)| Record {
            round: 1,
            contender: name.to_owned(),
            figure: Figure::TcpOne,
            value: value.map_err(str::to_owned),
        };
        let records = Records(values.into_iter().map(record).collect());
        assert_eq!(
            text(&contenders, &records),
            "| median | bare | vpnd | boringtun | gotatun | vpnd ÷ best peer |\n\
             | --- | ---: | ---: | ---: | ---: | ---: |\n\
             | TCP, one stream (Mbit/s) | 900 | 300 | 100 | failed | 3.00 |\n\
             \n\
             | share of bare | bare | vpnd | boringtun | gotatun |\n\
             | --- | ---: | ---: | ---: | ---: |\n\
             | TCP, one stream (Mbit/s) | 1.000 | 0.333 | 0.111 | – |\n\
             \n\
             Failed:\n\n- gotatun, round 1, TCP, one stream: broke\n"
        );
    }
}
