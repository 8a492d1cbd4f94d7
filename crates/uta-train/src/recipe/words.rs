//! The words for a task in reports.

/// A task in words, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskWords {
    /// Its name for people.
    pub title: &'static str,
    /// A sentence on what is trained; `{teacher}` stands where a comma and the teacher's name may follow.
    pub lead: &'static str,
    /// Half a sentence on its loss, which follows "nothing but the training itself".
    pub loss: &'static str,
}
