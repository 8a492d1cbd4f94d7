//! `cargo xtask house`: no two files of a crate import each other, and no crate reaches up.
//!
//! Files that import each other in a circle can be understood, tested and moved only together; so can crates. A folder's
//! `mod.rs` and the files below it are one module to this check: what passes between them is no circle.

mod paths;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use paths::{Import, imports};

/// The crates from the top down. A crate may depend on those of lower lines only.
const LAYERS: [&[&str]; 5] = [
    &["uta"],
    &["uta-train"],
    &["uta-eval"],
    &["uta-model", "uta-data"],
    &["uta-base", "torch-ext", "xtask"],
];

/// Checks the repository at `root`, and ends with an error that counts what is wrong; the findings go to standard error.
pub fn run(root: &Path) -> Result<()> {
    let packages = packages(root)?;
    let mut found = upward(&packages);
    let mut files = 0;
    for package in &packages {
        let source = Path::new(&package.manifest_path).with_file_name("src");
        let modules = modules(&source)?;
        files += modules.len();
        let shown = source.strip_prefix(root).unwrap_or(&source).to_owned();
        found.extend(circles(&modules).iter().map(|circle| circle.describe(&package.name, &shown)));
    }
    for finding in &found {
        eprintln!("{finding}\n");
    }
    ensure!(found.is_empty(), "what stands above is against the order of files and crates");
    eprintln!(
        "{files} files of {} crates: no circle of files, no crate reaches up",
        packages.len()
    );
    Ok(())
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// Where a crate of this repository lies; registries' crates have none.
    path: Option<String>,
}

/// The crates of the workspace, as cargo reads their manifests.
fn packages(root: &Path) -> Result<Vec<Package>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root)
        .output()
        .context("starting cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(metadata.packages)
}

/// A line for each dependency, of tests and build scripts too, on a crate that doesn't lie below.
fn upward(packages: &[Package]) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let mut found = Vec::new();
    for package in packages {
        let Some(from) = layer(&package.name) else {
            found.push(format!("{}: no layer of xtask/src/house/mod.rs names it", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.path.is_some()) {
            if layer(&dependency.name).is_some_and(|to| to <= from) {
                let (name, up) = (&package.name, &dependency.name);
                found.push(format!("{name} depends on {up}, which doesn't lie below it"));
            }
        }
    }
    found
}

/// The path of a module in its crate: `["report", "chart"]`. The root's is empty.
type Module = Vec<String>;

/// A file of a crate and the paths that it mentions.
struct Source {
    /// From the crate's `src`.
    file: PathBuf,
    imports: Vec<Import>,
}

/// The modules of the crate whose `src` is `source`. What lies in `src/bin` is programs of their own.
fn modules(source: &Path) -> Result<BTreeMap<Module, Source>> {
    let mut modules = BTreeMap::new();
    let mut folders = vec![source.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                if path != source.join("bin") {
                    folders.push(path);
                }
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            let file = path.strip_prefix(source)?.to_owned();
            let parts = file.with_extension("");
            let mut module: Module =
                parts.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| last == "mod")
                || ["lib", "main"].iter().any(|root| module == [*root])
            {
                module.pop();
            }
            modules.insert(module, Source { file, imports: imports(&text) });
        }
    }
    Ok(modules)
}

/// Re-exports are followed this far; those that lead back to themselves end there.
const MAX_REEXPORTS: usize = 8;

/// The module that `path`, written in `here`, leads to: the deepest one on its way, through what modules import from each
/// other. `None` where it leaves the crate, or stays in its root.
fn resolve(
    modules: &BTreeMap<Module, Source>,
    here: &[String],
    path: &[String],
    depth: usize,
) -> Option<Module> {
    let mut at = here.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (at, rest) = (Module::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while let [first, others @ ..] = rest
                && first == "super"
            {
                at.pop();
                rest = others;
            }
        }
        // A path that begins with a name leads to a child, or out of the crate.
        first => {
            at.push(first.to_owned());
            if !modules.contains_key(&at) {
                return None;
            }
            rest = &path[1..];
        }
    }
    while let [first, others @ ..] = rest {
        at.push(first.clone());
        if !modules.contains_key(&at) {
            at.pop();
            let import = |import: &&Import| import.name.as_ref() == Some(first);
            let followed = modules.get(&at).and_then(|source| source.imports.iter().find(import));
            if let Some(import) = followed.filter(|_| depth < MAX_REEXPORTS) {
                let whole = [&import.path[..], others].concat();
                if let Some(module) = resolve(modules, &at, &whole, depth + 1) {
                    return Some(module);
                }
            }
            break;
        }
        rest = others;
    }
    (!at.is_empty()).then_some(at)
}

