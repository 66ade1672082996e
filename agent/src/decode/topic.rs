//! MQTT topics: which filter matches, and which level is the device.

/// A topic filter, split once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFilter {
    levels: Vec<Level>,
    /// The filter ends in `#`: the levels are a prefix.
    rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    Exactly(Box<str>),
    Any,
    /// Any, and it is the device id.
    Device,
}

impl TopicFilter {
    /// Splits a checked filter. Of a shared subscription `$share/<group>/<filter>`, the filter counts.
    pub fn new(filter: &str) -> Self {
        let filter = match filter.strip_prefix("$share/").and_then(|shared| shared.split_once('/')) {
            Some((_group, filter)) => filter,
            None => filter,
        };
        let levels = filter.split('/').map(|level| match level {
            "+" => Level::Any,
            _ => Level::Exactly(level.into()),
        });
        Self::with_levels(levels.collect())
    }

    fn with_levels(mut levels: Vec<Level>) -> Self {
        let rest = levels.pop_if(|level| *level == Level::Exactly("#".into())).is_some();
        Self { levels, rest }
    }

    /// Whether a message with `topic` belongs to the filter, by section 4.7 of the MQTT specification: `a/#` matches `a`,
    /// and a wildcard at the start does not match topics that begin with `$`.
    pub fn matches(&self, topic: &str) -> bool {
        let wild_start = !matches!(self.levels.first(), Some(Level::Exactly(_)));
        !(wild_start && topic.starts_with('$')) && self.walk(topic).is_some()
    }

    /// `None` if `topic` does not match, else the device's level, where the filter has one.
    fn walk<'t>(&self, topic: &'t str) -> Option<Option<&'t str>> {
        let mut found = topic.split('/');
        let mut device = None;
        for level in &self.levels {
            let text = found.next()?;
            match level {
                Level::Exactly(expected) if **expected != *text => return None,
                Level::Device => device = Some(text),
                Level::Exactly(_) | Level::Any => {}
            }
        }
        (self.rest || found.next().is_none()).then_some(device)
    }
}

/// Where the device id is in a topic: `building/{floor}/{device}/occupancy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPattern(TopicFilter);

/// Why a text is no [`TopicPattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a topic pattern has {{device}} as exactly one of its levels; this one has {0}")]
pub struct TopicPatternError(pub usize);

impl TopicPattern {
    /// Splits a pattern: the levels of a topic, of which one is `{device}`; `{other}` and `+` stand for any one level, a
    /// closing `#` for any further ones.
    ///
    /// # Errors
    /// [`TopicPatternError`]; in a config the caller reports it with the key.
    pub fn new(pattern: &str) -> Result<Self, TopicPatternError> {
        let levels: Vec<Level> = pattern
            .split('/')
            .map(|level| match level {
                "{device}" => Level::Device,
                "+" => Level::Any,
                _ if level.starts_with('{') && level.ends_with('}') => Level::Any,
                _ => Level::Exactly(level.into()),
            })
            .collect();
        match levels.iter().filter(|level| **level == Level::Device).count() {
            1 => Ok(Self(TopicFilter::with_levels(levels))),
            count => Err(TopicPatternError(count)),
        }
    }

    /// The device's level of `topic`, `None` if `topic` has not the form of the pattern.
    pub fn device<'t>(&self, topic: &'t str) -> Option<&'t str> {
        self.0.walk(topic).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_matches_as_the_mqtt_specification_says() {
        #[rustfmt::skip]
        let cases = [
            ("a/b", "a/b", true), ("a/b", "a/b/c", false), ("a/b", "a", false), ("a/b", "A/b", false),
            ("a/+", "a/b", true), ("a/+", "a/", true), ("a/+", "a", false), ("a/+", "a/b/c", false),
            ("+/+", "/b", true), ("/+", "/b", true), ("+", "/b", false),
            ("a/#", "a", true), ("a/#", "a/b/c", true), ("a/#", "ab", false), ("#", "a/b", true), ("#", "", true),
            ("#", "$SYS/x", false), ("+/x", "$SYS/x", false), ("$SYS/#", "$SYS/x", true),
            ("$share/group/a/+", "a/b", true), ("$share/group/#", "$SYS/x", false),
            ("a/+/c/#", "a/b/c", true), ("a/+/c/#", "a/b/d/c", false),
        ];
        for (filter, topic, expected) in cases {
            assert_eq!(TopicFilter::new(filter).matches(topic), expected, "{filter} on {topic}");
        }
    }

    #[test]
    fn pattern_finds_the_device_level() {
        let check = |pattern: &str, topic: &str, expected: Option<&str>| {
            assert_eq!(TopicPattern::new(pattern).unwrap().device(topic), expected, "{pattern} on {topic}");
        };
        check("building/{floor}/{device}/occupancy", "building/3/r12/occupancy", Some("r12"));
        check("building/{floor}/{device}/occupancy", "building/3/r12/air", None);
        check("building/{floor}/{device}/occupancy", "building/3/r12", None);
        check("building/{floor}/{device}/occupancy", "building/3//occupancy", Some(""));
        check("{device}", "x", Some("x"));
        check("{device}/#", "x/y/z", Some("x"));
        check("+/{device}", "a/b", Some("b"));
        assert_eq!(TopicPattern::new("a/{room}"), Err(TopicPatternError(0)));
        assert_eq!(TopicPattern::new("{device}/{device}"), Err(TopicPatternError(2)));
    }
}
