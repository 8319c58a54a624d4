//! The layers in their order: the forward pass over one workspace.

use rayon::prelude::*;

use super::attention::Attention;
use super::embedding;
use super::level::Level;
use super::matrix::{Mat, MatMut, Store, Threads, product};
use super::rows::{Before, NOTHING, NormWeights, bias_gelu, fill_with_bias, norm};
use super::tokens::{NO_MASKS, Tokens};
use super::weights::{Layer, Linear, Norm, Places};
use super::workspace::{Keep, LayerActivations, Workspace, ensure};
use crate::BertConfig;
use crate::dropout::Site;

/// Outputs of a weight's gradient that one task has are a multiple of this: whole tiles of the product.
const OUTPUTS: usize = 48;

/// How many of a linear layer's outputs one task has in the gradient of its weight, on the current thread pool.
pub(crate) fn outputs_per_task(outputs: usize) -> usize {
    outputs.div_ceil(rayon::current_num_threads()).next_multiple_of(OUTPUTS).max(2 * OUTPUTS)
}

/// One batch on its way through the network.
pub(super) struct Network<'a> {
    pub(super) level: Level,
    pub(super) config: &'a BertConfig,
    pub(super) parameters: &'a [f32],
    pub(super) places: &'a Places,
    pub(super) tokens: &'a Tokens<'a>,
}

