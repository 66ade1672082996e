//! Finds the scalars that JSON pointers name, in one pass over the text and without building a tree.
//!
//! A visitor goes down only where a pointer leads and lets serde_json skip, but check, the rest. Of a repeated key the
//! last value counts. Nesting deeper than serde_json's limit of 128 on the way of a pointer is an error.

use std::{borrow::Cow, fmt};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A JSON pointer (RFC 6901), split once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: Box<str>,
    tokens: Vec<Box<str>>,
}

/// A text that is no JSON pointer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("JSON pointer {0:?} does not start with \"/\"")]
pub struct PointerError(pub Box<str>);

impl Pointer {
    /// Splits `text`; the empty pointer names the whole document.
    ///
    /// # Errors
    /// [`PointerError`]; in a config the caller reports it with the key.
    pub fn new(text: &str) -> Result<Self, PointerError> {
        let tokens = match text.strip_prefix('/') {
            Some(path) => path.split('/').map(unescaped).collect(),
            None if text.is_empty() => Vec::new(),
            None => return Err(PointerError(text.into())),
        };
        Ok(Self { text: text.into(), tokens })
    }

    /// The pointer as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn unescaped(token: &str) -> Box<str> {
    token.replace("~1", "/").replace("~0", "~").into()
}

/// What a pointer named. A null counts as absent.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// A string.
    Text(Cow<'a, str>),
    /// An integer from 0 up.
    Unsigned(u64),
    /// A negative integer.
    Signed(i64),
    /// Any other number.
    Float(f64),
    /// A boolean, an array or an object.
    Other,
}

/// What `pointers` name in `text`, in their order. A pointer that is not there finds nothing.
///
/// # Errors
/// `text` is not one JSON document.
pub fn scan<'t, const N: usize>(
    text: &'t str,
    pointers: &[Option<Pointer>; N],
) -> Result<[Option<Scalar<'t>>; N], serde_json::Error> {
    const { assert!(N <= 8, "a set of pointers is the bits of a u8") };
    let mut found = [const { None }; N];
    let active = (0..N).filter(|&i| pointers[i].is_some()).fold(0, |set, i| set | 1 << i);
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Walk { pointers, active, depth: 0, found: &mut found }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(found)
}

/// The members of a set, ascending.
fn members(mut set: u8) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let member = set.trailing_zeros() as usize;
        set &= set.checked_sub(1)?;
        Some(member)
    })
}

/// Stands at a value to which the first `depth` tokens of the `active` pointers lead.
struct Walk<'w, 't> {
    pointers: &'w [Option<Pointer>],
    active: u8,
    depth: usize,
    found: &'w mut [Option<Scalar<'t>>],
}

impl<'t> Walk<'_, 't> {
    fn tokens(&self, pointer: usize) -> &[Box<str>] {
        self.pointers[pointer].as_ref().map_or(&[], |p| &p.tokens)
    }

    /// The pointers that go on with `token`.
    fn onward(&self, token: &str) -> u8 {
        members(self.active)
            .filter(|&i| self.tokens(i).get(self.depth).is_some_and(|next| **next == *token))
            .fold(0, |set, i| set | 1 << i)
    }

    /// `scalar` is what the pointers that end here name.
    fn arrive(&mut self, scalar: Option<Scalar<'t>>) {
        for i in members(self.active) {
            if self.tokens(i).len() == self.depth {
                self.found[i].clone_from(&scalar);
            }
        }
    }

    /// A key came that may have come before: what its earlier value held does not count.
    fn forget(&mut self, onward: u8) {
        for i in members(onward) {
            self.found[i] = None;
        }
    }

    fn child(&mut self, active: u8) -> Walk<'_, 't> {
        Walk { pointers: self.pointers, active, depth: self.depth + 1, found: self.found }
    }
}

impl<'t> DeserializeSeed<'t> for Walk<'_, 't> {
    type Value = ();

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t> Visitor<'t> for Walk<'_, 't> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(mut self) -> Result<(), E> {
        self.arrive(None);
        Ok(())
    }

    fn visit_bool<E>(mut self, _: bool) -> Result<(), E> {
        self.arrive(Some(Scalar::Other));
        Ok(())
    }

    fn visit_u64<E>(mut self, number: u64) -> Result<(), E> {
        self.arrive(Some(Scalar::Unsigned(number)));
        Ok(())
    }

    fn visit_i64<E>(mut self, number: i64) -> Result<(), E> {
        self.arrive(Some(Scalar::Signed(number)));
        Ok(())
    }

    fn visit_f64<E>(mut self, number: f64) -> Result<(), E> {
        self.arrive(Some(Scalar::Float(number)));
        Ok(())
    }

    fn visit_borrowed_str<E>(mut self, text: &'t str) -> Result<(), E> {
        self.arrive(Some(Scalar::Text(Cow::Borrowed(text))));
        Ok(())
    }

    fn visit_str<E>(mut self, text: &str) -> Result<(), E> {
        self.arrive(Some(Scalar::Text(Cow::Owned(text.to_owned()))));
        Ok(())
    }

    fn visit_map<A: MapAccess<'t>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.arrive(Some(Scalar::Other));
        while let Some(onward) = map.next_key_seed(Key(&self))? {
            match onward {
                0 => map.next_value::<IgnoredAny>().map(drop)?,
                _ => {
                    self.forget(onward);
                    map.next_value_seed(self.child(onward))?;
                }
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'t>>(mut self, mut seq: A) -> Result<(), A::Error> {
        self.arrive(Some(Scalar::Other));
        // Mostly no pointer goes into an array; then its indices need not become text.
        let goes_on = members(self.active).any(|i| self.tokens(i).len() > self.depth);
        for index in 0usize.. {
            let onward = if goes_on { self.onward(&index.to_string()) } else { 0 };
            let end = match onward {
                0 => seq.next_element::<IgnoredAny>()?.is_none(),
                _ => seq.next_element_seed(self.child(onward))?.is_none(),
            };
            if end {
                break;
            }
        }
        Ok(())
    }
}

