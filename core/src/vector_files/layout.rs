//! From vectors to the bytes of a file.

use sha2::Sha256;

use super::{Counts, Format, Job, Precision, binary};
use crate::vector::MAX_WEIGHT;
use crate::{Error, Result, SparseVector, Weight};

/// Writes documents in a job's form. Equal documents give equal bytes.
#[derive(Debug, Clone)]
pub struct Layout {
    format: Format,
    precision: Precision,
    quantize: f32,
    header: binary::Header,
    /// Vocabulary strings as JSON strings, quotes included; only where they are written a document.
    names: Vec<String>,
}

impl Layout {
    /// The layout of a job over a vocabulary (strings by token id).
    ///
    /// # Errors
    /// If the job's model is no hash, or what it asks for cannot be written together.
    pub fn new(job: &Job, vocabulary: &[String]) -> Result<Self> {
        let model = unhex(&job.model)
            .ok_or_else(|| Error::invalid(format!("`{}` is no sha256: expected 64 hex digits", job.model)))?;
        if (job.format == Format::Anserini) != job.quantize.is_some() || job.quantize == Some(0) {
            return Err(Error::invalid_with_hint(
                "Weights become integers in Anserini's form and in no other",
                "give --quantize (at least 1) with --format anserini only",
            ));
        }
        if job.format == Format::Anserini && job.weights == Precision::Stored {
            return Err(Error::invalid_with_hint(
                "Anserini's form has integers: there are no 9-bit weights in it",
                "leave out --weights, or choose --format jsonl or binary",
            ));
        }
        let names = match job.format {
            Format::Binary => Vec::new(),
            Format::Jsonl | Format::Anserini => {
                vocabulary.iter().map(|token| serde_json::Value::from(token.as_str()).to_string()).collect()
            }
        };
        let header = binary::Header { precision: job.weights, model, vocabulary: vocabulary.to_vec() };
        Ok(Self {
            format: job.format,
            precision: job.weights,
            quantize: job.quantize.unwrap_or(1) as f32,
            header,
            names,
        })
    }

    /// What stands before the first document.
    pub fn head(&self) -> Vec<u8> {
        if self.format == Format::Binary { self.header.to_bytes() } else { Vec::new() }
    }

    /// Adds a document; returns how many weights were written. `text` is what was encoded.
    ///
    /// # Errors
    /// If a weight is not in (0, 64]: the engine would refuse it.
    pub fn push(&self, out: &mut Vec<u8>, id: &str, text: &str, vector: &SparseVector) -> Result<usize> {
        if let Some((token, weight)) = vector.iter().find(|(_, w)| !(*w > 0.0 && *w <= MAX_WEIGHT)) {
            let token = self.header.vocabulary.get(token as usize).map_or("?", String::as_str);
            return Err(Error::invalid_with_hint(
                format!("The weight of `{token}` in document `{id}` is {weight}; the engine takes (0, {MAX_WEIGHT}]"),
                "the model is broken or was not trained to its end: see `nsparse inspect`",
            ));
        }
        match self.format {
            Format::Binary => return Ok(binary::push_document(out, self.precision, id, vector)),
            Format::Jsonl => push_json(out, "{\"id\":", id),
            Format::Anserini => {
                push_json(out, "{\"id\":", id);
                push_json(out, ",\"contents\":", text);
            }
        }
        out.extend_from_slice(b",\"vector\":{");
        let written = match (self.format, self.precision) {
            (Format::Anserini, _) => self.push_weights(out, vector, |weight| self.impact(weight)),
            (_, Precision::Full) => self.push_weights(out, vector, json_number),
            (_, Precision::Stored) => self.push_weights(out, &vector.as_stored(), json_number),
        };
        out.extend_from_slice(b"}}\n");
        Ok(written)
    }

    /// Adds `"token":weight,…` of all weights that have a text.
    fn push_weights(
        &self,
        out: &mut Vec<u8>,
        vector: &SparseVector,
        number: impl Fn(Weight) -> Option<String>,
    ) -> usize {
        let mut written = 0;
        for (token, weight) in vector.iter() {
            let Some(number) = number(weight) else { continue };
            if written > 0 {
                out.push(b',');
            }
            out.extend_from_slice(self.names[token as usize].as_bytes());
            out.push(b':');
            out.extend_from_slice(number.as_bytes());
            written += 1;
        }
        written
    }

    /// A weight as the nearest integer after multiplication; `None` where that is 0, which is no impact.
    fn impact(&self, weight: Weight) -> Option<String> {
        let impact = (weight * self.quantize).round_ties_even() as i64;
        (impact > 0).then(|| impact.to_string())
    }

    /// What stands behind the last document; `hasher` has seen all bytes before.
    pub fn tail(&self, counts: &Counts, hasher: &Sha256) -> Vec<u8> {
        match self.format {
            Format::Binary => binary::footer(counts.documents, counts.active, hasher),
            Format::Jsonl | Format::Anserini => Vec::new(),
        }
    }
}

/// The shortest digits that read back as the same `f32`.
fn json_number(weight: Weight) -> Option<String> {
    serde_json::to_string(&weight).ok()
}

fn push_json(out: &mut Vec<u8>, before: &str, text: &str) {
    out.extend_from_slice(before.as_bytes());
    // A string as a `Value` cannot fail to be written.
    out.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}
