//! Checkpoint families: the same networks under other names. An [`Adapter`] is a table from a family's keys to ours and
//! back; model code knows our names only.

use std::collections::BTreeMap;

use tch::Tensor;

/// How one checkpoint family names, and joins, the tensors of a network.
///
/// A pattern is a key whose segments may be `*`, any one segment, or at the end `**`, everything that is left; both sides
/// of a rule have the same of them in the same order. The first rule that matches a key decides.
#[derive(Debug)]
pub struct Adapter {
    /// The family.
    pub family: &'static str,
    rules: &'static [Rule],
    /// Their keys that carry nothing: buffers that are computed.
    ignored: &'static [&'static str],
}

/// Their pattern, and ours: where there are several, theirs is ours joined along the first dimension.
type Rule = (&'static str, &'static [&'static str]);

impl Adapter {
    /// This program's own files, and UTA's official ones, which store rotary tables besides.
    pub const UTA: Adapter = Adapter {
        family: "uta",
        rules: &[("**", &["**"])],
        ignored: &["visual.rope.*", "visual.blocks.*.attn.rope.*"],
    };

    /// The image encoder in timm's words where q, k and v are apart: EVA-02 B and L (`timm/models/eva.py`).
    pub const TIMM_EVA02: Adapter = Adapter {
        family: "timm eva02",
        rules: &[
            ("blocks.*.attn.q_proj.bias", &["visual.blocks.*.attn.q_bias"]),
            ("blocks.*.attn.v_proj.bias", &["visual.blocks.*.attn.v_bias"]),
            ("blocks.*.mlp.fc1_g.*", &["visual.blocks.*.mlp.w1.*"]),
            ("blocks.*.mlp.fc1_x.*", &["visual.blocks.*.mlp.w2.*"]),
            ("blocks.*.mlp.norm.*", &["visual.blocks.*.mlp.ffn_ln.*"]),
            ("blocks.*.mlp.fc2.*", &["visual.blocks.*.mlp.w3.*"]),
            ("**", &["visual.**"]),
        ],
        ignored: &["rope.*"],
    };

    /// The image encoder in timm's words where q, k and v are one: EVA-01 g, the paper's teacher.
    pub const TIMM_EVA01: Adapter = Adapter {
        family: "timm eva",
        rules: &[
            (
                "blocks.*.attn.qkv.weight",
                &[
                    "visual.blocks.*.attn.q_proj.weight",
                    "visual.blocks.*.attn.k_proj.weight",
                    "visual.blocks.*.attn.v_proj.weight",
                ],
            ),
            ("**", &["visual.**"]),
        ],
        ignored: &[],
    };

    /// Their tensors under our names. A key that no rule knows keeps its name, and a joined tensor that can't be cut
    /// gives fewer pieces: the reader of the result reports both.
    pub fn import(&self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        for (key, tensor) in tensors {
            if self.ignored.iter().any(|pattern| matches(pattern, &key).is_some()) {
                continue;
            }
            let rule =
                self.rules.iter().find_map(|(theirs, ours)| Some((matches(theirs, &key)?, ours)));
            match rule {
                None => drop(out.insert(key, tensor)),
                Some((parts, [ours])) => drop(out.insert(fill(ours, &parts), tensor)),
                Some((parts, ours)) => {
                    let pieces = tensor.chunk(ours.len() as i64, 0);
                    out.extend(ours.iter().map(|ours| fill(ours, &parts)).zip(pieces));
                }
            }
        }
        out
    }

    /// Our tensors under their names: what [`Adapter::import`] takes.
    ///
    /// # Panics
    /// When pieces of a joined tensor are missing: a network has all of them.
    pub fn export(&self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let mut pieces: BTreeMap<String, (usize, BTreeMap<usize, Tensor>)> = BTreeMap::new();
        for (key, tensor) in tensors {
            let found = self.rules.iter().find_map(|(theirs, ours)| {
                ours.iter().enumerate().find_map(|(place, pattern)| {
                    Some((fill(theirs, &matches(pattern, &key)?), place, ours.len()))
                })
            });
            let (theirs, place, count) = found.unwrap_or((key, 0, 1));
            pieces.entry(theirs).or_insert((count, BTreeMap::new())).1.insert(place, tensor);
        }
        let join = |(key, (count, pieces)): (String, (usize, BTreeMap<usize, Tensor>))| {
            assert_eq!(pieces.len(), count, "pieces of {key}");
            let mut pieces: Vec<Tensor> = pieces.into_values().collect();
            let joined = if count == 1 { pieces.remove(0) } else { Tensor::cat(&pieces, 0) };
            (key, joined)
        };
        pieces.into_iter().map(join).collect()
    }
}

/// What the `*` and `**` of `pattern` stand for in `key`.
fn matches<'a>(pattern: &str, key: &'a str) -> Option<Vec<&'a str>> {
    let mut found = Vec::new();
    let mut rest = Some(key);
    for part in pattern.split('.') {
        let left = rest?;
        if part == "**" {
            found.push(left);
            return Some(found);
        }
        let (segment, after) = match left.split_once('.') {
            Some((segment, after)) => (segment, Some(after)),
            None => (left, None),
        };
        match part {
            "*" => found.push(segment),
            _ if part == segment => {}
            _ => return None,
        }
        rest = after;
    }
    rest.is_none().then_some(found)
}

