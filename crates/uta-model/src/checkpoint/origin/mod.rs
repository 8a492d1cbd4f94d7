//! What a user's model is: where its weights lie, which family's names they have, and of what build the net is. That comes
//! from the configuration beside the weights, else from the tensors' shapes, else from an architecture that the user names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Device, Tensor};

use super::hints::{self, HEAD};
use super::safetensors::Checkpoint;
use crate::nets::config::{IMAGENET_MEAN, IMAGENET_STD};
use crate::{
    Adapter, Clip, ClipConfig, Ffn, Head, ModelError, Pool, Preprocess, RelPos, TextConfig,
    VitConfig,
};

/// What folders hold: a configuration and, beside it, the first of these weights that is there.
const FOLDERS: [(&str, &[&str]); 2] = [
    ("open_clip_config.json", &["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]),
    (
        "config.json",
        &[
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "eva_clip.pt",
        ],
    ),
];

/// Channels of a head, where it isn't 64, by a tower's width: open_clip's and EVA's configs.
const HEAD_WIDTHS: [(i64, i64); 4] = [(1280, 80), (1408, 88), (1664, 104), (1792, 112)];

/// The width of bigE, the one EVA net with post-norm blocks: no shape tells them from pre-norm ones.
const POST_NORM_WIDTH: i64 = 1792;

/// What names of files and folders say of the activation, the more telling first (`open_clip/pretrained.py`).
const QUICK_GELU_TAGS: [(&str, bool); 9] = [
    ("quickgelu", true),
    ("laion", false),
    ("datacomp", false),
    ("commonpool", false),
    ("dfn2b_s39b", false),
    ("openai", true),
    ("metaclip", true),
    ("dfn2b", true),
    ("dfn5b", true),
];

/// A net this many times larger than its file is refused before its names are compared.
const MOST_MISSING: i64 = 16;

/// A user's model: weights under this program's names, and the sizes of the net that they fill.
#[derive(Debug)]
pub struct Origin {
    /// The file that holds the weights.
    pub weights: PathBuf,
    /// The family whose names they have: [`Adapter::family`].
    pub family: &'static str,
    /// The net.
    pub config: ClipConfig,
    /// What neither the file nor its configuration tells and was assumed, and why; for the user to read.
    pub notes: Vec<String>,
    checkpoint: Checkpoint,
}

impl Origin {
    /// Finds out what is at `path`: a run directory or this program's folder, an open_clip hub folder, a folder of Hugging
    /// Face or timm, or a file of weights (safetensors, or PyTorch's own). `arch` names a preset or a configuration file,
    /// and stands above what lies beside the weights.
    ///
    /// # Errors
    /// Says what was looked for, what isn't known, or what the file alone can't tell.
    pub fn open(path: &Path, arch: Option<&str>) -> Result<Origin, ModelError> {
        let (weights, beside) = locate(path)?;
        let checkpoint = Checkpoint::read(&weights)?;
        let stated = match arch {
            Some(arch) => Stated::arch(arch, &checkpoint)?,
            None => beside.as_deref().map(Stated::read).transpose()?,
        };
        if let Some(Stated::In(file, Format::OpenClip, value)) = &stated {
            // Before names are compared: what kind of net it is says more than which names it hasn't.
            known_to_us(value).map_err(|message| ModelError::format(file, message))?;
        }
        let detected = Adapter::detect(&checkpoint.tensors);
        let adapter = match (detected, &stated) {
            (Some(adapter), _) => adapter,
            (None, Some(Stated::Exactly(_))) => &Adapter::UTA,
            (None, _) => {
                let keys: Vec<&str> =
                    checkpoint.tensors.keys().take(3).map(String::as_str).collect();
                let message = format!(
                    "no known family has such names: {} ... (known: {})",
                    keys.join(", "),
                    Adapter::ALL.iter().map(|a| a.family).collect::<Vec<_>>().join("; "),
                );
                return Err(ModelError::format(&weights, message));
            }
        };
        let openai = checkpoint.tensors.contains_key("input_resolution");
        let checkpoint = checkpoint.adapted(adapter);
        let mut notes = vec![];
        let config = match stated {
            Some(Stated::Exactly(mut config)) => {
                // A student's checkpoint holds what is trained, and that is its image encoder.
                let trained = weights.parent().is_some_and(|dir| run_of(dir).is_some());
                if trained && !checkpoint.tensors.keys().any(|key| key.starts_with("text.")) {
                    config.text = None;
                }
                config
            }
            stated => {
                let mut config = infer(&weights, &checkpoint.tensors)?;
                match &stated {
                    Some(Stated::In(file, format, value)) => {
                        let read = match format {
                            Format::OpenClip => {
                                open_clip(value, &mut config);
                                Ok(())
                            }
                            Format::HuggingFace => hugging_face(value, &mut config),
                            Format::Timm => timm(value, &mut config),
                        };
                        read.map_err(|message| ModelError::format(file, message))?;
                        let size = config.vision.image_size;
                        config.preprocess = match format {
                            Format::OpenClip => {
                                let cfg = &value["preprocess_cfg"];
                                Preprocess::from_open_clip(cfg, size, &mut notes)
                            }
                            Format::Timm => {
                                let cfg = pretrained_cfg(value);
                                Preprocess::from_timm(cfg, size, config.mean, &mut notes)
                            }
                            Format::HuggingFace => preprocessor(file, &mut config, &mut notes)?,
                        };
                    }
                    _ => assume(&weights, openai, &mut config, &mut notes),
                }
                config
            }
        };
        let source = arch.map(Path::new).filter(|arch| arch.is_file()).or(beside.as_deref());
        config
            .check()
            .map_err(|e| ModelError::format(source.unwrap_or(&weights), e.to_string()))?;
        Ok(Origin { weights, family: adapter.family, config, notes, checkpoint })
    }

    /// The tensors by this program's names, in the kinds they are stored in; those of a safetensors file are views of it.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.checkpoint.tensors
    }

    /// The files that hold the weights, where [`Origin::weights`] is an index of them.
    pub fn shards(&self) -> &[PathBuf] {
        &self.checkpoint.shards
    }

    /// The net, its weights filled in on `device`.
    ///
    /// # Errors
    /// Lists missing, unexpected and mis-shaped names.
    pub fn into_clip(self, device: Device) -> Result<Clip, ModelError> {
        // A damaged or hostile configuration must not make the machine swap.
        let stored: i64 = self.tensors().values().map(|t| t.numel() as i64).sum();
        let wanted = self.config.parameters();
        if wanted / MOST_MISSING > stored {
            let message = format!("holds {stored} numbers, and the net has {wanted} parameters");
            return Err(ModelError::format(&self.weights, message));
        }
        let mut clip = Clip::blank(&self.config, device);
        self.checkpoint.fill(&clip.variables())?;
        clip.notes = self.notes;
        Ok(clip)
    }
}

/// The weights at `path`, and the configuration beside them.
fn locate(path: &Path) -> Result<(PathBuf, Option<PathBuf>), ModelError> {
    let there = |path: PathBuf| path.is_file().then_some(path);
    if path.is_file() {
        let dir = path.parent().unwrap_or(Path::new(""));
        let named = |name: &&str| path.file_name().is_some_and(|file| file == *name);
        let config = FOLDERS.iter().find(|(_, weights)| weights.iter().any(named));
        let beside = config.and_then(|(config, _)| there(dir.join(config)));
        return Ok((path.to_owned(), beside.or_else(|| there(run_of(dir)?.join("config.json")))));
    }
    if let Some(run) = run_of(path)
        && let Some(weights) = there(path.join("model.safetensors"))
    {
        return Ok((weights, there(run.join("config.json"))));
    }
    for (config, weights) in FOLDERS {
        let weights = weights.iter().find_map(|weights| there(path.join(weights)));
        if let Some((weights, config)) = weights.zip(there(path.join(config))) {
            return Ok((weights, Some(config)));
        }
    }
    Err(ModelError::format(path, no_model(path)))
}

/// Why there is no model at `path`, in words that follow it.
fn no_model(path: &Path) -> String {
    if !path.is_dir() {
        return hints::missing(path);
    }
    let checkpoints = path.join("checkpoints");
    if checkpoints.is_dir() {
        let begun = "holds no model yet: the run isn't finished; continue it with --resume";
        return match std::fs::read_to_string(checkpoints.join("latest")) {
            Ok(newest) => {
                let newest = checkpoints.join(newest.trim());
                format!("{begun}, or give its newest checkpoint, {}", newest.display())
            }
            Err(_) => begun.into(),
        };
    }
    let configs = FOLDERS.iter().find(|(config, _)| path.join(config).is_file());
    let files = hints::weights_in(path);
    match (configs, &files[..]) {
        (Some((config, weights)), []) => {
            format!("holds {config} but no weights beside it ({})", weights.join(", "))
        }
        (Some((config, weights)), [file, ..]) => format!(
            "holds {config} but no weights under their usual names ({}); for {file} give the file, {}",
            weights.join(", "),
            path.join(file).display()
        ),
        (None, [file, ..]) => format!(
            "holds no {}; give the file of weights, {}",
            FOLDERS.map(|(config, _)| config).join(" or "),
            path.join(file).display()
        ),
        (None, []) => {
            let wanted = FOLDERS.map(|(config, weights)| format!("{config} and {}", weights[0]));
            format!("is a folder without a model, which would be {}", wanted.join(", or "))
        }
    }
}

/// The run that `dir` is a checkpoint of: RUN/checkpoints/step-00001000. The run's configuration is the checkpoint's.
pub fn run_of(dir: &Path) -> Option<&Path> {
    let folder = dir.parent()?;
    if folder.file_name()? == "checkpoints" { folder.parent() } else { None }
}

/// What is said about the net, besides its tensors.
enum Stated {
    /// Every size.
    Exactly(ClipConfig),
    /// Some, in another program's words.
    In(PathBuf, Format, Value),
}

#[derive(Clone, Copy)]
enum Format {
    OpenClip,
    HuggingFace,
    Timm,
}

/// A key that only such a configuration has.
const FORMATS: [(&str, Format); 4] = [
    ("model_cfg", Format::OpenClip),
    ("vision_cfg", Format::OpenClip),
    ("vision_config", Format::HuggingFace),
    ("architecture", Format::Timm),
];

impl Stated {
    fn read(path: &Path) -> Result<Stated, ModelError> {
        let text = fs::read_to_string(path).map_err(ModelError::io(path))?;
        let wrong = |e: serde_json::Error| ModelError::format(path, e.to_string());
        let value: Value = serde_json::from_str(&text).map_err(|e| {
            let head = &text.as_bytes()[..text.len().min(HEAD)];
            match hints::what_else(head).filter(|_| !text.trim_start().starts_with('{')) {
                Some(other) => ModelError::format(path, other),
                None => wrong(e),
            }
        })?;
        match FORMATS.iter().find(|(key, _)| value.get(key).is_some()) {
            Some((_, format)) => Ok(Stated::In(path.to_owned(), *format, value)),
            None => Ok(Stated::Exactly(serde_json::from_str(&text).map_err(wrong)?)),
        }
    }

    /// A preset by name, else a file. A preset's text encoder is taken where the weights have one.
    fn arch(arch: &str, checkpoint: &Checkpoint) -> Result<Option<Stated>, ModelError> {
        let path = Path::new(arch);
        if path.is_file() {
            return Stated::read(path).map(Some);
        }
        let vision = VitConfig::preset(arch)
            .map_err(|e| ModelError::Config(format!("--arch {arch}: no such file, and {e}")))?;
        let text = checkpoint.tensors.keys().any(|key| key.contains("token_embedding"));
        let text = match (text, TextConfig::preset(arch)) {
            (false, _) => None,
            (true, Ok(text)) => Some(text),
            (true, Err(_)) => {
                let message =
                    format!("the preset {arch} has no text encoder, and the weights have one");
                return Err(ModelError::Config(message));
            }
        };
        let mut config = ClipConfig::new(vision, text);
        if knows_no_clip(&config.vision) {
            (config.mean, config.std) = (IMAGENET_MEAN, IMAGENET_STD);
        }
        Ok(Some(Stated::Exactly(config)))
    }
}

/// Whether an encoder is MAE's or BEiT's, which saw ImageNet's pixel statistics.
fn knows_no_clip(c: &VitConfig) -> bool {
    c.rel_pos != RelPos::None || (c.k_bias && !c.norm_pre)
}

/// The net that has such tensors, under this program's names.
fn infer(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<ClipConfig, ModelError> {
    let size = |key: &str, dim: usize| tensors.get(key).and_then(|t| t.size().get(dim).copied());
    let need = |key: &str, dim: usize| {
        size(key, dim).filter(|&n| n > 0).ok_or_else(|| {
            let message = format!("has no {key} of use, so that the net must be named: --arch");
            ModelError::format(path, message)
        })
    };
    let has = |key: &str| tensors.contains_key(key);
    let blocks = |prefix: &str| {
        let number =
            |key: &String| key.strip_prefix(prefix)?.split('.').next()?.parse::<i64>().ok();
        tensors.keys().filter_map(number).max().map_or(0, |last| last.saturating_add(1))
    };

    let width = need("visual.cls_token", 2)?;
    let patch_size = need("visual.patch_embed.proj.weight", 2)?;
    let tables = [
        (RelPos::Blocks, "visual.blocks.0.attn.relative_position_bias_table"),
        (RelPos::Shared, "visual.rel_pos_bias.relative_position_bias_table"),
    ];
    let table = tables.iter().find(|(_, key)| has(key));
    let grid = match table {
        Some((_, key)) => ((need(key, 0)? - 3).max(0).isqrt() + 1) / 2,
        None => (need("visual.pos_embed", 1)? - 1).isqrt(),
    };
    let heads = match table {
        Some((_, key)) => need(key, 1)?,
        None => {
            let known = HEAD_WIDTHS.iter().find(|(w, _)| *w == width);
            (width / known.map_or(64, |(_, head_width)| *head_width)).max(1)
        }
    };
    let gated = has("visual.blocks.0.mlp.w1.weight");
    let hidden =
        if gated { "visual.blocks.0.mlp.w1.weight" } else { "visual.blocks.0.mlp.fc1.weight" };
    let head = match (has("visual.head.weight"), has("visual.head.bias")) {
        (true, true) => Head::Biased,
        (true, false) => Head::Plain,
        (false, _) => Head::None,
    };
    let k_bias = has("visual.blocks.0.attn.k_bias");
    let norm_pre = has("visual.norm_pre.weight");
    let vision = VitConfig {
        image_size: grid.saturating_mul(patch_size),
        patch_size,
        width,
        depth: blocks("visual.blocks."),
        heads,
        hidden: need(hidden, 0)?,
        out: size("visual.head.weight", 0).unwrap_or(width),
        ffn: if gated { Ffn::SwiGlu } else { Ffn::Gelu },
        rope: gated,
        drop_path: 0.0,
        patch_grad: 1.0,
        ffn_norm: !gated || has("visual.blocks.0.mlp.ffn_ln.weight"),
        attn_norm: has("visual.blocks.0.attn.inner_attn_ln.weight"),
        post_norm: width == POST_NORM_WIDTH && !k_bias,
        norm_pre,
        k_bias,
        head,
        pool: if has("visual.fc_norm.weight") { Pool::Mean } else { Pool::Cls },
        abs_pos: has("visual.pos_embed"),
        rel_pos: table.map_or(RelPos::None, |(kind, _)| *kind),
        layer_scale: has("visual.blocks.0.gamma_1"),
        mask_token: has("visual.mask_token"),
        eps: if norm_pre { 1e-5 } else { 1e-6 },
    };
    let text = match has("text.token_embedding.weight") {
        false => None,
        true => {
            let width = need("text.token_embedding.weight", 1)?;
            Some(TextConfig {
                context_length: need("text.positional_embedding", 0)?,
                vocab_size: need("text.token_embedding.weight", 0)?,
                width,
                heads: width / 64,
                layers: blocks("text.transformer.resblocks."),
                out: need("text.text_projection", 1)?,
                quick_gelu: false,
            })
        }
    };
    let mut config = ClipConfig::new(vision, text);
    if knows_no_clip(&config.vision) && config.text.is_none() {
        (config.mean, config.std) = (IMAGENET_MEAN, IMAGENET_STD);
    }
    Ok(config)
}

/// What shapes don't tell, where no configuration does either.
fn assume(weights: &Path, openai: bool, config: &mut ClipConfig, notes: &mut Vec<String>) {
    let vision = &config.vision;
    let known = |name: &String| {
        VitConfig::preset(name).is_ok_and(|p| {
            (p.width, p.depth, p.heads) == (vision.width, vision.depth, vision.heads)
        })
    };
    // A table of relative positions has a column for each head.
    if vision.rel_pos == RelPos::None && !crate::preset_names().iter().any(known) {
        notes.push(format!(
            "{} attention heads of {} channels assumed, because no shape tells and no known net has these sizes; \
             --arch takes a configuration file that says it",
            vision.heads,
            vision.head_width()
        ));
    }
    if knows_no_clip(vision) && config.text.is_none() {
        let what = "pixels are normalised as ImageNet's, as MAE's and BEiT v2's were: nothing beside the weights tells";
        notes.push(what.into());
    }
    if !(vision.k_bias && vision.norm_pre) {
        return;
    }
    let names = [weights.parent().and_then(Path::file_name), weights.file_name()];
    let names: Vec<String> =
        names.into_iter().flatten().map(|n| n.to_string_lossy().to_lowercase()).collect();
    let tag = QUICK_GELU_TAGS.iter().find(|(tag, _)| names.iter().any(|name| name.contains(tag)));
    let quick = match (openai, tag) {
        (true, _) => true,
        (false, Some((tag, quick))) => {
            let activation = if *quick { "QuickGELU" } else { "GELU" };
            notes.push(format!("{activation} taken, because the name says {tag}"));
            *quick
        }
        (false, None) => {
            let what = "GELU assumed, as in LAION's and DataComp's weights, because neither the file nor its name tells; \
                        OpenAI's, MetaCLIP's and DFN's have QuickGELU, and the wrong one costs points silently: name the \
                        net with --arch (vit-b-32-quickgelu, ...)";
            notes.push(what.into());
            false
        }
    };
    set_quick_gelu(config, quick);
}

fn set_quick_gelu(config: &mut ClipConfig, quick: bool) {
    config.vision.ffn = if quick { Ffn::QuickGelu } else { Ffn::Gelu };
    if let Some(text) = &mut config.text {
        text.quick_gelu = quick;
    }
}

/// Takes over a number, where there is one.
fn take(value: &Value, key: &str, into: &mut i64) {
    if let Some(number) = value[key].as_i64() {
        *into = number;
    }
}

/// Takes over three numbers, where there are three.
fn take_rgb(value: &Value, key: &str, into: &mut [f64; 3]) {
    let numbers: Option<Vec<f64>> =
        value[key].as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
    if let Some(Ok(rgb)) = numbers.map(<[f64; 3]>::try_from) {
        *into = rgb;
    }
}

/// Refuses what a configuration asks for and the net here hasn't. `known` holds the only values that are, as JSON.
fn only(what: &str, value: &Value, known: &[(&str, &str)]) -> Result<(), String> {
    for (key, wanted) in known {
        let found = &value[key];
        let same = match (found.as_f64(), wanted.parse::<f64>()) {
            (Some(found), Ok(wanted)) => found == wanted,
            _ => *found == wanted.parse::<Value>().unwrap_or_default(),
        };
        if !found.is_null() && !same {
            return Err(format!("{what}.{key} = {found}: only {wanted} is known here"));
        }
    }
    Ok(())
}

/// Refuses open_clip's configurations of nets that aren't known here, by what they are.
fn known_to_us(value: &Value) -> Result<(), String> {
    let model = value.get("model_cfg").unwrap_or(value);
    let (vision, text) = (&model["vision_cfg"], &model["text_cfg"]);
    if !model["multimodal_cfg"].is_null() {
        return Err(
            "has a multimodal_cfg: a CoCa, which also writes texts, is not known here".into()
        );
    }
    if vision["layers"].is_array() {
        return Err("vision_cfg.layers is a list: a ResNet, and only ViTs are known here".into());
    }
    if let Some(name) = text["hf_model_name"].as_str() {
        let message = "an encoder of Hugging Face's, and only CLIP's is known here";
        return Err(format!("text_cfg.hf_model_name = {name:?}: {message}"));
    }
    if let Some(name) = vision["timm_model_name"].as_str() {
        only("vision_cfg", vision, &[("timm_pool", "\"token\"")])
            .map_err(|e| format!("{e} (timm_model_name = {name:?})"))?;
        if name.contains("_mci") {
            let message = "begins with convolutions, and only plain ViTs are known here";
            return Err(format!("vision_cfg.timm_model_name = {name:?} {message}"));
        }
    } else {
        only(
            "vision_cfg",
            vision,
            &[
                ("pool_type", "\"tok\""),
                ("pos_embed_type", "\"learnable\""),
                ("no_ln_pre", "false"),
                ("final_ln_after_pool", "false"),
                ("attentional_pool", "false"),
                ("qk_norm", "false"),
                ("scaled_cosine_attn", "false"),
                ("scale_heads", "false"),
                ("scale_attn_inner", "false"),
                ("scale_attn", "false"),
                ("scale_fc", "false"),
                ("act_kwargs", "{}"),
            ],
        )?;
    }
    only(
        "text_cfg",
        text,
        &[
            ("pool_type", "\"argmax\""),
            ("no_causal_mask", "false"),
            ("embed_cls", "false"),
            ("final_ln_after_pool", "false"),
            ("proj_bias", "false"),
            ("proj_type", "\"linear\""),
            ("mlp_ratio", "4.0"),
            ("qk_norm", "false"),
            ("scaled_cosine_attn", "false"),
            ("scale_heads", "false"),
            ("scale_attn_inner", "false"),
            ("scale_attn", "false"),
            ("scale_fc", "false"),
            ("act_kwargs", "{}"),
            ("norm_kwargs", "{}"),
        ],
    )
}

/// `open_clip_config.json`, or one of open_clip's model configs (`open_clip/model.py`), which [`known_to_us`] has passed.
fn open_clip(value: &Value, config: &mut ClipConfig) {
    let model = value.get("model_cfg").unwrap_or(value);
    take(model, "embed_dim", &mut config.embed_dim);
    let quick = model["quick_gelu"].as_bool().unwrap_or(false);
    let (vision, v) = (&model["vision_cfg"], &mut config.vision);
    if let Some(name) = vision["timm_model_name"].as_str() {
        timm_name(name, v);
    } else {
        take(vision, "layers", &mut v.depth);
        take(vision, "width", &mut v.width);
        take(vision, "image_size", &mut v.image_size);
        take(vision, "patch_size", &mut v.patch_size);
        v.heads = v.width / vision["head_width"].as_i64().unwrap_or(64).max(1);
        v.hidden = (v.width as f64 * vision["mlp_ratio"].as_f64().unwrap_or(4.0)) as i64;
        v.eps = vision["norm_kwargs"]["eps"].as_f64().unwrap_or(1e-5);
        v.ffn = if quick { Ffn::QuickGelu } else { Ffn::Gelu };
    }
    let text = &model["text_cfg"];
    if let Some(t) = &mut config.text {
        take(text, "context_length", &mut t.context_length);
        take(text, "vocab_size", &mut t.vocab_size);
        take(text, "width", &mut t.width);
        take(text, "layers", &mut t.layers);
        t.heads = text["heads"].as_i64().unwrap_or(8);
        t.quick_gelu = quick;
    }
    take_rgb(&value["preprocess_cfg"], "mean", &mut config.mean);
    take_rgb(&value["preprocess_cfg"], "std", &mut config.std);
}

/// What the name of a timm architecture says.
fn timm_name(name: &str, v: &mut VitConfig) {
    if name.contains("enormous") {
        v.post_norm = true;
    }
    if name.contains("quickgelu") {
        v.ffn = Ffn::QuickGelu;
    }
}

/// `config.json` of a CLIPModel (`transformers/models/clip/configuration_clip.py`); what it leaves out has the default there.
fn hugging_face(value: &Value, config: &mut ClipConfig) -> Result<(), String> {
    let quick = |part: &Value| match part["hidden_act"].as_str().unwrap_or("quick_gelu") {
        "quick_gelu" => Ok(true),
        "gelu" => Ok(false),
        other => Err(format!("hidden_act = {other:?}: only quick_gelu and gelu are known here")),
    };
    take(value, "projection_dim", &mut config.embed_dim);
    let (vision, v) = (&value["vision_config"], &mut config.vision);
    take(vision, "image_size", &mut v.image_size);
    take(vision, "patch_size", &mut v.patch_size);
    take(vision, "hidden_size", &mut v.width);
    take(vision, "num_hidden_layers", &mut v.depth);
    take(vision, "intermediate_size", &mut v.hidden);
    v.heads = vision["num_attention_heads"].as_i64().unwrap_or(12);
    v.eps = vision["layer_norm_eps"].as_f64().unwrap_or(1e-5);
    v.ffn = if quick(vision)? { Ffn::QuickGelu } else { Ffn::Gelu };
    let text = &value["text_config"];
    if let Some(t) = &mut config.text {
        take(text, "max_position_embeddings", &mut t.context_length);
        take(text, "vocab_size", &mut t.vocab_size);
        take(text, "hidden_size", &mut t.width);
        take(text, "num_hidden_layers", &mut t.layers);
        t.heads = text["num_attention_heads"].as_i64().unwrap_or(8);
        t.quick_gelu = quick(text)?;
        only(
            "text_config",
            text,
            &[("layer_norm_eps", "1e-5"), ("intermediate_size", &(4 * t.width).to_string())],
        )?;
    }
    Ok(())
}

/// What pixels go through, which Hugging Face keeps in a file of its own.
fn preprocessor(
    config_file: &Path,
    config: &mut ClipConfig,
    notes: &mut Vec<String>,
) -> Result<Preprocess, ModelError> {
    let path = config_file.with_file_name("preprocessor_config.json");
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Preprocess::default()),
        text => text.map_err(ModelError::io(&path))?,
    };
    let value: Value =
        serde_json::from_str(&text).map_err(|e| ModelError::format(&path, e.to_string()))?;
    if value["do_normalize"] == false {
        (config.mean, config.std) = ([0.0; 3], [1.0; 3]);
    } else {
        take_rgb(&value, "image_mean", &mut config.mean);
        take_rgb(&value, "image_std", &mut config.std);
    }
    Ok(Preprocess::from_hugging_face(&value, config.vision.image_size, notes))
}

