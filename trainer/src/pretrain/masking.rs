//! Which tokens of a window are hidden: a pure function of seed, epoch and window (dynamic masking, arXiv 1907.11692).

use nsparse_core::tokenize::is_unused;
use nsparse_core::{TextTokenizer, TokenId};
use rand::RngExt as _;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::sections::MaskSection;
use crate::batches::generator;
use crate::{Error, Result};

/// Keeps these draws apart from others of the same seed.
const TAG: u64 = 0x006d_6173_6b69_6e67;

/// A window with some of its tokens hidden.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MaskedWindow {
    /// What the network reads.
    pub ids: Vec<TokenId>,
    /// Places that are to be told, ascending.
    pub places: Vec<usize>,
    /// What stood there.
    pub labels: Vec<TokenId>,
}

/// Hides tokens as a recipe says.
#[derive(Debug, Clone)]
pub struct Masker {
    section: MaskSection,
    seed: u64,
    mask: TokenId,
    /// One flag a vocabulary entry: it can be hidden.
    ordinary: Vec<bool>,
    /// One flag a vocabulary entry: it goes on a word.
    continues: Vec<bool>,
    /// What a random token is drawn from.
    words: Vec<TokenId>,
}

impl Masker {
    /// For a tokenizer.
    ///
    /// # Errors
    /// If the vocabulary has no `[MASK]`, or whole words are asked for and no piece begins with `##`.
    pub fn new(section: &MaskSection, tokenizer: &TextTokenizer, seed: u64) -> Result<Self> {
        let Some(mask) = tokenizer.id("[MASK]") else {
            return Err(Error::config_with_hint(
                "The vocabulary has no `[MASK]`, which masked-language modelling puts in place of hidden tokens",
                "take a tokenizer.json of a BERT family, or leave `mlm` out",
            ));
        };
        let vocabulary = tokenizer.vocabulary();
        let continues: Vec<bool> = vocabulary.iter().map(|token| token.starts_with("##")).collect();
        if section.whole_words && !continues.contains(&true) {
            return Err(Error::config(
                "`mlm.mask.whole_words`: no entry of the vocabulary begins with `##`, so words cannot be told from \
                 pieces; set it to false",
            ));
        }
        let special = &tokenizer.special().all;
        let ordinary: Vec<bool> =
            (0..vocabulary.len()).map(|id| special.binary_search(&(id as TokenId)).is_err()).collect();
        let words = (0..vocabulary.len())
            .filter(|&id| ordinary[id] && !is_unused(&vocabulary[id]))
            .map(|id| id as TokenId)
            .collect();
        Ok(Self { section: section.clone(), seed: seed ^ TAG, mask, ordinary, continues, words })
    }

    /// Whether a window has a token that can be hidden.
    pub fn can(&self, window: &[TokenId]) -> bool {
        window.iter().any(|&id| self.ordinary[id as usize])
    }

    /// Whether a token can be hidden: special ones never are.
    pub fn is_ordinary(&self, id: TokenId) -> bool {
        self.ordinary[id as usize]
    }

    /// A window as training shows it in an epoch.
    pub fn mask(&self, window: &[TokenId], epoch: usize, number: usize) -> MaskedWindow {
        let mut rng = generator(self.seed, epoch as u64, number as u64);
        let mut out = self.choose(window, &mut rng);
        for &place in &out.places {
            let u: f64 = rng.random();
            if u < self.section.hidden {
                out.ids[place] = self.mask;
            } else if u < self.section.hidden + self.section.random {
                out.ids[place] = self.words[rng.random_range(0..self.words.len())];
            }
        }
        out
    }

    /// A window as an evaluation shows it: the same tokens every time, each behind `[MASK]`, so that none can be
    /// read off.
    pub fn hide(&self, window: &[TokenId], number: usize) -> MaskedWindow {
        let mut out = self.choose(window, &mut generator(self.seed, u64::MAX, number as u64));
        for &place in &out.places {
            out.ids[place] = self.mask;
        }
        out
    }

