//! The layouts that a checkpoint can be written as.

use crate::ModelError;

/// The layout that a checkpoint is written in. Each has one or more adapters, for nets of different build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// This program's own, which are UTA's official names: `config.json`, `model.safetensors` and, for PyTorch, a loader.
    Uta,
    /// open_clip's hub folder: `open_clip_config.json` and `open_clip_model.safetensors`.
    OpenClip,
    /// `eva_clip.pt`, and `eva_clip.json` for EVA-CLIP's factory; of a net with a mask token, EVA-02's pre-training's names.
    EvaClip,
    /// timm's hub folder: `config.json` and `model.safetensors`, the image encoder alone.
    Timm,
    /// Hugging Face's CLIPModel: `config.json` and `model.safetensors`.
    Hf,
}

impl Layout {
    /// All layouts, by the names that users give them.
    pub const ALL: [(&'static str, Layout); 5] = [
        ("uta", Layout::Uta),
        ("open-clip", Layout::OpenClip),
        ("eva-clip", Layout::EvaClip),
        ("timm", Layout::Timm),
        ("hf", Layout::Hf),
    ];
}

impl std::str::FromStr for Layout {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Layout, ModelError> {
        let found = Layout::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, layout)| *layout).ok_or_else(|| {
            let names: Vec<&str> = Layout::ALL.iter().map(|(known, _)| *known).collect();
            ModelError::Config(format!("no layout {name:?}; there are {}", names.join(", ")))
        })
    }
}