/// Compares a key without keeping it.
struct Key<'k, 'w, 't>(&'k Walk<'w, 't>);

impl<'t> DeserializeSeed<'t> for Key<'_, '_, 't> {
    type Value = u8;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<u8, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'t> Visitor<'t> for Key<'_, '_, 't> {
    type Value = u8;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<u8, E> {
        Ok(self.0.onward(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, pointer: &str, expected: Option<Scalar<'_>>) {
        let pointers = [Some(Pointer::new(pointer).unwrap())];
        assert_eq!(scan(text, &pointers).unwrap(), [expected], "{pointer} in {text}");
    }

    #[test]
    fn scan_finds_what_the_pointer_names() {
        let text = r#"{"a":{"b":[1,{"c":"x"},-3]},"":4,"m/n":5,"t~":6.5,"n":null,"o":true,"e":"\u00e4\n"}"#;
        check(text, "/a/b/0", Some(Scalar::Unsigned(1)));
        check(text, "/a/b/1/c", Some(Scalar::Text("x".into())));
        check(text, "/a/b/2", Some(Scalar::Signed(-3)));
        check(text, "/a/b/3", None);
        check(text, "/a/b/01", None);
        check(text, "/", Some(Scalar::Unsigned(4)));
        check(text, "/m~1n", Some(Scalar::Unsigned(5)));
        check(text, "/t~0", Some(Scalar::Float(6.5)));
        check(text, "/n", None);
        check(text, "/o", Some(Scalar::Other));
        check(text, "/a", Some(Scalar::Other));
        check(text, "/a/b", Some(Scalar::Other));
        check(text, "/e", Some(Scalar::Text("ä\n".into())));
        check(text, "/e/x", None);
        check("17", "", Some(Scalar::Unsigned(17)));
        check(r#"{"a":1,"a":2}"#, "/a", Some(Scalar::Unsigned(2)));
        assert!(Pointer::new("a/b").is_err());
    }

    /// Found when fuzz target `json` was written: `/a/b` kept the 1 of an object that the document no more has.
    #[test]
    fn scan_forgets_what_was_within_an_earlier_value_of_a_repeated_key() {
        check(r#"{"a":{"b":1},"a":{}}"#, "/a/b", None);
        check(r#"{"a":{"b":1},"a":7}"#, "/a/b", None);
        check(r#"{"a":[1,2],"a":[3]}"#, "/a/1", None);
    }

    #[test]
    fn scan_finds_several_that_share_a_way() {
        let pointers = ["/d/id", "/d/t", "/d"].map(|p| Some(Pointer::new(p).unwrap()));
        assert_eq!(
            scan(r#"{"d":{"t":9,"x":[{}],"id":"a"}}"#, &pointers).unwrap(),
            [Some(Scalar::Text("a".into())), Some(Scalar::Unsigned(9)), Some(Scalar::Other)]
        );
    }

    #[test]
    fn scan_checks_what_it_skips() {
        let pointers = [Some(Pointer::new("/a").unwrap())];
        for wrong in [
            "",
            "{",
            r#"{"a":1"#,
            r#"{"a":1}x"#,
            r#"{"a":1,}"#,
            r#"{"a":1,"b":[1,]}"#,
            r#"{"a":1,"b":tru}"#,
            r#"{"a":1,"b":01}"#,
            r#"{"a":1,"b":"\x"}"#,
            "{\"a\":1,\"b\":\"\u{1}\"}",
            "{'a':1}",
        ] {
            assert!(scan(wrong, &pointers).is_err(), "{wrong}");
        }
    }

    #[test]
    fn scan_survives_any_depth() {
        let pointers = [Some(Pointer::new(&"/0".repeat(1000)).unwrap())];
        assert!(scan(&"[".repeat(100_000), &pointers).is_err());
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(scan(&deep, &pointers).is_err(), "deeper than the limit on the pointer's way");
        assert!(scan(&deep, &[Some(Pointer::new("/a").unwrap())]).is_ok(), "skipping needs no stack");
    }
}
