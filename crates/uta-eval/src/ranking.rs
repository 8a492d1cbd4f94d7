//! Ranks with ties, and how far a share or a mean may be from what more samples would give.

use tch::{Kind, Tensor};

/// The chance that at least one right answer stands among the first `k`, when `greater` wrong answers score above the
/// best right one, and `tied` answers (right ones included, `right` of them) score exactly as it does, and ties are
/// broken at random.
///
/// Without ties it is 0 or 1. An argmax or a stable sort would instead favour whatever comes first, which makes a model
/// that gives every image the same embedding look perfect on a sorted set.
pub fn expected_hit(greater: u64, tied: u64, right: u64, k: u64) -> f64 {
    let places = k.saturating_sub(greater);
    if places == 0 {
        return 0.0;
    }
    let wrong = tied - right;
    if places > wrong {
        return 1.0;
    }
    // All places go to wrong answers: C(wrong, places) / C(tied, places), as a product that cannot overflow.
    let miss: f64 = (0..places).map(|i| (wrong - i) as f64 / (tied - i) as f64).product();
    1.0 - miss
}

/// Rows that queries are compared with. Equal ones are scored once: a product may round its columns differently, and they tie
/// exactly.
pub(crate) struct Candidates {
    columns: Tensor,
    which: Tensor,
}

impl Candidates {
    /// Candidates with the embeddings `rows` `[C,D]`.
    pub(crate) fn new(rows: &Tensor) -> Candidates {
        let (distinct, which, _) = rows.unique_dim(0, true, true, false);
        Candidates { columns: distinct.transpose(0, 1), which }
    }

    /// The dot products of `queries` `[Q,D]` with every row, `[Q,C]`.
    pub(crate) fn scores(&self, queries: &Tensor) -> Tensor {
        queries.matmul(&self.columns).index_select(1, &self.which)
    }
}

/// How the best right answer of every query stands, for `scores` `[Q,C]` and the mask `right` `[Q,C]` of right answers (at
/// least one a row): (greater, tied, right among the tied), each a list of Q, as [`expected_hit`] takes them.
pub fn standings(scores: &Tensor, right: &Tensor) -> Vec<(u64, u64, u64)> {
    let best =
        scores.masked_fill(&right.logical_not(), f64::NEG_INFINITY).amax([1i64].as_slice(), true);
    let tied = scores.eq_tensor(&best);
    let count = |mask: &Tensor| mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
    let table = Tensor::stack(
        &[count(&scores.gt_tensor(&best)), count(&tied), count(&tied.logical_and(right))],
        1,
    );
    let flat: Vec<i64> = to_vec(&table);
    flat.chunks_exact(3).map(|row| (row[0] as u64, row[1] as u64, row[2] as u64)).collect()
}

/// The quantile of the normal distribution that 95 % intervals on both sides take.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % Wilson score interval of a share `p` seen in `n` trials; it stays within `[0, 1]` and is sensible at 0 and 1.
pub fn wilson(p: f64, n: usize) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let n = n as f64;
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// The mean of `values`, and their standard deviation (of the sample, over n - 1) where there are two or more.
pub fn mean_std(values: impl ExactSizeIterator<Item = f64> + Clone) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.clone().sum::<f64>() / n;
    let squares: f64 = values.map(|x| (x - mean).powi(2)).sum();
    (mean, (n > 1.0).then(|| (squares / (n - 1.0)).sqrt()))
}

/// The 95 % interval of a mean over `n` samples of that standard deviation, by the normal distribution.
pub fn interval(mean: f64, std: Option<f64>, n: usize) -> Option<(f64, f64)> {
    let half = Z * std? / (n as f64).sqrt();
    Some((mean - half, mean + half))
}

/// All elements of `tensor`, row by row.
pub(crate) fn to_vec<T: tch::kind::Element + Copy>(tensor: &Tensor) -> Vec<T> {
    let flat = tensor.to_device(tch::Device::Cpu).to_kind(T::KIND).contiguous().view([-1]);
    Vec::try_from(&flat).expect("a contiguous vector of its own kind on the CPU converts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_ties_a_hit_is_zero_or_one() {
        for k in 1..6 {
            for greater in 0..6 {
                let want = if greater < k { 1.0 } else { 0.0 };
                assert_eq!(expected_hit(greater, 1, 1, k), want, "greater {greater}, k {k}");
            }
        }
    }

    /// Every order of the tied answers, enumerated.
    fn brute_force(greater: usize, tied: usize, right: usize, k: usize) -> f64 {
        fn orders(items: &mut Vec<bool>, at: usize, seen: &mut impl FnMut(&[bool])) {
            if at == items.len() {
                return seen(items);
            }
            for i in at..items.len() {
                items.swap(at, i);
                orders(items, at + 1, seen);
                items.swap(at, i);
            }
        }
        let (mut hits, mut all) = (0u32, 0u32);
        let mut items: Vec<bool> = (0..tied).map(|i| i < right).collect();
        orders(&mut items, 0, &mut |order| {
            all += 1;
            hits += u32::from(order.iter().take(k.saturating_sub(greater)).any(|&r| r));
        });
        f64::from(hits) / f64::from(all)
    }

    #[test]
    fn ties_score_the_mean_over_every_order_of_the_tied() {
        for tied in 1..=5 {
            for right in 1..=tied {
                for greater in 0..3 {
                    for k in 1..=6 {
                        let want = brute_force(greater, tied, right, k);
                        let got = expected_hit(greater as u64, tied as u64, right as u64, k as u64);
                        assert!((got - want).abs() < 1e-12, "{greater} {tied} {right} {k}");
                    }
                }
            }
        }
    }

    #[test]
    fn standings_count_by_the_best_right_answer() {
        let scores = Tensor::from_slice(&[0.9f32, 0.5, 0.5, 0.1, 0.2, 0.2, 0.2, 0.2]).view([2, 4]);
        let right =
            Tensor::from_slice(&[0i64, 1, 0, 1, 1, 1, 0, 0]).view([2, 4]).to_kind(Kind::Bool);
        assert_eq!(standings(&scores, &right), [(1, 2, 1), (0, 4, 2)]);
    }

    #[test]
    fn a_mean_has_the_spread_of_its_sample_and_one_value_has_none() {
        // Of 2, 4, 4, 4, 5, 5, 7, 9 the squares around 5 sum to 32.
        let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        let (mean, std) = mean_std(values.into_iter());
        assert_eq!((mean, std), (5.0, Some((32.0f64 / 7.0).sqrt())));
        let (low, high) = interval(mean, std, 8).expect("eight values have a spread");
        assert!((low - 3.5184).abs() < 1e-4 && (high - 6.4816).abs() < 1e-4, "{low} {high}");
        assert_eq!(mean_std([3.0].into_iter()), (3.0, None));
        assert_eq!(interval(3.0, None, 1), None);
    }

    #[test]
    fn wilson_interval_equals_published_values() {
        // Newcombe (1998), table I, method 3 (score, no continuity correction): 81 of 263, and 0 of 20.
        let (low, high) = wilson(81.0 / 263.0, 263);
        assert!((low - 0.2553).abs() < 5e-5 && (high - 0.3662).abs() < 5e-5, "{low} {high}");
        let (low, high) = wilson(0.0, 20);
        assert!(low == 0.0 && (high - 0.1611).abs() < 5e-5, "{high}");
    }
}
