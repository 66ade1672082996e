//! Passwords that wait to be checked: the networks that clients come from have their turns, so that one from which thousands of
//! wrong passwords come waits for itself. Holds no password.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    ops::Bound::{Excluded, Unbounded},
};

use super::broker::ConnectionKey;

/// Bits of an IPv6 address that are the network's: one client has the rest to choose from (RFC 4291 section 2.5.4).
const NETWORK_MASK: u128 = !0 << 64;

/// Which question; a place in the broker is used again.
pub(super) type QuestionId = u64;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// By network, in the order of arrival. None is empty.
    waiting: BTreeMap<IpAddr, BTreeMap<QuestionId, ConnectionKey>>,
    last: Option<IpAddr>,
    last_id: QuestionId,
}

impl Questions {
    /// `key`, from `address`, has a password to be checked.
    pub(super) fn push(&mut self, address: IpAddr, key: ConnectionKey) -> QuestionId {
        self.last_id += 1;
        self.waiting.entry(network(address)).or_default().insert(self.last_id, key);
        self.last_id
    }

    /// The question is asked no more.
    pub(super) fn remove(&mut self, address: IpAddr, id: QuestionId) {
        let network = network(address);
        if let Some(waiting) = self.waiting.get_mut(&network) {
            waiting.remove(&id);
            if waiting.is_empty() {
                self.waiting.remove(&network);
            }
        }
    }

    /// Takes the next: the oldest of the network whose turn it is.
    pub(super) fn pop(&mut self) -> Option<(QuestionId, ConnectionKey)> {
        let behind = self.last.map_or(Unbounded, Excluded);
        let next = self.waiting.range((behind, Unbounded)).next().or_else(|| self.waiting.first_key_value());
        let network = *next?.0;
        let waiting = self.waiting.get_mut(&network)?;
        let first = waiting.pop_first();
        if waiting.is_empty() {
            self.waiting.remove(&network);
        }
        self.last = Some(network);
        first
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK_MASK).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(questions: &mut Questions) -> Vec<ConnectionKey> {
        std::iter::from_fn(|| questions.pop()).map(|(_, key)| key).collect()
    }

    #[test]
    fn a_network_that_asks_much_waits_for_itself() {
        let mut questions = Questions::default();
        let address = |text: &str| text.parse().expect("an address");
        for key in 0..4 {
            questions.push(address(&format!("2001:db8::{key}")), key);
        }
        questions.push(address("10.0.0.1"), 10);
        questions.push(address("::ffff:10.0.0.1"), 11);
        questions.push(address("10.0.0.2"), 20);
        let (_, first) = questions.pop().expect("some wait");
        questions.push(address("10.0.0.1"), 12);
        assert_eq!(first, 10);
        assert_eq!(taken(&mut questions), [20, 0, 11, 1, 12, 2, 3]);
        assert!(questions.waiting.is_empty());
    }

    #[test]
    fn what_is_removed_is_not_asked() {
        let mut questions = Questions::default();
        let address = IpAddr::from([10, 0, 0, 1]);
        let ids = [0, 1, 2].map(|key| questions.push(address, key));
        questions.remove(address, ids[1]);
        questions.remove(address, 99);
        assert_eq!(taken(&mut questions), [0, 2]);
        questions.remove(address, ids[0]);
        assert!(questions.waiting.is_empty());
    }
}
