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

/// Splits a batch into blocks of documents of like lengths so that the tokens computed, padding included, plus
/// `overhead` tokens for every block are fewest; of equal splits the one with the longest last block, so that
/// without overhead nothing is padded and documents of one length are one block.
///
/// By length sorted, a block is a run; `cheapest[end]` is the least cost of the first `end` documents.
pub(super) fn groups(batch: &TokenBatch, overhead: usize) -> Vec<Group> {
    let length = |document: usize| batch.offsets[document + 1] - batch.offsets[document];
    let mut order: Vec<usize> = (0..batch.documents()).collect();
    order.sort_by_key(|&document| length(document));
    let mut cheapest = vec![0usize];
    let mut starts = vec![0usize];
    for end in 1..=order.len() {
        let width = length(order[end - 1]);
        let (cost, start) = (0..end)
            .map(|start| (cheapest[start].saturating_add((end - start) * width).saturating_add(overhead), start))
            .min()
            .expect("a block begins somewhere");
        cheapest.push(cost);
        starts.push(start);
    }
    let mut out = Vec::new();
    let mut end = order.len();
    while end > 0 {
        let documents = order[starts[end]..end].to_vec();
        let lengths: Vec<usize> = documents.iter().map(|&document| length(document)).collect();
        out.push(Group { documents, width: length(order[end - 1]), lengths });
        end = starts[end];
    }
    out.reverse();
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(lengths: &[usize]) -> TokenBatch {
        TokenBatch::new(&lengths.iter().map(|&n| vec![1u32; n]).collect::<Vec<_>>())
    }

    fn cost(groups: &[Group], overhead: usize) -> usize {
        groups.iter().map(|g| g.documents.len() * g.width + overhead).sum()
    }

    #[test]
    fn overhead_decides_what_is_padded() {
        let batch = batch(&[7, 3, 8, 3, 20, 9]);
        let lengths = |overhead| groups(&batch, overhead).into_iter().map(|g| g.lengths).collect::<Vec<_>>();
        assert_eq!(lengths(0), [vec![3, 3], vec![7], vec![8], vec![9], vec![20]]);
        assert_eq!(lengths(1), [vec![3, 3], vec![7], vec![8, 9], vec![20]]);
        assert_eq!(lengths(2), [vec![3, 3], vec![7, 8, 9], vec![20]]);
        assert_eq!(lengths(usize::MAX), [vec![3, 3, 7, 8, 9, 20]]);
        assert!(groups(&batch, 0).iter().all(|g| !g.is_padded()));
    }

    /// The least cost of all splits of sorted lengths into runs, by trying each.
    fn least(lengths: &[usize], overhead: usize) -> usize {
        (0..1usize << (lengths.len() - 1))
            .map(|cuts| {
                let ends = (0..lengths.len()).filter(|&i| i + 1 == lengths.len() || cuts >> i & 1 == 1);
                let mut start = 0;
                ends.map(|end| {
                    let block = (end + 1 - start) * lengths[end] + overhead;
                    start = end + 1;
                    block
                })
                .sum()
            })
            .min()
            .expect("at least one split")
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn every_document_is_in_one_block_and_no_split_is_cheaper(
            mut lengths in proptest::collection::vec(1usize..40, 1..10),
            overhead in 0usize..60,
        ) {
            let batch = batch(&lengths);
            let got = groups(&batch, overhead);
            let mut all: Vec<usize> = got.iter().flat_map(|g| g.documents.clone()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            for group in &got {
                let own: Vec<usize> = group.documents.iter().map(|&d| lengths[d]).collect();
                prop_assert_eq!(&own, &group.lengths);
                prop_assert_eq!(group.width, *group.lengths.last().unwrap_or(&0));
            }
            lengths.sort_unstable();
            prop_assert_eq!(cost(&got, overhead), least(&lengths, overhead));
        }
    }
}
