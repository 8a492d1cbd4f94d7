//! A run's report shows it beside its teacher and chance, with pictures and data.

use std::fs;

use crate::world::World;
use serde_json::Value;

#[test]
fn a_run_is_shown_beside_its_teacher_and_chance_with_pictures_and_data() {
    let world = World::with_teacher();
    for (i, class) in ["cat", "dog", "owl", "fox"].into_iter().enumerate() {
        let folder = world.path("classes").join(class);
        fs::create_dir_all(&folder).unwrap();
        for j in 0..3 {
            let picture = world.path(&format!("pictures/p{:02}.png", 3 * i + j));
            fs::copy(picture, folder.join(format!("{j}.png"))).unwrap();
        }
    }
    let sets = "eval.sets=[{name='animals',kind='zeroshot',data='classes'},\
                {name='captions',kind='retrieval',data='pictures'}]";
    let out = world.uta(&["train", "align.toml", "--out", "run", "--set", sets]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let read = |name: &str| fs::read_to_string(world.path("run").join(name)).unwrap();

    let reference: Value = serde_json::from_str(&read("reference.json")).unwrap();
    let (animals, captions) = (&reference["sets"]["animals"], &reference["sets"]["captions"]);
    assert_eq!((&animals["images"], &animals["classes"]), (&12.into(), &4.into()));
    assert_eq!((&animals["trained_on"], &captions["trained_on"]), (&false.into(), &true.into()));
    assert_eq!(captions["pairs"], serde_json::json!([40, 80]));
    // The teacher's number is that of `uta eval` on the same set.
    let eval = ["eval", "zeroshot", "--model", "teacher", "--data", "classes", "--json"];
    let eval: Value = serde_json::from_slice(&world.uta(&eval).stdout).unwrap();
    assert_eq!(reference["teacher"]["animals"]["top1"], eval["top1"]);
    assert!(reference["teacher"]["captions"]["text_to_image/r10"].is_number());

    let html = read("report.html");
    for part in [
        "zero-shot classification on animals; retrieval on captions",
        "against the teacher on the same pictures and guessing",
        "top-1 among 4 names, on 12 pictures",
        "chance 25.0 %",
        "40 images: ",
        "40 images, 80 captions: ",
        "trained on</small>",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert_eq!(html.matches("data:image/png").count(), 12);
    assert_eq!(html.matches(">teacher: <span>").count(), 12);

    // Without a set to classify there are the pictures that it was trained on.
    let args = ["train", "align.toml", "--out", "bare", "--set", "train.steps=2"];
    assert!(world.uta(&[&args[..], &["--set", "data.val=[]"]].concat()).status.success());
    let html = fs::read_to_string(world.path("bare/report.html")).unwrap();
    assert_eq!(html.matches("data:image/png").count(), 12);
    for part in ["Measured: nothing but the training itself", "last training batch", "picture 0"] {
        assert!(html.contains(part), "{part}");
    }
}
