//! Vectors by their tokens' names, checked, and as JSON.

use nsparse_core::beir::Document;
use nsparse_core::vector::MAX_WEIGHT;
use nsparse_core::{SparseVector, Weight};

use crate::ml::Fields;

/// Vocabulary strings by token id, without those that hold a dot: `rank_feature` cannot reach them.
pub(crate) struct FeatureNames<'a>(Vec<Option<&'a str>>);

impl<'a> FeatureNames<'a> {
    pub(crate) fn new(vocabulary: &'a [String]) -> Self {
        Self(vocabulary.iter().map(|t| Some(t.as_str()).filter(|t| !t.contains('.'))).collect())
    }

    /// The features of a vector, checked: finite weights in (0, 64].
    ///
    /// # Errors
    /// The offending token and its weight, in words.
    pub(crate) fn features(&self, vector: &SparseVector) -> std::result::Result<Vec<(&'a str, Weight)>, String> {
        let mut features = Vec::with_capacity(vector.len());
        for (id, weight) in vector.iter() {
            let name = self
                .0
                .get(id as usize)
                .ok_or_else(|| format!("token {id} is not in the vocabulary, which has {} entries", self.0.len()))?;
            let Some(name) = name else { continue };
            check(name, weight)?;
            features.push((*name, weight));
        }
        Ok(features)
    }

    /// The features of each segment.
    ///
    /// # Errors
    /// As [`FeatureNames::features`].
    pub(crate) fn segments(
        &self,
        vectors: &[SparseVector],
    ) -> std::result::Result<Vec<Vec<(&'a str, Weight)>>, String> {
        vectors.iter().map(|vector| self.features(vector)).collect()
    }
}

/// The engine wants a normal float in (0, 64]; below that it refuses the document.
///
/// # Errors
/// The token and its weight, in words.
pub(crate) fn check(name: &str, weight: Weight) -> std::result::Result<(), String> {
    if (f32::MIN_POSITIVE..=MAX_WEIGHT).contains(&weight) {
        return Ok(());
    }
    Err(format!("the weight {weight} of token `{name}` is not in (0, {MAX_WEIGHT}]"))
}

/// Title and text as members of a JSON object, without its braces.
pub(crate) fn write_texts(out: &mut Vec<u8>, document: &Document, fields: &Fields) {
    for (i, text) in [&fields.title, &document.title, &fields.text, &document.text].into_iter().enumerate() {
        if i > 0 {
            out.push(if i == 2 { b',' } else { b':' });
        }
        serde_json::to_writer(&mut *out, text).expect("a string is always JSON");
    }
}

/// The vector field as a member of a JSON object.
pub(crate) fn write_vector(out: &mut Vec<u8>, segments: &[Vec<(&str, Weight)>], fields: &Fields) {
    serde_json::to_writer(&mut *out, &fields.vector).expect("a string is always JSON");
    out.push(b':');
    out.extend_from_slice(fields.vector_json(segments).as_bytes());
}
