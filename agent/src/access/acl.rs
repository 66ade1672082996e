//! Mosquitto's access control list: who may read and write which topics.
//!
//! ```text
//! user NAME                                     what follows is for this user
//! topic [read|write|readwrite|deny] FILTER      in front of the first `user`: for clients without a name
//! pattern [read|write|readwrite|deny] FILTER    for all; the levels %c and %u stand for client id and user name
//! ```
//! As mosquitto.conf(5) says: without a word the access is `readwrite`; `deny` goes before what grants; what nothing grants is
//! denied. A user's own topics are asked first, then the patterns. Blank lines and those that begin with `#` do not count.
//!
//! As Mosquitto does, where the manual is silent: rules in several places for one user are one list; a client whose name or id
//! holds `+` or `#` gets nothing by patterns; a rule matches topics that begin with `$` if it begins with `$` itself.

use std::collections::BTreeMap;

use super::{LineError, each_line};

/// What is wrong with a line of an access control list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AclReason {
    /// Neither of the three kinds of lines.
    #[error("must begin with user, topic or pattern and a blank")]
    Keyword,
    /// Nothing behind `user`.
    #[error("the user has no name")]
    Name,
    /// Nothing behind `topic` or `pattern`.
    #[error("the topic is missing")]
    Missing,
    /// A word in front of the filter that is no access.
    #[error(
        "the access must be read, write, readwrite or deny (a filter with a blank in it needs one in front)"
    )]
    Access,
    /// No topic filter.
    #[error("must be an MQTT topic filter")]
    Filter,
    /// `%c` or `%u` beside other text.
    #[error("%c and %u must be the only text of their level")]
    Substitution,
}

/// What a client wants of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To be sent what is published there. Asked for each delivery: a subscription itself is not refused, as with Mosquitto.
    Read,
    /// To publish there; also a will, when it is published.
    Write,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// As authenticated; `None` for an anonymous client.
    pub user: Option<&'a str>,
    /// MQTT client id.
    pub id: &'a str,
}

/// The rules of a file.
#[derive(Clone, Debug, Default)]
pub struct Acl {
    anonymous: Rules,
    users: BTreeMap<Box<str>, Rules>,
    patterns: Rules,
}

#[derive(Clone, Debug, Default)]
struct Rules {
    denied: Vec<Box<str>>,
    granted: Vec<Grant>,
}

#[derive(Clone, Debug)]
struct Grant {
    read: bool,
    write: bool,
    filter: Box<str>,
}

impl Acl {
    /// Reads the text of a file. One without rules denies everything.
    ///
    /// # Errors
    /// Every line that is wrong; the caller refuses the file.
    pub fn parse(text: &str) -> Result<Self, Vec<LineError<AclReason>>> {
        let mut acl = Self::default();
        let mut user: Option<&str> = None;
        each_line(text, |_, text| {
            let text = text.trim_start_matches(' ');
            let (keyword, rest) = text.split_once(' ').unwrap_or((text, ""));
            let rest = rest.trim();
            let rules = match keyword {
                "user" if rest.is_empty() => return Err(AclReason::Name),
                "user" => {
                    user = Some(rest);
                    return Ok(());
                }
                "topic" => match user {
                    Some(user) => acl.users.entry(user.into()).or_default(),
                    None => &mut acl.anonymous,
                },
                "pattern" => &mut acl.patterns,
                _ => return Err(AclReason::Keyword),
            };
            rules.add(rest, keyword == "pattern")
        })?;
        Ok(acl)
    }

    /// Whether `client` may do `access` with `topic`, which has no wildcards. Allocates nothing.
    pub fn allows(&self, client: Client<'_>, access: Access, topic: &str) -> bool {
        let own = match client.user {
            Some(user) => self.users.get(user),
            None => Some(&self.anonymous),
        };
        own.and_then(|rules| rules.decide(access, topic, Some))
            .or_else(|| {
                self.patterns.decide(access, topic, |level| client.level(level)).filter(|_| !client.is_wild())
            })
            .unwrap_or(false)
    }
}

