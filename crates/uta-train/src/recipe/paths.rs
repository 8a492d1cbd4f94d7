//! The paths in a recipe. They are written relative to the directory in which a command is started, and become absolute when
//! the recipe is read, so that a run directory can be used from anywhere.

use std::env;
use std::path::{Path, PathBuf};

use uta_data::{PairOptions, is_url};
use uta_model::VitConfig;

use super::Recipe;

/// Where a path stands in a recipe.
pub(crate) enum Place<'a> {
    Text(&'a mut String),
    Path(&'a mut PathBuf),
}

impl Place<'_> {
    pub(crate) fn get(&self) -> &str {
        match self {
            Place::Text(text) => text,
            // What TOML holds is text.
            Place::Path(path) => path.to_str().unwrap_or_default(),
        }
    }

    fn set(&mut self, path: String) {
        match self {
            Place::Text(text) => **text = path,
            Place::Path(own) => **own = path.into(),
        }
    }
}

impl Recipe {
    /// Each path, with its key.
    pub(crate) fn paths(&mut self) -> Vec<(&'static str, Place<'_>)> {
        fn images<'a>(
            key: &'static str,
            pairs: impl IntoIterator<Item = &'a mut PairOptions>,
        ) -> impl Iterator<Item = (&'static str, Place<'a>)> {
            pairs
                .into_iter()
                .filter_map(move |pairs| Some((key, Place::Path(pairs.images.as_mut()?))))
        }
        let mut all = vec![];
        let data = &mut self.data;
        for set in &mut data.train {
            all.push(("data.train", Place::Text(&mut set.data)));
            all.extend(images("data.train.pairs.images", &mut set.pairs));
        }
        all.extend(data.val.iter_mut().map(|spec| ("data.val", Place::Text(spec))));
        all.extend(images("data.pairs.images", [&mut data.pairs]));
        all.extend(images("data.val_pairs.images", &mut data.val_pairs));
        for set in &mut self.eval.sets {
            all.push(("eval.sets.data", Place::Text(&mut set.data)));
            all.extend(images("eval.sets.pairs.images", [&mut set.pairs]));
            let lists = [
                ("eval.sets.classnames", &mut set.classnames),
                ("eval.sets.templates", &mut set.templates),
            ];
            all.extend(
                lists
                    .into_iter()
                    .filter_map(|(key, list)| Some((key, Place::Path(list.as_mut()?)))),
            );
        }
        if let Some(teacher) = self.task.teacher_mut() {
            all.extend(teacher.path.iter_mut().map(|path| ("teacher.path", Place::Path(path))));
            all.extend(teacher.cache.iter_mut().map(|path| ("teacher.cache", Place::Path(path))));
            // A preset, or a configuration file.
            let is_file =
                |arch: &str| VitConfig::preset(arch).is_err() && Path::new(arch).is_file();
            let files = teacher.arch.iter_mut().filter(|arch| is_file(arch));
            all.extend(files.map(|arch| ("teacher.arch", Place::Text(arch))));
        }
        if self.model.init != "random" {
            all.push(("model.init", Place::Text(&mut self.model.init)));
        }
        all
    }

    /// Makes each path absolute: relative ones are those of the present directory, and `~` is the user's home.
    pub(crate) fn make_paths_absolute(&mut self) {
        let here = env::current_dir().ok();
        let home = env::var("HOME").ok().filter(|home| !home.is_empty());
        for (_, mut place) in self.paths() {
            let below = |folder: Option<&str>, rest: &str| join(folder?, rest);
            let path = place.get();
            let new = match path.strip_prefix('~') {
                Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                    below(home.as_deref(), rest.trim_start_matches('/'))
                }
                _ if is_relative(path) => below(here.as_deref().and_then(Path::to_str), path),
                _ => None,
            };
            if let Some(new) = new {
                place.set(new);
            }
        }
    }
}

/// Whether a spec of data, or a path, depends on the directory where it is read.
pub(crate) fn is_relative(spec: &str) -> bool {
    // The choices of a brace that a spec begins with may be absolute.
    let first = spec.trim_start_matches('{');
    !(spec.is_empty() || first.starts_with('/') || is_url(spec) || spec.starts_with("pipe:"))
}

/// `spec` in `folder`, in which nothing may be taken for a pattern; `None` where that can't be said.
fn join(folder: &str, spec: &str) -> Option<String> {
    let pattern = spec.contains(['*', '?', '[', '{']) && !Path::new(folder).join(spec).exists();
    if pattern && folder.contains(['{', '}']) {
        return None;
    }
    let folder = match pattern && folder.contains(['*', '?', '[']) {
        true => folder.chars().map(escaped).collect(),
        false => folder.to_owned(),
    };
    let spec = spec.strip_prefix("./").unwrap_or(spec);
    Some(match spec {
        "" | "." => folder,
        _ => format!("{}/{spec}", folder.trim_end_matches('/')),
    })
}

/// A letter that means itself in a pattern.
fn escaped(letter: char) -> String {
    match letter {
        '*' | '?' | '[' => format!("[{letter}]"),
        _ => letter.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absolute_or_elsewhere_stays_and_patterns_hold_in_folders_with_odd_names() {
        for spec in ["/data/a.tar", "s3://bucket/{0..9}.tar", "{/a,/b}/x.tar", "pipe:cat a.tar", ""]
        {
            assert!(!is_relative(spec), "{spec}");
        }
        for spec in ["a", "../a", "{a,b}/x.tar", "*.tar"] {
            assert!(is_relative(spec), "{spec}");
        }
        for (folder, spec, joined) in [
            ("/home/me", "a/{0..9}.tar", Some("/home/me/a/{0..9}.tar")),
            ("/home/me", "./a", Some("/home/me/a")),
            ("/", "a", Some("/a")),
            ("/home/[x]", "a.tar", Some("/home/[x]/a.tar")),
            ("/home/[x]", "*.tar", Some("/home/[[]x]/*.tar")),
            ("/home/{x}", "a.tar", Some("/home/{x}/a.tar")),
            ("/home/{x}", "*.tar", None),
        ] {
            assert_eq!(join(folder, spec).as_deref(), joined, "{folder} {spec}");
        }
    }
}
