//! `uta train`, `eval` and `embed` on several processes over loopback: the same as on one, and no process left waiting.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::world::{TAUGHT, World, metrics, signal};
use serde_json::{Map, Value};

/// Tolerance of f32 losses and gradient norms whose sums are made in another order, relative to 1 or to the value.
const TOLERANCE: f64 = 2e-5;

/// Exit code and messages of a process.
struct Ended {
    code: Option<i32>,
    stderr: String,
}

/// `uta ARGS` as `count` ranks, which write their standard output to `out-RANK` and their standard error to `log-RANK`.
struct Ranks {
    children: Vec<Child>,
    logs: Vec<std::path::PathBuf>,
}

impl Ranks {
    fn start(world: &World, count: usize, args: &[&str]) -> Ranks {
        Ranks::start_in(world, count, args, |_, _| ())
    }

    fn start_in(
        world: &World,
        count: usize,
        args: &[&str],
        change: impl Fn(usize, &mut Command),
    ) -> Ranks {
        let port = crate::port::free_port();
        let logs: Vec<_> = (0..count).map(|rank| world.path(&format!("log-{rank}"))).collect();
        let start = |rank: usize| {
            let mut command = world.command(args);
            command
                .envs([("RANK", rank.to_string()), ("WORLD_SIZE", count.to_string())])
                .envs([("MASTER_ADDR", "127.0.0.1"), ("OMP_NUM_THREADS", "1")])
                .envs([("MASTER_PORT", port.to_string()), ("UTA_DIST_TIMEOUT", "60".into())])
                .stdout(fs::File::create(world.path(&format!("out-{rank}"))).unwrap())
                .stderr(fs::File::create(&logs[rank]).unwrap());
            change(rank, &mut command);
            command.spawn().unwrap()
        };
        Ranks { children: (0..count).map(start).collect(), logs }
    }

