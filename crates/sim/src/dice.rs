//! Randomness that a seed repeats: splitmix64.

/// The one source of chance of a run.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `from` to below `to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        assert!(from < to, "a range with something in it");
        from + self.roll() % (to - from)
    }

    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.roll() % len.max(1) as u64).expect("below a usize")
    }

    /// True in so many of 1000 cases.
    pub fn permille(&mut self, chance: u64) -> bool {
        chance > 0 && self.roll() % 1000 < chance
    }
}
