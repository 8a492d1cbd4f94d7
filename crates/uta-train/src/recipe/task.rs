//! The part of a recipe that depends on the task: which sections it reads, and what they must hold.

use serde::{Deserialize, Serialize};
use toml::Table;
use uta_data::LabelKind;

use super::model::Model;
use super::train::Train;
use super::words::TaskWords;
use crate::task::contrastive::recipe::{self as contrastive, ContrastiveRecipe};
use crate::task::distill::recipe::{DistillRecipe, Learns, Mim, Teacher, WrittenMask};
use crate::task::text_align::recipe::{self as text_align, TextAlignRecipe};
use crate::task::{align::recipe as align, mim::recipe as mim};

/// The tasks there are, by their names in recipes; each is a [`crate::Task`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Unmasked Token Alignment to a frozen CLIP.
    Align,
    /// Masked image modelling of a frozen CLIP's features.
    Mim,
    /// Both at once.
    UtaMim,
    /// Alignment of a text tower to a frozen CLIP's.
    TextAlign,
    /// Image-text contrastive learning.
    Contrastive,
}

impl std::fmt::Display for TaskKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TaskKind::Align => "align",
            TaskKind::Mim => "mim",
            TaskKind::UtaMim => "uta-mim",
            TaskKind::TextAlign => "text-align",
            TaskKind::Contrastive => "contrastive",
        })
    }
}

impl TaskKind {
    const ALL: [TaskKind; 5] = [
        TaskKind::Align,
        TaskKind::Mim,
        TaskKind::UtaMim,
        TaskKind::TextAlign,
        TaskKind::Contrastive,
    ];

    /// The sections that this task reads and some others don't. `model.text` is a section of `[model]`.
    fn sections(self) -> &'static [&'static str] {
        match self {
            TaskKind::Align | TaskKind::Mim => &["teacher", "mask"],
            TaskKind::UtaMim => &["teacher", "mask", "mim"],
            TaskKind::TextAlign => &["model.text", "teacher", "mask"],
            TaskKind::Contrastive => &["model.text", "contrastive"],
        }
    }

    /// Whether recipes of this task have a section.
    pub fn has_section(self, section: &str) -> bool {
        self.sections().contains(&section)
    }

    /// Whether its runs can read the teacher's targets from a folder of `uta cache`, which holds those of images.
    pub fn takes_a_cache(self) -> bool {
        matches!(self, TaskKind::Align | TaskKind::Mim | TaskKind::UtaMim)
    }

    /// Whether its samples are texts alone, whose pictures are not decoded and need not be there.
    pub fn reads_texts_alone(self) -> bool {
        matches!(self, TaskKind::TextAlign)
    }

    /// The tasks that are so, as "align, mim".
    pub fn all_that(are_so: impl Fn(TaskKind) -> bool) -> String {
        let tasks = TaskKind::ALL.into_iter().filter(|&task| are_so(task));
        tasks.map(|task| task.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// The task in words.
    pub fn words(self) -> TaskWords {
        match self {
            TaskKind::Align => align::WORDS,
            TaskKind::Mim => mim::WORDS,
            TaskKind::UtaMim => mim::BOTH_WORDS,
            TaskKind::TextAlign => text_align::WORDS,
            TaskKind::Contrastive => contrastive::WORDS,
        }
    }

    /// The sections of other tasks, each with the tasks that read it.
    fn foreign(self) -> impl Iterator<Item = (&'static str, Vec<TaskKind>)> {
        let all = TaskKind::ALL.into_iter().flat_map(TaskKind::sections);
        all.filter(move |section| !self.sections().contains(section)).map(|section| {
            let reads = |task: &TaskKind| task.sections().contains(section);
            (*section, TaskKind::ALL.into_iter().filter(reads).collect())
        })
    }

    /// Whether `table` has a section that this task doesn't read.
    ///
    /// # Errors
    /// Names it, with the tasks that read it.
    pub(super) fn refuse_foreign(self, table: &Table) -> Result<(), String> {
        let model = table.get("model").and_then(toml::Value::as_table);
        let mut keys = model.into_iter().flat_map(Table::keys);
        if self == TaskKind::TextAlign
            && let Some(key) = keys.find(|key| !matches!(key.as_str(), "init" | "text"))
        {
            return Err(format!(
                "model.{key}: task \"{self}\" trains the text tower alone, and the image encoder is the teacher's: leave it out"
            ));
        }
        for (section, tasks) in self.foreign() {
            let there = match section.split_once('.') {
                Some((outer, inner)) => {
                    let outer = table.get(outer).and_then(toml::Value::as_table);
                    outer.is_some_and(|outer| outer.contains_key(inner))
                }
                None => table.contains_key(section),
            };
            if there {
                let mut tasks: Vec<String> = tasks.iter().map(ToString::to_string).collect();
                let last = tasks.pop().unwrap_or_default();
                let (others, have) = match tasks.is_empty() {
                    true => (String::new(), "has"),
                    false => (format!("{} and ", tasks.join(", ")), "have"),
                };
                return Err(format!(
                    "{section}: task \"{self}\" has no section `{section}`, only {others}{last} {have}: leave it out"
                ));
            }
        }
        Ok(())
    }

    /// Takes sections that this task doesn't read out of `table`: former versions wrote them into every run.
    pub(super) fn drop_foreign(self, table: &mut Table) {
        for (section, _) in self.foreign() {
            match section.split_once('.') {
                Some((outer, inner)) => {
                    if let Some(outer) = table.get_mut(outer).and_then(toml::Value::as_table_mut) {
                        outer.remove(inner);
                    }
                }
                None => {
                    table.remove(section);
                }
            }
        }
    }
}

/// A task with its own sections.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskRecipe {
    /// A student of a frozen CLIP's image tokens: `align`, `mim`, `uta-mim`.
    Distill(DistillRecipe),
    /// Alignment of a text tower to a frozen CLIP's.
    TextAlign(TextAlignRecipe),
    /// Image-text contrastive learning.
    Contrastive(ContrastiveRecipe),
}