    /// How each ended; a process that is still there after a minute has hung.
    fn wait(mut self) -> Vec<Ended> {
        let began = Instant::now();
        let mut ended = vec![];
        for (rank, child) in self.children.iter_mut().enumerate() {
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                if began.elapsed() > Duration::from_secs(60) {
                    child.kill().unwrap();
                    let said = |log: &std::path::PathBuf| fs::read_to_string(log).unwrap();
                    panic!(
                        "rank {rank} hangs: {:#?}",
                        self.logs.iter().map(said).collect::<Vec<_>>()
                    );
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            let stderr = fs::read_to_string(&self.logs[rank]).unwrap();
            ended.push(Ended { code: status.code(), stderr });
        }
        ended
    }

    fn succeed(self) -> Vec<Ended> {
        let ended = self.wait();
        for (rank, end) in ended.iter().enumerate() {
            assert_eq!(end.code, Some(0), "rank {rank}: {}", end.stderr);
        }
        ended
    }

    /// Waits until `run` has written a checkpoint.
    fn until_saved(&mut self, run: &Path) {
        let began = Instant::now();
        while !run.join("checkpoints/latest").exists() {
            assert!(began.elapsed() < Duration::from_secs(60), "no checkpoint came");
            assert!(self.children[0].try_wait().unwrap().is_none(), "the run has ended early");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Two runs' metrics, line by line, within [`TOLERANCE`]; what is counted must be equal.
fn assert_near(a: &[Map<String, Value>], b: &[Map<String, Value>]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!(a.keys().eq(b.keys()), "{a:?}\n{b:?}");
        for (key, value) in a {
            match (value.as_f64(), b[key].as_f64()) {
                (Some(x), Some(y)) if value.is_f64() => {
                    let off = (x - y).abs() / x.abs().max(1.0);
                    assert!(off < TOLERANCE, "step {}: {key}: {x} and {y}", a["step"]);
                }
                _ => assert_eq!(value, &b[key], "step {}: {key}", a["step"]),
            }
        }
    }
}

const RETRIEVAL: &str = "eval.sets=[{name='set',kind='retrieval',data='pictures'}]";

#[test]
fn ranks_train_evaluate_and_report_as_one_process_does() {
    let world = World::with_teacher();
    // Drop path differs between ranks by design. 40 pictures in batches of 12 leave the last rank without any.
    let align = ["train", "align.toml", "--set", "model.drop_path=0.0", "--set", "train.batch=12"];
    let clip = ["train", "clip.toml", "--set", "train.batch=12", "--set", "train.steps=12"];
    let other = |recipe| {
        let sets = ["--set", "train.batch=12", "--set", "train.steps=12"];
        [&["train", recipe][..], &sets].concat()
    };
    let drops_nothing = ["--set", "model.drop_path=0.0"];
    let mim = [&other("mim.toml")[..], &drops_nothing].concat();
    let both = [&other("uta-mim.toml")[..], &drops_nothing].concat();
    let text = other("text-align.toml");
    for (name, args) in [
        ("align", &align[..]),
        ("clip", &clip[..]),
        ("mim", &mim[..]),
        ("uta-mim", &both[..]),
        ("text-align", &text[..]),
    ] {
        let (one, two) = (format!("{name}-1"), format!("{name}-2"));
        let with = |out| [args, &["--set", RETRIEVAL, "--out", out]].concat();
        let alone = world.uta(&with(&one));
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
        let ended = Ranks::start(&world, 2, &with(&two)).succeed();
        assert!(ended[0].stderr.contains("done:"), "{}", ended[0].stderr);
        assert_eq!(ended[1].stderr, "", "rank 1 has nothing to say");
        let (one, two) = (metrics(&world.path(&one)), metrics(&world.path(&two)));
        assert!(one.iter().any(|line| line.contains_key("text_to_image/r1")));
        assert_near(&one, &two);
    }
    let checkpointed = ["--set", "train.checkpoint_blocks=true", "--out", "checkpointed"];
    let args = [&align[..], &["--set", RETRIEVAL], &checkpointed].concat();
    Ranks::start(&world, 2, &args).succeed();
    assert_eq!(metrics(&world.path("checkpointed")), metrics(&world.path("align-2")));
    let environment = fs::read_to_string(world.path("align-2/environment.json")).unwrap();
    let environment: Value = serde_json::from_str(&environment).unwrap();
    assert_eq!(environment["world_size"], 2);
}

#[test]
fn what_no_rank_can_use_is_written_down_and_judged_as_on_one_process() {
    let world = World::with_teacher();
    let spoil = |i| fs::write(world.path(&format!("pictures/p{i:02}.png")), "no picture").unwrap();
    let train = |out| {
        let set =
            ["--set", "model.drop_path=0.0", "--set", "data.val=[]", "--set", "data.repeats=2"];
        [&["train", "align.toml", "--out", out], &set[..]].concat()
    };
    [7, 23].into_iter().for_each(spoil);
    assert!(world.uta(&train("one")).status.success());
    let ended = Ranks::start(&world, 2, &train("two")).succeed();
    assert_eq!(ended[1].stderr, "", "rank 0 names the samples");
    let rejected = |run| fs::read_to_string(world.path(run).join("rejected.jsonl")).unwrap();
    assert!(rejected("one").lines().count() >= 4, "{}", rejected("one"));
    assert_eq!(rejected("one"), rejected("two"));
    assert_near(&metrics(&world.path("one")), &metrics(&world.path("two")));

    // Half of them are too many: told after the same step, whoever met them.
    (0..20).map(|i| 2 * i).for_each(spoil);
    let alone = world.uta(&train("many-one"));
    let alone = String::from_utf8(alone.stderr).unwrap();
    let last = alone.lines().last().unwrap();
    assert!(last.contains(" of the last "), "{alone}");
    for end in Ranks::start(&world, 2, &train("many-two")).wait() {
        assert_eq!((end.code, end.stderr.lines().last()), (Some(2), Some(last)), "{}", end.stderr);
    }
    assert_eq!(rejected("many-one"), rejected("many-two"));
}

#[test]
fn evaluations_and_embeddings_on_any_number_of_processes_are_those_of_one() {
    let world = World::with_teacher();
    for i in 0..40 {
        let folder = world.path(&format!("set/class {}", i % 3));
        fs::create_dir_all(&folder).unwrap();
        let picture = world.path(&format!("pictures/p{i:02}.png"));
        fs::copy(picture, folder.join(format!("{i:02}.png"))).unwrap();
    }
    fs::write(world.path("set/class 1/00.png"), "no picture").unwrap();
    fs::write(world.path("pictures/p11.png"), "no picture").unwrap();
    // 41 pictures in batches of 7 are 6 batches: with 4 processes two of them have none in the second round.
    let shared = ["--model", "teacher", "--batch", "7", "--device", "cpu"];
    let zeroshot =
        ["eval", "zeroshot", "--data", "set", "--json", "--no-cache", "--predictions", "file"];
    let retrieval = ["eval", "retrieval", "--data", "pictures", "--json"];
    let align = ["eval", "align", "--teacher", "teacher", "--data", "pictures", "--json"];
    let masked = [&align[..], &["--mask-ratio", "0.5"]].concat();
    let embed = ["embed", "--images", "pictures", "--tokens", "--out", "file"];
    for command in [&zeroshot[..], &retrieval, &align, &masked, &embed] {
        let args = [command, &shared[..]].concat();
        let file = || fs::read(world.path("file")).ok();
        let alone = world.command(&args).env("OMP_NUM_THREADS", "1").output().unwrap();
        assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
        let written = file();
        for count in [2, 4] {
            let _ = fs::remove_file(world.path("file"));
            let ended = Ranks::start(&world, count, &args).succeed();
            let printed = |rank| fs::read_to_string(world.path(&format!("out-{rank}"))).unwrap();
            assert_eq!(printed(0), String::from_utf8_lossy(&alone.stdout), "{args:?}");
            assert_eq!(file(), written, "{args:?}");
            for (rank, end) in ended.iter().enumerate().skip(1) {
                assert_eq!((printed(rank), end.stderr.as_str()), (String::new(), ""), "{args:?}");
            }
        }
        let _ = fs::remove_file(world.path("file"));
    }
}

#[test]
fn an_error_of_one_process_ends_an_evaluation_on_all() {
    let world = World::with_teacher();
    let elsewhere = tempfile::tempdir().unwrap();
    let teacher = world.path("teacher");
    let args =
        ["eval", "retrieval", "--model", teacher.to_str().unwrap(), "--data", "pictures", "--json"];
    let ended = Ranks::start_in(&world, 3, &args, |rank, command| {
        if rank == 1 {
            command.current_dir(elsewhere.path());
        }
    })
    .wait();
    for (rank, end) in ended.iter().enumerate() {
        let (code, start) = match rank {
            1 => (2, "uta: ".to_owned()),
            _ => (1, format!("uta: rank {rank} of 3 ends because rank 1 failed: ")),
        };
        assert_eq!(end.code, Some(code), "{}", end.stderr);
        assert!(
            end.stderr.starts_with(&start) && end.stderr.contains("pictures"),
            "{}",
            end.stderr
        );
        assert_eq!(end.stderr.lines().count(), 1, "{}", end.stderr);
    }
    let table = ["eval", "table", "table.toml"];
    let launched = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")];
    let out = world.command(&table).envs(launched).output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && text.contains("without a launcher"), "{text}");
}

#[test]
fn a_run_goes_on_with_more_or_fewer_processes() {
    let world = World::with_teacher();
    let set = ["--set", "model.drop_path=0.0", "--set", "checkpoint.keep=8"];
    let train = |out| [&["train", "align.toml", "--out", out], &set[..]].concat();
    assert!(world.uta(&train("whole")).status.success());
    // As if stopped after step 12, and again after step 18.
    let cut = |steps: &[u32]| {
        for step in steps {
            let dir = format!("run/checkpoints/step-{step:08}");
            fs::remove_dir_all(world.path(&dir)).unwrap();
        }
    };
    Ranks::start(&world, 2, &train("run")).succeed();
    cut(&[15, 18, 21, 24]);
    let resume = ["train", "--resume", "run"];
    assert!(world.uta(&resume).status.success());
    assert_near(&metrics(&world.path("whole")), &metrics(&world.path("run")));
    cut(&[21, 24]);
    Ranks::start(&world, 2, &resume).succeed();
    assert_near(&metrics(&world.path("whole")), &metrics(&world.path("run")));
}

#[test]
fn ranks_share_weighted_sets_in_either_order_and_go_on_after_a_kill_at_the_very_sample() {
    let world = World::with_teacher();
    for order in ["indexed", "streaming"] {
        let sets = world.weighted(order);
        let set = sets.iter().map(String::as_str).chain(["--set", "model.drop_path=0.0"]);
        let set: Vec<&str> = set.collect();
        let [one, whole, killed] = ["one", "whole", "killed"].map(|name| format!("{name}-{order}"));
        let train = |out| [&["train", "align.toml", "--out", out][..], &set].concat();
        Ranks::start(&world, 2, &train(&whole)).succeed();
        if order == "indexed" {
            assert!(world.uta(&train(&one)).status.success());
            assert_near(&metrics(&world.path(&one)), &metrics(&world.path(&whole)));
        }
        let mut ranks = Ranks::start(&world, 2, &train(&killed));
        ranks.until_saved(&world.path(&killed));
        ranks.children.iter_mut().for_each(|child| child.kill().unwrap());
        ranks.wait();
        Ranks::start(&world, 2, &["train", "--resume", &killed]).succeed();
        assert_eq!(metrics(&world.path(&killed)), metrics(&world.path(&whole)), "{order}");
    }
}

#[test]
fn ranks_of_each_task_go_on_after_a_kill_to_the_bit() {
    let world = World::with_teacher();
    for task in TAUGHT.into_iter().skip(1).chain(["clip"]) {
        let (recipe, whole, killed) =
            (format!("{task}.toml"), format!("{task}-whole"), format!("{task}-killed"));
        Ranks::start(&world, 2, &["train", &recipe, "--out", &whole]).succeed();
        let mut ranks = Ranks::start(&world, 2, &["train", &recipe, "--out", &killed]);
        ranks.until_saved(&world.path(&killed));
        ranks.children.iter_mut().for_each(|child| child.kill().unwrap());
        ranks.wait();
        Ranks::start(&world, 2, &["train", "--resume", &killed]).succeed();
        assert_eq!(metrics(&world.path(&killed)), metrics(&world.path(&whole)), "{task}");
    }
}

#[test]
fn when_a_process_is_killed_the_others_end_with_one_line_and_the_checkpoint_is_whole() {
    let world = World::with_teacher();
    for (victim, witness) in [(1, 0), (0, 1)] {
        let out = format!("run-{victim}");
        let args = ["train", "align.toml", "--out", &out, "--set", "train.steps=100000"];
        let mut ranks = Ranks::start(&world, 2, &args);
        ranks.until_saved(&world.path(&out));
        ranks.children[victim].kill().unwrap();
        let ended = ranks.wait();
        let text = &ended[witness].stderr;
        assert_eq!(ended[witness].code, Some(1), "{text}");
        let said: Vec<&str> = text.lines().filter(|line| !line.contains(" step ")).collect();
        let last = said.last().unwrap();
        let start = format!("uta: rank {witness} of 2: ");
        assert!(last.starts_with(&start) && last.contains("another rank has ended"), "{text}");
        assert!(witness == 0 || said.len() == 1, "one line: {text}");
        let latest = fs::read_to_string(world.path(&out).join("checkpoints/latest")).unwrap();
        let checkpoint = format!("{out}/checkpoints/{latest}");
        let inspected = world.uta(&["weights", "inspect", &checkpoint, "--json"]);
        assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stderr));
    }
}

