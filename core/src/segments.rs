//! Long documents: a text beyond the window is read as several windows, each by itself, and a document's vector is the
//! maximum over them (`SeDR`, arXiv 2211.10841, with the maximum of SPLADE in place of a maximum of scores).

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, SparseVector, TextTokenizer, TokenId, Weight};

/// A last segment with fewer new word pieces is too short unless said otherwise.
const MIN_LAST: usize = 50;

/// How a text that is longer than the window becomes segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Segments {
    /// Most segments of a document; what lies beyond them is not read. With 1 a text is cut, as without segments.
    pub max: usize,
    /// Word pieces that a segment shares with the one before it.
    #[serde(default)]
    pub overlap: usize,
    /// A last segment that would bring fewer new word pieces than this is left out; without it 50, or 30 % of a
    /// window's room where that is less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_last: Option<usize>,
}

impl Segments {
    /// Whether these can be used with windows of `max_tokens`, special tokens included.
    ///
    /// # Errors
    /// The first number that cannot be used, by its name.
    pub fn validate(&self, max_tokens: usize) -> Result<()> {
        let room = max_tokens.saturating_sub(2);
        let bad = |name: &str, value: usize, why: &str| {
            Err(Error::invalid(format!("`segments.{name}` is {value}, but a window has room for {room} pieces: {why}")))
        };
        if self.max == 0 {
            return Err(Error::invalid("`segments.max` is 0: at least one segment is read"));
        }
        if self.max == 1 && self.overlap > 0 {
            return Err(Error::invalid(
                "`segments.overlap` does nothing with `segments.max: 1`: one segment has none before it",
            ));
        }
        if self.overlap >= room {
            return bad("overlap", self.overlap, "a segment must bring something new");
        }
        match self.min_last {
            Some(least) if least > room - self.overlap => {
                bad("min_last", least, "less the overlap, no segment brings as many new ones")
            }
            _ => Ok(()),
        }
    }

    /// What a last segment has to bring at least, in windows with this room.
    fn least(&self, room: usize) -> usize {
        // In whole numbers: SeDR's int(.3 L). A segment that is full is not short.
        self.min_last.unwrap_or((room * 3 / 10).min(MIN_LAST).min(room - self.overlap))
    }

    /// Which word pieces each segment of a text holds, in windows with room for `room` pieces beside the special
    /// tokens. The first begins at 0, each other one `overlap` pieces before the end of the one before it; there is
    /// at least one, and a text that fits has one.
    pub fn ranges(&self, pieces: usize, room: usize) -> Vec<Range<usize>> {
        debug_assert!(room > self.overlap && self.max > 0, "checked by validate");
        let mut out = Vec::new();
        out.push(0..pieces.min(room));
        let mut end = pieces.min(room);
        while end < pieces && out.len() < self.max {
            let next = (end - self.overlap + room).min(pieces);
            if next == pieces && next - end < self.least(room) {
                break;
            }
            out.push(end - self.overlap..next);
            end = next;
        }
        out
    }
}

impl TextTokenizer {
    /// The windows of a text, `[CLS] pieces [SEP]` each and at most `max_tokens` long, and how many pieces the whole
    /// text has. Without `segments`, and for a text that fits, that is one: [`TextTokenizer::window`]'s.
    ///
    /// # Errors
    /// As [`TextTokenizer::window`], or if `segments` do not fit the window.
    pub fn windows(
        &self,
        text: &str,
        max_tokens: usize,
        segments: Option<&Segments>,
    ) -> Result<(Vec<Vec<TokenId>>, usize)> {
        let Some(segments) = segments else {
            let (window, length) = self.window(text, max_tokens)?;
            return Ok((vec![window], length));
        };
        if max_tokens < 3 {
            // The one message for it.
            return self.window(text, max_tokens).map(|(window, length)| (vec![window], length));
        }
        segments.validate(max_tokens)?;
        let pieces = self.pieces(text)?;
        let (cls, sep) = (self.special().cls, self.special().sep);
        let window = |range: Range<usize>| {
            let mut ids = Vec::with_capacity(range.len() + 2);
            ids.push(cls);
            ids.extend_from_slice(&pieces[range]);
            ids.push(sep);
            ids
        };
        let windows = segments.ranges(pieces.len(), max_tokens - 2).into_iter().map(window).collect();
        Ok((windows, pieces.len()))
    }
}

/// Windows of several texts: which belong to which.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows {
    /// All windows, text after text.
    pub windows: Vec<Vec<TokenId>>,
    /// Of each window its text.
    pub texts: Vec<usize>,
    /// Of each text its first window; one more entry than texts.
    pub first: Vec<usize>,
}

impl Windows {
    /// Of each text its windows.
    pub fn new(of_texts: Vec<Vec<Vec<TokenId>>>) -> Self {
        let mut out = Self { first: vec![0], ..Self::default() };
        for (text, windows) in of_texts.into_iter().enumerate() {
            out.texts.extend(std::iter::repeat_n(text, windows.len()));
            out.windows.extend(windows);
            out.first.push(out.windows.len());
        }
        out
    }

    /// Tokens of all windows.
    pub fn tokens(&self) -> u64 {
        self.windows.iter().map(|w| w.len() as u64).sum()
    }

    /// What was made of each window, by texts again.
    ///
    /// # Panics
    /// If there is not one item a window.
    pub fn by_text<T>(&self, items: Vec<T>) -> Vec<Vec<T>> {
        assert_eq!(items.len(), self.windows.len(), "one item a window");
        let mut items = items.into_iter();
        self.first.windows(2).map(|pair| items.by_ref().take(pair[1] - pair[0]).collect()).collect()
    }
}

