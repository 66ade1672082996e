//! Which sessions want a topic: the filters of all as one tree of levels, and the retained messages.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::packet::{Outgoing, SubscribeOptions};
use crate::{config::Qos, decode::topic::TopicFilter, env::Monotonic};

/// Most bytes of filters over all sessions, with the tree that they make: some 12 000 subscriptions to
/// `room/17`, or 3 600 to `room/17/door`.
const SUBSCRIPTIONS_BYTES_MAX: usize = 4 << 20;

/// What a filter is counted with beside its text and its nodes.
const FILTER_BYTES: usize = 160;

/// What a node is counted with.
const NODE_BYTES: usize = 160;

/// What the first child of a node is counted with: the map of children takes room for eleven.
const FIRST_CHILD_BYTES: usize = 800;

/// Which session, by its place in the broker.
pub(super) type SessionKey = usize;

/// A message on its way to subscribers, one for all of them.
#[derive(Debug)]
pub(super) struct Message {
    /// Topic, checked.
    pub(super) topic: Box<str>,
    /// Payload.
    pub(super) payload: Bytes,
    /// As published.
    pub(super) qos: Qos,
    /// As published.
    pub(super) retain: bool,
    /// Encoded MQTT 5 properties that are handed on unaltered (MQTT-3.3.2-17 and others).
    pub(super) properties: Box<[u8]>,
    /// When nobody wants it any more.
    pub(super) expires_at: Option<Monotonic>,
}

impl Message {
    /// What it is counted with in every bound.
    pub(super) fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.topic.len() + self.payload.len() + self.properties.len()
    }

    /// The packet that a subscriber gets, `None` if the message has expired (MQTT-3.3.2-5).
    pub(super) fn outgoing(&self, now: Monotonic) -> Option<Outgoing<'_>> {
        let left = self.expires_at.map(|at| at.since(now).as_secs());
        if left == Some(0) {
            return None;
        }
        Some(Outgoing {
            dup: false,
            qos: self.qos,
            retain: self.retain,
            topic: &self.topic,
            packet_id: 0,
            expiry_s: left.map(|s| u32::try_from(s).unwrap_or(u32::MAX)),
            properties: &self.properties,
            payload: &self.payload,
        })
    }
}

#[derive(Debug, Default)]
struct Node {
    /// By level, `+` and `#` among them.
    children: BTreeMap<Box<str>, Node>,
    subscribers: BTreeMap<SessionKey, SubscribeOptions>,
}

/// There is no room for a further subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// All subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    root: Node,
    size_bytes: usize,
}

impl Subscriptions {
    /// Whether nobody has subscribed to anything.
    pub(super) fn is_empty(&self) -> bool {
        self.size_bytes == 0
    }

    /// Sets the subscription of `session` to a checked `filter`. Returns whether it is new.
    pub(super) fn insert(
        &mut self,
        filter: &str,
        session: SessionKey,
        options: SubscribeOptions,
    ) -> Result<bool, Full> {
        // Looked up first: a refusal must leave no empty nodes behind.
        let known = self.options(filter, session).is_some();
        let growth_bytes =
            if known { 0 } else { filter.len() + FILTER_BYTES + missing_bytes(&self.root, filter) };
        if self.size_bytes + growth_bytes > SUBSCRIPTIONS_BYTES_MAX {
            return Err(Full);
        }
        let mut node = &mut self.root;
        for level in filter.split('/') {
            node = node.children.entry(level.into()).or_default();
        }
        node.subscribers.insert(session, options);
        self.size_bytes += growth_bytes;
        Ok(!known)
    }

    /// The options of the subscription of `session` to `filter`.
    pub(super) fn options(&self, filter: &str, session: SessionKey) -> Option<SubscribeOptions> {
        find(&self.root, filter)?.subscribers.get(&session).copied()
    }

    /// Ends the subscription of `session` to `filter`. Returns whether there was one.
    pub(super) fn remove(&mut self, filter: &str, session: SessionKey) -> bool {
        let Some(nodes_bytes) = remove(&mut self.root, Some(filter), session) else { return false };
        self.size_bytes -= filter.len() + FILTER_BYTES + nodes_bytes;
        true
    }

    /// The sessions that want `topic`, each once, with the options of its subscription that has the highest QoS.
    pub(super) fn matches(&self, topic: &str) -> BTreeMap<SessionKey, SubscribeOptions> {
        let mut found = BTreeMap::new();
        // Wildcards do not match what begins with `$` (MQTT-4.7.2-1).
        visit(&self.root, Some(topic), topic.starts_with('$'), &mut found);
        found
    }
}