#[test]
fn a_launchers_sigterm_on_any_process_stops_all_at_one_step() {
    let world = World::with_teacher();
    let args = ["train", "align.toml", "--out", "run", "--set", "train.steps=100000"];
    let mut ranks = Ranks::start(&world, 2, &args);
    ranks.until_saved(&world.path("run"));
    signal(&ranks.children[1], "-TERM");
    let ended = ranks.succeed();
    let stopped = ended[0].stderr.lines().last().unwrap();
    let latest = fs::read_to_string(world.path("run/checkpoints/latest")).unwrap();
    let step: u64 = latest.trim_start_matches("step-").parse().unwrap();
    assert!(stopped.starts_with(&format!("stopped at step {step};")), "{stopped}, {latest}");
}

/// Absolute paths, as rank 0 tells them to the others, that mean another place in each process: its own directory.
const OWN_PATHS: [&str; 6] = [
    "--set",
    "teacher.path=/proc/self/cwd/teacher",
    "--set",
    "data.train=/proc/self/cwd/pictures",
    "--set",
    "data.val=/proc/self/cwd/pictures",
];

#[test]
fn an_error_of_one_process_ends_all_of_them() {
    let world = World::with_teacher();
    let elsewhere = tempfile::tempdir().unwrap();
    let args = [&["train", "align.toml", "--out", "run"][..], &OWN_PATHS].concat();
    let ended = Ranks::start_in(&world, 2, &args, |rank, command| {
        if rank == 1 {
            command.current_dir(elsewhere.path());
        }
    })
    .wait();
    assert_eq!((ended[0].code, ended[1].code), (Some(1), Some(2)));
    let line = ended[0].stderr.lines().last().unwrap();
    assert!(line.starts_with("uta: rank 0 of 2 ends because rank 1 failed: "), "{line}");
    assert!(line.contains("pictures") && ended[1].stderr.contains("pictures"), "{line}");
    assert!(!world.path("run").exists());
}

