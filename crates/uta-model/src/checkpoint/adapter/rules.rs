//! The rules by which a checkpoint family's names become ours, and ours theirs.

use std::collections::BTreeMap;

use tch::Tensor;

use super::layout::Layout;
use crate::VitConfig;

/// The names that one checkpoint family has for the tensors of a network, and how it joins and transposes them.
#[derive(Debug)]
pub struct Adapter {
    /// The family.
    pub family: &'static str,
    /// The layout it belongs to.
    pub layout: Layout,
    /// Signs by which a file of this family is told from others; the first family of [`Adapter::ALL`] that shows all of its signs is
    /// it.
    pub(super) signs: &'static [Sign],
    /// Whether the family has names for such an image encoder.
    pub(super) expresses: fn(&VitConfig) -> bool,
    /// Parts of the net. The first part whose prefix and one of whose rules match a key decides, in both directions.
    pub(super) parts: &'static [Part],
    /// Patterns of their keys that are left out: buffers that are computed, and parts of pre-training.
    pub(super) ignored: &'static [&'static str],
}

#[derive(Debug)]
pub(super) enum Sign {
    /// There is such a key.
    Has(&'static str),
    /// The first tensor has twice as many rows as the second has columns: a gate and its value packed together.
    Packed(&'static str, &'static str),
}
pub(super) use Sign::{Has, Packed};

/// A part of the net: their prefix, ours, and the rules for what follows the prefix.
pub(super) type Part = (&'static str, &'static str, &'static [Rule]);

/// Their names, ours, and how the tensors differ. One side may have several names: the other is theirs joined along the
/// first dimension.
///
/// A name is a pattern whose segments may be `*`, any one segment, or at the end `**`, everything that is left; all names
/// of a rule have the same of them in the same order.
pub(super) type Rule = (&'static [&'static str], &'static [&'static str], Form);

#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// No difference.
    Same,
    /// Ours has this many leading dimensions of size 1 more.
    Batched(usize),
    /// Ours is the transpose.
    Transposed,
}
pub(super) use Form::{Batched, Same, Transposed};

pub(super) const QKV: Rule = (
    &["blocks.*.attn.qkv.weight"],
    &["blocks.*.attn.q_proj.weight", "blocks.*.attn.k_proj.weight", "blocks.*.attn.v_proj.weight"],
    Same,
);

pub(super) const QKV_BIAS: Rule = (
    &["blocks.*.attn.qkv.bias"],
    &["blocks.*.attn.q_bias", "blocks.*.attn.k_bias", "blocks.*.attn.v_bias"],
    Same,
);

pub(super) const ANY: Rule = (&["**"], &["**"], Same);

pub(super) const SAME: &[Rule] = &[ANY];

/// q, k and v are one, and so are a SwiGLU's gate and value: EVA-01, bigE, EVA-02 Ti and S, BEiT.
pub(super) const FUSED: &[Rule] =
    &[QKV, (&["blocks.*.mlp.w12.*"], &["blocks.*.mlp.w1.*", "blocks.*.mlp.w2.*"], Same), ANY];

pub(super) const TEXT: Part = ("text.", "text.", SAME);

pub(super) const SCALE: Part = ("", "", &[(&["logit_scale"], &["logit_scale"], Same)]);

impl Adapter {
    /// Their tensors under our names, as views, except for those that have to be joined. A key that no rule knows keeps its name, as
    /// does a tensor that can't be cut or transposed: the reader of the result reports them.
    pub fn import(&self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        let mut joints = BTreeMap::new();
        for (key, tensor) in tensors {
            if self.ignored.iter().any(|pattern| matches(pattern, &key).is_some()) {
                continue;
            }
            let Some(found) = self.rule(&key, |part| part.0, |rule| rule.0) else {
                out.insert(key, tensor);
                continue;
            };
            let ours = found.names(found.part.1, found.rule.1);
            if found.rule.0.len() > 1 {
                let names = found.names(found.part.0, found.rule.0);
                let joint: &mut Joint = joints.entry(ours[0].clone()).or_insert(Joint::of(names));
                joint.pieces[found.place] = Some(tensor);
                continue;
            }
            let pieces = cut(&tensor, ours.len()).and_then(|pieces| {
                pieces.iter().map(|piece| reshaped(piece, found.rule.2)).collect::<Option<Vec<_>>>()
            });
            match pieces {
                // Their second tensor for one of ours keeps its name.
                Some(pieces) if !ours.iter().any(|name| out.contains_key(name)) => {
                    out.extend(ours.into_iter().zip(pieces));
                }
                _ => drop(out.insert(key, tensor)),
            }
        }
        for (name, joint) in joints {
            joint.join(name, &mut out);
        }
        out
    }

