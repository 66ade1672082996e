//! `agent/FAULTS.md` says what becomes of each wrong input, and which tests prove it: no row outlives its tests or metrics.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

/// The text of every Rust source in `folder`.
fn sources(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            texts.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    texts
}

/// The names of the functions behind `#[test]`.
fn tests(source: &str) -> impl Iterator<Item = &str> {
    source.split("#[test]").skip(1).filter_map(|behind| {
        let (_, function) = behind.split_once("fn ")?;
        function.split(['(', '<']).next()
    })
}

/// What stands in backquotes in a cell.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn every_wrong_input_in_the_table_has_its_tests_and_its_metrics() {
    let root = wayside_tests::root();
    let agent = sources(&root.join("agent/src"));
    let others = ["protocol/src", "protocol/tests", "tests"].map(|folder| sources(&root.join(folder)));
    let known: BTreeSet<&str> =
        agent.iter().chain(others.iter().flatten()).flat_map(|text| tests(text)).collect();
    let table = std::fs::read_to_string(root.join("agent/FAULTS.md")).unwrap();
    let mut rows = 0;
    for line in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let &[what, _, metrics, _, named] = &cells[..] else { panic!("{} cells: {line}", cells.len()) };
        if what == "wrong" {
            continue;
        }
        rows += 1;
        assert!(quoted(named).next().is_some(), "no test: {what}");
        for name in quoted(named) {
            assert!(known.contains(name), "{what}: there is no test {name}");
        }
        for metric in quoted(metrics) {
            let name = metric.split('{').next().unwrap_or_default();
            let name =
                name.strip_prefix("wayside_").unwrap_or_else(|| panic!("{what}: {name} has another prefix"));
            let registered = format!("\"{}\"", name.strip_suffix("_total").unwrap_or(name));
            assert!(
                agent.iter().any(|text| text.contains(&registered)),
                "{what}: there is no metric {metric}"
            );
        }
    }
    assert!(rows > 0, "agent/FAULTS.md has no table");
}
