//! Which icon of which style shows which emoji: the sets joined into concepts, and the words that go with them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Deserialize;

use super::raster::Icon;

/// An emoji without U+FE0F, which asks for colour and tells no emoji from another; sets disagree on where to write it.
type CodePoints = Vec<u32>;

/// Reads `1F468-200D-1F4BB`, in either case and with or without leading zeros.
fn code_points(hexcode: &str) -> Option<CodePoints> {
    let all: Result<CodePoints, _> =
        hexcode.split('-').map(|h| u32::from_str_radix(h, 16)).collect();
    all.ok().map(|all| all.into_iter().filter(|&c| c != 0xFE0F).collect())
}

/// Author and licence of a set, from its `info.json`.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Info {
    pub name: String,
    pub author: Author,
    pub license: License,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Author {
    pub name: String,
    pub url: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct License {
    pub title: String,
    pub spdx: String,
    pub url: String,
}

/// One iconify package: `icons.json`, `chars.json`, `info.json`.
pub(super) struct IconSet {
    pub style: &'static str,
    pub info: Info,
    icons: Icons,
    /// Names by code point; empty where the package has no such table.
    chars: BTreeMap<CodePoints, String>,
}

#[derive(Deserialize)]
struct Icons {
    icons: BTreeMap<String, Entry>,
    #[serde(default)]
    aliases: BTreeMap<String, Entry>,
    #[serde(flatten)]
    defaults: Frame,
}

/// An icon (has a body) or an alias (has a parent).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    body: Option<String>,
    parent: Option<String>,
    #[serde(flatten)]
    frame: Frame,
    #[serde(default)]
    rotate: u8,
    #[serde(default)]
    h_flip: bool,
    #[serde(default)]
    v_flip: bool,
    /// Withdrawn upstream, or kept only so that an old name still works.
    #[serde(default)]
    hidden: bool,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Frame {
    left: Option<f32>,
    top: Option<f32>,
    width: Option<f32>,
    height: Option<f32>,
}

impl Frame {
    fn or(self, other: Frame) -> Frame {
        Frame {
            left: self.left.or(other.left),
            top: self.top.or(other.top),
            width: self.width.or(other.width),
            height: self.height.or(other.height),
        }
    }
}

impl IconSet {
    /// Parses the three files of a package. The error names the file.
    pub fn parse(
        style: &'static str,
        icons: &[u8],
        chars: &[u8],
        info: &[u8],
    ) -> Result<IconSet, String> {
        let names: BTreeMap<String, String> = json("chars.json", chars)?;
        let mut by_code = BTreeMap::new();
        for (hexcode, name) in names {
            let code = code_points(&hexcode)
                .ok_or_else(|| format!("chars.json: {hexcode:?} is no code point"))?;
            by_code.insert(code, name);
        }
        Ok(IconSet {
            style,
            info: json("info.json", info)?,
            icons: json("icons.json", icons)?,
            chars: by_code,
        })
    }

    /// An icon or alias of that name, with what the chain of aliases adds.
    fn icon(&self, name: &str) -> Option<Icon<'_>> {
        let (mut rotate, mut h_flip, mut v_flip, mut frame) = (0u8, false, false, Frame::default());
        let mut name = name;
        // A chain longer than this is a cycle.
        for _ in 0..8 {
            let entry = self.icons.icons.get(name).or_else(|| self.icons.aliases.get(name))?;
            rotate = (rotate + entry.rotate % 4) % 4;
            h_flip ^= entry.h_flip;
            v_flip ^= entry.v_flip;
            frame = frame.or(entry.frame);
            match (&entry.body, &entry.parent) {
                (Some(body), _) => {
                    let frame = frame.or(self.icons.defaults);
                    // 16 is iconify's own default.
                    let view = [
                        frame.left.unwrap_or(0.0),
                        frame.top.unwrap_or(0.0),
                        frame.width.unwrap_or(16.0),
                        frame.height.unwrap_or(16.0),
                    ];
                    return Some(Icon { body, view, h_flip, v_flip, rotate });
                }
                (None, Some(parent)) => name = parent,
                (None, None) => return None,
            }
        }
        None
    }

    /// The name of the icon at the end of a chain of aliases.
    fn root<'a>(&'a self, name: &'a str) -> &'a str {
        let mut name = name;
        for _ in 0..8 {
            match self.icons.aliases.get(name).and_then(|a| a.parent.as_deref()) {
                Some(parent) => name = parent,
                None => break,
            }
        }
        name
    }

    /// Names that still stand, icons before aliases.
    fn names(&self) -> impl Iterator<Item = &str> {
        let all = self.icons.icons.iter().chain(&self.icons.aliases);
        all.filter(|(_, entry)| !entry.hidden).map(|(name, _)| name.as_str())
    }
}

