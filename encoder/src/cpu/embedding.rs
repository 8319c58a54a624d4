//! Words, positions and token type, summed.

use rayon::prelude::*;

use super::level::Level;
use super::math;
use super::tokens::Tokens;
use super::weights::Places;

/// Writes the summed embeddings of each token to `sums` (`[T, hidden]`).
pub(super) fn forward(level: Level, tokens: &Tokens, parameters: &[f32], places: &Places, sums: &mut [f32]) {
    let hidden = sums.len() / tokens.len();
    let line = |table: &std::ops::Range<usize>, i: usize| {
        let start = table.start + i * hidden;
        &parameters[start..start + hidden]
    };
    sums.par_chunks_exact_mut(hidden).enumerate().for_each(|(row, x)| {
        let word = line(&places.words, tokens.batch.ids[row] as usize);
        let position = line(&places.positions, tokens.position(row));
        let token_type = line(&places.token_types, tokens.batch.token_type(row));
        level.run(
            #[inline(always)]
            || {
                for (((x, word), position), kind) in x.iter_mut().zip(word).zip(position).zip(token_type) {
                    *x = word + position + kind;
                }
            },
        );
    });
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
                let token_type = places.token_types.start + tokens.batch.token_type(row) * hidden;
                for start in [word, position, token_type] {
                    math::add(&mut gradient[start..start + hidden], x);
                }
            }
        },
    );
}