fn split(rest: &str) -> (&str, Option<&str>) {
    match rest.split_once('/') {
        Some((level, rest)) => (level, Some(rest)),
        None => (rest, None),
    }
}

fn find<'n>(root: &'n Node, filter: &str) -> Option<&'n Node> {
    filter.split('/').try_fold(root, |node, level| node.children.get(level))
}

/// What the nodes are counted with that `filter` needs and that are not there.
fn missing_bytes(root: &Node, filter: &str) -> usize {
    let mut node = Some(root);
    let mut missing_bytes = 0;
    for level in filter.split('/') {
        let child = node.and_then(|node| node.children.get(level));
        if child.is_none() {
            missing_bytes += child_bytes(node.is_none_or(|node| node.children.is_empty()));
        }
        node = child;
    }
    missing_bytes
}

/// What a child of a node is counted with; `alone` if the node has no other.
fn child_bytes(alone: bool) -> usize {
    if alone { FIRST_CHILD_BYTES } else { NODE_BYTES }
}

/// Returns how many bytes of nodes went with the subscription, `None` if there was none.
fn remove(node: &mut Node, rest: Option<&str>, session: SessionKey) -> Option<usize> {
    let Some(rest) = rest else { return node.subscribers.remove(&session).map(|_| 0) };
    let (level, rest) = split(rest);
    let child = node.children.get_mut(level)?;
    let mut nodes_bytes = remove(child, rest, session)?;
    if child.children.is_empty() && child.subscribers.is_empty() {
        node.children.remove(level);
        nodes_bytes += child_bytes(node.children.is_empty());
    }
    Some(nodes_bytes)
}

fn visit(node: &Node, rest: Option<&str>, hidden: bool, found: &mut BTreeMap<SessionKey, SubscribeOptions>) {
    // `a/#` matches `a` too (section 4.7.1.2).
    if !hidden && let Some(all) = node.children.get("#") {
        add(all, found);
    }
    let Some(rest) = rest else { return add(node, found) };
    let (level, rest) = split(rest);
    for level in [level, "+"].into_iter().take(if hidden { 1 } else { 2 }) {
        if let Some(child) = node.children.get(level) {
            visit(child, rest, false, found);
        }
    }
}

fn add(node: &Node, found: &mut BTreeMap<SessionKey, SubscribeOptions>) {
    for (session, options) in &node.subscribers {
        let best = found.entry(*session).or_insert(*options);
        if options.qos > best.qos {
            *best = *options;
        }
    }
}

/// The last retained message of each topic, bounded in bytes.
#[derive(Debug)]
pub(super) struct Retained {
    messages: BTreeMap<Box<str>, Arc<Message>>,
    size_bytes: usize,
    limit_bytes: usize,
}

