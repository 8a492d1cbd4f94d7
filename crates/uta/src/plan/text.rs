//! `uta plan` for tasks whose samples are texts.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use uta_train::Recipe;
use uta_train::recipe::PrecisionName;
use uta_train::text_plan::{TextMemory, TextShapes};

use super::{Args, Device, Epoch, Net, USABLE, grouped, si};
use crate::output::print;

/// Texts of DataComp-1B, the paper's data (section 5).
const DATACOMP_1B: u64 = 1_280_000_000;

/// The plan of a run on texts.
#[derive(Debug, Serialize)]
struct Report {
    recipe: String,
    device: Device,
    count: u64,
    utilisation: f64,
    precision: PrecisionName,
    steps: u64,
    samples: u64,
    samples_per_epoch: u64,
    samples_per_epoch_from: &'static str,
    batch: u64,
    micro_batch: u64,
    student: Net,
    teacher: Net,
    texts_per_second: f64,
    step_seconds: f64,
    hours: f64,
    device_hours: f64,
    /// Memory of a device.
    memory: TextMemory,
    usable_memory_bytes: f64,
    fits: bool,
    largest_micro_batch: u64,
    /// That a device sends a step, and receives.
    all_reduce_bytes: f64,
}

/// Plans a run on texts.
pub fn run(args: &Args, mut recipe: Recipe, shapes: TextShapes) -> anyhow::Result<()> {
    let shapes = shapes.on_devices(args.count);
    let batch = recipe.train.batch as u64;
    let micro_batch = recipe.micro_batch(args.count as usize)?;
    let absent = (DATACOMP_1B, "DataComp-1B's, as data.train isn't there");
    let Epoch { samples: samples_per_epoch, from, .. } = Epoch::of(args, &recipe, absent);
    recipe.resolve_length(samples_per_epoch as usize);
    let device = Device::find(&args.device, recipe.train.precision)?;

    let samples = recipe.steps() * batch;
    let flops = [shapes.student_flops(), shapes.teacher_flops()];
    let both: f64 = flops.iter().sum();
    let [student, teacher] = [0, 1].map(|net| Net {
        tokens: shapes.tokens()[net],
        image_flops: flops[net],
        run_flops: flops[net] * samples as f64,
        share: flops[net] / both,
    });
    let texts_per_second = args.count as f64 * device.peak * args.utilisation / both;
    let hours = samples as f64 / texts_per_second / 3600.0;
    let memory = shapes.memory(micro_batch as i64);
    let usable = USABLE * device.memory_bytes;
    let report = Report {
        recipe: args.recipe.display().to_string(),
        count: args.count,
        utilisation: args.utilisation,
        precision: recipe.train.precision,
        steps: recipe.steps(),
        samples,
        samples_per_epoch,
        samples_per_epoch_from: from,
        batch,
        micro_batch: micro_batch as u64,
        student,
        teacher,
        texts_per_second,
        step_seconds: batch as f64 / texts_per_second,
        hours,
        device_hours: args.count as f64 * hours,
        fits: memory.step as f64 <= usable,
        largest_micro_batch: shapes.largest_batch(usable as i64) as u64,
        usable_memory_bytes: usable,
        memory,
        all_reduce_bytes: shapes.all_reduce_bytes(args.count),
        device,
    };
    print(args.json, &report)
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.recipe)?;
        super::heading(f, &self.device, self.count, self.precision, self.utilisation)?;
        writeln!(f, "\nlength")?;
        let steps = grouped(self.steps);
        writeln!(f, "  steps           {steps:>14}   of {} texts", grouped(self.batch))?;
        writeln!(f, "  texts           {:>14}", grouped(self.samples))?;
        let epochs = self.samples as f64 / self.samples_per_epoch as f64;
        writeln!(
            f,
            "  epochs          {epochs:>14.2}   of {} texts ({})",
            grouped(self.samples_per_epoch),
            self.samples_per_epoch_from
        )?;

        writeln!(f, "\nproducts                 a text          the run    share")?;
        for (name, net, what) in [
            ("teacher", &self.teacher, "forward"),
            ("student", &self.student, "forward and backward"),
        ] {
            let [text, run] = [net.image_flops, net.run_flops].map(|flops| si(flops) + "FLOP");
            let (share, tokens) = (100.0 * net.share, net.tokens);
            writeln!(
                f,
                "  {name:<10} {text:>19} {run:>16} {share:>6.1} %   {tokens} tokens, {what}"
            )?;
        }
        writeln!(
            f,
            "  texts that fill the context: shorter ones take less, so that the hours are those at most"
        )?;

        writeln!(f, "\nspeed")?;
        writeln!(f, "  texts/s         {:>14}", grouped(self.texts_per_second.round() as u64))?;
        writeln!(f, "  a step          {:>14}", format!("{:.2} ms", 1e3 * self.step_seconds))?;
        writeln!(f, "  hours           {:>14.2}", self.hours)?;
        writeln!(f, "  device hours    {:>14.2}", self.device_hours)?;

        let m = &self.memory;
        writeln!(f, "\nmemory of a device, {} texts at a time", grouped(self.micro_batch))?;
        for (name, bytes, note) in [
            ("weights", m.weights, "the student's, f32"),
            ("gradients", m.gradients, "f32"),
            ("moments", m.moments, "AdamW's two, f32"),
            ("average", m.average, "of the weights, f32"),
            ("teacher", m.teacher, "its text encoder, f32"),
            ("images", m.images, "the teacher's image encoder, for evaluations, f32"),
            (
                "activations",
                m.activations,
                "kept for the backward pass, of texts that fill the context",
            ),
        ] {
            if bytes > 0 {
                writeln!(f, "  {name:<12} {:>16}   {note}", si(bytes as f64) + "B")?;
            }
        }
        writeln!(f, "  {:<12} {:>16}", "a step", si(m.step as f64) + "B")?;
        write!(
            f,
            "  {} in {}B ({:.0} % of the device's); at most {} texts at a time",
            if self.fits { "fits" } else { "DOES NOT FIT" },
            si(self.usable_memory_bytes),
            100.0 * USABLE,
            grouped(self.largest_micro_batch),
        )?;
        if self.count > 1 {
            let rate = self.all_reduce_bytes / self.step_seconds;
            let bytes = si(self.all_reduce_bytes);
            write!(
                f,
                "\n\ntraffic\n  gradients    {:>15}B/s   sent by each device, {bytes}B a step",
                si(rate)
            )?;
        }
        Ok(())
    }
}
