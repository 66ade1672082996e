//! What a file and the environment say, held against the keys, types and ranges of
//! [`RawConfig`](crate::config::raw::RawConfig): every fault, where serde would stop at the first.
//!
//! A variable `WAYSIDE__SECTION__KEY` sets `section.key` over what the file says: text as it is, anything else as it
//! would stand in the file. Keys of a list of sections (`[[..]]`) have no variable.

use std::{borrow::Cow, collections::BTreeMap, ffi::OsString};

use serde_json::Value as Json;
use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use super::{Fault, Place, related};

/// What the variables that set keys begin with.
pub(super) const PREFIX: &str = "WAYSIDE__";

/// What is left of a file and the variables when their faults are taken out.
pub(super) struct Shaped<'t> {
    /// Only known keys with values of their types and ranges: the rest has its defaults.
    pub(super) table: Spanned<DeTable<'t>>,
    /// What was taken out, in the order of the keys.
    pub(super) faults: Vec<Fault>,
    /// Where each key stands.
    pub(super) places: BTreeMap<String, Place>,
}

/// Reads `text` and `variables`, by name and value, and takes out what `schema` does not allow.
///
/// # Errors
/// All places where `text` is not TOML.
pub(super) fn shape<'t>(
    text: &'t str,
    variables: &'t [(String, OsString)],
    schema: &'t Json,
) -> Result<Shaped<'t>, Vec<toml::de::Error>> {
    let (mut table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut walk = Walk { text, variable: None, schema, faults: Vec::new(), places: BTreeMap::new() };
    walk.table("", table.get_mut(), schema);
    for (name, value) in variables {
        let Some(text) = value.to_str() else {
            walk.refuse(name, "..", "is not UTF-8");
            continue;
        };
        (walk.text, walk.variable) = (text, Some(name.as_str()));
        walk.variable(table.get_mut(), name, text);
    }
    walk.missing("", table.get_ref(), schema);
    Ok(Shaped { table, faults: walk.faults, places: walk.places })
}

struct Walk<'a> {
    /// The file, or the value of `variable`.
    text: &'a str,
    variable: Option<&'a str>,
    /// Of the whole file.
    schema: &'a Json,
    faults: Vec<Fault>,
    places: BTreeMap<String, Place>,
}

impl<'a> Walk<'a> {
    /// Sets the key that the variable `name` stands for.
    fn variable(&mut self, mut table: &mut DeTable<'a>, name: &str, text: &'a str) {
        let keys = settable("", self.schema);
        let Some((key, schema)) =
            keys.iter().find(|(key, schema)| variable(key) == name && !is_list_of_sections(schema))
        else {
            let mut lists = keys.iter().filter(|(_, schema)| is_list_of_sections(schema));
            let known = keys.iter().map(|(key, _)| variable(key)[PREFIX.len()..].to_owned());
            let limit = match lists.find(|(key, _)| name.starts_with(&variable(key))) {
                Some((list, _)) => {
                    format!("no variable sets a key of a list of sections: write it in [[{list}]]")
                }
                None => match nearest(known, &name[PREFIX.len()..]) {
                    Some(known) => format!("unknown key; did you mean {PREFIX}{known}?"),
                    None => "unknown key; `wayside config schema` prints the known ones".into(),
                },
            };
            return self.refuse(name, text, &limit);
        };
        self.places.insert(key.clone(), self.place(0));
        let as_text = || Spanned::new(0..text.len(), DeValue::String(text.into()));
        let mut value = match wanted(schema) {
            "string" => as_text(),
            _ => DeValue::parse(text).unwrap_or_else(|_| as_text()),
        };
        if !self.value(key, &mut value, schema) {
            return;
        }
        let spanned = |name: &str| Spanned::new(0..0, Cow::Owned(name.to_owned()));
        let mut path = key.split('.');
        let last = path.next_back().unwrap_or_default();
        for section in path {
            let empty = || Spanned::new(0..0, DeValue::Table(DeTable::new()));
            let DeValue::Table(within) = table.entry(spanned(section)).or_insert_with(empty).get_mut() else {
                return;
            };
            table = within;
        }
        table.insert(spanned(last), value);
    }

    fn refuse(&mut self, variable: &str, value: &str, limit: &str) {
        let place = Some(Place::Variable(variable.to_owned()));
        self.faults.push(Fault::new(place, variable, shown(value), limit));
    }