#[test]
fn ranks_that_see_different_data_end_before_the_first_step() {
    let world = World::with_teacher();
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = format!(
        "cp -r pictures teacher {0} && rm {0}/pictures/p39.png",
        elsewhere.path().display()
    );
    let copied = Command::new("sh").args(["-c", &copy]).current_dir(world.dir.path()).status();
    assert!(copied.unwrap().success());
    let args = [&["train", "align.toml", "--out", "run"][..], &OWN_PATHS].concat();
    let ended = Ranks::start_in(&world, 2, &args, |rank, command| {
        if rank == 1 {
            command.current_dir(elsewhere.path());
        }
    })
    .wait();
    for end in ended {
        assert_eq!(end.code, Some(2), "{}", end.stderr);
        let line = end.stderr.lines().last().unwrap();
        assert!(
            line.contains("rank 0 sees 40 samples") && line.contains("rank 1 sees 39"),
            "{line}"
        );
    }
    assert!(!world.path("run").exists());
}

#[test]
fn validation_pairs_that_no_rank_can_read_are_done_without() {
    let world = World::new();
    world.pictures("val", 3);
    // The first round of two ranks and batches of four.
    for i in 0..8 {
        fs::write(world.path(&format!("val/p{i:02}.png")), "no picture").unwrap();
    }
    let set = ["--set", "data.val=val", "--set", "train.steps=1", "--out"];
    let train = |out| [&["train", "clip.toml"], &set[..], &[out]].concat();
    Ranks::start(&world, 2, &train("two")).succeed();
    let first = &metrics(&world.path("two"))[0];
    assert!(first["loss"].as_f64().unwrap() > 0.0 && first.contains_key("batch_top1"), "{first:?}");
}

#[test]
fn mistakes_about_processes_are_told_before_the_first_step() {
    let world = World::with_teacher();
    let args = ["train", "align.toml", "--out", "run", "--set", "train.batch=6"];
    for end in Ranks::start(&world, 2, &args).wait() {
        assert_eq!(end.code, Some(2), "{}", end.stderr);
        assert!(end.stderr.contains("train.batch = 6: must be a multiple of 4"), "{}", end.stderr);
    }
    assert!(!world.path("run").exists());
    let out = world.command(&args).env("RANK", "0").output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{text}");
    assert!(text.contains("WORLD_SIZE is not set") && text.lines().count() == 1, "{text}");
}
