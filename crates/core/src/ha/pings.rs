//! Who answers pings, while the brake is on. That a node does not is known only when it has been asked and had time.

use std::collections::BTreeMap;

use super::clock::Now;
use super::record::NodeNo;

/// A node that answered so long ago may still live, ms.
const ANSWER_MS: u64 = 5_000;

/// A ping and its answer, or its time-out of a second, take less than this, a late look included, ms.
const ASKING_MS: u64 = 2_500;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pings {
    /// Since when without a break.
    asked: BTreeMap<NodeNo, Now>,
    answered: BTreeMap<NodeNo, Now>,
}

impl Pings {
    /// It is pinged with each look from now on, until [`Self::spare`].
    pub fn ask(&mut self, node: NodeNo, now: Now) {
        self.asked.entry(node).or_insert(now);
    }

    /// It need not be asked any more.
    pub fn spare(&mut self, node: NodeNo) {
        self.asked.remove(&node);
    }

    pub fn answer(&mut self, node: NodeNo, now: Now) {
        self.answered.insert(node, now);
    }

    /// It has answered lately, or was not asked for long enough to say that it does not.
    pub fn may_answer(&self, now: Now, node: NodeNo) -> bool {
        self.answered.get(&node).is_some_and(|at| now.longest_since(*at) <= ANSWER_MS)
            || self.asked.get(&node).is_none_or(|at| now.shortest_since(*at) < ASKING_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_deaf_who_was_not_asked() {
        let (node, at) = (NodeNo(1), |ms| Now { boottime_ms: ms, raw_ms: ms });
        let mut pings = Pings::default();
        let told = |pings: &Pings, ms| pings.may_answer(at(ms), node);
        assert!(told(&pings, 0), "not asked yet");
        pings.ask(node, at(0));
        pings.ask(node, at(2_000));
        assert_eq!([2_499, 2_500].map(|ms| told(&pings, ms)), [true, false]);
        pings.answer(node, at(3_000));
        assert_eq!([8_000, 8_001].map(|ms| told(&pings, ms)), [true, false]);
        pings.spare(node);
        pings.ask(node, at(20_000));
        assert_eq!([22_499, 22_500].map(|ms| told(&pings, ms)), [true, false], "the next time it is asked anew");
    }
}