/// The maximum of each entry over several vectors.
pub fn maximum(vectors: &[SparseVector]) -> SparseVector {
    if let [one] = vectors {
        return one.clone();
    }
    let mut pairs: Vec<(TokenId, Weight)> = vectors.iter().flat_map(SparseVector::iter).collect();
    pairs.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
    pairs.dedup_by_key(|pair| pair.0);
    let (ids, weights) = pairs.into_iter().unzip();
    SparseVector { ids, weights }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp, reason = "a test may panic; maxima are copies")]
    #![allow(clippy::single_range_in_vec_init, reason = "one segment is a list of one range")]
    use proptest::prelude::*;

    use super::*;

    fn segments(max: usize, overlap: usize, min_last: Option<usize>) -> Segments {
        Segments { max, overlap, min_last }
    }

    #[test]
    fn by_hand() {
        // SeDR's numbers: windows of 500 pieces; a tail of 49 is dropped, one of 50 is not.
        assert_eq!(segments(4, 0, None).ranges(500, 500), [0..500]);
        assert_eq!(segments(4, 0, None).ranges(1049, 500), [0..500, 500..1000]);
        assert_eq!(segments(4, 0, None).ranges(1050, 500), [0..500, 500..1000, 1000..1050]);
        // Of a small window 30 %.
        assert_eq!(segments(4, 0, None).ranges(12, 10), [0..10]);
        assert_eq!(segments(4, 0, None).ranges(13, 10), [0..10, 10..13]);
        // New pieces count, not those that overlap.
        assert_eq!(segments(4, 4, None).ranges(12, 10), [0..10]);
        assert_eq!(segments(4, 4, None).ranges(13, 10), [0..10, 6..13]);
        assert_eq!(segments(4, 4, Some(0)).ranges(11, 10), [0..10, 6..11]);
        // At most S; the last of those is full, so nothing of it is short.
        assert_eq!(segments(2, 0, None).ranges(1001, 500), [0..500, 500..1000]);
        assert_eq!(segments(1, 0, None).ranges(1001, 500), [0..500]);
        assert_eq!(segments(3, 0, None).ranges(0, 500), [0..0]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (s, name) in [
            (segments(0, 0, None), "segments.max"),
            (segments(1, 3, None), "segments.overlap"),
            (segments(4, 10, None), "segments.overlap"),
            (segments(4, 6, Some(5)), "segments.min_last"),
        ] {
            let message = s.validate(12).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        assert!(segments(1, 0, None).validate(12).is_ok());
        assert!(segments(4, 9, Some(1)).validate(12).is_ok());
    }

    #[test]
    fn items_go_back_to_their_texts() {
        let windows = Windows::new(vec![vec![vec![1, 2]], vec![vec![3], vec![4], vec![5]], vec![vec![6]]]);
        assert_eq!(windows.texts, [0, 1, 1, 1, 2]);
        assert_eq!(windows.tokens(), 6);
        assert_eq!(windows.by_text(vec!['a', 'b', 'c', 'd', 'e']), [vec!['a'], vec!['b', 'c', 'd'], vec!['e']]);
    }

    proptest! {
        /// Every piece lies in some segment unless the two rules leave it out; segments are full, in order, and
        /// overlap by exactly the pieces asked for.
        #[test]
        fn segments_cover_the_text(
            pieces in 0usize..400, room in 1usize..60, max in 1usize..8, overlap in 0usize..60, least in 0usize..80,
        ) {
            let overlap = if max == 1 { 0 } else { overlap % room };
            let min_last = (least <= room - overlap).then_some(least);
            let s = segments(max, overlap, min_last);
            prop_assert!(s.validate(room + 2).is_ok());
            let ranges = s.ranges(pieces, room);
            prop_assert!(!ranges.is_empty() && ranges.len() <= max);
            prop_assert_eq!(ranges[0].start, 0);
            for pair in ranges.windows(2) {
                prop_assert_eq!(pair[1].start, pair[0].end - overlap);
                prop_assert!(pair[1].end > pair[0].end);
                prop_assert_eq!(pair[0].len(), room);
            }
            let end = ranges[ranges.len() - 1].end;
            prop_assert!(ranges.iter().all(|r| r.len() <= room) && end <= pieces);
            if pieces <= room {
                prop_assert_eq!(&ranges, &vec![0..pieces]);
            }
            let least = min_last.unwrap_or(((0.3 * room as f64) as usize).min(50).min(room - overlap));
            // What is missing is beyond S segments, or a tail that is too short.
            prop_assert!(end == pieces || ranges.len() == max || pieces - end < least, "{ranges:?} of {pieces}");
            // And nothing is left out that is long enough.
            if ranges.len() > 1 {
                prop_assert!(end - ranges[ranges.len() - 2].end >= least);
            }
        }

        #[test]
        fn one_segment_is_the_cut_text(pieces in 0usize..100, room in 1usize..60) {
            prop_assert_eq!(segments(1, 0, None).ranges(pieces, room), vec![0..pieces.min(room)]);
        }

        #[test]
        fn the_maximum_of_each_entry(
            vectors in proptest::collection::vec(proptest::collection::vec((0u32..20, 0.01f32..9.0), 0..12), 1..5)
        ) {
            let vectors: Vec<SparseVector> = vectors.into_iter().map(SparseVector::from_pairs).collect();
            let found = maximum(&vectors);
            prop_assert!(found.ids.is_sorted_by(|a, b| a < b));
            for id in 0..20 {
                let slow = vectors.iter().map(|v| v.weight(id)).fold(0.0f32, f32::max);
                prop_assert_eq!(found.weight(id), slow);
            }
        }
    }
}
