//! What a file says, held against the keys, types and ranges of [`RawConfig`](crate::config::raw::RawConfig): every
//! fault, where serde would stop at the first.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use toml::{
    Spanned,
    de::{DeInteger, DeTable, DeValue},
};

use super::Fault;

/// What is left of a file when its faults are taken out.
pub(super) struct Shaped<'t> {
    /// Only known keys with values of their types and ranges: the rest has its defaults.
    pub(super) table: Spanned<DeTable<'t>>,
    /// What was taken out, in the order of the keys.
    pub(super) faults: Vec<Fault>,
    /// Line of each key that stands in the file, from 1.
    pub(super) lines: BTreeMap<String, usize>,
}

/// Reads `text` and takes out what `schema` does not allow.
///
/// # Errors
/// All places where `text` is not TOML.
pub(super) fn shape<'t>(text: &'t str, schema: &Json) -> Result<Shaped<'t>, Vec<toml::de::Error>> {
    let (mut table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut walk = Walk { text, schema, faults: Vec::new(), lines: BTreeMap::new() };
    walk.table("", table.get_mut(), schema);
    Ok(Shaped { table, faults: walk.faults, lines: walk.lines })
}

struct Walk<'a> {
    text: &'a str,
    /// Of the whole file.
    schema: &'a Json,
    faults: Vec<Fault>,
    lines: BTreeMap<String, usize>,
}

impl Walk<'_> {
    fn table(&mut self, path: &str, table: &mut DeTable<'_>, schema: &Json) {
        let mut faulty = Vec::new();
        for (name, value) in table.iter_mut() {
            let key = join(path, name.get_ref());
            self.lines.insert(key.clone(), self.line(name.span().start));
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
        let wanted = schema["type"].as_str().unwrap_or_default();
        let limit = match (value.get_mut(), wanted) {
            (DeValue::Table(table), "object") => {
                self.table(key, table, schema);
                return true;
            }
            (DeValue::Array(array), "array") => {
                let mut whole = true;
                for (i, item) in array.iter_mut().enumerate() {
                    let key = format!("{key}[{i}]");
                    self.lines.insert(key.clone(), self.line(item.span().start));
                    whole &= self.value(&key, item, &schema["items"]);
                }
                return whole;
            }
            (DeValue::String(_), "string") | (DeValue::Boolean(_), "boolean") => return true,
            (DeValue::Integer(number), "integer") => {
                let (min, max) = range(schema);
                match integer(number) {
                    Some(number) if (min..=max).contains(&number) => return true,
                    _ => format!("must be {min} to {max}"),
                }
            }
            (_, "object") => format!("must be a section: [{}]", section(key)),
            (_, "array") if schema["items"]["type"] == "object" => {
                format!("must be a list of sections: [[{}]]", section(key))
            }
            (_, "array") => "must be a list: [..]".into(),
            (_, "string") => "must be text in quotes".into(),
            (_, "integer") => "must be a whole number, without quotes".into(),
            (_, other) => format!("must be {other}"),
        };
        self.lines.entry(key.to_owned()).or_insert_with(|| line(self.text, start));
        self.fault(key, value, limit);
        false
    }

    fn fault(&mut self, key: &str, value: &Spanned<DeValue<'_>>, limit: String) {
        let value = match value.get_ref() {
            DeValue::Table(_) => "{..}",
            DeValue::Array(_) => "[..]",
            _ => self.text.get(value.span()).unwrap_or_default(),
        };
        let line = self.lines.get(key).copied();
        self.faults.push(Fault { line, ..Fault::new(key, value, &limit) });
    }

    fn line(&self, at: usize) -> usize {
        line(self.text, at)
    }

    /// What may have been meant: a key of this name in another section, or one of this section that is written alike.
    fn nearest(&self, path: &str, name: &str, schema: &Json) -> Option<String> {
        let alike = || {
            names(schema)
                .map(|known| (strsim::jaro_winkler(known, name), known))
                .filter(|(likeness, _)| *likeness > 0.8)
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .map(|(_, known)| join(path, known))
        };
        place_of(name, "", self.schema).or_else(alike)
    }
}

fn line(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
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

fn integer(number: &DeInteger<'_>) -> Option<i128> {
    i128::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
}

/// The range of an integer: what its key allows, or else its type.
fn range(schema: &Json) -> (i128, i128) {
    let (min, max) = match schema["format"].as_str() {
        Some("uint8") => (0, u8::MAX.into()),
        Some("uint16") => (0, u16::MAX.into()),
        Some("uint32") => (0, u32::MAX.into()),
        Some("int32") => (i32::MIN.into(), i32::MAX.into()),
        // TOML's integers have 64 bits and a sign.
        Some("uint64") => (0, i64::MAX.into()),
        _ => (i64::MIN.into(), i64::MAX.into()),
    };
    let bound = |name: &str, default: i128| schema[name].as_i64().map_or(default, i128::from);
    (bound("minimum", min), bound("maximum", max))
}
