//! Mistakes that people make at the command line: each is answered by one line that says what, where and what to do, and by
//! status 2.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::world::World;

/// Command lines, and words of the line that answers them.
const MISTAKES: &[(&str, &[&str])] = &[
    // Commands, flags and their values.
    ("evall zeroshot", &["'evall'", "'eval'", "`uta --help`"]),
    ("eval", &["zeroshot, retrieval, align, table", "`uta eval --help`"]),
    ("weights", &["inspect, convert, resize"]),
    ("data", &["get, pack, index, stats, verify"]),
    ("bench", &["data, step"]),
    ("train", &["give a recipe", "--resume"]),
    ("train align.toml extra", &["'extra'", "`uta train --help`"]),
    ("train align.toml --steps 5", &["'--steps'", "--set"]),
    ("train align.toml --set", &["--set <KEY.PATH=VALUE>", "`uta train --help`"]),
    ("train align.toml --resume teacher --out other", &["--out", "leave it out"]),
    ("cache align.toml", &["--out <DIR>", "`uta cache --help`"]),
    ("cache align.toml --out c --crops 0", &["--crops", "0 is not in 1..="]),
    ("cache align.toml --out c --store i4", &["'i4'", "i8, f16, f32"]),
    ("eval zeroshot", &["--model <M>", "--data <D>", "`uta eval zeroshot --help`"]),
    (
        "eval zeroshot --model teacher --data classes --batch many",
        &["'many'", "--batch", "whole number"],
    ),
    ("eval zeroshot --model teacher --data classes --batch 0", &["--batch 0", "must be"]),
    ("eval zeroshot --model teacher --data classes --workers 0", &["--workers 0", "must be"]),
    ("eval zeroshot --model teacher --data classes --precision f64", &["'f64'", "f32, bf16"]),
    ("eval zeroshot --model teacher --data classes --device gpu", &["gpu", "auto, cpu, cuda"]),
    ("eval zeroshot --model teacher --data classes --device cuda:99", &["cuda:99", "GPUs"]),
    ("eval zeroshot --model teacher --data classes --set imagenot", &["imagenot", "imagenet-a"]),
    ("eval zeroshot --model teacher --data classes --max-pixels 0", &["--max-pixels", "1..="]),
    ("embed --model teacher --images pictures", &["--out <FILE>"]),
    ("embed --model teacher --out e.safetensors", &["--images"]),
    (
        "embed --model teacher --texts notes.txt --images pictures --out e.safetensors",
        &["--texts", "cannot be used with", "--images"],
    ),
    ("embed --model teacher --images pictures --layer -1 --out e.safetensors", &["'-1'"]),
    ("embed --model teacher --images pictures --layer 99 --out e.safetensors", &["0 to 2"]),
    ("weights inspect", &["<FILE>", "`uta weights inspect --help`"]),
    ("weights convert teacher --to timm", &["--out <DIR>"]),
    ("weights convert teacher --to onnx --out o", &["'onnx'", "timm, hf"]),
    ("weights resize teacher --out o", &["--image-size or --patch-size"]),
    ("weights resize teacher --image-size 0 --out o", &["image_size = 0", "from 1"]),
    ("weights resize teacher --image-size 17 --out o", &["image_size = 17", "multiple of patch"]),
    ("weights resize teacher --image-size 1000000 --out o", &["image_size = 1000000", "to 65536"]),
    ("data get cifar", &["'cifar'", "emoji"]),
    ("data get emoji --size 4 --offline", &["size = 4", "16 to 1024"]),
    ("data pack pictures --out s --shard-samples 0", &["--shard-samples", "1.."]),
    ("data pack pictures --out s --shard-bytes lots", &["--shard-bytes", "whole number"]),
    ("data stats", &["<D>", "`uta data stats --help`"]),
    ("masks --kind blocks", &["blocks", "none, random, block or block-reversed"]),
    ("masks --ratio 2", &["mask ratio 2", "less than 1"]),
    ("masks --ratio some", &["'some'", "must be a number"]),
    ("masks --grid 0", &["'0'", "16 or 14x20"]),
    ("masks --grid 5000", &["'5000'", "up to 1024"]),
    ("masks --samples 0", &["--samples", "1..="]),
    ("masks --out masks.pdf", &["masks.pdf", ".png or .svg"]),
    ("plan", &["<RECIPE>", "`uta plan --help`"]),
    ("plan align.toml --device abacus", &["abacus", "h100"]),
    ("plan align.toml --count 0", &["--count", "1..="]),
    ("plot", &["--out <FILE>", "<RUN>"]),
    ("plot teacher --out c.pdf", &["c.pdf", ".png or .svg"]),
    ("plot teacher --out c.svg --metrics losss", &["losss", "they have: loss"]),
    ("bench step align.toml --part teachers", &["'teachers'", "cached", "`uta bench step --help`"]),
    ("bench step align.toml --batch 0", &["--batch", "1..="]),
    ("bench step align.toml --steps 0", &["--steps", "1..="]),
    ("demo --resume --fresh", &["--resume", "cannot be used with", "--fresh"]),
    // Recipes: no such file, no recipe, wrong keys, types and values.
    ("train missing.toml", &["missing.toml", "No such file"]),
    ("train pictures", &["pictures", "Is a directory"]),
    ("train notes.txt", &["notes.txt", "line 1"]),
    ("train broken.toml", &["broken.toml", "line 2"]),
    ("train unknown.toml", &["unknown.toml", "log_evry", "did you mean `log_every`?"]),
    ("train align.toml --set steps", &["--set steps", "key.path=value"]),
    ("train align.toml --set train.stepps=5", &["stepps", "did you mean `steps`?"]),
    ("train align.toml --set train.steps=five", &["train.steps", "five"]),
    ("train align.toml --set train.steps=-5", &["train.steps", "-5"]),
    ("train align.toml --set train.batch=0", &["train.batch = 0", "must be"]),
    ("train align.toml --set train.batch=10000000", &["train.batch"]),
    ("train align.toml --set train.batch=many", &["train.batch", "whole number"]),
    ("train align.toml --set data.workers=1000000", &["data.workers"]),
    ("train align.toml --set train.batch=99999999999999999999", &["train.batch"]),
    ("train align.toml --set train.accumulate=3", &["train.accumulate = 3", "divisor"]),
    ("train align.toml --set train.precision=fp8", &["fp8", "bf16"]),
    ("train align.toml --set train.device=tpu", &["train.device", "tpu", "cuda:N"]),
    ("train align.toml --set train.device=cuda:99", &["train.device", "cuda:99", "GPUs"]),
    ("train align.toml --set mask.ratio=1.5", &["mask.ratio = 1.5", "0 to 0.95"]),
    ("train align.toml --set mask.kind=blocks", &["mask.kind", "block-reversed"]),
    (
        "train mim.toml --set mask.kind=none",
        &["mask.kind = none", "masks no patch", "block-reversed"],
    ),
    (
        "train mim.toml --set mim.weight=0.5",
        &["task \"mim\" has no section `mim`", "only uta-mim has"],
    ),
    ("train uta-mim.toml --set mim.weight=2", &["mim.weight = 2", "0 to 1"]),
    (
        "train align.toml --set model.mask_token=true",
        &["model.mask_token", "leaves masked patches out"],
    ),
    ("train text-align.toml --set mask.kind=block", &["mask.kind = block", "random or none"]),
    ("train text-align.toml --set model.width=16", &["model.width", "trains the text tower alone"]),
    ("train text-align.toml --set model.text.out=8", &["model.text.out = 8", "the teacher's, 16"]),
    ("train text-align.toml --set model.text.preset=x", &["model.text.preset", "no preset"]),
    (
        "train text-align.toml --set train.checkpoint_blocks=true",
        &["train.checkpoint_blocks", "leave it out"],
    ),
    ("train text-align.toml --set teacher.cache=c", &["teacher.cache", "not those of texts"]),
    (
        "train text-align.toml --set data.image_size=16",
        &["data.image_size = 16", "no picture is decoded"],
    ),
    ("train text-align.toml --set data.train=void.txt", &["void.txt", "looked for texts"]),
    ("cache text-align.toml --out c", &["text-align", "align, mim, uta-mim have"]),
    ("bench step text-align.toml --part student", &["--part", "has no parts"]),
    ("train align.toml --set optim.lr=nan", &["optim.lr", "above 0"]),
    ("train align.toml --set model.width=17", &["width = 17", "multiple of heads, 2"]),
    ("train align.toml --set model.heads=0", &["heads = 0", "from 1"]),
    ("train align.toml --set model.depth=-1", &["depth = -1", "from 1"]),
    ("train align.toml --set model.image_size=17", &["image_size = 17", "multiple of patch_size"]),
    ("train align.toml --set model.out=8", &["model.out = 8", "the teacher's, 16"]),
    ("train clip.toml --set model.text.heads=3", &["width = 16", "multiple of heads, 3"]),
    ("train align.toml --set data.train=[]", &["data.train", "at least one"]),
    ("train --resume nowhere", &["nowhere", "recipe.toml"]),
    ("train --resume pictures", &["pictures", "recipe.toml"]),
    ("train --resume latest", &["runs", "run"]),
    ("train align.toml --out teacher", &["teacher", "holds a run already", "--resume"]),
    ("train align.toml --out notes.txt/run", &["notes.txt/run", "Not a directory"]),
    ("cache missing.toml --out c", &["missing.toml"]),
    ("cache clip.toml --out c", &["clip.toml", "contrastive", "align"]),
    ("cache align.toml --out notes.txt", &["notes.txt"]),
    ("plan nowhere.toml", &["nowhere.toml"]),
    ("plan clip.toml", &["clip.toml", "align"]),
    ("bench step nowhere.toml", &["nowhere.toml"]),
    ("eval table nowhere.toml", &["nowhere.toml"]),
    ("eval table align.toml", &["align.toml", "line"]),
    ("demo --resume --out nowhere", &["nowhere", "recipe.toml"]),
    ("demo --out teacher --fresh", &["teacher", "holds another run", "--out"]),
    ("demo --out d --recipe nowhere.toml", &["nowhere.toml"]),
    ("demo --out d --set train.steps=0.5", &["train.steps", "0.5"]),
    ("demo --out notes.txt/d", &["notes.txt/d"]),
    // Models: none, or something else.
    ("train align.toml --set teacher.path=ViT-B-16.pt", &["ViT-B-16.pt", "openai"]),
    ("train align.toml --set teacher.path=README.md", &["README.md"]),
    ("train align.toml --set teacher.path=pictures", &["pictures"]),
    ("eval zeroshot --model nowhere --data classes", &["nowhere"]),
    ("eval zeroshot --model README.md --data classes", &["README.md", "begins like text"]),
    ("eval zeroshot --model broken.safetensors --data classes", &["broken.safetensors"]),
    ("eval zeroshot --model teacher --data classes --arch nothing", &["nothing", "uta-b14"]),
    ("eval align --model teacher --data pictures", &["teacher", "give --teacher"]),
    ("eval align --model teacher --teacher nowhere --data pictures", &["nowhere"]),
    ("weights inspect nowhere.pt", &["nowhere.pt"]),
    ("weights inspect pictures", &["pictures"]),
    ("weights inspect pictures/p00.png", &["p00.png"]),
    ("weights inspect empty.pt", &["empty.pt", "empty"]),
    ("weights convert teacher --to timm --out teacher", &["holds a model already", "new folder"]),
    ("weights convert teacher --to timm --out notes.txt/o", &["notes.txt/o"]),
    // Data: none, or something else.
    ("train align.toml --set data.train=nowhere", &["nowhere"]),
    ("train align.toml --set data.train=nowhere/*.tar", &["nowhere/*.tar", "nothing matches"]),
    ("train align.toml --set data.train=empty", &["empty", "looked for images"]),
    ("train align.toml --set data.train=notes.txt", &["notes.txt", "no column image"]),
    ("eval zeroshot --model teacher --data nowhere", &["nowhere"]),
    ("eval zeroshot --model teacher --data empty", &["empty", "looked for images"]),
    ("eval zeroshot --model teacher --data classes --classnames none.txt", &["none.txt"]),
    (
        "eval zeroshot --model teacher --data classes --classnames notes.txt",
        &["notes.txt", "2 class"],
    ),
    ("eval zeroshot --model teacher --data classes --templates notes.txt", &["buy milk", "{}"]),
    ("eval retrieval --model teacher --data nowhere.csv", &["nowhere.csv"]),
    ("eval retrieval --model teacher --data classes", &["caption"]),
    (
        "eval retrieval --model teacher --data pairs.csv --image-key image",
        &["pairs.csv", "no column image", "filepath, title"],
    ),
    (
        "eval retrieval --model teacher --data pairs.csv --images nowhere",
        &["pairs.csv", "--images"],
    ),
    ("eval retrieval --model teacher --data pictures --caption-key title", &["pictures", "tables"]),
    ("embed --model teacher --images nowhere --out e.safetensors", &["nowhere"]),
    ("embed --model teacher --images pictures --out no/e.safetensors", &["no folder no"]),
    ("embed --model teacher --images pictures --out pictures", &["pictures"]),
    ("embed --model teacher --texts none.txt --out e.safetensors", &["none.txt"]),
    ("embed --model teacher --texts pictures --out e.safetensors", &["pictures", "Is a directory"]),
    ("embed --model teacher --texts void.txt --out e.safetensors", &["void.txt", "holds no text"]),
    ("embed --model teacher --images pictures --out e.npy", &["e.npy", "e.safetensors"]),
    ("embed --model teacher --images pictures --batch 100000000 --out e.safetensors", &["--batch"]),
    ("eval zeroshot --model teacher --data classes --batch 100000000", &["--batch"]),
    ("eval zeroshot --model teacher --data one", &["one", "two classes or more"]),
    ("eval zeroshot --model teacher --data untested", &["a split to measure", "untested/train"]),
    ("data pack nowhere --out s", &["nowhere"]),
    ("data pack empty --out s", &["empty", "looked for images"]),
    ("data show absent.toml --out x.png", &["absent.toml", "can't be read"]),
    ("data show align.toml --out x.jpg", &["x.jpg", ".png or .svg"]),
    ("data show align.toml --out x.png --samples 0", &["--samples", "1..=400"]),
    ("data show align.toml --out x.png --set data.train=empty", &["empty", "looked for images"]),
    ("data pack pictures --out notes.txt", &["notes.txt"]),
    ("data index nowhere", &["nowhere"]),
    ("data index pictures", &["pictures", ".tar"]),
    ("data stats pictures nowhere", &["nowhere"]),
    ("data stats notes.txt", &["notes.txt"]),
    ("data verify nowhere", &["nowhere"]),
    ("data verify pictures --report no/r.jsonl", &["no/r.jsonl"]),
    ("bench data nowhere", &["nowhere"]),
    ("bench data text-align.toml", &["text-align.toml", "decodes no pictures"]),
    ("masks --out notes.txt/masks.svg", &["notes.txt"]),
    ("plot nowhere --out c.svg", &["nowhere", "give a run directory"]),
    ("plot notes.txt --out c.svg", &["notes.txt", "give a run directory"]),
    ("plot empty --out c.svg", &["empty", "give a run directory"]),
    ("plot teacher --out notes.txt/c.svg", &["notes.txt"]),
];

