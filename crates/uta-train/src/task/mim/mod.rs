//! Masked image modelling of CLIP's features (EVA, EVA-02; the MIM rows of the paper's Table 6), and UTA together with it: a
//! learned token takes the place of each masked patch, and the student's tokens at masked patches are pulled towards the
//! teacher's (task `mim`), or those at the kept patches too (task `uta-mim`, paper section 5).

pub(crate) mod recipe;

use tch::{Kind, Tensor};
use uta_model::Vit;

use super::Output;
use super::distill::{Objective, cosine};

/// Prediction at the masked patches, and alignment of the kept ones.
pub(crate) struct Mim {
    /// w: the loss is w times that of prediction, and 1 - w times that of alignment.
    pub weight: f64,
}

impl Objective for Mim {
    fn loss(
        &self,
        student: &Vit,
        images: &Tensor,
        kept: Option<&Tensor>,
        target: &Tensor,
        train: bool,
    ) -> Output {
        let kept = kept.expect("checked with the recipe: some patches are masked"); // [B, K]
        let (b, n) = (target.size()[0], target.size()[1] - 1);
        let every = Tensor::ones([b, n], (Kind::Bool, kept.device()));
        let masked = every.scatter_value(1, kept, 0); // [B, N]
        let tokens = student.forward_masked_t(images, &masked, train); // [B, 1+N, E]
        let cosine = cosine(&tokens, target); // [B, 1+N]

        let masked = masked.constant_pad_nd([1, 0]).to_kind(Kind::Float); // [CLS] is kept
        let number = (b * (n - kept.size()[1])) as f64;
        let sum = |weights: &Tensor| (&cosine * weights).sum(Kind::Float);
        let at_masked = sum(&masked) / number;
        let at_kept = sum(&(1.0 - &masked)) / ((b * (1 + n)) as f64 - number);
        let loss = -(self.weight * &at_masked + (1.0 - self.weight) * &at_kept);
        let metrics = vec![
            ("cosine", -loss.detach()),
            ("cosine_masked", at_masked.detach()),
            ("cosine_kept", at_kept.detach()),
            ("cosine_cls", cosine.select(1, 0).mean(Kind::Float).detach()),
        ];
        Output { loss, count: b as f64, metrics }
    }
}