impl Rules {
    fn add(&mut self, rule: &str, is_pattern: bool) -> Result<(), AclReason> {
        let (read, write, filter) = match rule.split_once(' ') {
            None if rule.is_empty() => return Err(AclReason::Missing),
            None => (true, true, rule),
            Some(("read", filter)) => (true, false, filter),
            Some(("write", filter)) => (false, true, filter),
            Some(("readwrite", filter)) => (true, true, filter),
            Some(("deny", filter)) => (false, false, filter),
            Some(_) => return Err(AclReason::Access),
        };
        let filter = filter.trim_start();
        if !rumqttc::valid_filter(filter) {
            return Err(AclReason::Filter);
        }
        let is_substituted = |level: &str| level.contains("%c") || level.contains("%u");
        if is_pattern && filter.split('/').any(|level| level.len() > 2 && is_substituted(level)) {
            return Err(AclReason::Substitution);
        }
        if read || write {
            self.granted.push(Grant { read, write, filter: filter.into() });
        } else {
            self.denied.push(filter.into());
        }
        Ok(())
    }

    /// What the rules say, each level of theirs read as `text` has it; `None` if they say nothing.
    fn decide<'a>(
        &'a self,
        access: Access,
        topic: &str,
        text: impl Fn(&'a str) -> Option<&'a str>,
    ) -> Option<bool> {
        if self.denied.iter().any(|filter| matches(filter, topic, &text)) {
            return Some(false);
        }
        let grants = |grant: &Grant| match access {
            Access::Read => grant.read,
            Access::Write => grant.write,
        };
        self.granted.iter().any(|grant| grants(grant) && matches(&grant.filter, topic, &text)).then_some(true)
    }
}

impl<'a> Client<'a> {
    /// A level of a pattern as it is for this client; `None` where it needs the name of a client that has none.
    fn level(self, level: &'a str) -> Option<&'a str> {
        match level {
            "%c" => Some(self.id),
            "%u" => self.user,
            other => Some(other),
        }
    }

    /// Whether a pattern would have wildcards that its author did not write (CVE-2017-7650).
    fn is_wild(self) -> bool {
        self.user.into_iter().chain([self.id]).any(|text| text.contains(['+', '#']))
    }
}

/// Whether `filter`, each level of it read as `text` has it, matches `topic` by section 4.7 of the MQTT specification.
fn matches<'a>(filter: &'a str, topic: &str, text: impl Fn(&'a str) -> Option<&'a str>) -> bool {
    if topic.starts_with('$') != filter.starts_with('$') {
        return false;
    }
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        if level == "#" {
            return true;
        }
        // A name with slashes stands for several levels.
        let Some(level) = text(level) else { return false };
        if !level
            .split('/')
            .all(|expected| topic.next().is_some_and(|found| expected == "+" || expected == found))
        {
            return false;
        }
    }
    topic.next().is_none()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asserts what `client`, as `user/id` or `/id` without a name, may do, as letters of r and w.
    #[track_caller]
    fn check(acl: &Acl, client: (&str, &str), topic: &str, expected: &str) {
        let (user, id) = client;
        let client = Client { user: (!user.is_empty()).then_some(user), id };
        let read = acl.allows(client, Access::Read, topic);
        let write = acl.allows(client, Access::Write, topic);
        let found = [("r", read), ("w", write)].map(|(letter, may)| if may { letter } else { "" }).concat();
        assert_eq!(found, expected, "{client:?} {topic}");
    }

    const FILE: &str = "\
# What anybody may.
topic read public/#
topic deny public/secret

user alice
topic building/+/alice
topic write commands/#
topic read readings with blanks/#
  topic deny commands/reboot

user bob
topic read #
topic deny building/#
user alice
topic read again/+

pattern write sensor/%u/data
pattern readwrite client/%c/#
pattern write $SYS/broker/connection/%c/state
pattern deny client/%c/locked
pattern read all/+
";

    #[test]
    fn topics_are_for_their_user_and_what_nothing_grants_is_denied() {
        let acl = Acl::parse(FILE).expect("good");
        check(&acl, ("", "c1"), "public/a/b", "r");
        check(&acl, ("", "c1"), "public", "r");
        check(&acl, ("", "c1"), "building/1/alice", "");
        check(&acl, ("alice", "c1"), "public/a", "");
        check(&acl, ("alice", "c1"), "building/1/alice", "rw");
        check(&acl, ("alice", "c1"), "building/1/2/alice", "");
        check(&acl, ("alice", "c1"), "commands/start", "w");
        check(&acl, ("alice", "c1"), "readings with blanks/1", "r");
        check(&acl, ("alice", "c1"), "again/1", "r");
        check(&acl, ("bob", "c1"), "any/thing", "r");
        check(&acl, ("bob", "c1"), "$SYS/uptime", "");
        check(&acl, ("carol", "c1"), "any/thing", "");
        check(&acl, ("", "c1"), "any/thing", "");
    }

