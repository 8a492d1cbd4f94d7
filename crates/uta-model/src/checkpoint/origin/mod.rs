//! A user's model: its weights, the family whose names they have, and the build of the net. That comes from an architecture
//! that the user names, else from the configuration beside the weights, else from the tensors' shapes.

mod configs;
mod locate;
mod shapes;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Device, Tensor};

pub use self::locate::run_of;
use super::file::HEAD;
use super::hints;
use super::weights::Checkpoint;
use crate::nets::config::{IMAGENET_MEAN, IMAGENET_STD};
use crate::{
    Adapter, Clip, ClipConfig, ModelError, Net, NetConfig, Preprocess, TextConfig, VitConfig,
};

/// A net this many times larger than its file is refused before its names are compared.
const MAX_MISSING: i64 = 16;

/// A user's model: weights under this program's names, and the sizes of the net that they fill.
#[derive(Debug)]
pub struct Origin {
    /// The file that holds the weights.
    pub weights: PathBuf,
    /// The family whose names they have: [`Adapter::family`].
    pub family: &'static str,
    /// The net's kind and sizes.
    pub config: NetConfig,
    /// Assumptions about what neither the file nor its configuration tells, and why; for the user to read.
    pub notes: Vec<String>,
    checkpoint: Checkpoint,
}

impl Clip {
    /// Reads a CLIP from what a user has: see [`Origin::open`]. [`Clip::notes`] says what was assumed.
    ///
    /// # Errors
    /// Says what was looked for, what isn't known, or which names don't fit.
    pub fn load(path: &Path, device: Device) -> Result<Clip, ModelError> {
        Origin::open(path, None)?.into_clip(device)
    }

    /// Reads a CLIP whose net `arch` names: a preset, or a configuration file.
    ///
    /// # Errors
    /// Says what was looked for, what isn't known, or which names don't fit.
    pub fn load_as(path: &Path, arch: &str, device: Device) -> Result<Clip, ModelError> {
        Origin::open(path, Some(arch))?.into_clip(device)
    }
}

