//! Porter's stemmer (M. F. Porter 1980, "An algorithm for suffix stripping"), with the two later changes of its
//! author that Lucene has too: step 2 turns `bli` into `ble` and `logi` into `log`.
//!
//! tantivy's own English stemmer is Snowball's, a younger algorithm that folds other words together; this one
//! gives the embedded BM25 the terms that Lucene's `english` analyzer has.

/// Stems one lower-case word. Characters that are not English letters count as consonants.
pub(crate) fn stem(word: &str) -> String {
    let mut w = Word { letters: word.chars().collect() };
    if w.letters.len() > 2 {
        w.plurals_and_participles();
        w.final_y();
        w.first_matching(&STEP_2, 1);
        w.first_matching(&STEP_3, 1);
        w.long_suffixes();
        w.final_e_and_ll();
    }
    w.letters.into_iter().collect()
}

/// Step 2: suffix and what takes its place where the stem before it has a measure above 0.
const STEP_2: [(&str, &str); 21] = [
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("logi", "log"),
];

/// Step 3, as step 2.
const STEP_3: [(&str, &str); 7] =
    [("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", "")];

/// Step 4: suffixes that go where the stem before them has a measure above 1. `ion` needs an s or t before it.
const STEP_4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
];

struct Word {
    letters: Vec<char>,
}

impl Word {
    /// Whether the letter at `i` is a consonant; a y is one at the start and after a vowel.
    fn consonant(&self, i: usize) -> bool {
        match self.letters[i] {
            'a' | 'e' | 'i' | 'o' | 'u' => false,
            'y' => i == 0 || !self.consonant(i - 1),
            _ => true,
        }
    }

    /// Porter's measure m of the first `end` letters: how often a consonant follows a vowel.
    fn measure(&self, end: usize) -> usize {
        (1..end).filter(|&i| self.consonant(i) && !self.consonant(i - 1)).count()
    }

    fn has_vowel(&self, end: usize) -> bool {
        (0..end).any(|i| !self.consonant(i))
    }

    /// Whether the first `end` letters end in a double consonant.
    fn double_consonant(&self, end: usize) -> bool {
        end >= 2 && self.letters[end - 1] == self.letters[end - 2] && self.consonant(end - 1)
    }

    /// Whether the first `end` letters end in consonant, vowel, consonant, the last not w, x or y.
    fn short_end(&self, end: usize) -> bool {
        end >= 3
            && self.consonant(end - 1)
            && !self.consonant(end - 2)
            && self.consonant(end - 3)
            && !matches!(self.letters[end - 1], 'w' | 'x' | 'y')
    }

    /// The length before `suffix`, if the word ends in it.
    fn before(&self, suffix: &str) -> Option<usize> {
        let stem = self.letters.len().checked_sub(suffix.len())?;
        self.letters[stem..].iter().copied().eq(suffix.chars()).then_some(stem)
    }

    fn replace(&mut self, stem: usize, suffix: &str) {
        self.letters.truncate(stem);
        self.letters.extend(suffix.chars());
    }

    /// Replaces the first suffix of the table that the word has, if the measure before it is large enough.
    fn first_matching(&mut self, table: &[(&str, &str)], least: usize) {
        let found = table.iter().find_map(|(suffix, new)| Some((self.before(suffix)?, *new)));
        if let Some((stem, new)) = found
            && self.measure(stem) >= least
        {
            self.replace(stem, new);
        }
    }

    /// Step 1a and 1b.
    fn plurals_and_participles(&mut self) {
        let n = self.letters.len();
        if self.letters[n - 1] == 's' {
            if self.before("sses").is_some() || self.before("ies").is_some() {
                self.letters.truncate(n - 2);
            } else if self.letters[n - 2] != 's' {
                self.letters.truncate(n - 1);
            }
        }
        if let Some(stem) = self.before("eed") {
            if self.measure(stem) > 0 {
                self.letters.pop();
            }
            return;
        }
        let Some(stem) = self.before("ed").or_else(|| self.before("ing")) else { return };
        if !self.has_vowel(stem) {
            return;
        }
        self.letters.truncate(stem);
        if ["at", "bl", "iz"].iter().any(|s| self.before(s).is_some()) {
            self.letters.push('e');
        } else if self.double_consonant(stem) {
            if !matches!(self.letters[stem - 1], 'l' | 's' | 'z') {
                self.letters.pop();
            }
        } else if self.measure(stem) == 1 && self.short_end(stem) {
            self.letters.push('e');
        }
    }

    /// Step 1c: a final y becomes i where there is another vowel.
    fn final_y(&mut self) {
        if let Some(stem) = self.before("y")
            && self.has_vowel(stem)
        {
            self.replace(stem, "i");
        }
    }

    /// Step 4.
    fn long_suffixes(&mut self) {
        let found = STEP_4.iter().find_map(|suffix| {
            let stem = self.before(suffix)?;
            let fits = *suffix != "ion" || (stem > 0 && matches!(self.letters[stem - 1], 's' | 't'));
            fits.then_some(stem)
        });
        if let Some(stem) = found
            && self.measure(stem) > 1
        {
            self.letters.truncate(stem);
        }
    }

    /// Step 5.
    fn final_e_and_ll(&mut self) {
        let n = self.letters.len();
        let measure = self.measure(n);
        if self.before("e").is_some() && (measure > 1 || measure == 1 && !self.short_end(n - 1)) {
            self.letters.pop();
        }
        let n = self.letters.len();
        if self.before("l").is_some() && self.double_consonant(n) && measure > 1 {
            self.letters.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The paper's own examples, taken through all steps.
    #[test]
    fn examples_of_the_paper() {
        let pairs = "caresses caress ponies poni ties ti caress caress cats cat feed feed agreed agre plastered plaster \
            bled bled motoring motor sing sing conflated conflat troubled troubl sized size hopping hop tanned tan \
            falling fall hissing hiss fizzed fizz failing fail filing file happy happi sky sky relational relat \
            conditional condit rational ration valenci valenc hesitanci hesit digitizer digit conformabli conform \
            radicalli radic differentli differ vileli vile analogousli analog vietnamization vietnam \
            predication predic operator oper feudalism feudal decisiveness decis hopefulness hope \
            callousness callous formaliti formal sensitiviti sensit sensibiliti sensibl triplicate triplic \
            formative form formalize formal electriciti electr electrical electr hopeful hope goodness good \
            revival reviv allowance allow inference infer airliner airlin gyroscopic gyroscop adjustable adjust \
            defensible defens irritant irrit replacement replac adjustment adjust dependent depend adoption adopt \
            homologou homolog communism commun activate activ angulariti angular homologous homolog \
            effective effect bowdlerize bowdler probate probat rate rate cease ceas controll control roll roll \
            generalizations gener oscillators oscil";
        let words: Vec<&str> = pairs.split_whitespace().collect();
        for pair in words.chunks(2) {
            assert_eq!(stem(pair[0]), pair[1], "{}", pair[0]);
        }
    }

    #[test]
    fn later_changes_and_strange_words() {
        assert_eq!(stem("psychology"), "psycholog");
        assert_eq!(stem("biology"), "biologi", "the measure before it is 0");
        assert_eq!(stem("possibly"), "possibl");
        for word in ["", "a", "is", "日本語", "é", "v2.16", "ion", "eed"] {
            assert_eq!(stem(word), word);
        }
    }

    proptest! {
        #[test]
        fn never_longer_by_more_than_an_e(word in "[a-z0-9é]{0,14}") {
            let stemmed = stem(&word);
            prop_assert!(stemmed.chars().count() <= word.chars().count());
        }
    }
}