    fn table(&mut self, path: &str, table: &mut DeTable<'_>, schema: &Json) {
        let mut faulty = Vec::new();
        for (name, value) in table.iter_mut() {
            let key = join(path, name.get_ref());
            self.places.insert(key.clone(), self.place(name.span().start));
            if !self.entry(path, &key, name.get_ref(), value, schema) {
                faulty.push(name.get_ref().clone());
            }
        }
        for name in faulty {
            table.remove(&*name);
        }
    }

    /// False if `value`, which stands at `name`, is nothing to read.
    fn entry(
        &mut self,
        path: &str,
        key: &str,
        name: &str,
        value: &mut Spanned<DeValue<'_>>,
        schema: &Json,
    ) -> bool {
        if let Some(schema) = schema["properties"].get(name) {
            return self.value(key, value, schema);
        }
        // A map whose keys are not ours.
        if schema["additionalProperties"].is_object() {
            return self.value(key, value, &schema["additionalProperties"]);
        }
        let limit = match self.nearest(path, name, schema) {
            Some(nearest) => format!("unknown key; did you mean {nearest}?"),
            None => format!("unknown key; known here: {}", names(schema).collect::<Vec<_>>().join(", ")),
        };
        self.fault(key, value, limit);
        false
    }

    /// False if `value` is nothing to read.
    fn value(&mut self, key: &str, value: &mut Spanned<DeValue<'_>>, schema: &Json) -> bool {
        let start = value.span().start;
        let choices = choices(schema);
        let limit = match (value.get_mut(), wanted(schema)) {
            (DeValue::Table(table), "object") => {
                self.table(key, table, schema);
                return true;
            }
            (DeValue::Array(array), "array") => {
                let mut whole = true;
                for (i, item) in array.iter_mut().enumerate() {
                    let key = format!("{key}[{i}]");
                    self.places.insert(key.clone(), self.place(item.span().start));
                    whole &= self.value(&key, item, &schema["items"]);
                }
                return whole;
            }
            (DeValue::String(text), "string") if choices.contains(&&Json::from(&**text)) => return true,
            (DeValue::Integer(number), "integer") if choices.contains(&&integer(number)) => return true,
            _ if !choices.is_empty() => format!("must be one of {}", list(&choices)),
            (DeValue::String(_), "string") | (DeValue::Boolean(_), "boolean") => return true,
            (DeValue::Integer(number), "integer") => {
                let (min, max) = range(schema);
                match integer(number).as_i64() {
                    Some(number) if (min..=max).contains(&number) => return true,
                    _ => format!("must be {min} to {max}"),
                }
            }
            (_, "object") => format!("must be a section: [{}]", section(key)),
            (_, "array") if is_list_of_sections(schema) => {
                format!("must be a list of sections: [[{}]]", section(key))
            }
            (_, "array") => "must be a list: [..]".into(),
            (_, "string") => "must be text in quotes".into(),
            (_, "integer") => "must be a whole number, without quotes".into(),
            (_, other) => format!("must be {other}"),
        };
        let place = self.place(start);
        self.places.entry(key.to_owned()).or_insert(place);
        self.fault(key, value, limit);
        false
    }

