//! The tables of medians and ratios, in Markdown, to be pasted into a document.

use crate::contender::Contender;
use crate::figure::{Figure, Record, Records};
use crate::machine::Machine;
use crate::plan::{Plan, QUEUES, queue_name};

/// So many rounds have a spread.
const SPREAD_FROM: usize = 5;
const NONE: &str = "–";

/// What was measured, on what.
pub(crate) fn introduction(machine: &Machine, plan: &Plan) -> String {
    // Variants of vpnd are of the version that vpnd itself is.
    let named = plan.contenders.iter().filter(|one| one.is_peer() || one.is_vpnd());
    let versions: Vec<_> = named.filter_map(Contender::version).collect();
    let Plan { rounds, seconds, .. } = plan;
    let missing: Vec<_> = plan.missing.iter().map(|one| one.name.as_str()).collect();
    let missing = match missing[..] {
        [] => String::new(),
        _ => format!(" Not installed: {}.", missing.join(", ")),
    };
    format!(
        "Medians of {rounds} interleaved rounds; TCP and ping for {seconds} s. {machine}. \
         {}.{missing}\n\n",
        versions.join(", ")
    )
}

/// Medians of every contender beside vpnd's lead, then each as a share of the bare cable, then
/// what the length of the queue does, then what failed.
pub(crate) fn text(contenders: &[Contender], records: &Records) -> String {
    let report = Report { contenders, records, figures: tried(contenders, records) };
    let parts =
        [report.medians(), report.spreads(), report.shares(), report.queues(), report.failures()];
    parts.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

struct Report<'a> {
    contenders: &'a [Contender],
    records: &'a Records,
    figures: Vec<Figure>,
}

fn tried(contenders: &[Contender], records: &Records) -> Vec<Figure> {
    let tried = |figure: &Figure| contenders.iter().any(|one| records.tried(&one.name, *figure));
    Figure::SHOWN.into_iter().filter(tried).collect()
}

impl Report<'_> {
    fn medians(&self) -> Option<String> {
        let cells = |figure: Figure| {
            let mut cells: Vec<_> =
                self.contenders.iter().map(|one| self.value(&one.name, figure)).collect();
            cells.push(self.lead(figure).unwrap_or_else(|| NONE.to_owned()));
            cells
        };
        Some(self.table("median", Some("vpnd ÷ best peer"), &self.figures, cells))
    }

    /// The least and the most of every value, where there were enough rounds to speak of a spread.
    fn spreads(&self) -> Option<String> {
        let spread = |figure: Figure, name: &str| {
            let values = self.records.values(name, figure);
            let (least, most) = (values.first()?, values.last()?);
            (values.len() >= SPREAD_FROM)
                .then(|| format!("{} to {}", figure.unit().cell(*least), figure.unit().cell(*most)))
        };
        let cells = |figure: Figure| -> Vec<_> {
            let names = self.contenders.iter().map(|one| one.name.as_str());
            names.map(|name| spread(figure, name).unwrap_or_else(|| NONE.to_owned())).collect()
        };
        let enough = |figure: &Figure| cells(*figure).iter().any(|cell| cell != NONE);
        let any = self.figures.iter().any(enough);
        any.then(|| self.table("least to most", None, &self.figures, cells))
    }

    /// Of what the bare cable has too.
    fn shares(&self) -> Option<String> {
        let has = |figure: &Figure| self.records.median("bare", *figure).is_some();
        let figures: Vec<_> = self.figures.iter().copied().filter(has).collect();
        let cells =
            |figure: Figure| self.contenders.iter().map(|one| self.share(one, figure)).collect();
        (!figures.is_empty()).then(|| self.table("÷ bare", None, &figures, cells))
    }

    /// vpnd's delay and rate, one line for each length.
    fn queues(&self) -> Option<String> {
        const FIGURES: [Figure; 3] = [Figure::LoadMedian, Figure::LoadP99, Figure::LoadRate];
        let mut lines = vec![
            row("vpnd, txqueuelen", &FIGURES.map(titled)),
            row("---", &FIGURES.map(|_| "---:".to_owned())),
        ];
        for packets in QUEUES {
            let name = queue_name(packets);
            self.records.median(&name, FIGURES[0])?;
            let cells = FIGURES.map(|figure| self.value(&name, figure));
            lines.push(row(&packets.to_string(), &cells));
        }
        Some(lines.concat())
    }

    fn failures(&self) -> Option<String> {
        let line = |(record, why): (&Record, &str)| {
            let first = why.lines().next().unwrap_or_default();
            format!("- {}, round {}: {first}\n", record.contender, record.round)
        };
        let mut lines: Vec<_> = self.records.failures().map(line).collect();
        // One probe that fails is missing in several figures.
        lines.dedup();
        (!lines.is_empty()).then(|| format!("Failed:\n\n{}", lines.concat()))
    }

    fn table(
        &self,
        corner: &str,
        last: Option<&str>,
        figures: &[Figure],
        cells: impl Fn(Figure) -> Vec<String>,
    ) -> String {
        let mut heads: Vec<_> = self.contenders.iter().map(|one| one.name.clone()).collect();
        heads.extend(last.map(str::to_owned));
        let rule = vec!["---:".to_owned(); heads.len()];
        let mut lines = vec![row(corner, &heads), row("---", &rule)];
        for figure in figures {
            let title = titled(*figure);
            lines.push(row(&title, &cells(*figure)));
        }
        lines.concat()
    }

    fn value(&self, name: &str, figure: Figure) -> String {
        match self.records.median(name, figure) {
            Some(value) => figure.unit().cell(value),
            None if self.records.tried(name, figure) => "failed".to_owned(),
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
    fn lead(&self, figure: Figure) -> Option<String> {
        let peers = self.contenders.iter().filter(|one| one.is_peer());
        let values = peers.filter_map(|one| self.records.median(&one.name, figure));
        let best = if figure.unit().more_is_better() {
            values.max_by(f64::total_cmp)
        } else {
            values.min_by(f64::total_cmp)
        };
        Some(format!("{:.2}", self.records.median("vpnd", figure)? / best?))
    }
}

/// A title with its unit.
fn titled(figure: Figure) -> String {
    format!("{} ({})", figure.title(), figure.unit().name())
}

fn row(first: &str, cells: &[String]) -> String {
    format!("| {first} | {} |\n", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

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
             | ÷ bare | bare | vpnd | boringtun | gotatun |\n\
             | --- | ---: | ---: | ---: | ---: |\n\
             | TCP, one stream (Mbit/s) | 1.000 | 0.333 | 0.111 | – |\n\
             \n\
             Failed:\n\n- gotatun, round 1: broke\n"
        );
    }
}
