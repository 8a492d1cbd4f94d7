//! Random erasing (Zhong et al., 2017) as timm does it (`timm/data/random_erasing.py` of 1.0).

use serde::{Deserialize, Serialize};

use crate::image::crop::CropBox;
use crate::rng::Rng;

/// Rectangles of an image that are lost at random.
///
/// timm erases normalised tensors, and with them the noise: N(0, 1) around the mean, in standard deviations. These are bytes,
/// so that what lies beyond black and white (with CLIP's mean, 7 values in 100) becomes black or white.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomErasing {
    /// Probability that an image loses any.
    pub prob: f64,
    /// The filling.
    pub mode: ErasingMode,
    /// The rectangles' share of the area, all together.
    pub area: (f64, f64),
    /// A rectangle's height over its width.
    pub aspect: (f64, f64),
    /// At most so many rectangles, each number as likely.
    pub count: u32,
}

/// Filling of an erased rectangle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErasingMode {
    /// The mean colour.
    Const,
    /// A colour drawn for the rectangle.
    Rand,
    /// One drawn for each pixel.
    #[default]
    Pixel,
}

impl Default for RandomErasing {
    /// timm's, for no image.
    fn default() -> RandomErasing {
        let (area, aspect) = ((0.02, 1.0 / 3.0), (0.3, 1.0 / 0.3));
        RandomErasing { prob: 0.0, mode: ErasingMode::Pixel, area, aspect, count: 1 }
    }
}

impl RandomErasing {
    /// The rectangles that a `size` x `size` view loses.
    fn draw(&self, size: u32, rng: &mut Rng) -> Vec<CropBox> {
        if rng.uniform() >= self.prob {
            return vec![];
        }
        let count = 1 + rng.below(self.count.into());
        let mut rectangle = |_| {
            // Ten tries at one that is smaller than the view.
            (0..10).find_map(|_| {
                let share = rng.range(self.area.0, self.area.1) / count as f64;
                let area = share * f64::from(size).powi(2);
                let aspect = rng.range(self.aspect.0.ln(), self.aspect.1.ln()).exp();
                // Python rounds halves to even.
                let height = (area * aspect).sqrt().round_ties_even() as u32;
                let width = (area / aspect).sqrt().round_ties_even() as u32;
                (width < size && height < size).then(|| {
                    let top = rng.below(u64::from(size - height) + 1) as u32;
                    let left = rng.below(u64::from(size - width) + 1) as u32;
                    CropBox { left, top, width, height }
                })
            })
        };
        (0..count).filter_map(&mut rectangle).collect()
    }

    /// Erases parts of a view `[size, size, 3]` that will be normalised by `mean` and `std`, both of 0 to 1.
    pub fn apply(&self, view: &mut [u8], size: u32, mean: [f64; 3], std: [f64; 3], rng: &mut Rng) {
        let boxes = self.draw(size, rng);
        let byte = |c: usize, noise: f64| (255.0 * (mean[c] + std[c] * noise)).round() as u8;
        let (pixels, _) = view.as_chunks_mut::<3>();
        for CropBox { left, top, width, height } in boxes {
            let colour = match self.mode {
                ErasingMode::Const => [0, 1, 2].map(|c| byte(c, 0.0)),
                _ => [0, 1, 2].map(|c| byte(c, rng.normal())),
            };
            let rows = pixels.chunks_exact_mut(size as usize).skip(top as usize);
            for row in rows.take(height as usize) {
                for pixel in &mut row[left as usize..][..width as usize] {
                    *pixel = match self.mode {
                        ErasingMode::Pixel => [0, 1, 2].map(|c| byte(c, rng.normal())),
                        _ => colour,
                    };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainTransform;
    use crate::rng::Purpose;
    use crate::testing::Draws;

    const SIZE: u32 = 64;

    /// The pixels of a view that was white, and whether they were erased.
    fn erase(erasing: RandomErasing, mean: [f64; 3], std: [f64; 3], i: u64) -> Vec<[u8; 3]> {
        let mut view = vec![255; (3 * SIZE * SIZE) as usize];
        erasing.apply(&mut view, SIZE, mean, std, &mut Rng::new(5, Purpose::Augment, &[i]));
        view.as_chunks().0.to_vec()
    }

    #[test]
    fn rectangles_are_drawn_as_timm_draws_them() {
        let mut draws = Draws::default();
        for count in [1, 3] {
            let erasing =
                RandomErasing { prob: 0.25, mode: ErasingMode::Const, count, ..Default::default() };
            for i in 0..40_000 {
                let erased = erase(erasing, [0.0; 3], [1.0; 3], i);
                let area = erased.iter().filter(|&&pixel| pixel == [0; 3]).count();
                draws.add(format!("erasing {count} area"), area as u32);
                let boxes = erasing.draw(SIZE, &mut Rng::new(5, Purpose::Augment, &[i]));
                for CropBox { left, top, width, height } in boxes.into_iter().filter(|_| count == 1)
                {
                    assert_eq!(area as u32, width * height);
                    draws.add("erasing aspect", f64::from(height) / f64::from(width));
                    draws.add("erasing top", top);
                    draws.add("erasing left", left);
                }
            }
        }
        draws.follow_their_laws(5);
    }

    #[test]
    fn noise_is_drawn_as_timm_draws_it_around_the_models_mean() {
        let TrainTransform { mean, std, .. } = TrainTransform::default();
        let mut draws = Draws::default();
        for (mode, name, n) in [(ErasingMode::Pixel, "pixel", 3), (ErasingMode::Rand, "rand", 1)] {
            let erasing = RandomErasing { prob: 1.0, mode, ..Default::default() };
            for i in 0..4000 {
                let CropBox { left, top, .. } =
                    erasing.draw(SIZE, &mut Rng::new(5, Purpose::Augment, &[i]))[0];
                let view = erase(erasing, mean, std, i);
                for pixel in view[(top * SIZE + left) as usize..].iter().take(n) {
                    draws.add(format!("erasing {name} red"), pixel[0]);
                    draws.add(format!("erasing {name} blue"), pixel[2]);
                }
            }
        }
        draws.follow_their_laws(4);
        let plain = RandomErasing { prob: 1.0, mode: ErasingMode::Const, ..Default::default() };
        assert!(erase(plain, mean, std, 0).contains(&[123, 117, 104]));
        let never = RandomErasing { prob: 0.0, ..plain };
        assert!((0..100).all(|i| erase(never, mean, std, i).iter().all(|&p| p == [255; 3])));
    }
}