/// An emoji as emojibase describes it.
#[derive(Clone, Debug)]
pub(super) struct Emoji {
    /// Code points as emojibase writes them: `1F468-200D-1F4BB`.
    pub hexcode: String,
    pub label: String,
    pub tags: Vec<String>,
    pub group: String,
    pub subgroup: String,
    /// Its index in the class list.
    pub class: Option<u32>,
    code: CodePoints,
    /// A skin tone variant of the emoji before it: never a concept of its own.
    variant: bool,
}

#[derive(Deserialize)]
struct RawEmoji {
    hexcode: String,
    label: String,
    #[serde(default)]
    tags: Vec<String>,
    order: Option<u32>,
    group: Option<u32>,
    subgroup: Option<u32>,
    #[serde(default)]
    skins: Vec<RawEmoji>,
}

#[derive(Deserialize)]
struct Messages {
    groups: Vec<Message>,
    subgroups: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    message: String,
    key: String,
}

#[derive(Deserialize)]
struct Hierarchy {
    groups: BTreeMap<u32, String>,
    subgroups: BTreeMap<u32, String>,
}

/// Parses emojibase's `en/data.json`, `en/messages.json` and `meta/groups.json`: every emoji in emoji order, skin tone
/// variants after theirs. Letters that only stand for half a flag have no group and are left out.
pub(super) fn parse_emojibase(
    data: &[u8],
    messages: &[u8],
    groups: &[u8],
) -> Result<Vec<Emoji>, String> {
    let raw: Vec<RawEmoji> = json("en/data.json", data)?;
    let messages: Messages = json("en/messages.json", messages)?;
    let hierarchy: Hierarchy = json("meta/groups.json", groups)?;
    let named = |of: &BTreeMap<u32, String>, words: &[Message], index: Option<u32>| {
        let key = index.and_then(|i| of.get(&i));
        let words = key.and_then(|key| words.iter().find(|m| m.key == *key));
        words.map(|m| m.message.clone()).unwrap_or_default()
    };

    let mut raw: Vec<RawEmoji> = raw.into_iter().filter(|e| e.group.is_some()).collect();
    raw.sort_by_key(|e| e.order);
    let mut all = Vec::new();
    for base in &raw {
        let group = named(&hierarchy.groups, &messages.groups, base.group);
        let subgroup = named(&hierarchy.subgroups, &messages.subgroups, base.subgroup);
        for (i, one) in std::iter::once(base).chain(&base.skins).enumerate() {
            let code = code_points(&one.hexcode)
                .ok_or_else(|| format!("en/data.json: {:?} is no code point", one.hexcode))?;
            all.push(Emoji {
                hexcode: one.hexcode.clone(),
                label: one.label.clone(),
                tags: base.tags.clone(),
                group: group.clone(),
                subgroup: subgroup.clone(),
                class: None,
                code,
                variant: i > 0,
            });
        }
    }
    Ok(all)
}

fn json<T: for<'a> Deserialize<'a>>(file: &str, bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| format!("{file}: {e}"))
}

/// One picture to draw.
pub(super) struct Picture<'a> {
    pub icon: Icon<'a>,
    /// The icon's name in its set.
    pub name: &'a str,
    /// Index into [`Catalogue::emoji`]; none for an icon that is no emoji.
    pub emoji: Option<usize>,
}