    #[test]
    fn deny_goes_before_what_grants_wherever_it_stands() {
        let acl = Acl::parse(FILE).expect("good");
        check(&acl, ("", "c1"), "public/secret", "");
        check(&acl, ("alice", "c1"), "commands/reboot", "");
        check(&acl, ("bob", "c1"), "building/1", "");
        check(&acl, ("bob", "c1"), "client/c1/locked", "r");
        check(&acl, ("alice", "c1"), "client/c1/locked", "");
    }

    #[test]
    fn patterns_are_for_all_with_the_name_and_id_of_who_asks() {
        let acl = Acl::parse(FILE).expect("good");
        check(&acl, ("alice", "c1"), "sensor/alice/data", "w");
        check(&acl, ("alice", "c1"), "sensor/bob/data", "");
        check(&acl, ("", "c1"), "sensor//data", "");
        check(&acl, ("", "c1"), "client/c1", "rw");
        check(&acl, ("", "c1"), "client/c1/a/b", "rw");
        check(&acl, ("", "c1"), "client/c2/a", "");
        check(&acl, ("", "c1"), "$SYS/broker/connection/c1/state", "w");
        check(&acl, ("", "a/b"), "client/a/b/c", "rw");
        check(&acl, ("carol", "c1"), "all/x", "r");
        check(&acl, ("", "%u"), "client/%u/x", "rw");
    }

    #[test]
    fn names_with_wildcards_get_nothing_by_patterns() {
        let acl = Acl::parse(FILE).expect("good");
        for wild in ["+", "#", "a#", "c1/+"] {
            check(&acl, ("", wild), "client/c1/a", "");
            check(&acl, ("", wild), "all/x", "");
            check(&acl, (wild, "c1"), "client/c1/a", "");
            check(&acl, ("", wild), "public/a", "r");
        }
        // A `$` in an id does not open what the file keeps from wildcards.
        let acl = Acl::parse("pattern readwrite %c/#").expect("good");
        check(&acl, ("", "$SYS"), "$SYS/x", "");
    }

    #[test]
    fn a_file_without_rules_denies_everything() {
        for text in ["", "# nothing\n\n", "user alice"] {
            check(&Acl::parse(text).expect("good"), ("alice", "c1"), "a", "");
        }
    }

    #[test]
    fn wrong_lines_are_named_all_at_once() {
        let text = "topic a\ntopic\nuser\nusers a\ntopic write\ntopic may a\ntopic a b/c\ntopic read a/#/b\n\
                    pattern read a/x%c\npattern a/%u%c/b\npattern \n\ttopic a\ntopic read x%c\npattern deny %c";
        let errors = Acl::parse(text).expect_err("wrong");
        let found: Vec<_> = errors.iter().map(|error| (error.line, error.reason)).collect();
        assert_eq!(
            found,
            [
                (2, AclReason::Missing),
                (3, AclReason::Name),
                (4, AclReason::Keyword),
                (6, AclReason::Access),
                (7, AclReason::Access),
                (8, AclReason::Filter),
                (9, AclReason::Substitution),
                (10, AclReason::Substitution),
                (11, AclReason::Missing),
                (12, AclReason::Keyword),
            ]
        );
        assert_eq!(errors[0].to_string(), "line 2: the topic is missing");
    }

    proptest! {
        #[test]
        fn decisions_are_those_of_mosquittos_loop(
            lines in prop::collection::vec(
                "(topic|pattern)( read| write| readwrite| deny)? ([ab+]|%c|%u|[$]s)(/([ab+]|%c|%u)){0,2}(/#)?|user [ab]",
                0..8,
            ),
            user in "[ab+]?(/a)?",
            id in "[ab#]{1,2}(/b)?",
            topic in "([ab]|[$]s)(/([ab]|%c)?){0,3}",
        ) {
            crate::fuzz::acl(format!("{}\0{user}\n{id}\n{topic}", lines.join("\n")).as_bytes());
        }
    }
}