    /// Our tensors under their names: what [`Adapter::import`] takes.
    ///
    /// # Panics
    /// When pieces of a joined tensor are missing: a network has all of them.
    pub fn export(&self, tensors: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        let mut joints = BTreeMap::new();
        for (key, tensor) in tensors {
            let Some(found) = self.rule(&key, |part| part.1, |rule| rule.1) else {
                out.insert(key, tensor);
                continue;
            };
            let theirs = found.names(found.part.0, found.rule.0);
            if found.rule.1.len() > 1 {
                let names = found.names(found.part.1, found.rule.1);
                let joint: &mut Joint = joints.entry(theirs[0].clone()).or_insert(Joint::of(names));
                joint.pieces[found.place] = Some(tensor);
                continue;
            }
            let tensor = match found.rule.2 {
                Same => tensor,
                Batched(n) => (0..n).fold(tensor, |t, _| t.squeeze_dim(0)),
                Transposed => tensor.transpose(0, 1).contiguous(),
            };
            let pieces = cut(&tensor, theirs.len()).expect("a network's tensors can be cut");
            out.extend(theirs.into_iter().zip(pieces));
        }
        for (name, joint) in joints {
            assert!(joint.pieces.iter().all(Option::is_some), "pieces of {name}");
            joint.join(name, &mut out);
        }
        out
    }

    /// The names and shapes that a file of this family has for our tensor `name` of this shape: several where ours is theirs
    /// joined. A name that no rule knows is theirs already.
    pub(crate) fn theirs(&self, name: &str, shape: &[i64]) -> Vec<(String, Vec<i64>)> {
        let Some(found) = self.rule(name, |part| part.1, |rule| rule.1) else {
            return vec![(name.to_owned(), shape.to_vec())];
        };
        let theirs = found.rule.0.len() as i64;
        let ours = found.rule.1.len() as i64;
        let mut shape = match found.rule.2 {
            Same => shape.to_vec(),
            Batched(n) => shape.iter().skip(n).copied().collect(),
            Transposed => shape.iter().rev().copied().collect(),
        };
        if let Some(rows) = shape.first_mut() {
            *rows = *rows * ours / theirs;
        }
        found
            .names(found.part.0, found.rule.0)
            .into_iter()
            .map(|name| (name, shape.clone()))
            .collect()
    }

    /// The first rule one of whose names, on the side that `prefix` and `side` pick, is `key`.
    fn rule<'a>(
        &self,
        key: &'a str,
        prefix: fn(&Part) -> &'static str,
        side: fn(&Rule) -> &'static [&'static str],
    ) -> Option<Match<'a>> {
        self.parts.iter().find_map(|part| {
            let rest = key.strip_prefix(prefix(part))?;
            part.2.iter().find_map(|rule| {
                side(rule).iter().enumerate().find_map(|(place, pattern)| {
                    Some(Match { part, rule, place, parts: matches(pattern, rest)? })
                })
            })
        })
    }
}

/// A rule that matches a key.
struct Match<'a> {
    part: &'static Part,
    rule: &'static Rule,
    /// Which of the rule's names it is.
    place: usize,
    /// The segments that its `*` and `**` stand for.
    parts: Vec<&'a str>,
}

impl Match<'_> {
    fn names(&self, prefix: &str, patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(|pattern| prefix.to_owned() + &fill(pattern, &self.parts)).collect()
    }
}

/// A tensor that is being put together.
struct Joint {
    names: Vec<String>,
    pieces: Vec<Option<Tensor>>,
}

impl Joint {
    fn of(names: Vec<String>) -> Joint {
        let pieces = names.iter().map(|_| None).collect();
        Joint { names, pieces }
    }

    /// Joined under `name`, or the pieces under their own names where they don't fit together.
    fn join(self, name: String, out: &mut BTreeMap<String, Tensor>) {
        let whole: Option<Vec<&Tensor>> = self.pieces.iter().map(Option::as_ref).collect();
        match whole.map(|pieces| Tensor::f_cat(&pieces, 0)) {
            Some(Ok(joined)) => drop(out.insert(name, joined)),
            _ => out
                .extend(self.names.into_iter().zip(self.pieces).filter_map(|(n, p)| Some((n, p?)))),
        }
    }
}

/// `tensor` in `count` equal parts along its first dimension.
fn cut(tensor: &Tensor, count: usize) -> Option<Vec<Tensor>> {
    let count = count as i64;
    match tensor.size().first() {
        _ if count == 1 => Some(vec![tensor.shallow_clone()]),
        Some(rows) if rows % count == 0 && *rows > 0 => Some(tensor.chunk(count, 0)),
        _ => None,
    }
}

/// Their tensor in our form; `None` where it has none.
fn reshaped(tensor: &Tensor, form: Form) -> Option<Tensor> {
    match form {
        Same => Some(tensor.shallow_clone()),
        Batched(n) => Some((0..n).fold(tensor.shallow_clone(), |t, _| t.unsqueeze(0))),
        Transposed => (tensor.dim() == 2).then(|| tensor.transpose(0, 1)),
    }
}

/// The segments that the `*` and `**` of `pattern` stand for in `key`; `None` where they don't match.
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

    #[test]
    fn patterns_match_whole_keys() {
        assert_eq!(matches("a.*.c", "a.1.c"), Some(vec!["1"]));
        assert_eq!(matches("a.*", "a.1.c"), None);
        assert_eq!(matches("a.**", "a.1.c"), Some(vec!["1.c"]));
        assert_eq!(matches("a.b.**", "a.b"), None);
        assert_eq!(matches("a.b", "a"), None);
    }
}