/// All sets joined.
pub(super) struct Catalogue<'a> {
    /// Every emoji, in emoji order.
    pub emoji: Vec<Emoji>,
    /// Class index to name, unique.
    pub class_names: Vec<String>,
    /// For every set: its pictures that are classes, in class order; then other emoji; then the rest by name.
    pub pictures: Vec<Vec<Picture<'a>>>,
}

/// Joins the sets. A concept is an emoji without skin tone that at least `at_least` of the sets draw; the concepts, in
/// emoji order, are the classes.
pub(super) fn join<'a>(
    mut emoji: Vec<Emoji>,
    sets: &'a [IconSet],
    at_least: usize,
) -> Catalogue<'a> {
    let meanings = Meanings::learn(sets);
    let index: HashMap<CodePoints, usize> =
        emoji.iter().enumerate().map(|(i, e)| (e.code.clone(), i)).collect();

    // For every set: which of its names shows an emoji.
    let shown: Vec<BTreeMap<usize, &str>> = sets
        .iter()
        .map(|set| {
            let mut shown = BTreeMap::new();
            let mut show = |code: &CodePoints, name: &'a str| {
                let wrong = MISNAMED.contains(&(set.style, name));
                if let (Some(&i), Some(_), false) = (index.get(code), set.icon(name), wrong) {
                    shown.entry(i).or_insert(name);
                }
            };
            if set.chars.is_empty() {
                for name in set.names() {
                    if let Some(code) = meanings.of(name) {
                        show(code, name);
                    }
                }
            } else {
                set.chars.iter().for_each(|(code, name)| show(code, name));
            }
            shown
        })
        .collect();

    let mut class_names = Vec::new();
    for (i, one) in emoji.iter_mut().enumerate() {
        if !one.variant && shown.iter().filter(|s| s.contains_key(&i)).count() >= at_least {
            one.class = u32::try_from(class_names.len()).ok();
            class_names.push(i);
        }
    }
    let class_names = unique_labels(&class_names.iter().map(|&i| &emoji[i]).collect::<Vec<_>>());

    let pictures =
        sets.iter().zip(&shown).map(|(set, shown)| pictures(set, shown, &emoji)).collect();
    Catalogue { emoji, class_names, pictures }
}

/// Drawings of something else than the emoji of that name, found by looking at the sets.
const MISNAMED: [(&str, &str); 3] = [
    ("openmoji", "scroll"),  // a mouse wheel, from its own private code points
    ("emojione", "cricket"), // bat and ball, older than the insect
    ("noto-v1", "cricket"),
];

/// Which emoji a name means, learnt from the sets that map code points to names.
struct Meanings<'a> {
    /// Names in use. Most sets decide: a single one also has drawings of its own, under private code points and common
    /// names.
    current: HashMap<&'a str, CodePoints>,
    /// Names that those sets still know as aliases, where they leave no doubt.
    former: HashMap<&'a str, CodePoints>,
}

