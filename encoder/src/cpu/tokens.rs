//! The rows of a packed batch: which document and position each token is, and the dropout masks of its rows.

use std::ops::Range;

use crate::dropout::{Mask, Site};
use crate::{Dropout, TokenBatch};

/// The rows of a batch and what dropout does to them.
pub(super) struct Tokens<'a> {
    pub(super) batch: &'a TokenBatch,
    pub(super) dropout: Option<Dropout>,
    /// Document and position of each row.
    places: Vec<(u32, u32)>,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(batch: &'a TokenBatch, dropout: Option<Dropout>) -> Self {
        let places = (0..batch.documents())
            .flat_map(|d| (0..batch.document(d).len()).map(move |i| (d as u32, i as u32)))
            .collect();
        Self { batch, dropout, places }
    }

    /// Rows.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The row's position in its document.
    pub(super) fn position(&self, row: usize) -> usize {
        self.places[row].1 as usize
    }

    /// The rows of each document.
    pub(super) fn documents(&self) -> Vec<Range<usize>> {
        self.batch.offsets.windows(2).map(|w| w[0]..w[1]).collect()
    }

    /// The masks of a site on hidden states.
    pub(super) fn hidden_masks(&self, layer: usize, site: Site) -> RowMasks<'_> {
        let dropout = self.dropout.filter(|d| d.hidden > 0.0);
        let masks = dropout.map(|dropout| {
            self.batch.document_keys.iter().map(|&key| Mask::new(&dropout, layer as u32, site, key)).collect()
        });
        RowMasks { masks, places: &self.places }
    }

    /// The mask of a document's attention probabilities.
    pub(super) fn attention_mask(&self, layer: usize, document: usize) -> Option<Mask> {
        let dropout = self.dropout.filter(|d| d.attention > 0.0)?;
        Some(Mask::new(&dropout, layer as u32, Site::AttentionProbs, self.batch.document_keys[document]))
    }
}

/// The dropout masks of one site for all rows of a batch.
pub(super) struct RowMasks<'a> {
    /// One for each document; `None` where nothing is dropped.
    masks: Option<Vec<Mask>>,
    places: &'a [(u32, u32)],
}

/// Masks that drop nothing.
pub(super) static NO_MASKS: RowMasks<'static> = RowMasks { masks: None, places: &[] };

impl RowMasks<'_> {
    /// The mask of a row of `width` elements and the index of its first element.
    #[inline(always)]
    pub(super) fn row(&self, row: usize, width: usize) -> Option<(Mask, u64)> {
        let masks = self.masks.as_ref()?;
        let (document, position) = self.places[row];
        Some((masks[document as usize], u64::from(position) * width as u64))
    }
}

/// x ← x · mask.
#[inline(always)]
pub(super) fn drop_elements(x: &mut [f32], mask: Option<(Mask, u64)>) {
    if let Some((mask, first)) = mask {
        for (i, x) in x.iter_mut().enumerate() {
            *x *= mask.at(first + i as u64);
        }
    }
}
