//! Documents of a batch that are computed together as one `[documents, width]` block.

use crate::TokenBatch;

/// Documents computed as one block; those shorter than `width` are padded, and their padding is masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Places in the batch.
    pub(super) documents: Vec<usize>,
    /// Their lengths, ascending.
    pub(super) lengths: Vec<usize>,
    /// The longest length.
    pub(super) width: usize,
}

impl Group {
    /// Whether any document is shorter than the block.
    pub(super) fn is_padded(&self) -> bool {
        self.lengths[0] < self.width
    }
}

/// Splits a batch into blocks: a document joins the block of the next shorter ones if it is at most `slack`
/// (0.25: a quarter) longer than the shortest of them. With slack 0 nothing is ever padded.
pub(super) fn groups(batch: &TokenBatch, slack: f64) -> Vec<Group> {
    let length = |document: usize| batch.offsets[document + 1] - batch.offsets[document];
    let mut order: Vec<usize> = (0..batch.documents()).collect();
    order.sort_by_key(|&document| length(document));
    let mut out: Vec<Group> = Vec::new();
    for document in order {
        let len = length(document);
        match out.last_mut() {
            Some(group) if len as f64 <= group.lengths[0] as f64 * (1.0 + slack) => {
                group.documents.push(document);
                group.lengths.push(len);
                group.width = len;
            }
            _ => out.push(Group { documents: vec![document], lengths: vec![len], width: len }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_is_in_one_block_and_slack_bounds_the_padding() {
        let documents: Vec<Vec<u32>> = [7usize, 3, 8, 3, 20, 9].iter().map(|&n| vec![1; n]).collect();
        let batch = TokenBatch::new(&documents);
        let exact = groups(&batch, 0.0);
        assert!(exact.iter().all(|g| !g.is_padded()));
        assert_eq!(exact[0].documents, [1, 3]);
        assert_eq!(exact.len(), 5);
        let loose = groups(&batch, 0.25);
        assert_eq!(
            loose.iter().map(|g| g.lengths.clone()).collect::<Vec<_>>(),
            [vec![3, 3], vec![7, 8], vec![9], vec![20]]
        );
        let mut all: Vec<usize> = loose.iter().flat_map(|g| g.documents.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
    }
}
