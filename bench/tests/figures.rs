//! The figures in the documents are those of the reports that they name: each table with figures stands
//! below a link to the JSON file that it was made from, and each of its rows is there.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

/// Documents with tables of figures.
const DOCUMENTS: [&str; 2] = ["README.md", "docs/benchmarks.md"];

/// A row of a table, and the report that its figures are of.
#[derive(Debug, PartialEq)]
struct Row {
    line: usize,
    report: Option<String>,
    cells: Vec<String>,
}

/// The rows of all tables, without their heads.
fn rows(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut report = None;
    let mut is_body = false;
    for (index, line) in text.lines().enumerate() {
        if !line.starts_with('|') {
            is_body = false;
            if line.starts_with('#') {
                report = None;
            }
            if let Some((_, rest)) = line.split_once("](report/")
                && let Some((name, _)) = rest.split_once(".json)")
            {
                report = Some(format!("{name}.json"));
            }
            continue;
        }
        let cells: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        if cells.iter().all(|cell| cell.trim_matches([':', '-']).is_empty()) {
            is_body = true;
        } else if is_body {
            rows.push(Row { line: index + 1, report: report.clone(), cells });
        }
    }
    rows
}

/// The figure of a cell: a number, perhaps with a unit behind it.
fn figure(cell: &str) -> Option<&str> {
    let number = cell.split(' ').next()?;
    let is_number = number.starts_with(|c: char| c.is_ascii_digit())
        && number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let words = cell.split(' ').count();
    (is_number && words <= 2).then_some(number)
}

/// All objects of a report that have `name` as the value of a field.
fn objects<'a>(json: &'a Value, name: &str, found: &mut Vec<&'a Value>) {
    match json {
        Value::Object(fields) => {
            if fields.values().any(|value| value.as_str() == Some(name)) {
                found.push(json);
            }
            fields.values().for_each(|value| objects(value, name, found));
        }
        Value::Array(items) => items.iter().for_each(|item| objects(item, name, found)),
        _ => {}
    }
}

/// All numbers below a value.
fn numbers(json: &Value, all: &mut Vec<f64>) {
    match json {
        Value::Number(number) => all.extend(number.as_f64()),
        Value::Object(fields) => fields.values().for_each(|value| numbers(value, all)),
        Value::Array(items) => items.iter().for_each(|item| numbers(item, all)),
        _ => {}
    }
}

/// Whether `figure` is one of `numbers`, or the ratio of two, or one in another unit, to the digits that it
/// has.
fn is_among(figure: &str, numbers: &[f64]) -> bool {
    let decimals = figure.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let rounded = |number: f64| format!("{number:.decimals$}") == figure;
    numbers.iter().any(|number| rounded(*number) || rounded(number.round() / 1024.0))
        || numbers.iter().any(|a| numbers.iter().any(|b| *b != 0.0 && rounded(a / b)))
}

/// What is wrong with a document's tables.
fn problems(text: &str, read: impl Fn(&str) -> Value) -> Vec<String> {
    let mut problems = Vec::new();
    for Row { line, report, cells } in rows(text) {
        let figures: Vec<&str> = cells[1..].iter().filter_map(|cell| figure(cell)).collect();
        if figures.is_empty() {
            continue;
        }
        let Some(report) = report else {
            problems.push(format!("line {line}: figures without a report: {cells:?}"));
            continue;
        };
        let json = read(&report);
        let mut found = Vec::new();
        objects(&json, cells[0].trim_matches('`'), &mut found);
        let mut all = Vec::new();
        found.iter().for_each(|object| numbers(object, &mut all));
        let unknown: BTreeSet<_> =
            figures.into_iter().filter(|figure| !is_among(figure, &all)).collect();
        if !unknown.is_empty() {
            problems
                .push(format!("line {line}: {unknown:?} of {:?} are not in {report}", cells[0]));
        }
    }
    problems
}

#[test]
fn figures_of_documents_are_in_their_reports() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |name: &str| {
        let path = repository.join("docs/report").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path:?}: {error}"))
    };
    let mut all = Vec::new();
    for name in DOCUMENTS {
        let text = fs::read_to_string(repository.join(name)).unwrap();
        all.extend(problems(&text, read).into_iter().map(|problem| format!("{name} {problem}")));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn reports_are_of_clean_commits() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/report");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("-dirty"), "{path:?} was made with changes that are not committed");
    }
}

#[test]
fn a_figure_that_is_not_in_the_report_is_found() {
    let read = |_: &str| serde_json::json!({"all": [{"name": "a", "x": 200, "y": [50.04]}]});
    let text =
        |table: &str| format!("See [it](report/r.json).\n\n| | x | y |\n|---|---|---|\n{table}\n");
    assert!(problems(&text("| a | 200 | 50.0 |\n| a | word | 4.00 |"), read).is_empty());
    assert_eq!(problems(&text("| a | 201 | 50.0 |"), read).len(), 1);
    assert_eq!(problems(&text("| b | 200 | - |"), read).len(), 1);
    // A heading ends what a link was for.
    assert_eq!(
        problems(&format!("{}# New\n| | x |\n|---|---|\n| a | 200 |\n", text("")), read).len(),
        1
    );
}
