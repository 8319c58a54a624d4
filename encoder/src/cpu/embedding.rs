//! Words, positions and token type, summed and normalised.

use rayon::prelude::*;

use super::level::Level;
use super::math;
use super::rows::{NOTHING, NormWeights, norm};
use super::tokens::{RowMasks, Tokens};
use super::weights::Places;
use super::workspace::Normed;

/// Writes the embeddings' output to `y` (`[T, H]`) and its normalised rows to `normed`.
pub(super) fn forward(
    level: Level,
    tokens: &Tokens,
    parameters: &[f32],
    places: &Places,
    norm_weights: NormWeights,
    normed: &mut Normed,
    masks: &RowMasks,
    y: &mut [f32],
) {
    let hidden = norm_weights.weight.len();
    let line = |table: &std::ops::Range<usize>, i: usize| {
        let start = table.start + i * hidden;
        &parameters[start..start + hidden]
    };
    let token_type = line(&places.token_types, 0);
    normed.rows[..tokens.len() * hidden].par_chunks_exact_mut(hidden).enumerate().for_each(|(row, x)| {
        let word = line(&places.words, tokens.batch.ids[row] as usize);
        let position = line(&places.positions, tokens.position(row));
        level.run(
            #[inline(always)]
            || {
                for (((x, word), position), kind) in x.iter_mut().zip(word).zip(position).zip(token_type) {
                    *x = word + position + kind;
                }
            },
        );
    });
    norm(level, normed, tokens.len(), NOTHING, norm_weights, masks, y);
}

/// Adds dL/d sum (`[T, H]`) to the rows of the tables, token after token.
pub(super) fn backward(level: Level, tokens: &Tokens, places: &Places, sum_gradient: &[f32], gradient: &mut [f32]) {
    let hidden = sum_gradient.len() / tokens.len();
    level.run(
        #[inline(always)]
        || {
            for (row, x) in sum_gradient.chunks_exact(hidden).enumerate() {
                let word = places.words.start + tokens.batch.ids[row] as usize * hidden;
                let position = places.positions.start + tokens.position(row) * hidden;
                for start in [word, position, places.token_types.start] {
                    math::add(&mut gradient[start..start + hidden], x);
                }
            }
        },
    );
}