    /// Finds the keys that must be set and are not, in `table` and the tables within.
    fn missing(&mut self, path: &str, table: &DeTable<'_>, schema: &Json) {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            let (key, schema) = (join(path, name), &schema["properties"][name]);
            // A fault within it says enough.
            let faulty = self.faults.iter().any(|fault| related(&fault.key, &key));
            if table.contains_key(name) || faulty {
                continue;
            }
            if schema["type"] == "object" {
                self.missing(&key, &DeTable::new(), schema);
                continue;
            }
            let meaning = schema["description"].as_str().unwrap_or_default();
            let what = match choices(schema).as_slice() {
                [] => meaning.split(". ").next().unwrap_or_default().to_owned(),
                choices => list(choices),
            };
            self.faults.push(Fault::new(None, &key, "", &format!("must be set: {what}")));
        }
        for (name, value) in table {
            let (key, schema) = (join(path, name.get_ref()), &schema["properties"][&**name.get_ref()]);
            match value.get_ref() {
                DeValue::Table(table) => self.missing(&key, table, schema),
                DeValue::Array(array) => {
                    for (i, item) in array.iter().enumerate() {
                        if let DeValue::Table(table) = item.get_ref() {
                            self.missing(&format!("{key}[{i}]"), table, &schema["items"]);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn fault(&mut self, key: &str, value: &Spanned<DeValue<'_>>, limit: String) {
        let value = match value.get_ref() {
            DeValue::Table(_) => "{..}",
            DeValue::Array(_) => "[..]",
            _ => shown(self.text.get(value.span()).unwrap_or_default()),
        };
        self.faults.push(Fault::new(self.places.get(key).cloned(), key, value, &limit));
    }

    fn place(&self, at: usize) -> Place {
        match self.variable {
            Some(name) => Place::Variable(name.to_owned()),
            None => {
                Place::Line(1 + self.text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count())
            }
        }
    }

    /// What may have been meant: a key of this name in another section, or one of this section that is written alike.
    fn nearest(&self, path: &str, name: &str, schema: &Json) -> Option<String> {
        let alike = || nearest(names(schema).map(str::to_owned), name).map(|known| join(path, &known));
        place_of(name, "", self.schema).or_else(alike)
    }
}

/// A value without what is within, where the names of secrets may be.
fn shown(value: &str) -> &str {
    match value.trim_start().chars().next() {
        Some('{') => "{..}",
        Some('[') => "[..]",
        _ => value,
    }
}

/// The one of `known` that is written most like `name`, if it is like it at all.
fn nearest(known: impl Iterator<Item = String>, name: &str) -> Option<String> {
    known
        .map(|known| (strsim::jaro_winkler(&known, name), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// The keys below `schema` that are no sections, and the lists of sections.
fn settable<'s>(path: &str, schema: &'s Json) -> Vec<(String, &'s Json)> {
    match schema["properties"].as_object() {
        Some(keys) => keys.iter().flat_map(|(name, schema)| settable(&join(path, name), schema)).collect(),
        None => vec![(path.to_owned(), schema)],
    }
}

fn is_list_of_sections(schema: &Json) -> bool {
    schema["items"]["type"] == "object"
}

/// The variable that sets `key`.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// The type of a value. Choices with a meaning each stand in `oneOf`, with their type.
fn wanted(schema: &Json) -> &str {
    schema["type"].as_str().or(schema["oneOf"][0]["type"].as_str()).unwrap_or_default()
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

/// `source.mqtt[0].route` as it is written in brackets.
fn section(key: &str) -> String {
    let mut depth = 0;
    key.chars()
        .filter(|c| {
            depth += i32::from(*c == '[') - i32::from(*c == ']');
            depth == 0 && *c != ']'
        })
        .collect()
}

fn names(schema: &Json) -> impl Iterator<Item = &str> {
    schema["properties"].as_object().into_iter().flat_map(|known| known.keys().map(String::as_str))
}

/// `name` with the section in which it is a key.
fn place_of(name: &str, path: &str, schema: &Json) -> Option<String> {
    let known = schema["properties"].as_object()?;
    if !path.is_empty() && known.contains_key(name) {
        return Some(format!("{name} in [{path}]"));
    }
    known.iter().find_map(|(key, schema)| {
        let path = join(path, key);
        place_of(name, &path, schema).or_else(|| place_of(name, &path, &schema["items"]))
    })
}

/// The values that a key takes, if they are enumerated.
fn choices(schema: &Json) -> Vec<&Json> {
    let explained = schema["oneOf"].as_array().into_iter().flatten().map(|choice| &choice["const"]);
    schema["enum"].as_array().into_iter().flatten().chain(explained).collect()
}

fn list(choices: &[&Json]) -> String {
    choices.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Null for a number beyond TOML's 64 bits.
fn integer(number: &DeInteger<'_>) -> Json {
    i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok().into()
}

/// The range of an integer: what its key allows, or else its type.
fn range(schema: &Json) -> (i64, i64) {
    let (min, max) = match schema["format"].as_str() {
        Some("uint8") => (0, u8::MAX.into()),
        Some("uint16") => (0, u16::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        // TOML's integers have 64 bits and a sign.
        Some("uint64") => (0, i64::MAX),
        _ => (i64::MIN, i64::MAX),
    };
    let bound = |name: &str, default: i64| schema[name].as_i64().unwrap_or(default);
    (bound("minimum", min), bound("maximum", max))
}