/// Files that import each other, and the shortest way around.
struct Circle {
    files: Vec<String>,
    /// File, line, and the path that is written there.
    steps: Vec<(PathBuf, usize, String)>,
}

impl Circle {
    fn describe(&self, package: &str, source: &Path) -> String {
        let mut text = format!("{package}: {} import each other, as in", self.files.join(", "));
        for (file, line, path) in &self.steps {
            text += &format!("\n  {}:{line}: {path}", source.join(file).display());
        }
        text
    }
}

/// For each module, those that it imports from, and where it does so first.
type Graph<'a> = BTreeMap<&'a Module, BTreeMap<&'a Module, &'a Import>>;

/// The circles of files in one crate.
fn circles(modules: &BTreeMap<Module, Source>) -> Vec<Circle> {
    let mut graph = Graph::new();
    for (module, source) in modules.iter().filter(|(module, _)| !module.is_empty()) {
        let to = graph.entry(module).or_default();
        for import in &source.imports {
            let Some(target) = resolve(modules, module, &import.path, 0) else { continue };
            let one_room = target.starts_with(module) || module.starts_with(&target);
            if let Some((target, _)) = modules.get_key_value(&target).filter(|_| !one_room) {
                to.entry(target).or_insert(import);
            }
        }
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for &start in graph.keys() {
        if seen.contains(start) {
            continue;
        }
        let Some(mut shortest) = way_around(&graph, start) else { continue };
        // All that `start` reaches and that reaches `start`.
        let tied: Vec<&Module> = graph
            .keys()
            .copied()
            .filter(|m| reaches(&graph, start, m) && reaches(&graph, m, start))
            .collect();
        for other in &tied {
            let way = way_around(&graph, other);
            if let Some(way) = way.filter(|way| way.len() < shortest.len()) {
                shortest = way;
            }
        }
        let after = |i: usize| shortest[(i + 1) % shortest.len()];
        let step = |(i, from): (usize, &&Module)| {
            let import = graph[*from][after(i)];
            (modules[*from].file.clone(), import.line, import.path.join("::"))
        };
        found.push(Circle {
            files: tied.iter().map(|module| module.join("::")).collect(),
            steps: shortest.iter().enumerate().map(step).collect(),
        });
        seen.extend(tied);
    }
    found
}

/// The shortest way from `start` back to it, without its end.
fn way_around<'a>(graph: &Graph<'a>, start: &'a Module) -> Option<Vec<&'a Module>> {
    let mut before: BTreeMap<&Module, &'a Module> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(module) = queue.pop_front() {
        for &next in graph.get(module).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                let mut way = vec![module];
                while let Some(&previous) = before.get(way[way.len() - 1]) {
                    way.push(previous);
                }
                way.reverse();
                return Some(way);
            }
            if !before.contains_key(next) {
                before.insert(next, module);
                queue.push_back(next);
            }
        }
    }
    None
}

