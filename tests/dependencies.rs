//! The rules of `.deny.toml`, enforced over `cargo metadata`.
//!
//! `cargo deny` reads the same file and knows more, but takes minutes to build; this takes none.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

/// What is built for a gateway with Linux, as `cargo metadata` describes it.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .current_dir(wayside_tests::root())
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The packages of [`metadata`].
fn packages() -> Vec<Value> {
    let metadata = metadata();
    let used: Vec<&Value> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
    let packages = metadata["packages"].as_array().unwrap();
    packages.iter().filter(|package| used.contains(&&package["id"])).cloned().collect()
}

fn rules() -> toml::Table {
    std::fs::read_to_string(wayside_tests::root().join(".deny.toml")).unwrap().parse().unwrap()
}

fn strings(value: &toml::Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|entry| entry.as_str().unwrap()).collect()
}

/// Whether a licence expression can be met with licences out of `allowed`: AND binds closer than OR.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    // Old manifests write `MIT/Apache-2.0` for OR.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = tokens.as_slice();
    let met = any(&mut rest, allowed);
    assert!(rest.is_empty(), "not understood: {expression}");
    met
}

fn any(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let mut met = all(rest, allowed);
    while let ["OR", after @ ..] = rest {
        *rest = after;
        met |= all(rest, allowed);
    }
    met
}

fn all(rest: &mut &[&str], allowed: &[&str]) -> bool {
    let mut met = one(rest, allowed);
    while let ["AND", after @ ..] = rest {
        *rest = after;
        met &= one(rest, allowed);
    }
    met
}

fn one(rest: &mut &[&str], allowed: &[&str]) -> bool {
    match *rest {
        ["(", after @ ..] => {
            *rest = after;
            let met = any(rest, allowed);
            assert_eq!(rest.first(), Some(&")"), "a parenthesis is not closed");
            *rest = &rest[1..];
            met
        }
        [licence, "WITH", exception, after @ ..] => {
            *rest = after;
            allowed.contains(&format!("{licence} WITH {exception}").as_str())
        }
        [licence, after @ ..] => {
            *rest = after;
            allowed.contains(licence)
        }
        [] => panic!("a licence is missing"),
    }
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("Zlib/MIT", true),
        ("MIT AND GPL-3.0-only", false),
        ("(Zlib OR MIT) AND Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception OR Zlib", true),
        ("Apache-2.0", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let rules = rules();
    let allowed = strings(&rules["licenses"]["allow"]);
    let exceptions: BTreeMap<&str, Vec<&str>> = rules["licenses"]["exceptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|exception| (exception["crate"].as_str().unwrap(), strings(&exception["allow"])))
        .collect();
    for package in packages() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        let mut allowed = allowed.clone();
        allowed.extend(exceptions.get(name).into_iter().flatten());
        assert!(
            is_met(licence, &allowed),
            "{name} has the licence {licence}, which .deny.toml does not allow"
        );
    }
}

#[test]
fn no_banned_dependency_is_in_the_tree() {
    let (rules, metadata) = (rules(), metadata());
    let name_of: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| (package["id"].as_str().unwrap(), package["name"].as_str().unwrap()))
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    for banned in rules["bans"]["deny"].as_array().unwrap() {
        let (name, reason) = (banned["crate"].as_str().unwrap(), banned["reason"].as_str().unwrap());
        let wrappers = banned.get("wrappers").map(strings).unwrap_or_default();
        for node in nodes {
            let user = name_of[node["id"].as_str().unwrap()];
            let uses = node["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .any(|id| name_of[id.as_str().unwrap()] == name);
            assert!(!uses || wrappers.contains(&user), "{user} uses {name}, which is banned: {reason}");
        }
    }
    // Static, and the same on every distribution.
    let openssl = nodes.iter().find(|node| name_of[node["id"].as_str().unwrap()] == "openssl-sys").unwrap();
    assert!(openssl["features"].as_array().unwrap().iter().any(|feature| feature == "vendored"));
}

#[test]
fn every_dependency_comes_from_the_registry() {
    let mut registries: Vec<String> = packages()
        .iter()
        .filter_map(|package| package["source"].as_str().map(str::to_owned))
        .inspect(|source| assert!(source.starts_with("registry+"), "{source} is no registry"))
        .collect();
    registries.sort();
    registries.dedup();
    assert_eq!(registries.len(), 1, "one registry, not {registries:?}");
}