/// `config.json` of a timm hub folder (`timm/models/_hub.py`).
fn timm(value: &Value, config: &mut ClipConfig) -> Result<(), String> {
    let (args, v) = (&value["model_args"], &mut config.vision);
    let name = value["architecture"].as_str().unwrap_or_default();
    timm_name(name, v);
    take(args, "num_heads", &mut v.heads);
    take(args, "depth", &mut v.depth);
    if args["use_post_norm"].as_bool() == Some(true) {
        v.post_norm = true;
    }
    let pool = args["global_pool"].as_str().or(value["global_pool"].as_str());
    let expected = match v.pool {
        Pool::Cls => "token",
        Pool::Mean => "avg",
    };
    if let Some(other) = pool.filter(|pool| *pool != expected && !pool.is_empty()) {
        let norm = if v.pool == Pool::Cls { "norm" } else { "fc_norm" };
        return Err(format!(
            "global_pool = {other:?}: with {norm}, only {expected:?} is known here"
        ));
    }
    take_rgb(pretrained_cfg(value), "mean", &mut config.mean);
    take_rgb(pretrained_cfg(value), "std", &mut config.std);
    Ok(())
}

/// What timm says of pictures: in a part of its own or, in files of its first versions, among the rest.
fn pretrained_cfg(value: &Value) -> &Value {
    value.get("pretrained_cfg").unwrap_or(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every configuration that open_clip 3.3.0 has, written by `tests/golden/open_clip_models.py`: the table of the book's
    /// page on formats.
    #[test]
    fn every_configuration_of_open_clip_is_known_or_refused_by_its_kind() {
        const MODELS: &str = include_str!("../../../../tests/golden/open_clip_models.json");
        let models: BTreeMap<String, Value> = serde_json::from_str(MODELS).unwrap();
        let kinds = [
            "multimodal_cfg",
            "a ResNet",
            "text_cfg.hf_model_name",
            "vision_cfg.timm_pool = \"map\"",
            "vision_cfg.timm_pool = \"avg\"",
            "vision_cfg.timm_pool = \"\"",
            "begins with convolutions",
            "vision_cfg.pool_type = \"avg\"",
            "text_cfg.pool_type = \"eos\"",
            "text_cfg.no_causal_mask",
        ];
        let mut counts = BTreeMap::new();
        for (name, value) in &models {
            let kind = match known_to_us(value) {
                Ok(()) => {
                    let text = TextConfig::preset("vit-b-32").unwrap();
                    let vision = VitConfig::preset("vit-b-32").unwrap();
                    let mut config = ClipConfig::new(vision, Some(text));
                    open_clip(value, &mut config);
                    if value["vision_cfg"]["timm_model_name"].is_null() {
                        config.vision.out = config.embed_dim;
                        config.text.as_mut().unwrap().out = config.embed_dim;
                        config.check().unwrap_or_else(|e| panic!("{name}: {e}"));
                    }
                    "known"
                }
                Err(e) => kinds.iter().find(|kind| e.contains(*kind)).expect(&e),
            };
            *counts.entry(kind).or_insert(0) += 1;
        }
        let expected = [
            ("known", 39),
            ("a ResNet", 10),
            ("multimodal_cfg", 4),
            ("text_cfg.hf_model_name", 9),
            ("vision_cfg.timm_pool = \"map\"", 31),
            ("vision_cfg.timm_pool = \"avg\"", 6),
            ("vision_cfg.timm_pool = \"\"", 29),
            ("begins with convolutions", 2),
            ("vision_cfg.pool_type = \"avg\"", 6),
            ("text_cfg.pool_type = \"eos\"", 7),
            ("text_cfg.no_causal_mask", 1),
        ];
        assert_eq!(counts, BTreeMap::from(expected));
    }
}