    /// Which places are to be told; nothing is changed yet.
    fn choose(&self, window: &[TokenId], rng: &mut ChaCha8Rng) -> MaskedWindow {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut count = 0;
        let mut is_joined = false;
        for (place, &id) in window.iter().enumerate() {
            if !self.ordinary[id as usize] {
                is_joined = false;
                continue;
            }
            count += 1;
            match groups.last_mut() {
                Some(word) if is_joined && self.section.whole_words && self.continues[id as usize] => word.push(place),
                _ => groups.push(vec![place]),
            }
            is_joined = true;
        }
        let wanted = ((self.section.share * f64::from(count)).round() as usize).max(1);
        groups.shuffle(rng);
        let mut places: Vec<usize> = Vec::new();
        for group in &groups {
            // A word that would be too much is passed over, as BERT does; a lone long word is taken all the same.
            if places.len() + group.len() <= wanted {
                places.extend(group);
            }
        }
        if places.is_empty()
            && let Some(first) = groups.first()
        {
            places.extend(first);
        }
        places.sort_unstable();
        let labels = places.iter().map(|&place| window[place]).collect();
        MaskedWindow { ids: window.to_vec(), places, labels }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// `[PAD] [UNK] [CLS] [SEP] [MASK] [unused0]`, then 94 words, every third of them a continuation.
    fn tokenizer() -> TextTokenizer {
        let mut vocabulary: Vec<String> =
            ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"].iter().map(|s| (*s).to_owned()).collect();
        vocabulary.extend((6..100).map(|i: u32| if i.is_multiple_of(3) { format!("##p{i}") } else { format!("w{i}") }));
        let entries: serde_json::Map<String, serde_json::Value> =
            vocabulary.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
        let file = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": entries},
        });
        TextTokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    }

    fn masker(section: &MaskSection, seed: u64) -> Masker {
        Masker::new(section, &tokenizer(), seed).unwrap()
    }

    /// `[CLS]`, ordinary tokens with an `[UNK]` among them, `[SEP]`.
    fn window(len: usize, shift: usize) -> Vec<TokenId> {
        let mut out = vec![2];
        out.extend((0..len).map(|i| if i == 4 { 1 } else { (6 + (i * 7 + shift) % 94) as TokenId }));
        out.push(3);
        out
    }

    #[test]
    fn shares_are_as_asked_for() {
        let masker = masker(&MaskSection::default(), 1);
        let (mut chosen, mut hidden, mut kept, mut candidates) = (0usize, 0usize, 0usize, 0usize);
        for number in 0..2000 {
            let window = window(60, number);
            let masked = masker.mask(&window, 3, number);
            candidates += window.iter().filter(|&&id| masker.is_ordinary(id)).count();
            chosen += masked.places.len();
            assert!(masked.places.is_sorted());
            for (place, (&was, &is)) in window.iter().zip(&masked.ids).enumerate() {
                match masked.places.binary_search(&place) {
                    Err(_) => assert_eq!(was, is),
                    Ok(at) => {
                        assert_eq!(masked.labels[at], was);
                        assert!(was > 4, "special tokens are never hidden");
                        assert!(is > 5 || is == 4, "a random token is a word");
                        hidden += usize::from(is == 4);
                        kept += usize::from(is == was);
                    }
                }
            }
        }
        let near = |count: usize, of: usize, share: f64| {
            let got = count as f64 / of as f64;
            // Five standard deviations of a binomial share.
            assert!((got - share).abs() < 5.0 * (share * (1.0 - share) / of as f64).sqrt(), "{got} for {share}");
        };
        // 59 candidates a window: 8.85 are rounded to 9.
        assert_eq!((candidates, chosen), (2000 * 59, 2000 * 9));
        near(hidden, chosen, 0.8);
        // One in 93 random tokens is the old one.
        near(kept, chosen, 0.1 + 0.1 / 93.0);
    }

    #[test]
    fn a_mask_depends_on_seed_epoch_and_window_alone() {
        let window = window(60, 0);
        let section = MaskSection::default();
        let base = masker(&section, 1).mask(&window, 0, 5);
        assert_eq!(base, masker(&section, 1).mask(&window, 0, 5));
        for other in [
            masker(&section, 2).mask(&window, 0, 5),
            masker(&section, 1).mask(&window, 1, 5),
            masker(&section, 1).mask(&window, 0, 6),
        ] {
            assert_ne!(base.places, other.places);
        }
        let held_out = masker(&section, 1).hide(&window, 5);
        assert_eq!(held_out, masker(&section, 1).hide(&window, 5));
        assert!(held_out.places.iter().all(|&place| held_out.ids[place] == 4));
    }

    #[test]
    fn whole_words_go_together() {
        let section = MaskSection { whole_words: true, share: 0.3, ..MaskSection::default() };
        let masker = masker(&section, 1);
        let continues = |id: TokenId| id > 5 && id.is_multiple_of(3);
        let mut sizes = 0;
        for number in 0..500 {
            let window = window(40, number);
            let masked = masker.hide(&window, number);
            assert!(masked.places.len() <= 12, "at most the share");
            sizes += masked.places.len();
            let is_chosen = |place: usize| masked.places.binary_search(&place).is_ok();
            for place in 2..window.len() - 1 {
                if continues(window[place]) && masker.is_ordinary(window[place - 1]) {
                    assert_eq!(is_chosen(place), is_chosen(place - 1), "{number}: {place}");
                }
            }
        }
        assert!(sizes > 500 * 10, "and not much less");
        // A word longer than the share allows: something is hidden all the same.
        assert_eq!(masker.hide(&[2, 7, 9, 12, 15, 3], 0).places, [1, 2, 3, 4]);
        assert!(!masker.can(&[2, 1, 3]));
        assert!(masker.hide(&[2, 1, 3], 0).places.is_empty());
    }

    #[test]
    fn vocabularies_that_cannot_are_refused() {
        let bare = crate::synthetic::tokenizer(20).unwrap();
        assert!(Masker::new(&MaskSection::default(), &bare, 0).is_ok());
        let words = MaskSection { whole_words: true, ..MaskSection::default() };
        assert!(Masker::new(&words, &bare, 0).unwrap_err().to_string().contains("whole_words"));
        let without = crate::synthetic::tokenizer(4).unwrap();
        assert!(Masker::new(&MaskSection::default(), &without, 0).unwrap_err().to_string().contains("[MASK]"));
    }
}
