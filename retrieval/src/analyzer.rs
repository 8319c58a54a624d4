//! Text to index terms, after Lucene's analyzers of the same names.
//!
//! [`Analyzer::English`]: word boundaries of Unicode's UAX #29, possessive `'s` cut off, lower case, Lucene's 33
//! English stop words out, Porter's stemmer. [`Analyzer::Standard`]: word boundaries and lower case only.
//! Two differences are left: Lucene splits tokens of more than 255 characters, which are left out here; and it
//! takes emoji as words and the version of Unicode that its release was built with.

use tantivy::tokenizer::{
    Language, LowerCaser, RemoveLongFilter, StopWordFilter, TextAnalyzer, Token, TokenFilter, TokenStream, Tokenizer,
};
use unicode_segmentation::UnicodeSegmentation;

use crate::porter;

/// How text becomes terms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Analyzer {
    /// Like Lucene's `english`.
    #[default]
    English,
    /// Like Lucene's `standard`.
    Standard,
}

/// Longer tokens (in bytes) are left out.
const MAX_TOKEN_BYTES: usize = 255;

impl Analyzer {
    /// The analyzer as tantivy takes it.
    pub(crate) fn build(self) -> TextAnalyzer {
        let words = TextAnalyzer::builder(Words { possessive: self == Self::English, token: Token::default() })
            .filter(RemoveLongFilter::limit(MAX_TOKEN_BYTES))
            .filter(LowerCaser);
        match self {
            Self::Standard => words.build(),
            Self::English => {
                let stop = StopWordFilter::new(Language::English).expect("tantivy has English stop words");
                words.filter(stop).filter(PorterStem).build()
            }
        }
    }

    /// The terms of a text, in order, repeats included.
    pub fn terms(self, text: &str) -> Vec<String> {
        let mut analyzer = self.build();
        let mut terms = Vec::new();
        let mut stream = analyzer.token_stream(text);
        while let Some(token) = stream.next() {
            terms.push(token.text.clone());
        }
        terms
    }
}

/// UAX #29 words that hold a letter or digit; with `possessive`, without a final `'s`.
#[derive(Clone)]
struct Words {
    possessive: bool,
    token: Token,
}

struct WordStream<'a> {
    words: unicode_segmentation::UnicodeWordIndices<'a>,
    possessive: bool,
    token: &'a mut Token,
}

impl Tokenizer for Words {
    type TokenStream<'a> = WordStream<'a>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> WordStream<'a> {
        self.token.reset();
        WordStream { words: text.unicode_word_indices(), possessive: self.possessive, token: &mut self.token }
    }
}

impl TokenStream for WordStream<'_> {
    fn advance(&mut self) -> bool {
        let Some((start, word)) = self.words.next() else { return false };
        let kept = if self.possessive { without_possessive(word) } else { word };
        self.token.text.clear();
        self.token.text.push_str(kept);
        self.token.offset_from = start;
        self.token.offset_to = start + word.len();
        self.token.position = self.token.position.wrapping_add(1);
        true
    }

    fn token(&self) -> &Token {
        self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        self.token
    }
}

/// Lucene's `PorterStemFilter`.
#[derive(Clone)]
struct PorterStem;

#[derive(Clone)]
struct PorterTokenizer<T>(T);

struct PorterStream<T>(T);

impl TokenFilter for PorterStem {
    type Tokenizer<T: Tokenizer> = PorterTokenizer<T>;

    fn transform<T: Tokenizer>(self, tokenizer: T) -> PorterTokenizer<T> {
        PorterTokenizer(tokenizer)
    }
}

impl<T: Tokenizer> Tokenizer for PorterTokenizer<T> {
    type TokenStream<'a> = PorterStream<T::TokenStream<'a>>;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Self::TokenStream<'a> {
        PorterStream(self.0.token_stream(text))
    }
}

impl<T: TokenStream> TokenStream for PorterStream<T> {
    fn advance(&mut self) -> bool {
        if !self.0.advance() {
            return false;
        }
        let token = self.0.token_mut();
        token.text = porter::stem(&token.text);
        true
    }

    fn token(&self) -> &Token {
        self.0.token()
    }

    fn token_mut(&mut self) -> &mut Token {
        self.0.token_mut()
    }
}

/// Cuts a final `'s` or `'S` with any of the three apostrophes that Lucene's filter knows.
fn without_possessive(word: &str) -> &str {
    word.strip_suffix(['s', 'S']).and_then(|rest| rest.strip_suffix(['\'', '\u{2019}', '\u{FF07}'])).unwrap_or(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn english_words() {
        assert_eq!(
            Analyzer::English.terms("The engine's INDEXES aren't running in v2.16, are they?"),
            ["engin", "index", "aren't", "run", "v2.16"]
        );
        assert_eq!(Analyzer::English.terms("Patient\u{2019}s"), ["patient"]);
    }

    #[test]
    fn standard_words() {
        assert_eq!(Analyzer::Standard.terms("The engine's 3.5-fold (x_y)"), ["the", "engine's", "3.5", "fold", "x_y"]);
    }

    #[test]
    fn nothing_in_nothing_out() {
        for text in ["", "  ", "?!… — +", "\u{0}"] {
            assert!(Analyzer::Standard.terms(text).is_empty(), "{text:?}");
        }
        assert!(Analyzer::English.terms("the and of").is_empty());
        assert!(Analyzer::Standard.terms(&"x".repeat(300)).is_empty());
    }
}
