//! Nets of every kind, told apart by `kind` in `config.json`.
//!
//! To add a kind: its name in [`NetConfig::KINDS`], a variant of [`NetConfig`] and of [`Net`], and a line in each `match` on
//! them, which the compiler asks for.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Tensor};

use super::clip::Clip;
use super::config::ClipConfig;
use crate::ModelError;

/// The sizes of a net of any kind: what `config.json` holds, with its `kind`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum NetConfig {
    /// An image encoder and, mostly, a text encoder of one space.
    Clip(ClipConfig),
}

impl NetConfig {
    /// The kinds, as `config.json` names them.
    pub const KINDS: [&str; 1] = ["clip"];

    /// The sizes that a `config.json` of this program holds. A file that doesn't say its kind is a CLIP's.
    ///
    /// # Errors
    /// In words that follow the name of the file: names the unknown kind and those that are known, or the field that is wrong.
    pub fn from_json(text: &str) -> Result<NetConfig, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let read = match value.get("kind") {
            None => serde_json::from_str(text).map(NetConfig::Clip),
            Some(Value::String(kind)) if NetConfig::KINDS.contains(&kind.as_str()) => {
                serde_json::from_str(text)
            }
            Some(kind) => {
                let known = NetConfig::KINDS.join(", ");
                return Err(format!("kind = {kind}: there is no such net here; known: {known}"));
            }
        };
        read.map_err(|e| e.to_string())
    }

    /// As JSON, for `config.json`.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).expect("sizes are plain data")
    }

    /// The kind, as `config.json` names it.
    pub fn kind(&self) -> &'static str {
        match self {
            NetConfig::Clip(_) => "clip",
        }
    }

    /// The number of parameters.
    pub fn parameters(&self) -> i64 {
        match self {
            NetConfig::Clip(config) => config.parameters(),
        }
    }

    /// Checks that the sizes make a network.
    ///
    /// # Errors
    /// Names the size that makes none, and what is allowed.
    pub fn check(&self) -> Result<(), ModelError> {
        match self {
            NetConfig::Clip(config) => config.check(),
        }
    }

    /// The net without weights, because a checkpoint follows.
    pub(crate) fn blank(&self, device: Device) -> Net {
        match self {
            NetConfig::Clip(config) => Net::Clip(Clip::blank(config, device)),
        }
    }
}

/// A net of any kind, as a checkpoint holds it.
///
/// An image encoder alone, as MAE's and BEiT's, is a [`Clip`] without a text encoder.
#[derive(Debug)]
pub enum Net {
    /// An image encoder and, mostly, a text encoder of one space.
    Clip(Clip),
}

impl Net {
    /// All variables, sorted by key.
    pub fn variables(&self) -> Vec<(String, Tensor)> {
        match self {
            Net::Clip(clip) => clip.variables(),
        }
    }

    /// Keeps what was assumed while the net was read.
    pub(crate) fn note(&mut self, notes: Vec<String>) {
        match self {
            Net::Clip(clip) => clip.notes = notes,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nets::testing::small;

    #[test]
    fn a_configuration_says_its_kind_and_one_without_is_a_clips() {
        let config = NetConfig::Clip(small());
        let mut json = config.to_json();
        assert_eq!(json["kind"], "clip");
        assert_eq!(NetConfig::from_json(&json.to_string()).unwrap(), config);
        json.as_object_mut().unwrap().remove("kind");
        assert_eq!(NetConfig::from_json(&json.to_string()).unwrap(), config);
        assert_eq!(NetConfig::KINDS, [config.kind()]);
    }

    #[test]
    fn kinds_and_fields_that_are_not_known_are_named() {
        let json = NetConfig::Clip(small()).to_json();
        for (key, value, words) in [
            ("kind", "hologram", "kind = \"hologram\": there is no such net here; known: clip"),
            ("depht", "3", "unknown field `depht`"),
        ] {
            let mut json = json.clone();
            json[key] = value.into();
            let e = NetConfig::from_json(&json.to_string()).unwrap_err();
            assert!(e.contains(words), "{e}");
        }
        let e = NetConfig::from_json("{\"kind\": 3}").unwrap_err();
        assert!(e.contains("kind = 3"), "{e}");
    }
}