/// The folder that the command lines speak of.
fn world() -> World {
    let world = World::with_teacher();
    let align = fs::read_to_string(world.path("align.toml")).unwrap();
    for (name, text) in [
        ("broken.toml", "task = \"align\"\n[train\n"),
        ("unknown.toml", &align.replace("log_every", "log_evry")),
        ("notes.txt", "buy milk\n"),
        ("README.md", "# Words\n\nand more of them\n"),
        ("empty.pt", ""),
        ("void.txt", ""),
        ("broken.safetensors", &"garbage ".repeat(9)),
        ("pairs.csv", "filepath,title\npictures/p00.png,a picture\n"),
    ] {
        fs::write(world.path(name), text).unwrap();
    }
    fs::create_dir(world.path("empty")).unwrap();
    for class in
        ["classes/cat", "classes/dog", "one/cat", "untested/train/cat", "untested/train/dog"]
    {
        let folder = world.path(class);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(world.path("pictures/p00.png"), folder.join("0.png")).unwrap();
    }
    world
}

/// The faults of the answer to a command line.
fn judge(world: &World, line: &str, words: &[&str]) -> Option<String> {
    let args: Vec<&str> = line.split_whitespace().collect();
    let mut command = world.command(&args);
    command.env("XDG_CACHE_HOME", world.path("cache"));
    // What the program would start itself again for.
    let set = ["OMP_WAIT_POLICY", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"];
    command.envs(set.into_iter().zip(["passive", "65536", "glibc.malloc.hugetlb=0"]));
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    // Nothing comes before the mistake but what is logged.
    let own =
        said.lines().filter(|line| !line.starts_with(" WARN ") && !line.starts_with(" INFO "));
    let own: Vec<&str> = own.collect();
    let right = out.status.code() == Some(2)
        && out.stdout.is_empty()
        && matches!(own[..], [one] if one.starts_with("uta: ") && words.iter().all(|w| one.contains(w)))
        && !said.contains("panicked")
        && !said.contains("backtrace");
    (!right).then(|| format!("uta {line}: {}, wanted {words:?}:\n{said}", out.status))
}

#[test]
fn every_mistake_ends_with_status_2_and_one_line_that_says_what_where_and_what_to_do() {
    let world = world();
    let (next, wrong) = (AtomicUsize::new(0), Mutex::new(vec![]));
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((line, words)) = MISTAKES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    wrong.lock().unwrap().extend(judge(&world, line, words));
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), MISTAKES.len(), wrong.join("\n"));
}

