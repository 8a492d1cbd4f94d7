//! Measurements as a run holds them.

use crate::EvalError;

/// Named numbers, in the order in which they are logged.
pub type Numbers = Vec<(String, f64)>;

/// A measurement inside a run. It holds the net that it measures; weights in training change in place.
pub struct Evaluator {
    /// Its name in metrics and reports.
    pub name: String,
    measure: Box<dyn FnMut() -> Result<Numbers, EvalError>>,
}

impl Evaluator {
    /// A measurement called `name`. With several ranks, all of them call `measure` alike.
    pub fn new(
        name: impl Into<String>,
        measure: impl FnMut() -> Result<Numbers, EvalError> + 'static,
    ) -> Evaluator {
        Evaluator { name: name.into(), measure: Box::new(measure) }
    }

    /// Measures the net as it is now.
    ///
    /// # Errors
    /// See [`EvalError`].
    pub fn measure(&mut self) -> Result<Numbers, EvalError> {
        (self.measure)()
    }
}
