//! The folder that the tests of `uta train` begin with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Map, Value};

/// A folder with a set of small captioned pictures, a teacher's recipe and one of each task that learns from it.
pub struct World {
    pub dir: tempfile::TempDir,
}

/// The tasks with a teacher: each has its recipe, `TASK.toml`.
pub const TAUGHT: [&str; 4] = ["align", "mim", "uta-mim", "text-align"];

const MODEL: &str =
    "image_size = 16\npatch_size = 4\nwidth = 16\ndepth = 2\nheads = 2\nhidden = 32\nout = 16\n";

impl World {
    /// The world with nothing trained yet.
    pub fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap() };
        world.pictures("pictures", 0);
        let common = "[data]\ntrain = [\"pictures\"]\nval = [\"pictures\"]\n[optim]\nlr = 1e-3\n[schedule]\nwarmup = 4\n\
             [checkpoint]\nevery = 3\n[eval]\nevery = 8\n[train]\nsteps = 24\nbatch = 8\nlog_every = 1\nthreads = 1\ndevice = \"cpu\"\n";
        let text = "[model.text]\ncontext_length = 12\nvocab_size = 1000\nwidth = 16\nheads = 2\nlayers = 1\nout = 16\n";
        fs::write(
            world.path("clip.toml"),
            format!("task = \"contrastive\"\n[model]\n{MODEL}{text}{common}"),
        )
        .unwrap();
        let align = format!(
            "task = \"align\"\n[model]\n{MODEL}drop_path = 0.2\n[teacher]\npath = \"teacher\"\n{common}accumulate = 2\nema = 0.9\n"
        );
        fs::write(world.path("mim.toml"), align.replace("\"align\"", "\"mim\"")).unwrap();
        fs::write(world.path("uta-mim.toml"), align.replace("\"align\"", "\"uta-mim\"")).unwrap();
        fs::write(world.path("align.toml"), align).unwrap();
        let text = text.replace("width = 16", "width = 8");
        let text = format!(
            "task = \"text-align\"\n{text}[teacher]\npath = \"teacher\"\n{common}accumulate = 2\nema = 0.9\n"
        );
        fs::write(world.path("text-align.toml"), text).unwrap();
        world
    }

    /// The world after `clip.toml` was trained into `teacher`.
    pub fn with_teacher() -> World {
        let world = World::new();
        world.train_teacher();
        world
    }

    /// Trains `clip.toml` into `teacher`.
    pub fn train_teacher(&self) {
        let out = self.uta(&["train", "clip.toml", "--out", "teacher", "--set", "train.steps=2"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// A folder of 40 captioned pictures, no two alike; other ones for another `shade`.
    pub fn pictures(&self, name: &str, shade: u32) {
        let pictures = self.path(name);
        fs::create_dir(&pictures).unwrap();
        for i in 0..40u32 {
            let colour = |x: u32, y: u32| {
                image::Rgb([(x * 12 + i) as u8, (y * 12) as u8, (i * 6 + shade) as u8])
            };
            let picture = image::RgbImage::from_fn(20, 20, colour);
            picture.save(pictures.join(format!("p{i:02}.png"))).unwrap();
            fs::write(pictures.join(format!("p{i:02}.txt")), format!("picture {i}\nnumber {i}"))
                .unwrap();
        }
    }

    /// Two sets of eight shards, one four times as heavy as the other, in an order: the settings that train on them.
    pub fn weighted(&self, order: &str) -> Vec<String> {
        for (name, shade) in [("a", 0), ("b", 100)] {
            let pictures = format!("of-{name}");
            if !self.path(&pictures).exists() {
                self.pictures(&pictures, shade);
                let pack = ["data", "pack", &pictures, "--out", name, "--shard-samples", "5"];
                assert!(self.uta(&pack).status.success());
            }
        }
        let sets = "data.train=[{data='a',weight=2.0},{data='b',weight=0.5}]";
        let order = format!("data.order='{order}'");
        ["--set", sets, "--set", &order, "--set", "data.shuffle_buffer=12"]
            .map(str::to_owned)
            .into()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uta"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn uta(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Exit status 2 and one line that holds all of `words`.
    pub fn refuses(&self, args: &[&str], words: &[&str]) {
        ends_with(&self.uta(args), 2, words, &args.join(" "));
    }

    /// Exit status 1 and a last line that holds all of `words`, where the shell's `ulimit` allows no more than `limit`; all
    /// that was said.
    pub fn fails_within(&self, limit: &str, args: &str, words: &[&str]) -> String {
        let limited = format!("trap '' XFSZ; ulimit {limit}; exec \"$0\" {args}");
        let out = Command::new("sh")
            .args(["-c", &limited, env!("CARGO_BIN_EXE_uta")])
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        ends_with(&out, 1, words, args)
    }
}

/// Standard error of `args`, if it ended with `code` and a line of the program's that holds all of `words`.
fn ends_with(out: &Output, code: i32, words: &[&str], args: &str) -> String {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args}: {text}");
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with("uta: ") && words.iter().all(|w| last.contains(w)), "{args}: {text}");
    text
}

/// Sends a signal (`-INT`) to a process.
pub fn signal(child: &Child, signal: &str) {
    let run = child.id().to_string();
    assert!(Command::new("kill").args([signal, &run]).status().unwrap().success());
}

/// The lines of metrics.jsonl without what depends on the clock.
pub fn metrics(run: &Path) -> Vec<Map<String, Value>> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut line: Map<String, Value> = serde_json::from_str(line).unwrap();
            line.retain(|key, _| key != "images_per_second" && key != "data_wait");
            line
        })
        .collect()
}