/// Sections of tasks as they are written.
#[derive(Default)]
pub(super) struct Sections {
    pub teacher: Option<Teacher>,
    pub mask: Option<WrittenMask>,
    pub mim: Option<Mim>,
    pub contrastive: Option<ContrastiveRecipe>,
}

impl TaskRecipe {
    /// The recipe of a task with the sections that it reads, missing ones by their defaults.
    pub(super) fn new(kind: TaskKind, written: Sections) -> TaskRecipe {
        let Sections { teacher, mask, mim, contrastive } = written;
        let (teacher, mask) = (teacher.unwrap_or_default(), mask.unwrap_or_default());
        let distill = |learns, default| {
            let (teacher, mask) = (teacher.clone(), mask.clone().or(default));
            TaskRecipe::Distill(DistillRecipe { learns, teacher, mask })
        };
        match kind {
            TaskKind::Align => distill(Learns::Kept, align::MASK),
            TaskKind::Mim => distill(Learns::Masked, mim::MASK),
            TaskKind::UtaMim => distill(Learns::Both(mim.unwrap_or_default()), align::MASK),
            TaskKind::TextAlign => {
                let mask = mask.or(text_align::MASK);
                TaskRecipe::TextAlign(TextAlignRecipe { teacher, mask })
            }
            TaskKind::Contrastive => TaskRecipe::Contrastive(contrastive.unwrap_or_default()),
        }
    }

    /// As it is written, with its name.
    pub(super) fn written(&self) -> (TaskKind, Sections) {
        let none = Sections::default();
        let sections = match self.clone() {
            TaskRecipe::Distill(DistillRecipe { learns, teacher, mask }) => {
                let mim = match learns {
                    Learns::Both(mim) => Some(mim),
                    Learns::Kept | Learns::Masked => None,
                };
                Sections { teacher: Some(teacher), mask: Some(mask.into()), mim, ..none }
            }
            TaskRecipe::TextAlign(TextAlignRecipe { teacher, mask }) => {
                Sections { teacher: Some(teacher), mask: Some(mask.into()), ..none }
            }
            TaskRecipe::Contrastive(own) => Sections { contrastive: Some(own), ..none },
        };
        (self.kind(), sections)
    }

    /// Its name.
    pub fn kind(&self) -> TaskKind {
        match self {
            TaskRecipe::Distill(own) => match own.learns {
                Learns::Kept => TaskKind::Align,
                Learns::Masked => TaskKind::Mim,
                Learns::Both(_) => TaskKind::UtaMim,
            },
            TaskRecipe::TextAlign(_) => TaskKind::TextAlign,
            TaskRecipe::Contrastive(_) => TaskKind::Contrastive,
        }
    }

    /// Checks its sections, and works out what follows from them in others.
    ///
    /// # Errors
    /// Names the key, the value and what is allowed.
    pub(super) fn check(&self, model: &mut Model, train: &Train) -> Result<(), String> {
        match self {
            TaskRecipe::Distill(own) => own.check(model),
            TaskRecipe::TextAlign(own) => own.check(model, train),
            TaskRecipe::Contrastive(own) => own.check(model, train),
        }
    }

    /// The label that each training sample comes with.
    pub(crate) fn label(&self) -> LabelKind {
        match self {
            TaskRecipe::Distill(_) => LabelKind::None,
            TaskRecipe::TextAlign(_) | TaskRecipe::Contrastive(_) => LabelKind::Captions,
        }
    }

    /// Whether it learns from classes, which mixup and cutmix need.
    pub(super) fn has_classes(&self) -> bool {
        match self {
            TaskRecipe::Distill(_) | TaskRecipe::TextAlign(_) | TaskRecipe::Contrastive(_) => false,
        }
    }

    /// Whether its samples are texts alone, whose pictures are not decoded and need not be there.
    pub fn reads_texts_alone(&self) -> bool {
        self.kind().reads_texts_alone()
    }

    /// The frozen CLIP of tasks that have one.
    pub fn teacher(&self) -> Option<&Teacher> {
        match self {
            TaskRecipe::Distill(own) => Some(&own.teacher),
            TaskRecipe::TextAlign(own) => Some(&own.teacher),
            TaskRecipe::Contrastive(_) => None,
        }
    }

    /// As [`teacher`](TaskRecipe::teacher), to change.
    pub(super) fn teacher_mut(&mut self) -> Option<&mut Teacher> {
        match self {
            TaskRecipe::Distill(own) => Some(&mut own.teacher),
            TaskRecipe::TextAlign(own) => Some(&mut own.teacher),
            TaskRecipe::Contrastive(_) => None,
        }
    }
}
