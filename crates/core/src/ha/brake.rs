//! The brake: many nodes that fall silent at once are rather a broken network than so many dead hosts.
//!
//! | silent | what is done |
//! |---|---|
//! | up to max(5, 10 %) of the nodes that live | as always |
//! | more | those that answer pings are left alone |
//! | more than half | nothing is sealed until fewer are |

/// More silent nodes than this at once are rather a network than so many dead hosts.
const NODES: usize = 5;

/// The same as a share of all nodes, 1/100.
const PERCENT: usize = 10;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Brake {
    #[default]
    Off,
    /// Nodes that answer pings are left alone.
    On,
    /// More than half are silent: nothing is sealed.
    Frozen,
}

impl Brake {
    /// `live`: nodes that have begun a life and are not proved dead, the silent ones among them.
    pub fn of(silent: usize, live: usize) -> Self {
        if silent * 2 > live {
            Self::Frozen
        } else if silent > limit(live) {
            Self::On
        } else {
            Self::Off
        }
    }

    /// For people; None: nothing is held up.
    pub fn words(self, silent: usize, live: usize) -> Option<String> {
        match self {
            Self::Off => None,
            // It boots, or its own agent does: nobody else could take anything over.
            Self::Frozen if live == 1 => None,
            Self::On => Some(format!("{silent} of {live} nodes are silent at once: those that answer pings are not fenced")),
            Self::Frozen => Some(format!(
                "{silent} of {live} nodes are silent: that is rather our own network; nothing is fenced until fewer are, or `confirm-dead`"
            )),
        }
    }
}

/// So many may be silent at once before anything is held up.
pub fn limit(live: usize) -> usize {
    NODES.max(live * PERCENT / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_no_death() {
        let told = [(0, 3), (1, 3), (1, 2), (2, 3), (5, 50), (6, 50), (10, 100), (11, 100), (51, 100)]
            .map(|(silent, live)| Brake::of(silent, live));
        use Brake::{Frozen, Off, On};
        assert_eq!(told, [Off, Off, Off, Frozen, Off, On, Off, On, Frozen]);
        assert_eq!((Frozen.words(1, 1), Frozen.words(2, 3).is_some()), (None, true));
    }
}
