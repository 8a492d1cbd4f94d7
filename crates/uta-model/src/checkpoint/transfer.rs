//! Weights for the start of a net from another that is trained already: what fits is copied, what belongs to another grid of
//! patches is resized, and what the other net hasn't stays as it starts.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use tch::{Tensor, no_grad};

use super::resize::fitted;
use crate::{Clip, ModelError, Parameter};

/// The most names shown of each list.
const SHOWN: usize = 6;

/// Report on a net's tensors, by name, after it started from another net.
#[derive(Debug, Default, PartialEq)]
pub struct Transfer {
    /// Copied as they are.
    pub taken: Vec<String>,
    /// Copied after they were resized: name, shape in the other net, shape here.
    pub resized: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// Left as they started, because the other net has none of that name, or a head of another size.
    pub left: Vec<String>,
    /// Tensors of the other net that have no place here.
    pub unused: Vec<String>,
}

impl Display for Transfer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let tensors = if self.taken.len() == 1 { "tensor" } else { "tensors" };
        write!(f, "{} {tensors} taken as they are", self.taken.len())?;
        let resized = |(name, from, to): &(String, Vec<i64>, Vec<i64>)| {
            format!("{name} from {from:?} to {to:?}")
        };
        let resized: Vec<String> = self.resized.iter().map(resized).collect();
        for (what, names) in [
            ("resized", &resized),
            ("left as they started", &self.left),
            ("not used", &self.unused),
        ] {
            let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
            match names.len() {
                0 => {}
                count if count <= SHOWN => write!(f, "; {what}: {shown}")?,
                count => write!(f, "; {what}: {shown} and {} more", count - SHOWN)?,
            }
        }
        Ok(())
    }
}

impl Clip {
    /// Starts the encoders whose names begin with one of `towers` (`visual.`, `text.`) from those of another CLIP, which may be
    /// for another image or patch size: see [`transfer`].
    ///
    /// # Errors
    /// When depth, width or the build of blocks differ; nothing has been changed then.
    pub fn start_from(&self, other: &Clip, towers: &[&str]) -> Result<Transfer, ModelError> {
        let of_towers = |clip: &Clip| -> Vec<Parameter> {
            let mut parameters = clip.all_parameters();
            parameters.retain(|p| towers.iter().any(|tower| p.name.starts_with(tower)));
            parameters
        };
        transfer(&of_towers(self), &of_towers(other))
    }
}

