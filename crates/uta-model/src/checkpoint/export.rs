//! Writing a net as other programs read it: weights under their names, their configuration beside.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use uta_base::write_atomically;

use super::adapter::{Adapter, Layout, is_clip};
use super::safetensors;
use super::torch;
use crate::{
    Clip, ClipConfig, Ffn, Head, ModelError, NetConfig, Pool, Preprocess, RelPos, TextConfig,
    VitConfig,
};

/// The files of an export, and what to know of them.
#[derive(Debug)]
pub struct Exported {
    /// The files: configurations first, then the weights.
    pub files: Vec<PathBuf>,
    /// The family whose names the weights have: [`Adapter::family`].
    pub family: &'static str,
    /// Our names of tensors that the layout has no place for: the text encoder's, in timm's.
    pub left_out: Vec<String>,
    /// Settings that the layout has no words for, and what its program will do instead; for the user to read.
    pub notes: Vec<String>,
    /// The lines of Python that load what was written.
    pub python: Vec<String>,
}

/// The Python module that loads this program's own layout in PyTorch.
const LOADER: &str = include_str!("uta_model.py");

/// Files of [`Layout::EvaClip`]: the weights, and the configuration by whose stem EVA-CLIP's factory knows the net.
const EVA_WEIGHTS: &str = "eva_clip.pt";
const EVA_CONFIG: &str = "eva_clip.json";

/// Presets whose image encoders open_clip can build through timm, where it sets no size but the head's.
const OPEN_CLIP_TRUNKS: [(&str, &str); 7] = [
    ("eva01-g-14", "eva_giant_patch14_224"),
    ("eva02-b-16", "eva02_base_patch16_clip_224"),
    ("eva02-l-14", "eva02_large_patch14_clip_224"),
    ("eva02-l-14-336", "eva02_large_patch14_clip_336"),
    ("eva02-bige-14", "eva02_enormous_patch14_clip_224"),
    ("uta-b14", "eva02_base_patch14_224"),
    ("uta-l14", "eva02_large_patch14_224"),
];

/// Tokens of CLIP's own vocabulary, and of a text.
const CLIP_VOCABULARY: i64 = 49_408;
const CLIP_CONTEXT: i64 = 77;

/// Tokens of the smallest vocabulary that CLIP's tokeniser has: every byte, within a word and at its end, and two marks.
const SMALLEST_VOCABULARY: i64 = 514;

impl Clip {
    /// Writes `config.json` and `model.safetensors` into `dir`, the weights as `kind`.
    ///
    /// # Errors
    /// When they can't be written.
    pub fn save(&self, dir: &Path, kind: Kind) -> Result<(), ModelError> {
        self.export(Layout::Uta, dir, Some(kind)).map(drop)
    }

