//! `uta eval align`: how close a student's tokens come to its teacher's.

use std::path::PathBuf;
use std::rc::Rc;

use clap::Args;
use serde_json::json;
use torch_ext::distributed::ProcessGroup;
use uta_data::mask::{MaskGenerator, MaskKind};
use uta_eval::Align;
use uta_eval::ranking::interval;

use super::page::Page;
use super::setup::{Common, Setup};
use crate::compute::PairArgs;
use crate::error::Usage;

/// Arguments of `uta eval align`.
#[derive(Debug, Args)]
pub struct AlignArgs {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    pairs: PairArgs,
    /// The teacher [default: that of the model's run]
    #[arg(long, value_name = "T")]
    teacher: Option<PathBuf>,
    /// Architecture of --teacher, where the file alone can't tell: a preset or a configuration file
    #[arg(long, value_name = "NAME|FILE", requires = "teacher")]
    teacher_arch: Option<String>,
    /// Share of the patches that the student doesn't see
    #[arg(long, value_name = "R", default_value_t = 0.0)]
    mask_ratio: f64,
    /// none, random, block or block-reversed [default: random where a ratio is given]
    #[arg(long, value_name = "KIND")]
    mask_kind: Option<MaskKind>,
    /// Seed of the masks
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn align(args: &AlignArgs, group: &Rc<ProcessGroup>) -> anyhow::Result<()> {
    let pairs = args.pairs.options(&args.common.data)?;
    let source = uta_data::open_with(&args.common.data, &pairs)?;
    let setup = Setup::over(&args.common, source, group)?;
    let (path, arch) = match &args.teacher {
        Some(path) => (path.clone(), args.teacher_arch.clone()),
        None => setup.run_teacher()?.ok_or_else(|| {
            let model = args.common.model.path.display();
            Usage(format!("{model} is no run that names its teacher; give --teacher"))
        })?,
    };
    let mut teacher = setup.load(&path, arch.as_deref())?;
    teacher.freeze(setup.options.precision);
    let teacher = Rc::new(teacher);
    let kind = match args.mask_kind {
        Some(MaskKind::None) if args.mask_ratio > 0.0 => {
            let message =
                format!("--mask-kind none: masks nothing, and --mask-ratio is {}", args.mask_ratio);
            return Err(Usage(message + "; leave one of them out").into());
        }
        Some(kind) => kind,
        None if args.mask_ratio == 0.0 => MaskKind::None,
        None => MaskKind::Random,
    };
    let grid = setup.model.config.vision.grid() as usize;
    let mask = MaskGenerator::new(kind, args.mask_ratio, (grid, grid))
        .map_err(|e| Usage(format!("--mask-ratio, --mask-kind: {e}")))?;
    let mut task = Align::new("align", setup.source.clone(), teacher, setup.options.clone());
    if kind != MaskKind::None {
        task = task.with_mask(mask, args.seed);
    }
    let report = task.run(&setup.model)?;

    let mut page = Page::new("alignment", &setup, None);
    page.setting("teacher", path.display());
    let patches = setup.model.config.vision.num_patches();
    page.setting(
        "mask",
        match kind {
            MaskKind::None => format!("none, {patches} patches"),
            kind => format!(
                "{kind}, ratio {}, {} of {patches} patches kept, seed {}",
                args.mask_ratio, report.kept, args.seed
            ),
        },
    );
    page.count("images", report.n);
    page.unreadable(&report.rejected);
    page.mean("cosine", report.cosine, report.cosine_std, report.n);
    page.mean("of [CLS]", report.cosine_cls, report.cosine_cls_std, report.n);
    page.mean("of patches", report.cosine_patches, report.cosine_patches_std, report.n);
    page.print(args.common.json, &report, |report, object| {
        for (key, mean, std) in [
            ("cosine", report.cosine, report.cosine_std),
            ("cosine_cls", report.cosine_cls, report.cosine_cls_std),
            ("cosine_patches", report.cosine_patches, report.cosine_patches_std),
        ] {
            object.insert(format!("{key}_interval"), json!(interval(mean, std, report.n)));
        }
    })
}
