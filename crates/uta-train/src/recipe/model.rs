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
    /// The vision transformer.
    pub vision: VitConfig,
    /// The text tower (contrastive).
    pub text: Option<TextConfig>,
    /// Whether `vision.out` isn't written, so that it is the width of what the model is trained to agree with.
    out_follows: bool,
}

impl Model {
    /// Takes `out`, the width of a teacher or a text tower, unless another was written.
    pub fn follow(&mut self, out: i64) {
        if self.out_follows {
            (self.vision.out, self.out_follows) = (out, false);
        }
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
        let text: Option<TextConfig> = table
            .remove("text")
            .map(|text| text.try_into().map_err(|e| format!("model.text: {}", brief(&e))))
            .transpose()?;
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
        Ok(Model { init, vision, text, out_follows })
    }
}

impl From<Model> for Table {
    fn from(model: Model) -> Table {
        let plain = "sizes are plain numbers and words";
        let mut table = Table::try_from(model.vision).expect(plain);
        if model.out_follows {
            table.remove("out");
        }
        table.insert("init".into(), model.init.into());
        if let Some(text) = model.text {
            table.insert("text".into(), Value::try_from(text).expect(plain));
        }
        table
    }
}
