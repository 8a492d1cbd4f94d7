//! `RUN/report.html`: a run's results, curves, cost and settings on one page.
//!
//! The page is made from the files of the run directory alone, so that it can be made again at any
//! time, of a run in progress too. It is self-contained: style, curves and pictures are inside.
//! A file that is missing takes its section with it.

mod about;
mod axes;
mod chart;
mod curves;
pub mod masks;
pub mod metrics;
mod pictures;
pub mod plot;
mod run;
mod scores;
pub mod svg;
mod words;

use std::path::Path;

use anyhow::Context;
use askama::Template;
use uta_base::write_atomically;

use about::RecipeLine;
use masks::MaskFigure;
use pictures::PictureSet;
use run::Run;
use scores::{Headline, ScoreTable};
pub use words::grouped;

/// Makes `RUN/report.html` of the run in `run_dir`.
pub fn write(run_dir: &Path) -> anyhow::Result<()> {
    let page = Page::of(&Run::read(run_dir)?)?.render()?;
    let path = run_dir.join("report.html");
    write_atomically(&path, page.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The values of the template, in its order.
#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    title: &'a str,
    eyebrow: String,
    lead: String,
    measured: String,
    headlines: Vec<Headline>,
    facts: Vec<(&'static str, String)>,
    tables: Vec<ScoreTable>,
    tables_have_teacher: bool,
    /// Where the bars of all tables end, in words.
    scale: String,
    data: Vec<(String, String)>,
    picture_sets: Vec<PictureSet<'a>>,
    pictures_named: bool,
    /// Each an SVG.
    charts: Vec<String>,
    mask: Option<MaskFigure>,
    recipe: Vec<Vec<RecipeLine<'a>>>,
    environment: Vec<(String, String)>,
    version: &'static str,
}

impl<'a> Page<'a> {
    fn of(run: &'a Run) -> anyhow::Result<Self> {
        let picture_sets = pictures::picture_sets(run);
        let scale = scores::scale(&run.metrics);
        let tables = scores::score_tables(run, scale);
        let eyebrow = match (run.task(), run.recipe_text("task")) {
            (Some(task), _) => task.words().title.to_owned(),
            (None, task) => task.unwrap_or("Training run").to_owned(),
        };
        Ok(Self {
            title: &run.name,
            eyebrow,
            lead: about::lead(run),
            measured: about::measured(run),
            headlines: scores::headlines(run),
            facts: about::facts(run),
            tables_have_teacher: tables.iter().any(|table| table.has_teacher),
            tables,
            scale: format!("{:.0} %", 100.0 * scale),
            data: about::data(run),
            pictures_named: picture_sets.iter().any(|set| set.named),
            picture_sets,
            charts: curves::charts(&run.metrics),
            mask: masks::mask_figure(run)?,
            recipe: run
                .recipe
                .as_ref()
                .map_or_else(Vec::new, |(text, _)| about::recipe_blocks(text)),
            environment: about::environment(&run.environment),
            version: env!("CARGO_PKG_VERSION"),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    fn page(files: &[(&str, &str)]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("my <run>");
        fs::create_dir_all(run.join("samples")).unwrap();
        fs::create_dir_all(run.join("checkpoints/step-00000002")).unwrap();
        for (name, text) in files {
            fs::write(run.join(name), text).unwrap();
        }
        write(&run).unwrap();
        fs::read_to_string(run.join("report.html")).unwrap()
    }

    const RECIPE: &str = "task = \"align\"\n\n[model]\nimage_size = 48\npatch_size = 8\nwidth = 96\n\
                          depth = 4\n\n[data]\ntrain = [\"photos\"]\n\n[mask]\nkind = \"block-reversed\"\nratio = 0.5\n\n[train]\nsteps = 4\n";
    const METRICS: &str = r#"
{"step":0,"eval":"twemoji","top1":0.001,"top5":0.004}
{"step":0,"eval":"twemoji","model":"teacher","top1":0.2,"top5":0.4}
{"step":1,"samples":256,"epoch":0.1,"loss":-0.1,"cosine":0.1,"cosine_cls":0.05,"lr":0.001,"grad_norm":1.5,"images_per_second":64}
{"step":2,"samples":512,"epoch":0.2,"loss":-0.5,"cosine":0.5,"cosine_cls":0.4,"lr":0.002,"grad_norm":0.5,"images_per_second":64}
{"step":2,"eval":"validation","loss":-0.45}
{"step":2,"eval":"twemoji","top1":0.17,"top5":0.35}
"#;

    #[test]
    fn the_page_tells_results_cost_curves_masks_pictures_and_settings() {
        let samples = r#"{"samples":[{"image":"samples/a.png","truth":"red <apple>","set":"twemoji",
            "top5":[["red <apple>",0.8],["pear",0.2]],"teacher":[["pear",0.9]]},
            {"image":"samples/gone.png","truth":"ghost","set":"twemoji","top5":[]}]}"#;
        let html = page(&[
            ("recipe.toml", RECIPE),
            ("metrics.jsonl", METRICS),
            (
                "environment.json",
                r#"{"cpu":"Some CPU","device":"cpu","cores":2,"started":951827696}"#,
            ),
            ("samples.json", samples),
            ("samples/a.png", "not really a picture"),
            (
                "demo.json",
                r#"{"seconds":352.0, "chance":{"top1":0.0005},
                "teacher":{"openmoji":{"top1":0.1,"n":1607,"text_to_image_r1":0.3}},
                "student":{"openmoji":{"top1":0.09,"n":1607,"text_to_image_r1":0.12}}}"#,
            ),
            (
                "reference.json",
                r#"{"sets":{"openmoji":{"images":1607,"classes":1613,"pairs":[1607,3214],"trained_on":true},
                "twemoji":{"images":1613,"classes":2000}},
                "teacher":{"openmoji":{"text_to_image/r1":0.3}}}"#,
            ),
            ("checkpoints/latest", "step-00000002"),
            ("checkpoints/step-00000002/state.json", r#"{"data":12345,"rejected":3}"#),
        ]);
        for part in [
            "my &#60;run&#62;",
            ">17.0 %<",                    // top-1 in large type
            "teacher 20.0 % (ratio 0.85)", // what it is held against
            "chance 0.050 %",              // among 2000 names
            "top-1 among 2,000 names, on 1,613 pictures",
            "zero-shot classification on twemoji and openmoji; retrieval on openmoji",
            "against the teacher on the same pictures and guessing",
            "trained on the pictures of openmoji among others, not on the files of twemoji",
            "<span>0</span><span>50 %</span>", // one scale for the bars of all tables
            "trained on</small>",
            "12,345 images: photos", // the data
            "student 1 of 1 (17.0 % of all), teacher 0 of 1 (20.0 % of all)",
            "teacher: <span>pear</span>",
            "masked, over 5000 images: 4", // the least probable place: more than 40 %
            "2 of 4",                      // steps: the run is not finished
            "5 min 52 s",
            "Some CPU, 2 cores",
            "2000-02-29 12:34 UTC",
            "red &#60;apple&#62;",
            "data:image/png;base64,bm90IHJlYWxseSBhIHBpY3R1cmU=",
            "text to image recall at 1",
            "0.90",   // of the teacher's top-1 on openmoji
            "12.0 %", // recall
            "block-reversed",
            "patch_size",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(!html.contains("ghost"), "a picture that is not there is left out");
        assert!(
            !html.contains("http://") || html.matches("http://").count() == 1,
            "SVG's name only"
        );
        assert!(!html.contains("https://") && !html.contains("NaN"));
        assert!(!html.contains(">1607"), "a number of pictures is no score");
        // top-1, top-5 (recall was measured once), loss, cosine with its part, lr, grad norm, speed.
        assert_eq!(html.matches("class=\"chart\"").count(), 7);
        assert!(
            html.contains("data-label=\"validation\"")
                && html.contains("data-label=\"cosine cls\"")
        );
    }

    #[test]
    fn every_part_may_be_missing() {
        let html = page(&[]);
        assert!(html.contains("<h1>") && !html.contains("<section>"));
        let html = page(&[("metrics.jsonl", METRICS)]);
        assert!(html.contains("Curves") && !html.contains("Recipe") && !html.contains("Masks"));
        let html = page(&[("recipe.toml", RECIPE)]);
        assert!(html.contains("Masks") && !html.contains("Curves"));
        let html = page(&[("recipe.toml", &RECIPE.replace("align", "contrastive"))]);
        assert!(!html.contains("Masks"));
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("environment.json"), "{").unwrap();
        let error = write(dir.path()).unwrap_err();
        assert!(error.to_string().contains("environment.json"), "{error}");
        let error = write(&dir.path().join("none")).unwrap_err();
        assert!(error.to_string().contains("none"), "{error}");
    }
}