    /// Writes `config.json` alone.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save_config(&self, dir: &Path) -> Result<(), ModelError> {
        write_json(&dir.join("config.json"), &NetConfig::Clip(self.config.clone()).to_json())
    }

    /// Writes the net into the folder `dir` in another program's layout, the weights as `kind` or, without one, as they
    /// are. [`Clip::load`] reads it back to identical tensors.
    ///
    /// # Errors
    /// When the layout has no names, or its program no words, for such a net, or the files can't be written.
    pub fn export(
        &self,
        layout: Layout,
        dir: &Path,
        kind: Option<Kind>,
    ) -> Result<Exported, ModelError> {
        if self.visual.is_frozen() {
            return Err(ModelError::Config("a frozen net holds no weights to save".into()));
        }
        // Programs that look at whole images alone have no place for a mask token, and do well without.
        let pretrains = layout == Layout::EvaClip && !self.config.is_aligned();
        let mask_token = layout == Layout::Uta || pretrains;
        let vision = &self.config.vision;
        let vision = VitConfig { mask_token: vision.mask_token && mask_token, ..vision.clone() };
        let adapter = Adapter::for_export(layout, &vision)?;
        let mut notes = vec![];
        let images_alone = layout == Layout::Timm || pretrains;
        let own = || {
            let (vision, text) = (vision.clone(), self.config.text.clone());
            let text = text.filter(|_| !images_alone);
            NetConfig::Clip(ClipConfig { vision, text, ..self.config.clone() }).to_json()
        };
        let (configs, weights) = match layout {
            Layout::Uta => (vec![("config.json", own())], "model.safetensors"),
            Layout::EvaClip => {
                let mut configs = vec![("config.json", own())];
                if !pretrains {
                    configs.push((EVA_CONFIG, self.eva_clip(&mut notes)?));
                }
                (configs, EVA_WEIGHTS)
            }
            Layout::OpenClip => {
                let config = self.open_clip(&mut notes)?;
                (vec![("open_clip_config.json", config)], "open_clip_model.safetensors")
            }
            Layout::Timm => (vec![("config.json", self.timm(&mut notes)?)], "model.safetensors"),
            Layout::Hf => {
                let configs = vec![
                    ("config.json", self.hugging_face()?),
                    ("preprocessor_config.json", self.preprocessor(&mut notes)),
                ];
                (configs, "model.safetensors")
            }
        };
        let in_layout = |name: &String| {
            (!images_alone || name.starts_with("visual."))
                && (mask_token || name != "visual.mask_token")
        };
        let (tensors, left_out): (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>) =
            self.variables().into_iter().partition(|(name, _)| in_layout(name));

        fs::create_dir_all(dir).map_err(ModelError::io(dir))?;
        let mut files = vec![];
        for (name, config) in configs {
            let path = dir.join(name);
            write_json(&path, &config)?;
            files.push(path);
        }
        let path = dir.join(weights);
        let theirs: Vec<(String, Tensor)> =
            tch::no_grad(|| adapter.export(tensors)).into_iter().collect();
        if weights == EVA_WEIGHTS {
            torch::save(&theirs, &path, kind)?;
        } else {
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            safetensors::save(&theirs, &path, &metadata, kind)?;
        }
        files.push(path);
        let left_out = left_out.into_keys().collect();
        let python = self.python(layout, dir);
        Ok(Exported { files, family: adapter.family, left_out, notes, python })
    }

    /// Whether programs that read `layout` look for the tokeniser's files beside the weights.
    pub fn wants_tokenizer(&self, layout: Layout) -> bool {
        let Some(t) = self.config.text.as_ref().filter(|t| has_tokenizer(t)) else { return false };
        match layout {
            Layout::Uta | Layout::Hf => true,
            Layout::OpenClip => t.vocab_size != CLIP_VOCABULARY,
            Layout::EvaClip | Layout::Timm => false,
        }
    }

    /// Writes `uta_model.py` into a folder of [`Layout::Uta`], which loads the net in PyTorch.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn save_loader(dir: &Path) -> Result<PathBuf, ModelError> {
        let path = dir.join("uta_model.py");
        write_atomically(&path, LOADER.as_bytes()).map_err(ModelError::io(&path))?;
        Ok(path)
    }

    /// The lines of Python that load what lies in `dir`.
    fn python(&self, layout: Layout, dir: &Path) -> Vec<String> {
        // JSON's strings are Python's too.
        let quoted = |path: String| Value::from(path).to_string();
        let folder = quoted(dir.display().to_string());
        let local = quoted(format!("local-dir:{}", dir.display()));
        let within = |name: &str| quoted(dir.join(name).display().to_string());
        let texts = self.config.text.as_ref().is_some_and(has_tokenizer);
        match layout {
            Layout::Uta => vec![
                format!("import sys; sys.path.insert(0, {folder})"),
                "import uta_model; model = uta_model.load()".into(),
            ],
            Layout::OpenClip => {
                let mut lines = vec![format!(
                    "import open_clip; model, preprocess = open_clip.create_model_from_pretrained({local})"
                )];
                if texts {
                    lines.push(format!("tokenizer = open_clip.get_tokenizer({local})"));
                }
                lines
            }
            Layout::EvaClip if !self.config.is_aligned() => {
                vec![format!("import torch; weights = torch.load({})", within(EVA_WEIGHTS))]
            }
            Layout::EvaClip => {
                let mean = json!(self.config.mean);
                let std = json!(self.config.std);
                let mut lines = vec![
                    format!("import eva_clip; eva_clip.add_model_config({})", within(EVA_CONFIG)),
                    format!(
                        "model, _, preprocess = eva_clip.create_model_and_transforms(\"eva_clip\", {}, image_mean={mean}, image_std={std})",
                        within(EVA_WEIGHTS)
                    ),
                ];
                if self.config.text.as_ref().is_some_and(clips_texts) {
                    lines.push("tokenizer = eva_clip.get_tokenizer(\"eva_clip\")".into());
                }
                lines
            }
            Layout::Timm => {
                vec![format!("import timm; model = timm.create_model({local}, pretrained=True)")]
            }
            Layout::Hf if texts => vec![
                "from transformers import CLIPModel, CLIPProcessor, pipeline".into(),
                format!("model = CLIPModel.from_pretrained({folder})"),
                format!("processor = CLIPProcessor.from_pretrained({folder})"),
                format!("classify = pipeline(\"zero-shot-image-classification\", {folder})"),
            ],
            Layout::Hf => vec![
                "from transformers import CLIPImageProcessor, CLIPModel".into(),
                format!("model = CLIPModel.from_pretrained({folder})"),
                format!("processor = CLIPImageProcessor.from_pretrained({folder})"),
            ],
        }
    }

    /// The configuration for EVA-CLIP's factory (`eva_clip/model.py`).
    fn eva_clip(&self, notes: &mut Vec<String>) -> Result<Value, ModelError> {
        let v = &self.config.vision;
        let t = self.text_config("eva-clip")?;
        for (is, what) in [
            (v.head != Head::Biased, "no head with a bias"),
            (v.pool != Pool::Cls, "mean pooling"),
            (v.eps != 1e-6, "another epsilon of norms"),
            (!v.abs_pos, "no position embedding"),
        ] {
            if is {
                let message = format!(
                    "EVA-CLIP's factory builds no net like this one, with {what}: --to uta comes with a loader for PyTorch"
                );
                return Err(ModelError::Config(message));
            }
        }
        if self.config.preprocess
            != (Preprocess {
                convention: self.config.preprocess.convention,
                ..Preprocess::default()
            })
        {
            let what = "eva_clip has no words for what images go through: it resizes the shorter side by bicubic and cuts the centre";
            notes.push(what.into());
        }
        if !clips_texts(t) {
            notes.push(
                "eva_clip has CLIP's tokeniser alone, and this net's texts are of another: --to uta comes with its files"
                    .into(),
            );
        }
        let swiglu = v.ffn == Ffn::SwiGlu;
        let mut vision = json!({
            "eva_model_name": "eva-clip",
            "image_size": v.image_size,
            "patch_size": v.patch_size,
            "layers": v.depth,
            "width": v.width,
            "head_width": v.head_width(),
            "mlp_ratio": ratio(v.hidden, v.width),
            "drop_path_rate": 0.0,
            "postnorm": v.post_norm,
            "naiveswiglu": swiglu,
            "subln": swiglu,
        });
        if v.layer_scale {
            vision["ls_init_value"] = json!(1e-5);
        }
        if v.rope {
            vision["rope"] = true.into();
            vision["intp_freq"] = true.into();
        }
        Ok(json!({
            "embed_dim": self.config.embed_dim,
            "vision_cfg": vision,
            "text_cfg": text_sizes(t),
            "quick_gelu": t.quick_gelu,
            "custom_text": true,
        }))
    }

    fn text_config(&self, layout: &str) -> Result<&TextConfig, ModelError> {
        self.config.text.as_ref().ok_or_else(|| {
            ModelError::Config(format!(
                "the layout {layout} needs a text encoder, and there is none"
            ))
        })
    }

    /// `open_clip_config.json` (`open_clip/push_to_hf_hub.py`).
    fn open_clip(&self, notes: &mut Vec<String>) -> Result<Value, ModelError> {
        let v = &self.config.vision;
        let t = self.text_config("open-clip")?;
        let quick = v.ffn == Ffn::QuickGelu;
        let mut vision = json!({"image_size": v.image_size});
        let plain = is_clip(v);
        if plain {
            vision["layers"] = v.depth.into();
            vision["width"] = v.width.into();
            vision["head_width"] = v.head_width().into();
            vision["patch_size"] = v.patch_size.into();
            vision["mlp_ratio"] = ratio(v.hidden, v.width).into();
            if v.eps != 1e-5 {
                vision["norm_kwargs"] = json!({"eps": v.eps});
            }
            if v.layer_scale {
                vision["ls_init_value"] = 1e-5.into();
            }
        } else {
            let same = |(preset, _): &&(&str, &str)| {
                VitConfig::preset(preset).is_ok_and(|p| alike(&p, v)) && v.head == Head::Biased
            };
            let (_, name) = OPEN_CLIP_TRUNKS.iter().find(same).ok_or_else(|| {
                let message = "open_clip builds such image encoders through timm, by names that it has for no net of \
                               these sizes: --to uta comes with a loader for PyTorch, and --to timm writes the image encoder";
                ModelError::Config(message.into())
            })?;
            vision["timm_model_name"] = (*name).into();
            vision["timm_model_pretrained"] = false.into();
            vision["timm_pool"] = "token".into();
            vision["timm_proj"] = Value::Null;
        }
        if t.quick_gelu != quick {
            let message = "open_clip knows QuickGELU for both encoders or for none".to_owned();
            return Err(ModelError::Config(message));
        }
        let mut model = json!({
            "embed_dim": self.config.embed_dim,
            "vision_cfg": vision,
            "text_cfg": text_sizes(t),
        });
        if self.wants_tokenizer(Layout::OpenClip) {
            // Whatever the name, open_clip then reads the tokeniser's files in the folder.
            model["text_cfg"]["hf_tokenizer_name"] = "clip".into();
        }
        if quick {
            model["quick_gelu"] = true.into();
        }
        if !plain {
            model["custom_text"] = true.into();
        }
        Ok(json!({
            "model_cfg": model,
            "preprocess_cfg":
                self.config.preprocess.to_open_clip(self.config.mean, self.config.std, notes),
        }))
    }

    /// `config.json` of a timm hub folder: an architecture of the right build, and every size.
    fn timm(&self, notes: &mut Vec<String>) -> Result<Value, ModelError> {
        let v = &self.config.vision;
        let pool = if v.pool == Pool::Cls { "token" } else { "avg" };
        let classes = if v.head == Head::None { 0 } else { v.out };
        let mut args = json!({
            "img_size": v.image_size,
            "patch_size": v.patch_size,
            "embed_dim": v.width,
            "depth": v.depth,
            "num_heads": v.heads,
            "mlp_ratio": ratio(v.hidden, v.width),
            "num_classes": classes,
            "global_pool": pool,
        });
        let clip_norms = v.norm_pre && v.eps == 1e-5;
        let usual_norms = !v.norm_pre && v.eps == 1e-6;
        let beit = v.layer_scale || v.rel_pos != RelPos::None || !v.abs_pos;
        let name = match v.ffn {
            Ffn::SwiGlu if !usual_norms || beit || v.post_norm || !v.rope => None,
            Ffn::SwiGlu if !v.ffn_norm => Some("eva02_tiny_patch14_224"),
            Ffn::SwiGlu if v.attn_norm => Some("eva02_base_patch16_clip_224"),
            Ffn::SwiGlu => Some("eva02_base_patch14_224"),
            Ffn::QuickGelu => {
                (v.k_bias && clip_norms).then_some("vit_base_patch16_clip_quickgelu_224")
            }
            Ffn::Gelu if v.k_bias && clip_norms => Some("vit_base_patch16_clip_224"),
            Ffn::Gelu if v.k_bias && usual_norms => Some("vit_base_patch16_224"),
            Ffn::Gelu if v.k_bias || !usual_norms => None,
            Ffn::Gelu if v.post_norm => (!beit).then_some("eva02_enormous_patch14_clip_224"),
            Ffn::Gelu if beit => Some("beitv2_base_patch16_224"),
            Ffn::Gelu => Some("eva_giant_patch14_224"),
        };
        let name = name.ok_or_else(|| {
            ModelError::Config("timm has no architecture of this build".to_owned())
        })?;
        if name.starts_with("beit") {
            args["use_abs_pos_emb"] = v.abs_pos.into();
            args["use_rel_pos_bias"] = (v.rel_pos == RelPos::Blocks).into();
            args["use_shared_rel_pos_bias"] = (v.rel_pos == RelPos::Shared).into();
            args["init_values"] = if v.layer_scale { json!(1e-5) } else { Value::Null };
        } else if v.layer_scale {
            args["init_values"] = json!(1e-5);
        }
        let mut pretrained = json!({
            "custom_load": false,
            "input_size": [3, v.image_size, v.image_size],
            "fixed_input_size": true,
            "mean": self.config.mean,
            "std": self.config.std,
            "num_classes": classes,
            "pool_size": Value::Null,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        });
        self.config.preprocess.to_timm(&mut pretrained, self.config.mean, notes);
        Ok(json!({
            "architecture": name,
            "num_classes": classes,
            "num_features": v.width,
            "global_pool": pool,
            "model_args": args,
            "pretrained_cfg": pretrained,
        }))
    }

    /// `config.json` of a CLIPModel.
    fn hugging_face(&self) -> Result<Value, ModelError> {
        let v = &self.config.vision;
        let t = self.text_config("hf")?;
        let activation = |quick: bool| if quick { "quick_gelu" } else { "gelu" };
        if v.layer_scale {
            return Err(ModelError::Config("CLIPModel knows no layer scale".to_owned()));
        }
        Ok(json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.config.embed_dim,
            "logit_scale_init_value": 2.6592,
            "vision_config": {
                "model_type": "clip_vision_model",
                "image_size": v.image_size,
                "patch_size": v.patch_size,
                "hidden_size": v.width,
                "intermediate_size": v.hidden,
                "num_hidden_layers": v.depth,
                "num_attention_heads": v.heads,
                "projection_dim": self.config.embed_dim,
                "hidden_act": activation(v.ffn == Ffn::QuickGelu),
                "layer_norm_eps": v.eps,
            },
            "text_config": {
                "model_type": "clip_text_model",
                "max_position_embeddings": t.context_length,
                "vocab_size": t.vocab_size,
                "hidden_size": t.width,
                "intermediate_size": 4 * t.width,
                "num_hidden_layers": t.layers,
                "num_attention_heads": t.heads,
                "projection_dim": self.config.embed_dim,
                "hidden_act": activation(t.quick_gelu),
                "layer_norm_eps": 1e-5,
                // The two markers are a vocabulary's last tokens.
                "bos_token_id": t.vocab_size - 2,
                "eos_token_id": t.vocab_size - 1,
            },
        }))
    }

    /// `preprocessor_config.json`: resizing, cropping and normalisation in Hugging Face's words.
    fn preprocessor(&self, notes: &mut Vec<String>) -> Value {
        let side = self.config.vision.image_size;
        let mut config = json!({
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": true,
            "do_center_crop": true,
            "crop_size": {"height": side, "width": side},
            "do_convert_rgb": true,
            "do_rescale": true,
            "rescale_factor": 1.0 / 255.0,
            "processor_class": "CLIPProcessor",
            "do_normalize": true,
            "image_mean": self.config.mean,
            "image_std": self.config.std,
        });
        self.config.preprocess.to_hugging_face(&mut config, side, notes);
        config
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    let text = serde_json::to_string_pretty(value).expect("plain data") + "\n";
    write_atomically(path, text.as_bytes()).map_err(ModelError::io(path))
}