fn reaches(graph: &Graph<'_>, from: &Module, to: &Module) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut queue = vec![from];
    while let Some(module) = queue.pop() {
        if module == to {
            return true;
        }
        let next = graph.get(module).into_iter().flat_map(BTreeMap::keys);
        queue.extend(next.copied().filter(|&next| seen.insert(next)));
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The circles of a crate with these files, as lines.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let modules = modules(dir.path()).unwrap();
        circles(&modules).iter().map(|circle| circle.describe("a", Path::new("src"))).collect()
    }

    #[test]
    fn files_that_import_each_other_are_named_with_the_lines_that_close_the_circle() {
        let lines = found(&[
            ("lib.rs", "mod a;\nmod b;\nmod c;\nmod d;\n"),
            ("a.rs", "//! About a.\n\nuse crate::b::B;\n"),
            ("b.rs", "use std::fs;\nfn f() {\n    let x = super::c::new();\n}\n"),
            ("c.rs", "use super::{\n    a::{A, Other as More},\n    d,\n};\n"),
            ("d.rs", "use std::io;\n"),
        ]);
        let circle = "a: a, b, c import each other, as in\n  src/a.rs:3: crate::b::B\n  src/b.rs:3: super::c::new\n  \
                      src/c.rs:2: super::a::A";
        assert_eq!(lines, [circle]);
    }

    #[test]
    fn the_shortest_way_around_is_shown() {
        let lines = found(&[
            ("main.rs", ""),
            ("a.rs", "use crate::b::B;"),
            ("b.rs", "use crate::c::C;"),
            ("c.rs", "use crate::a::A;\nuse crate::d::D;"),
            ("d.rs", "use crate::c::C;"),
        ]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("a: a, b, c, d import each other"), "{}", lines[0]);
        assert_eq!(lines[0].lines().count(), 3, "{}", lines[0]);
    }

    #[test]
    fn one_way_imports_tests_comments_and_words_in_strings_are_no_circle() {
        let lines = found(&[
            ("lib.rs", "mod a;\nmod b;\n"),
            ("a.rs", "use crate::b::B;\n"),
            (
                "b.rs",
                "// use crate::a::A;\n/* use crate::a::A; /* crate::a */ */\nconst HELP: &str = \"use crate::a::A;\";\n\
                 const RAW: &str = r#\"\"use crate::a::A;\"#;\nconst QUOTE: char = '\"';\nfn f<'a>(x: &'a str) {}\n\
                 #[cfg(test)]\nuse crate::a::A;\n\
                 #[cfg(test)]\n#[allow(unused)]\nmod tests {\n    use crate::a::A;\n}\n",
            ),
        ]);
        assert_eq!(lines, [""; 0]);
    }

    #[test]
    fn a_folder_and_its_files_are_one_module_but_its_files_are_not_one_with_each_other() {
        let room = [
            ("lib.rs", "mod room;\n"),
            ("room/mod.rs", "mod a;\nmod b;\nuse a::A;\npub use b::B;\n"),
            ("room/a.rs", "use super::b::B;\n"),
        ];
        assert_eq!(found(&[&room[..], &[("room/b.rs", "use super::Shared;\n")]].concat()), [""; 0]);
        let lines = found(&[&room[..], &[("room/b.rs", "use super::a::A;\n")]].concat());
        assert_eq!(lines.len(), 1, "{lines:?}");
    }

    #[test]
    fn names_are_followed_through_the_modules_that_hand_them_on() {
        // a takes B from the root, which has it from b; b takes A from its folder, which has it from a.
        let lines = found(&[
            ("lib.rs", "mod a;\nmod b;\nmod room;\npub use b::B as Renamed;\n"),
            ("a.rs", "use crate::Renamed;\n"),
            ("b.rs", "use crate::room::A;\n"),
            ("room/mod.rs", "pub(crate) use crate::a::A;\n"),
        ]);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("a, b import each other"), "{lines:?}");
        // Names that lead back to themselves end.
        let lines = found(&[
            ("lib.rs", "pub use a::A;\n"),
            ("a.rs", "pub use crate::A;\n"),
            ("b.rs", "use crate::A;\n"),
        ]);
        assert_eq!(lines, [""; 0]);
    }

    #[test]
    fn a_crate_that_reaches_up_or_aside_is_named_and_so_is_one_without_a_layer() {
        let package = |name: &str, below: &[&str]| Package {
            name: name.into(),
            manifest_path: String::new(),
            dependencies: below
                .iter()
                .map(|name| Dependency { name: name.to_string(), path: Some("..".into()) })
                .chain([Dependency { name: "uta".into(), path: None }])
                .collect(),
        };
        let sound = [
            package("uta", &["uta-train", "uta-base"]),
            package("uta-train", &["uta-eval", "torch-ext"]),
            package("uta-eval", &["uta-model", "uta-data"]),
        ];
        assert_eq!(upward(&sound), [""; 0]);
        let wrong = [
            package("uta-eval", &["uta-train"]),
            package("uta-data", &["uta-model"]),
            package("newcomer", &[]),
        ];
        let found = upward(&wrong);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], "uta-eval depends on uta-train, which doesn't lie below it");
        assert!(found[1].starts_with("uta-data") && found[2].starts_with("newcomer: no layer"));
    }
}