#[test]
fn who_stops_reading_ends_a_command_without_a_word() {
    let world = World::with_teacher();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    for args in [
        &["masks"][..],
        &["masks", "--json"],
        &["plan", "align.toml"],
        &["weights", "inspect", "teacher", "--tensors"],
        &["data", "stats", "pictures"],
    ] {
        let out = world.command(args).stdout(closed()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        // What a shell reports of a program that SIGPIPE ends.
        assert_eq!(out.status.code(), Some(141), "{args:?}: {said}");
        assert!(said.lines().all(|line| line.starts_with(" WARN ")), "{args:?}: {said}");
    }
    // Training is not for its log.
    let args = ["train", "align.toml", "--out", "run", "--set", "train.steps=2"];
    let status = world.command(&args).stderr(closed()).status().unwrap();
    assert!(status.success(), "{status}");
    assert!(world.path("run/report.html").exists());
}

#[test]
fn how_much_is_said_is_for_the_user_to_set() {
    let world = World::new();
    let help = String::from_utf8(world.uta(&["--help"]).stdout).unwrap();
    assert!(help.contains("UTA_LOG") && help.contains("status 2"), "{help}");
    let out = world.command(&["masks"]).env("UTA_LOG", "a=b=c").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{said}");
    assert!(said.starts_with("uta: UTA_LOG=a=b=c: use error, warn, info or debug"), "{said}");
}