impl Origin {
    /// Finds out what is at `path`: a run directory or this program's folder, an open_clip hub folder, a folder of Hugging
    /// Face or timm, or a file of weights (safetensors, or PyTorch's own). `arch` names a preset or a configuration file,
    /// and stands above what lies beside the weights.
    ///
    /// # Errors
    /// Says what was looked for, what isn't known, or what the file alone can't tell.
    pub fn open(path: &Path, arch: Option<&str>) -> Result<Origin, ModelError> {
        let (weights, beside) = locate::locate(path)?;
        let checkpoint = Checkpoint::read(&weights)?;
        let stated = match arch {
            Some(arch) => Config::arch(arch, &checkpoint)?,
            None => beside.as_deref().map(Config::read).transpose()?,
        };
        if let Some(Config::Foreign(file, Format::OpenClip, value)) = &stated {
            // Before names are compared: what kind of net it is says more than which names it hasn't.
            configs::known_to_us(value).map_err(|message| ModelError::format(file, message))?;
        }
        let detected = Adapter::detect(&checkpoint.tensors);
        let adapter = match (detected, &stated) {
            (Some(adapter), _) => adapter,
            (None, Some(Config::Own(_))) => &Adapter::UTA,
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
            Some(Config::Own(mut config)) => {
                match &mut config {
                    NetConfig::Clip(clip) => {
                        // A student's checkpoint holds what is trained, and that is its image encoder.
                        let trained = weights.parent().is_some_and(|dir| run_of(dir).is_some());
                        let text = |key: &String| key.starts_with("text.");
                        if trained && !checkpoint.tensors.keys().any(text) {
                            clip.text = None;
                        }
                    }
                }
                config
            }
            stated => {
                let mut config = shapes::infer(&weights, &checkpoint.tensors)?;
                match &stated {
                    Some(Config::Foreign(file, format, value)) => {
                        let read = match format {
                            Format::OpenClip => {
                                configs::open_clip(value, &mut config);
                                Ok(())
                            }
                            Format::HuggingFace => configs::hugging_face(value, &mut config),
                            Format::Timm => configs::timm(value, &mut config),
                        };
                        read.map_err(|message| ModelError::format(file, message))?;
                        let size = config.vision.image_size;
                        config.preprocess = match format {
                            Format::OpenClip => {
                                let cfg = &value["preprocess_cfg"];
                                Preprocess::from_open_clip(cfg, size, &mut notes)
                            }
                            Format::Timm => {
                                let cfg = configs::pretrained_cfg(value);
                                Preprocess::from_timm(cfg, size, config.mean, &mut notes)
                            }
                            Format::HuggingFace => {
                                configs::preprocessor(file, &mut config, &mut notes)?
                            }
                        };
                    }
                    _ => shapes::assume(&weights, openai, &mut config, &mut notes),
                }
                NetConfig::Clip(config)
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

    /// The sizes of a CLIP, which is what `needed_by`, a command or the like, has use for.
    ///
    /// # Errors
    /// When the net is of another kind.
    pub fn clip_config(&self, needed_by: &str) -> Result<&ClipConfig, ModelError> {
        match &self.config {
            NetConfig::Clip(config) => Ok(config),
            #[expect(unreachable_patterns, reason = "there is one kind so far")]
            _ => Err(self.of_another_kind("clip", needed_by)),
        }
    }

    /// A CLIP, its weights filled in on `device`.
    ///
    /// # Errors
    /// When the net is of another kind; lists missing, unexpected and mis-shaped names.
    pub fn into_clip(self, device: Device) -> Result<Clip, ModelError> {
        // Before its weights are read.
        self.clip_config("this")?;
        match self.into_net(device)? {
            Net::Clip(clip) => Ok(clip),
        }
    }

    fn of_another_kind(&self, needed: &'static str, by: &str) -> ModelError {
        let path = self.weights.clone();
        let found = self.config.kind();
        ModelError::Kind { path, found, by: by.into(), needed }
    }

    /// The net, its weights filled in on `device`.
    ///
    /// # Errors
    /// Lists missing, unexpected and mis-shaped names.
    pub fn into_net(self, device: Device) -> Result<Net, ModelError> {
        // A damaged or hostile configuration must not make the machine swap.
        let stored: i64 = self.tensors().values().map(|t| t.numel() as i64).sum();
        let wanted = self.config.parameters();
        if wanted / MAX_MISSING > stored {
            let message = format!("holds {stored} numbers, and the net has {wanted} parameters");
            return Err(ModelError::format(&self.weights, message));
        }
        let mut net = self.config.blank(device);
        self.checkpoint.fill(&net.variables())?;
        net.note(self.notes);
        Ok(net)
    }
}

/// A configuration that comes with the weights.
enum Config {
    /// This program's own, which has every size.
    Own(NetConfig),
    /// Another program's, which has some, and its file.
    Foreign(PathBuf, Format, Value),
}

/// The program that wrote a configuration.
#[derive(Clone, Copy)]
enum Format {
    OpenClip,
    HuggingFace,
    Timm,
}

/// Keys that tell whose configuration it is.
const FORMATS: [(&str, Format); 4] = [
    ("model_cfg", Format::OpenClip),
    ("vision_cfg", Format::OpenClip),
    ("vision_config", Format::HuggingFace),
    ("architecture", Format::Timm),
];

impl Config {
    fn read(path: &Path) -> Result<Config, ModelError> {
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
            Some((_, format)) => Ok(Config::Foreign(path.to_owned(), *format, value)),
            None => {
                let config = NetConfig::from_json(&text);
                config.map(Config::Own).map_err(|message| ModelError::format(path, message))
            }
        }
    }

    /// A preset by name, else a file. A preset's text encoder is taken where the weights have one.
    fn arch(arch: &str, checkpoint: &Checkpoint) -> Result<Option<Config>, ModelError> {
        let path = Path::new(arch);
        if path.is_file() {
            return Config::read(path).map(Some);
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
        if shapes::knows_no_clip(&config.vision) {
            (config.mean, config.std) = (IMAGENET_MEAN, IMAGENET_STD);
        }
        Ok(Some(Config::Own(NetConfig::Clip(config))))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tch::Kind;

    use super::*;
    use crate::nets::testing::{seeded, small};

    #[test]
    fn a_net_of_another_kind_is_refused_in_one_line_by_who_needs_it() {
        let dir = tempfile::tempdir().unwrap();
        let _rng = seeded(0);
        Clip::new(&small(), Device::Cpu).save(dir.path(), Kind::Float).unwrap();
        let origin = Origin::open(dir.path(), None).unwrap();
        origin.clip_config("uta eval zeroshot").unwrap();
        let e = origin.of_another_kind("classifier", "uta eval classify").to_string();
        assert!(e.ends_with("model.safetensors: is a clip; uta eval classify needs a classifier"));

        let config = dir.path().join("config.json");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("\"clip\"", "\"hologram\"")).unwrap();
        let e = Clip::load(dir.path(), Device::Cpu).unwrap_err().to_string();
        let words = "config.json: kind = \"hologram\": there is no such net here; known: clip";
        assert!(e.ends_with(words), "{e}");
    }
}
