//! Pictures of the evaluated sets, with the names that student and teacher give them.

use super::axes::Unit;
use super::metrics::Model;
use super::run::{Run, Sample};

pub struct PictureSet<'a> {
    pub set: &'a str,
    /// In words, how many of these pictures student and teacher name right, and of the whole set.
    pub right: String,
    pub named: bool,
    pub pictures: Vec<Picture<'a>>,
}

pub struct Picture<'a> {
    pub data_uri: &'a str,
    pub truth: &'a str,
    pub guesses: Vec<Guess<'a>>,
    /// The teacher's first guess.
    pub teacher: Option<Guess<'a>>,
}

pub struct Guess<'a> {
    pub name: &'a str,
    pub right: bool,
    pub cosine: f64,
}

/// The pictures by their set, in the order of first appearance.
pub fn picture_sets(run: &Run) -> Vec<PictureSet<'_>> {
    let mut sets: Vec<PictureSet<'_>> = Vec::new();
    for Sample { shown, data_uri } in &run.samples {
        let at = sets.iter().position(|group| group.set == shown.set).unwrap_or_else(|| {
            let right = String::new();
            sets.push(PictureSet { set: &shown.set, right, named: false, pictures: vec![] });
            sets.len() - 1
        });
        sets[at].pictures.push(Picture {
            data_uri,
            truth: &shown.truth,
            guesses: shown.top5.iter().map(|guess| guessed(guess, &shown.truth)).collect(),
            teacher: shown.teacher.first().map(|guess| guessed(guess, &shown.truth)),
        });
    }
    for group in &mut sets {
        let pictures = &group.pictures;
        group.named = pictures.iter().any(|picture| !picture.guesses.is_empty());
        let right = |guess: fn(&Picture<'_>) -> Option<bool>| {
            let answers: Vec<bool> = pictures.iter().filter_map(guess).collect();
            (!answers.is_empty()).then(|| answers.into_iter().filter(|&right| right).count())
        };
        let by = [
            ("student", Model::Student, right(|p| p.guesses.first().map(|guess| guess.right))),
            ("teacher", Model::Teacher, right(|p| p.teacher.as_ref().map(|guess| guess.right))),
        ];
        let said = by.into_iter().filter_map(|(who, model, right)| {
            let whole = run.metrics.latest(model, group.set, "top1");
            let whole = whole.map(|share| format!(" ({} of all)", Unit::Percent.show(share)));
            Some(format!("{who} {} of {}{}", right?, pictures.len(), whole.unwrap_or_default()))
        });
        group.right = said.collect::<Vec<_>>().join(", ");
    }
    sets
}

fn guessed<'a>((name, cosine): &'a (String, f64), truth: &str) -> Guess<'a> {
    Guess { name, right: name == truth, cosine: *cosine }
}