/// Copies `theirs` into `ours`, by name.
///
/// Position embeddings, tables of relative positions and patch embeddings are resized as by [`Clip::resized`]; rotary tables
/// are no parameters, and computed for every grid. Where `theirs` has no tensor for an embedding, or for what follows the
/// blocks, ours stays as it is, and so does what follows the blocks if it has another shape: a head is of its task.
///
/// # Errors
/// When depth, width or the build of blocks differ; nothing has been changed then.
pub fn transfer(ours: &[Parameter], theirs: &[Parameter]) -> Result<Transfer, ModelError> {
    let mut by_name: BTreeMap<&str, &Parameter> =
        theirs.iter().map(|parameter| (parameter.name.as_str(), parameter)).collect();
    let mut report = Transfer::default();
    let mut copies: Vec<(&Tensor, Tensor)> = vec![];
    for Parameter { name, tensor, layer, .. } in ours {
        let follows = layer.id + 1 == layer.of;
        let Some(other) = by_name.remove(name.as_str()) else {
            if layer.id > 0 && !follows && !name.ends_with("relative_position_bias_table") {
                let message = format!("has no {name}, so that its blocks are of another build");
                return Err(ModelError::Config(message));
            }
            report.left.push(name.clone());
            continue;
        };
        if layer.of != other.layer.of {
            let tower = name.split('.').next().unwrap_or(name);
            let [here, there] = [layer.of, other.layer.of].map(|layers| layers - 2);
            let message = format!("{tower} has {there} blocks, and {here} here");
            return Err(ModelError::Config(message));
        }
        let here = tensor.size();
        let there = other.tensor.size();
        match fitted(name, &other.tensor, &here) {
            Some(fit) => {
                copies.push((tensor, fit));
                if here == there {
                    report.taken.push(name.clone());
                } else {
                    report.resized.push((name.clone(), there, here));
                }
            }
            None if follows => report.left.push(name.clone()),
            None => {
                let message = format!(
                    "{name} is {there:?}, and {here:?} here: another image or patch size can be had by resizing, another \
                     width can't"
                );
                return Err(ModelError::Config(message));
            }
        }
    }
    report.unused = by_name.into_keys().map(str::to_owned).collect();
    no_grad(|| {
        for (tensor, fit) in copies {
            tensor.shallow_clone().copy_(&fit);
        }
    });
    Ok(report)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tch::Device;

    use super::*;
    use crate::nets::testing::{seeded, small};
    use crate::{ClipConfig, Head, RelPos, VitConfig};

    fn net(change: impl FnOnce(&mut VitConfig)) -> Clip {
        let mut config = small();
        change(&mut config.vision);
        config.vision.check().unwrap();
        let vision = config.vision;
        let clip = Clip::new(&ClipConfig::new(vision, None), Device::Cpu);
        // Zeros and ones would be equal whoever wrote them.
        no_grad(|| {
            clip.variables().iter().for_each(|(_, tensor)| {
                let _ = tensor.shallow_clone().normal_(0.0, 1.0);
            });
        });
        clip
    }

    #[test]
    fn another_image_or_patch_size_is_resized_as_by_resized() {
        let _rng = seeded(0);
        let relative = |v: &mut VitConfig| {
            (v.rope, v.abs_pos, v.rel_pos) = (false, false, RelPos::Blocks);
        };
        let builds: [&dyn Fn(&mut VitConfig); 2] = [&|_| {}, &relative];
        for build in builds {
            let trained = net(|v| build(v));
            for (image_size, patch_size) in [(32, 8), (12, 6), (48, 16), (16, 8)] {
                let clip = net(|v| {
                    build(v);
                    (v.image_size, v.patch_size) = (image_size, patch_size);
                });
                let report = clip.start_from(&trained, &["visual."]).unwrap();
                let resized = trained.resized(image_size, patch_size).unwrap();
                assert_eq!(report.resized, resized.changed);
                assert_eq!(report.resized.is_empty(), (image_size, patch_size) == (16, 8));
                assert_eq!((report.left.len(), report.unused.len()), (0, 0));
                assert_eq!(clip.variables(), resized.clip.variables());
            }
        }
    }

    #[test]
    fn what_the_other_net_has_not_is_left_and_what_has_no_place_is_told() {
        let _rng = seeded(1);
        let trained = net(|v| v.attn_norm = true);
        let clip = net(|v| {
            v.mask_token = true;
            v.out = 12;
            v.image_size = 24;
        });
        let before: Vec<Tensor> = clip.variables().iter().map(|(_, t)| t.copy()).collect();
        let report = clip.start_from(&trained, &["visual."]).unwrap();
        assert_eq!(report.left, ["visual.head.bias", "visual.head.weight", "visual.mask_token"]);
        assert_eq!(
            report.to_string(),
            "24 tensors taken as they are; resized: visual.pos_embed from [1, 5, 16] to [1, 10, 16]; left as they started: \
             visual.head.bias, visual.head.weight, visual.mask_token; not used: visual.blocks.0.attn.inner_attn_ln.bias, \
             visual.blocks.0.attn.inner_attn_ln.weight"
        );
        for ((name, tensor), before) in clip.variables().iter().zip(&before) {
            assert_eq!(tensor == before, report.left.contains(name), "{name}");
        }
    }

    #[test]
    fn depth_width_and_build_are_refused_in_one_line_and_nothing_is_changed() {
        let _rng = seeded(2);
        let clip = net(|_| {});
        let before: Vec<Tensor> = clip.variables().iter().map(|(_, t)| t.copy()).collect();
        for (other, words) in [
            (net(|v| v.depth = 3), "visual has 3 blocks, and 1 here"),
            (net(|v| v.width = 32), "visual.blocks.0.attn.k_proj.weight is [32, 32], and [16, 16]"),
            (net(|v| v.hidden = 32), "another width can't"),
            (net(|v| v.ffn = crate::Ffn::Gelu), "blocks are of another build"),
            (net(|v| (v.head, v.out, v.width) = (Head::None, 8, 8)), "another width can't"),
        ] {
            let e = clip.start_from(&other, &["visual."]).unwrap_err().to_string();
            assert!(e.contains(words) && !e.contains('\n'), "{e}");
            assert!(clip.variables().iter().map(|(_, t)| t).eq(before.iter()));
        }
    }

    #[test]
    fn an_encoder_that_does_not_learn_is_started_too() {
        let _rng = seeded(3);
        let [trained, clip] = [(); 2].map(|()| Clip::new(&small(), Device::Cpu));
        for clip in [&trained, &clip] {
            clip.variables().iter().for_each(|(_, t)| drop(t.set_requires_grad(false)));
        }
        let report = clip.start_from(&trained, &["text."]).unwrap();
        assert!(report.taken.len() > 10 && report.taken.iter().all(|n| n.starts_with("text.")));
        let text = |clip: &Clip| -> Vec<Tensor> {
            let all = clip.variables().into_iter();
            all.filter(|(name, _)| name.starts_with("text.")).map(|(_, t)| t).collect()
        };
        assert_eq!(text(&clip), text(&trained));
    }
}