impl<'a> Meanings<'a> {
    fn learn(sets: &'a [IconSet]) -> Meanings<'a> {
        let mut votes: HashMap<&str, BTreeMap<&CodePoints, usize>> = HashMap::new();
        let mut former: HashMap<&str, BTreeSet<&CodePoints>> = HashMap::new();
        for set in sets {
            let mut by_root: HashMap<&str, Vec<&CodePoints>> = HashMap::new();
            for (code, name) in &set.chars {
                *votes.entry(name).or_default().entry(code).or_default() += 1;
                by_root.entry(set.root(name)).or_default().push(code);
            }
            // A flipped alias shows something else than its parent.
            let plain =
                set.icons.aliases.iter().filter(|(_, a)| !a.h_flip && !a.v_flip && a.rotate == 0);
            for (alias, _) in plain {
                former
                    .entry(alias)
                    .or_default()
                    .extend(by_root.get(set.root(alias)).into_iter().flatten());
            }
        }
        let winner = |votes: BTreeMap<&CodePoints, usize>| {
            let most = votes.values().copied().max()?;
            let mut winners = votes.into_iter().filter(|&(_, n)| n == most);
            winners.next().filter(|_| winners.next().is_none()).map(|(code, _)| code.clone())
        };
        let only = |codes: BTreeSet<&CodePoints>| {
            codes.first().filter(|_| codes.len() == 1).map(|&c| c.clone())
        };
        Meanings {
            current: votes
                .into_iter()
                .filter_map(|(name, votes)| Some((name, winner(votes)?)))
                .collect(),
            former: former
                .into_iter()
                .filter_map(|(name, codes)| Some((name, only(codes)?)))
                .collect(),
        }
    }

    fn of(&self, name: &str) -> Option<&CodePoints> {
        let look_up = |name: &str| self.current.get(name).or_else(|| self.former.get(name));
        // Two sets write `flag-for-flag-japan`, `flag-for-japan` and `flag-for-white-flag`. What is no flag without
        // that prefix stays unknown: `flag-for-turkey` is no bird.
        let flag = name.strip_prefix("flag-for-flag-").or(name.strip_prefix("flag-for-"));
        let other_spelling = flag.and_then(|flag| {
            let itself =
                look_up(flag).filter(|_| flag.split('-').any(|word| word.starts_with("flag")));
            look_up(&format!("flag-{flag}")).or(itself)
        });
        self.current.get(name).or(other_spelling).or_else(|| self.former.get(name))
    }
}

fn pictures<'a>(
    set: &'a IconSet,
    shown: &BTreeMap<usize, &'a str>,
    emoji: &[Emoji],
) -> Vec<Picture<'a>> {
    let mut known: Vec<(usize, &str)> = shown.iter().map(|(&i, &name)| (i, name)).collect();
    known.sort_by_key(|&(i, _)| (emoji[i].class.is_none(), i));
    let drawn: BTreeSet<&str> = known.iter().map(|&(_, name)| set.root(name)).collect();
    let rest = set.names().filter(|name| !drawn.contains(set.root(name)));
    let all = known.iter().map(|&(i, name)| (Some(i), name)).chain(rest.map(|name| (None, name)));
    all.filter_map(|(emoji, name)| Some(Picture { icon: set.icon(name)?, name, emoji })).collect()
}

/// Labels; the ones that occur twice get their subgroup, or where that is no help their code points, in brackets.
fn unique_labels(emoji: &[&Emoji]) -> Vec<String> {
    let twice = |labels: &[String]| {
        let mut seen = HashMap::new();
        labels.iter().for_each(|l| *seen.entry(l.clone()).or_insert(0) += 1);
        labels.iter().map(|l| seen[l] > 1).collect::<Vec<bool>>()
    };
    let mut labels: Vec<String> = emoji.iter().map(|e| e.label.clone()).collect();
    let additions: [fn(&Emoji) -> &str; 2] = [|e| &e.subgroup, |e| &e.hexcode];
    for addition in additions {
        let clash = twice(&labels);
        for ((label, e), _) in labels.iter_mut().zip(emoji).zip(clash).filter(|(_, clash)| *clash) {
            *label = format!("{} ({})", e.label, addition(e));
        }
    }
    labels
}

/// Sentences that a class name is put into for zero-shot classification.
pub(super) const TEMPLATES: [&str; 7] = [
    "{}",
    "a picture of {}",
    "an emoji of {}",
    "an icon of {}",
    "a drawing of {}",
    "a small cartoon of {}",
    "the symbol for {}",
];