impl Retained {
    /// Holds `limit_bytes` at most.
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { messages: BTreeMap::new(), size_bytes: 0, limit_bytes }
    }

    /// Keeps `message` for its topic in place of the one before; without payload it removes that (MQTT-3.3.1-6).
    pub(super) fn set(&mut self, message: Arc<Message>) -> Result<(), Full> {
        let size = |message: &Message| message.size_bytes() + message.topic.len();
        if let Some(old) = self.messages.remove(&message.topic) {
            self.size_bytes -= size(&old);
        }
        if message.payload.is_empty() {
            return Ok(());
        }
        if self.size_bytes + size(&message) > self.limit_bytes {
            return Err(Full);
        }
        self.size_bytes += size(&message);
        self.messages.insert(message.topic.clone(), message);
        Ok(())
    }

    /// That of `topic`.
    pub(super) fn get(&self, topic: &str) -> Option<&Message> {
        self.messages.get(topic).map(|message| &**message)
    }

    /// Those whose topics `filter` matches, in the order of the topics.
    pub(super) fn matching(&self, filter: &str) -> impl Iterator<Item = &Arc<Message>> {
        let filter = TopicFilter::new(filter);
        self.messages.values().filter(move |message| filter.matches(&message.topic))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::listener::packet::RetainHandling;

    fn options(qos: Qos) -> SubscribeOptions {
        SubscribeOptions {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Always,
        }
    }

    #[test]
    fn a_session_that_matches_twice_is_found_once_with_its_highest_qos() {
        let mut subscriptions = Subscriptions::default();
        assert_eq!(subscriptions.insert("a/#", 1, options(Qos::AtMostOnce)), Ok(true));
        assert_eq!(subscriptions.insert("a/+", 1, options(Qos::AtLeastOnce)), Ok(true));
        assert_eq!(subscriptions.insert("a/+", 1, options(Qos::AtLeastOnce)), Ok(false));
        let found: Vec<_> = subscriptions.matches("a/b").into_iter().map(|(key, o)| (key, o.qos)).collect();
        assert_eq!(found, [(1, Qos::AtLeastOnce)]);
        assert!(subscriptions.remove("a/+", 1) && !subscriptions.remove("a/+", 1));
        assert!(subscriptions.remove("a/#", 1) && subscriptions.is_empty());
        assert!(subscriptions.root.children.is_empty(), "no node stays behind");
    }

    #[test]
    fn subscriptions_are_bounded_in_bytes_and_a_refused_one_leaves_nothing() {
        let mut subscriptions = Subscriptions::default();
        let filter = |i: usize| format!("{i}/{}", "x".repeat(1000));
        let taken =
            (0..).take_while(|i| subscriptions.insert(&filter(*i), 0, options(Qos::AtMostOnce)).is_ok());
        let taken = taken.count();
        assert!((1500..2500).contains(&taken), "{taken}");
        assert_eq!(subscriptions.root.children.len(), taken);
        assert!(subscriptions.remove(&filter(0), 0));
        assert_eq!(subscriptions.insert(&filter(taken), 0, options(Qos::AtMostOnce)), Ok(true));
    }

    #[test]
    fn a_filter_is_counted_with_each_level_that_it_adds() {
        let mut subscriptions = Subscriptions::default();
        let filter = |i: usize| format!("{i}{}", "/x".repeat(500));
        let taken =
            (0..).take_while(|i| subscriptions.insert(&filter(*i), 0, options(Qos::AtMostOnce)).is_ok());
        let taken = taken.count();
        assert!((8..12).contains(&taken), "{taken}");
        for i in 0..taken {
            assert!(subscriptions.remove(&filter(i), 0));
        }
        assert_eq!(subscriptions.size_bytes, 0);
    }

    #[test]
    fn retained_messages_are_replaced_removed_by_an_empty_one_and_bounded() {
        let message = |topic: &str, payload: &'static [u8]| {
            Arc::new(Message {
                topic: topic.into(),
                payload: Bytes::from_static(payload),
                qos: Qos::AtMostOnce,
                retain: true,
                properties: Box::default(),
                expires_at: None,
            })
        };
        let mut retained = Retained::new(2 * message("a", b"1").size_bytes() + 2);
        let payloads = |retained: &Retained, filter: &str| {
            retained.matching(filter).map(|message| message.payload.clone()).collect::<Vec<_>>()
        };
        assert_eq!(retained.set(message("a", b"1")), Ok(()));
        assert_eq!(retained.set(message("a", b"2")), Ok(()));
        assert_eq!(retained.set(message("b", b"3")), Ok(()));
        assert_eq!(retained.set(message("c", b"4")), Err(Full));
        assert_eq!(payloads(&retained, "#"), ["2", "3"]);
        assert_eq!(retained.set(message("a", b"")), Ok(()));
        assert_eq!(retained.set(message("c", b"4")), Ok(()));
        assert_eq!(payloads(&retained, "+"), ["3", "4"]);
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_each_filter_matches_alone(
            filters in prop::collection::vec("[ab+$]{1,2}(/[ab+]{0,1}){0,3}(/#)?|#", 1..8),
            topic in "[ab$]{0,2}(/[ab]{0,1}){0,4}",
        ) {
            let sound = |filter: &&String| filter.split('/').all(|level| level.len() < 2 || !level.contains('+'));
            let mut subscriptions = Subscriptions::default();
            for (key, filter) in filters.iter().filter(sound).enumerate() {
                subscriptions.insert(filter, key, options(Qos::AtMostOnce)).expect("room");
            }
            let found: Vec<_> = subscriptions.matches(&topic).into_keys().collect();
            let expected: Vec<_> = filters
                .iter()
                .filter(sound)
                .enumerate()
                .filter(|(_, filter)| TopicFilter::new(filter).matches(&topic))
                .map(|(key, _)| key)
                .collect();
            prop_assert_eq!(found, expected);
            for (key, filter) in filters.iter().filter(sound).enumerate() {
                prop_assert!(subscriptions.remove(filter, key));
            }
            prop_assert_eq!(subscriptions.size_bytes, 0);
        }
    }
}
