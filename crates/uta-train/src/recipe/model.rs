//! `[model]`: the net that is trained.

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use uta_model::{TextConfig, VitConfig};

use super::check::brief;

/// `[model]`: a preset, or every size, or a preset with some sizes changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
pub struct Model {
    /// `"random"`, or a checkpoint (anything that `--model` takes) to start from.
    pub init: String,
    /// The vision transformer. Of a task that trains none it means nothing.
    pub vision: VitConfig,
    /// The text tower (contrastive, text-align).
    pub text: Option<TextConfig>,
    /// Whether `vision.out` isn't written, so that it is the width of what the model is trained to agree with.
    out_follows: bool,
    /// Whether nothing of the vision transformer is written; `vision` then means nothing.
    only_text: bool,
    /// Whether `text.out` isn't written.
    text_out_follows: bool,
}

/// CLIP's, where a recipe doesn't say.
const TEXT_DEFAULTS: [(&str, i64); 2] = [("context_length", 77), ("vocab_size", 49408)];

impl Model {
    /// Takes `out`, the width of a teacher or a text tower, unless another was written.
    pub fn follow(&mut self, out: i64) {
        if self.out_follows && !self.only_text {
            (self.vision.out, self.out_follows) = (out, false);
        }
    }

    /// As [`follow`](Model::follow), for the text tower.
    pub fn follow_text(&mut self, out: i64) {
        if let (true, Some(text)) = (self.text_out_follows, &mut self.text) {
            (text.out, self.text_out_follows) = (out, false);
        }
    }

    /// For tasks that train a vision transformer.
    ///
    /// # Errors
    /// When none is described, or the text tower's width isn't.
    pub(crate) fn needs_vision(&self) -> Result<(), String> {
        match (self.only_text, self.text_out_follows) {
            (true, _) => {
                Err("model: missing field `image_size`: give a preset, or every size".into())
            }
            (_, true) => Err("model.text: missing field `out`".into()),
            _ => Ok(()),
        }
    }

    /// For tasks that train a text tower alone.
    ///
    /// # Errors
    /// When none is described.
    pub(crate) fn needs_text(&self) -> Result<&TextConfig, String> {
        self.text
            .as_ref()
            .ok_or_else(|| "model.text: give a preset, or width, heads and layers".into())
    }
}

impl TryFrom<Table> for Model {
    type Error = String;

    fn try_from(mut table: Table) -> Result<Model, String> {
        let init = match table.remove("init") {
            None => "random".to_owned(),
            Some(Value::String(init)) => init,
            Some(other) => return Err(format!("model.init: {other} is no text")),
        };
        let out_follows = !table.contains_key("out");
        let text = table.remove("text").map(text_of).transpose()?;
        let text_out_follows = text.as_ref().is_some_and(|(_, follows)| *follows);
        let text = text.map(|(text, _)| text);
        // What is checked when the task is known.
        let only_text = table.is_empty();
        if only_text {
            table.insert("preset".into(), "uta-b14".into());
        }
        if let Some(text) = &text {
            text.check().map_err(|e| format!("model.text: {e}"))?;
        }
        let mut sizes = match table.remove("preset") {
            None => Table::new(),
            Some(Value::String(name)) => {
                let preset = VitConfig::preset(&name).map_err(|e| format!("model.preset: {e}"))?;
                Table::try_from(preset).map_err(|e| e.to_string())?
            }
            Some(other) => return Err(format!("model.preset: {other} is no text")),
        };
        sizes.extend(table);
        if let (false, Some(width)) = (sizes.contains_key("out"), sizes.get("width")) {
            sizes.insert("out".into(), width.clone());
        }
        let vision: VitConfig = sizes.try_into().map_err(|e| brief(&e))?;
        vision.check().map_err(|e| e.to_string())?;
        Ok(Model { init, vision, text, out_follows, only_text, text_out_follows })
    }
}

/// `[model.text]`, and whether its `out` isn't written.
fn text_of(text: Value) -> Result<(TextConfig, bool), String> {
    let wrong = |e: toml::de::Error| format!("model.text: {}", brief(&e));
    let mut text: Table = text.try_into().map_err(wrong)?;
    let follows = !text.contains_key("out");
    let mut sizes = match text.remove("preset") {
        None => Table::new(),
        Some(Value::String(name)) => {
            let preset =
                TextConfig::preset(&name).map_err(|e| format!("model.text.preset: {e}"))?;
            Table::try_from(preset).map_err(|e| e.to_string())?
        }
        Some(other) => return Err(format!("model.text.preset: {other} is no text")),
    };
    for (key, value) in TEXT_DEFAULTS {
        sizes.entry(key).or_insert(value.into());
    }
    sizes.extend(text);
    if let (true, Some(width)) = (follows, sizes.get("width").cloned()) {
        sizes.insert("out".into(), width);
    }
    Ok((sizes.try_into().map_err(wrong)?, follows))
}

impl From<Model> for Table {
    fn from(model: Model) -> Table {
        let plain = "sizes are plain numbers and words";
        let mut table = Table::try_from(model.vision).expect(plain);
        if model.only_text {
            table.clear();
        }
        if model.out_follows {
            table.remove("out");
        }
        table.insert("init".into(), model.init.into());
        if let Some(text) = model.text {
            let mut text = Table::try_from(text).expect(plain);
            if model.text_out_follows {
                text.remove("out");
            }
            table.insert("text".into(), text.into());
        }
        table
    }
}
