//! The numbers of a step, and the time that a run takes.

use std::time::Instant;

use tch::Tensor;

pub(super) fn round(value: f64, digits: i32) -> f64 {
    let unit = 10f64.powi(digits);
    (value * unit).round() / unit
}

/// The numbers of one step, still on the device.
#[derive(Default)]
pub(super) struct Measured {
    pub epoch: f64,
    /// Samples that no rank could use.
    pub rejected: u64,
    /// Things that the losses are means of, over the micro-batches of this rank.
    pub count: f64,
    pub means: Vec<(&'static str, Tensor)>,
}

impl Measured {
    /// Adds a micro-batch's value, one of `parts`.
    pub fn add(&mut self, name: &'static str, value: &Tensor, parts: f64) {
        let share = value / parts;
        match self.means.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum = &*sum + share,
            None => self.means.push((name, share)),
        }
    }

    /// Multiplies all values by `factor`.
    pub fn scale(&mut self, factor: f64) {
        for (_, value) in &mut self.means {
            *value = &*value * factor;
        }
    }
}

/// The time of a run: steps, waiting for data, and neither (evaluation, saving).
pub(super) struct Clock {
    lap_began: Instant,
    lap_images: usize,
    lap_waited: f64,
    lap_paused: f64,
    seconds: f64,
    images: usize,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock {
            lap_began: Instant::now(),
            lap_images: 0,
            lap_waited: 0.0,
            lap_paused: 0.0,
            seconds: 0.0,
            images: 0,
        }
    }
}

impl Clock {
    pub fn step(&mut self, images: usize) {
        self.lap_images += images;
    }

    pub fn waiting<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = f();
        self.lap_waited += began.elapsed().as_secs_f64();
        result
    }

    pub fn paused<T>(&mut self, f: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = f();
        self.lap_paused += began.elapsed().as_secs_f64();
        result
    }

    /// (images a second, share of the time spent waiting for data) since the last call.
    pub fn lap(&mut self) -> (f64, f64) {
        let seconds = (self.lap_began.elapsed().as_secs_f64() - self.lap_paused).max(1e-9);
        let result = (self.lap_images as f64 / seconds, self.lap_waited / seconds);
        self.seconds += seconds;
        self.images += self.lap_images;
        (self.lap_began, self.lap_images) = (Instant::now(), 0);
        (self.lap_waited, self.lap_paused) = (0.0, 0.0);
        result
    }

    pub fn overall(&self) -> f64 {
        self.images as f64 / self.seconds.max(1e-9)
    }
}
