//! Which texts go into the graph together. It computes padding like text, so a batch holds texts of like length.

/// Most texts of a batch: its vectors are `[B, V]`.
const MAX_TEXTS: usize = 256;
/// A text may leave at most one part in so many of its row to padding.
const PADDING: usize = 8;

/// Places of texts, batch after batch, the longest first. A batch holds at most `tokens` tokens with its padding,
/// unless a single text is longer.
pub(super) fn batches(lengths: &[usize], tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&place| std::cmp::Reverse(lengths[place]));
    let mut out: Vec<Vec<usize>> = Vec::new();
    for place in order {
        match out.last_mut() {
            Some(batch) if fits(lengths[batch[0]], batch.len() + 1, lengths[place], tokens) => batch.push(place),
            _ => out.push(vec![place]),
        }
    }
    out
}

fn fits(longest: usize, texts: usize, length: usize, tokens: usize) -> bool {
    texts <= MAX_TEXTS && texts * longest <= tokens && length * PADDING >= longest * (PADDING - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_stands_once_and_padding_stays_small() {
        let lengths: Vec<usize> = (0..3000).map(|i| 2 + i * i % 511).collect();
        let batches = batches(&lengths, 4096);
        let mut places: Vec<usize> = batches.concat();
        places.sort_unstable();
        assert_eq!(places, (0..3000).collect::<Vec<_>>());
        for batch in &batches {
            let longest = batch.iter().map(|&place| lengths[place]).max().unwrap_or_default();
            let tokens: usize = batch.iter().map(|&place| lengths[place]).sum();
            assert!(batch.len() <= MAX_TEXTS && longest * batch.len() <= 4096);
            assert!(tokens * 8 >= longest * batch.len() * 7, "{tokens} of {}", longest * batch.len());
        }
        let all: usize = batches.iter().map(|b| lengths[b[0]] * b.len()).sum();
        let text: usize = lengths.iter().sum();
        assert!(all < text + text / 20, "{text} tokens became {all}");
    }

    #[test]
    fn a_text_longer_than_a_batch_goes_alone() {
        assert_eq!(batches(&[500, 3, 490], 400), [vec![0], vec![2], vec![1]]);
        assert!(batches(&[], 400).is_empty());
    }
}