/// `pattern` with its `*` and `**` filled in.
fn fill(pattern: &str, parts: &[&str]) -> String {
    let mut parts = parts.iter();
    let segments = pattern.split('.').map(|segment| match segment {
        "*" | "**" => parts.next().expect("both sides of a rule have as many"),
        other => other,
    });
    segments.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::layers::testing::seeded;
    use crate::{Clip, ClipConfig, Ffn, VitConfig};
    use tch::Device;

    fn tensors(ffn: Ffn) -> BTreeMap<String, Tensor> {
        let vision = VitConfig {
            image_size: 16,
            patch_size: 8,
            width: 16,
            depth: 2,
            heads: 2,
            hidden: 24,
            out: 8,
            ffn,
            ..VitConfig::preset("uta-b14").unwrap()
        };
        let _rng = seeded(0);
        let clip = Clip::new(&ClipConfig::new(vision, None), Device::Cpu);
        clip.variables().into_iter().collect()
    }

    fn copy(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        tensors.iter().map(|(key, tensor)| (key.clone(), tensor.shallow_clone())).collect()
    }

    #[test]
    fn every_family_gives_back_every_tensor_that_it_was_given() {
        for (adapter, ffn) in [
            (Adapter::UTA, Ffn::SwiGlu),
            (Adapter::UTA, Ffn::Gelu),
            (Adapter::TIMM_EVA02, Ffn::SwiGlu),
            (Adapter::TIMM_EVA01, Ffn::Gelu),
        ] {
            let ours = tensors(ffn);
            let again = adapter.import(adapter.export(copy(&ours)));
            assert!(again.keys().eq(ours.keys()), "{}", adapter.family);
            for (key, tensor) in &ours {
                assert_eq!(&again[key], tensor, "{} {key}", adapter.family);
            }
        }
    }

    #[test]
    fn names_are_timms() {
        let theirs = Adapter::TIMM_EVA02.export(tensors(Ffn::SwiGlu));
        for key in [
            "patch_embed.proj.weight",
            "blocks.1.attn.q_proj.bias",
            "blocks.1.attn.k_proj.weight",
            "blocks.1.mlp.fc1_g.weight",
            "blocks.1.mlp.fc1_x.bias",
            "blocks.1.mlp.norm.weight",
            "blocks.1.mlp.fc2.weight",
            "head.weight",
        ] {
            assert!(theirs.contains_key(key), "{key}");
        }
        let theirs = Adapter::TIMM_EVA01.export(tensors(Ffn::Gelu));
        assert_eq!(theirs["blocks.1.attn.qkv.weight"].size(), [48, 16]);
        assert!(
            theirs.contains_key("blocks.1.attn.q_bias")
                && theirs.contains_key("blocks.1.mlp.fc1.bias")
        );
    }

    #[test]
    fn stored_rotary_tables_are_ignored_and_unknown_names_are_kept() {
        let table = || Tensor::from(0f32);
        let import = |key: &str| {
            let found = Adapter::UTA.import([(key.to_owned(), table())].into());
            found.into_keys().next()
        };
        assert_eq!(import("visual.rope.freqs_cos"), None);
        assert_eq!(import("visual.blocks.11.attn.rope.freqs_sin"), None);
        assert_eq!(
            import("visual.blocks.11.attn.inner.weight").as_deref(),
            Some("visual.blocks.11.attn.inner.weight")
        );
    }

    #[test]
    fn patterns_match_whole_keys() {
        assert_eq!(matches("a.*.c", "a.1.c"), Some(vec!["1"]));
        assert_eq!(matches("a.*", "a.1.c"), None);
        assert_eq!(matches("a.**", "a.1.c"), Some(vec!["1.c"]));
        assert_eq!(matches("a.b.**", "a.b"), None);
        assert_eq!(matches("a.b", "a"), None);
    }
}
