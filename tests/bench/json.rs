//! Every single value of every round, for programs.

use serde_json::{Map, Value, json};

use crate::contender::Contender;
use crate::figure::{Figure, Record, Records};
use crate::machine::Machine;
use crate::plan::Plan;

/// The whole run.
pub(crate) fn document(machine: &Machine, plan: &Plan, records: &Records) -> Value {
    json!({
        "machine": machine.json(),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "contenders": plan.contenders.iter().map(contender).collect::<Vec<_>>(),
        "medians": medians(&plan.contenders, records),
        "records": records.0.iter().map(record).collect::<Vec<_>>(),
    })
}

fn contender(one: &Contender) -> Value {
    json!({ "name": one.name, "version": one.version() })
}

fn medians(contenders: &[Contender], records: &Records) -> Map<String, Value> {
    let of = |one: &Contender| {
        let median = |figure: Figure| {
            Some((figure.key().to_owned(), records.median(&one.name, figure)?.into()))
        };
        (one.name.clone(), Value::Object(Figure::SHOWN.into_iter().filter_map(median).collect()))
    };
    contenders.iter().map(of).collect()
}

/// With `value`, or with `error` in its place.
fn record(record: &Record) -> Value {
    let unit = record.figure.unit();
    let mut object = json!({
        "round": record.round,
        "contender": record.contender,
        "figure": record.figure.key(),
        "unit": unit.name(),
    });
    match &record.value {
        Ok(value) => {
            object["value"] = json!(value);
            if let Some(megabits) = unit.megabits(*value) {
                object["megabits"] = json!(megabits);
            }
        }
        Err(why) => object["error"] = json!(why),
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_a_value_or_an_error() {
        let measured =
            |figure, value| Record { round: 2, contender: "x".to_owned(), figure, value };
        assert_eq!(
            record(&measured(Figure::Udp64, Ok(1000.0))),
            json!({
                "round": 2, "contender": "x", "figure": "udp_64", "unit": "packets/s",
                "value": 1000.0, "megabits": 0.512,
            })
        );
        assert_eq!(
            record(&measured(Figure::TcpOne, Err("broke".to_owned()))),
            json!({
                "round": 2, "contender": "x", "figure": "tcp_one", "unit": "Mbit/s",
                "error": "broke",
            })
        );
    }

    #[test]
    fn medians_are_by_contender_and_figure() {
        let value = |value| Record {
            round: 1,
            contender: "bare".to_owned(),
            figure: Figure::TcpOne,
            value: Ok(value),
        };
        let records = Records(vec![value(1.0), value(3.0)]);
        let medians = medians(&[Contender::named("bare")], &records);
        assert_eq!(Value::Object(medians), json!({ "bare": { "tcp_one": 2.0 } }));
    }
}
