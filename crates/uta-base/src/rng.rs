//! Counter-based randomness: a draw depends on a seed, a purpose and counters, never on what was drawn elsewhere.
//!
//! The same (seed, epoch, sample) gives the same crop on any thread, rank or day, so nothing about randomness has to be
//! saved for a run to be resumed.

/// The use of a draw. Two purposes never share a sequence, even with the same seed and counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The order of the samples in an epoch.
    Order = 1,
    /// Crops, flips and colours.
    Augment = 2,
    /// Which caption of a sample is used.
    Caption = 3,
    /// Which patches a student sees.
    Mask = 4,
    /// Which residual branches are dropped.
    DropPath = 5,
    /// Initial weights.
    Init = 6,
    /// The sample that stands in for an unusable one.
    Replace = 7,
    /// How the images of a batch are mixed.
    Mix = 8,
}

/// A generator keyed by (seed, purpose, counters): SplitMix64 started at a hash of the key.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of u64 that changes half of the output bits for
/// every changed input bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The odd constant SplitMix64 steps by: 2^64 divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    /// The sequence of this seed, purpose and counters. Counters are ordered, and their number matters.
    pub fn new(seed: u64, purpose: Purpose, counters: &[u64]) -> Rng {
        let absorb =
            |state: u64, word: u64| mix(state.wrapping_add(STEP) ^ mix(word.wrapping_add(STEP)));
        let head = absorb(absorb(mix(seed), purpose as u64), counters.len() as u64);
        Rng { state: counters.iter().fold(head, |state, &c| absorb(state, c)) }
    }

    /// The state from which the sequence goes on.
    pub fn state(&self) -> u64 {
        self.state
    }

    /// The sequence that goes on from `state`.
    pub fn from_state(state: u64) -> Rng {
        Rng { state }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Uniform in [0, 1), all 53 bits of the mantissa random.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in [lo, hi); `lo` when the two are equal.
    pub fn range(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.uniform()
    }

    /// Uniform in 0..n without bias (Lemire, 2019: the widening product, redrawn in its short uneven part).
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a draw from nothing");
        let threshold = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A generator of its own for `part`, without a draw taken from this one: how many draws the part takes, or whether it is
    /// there at all, changes nothing else.
    pub fn fork(&self, part: u64) -> Rng {
        Rng { state: mix(self.state ^ mix(part.wrapping_add(STEP))) }
    }

    /// A draw from the standard normal distribution (Box and Muller, 1958). Here and below own arithmetic and no crate's: a resumed run
    /// must draw the same after an update.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A draw from the Beta distribution, a quotient of two Gamma variates; `a` and `b` are above 0.
    pub fn beta(&mut self, a: f64, b: f64) -> f64 {
        let (x, y) = (self.ln_gamma_variate(a), self.ln_gamma_variate(b));
        1.0 / (1.0 + (y - x).exp())
    }

    /// The logarithm of a variate of Gamma(`shape`, 1), which may itself be too small for a float (Marsaglia and Tsang, 2000,
    /// at `shape` + 1, and their way down from there).
    fn ln_gamma_variate(&mut self, shape: f64) -> f64 {
        let d = shape + 2.0 / 3.0;
        let cube = loop {
            let x = self.normal();
            let cube = (1.0 + x / (9.0 * d).sqrt()).powi(3);
            let u = 1.0 - self.uniform();
            if cube > 0.0 && u.ln() < 0.5 * x * x + d * (1.0 - cube + cube.ln()) {
                break cube;
            }
        };
        (d * cube).ln() + (1.0 - self.uniform()).ln() / shape
    }
}