impl<'a> Network<'a> {
    pub(super) fn norm_weights(&self, norm: &Norm) -> NormWeights<'a> {
        NormWeights {
            weight: &self.parameters[norm.weight.clone()],
            bias: &self.parameters[norm.bias.clone()],
            epsilon: self.config.layer_norm_eps as f32,
        }
    }

    fn bias(&self, linear: &Linear) -> &'a [f32] {
        &self.parameters[linear.bias.clone()]
    }

    fn weight(&self, linear: &Linear) -> Mat<'a> {
        Mat::new(&self.parameters[linear.weight.clone()], linear.out, linear.inner)
    }

    pub(super) fn attention(&self, layer: usize) -> Attention<'_> {
        Attention { level: self.level, config: self.config, tokens: self.tokens, layer }
    }

    /// y = x Wᵀ, without the bias; with [`Store::Sum`] added to y.
    fn linear(&self, linear: &Linear, x: &[f32], y: &mut [f32], store: Store) {
        let rows = self.tokens.len();
        let mut y = MatMut::new(y, rows, linear.out);
        product(&mut y, store, Mat::new(x, rows, linear.inner), self.weight(linear).t(), 1.0, Threads::All);
    }

    /// dL/dx = dL/dy W, or added to x's gradient.
    pub(super) fn linear_input_gradient(&self, linear: &Linear, dy: &[f32], dx: &mut [f32], store: Store) {
        let rows = self.tokens.len();
        let mut dx = MatMut::new(dx, rows, linear.inner);
        product(&mut dx, store, Mat::new(dy, rows, linear.out), self.weight(linear), 1.0, Threads::All);
    }

    /// dL/dW += dL/dyᵀ x. Each thread has outputs of its own: the sum over rows is long, and `gemm` shares out such
    /// a product badly.
    pub(super) fn linear_weight_gradient(&self, linear: &Linear, dy: &[f32], x: &[f32], gradient: &mut [f32]) {
        let rows = self.tokens.len();
        let x = Mat::new(x, rows, linear.inner);
        let per_task = outputs_per_task(linear.out);
        gradient[linear.weight.clone()].par_chunks_mut(per_task * linear.inner).enumerate().for_each(|(task, dw)| {
            let outputs = task * per_task..linear.out.min((task + 1) * per_task);
            let mut dw = MatMut::new(dw, outputs.len(), linear.inner);
            let dy = Mat::part(dy, rows, linear.out, outputs);
            product(&mut dw, Store::Sum, dy.t(), x, 1.0, Threads::One);
        });
    }

    /// The head's transformed rows `[T, H]`, which end up in the workspace's first hidden scratch.
    pub(super) fn forward(&self, workspace: &mut Workspace, keep: Keep) {
        self.layers(workspace, keep);
        let rows = self.tokens.len();
        let hidden = rows * self.config.hidden_size;
        let x = &mut workspace.hidden[0][..hidden];
        let transform = &self.places.transform;
        let u = ensure(&mut workspace.transform, hidden);
        self.linear(transform, x, u, Store::Fresh);
        let normed = &mut workspace.transform_norm;
        bias_gelu(self.level, u, self.bias(transform), ensure(&mut normed.rows, hidden));
        let weights = self.norm_weights(&self.places.transform_norm);
        norm(self.level, normed, rows, NOTHING, weights, &NO_MASKS, x);
    }

    /// The last layer's output `[T, H]`, which ends up in the workspace's first hidden scratch.
    pub(super) fn layers(&self, workspace: &mut Workspace, keep: Keep) {
        let rows = self.tokens.len();
        let (hidden, wide) = (rows * self.config.hidden_size, rows * self.config.intermediate_size);
        let kept = if keep == Keep::Activations { self.places.layers.len() } else { 1 };
        if workspace.layers.len() < kept {
            workspace.layers.resize_with(kept, LayerActivations::default);
        }
        if keep == Keep::Inputs {
            workspace.inputs.resize_with(self.places.layers.len() + 1, Vec::new);
        }
        let [x, y, _] = &mut workspace.hidden;
        let (x, y) = (ensure(x, hidden), ensure(y, hidden));
        let g = ensure(&mut workspace.wide, wide);

        let normed = &mut workspace.embedding_norm;
        let sums = ensure(&mut normed.rows, hidden);
        embedding::forward(self.level, self.tokens, self.parameters, self.places, sums);
        let weights = self.norm_weights(&self.places.embedding_norm);
        norm(self.level, normed, rows, NOTHING, weights, &self.tokens.hidden_masks(0, Site::Embedding), x);
        for (number, layer) in self.places.layers.iter().enumerate() {
            if keep == Keep::Inputs {
                ensure(&mut workspace.inputs[number], hidden).copy_from_slice(x);
            }
            let acts = &mut workspace.layers[if keep == Keep::Activations { number } else { 0 }];
            self.layer_forward(number, layer, acts, x, y, g);
        }
        if keep == Keep::Inputs {
            ensure(&mut workspace.inputs[self.places.layers.len()], hidden).copy_from_slice(x);
        }
    }

    /// x becomes the layer's output; y and g are scratch.
    pub(super) fn layer_forward(
        &self,
        number: usize,
        layer: &Layer,
        acts: &mut LayerActivations,
        x: &mut [f32],
        y: &mut [f32],
        g: &mut [f32],
    ) {
        let rows = self.tokens.len();
        for (linear, projection) in layer.projections.iter().zip(&mut acts.projections) {
            let projection = ensure(projection, x.len());
            fill_with_bias(projection, self.bias(linear));
            self.linear(linear, x, projection, Store::Sum);
        }
        ensure(&mut acts.context, x.len());
        ensure(&mut acts.log_sums, rows * self.config.num_attention_heads);
        self.attention(number).forward(acts);

        let normed = &mut acts.attention_norm;
        self.linear(&layer.attention_output, &acts.context, ensure(&mut normed.rows, x.len()), Store::Fresh);
        let masks = self.tokens.hidden_masks(number, Site::AttentionOutput);
        let before = Before { bias: Some(self.bias(&layer.attention_output)), masks: &masks, residual: Some(x) };
        norm(self.level, normed, rows, before, self.norm_weights(&layer.attention_norm), &NO_MASKS, y);

        let u = ensure(&mut acts.wide, g.len());
        self.linear(&layer.intermediate, y, u, Store::Fresh);
        bias_gelu(self.level, u, self.bias(&layer.intermediate), g);

        let normed = &mut acts.output_norm;
        self.linear(&layer.output, g, ensure(&mut normed.rows, x.len()), Store::Fresh);
        let masks = self.tokens.hidden_masks(number, Site::FeedForwardOutput);
        let before = Before { bias: Some(self.bias(&layer.output)), masks: &masks, residual: Some(y) };
        norm(self.level, normed, rows, before, self.norm_weights(&layer.output_norm), &NO_MASKS, x);
    }
}