/// Captions of a picture, four to ten: its label alone and in sentences, with tags, with its subgroup; tags alone.
pub(super) fn captions(label: &str, tags: &[String], subgroup: &str) -> Vec<String> {
    let mut lines: Vec<String> = TEMPLATES.iter().take(5).map(|t| t.replace("{}", label)).collect();
    // A tag that repeats the label's words says nothing more.
    let words: BTreeSet<&str> = label.split(|c: char| !c.is_alphanumeric()).collect();
    let tags: Vec<&str> =
        tags.iter().map(String::as_str).filter(|tag| !words.contains(tag)).collect();
    for some in tags.chunks(3).take(2) {
        lines.push(format!("{label}: {}", some.join(", ")));
    }
    if tags.len() > 1 {
        lines.push(tags[..tags.len().min(5)].join(", "));
    }
    if !subgroup.is_empty() {
        lines.push(format!("{label} ({subgroup})"));
    }
    lines
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn set(style: &'static str, icons: Value, chars: Value) -> IconSet {
        let info = json!({"name": style, "author": {"name": "A", "url": "u"},
            "license": {"title": "MIT", "spdx": "MIT", "url": "u"}});
        let bytes = |v: &Value| serde_json::to_vec(v).unwrap();
        IconSet::parse(style, &bytes(&icons), &bytes(&chars), &bytes(&info)).unwrap()
    }

    fn emojibase(data: Value) -> Vec<Emoji> {
        let messages = json!({"groups": [{"key": "g", "message": "things"}],
            "subgroups": [{"key": "s", "message": "tools"}, {"key": "t", "message": "toys"}]});
        let groups = json!({"groups": {"0": "g"}, "subgroups": {"0": "s", "1": "t"}});
        let bytes = |v: &Value| serde_json::to_vec(v).unwrap();
        parse_emojibase(&bytes(&data), &bytes(&messages), &bytes(&groups)).unwrap()
    }

    fn data() -> Value {
        json!([
            {"hexcode": "1F1E6", "label": "regional indicator A"},
            {"hexcode": "270B", "label": "hand", "order": 2, "group": 0, "subgroup": 0, "tags": ["palm"],
             "skins": [{"hexcode": "270B-1F3FB", "label": "hand: light"}]},
            {"hexcode": "2764-FE0F", "label": "heart", "order": 1, "group": 0, "subgroup": 0},
            {"hexcode": "1FA93", "label": "axe", "order": 3, "group": 0, "subgroup": 1},
            {"hexcode": "1F1EF-1F1F5", "label": "Japan", "order": 4, "group": 0, "subgroup": 1},
        ])
    }

    /// `(label or name, drawn by icon name)` of every picture of a set.
    fn shown(catalogue: &Catalogue<'_>, set: usize) -> Vec<(String, String)> {
        let label =
            |p: &Picture<'_>| p.emoji.map_or("-".to_owned(), |i| catalogue.emoji[i].label.clone());
        catalogue.pictures[set].iter().map(|p| (label(p), p.name.to_owned())).collect()
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn sets_join_by_code_point_and_nameless_ones_by_the_names_of_the_others() {
        let sets = [
            set(
                "a",
                json!({"icons": {"raised-hand": {"body": "1"}, "red-heart": {"body": "2"}, "axe": {"body": "3"},
                    "light-hand": {"body": "4"}}, "aliases": {"palm": {"parent": "raised-hand"}}}),
                json!({"270b": "raised-hand", "2764": "red-heart", "1fa93": "axe", "270b-1f3fb": "light-hand"}),
            ),
            // The same code points written otherwise, and a drawing of its own under a common name.
            set(
                "b",
                json!({"icons": {"hand": {"body": "1"}, "heart": {"body": "2"}, "axe": {"body": "3"}, "own": {"body": "4"}}}),
                json!({"270B-FE0F": "hand", "2764-fe0f": "heart", "e347": "axe"}),
            ),
            set(
                "c",
                json!({"icons": {"axe": {"body": "3"}, "flag-japan": {"body": "6"}}}),
                json!({"1fa93": "axe", "1f1ef-1f1f5": "flag-japan"}),
            ),
            set(
                "d",
                json!({"icons": {"palm": {"body": "1"}, "red-heart": {"body": "2"}, "axe": {"body": "3"},
                    "hand": {"body": "old", "hidden": true}, "unheard-of": {"body": "5"},
                    "flag-for-japan": {"body": "6"}, "flag-for-red-heart": {"body": "7"}}}),
                json!({}),
            ),
        ];
        let catalogue = join(emojibase(data()), &sets, 3);
        assert_eq!(
            catalogue.class_names,
            ["heart", "hand", "axe"],
            "emoji order, and no skin tones"
        );
        assert_eq!(
            shown(&catalogue, 0),
            pairs(&[
                ("heart", "red-heart"),
                ("hand", "raised-hand"),
                ("axe", "axe"),
                ("hand: light", "light-hand")
            ])
        );
        assert_eq!(
            shown(&catalogue, 1),
            pairs(&[("heart", "heart"), ("hand", "hand"), ("-", "axe"), ("-", "own")]),
            "a private code point is no emoji"
        );
        assert_eq!(
            shown(&catalogue, 3),
            pairs(&[
                ("heart", "red-heart"),
                ("hand", "palm"),
                ("axe", "axe"),
                ("Japan", "flag-for-japan"),
                ("-", "flag-for-red-heart"),
                ("-", "unheard-of")
            ]),
            "an alias of another set and other spellings of flags are understood, a hidden icon is not used"
        );
    }

    #[test]
    fn a_concept_needs_enough_styles() {
        let one =
            |style| set(style, json!({"icons": {"axe": {"body": "3"}}}), json!({"1fa93": "axe"}));
        let sets = [one("a"), one("b")];
        assert_eq!(join(emojibase(data()), &sets, 2).class_names, ["axe"]);
        assert!(join(emojibase(data()), &sets, 3).class_names.is_empty());
    }

    #[test]
    fn aliases_inherit_and_turn() {
        let set = set(
            "a",
            json!({"width": 32, "height": 32, "icons": {"left": {"body": "b", "height": 33}},
                "aliases": {"right": {"parent": "left", "hFlip": true}, "down": {"parent": "right", "rotate": 3},
                    "lost": {"parent": "nobody"}, "loop": {"parent": "pool"}, "pool": {"parent": "loop"}}}),
            json!({}),
        );
        let plain = Icon {
            body: "b",
            view: [0.0, 0.0, 32.0, 33.0],
            h_flip: false,
            v_flip: false,
            rotate: 0,
        };
        assert_eq!(set.icon("left"), Some(plain.clone()));
        assert_eq!(set.icon("right"), Some(Icon { h_flip: true, ..plain.clone() }));
        assert_eq!(set.icon("down"), Some(Icon { h_flip: true, rotate: 3, ..plain }));
        assert_eq!(set.icon("lost"), None);
        assert_eq!(set.icon("loop"), None);
    }

    #[test]
    fn equal_labels_become_unique() {
        let emoji = emojibase(json!([
            {"hexcode": "1", "label": "x", "order": 1, "group": 0, "subgroup": 0},
            {"hexcode": "2", "label": "x", "order": 2, "group": 0, "subgroup": 1},
            {"hexcode": "3", "label": "y", "order": 3, "group": 0, "subgroup": 0},
            {"hexcode": "4", "label": "y", "order": 4, "group": 0, "subgroup": 0},
            {"hexcode": "5", "label": "z", "order": 5, "group": 0, "subgroup": 0},
        ]));
        let labels = unique_labels(&emoji.iter().collect::<Vec<_>>());
        assert_eq!(labels, ["x (tools)", "x (toys)", "y (3)", "y (4)", "z"]);
    }

    #[test]
    fn captions_say_label_tags_and_subgroup() {
        let tags: Vec<String> =
            ["cat", "kitten", "pet", "whiskers", "feline"].map(String::from).to_vec();
        let lines = captions("cat face", &tags, "cat faces");
        assert_eq!(
            lines[4..],
            [
                "a drawing of cat face",
                "cat face: kitten, pet, whiskers",
                "cat face: feline",
                "kitten, pet, whiskers, feline",
                "cat face (cat faces)"
            ]
        );
        assert_eq!(captions("knot", &[], "").len(), 5);
    }
}
