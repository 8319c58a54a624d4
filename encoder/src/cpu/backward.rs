//! The layers in reverse: gradients of all parameters below the head, over the forward's workspace.

use super::embedding;
use super::matrix::Store;
use super::network::Network;
use super::rows::{NormBackward, NormPlaces, add_column_sums, gelu_backward, norm_backward, norm_output};
use super::tokens::{NO_MASKS, RowMasks};
use super::weights::{Layer, Linear, Norm};
use super::workspace::{Keep, LayerActivations, Normed, Workspace, ensure};
use crate::dropout::Site;

/// What flows down, and scratch.
struct Flow<'a> {
    /// dL/d the stream of hidden states, `[T, H]`.
    stream: &'a mut [f32],
    /// dL/d the branch that is added to the stream, `[T, H]`.
    branch: &'a mut [f32],
    /// Hidden states made again, `[T, H]`.
    states: &'a mut [f32],
    /// dL/d the feed-forward layer's middle, `[T, wide]`.
    wide: &'a mut [f32],
    partials: &'a mut Vec<f32>,
    /// dL/d the parameters, laid out like them.
    gradient: &'a mut [f32],
}

impl Network<'_> {
    /// The head's transformed rows again, into `y`.
    pub(super) fn transformed(&self, normed: &Normed, y: &mut [f32]) {
        norm_output(self.level, normed, self.norm_weights(&self.places.transform_norm), &NO_MASKS, y);
    }

    /// From the gradient of the transformed rows, in the workspace's first hidden scratch, to that of all
    /// parameters below, added to `gradient`. `keep` is the forward's.
    pub(super) fn backward(&self, workspace: &mut Workspace, keep: Keep, gradient: &mut [f32]) {
        let rows = self.tokens.len();
        let hidden = rows * self.config.hidden_size;
        let Workspace { embedding_norm, layers, inputs, transform, transform_norm, hidden: scratch, wide, partials } =
            workspace;
        let [stream, branch, states] = scratch;
        let mut flow = Flow {
            stream: ensure(stream, hidden),
            branch: ensure(branch, hidden),
            states: ensure(states, hidden),
            wide: ensure(wide, rows * self.config.intermediate_size),
            partials,
            gradient,
        };
        // The hidden states above so many layers, into the flow's states.
        let input = |number: usize, layers: &[LayerActivations], states: &mut [f32]| {
            if keep == Keep::Inputs {
                states.copy_from_slice(&inputs[number][..hidden]);
            } else {
                self.layer_input(&layers[..number], embedding_norm, states);
            }
        };
        input(self.places.layers.len(), layers, flow.states);
        self.transform_backward(&mut transform[..hidden], transform_norm, &mut flow);
        for (number, layer) in self.places.layers.iter().enumerate().rev() {
            if keep == Keep::Inputs {
                // Scratch serves as the layer's output, which nobody needs, and as its middle.
                input(number, layers, flow.states);
                self.layer_forward(number, layer, &mut layers[0], flow.states, flow.branch, flow.wide);
            }
            let acts = &mut layers[if keep == Keep::Inputs { 0 } else { number }];
            self.feed_forward_backward(number, layer, acts, &mut flow);
            self.attention_backward(number, layer, acts, &mut flow);
            input(number, layers, flow.states);
            let acts = &layers[if keep == Keep::Inputs { 0 } else { number }];
            self.projections_backward(layer, acts, &mut flow);
        }
        let masks = self.tokens.hidden_masks(0, Site::Embedding);
        let norm = &self.places.embedding_norm;
        self.through_norm(embedding_norm, norm, None, &NO_MASKS, &masks, &mut flow);
        embedding::backward(self.level, self.tokens, self.places, flow.stream, flow.gradient);
    }

    /// The head's dense layer, GELU and `LayerNorm`; the flow's states are its input.
    fn transform_backward(&self, u: &mut [f32], normed: &Normed, flow: &mut Flow) {
        let linear = &self.places.transform;
        self.through_norm(normed, &self.places.transform_norm, None, &NO_MASKS, &NO_MASKS, flow);
        let bias = &mut flow.gradient[linear.bias.clone()];
        gelu_backward(self.level, u, flow.stream, bias, flow.partials);
        self.linear_weight_gradient(linear, flow.stream, flow.states, flow.gradient);
        self.linear_input_gradient(linear, flow.stream, flow.branch, Store::Fresh);
        std::mem::swap(&mut flow.stream, &mut flow.branch);
    }

    fn feed_forward_backward(&self, number: usize, layer: &Layer, acts: &mut LayerActivations, flow: &mut Flow) {
        let masks = self.tokens.hidden_masks(number, Site::FeedForwardOutput);
        self.through_norm(&acts.output_norm, &layer.output_norm, Some(&layer.output), &masks, &NO_MASKS, flow);
        self.linear_input_gradient(&layer.output, flow.branch, flow.wide, Store::Fresh);
        let u = &mut acts.wide[..flow.wide.len()];
        gelu_backward(self.level, u, flow.wide, &mut flow.gradient[layer.intermediate.bias.clone()], flow.partials);
        self.linear_weight_gradient(&layer.output, flow.branch, u, flow.gradient);
        let weights = self.norm_weights(&layer.attention_norm);
        norm_output(self.level, &acts.attention_norm, weights, &NO_MASKS, flow.states);
        self.linear_weight_gradient(&layer.intermediate, flow.wide, flow.states, flow.gradient);
        self.linear_input_gradient(&layer.intermediate, flow.wide, flow.stream, Store::Sum);
    }

    /// Down to the gradients of query, key and value, which take their places.
    fn attention_backward(&self, number: usize, layer: &Layer, acts: &mut LayerActivations, flow: &mut Flow) {
        let linear = &layer.attention_output;
        let masks = self.tokens.hidden_masks(number, Site::AttentionOutput);
        self.through_norm(&acts.attention_norm, &layer.attention_norm, Some(linear), &masks, &NO_MASKS, flow);
        self.linear_weight_gradient(linear, flow.branch, &acts.context, flow.gradient);
        self.linear_input_gradient(linear, flow.branch, flow.states, Store::Fresh);
        self.attention(number).backward(acts, flow.states);
    }

    fn projections_backward(&self, layer: &Layer, acts: &LayerActivations, flow: &mut Flow) {
        for (linear, dy) in layer.projections.iter().zip(&acts.projections) {
            let dy = &dy[..flow.stream.len()];
            add_column_sums(self.level, dy, &mut flow.gradient[linear.bias.clone()], flow.partials);
            self.linear_weight_gradient(linear, dy, flow.states, flow.gradient);
            self.linear_input_gradient(linear, dy, flow.stream, Store::Sum);
        }
    }

    /// Through a `LayerNorm`: the stream's gradient in place and, where a linear layer's output was added to
    /// the stream before it, that branch's.
    fn through_norm(
        &self,
        normed: &Normed,
        norm: &Norm,
        added: Option<&Linear>,
        before: &RowMasks,
        after: &RowMasks,
        flow: &mut Flow,
    ) {
        let way = NormBackward { normed, weight: self.norm_weights(norm).weight, before, after };
        let places = NormPlaces { norm, bias_before: added.map(|linear| &linear.bias) };
        let branch = added.is_some().then_some(&mut *flow.branch);
        norm_backward(self.level, &way, flow.stream, branch, &places, flow.gradient, flow.partials);
    }

    /// The hidden states above the given layers, into `y`.
    fn layer_input(&self, below: &[LayerActivations], embedding_norm: &Normed, y: &mut [f32]) {
        if let Some(last) = below.last() {
            let weights = self.norm_weights(&self.places.layers[below.len() - 1].output_norm);
            norm_output(self.level, &last.output_norm, weights, &NO_MASKS, y);
        } else {
            let masks = self.tokens.hidden_masks(0, Site::Embedding);
            norm_output(self.level, embedding_norm, self.norm_weights(&self.places.embedding_norm), &masks, y);
        }
    }
}
