//! Unmasked Token Alignment (paper section 2.2): the student sees `[CLS]` and the kept patches, the frozen teacher sees
//! the whole image, and every token of the student is pulled towards the same token of the teacher. With mask kind `none` it is
//! dense feature distillation, the FD rows of the paper's Table 6.

pub(crate) mod recipe;

use tch::{Kind, Tensor};
use uta_model::Vit;

use super::Output;
use super::distill::{Objective, cosine};

/// Alignment of the kept tokens.
pub(crate) struct Align;

impl Objective for Align {
    fn loss(
        &self,
        student: &Vit,
        images: &Tensor,
        kept: Option<&Tensor>,
        target: &Tensor,
        train: bool,
    ) -> Output {
        let tokens = student.forward_t(images, kept, train); // [B, 1+K, E]
        let cosine = cosine(&tokens, target); // [B, 1+K]
        let loss = -cosine.mean(Kind::Float);
        let metrics = vec![
            ("cosine", -loss.detach()),
            ("cosine_cls", cosine.select(1, 0).mean(Kind::Float).detach()),
        ];
        Output { loss, count: images.size()[0] as f64, metrics }
    }
}
