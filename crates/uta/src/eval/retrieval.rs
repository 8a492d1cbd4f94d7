//! `uta eval retrieval`: which caption belongs to which image, both ways.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::json;
use torch_ext::distributed::ProcessGroup;
use uta_data::{DataError, PairOptions, Source};
use uta_eval::{Recall, Retrieval};

use super::page::Page;
use super::setup::{Common, Setup};
use crate::compute::PairArgs;

/// Arguments of `uta eval retrieval`.
#[derive(Debug, Args)]
pub struct RetrievalArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    pairs: PairArgs,
    /// The published test set that this is: its split is taken, and its size is compared with the published one
    #[arg(long, value_enum, value_name = "NAME")]
    set: Option<PairSet>,
    /// Model whose text tower is used [default: its own, else its run's teacher]
    #[arg(long, value_name = "M")]
    text_model: Option<PathBuf>,
    /// Architecture of --text-model, where the file alone can't tell: a preset or a configuration file
    #[arg(long, value_name = "NAME|FILE", requires = "text_model")]
    text_arch: Option<String>,
}

/// The test sets of the paper's Table 2, as Karpathy split them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PairSet {
    /// Flickr30k's test split: 1,000 images, 5,000 captions
    Flickr30k,
    /// COCO's test split of 2014: 5,000 images, 25,010 captions
    Coco,
}

impl PairSet {
    /// Numbers of images and of captions, as published.
    fn published(self) -> (usize, usize) {
        match self {
            PairSet::Flickr30k => (1000, 5000),
            PairSet::Coco => (5000, 25_010),
        }
    }

    /// Opens the set. Where a file has all splits, that is the test split, unless another is asked for.
    fn open(data: &[String], pairs: &PairOptions) -> Result<Arc<dyn Source>, DataError> {
        match uta_data::open_with(data, pairs) {
            Err(DataError::Splits { .. }) => {
                let split = Some("test".into());
                uta_data::open_with(data, &PairOptions { split, ..pairs.clone() })
            }
            opened => opened,
        }
    }
}

pub fn retrieval(args: &RetrievalArgs, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
    let pairs = args.pairs.options(&args.common.data)?;
    let source = match args.set {
        Some(_) => PairSet::open(&args.common.data, &pairs)?,
        None => uta_data::open_with(&args.common.data, &pairs)?,
    };
    let setup = Setup::over(&args.common, source, group)?;
    let mut task = Retrieval::new("retrieval", setup.source.clone(), setup.options.clone());
    let text = setup.text_tower(args.text_model.as_deref(), args.text_arch.as_deref())?;
    if let Some((_, text)) = &text {
        task = task.with_text(text.clone());
    }
    let report = task.run(&setup.model)?;

    let mut page = Page::new("image-text retrieval", &setup, text.as_ref().map(|t| t.0.as_path()));
    if let Some(set) = args.set {
        let name = set.to_possible_value().map_or(String::new(), |value| value.get_name().into());
        let ((images, captions), found) = (set.published(), (report.images, report.captions));
        let size = if found == set.published() {
            "as published".to_string()
        } else {
            format!("NOT as published ({images} images, {captions} captions): not comparable")
        };
        page.setting("set", format!("{name}, {} images, {} captions, {size}", found.0, found.1));
    }
    page.setting("captions", "as they are, no template; any caption of an image counts");
    page.setting("scores", "cosine; ties share the credit");
    page.count("images", report.images);
    page.count("captions", report.captions);
    page.left_out("without a caption", report.without_caption, []);
    page.unreadable(&report.rejected);
    let per_image = report.captions as f64 / report.images as f64;
    let ways = [
        ("text to image", report.text_to_image, report.captions, 1.0 / report.images as f64),
        ("image to text", report.image_to_text, report.images, per_image / report.captions as f64),
    ];
    for (way, Recall { r1, r5, r10 }, n, chance) in ways {
        for (k, value) in [(1.0, r1), (5.0, r5), (10.0, r10)] {
            page.share(&format!("{way} R@{k}"), value, n, (k * chance).min(1.0));
        }
    }
    let published = args.set.map(|set| {
        let (images, captions) = set.published();
        json!({ "images": images, "captions": captions })
    });
    page.print(args.common.json, &report, |_, object| {
        object.insert("published".into(), json!(published));
    })
}
