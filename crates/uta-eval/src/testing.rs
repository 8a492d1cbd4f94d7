//! Fixtures of this crate's tests: a tiny random CLIP, generated pictures, and embeddings computed one at a time
//! with nothing of the evaluators in between.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::sync::Arc;

use tch::{Device, Tensor};
use uta_data::{DataError, DecodeOptions, EvalTransform, Sample, Source, Tokenizer};
use uta_model::{Clip, ClipConfig, Ffn, Preprocess, TextConfig, VitConfig};

use crate::ranking::to_vec;
use crate::{EvalOptions, Prompts};

/// Names and two templates.
pub fn prompts(classes: usize) -> Prompts {
    let names = (0..classes).map(|i| format!("thing {i}")).collect();
    Prompts::new(names, vec!["a photo of a {}.".into(), "{c}, drawn".into()]).unwrap()
}

/// A CLIP of 16 pixels, patch 4, with weights drawn from `seed` large enough that inputs matter.
pub fn clip(seed: i64) -> Clip {
    let vision = VitConfig {
        image_size: 16,
        patch_size: 4,
        width: 32,
        depth: 2,
        heads: 2,
        hidden: 64,
        out: 24,
        ffn: Ffn::SwiGlu,
        rope: true,
        drop_path: 0.0,
        patch_grad: 1.0,
        ..VitConfig::preset("uta-b14").unwrap()
    };
    let text = TextConfig {
        context_length: 16,
        vocab_size: 1024,
        width: 32,
        heads: 2,
        layers: 2,
        out: 24,
        quick_gelu: false,
    };
    let config = ClipConfig {
        embed_dim: 24,
        vision,
        text: Some(text),
        mean: [0.48145466, 0.4578275, 0.40821073],
        std: [0.26862954, 0.26130258, 0.27577711],
        preprocess: Preprocess::default(),
        aligned: None,
    };
    let _exclusive = SEED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    tch::manual_seed(seed);
    let model = Clip::new(&config, Device::Cpu);
    tch::no_grad(|| {
        let mut variables: Vec<(String, Tensor)> = model.store.variables().into_iter().collect();
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        for (_, weight) in &mut variables {
            *weight += weight.randn_like() * 0.2;
        }
    });
    model
}

/// libtorch's generator is one for the process, and tests run side by side.
static SEED: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Samples in memory.
pub struct Pictures {
    pub samples: Vec<Sample>,
    pub folders: Option<Vec<String>>,
}

impl Pictures {
    /// `n` pictures "picture-{i}" of random coloured blocks, 20 by 18 pixels, of class i modulo `classes`.
    pub fn new(n: usize, classes: usize) -> Pictures {
        let samples = (0..n).map(|i| Sample {
            key: format!("picture-{i}"),
            image: png(i as u32),
            class: Some((i % classes) as u32),
            ..Sample::default()
        });
        Pictures { samples: samples.collect(), folders: None }
    }

    pub fn shared(self) -> Arc<dyn Source> {
        Arc::new(self)
    }
}

impl Source for Pictures {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn read(&self, i: usize) -> Result<Sample, DataError> {
        Ok(self.samples[i].clone())
    }

    fn key(&self, i: usize) -> String {
        self.samples[i].key.clone()
    }

    fn class_names(&self) -> Option<&[String]> {
        self.folders.as_deref()
    }
}

fn png(seed: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(20, 18, |x, y| {
        let mut h =
            (seed + 1).wrapping_mul(0x9E37_79B9) ^ ((x / 5) * 31 + y / 5).wrapping_mul(0x85EB_CA6B);
        h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
        image::Rgb([h as u8, (h >> 8) as u8, (h >> 16) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

pub fn options(batch: usize) -> EvalOptions {
    EvalOptions { batch, workers: 2, ..EvalOptions::default() }
}

/// Sample `i` as the model sees it, `[1,3,S,S]`.
pub fn naive_pixels(model: &Clip, source: &dyn Source, i: usize) -> Tensor {
    let size = model.config.vision.image_size;
    let file = source.read(i).unwrap().image;
    let pixels = EvalTransform::new(size as u32).view(&file, &DecodeOptions::default()).unwrap();
    model.normalise(&Tensor::from_slice(&pixels).view([1, size, size, 3]))
}

fn unit(x: Vec<f32>) -> Vec<f32> {
    let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
    x.into_iter().map(|x| x / norm).collect()
}

/// Unit embeddings of every sample, one forward pass each.
pub fn naive_images(model: &Clip, source: &dyn Source) -> Vec<Vec<f32>> {
    let embed =
        |i| tch::no_grad(|| unit(to_vec(&model.encode_image(&naive_pixels(model, source, i)))));
    (0..source.len()).map(embed).collect()
}

/// Unit embeddings of every text, one forward pass each.
pub fn naive_texts(model: &Clip, texts: &[String]) -> Vec<Vec<f32>> {
    let config = model.config.text.as_ref().unwrap();
    let tokenizer =
        Tokenizer::new(config.vocab_size as usize, config.context_length as usize).unwrap();
    let embed = |text: &String| {
        let tokens = Tensor::from_slice(&tokenizer.encode(text)).unsqueeze(0);
        tch::no_grad(|| unit(to_vec(&model.encode_text(&tokens).unwrap())))
    };
    texts.iter().map(embed).collect()
}

/// Rows of the classifier by the definition.
pub fn naive_classifier(model: &Clip, prompts: &Prompts) -> Vec<Vec<f32>> {
    let row = |name: &String| {
        let texts: Vec<String> =
            prompts.templates.iter().map(|t| t.replace("{}", name).replace("{c}", name)).collect();
        let mut sum = vec![0.0; model.config.embed_dim as usize];
        for text in naive_texts(model, &texts) {
            sum.iter_mut().zip(text).for_each(|(sum, x)| *sum += x);
        }
        unit(sum)
    };
    prompts.names.iter().map(row).collect()
}