/// Whether CLIP's tokeniser has such a vocabulary.
fn has_tokenizer(t: &TextConfig) -> bool {
    (SMALLEST_VOCABULARY..=CLIP_VOCABULARY).contains(&t.vocab_size) && t.context_length >= 3
}

/// Whether texts are CLIP's own tokens, as many as CLIP's.
fn clips_texts(t: &TextConfig) -> bool {
    (t.vocab_size, t.context_length) == (CLIP_VOCABULARY, CLIP_CONTEXT)
}

/// Whether two nets differ in nothing but the head and how they are trained.
fn alike(a: &VitConfig, b: &VitConfig) -> bool {
    let VitConfig { out, head, drop_path, patch_grad, .. } = *b;
    VitConfig { out, head, drop_path, patch_grad, ..a.clone() } == *b
}

/// A number that gives `hidden` when `width` is multiplied by it and the result is cut to an integer.
fn ratio(hidden: i64, width: i64) -> f64 {
    match hidden % width {
        0 => (hidden / width) as f64,
        _ => (hidden as f64 + 0.5) / width as f64,
    }
}

/// A text tower's sizes as open_clip and EVA-CLIP name them.
fn text_sizes(t: &TextConfig) -> Value {
    json!({
        "context_length": t.context_length,
        "vocab_size": t.vocab_size,
        "width": t.width,
        "heads": t.heads,
        "layers": t.layers,
    })
}
