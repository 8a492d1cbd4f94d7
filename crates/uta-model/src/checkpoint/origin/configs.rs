//! Configurations of other programs: those that open_clip, Hugging Face and timm put beside weights.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::{ClipConfig, Ffn, ModelError, Pool, Preprocess, VitConfig};

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

/// Refuses settings that nets here haven't. `known` has the keys and the only value that each may have, as JSON.
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
pub(super) fn known_to_us(value: &Value) -> Result<(), String> {
    let model = value.get("model_cfg").unwrap_or(value);
    let vision = &model["vision_cfg"];
    let text = &model["text_cfg"];
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
pub(super) fn open_clip(value: &Value, config: &mut ClipConfig) {
    let model = value.get("model_cfg").unwrap_or(value);
    take(model, "embed_dim", &mut config.embed_dim);
    let quick = model["quick_gelu"].as_bool().unwrap_or(false);
    let vision = &model["vision_cfg"];
    let v = &mut config.vision;
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

/// Takes over the facts that the name of a timm architecture tells.
fn timm_name(name: &str, v: &mut VitConfig) {
    if name.contains("enormous") {
        v.post_norm = true;
    }
    if name.contains("quickgelu") {
        v.ffn = Ffn::QuickGelu;
    }
}

/// `config.json` of a CLIPModel (`transformers/models/clip/configuration_clip.py`); what it leaves out has the default there.
pub(super) fn hugging_face(value: &Value, config: &mut ClipConfig) -> Result<(), String> {
    let quick = |part: &Value| match part["hidden_act"].as_str().unwrap_or("quick_gelu") {
        "quick_gelu" => Ok(true),
        "gelu" => Ok(false),
        other => Err(format!("hidden_act = {other:?}: only quick_gelu and gelu are known here")),
    };
    take(value, "projection_dim", &mut config.embed_dim);
    let vision = &value["vision_config"];
    let v = &mut config.vision;
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

/// Resizing, cropping and normalisation, which Hugging Face keeps in a file of its own.
pub(super) fn preprocessor(
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
pub(super) fn timm(value: &Value, config: &mut ClipConfig) -> Result<(), String> {
    let args = &value["model_args"];
    let v = &mut config.vision;
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

/// timm's settings of pictures: in a part of their own or, in files of its first versions, among the rest.
pub(super) fn pretrained_cfg(value: &Value) -> &Value {
    value.get("pretrained_cfg").unwrap_or(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;
    use crate::TextConfig;

    /// Every configuration that open_clip 3.3.0 has, written by `tests/golden/open_clip_models.py`: the table of the book's
    /// page on formats.
    #[test]
    fn every_configuration_of_open_clip_is_known_or_refused_by_its_kind() {
        const MODELS: &str = include_str!("../../../../../tests/golden/open_clip_models.json");
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
