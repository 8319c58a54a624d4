//! What encodes documents, chosen once: nsparse's own engine, or onnxruntime.

use std::path::{Path, PathBuf};

use nsparse_core::model_dir::{Activation, ModelDir};
use nsparse_core::{Cancel, DocumentEncoder, DocumentTemplate, Progress, Pruning, Segments, SparseVector, files};
use nsparse_encoder::SparseEncoder;
use nsparse_encoder::document::Encoded;
#[cfg(feature = "onnxruntime")]
use nsparse_exporter::OrtEncoder;

use crate::cli::{Runtime, RuntimeArgs};
use crate::failure::usage;
use crate::settings;

/// A document encoder with what a job has to know of its model.
pub(crate) struct DocumentModel {
    engine: Engine,
    /// How a document's fields become the text that is encoded.
    pub(crate) template: DocumentTemplate,
    /// How a pooled logit becomes a weight.
    pub(crate) activation: Activation,
    /// How a text longer than the window is read.
    pub(crate) segments: Option<Segments>,
    /// Which entries of a vector stay; all where `None`.
    pruning: Option<Pruning>,
    /// sha256 of the weights: the same documents with other weights are another job.
    pub(crate) weights_sha256: String,
}

enum Engine {
    Nsparse(Box<SparseEncoder>),
    #[cfg(feature = "onnxruntime")]
    Onnxruntime(Box<OrtEncoder>),
}

/// Opens a model directory, or for onnxruntime also a package that holds ONNX. Computes with as many threads as
/// rayon has here; `device` is `cpu` for onnxruntime.
///
/// # Errors
/// If the model cannot be used, the device is not there, or onnxruntime's library is missing.
pub(crate) fn open(model: &Path, args: &RuntimeArgs, device: &str) -> anyhow::Result<DocumentModel> {
    match args.runtime {
        Runtime::Nsparse => {
            let directory = ModelDir::open(model)?;
            let facts = directory.facts()?;
            let encoder = SparseEncoder::load(model, settings::device(device)?)?;
            Ok(DocumentModel {
                engine: Engine::Nsparse(Box::new(encoder)),
                template: facts.template,
                activation: facts.activation,
                segments: facts.segments,
                pruning: None,
                weights_sha256: files::sha256_file(&directory.file("model.safetensors"))?.0,
            })
        }
        Runtime::Onnxruntime if device != "cpu" => Err(usage(
            format!("onnxruntime computes on the CPU here, not on `{device}`"),
            "leave out --device, or use --runtime nsparse",
        )),
        Runtime::Onnxruntime => onnxruntime(model, args),
    }
}

#[cfg(feature = "onnxruntime")]
fn onnxruntime(model: &Path, args: &RuntimeArgs) -> anyhow::Result<DocumentModel> {
    let encoder = OrtEncoder::open(model, library(args).as_deref(), None)?;
    Ok(DocumentModel {
        template: encoder.template().clone(),
        activation: encoder.activation(),
        segments: encoder.segments().copied(),
        pruning: None,
        weights_sha256: encoder.weights_sha256().to_owned(),
        engine: Engine::Onnxruntime(Box::new(encoder)),
    })
}

#[cfg(not(feature = "onnxruntime"))]
fn onnxruntime(_model: &Path, _args: &RuntimeArgs) -> anyhow::Result<DocumentModel> {
    Err(usage(
        "This nsparse was built without onnxruntime",
        "build it with `cargo build --release`, or use --runtime nsparse",
    ))
}

/// The library that is named, or the one that `scripts/fetch-onnxruntime.sh` put into the cache.
#[cfg(feature = "onnxruntime")]
fn library(args: &RuntimeArgs) -> Option<PathBuf> {
    args.onnxruntime
        .clone()
        .or_else(|| Some(settings::cache_dir().join("onnxruntime")).filter(|folder| folder.is_dir()))
}

impl DocumentModel {
    /// The same with vectors, or each segment's, that keep what this rule keeps.
    #[must_use]
    pub(crate) fn pruned(mut self, pruning: Option<Pruning>) -> Self {
        self.pruning = pruning;
        self
    }

    /// The rule, where vectors are pruned.
    pub(crate) fn pruning(&self) -> Option<Pruning> {
        self.pruning
    }

    fn prune(&self, vectors: &mut [SparseVector]) {
        if let Some(pruning) = self.pruning {
            for vector in vectors {
                *vector = pruning.prune(vector);
            }
        }
    }

    /// The same with batches of at most so many tokens.
    #[must_use]
    pub(crate) fn with_batch_tokens(mut self, batch_tokens: usize) -> Self {
        self.engine = match self.engine {
            Engine::Nsparse(encoder) => Engine::Nsparse(Box::new(encoder.with_batch_tokens(batch_tokens))),
            #[cfg(feature = "onnxruntime")]
            Engine::Onnxruntime(encoder) => Engine::Onnxruntime(Box::new(encoder.with_batch_tokens(batch_tokens))),
        };
        self
    }

    /// One vector a text, in the order given, and the number of tokens; progress counts texts.
    pub(crate) fn encode_counted<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> anyhow::Result<Encoded> {
        let mut encoded = match &self.engine {
            Engine::Nsparse(encoder) => encoder.encode_counted(texts, progress, cancel)?,
            #[cfg(feature = "onnxruntime")]
            Engine::Onnxruntime(encoder) => encoder.encode_counted(texts, progress, cancel)?,
        };
        self.prune(&mut encoded.vectors);
        Ok(encoded)
    }

    fn encoder(&self) -> &dyn DocumentEncoder {
        match &self.engine {
            Engine::Nsparse(encoder) => &**encoder,
            #[cfg(feature = "onnxruntime")]
            Engine::Onnxruntime(encoder) => &**encoder,
        }
    }
}

impl DocumentEncoder for DocumentModel {
    fn encode(&self, texts: &[&str]) -> nsparse_core::Result<Vec<SparseVector>> {
        let mut vectors = self.encoder().encode(texts)?;
        self.prune(&mut vectors);
        Ok(vectors)
    }

    fn encode_segments(&self, texts: &[&str]) -> nsparse_core::Result<Vec<Vec<SparseVector>>> {
        let mut of_texts = self.encoder().encode_segments(texts)?;
        for segments in &mut of_texts {
            self.prune(segments);
        }
        Ok(of_texts)
    }

    fn vocabulary(&self) -> &[String] {
        self.encoder().vocabulary()
    }

    fn max_tokens(&self) -> usize {
        self.encoder().max_tokens()
    }
}
