//! onnxruntime as a second engine: the exported graph, asked with batches of texts of like length.
//!
//! The shared library is loaded when the first encoder is opened, and stays for the life of the process; nothing
//! of it is needed to build. Any onnxruntime from 1.17 on will do.

mod batches;
mod library;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nsparse_core::model_dir::Activation;
use nsparse_core::segments::{Windows, maximum};
use nsparse_core::{
    Cancel, DocumentEncoder, DocumentTemplate, Fault, NoProgress, Progress, Segments, SparseVector, TextTokenizer,
    TokenId, files,
};
use nsparse_encoder::document::{DEFAULT_BATCH_TOKENS, Encoded};
use ort::session::Session;
use ort::value::Tensor;
use rayon::prelude::*;

use crate::onnx::{ATTENTION_MASK, INPUT_IDS, OUTPUT};
use crate::package::MANIFEST;
use crate::source::DocumentSide;
use crate::{Error, ModelFormat, Package, Result};

/// A document encoder that onnxruntime computes: the same windows, zeroed ids and activation as
/// [`nsparse_encoder::SparseEncoder`].
#[derive(Debug)]
pub struct OrtEncoder {
    session: Mutex<Session>,
    tokenizer: TextTokenizer,
    max_tokens: usize,
    segments: Option<Segments>,
    batch_tokens: usize,
    activation: Activation,
    template: DocumentTemplate,
    weights_sha256: String,
}

impl OrtEncoder {
    /// Opens a model directory (its graph is written aside for the time of loading), a package that holds ONNX
    /// (its folder or `package.json`), or the `.onnx` that such a package has beside it.
    ///
    /// `library` is onnxruntime's shared library or a folder that holds it; without it `ORT_DYLIB_PATH` says where
    /// it is, or else the system's loader finds `libonnxruntime.so`. A process loads one: later encoders use what
    /// the first one loaded. `threads` compute one batch together; without it as many as rayon has here.
    ///
    /// # Errors
    /// If the library is missing or too old, the model is broken or not ONNX, or onnxruntime refuses it.
    pub fn open(model: &Path, library: Option<&Path>, threads: Option<usize>) -> Result<Self> {
        // A missing library shows before a model is read and written.
        let environment = library::load(library)?;
        let threads = threads.unwrap_or_else(rayon::current_num_threads);
        let graph = Graph::find(model)?;
        let session = Session::builder(&environment)
            .and_then(|builder| Ok(builder.with_intra_threads(threads)?))
            .and_then(|builder| Ok(builder.with_inter_threads(1)?))
            // Every batch has its own shape, so there is no pattern.
            .and_then(|builder| Ok(builder.with_memory_pattern(false)?))
            .and_then(|mut builder| builder.commit_from_file(&graph.file))
            .map_err(|e| refused(&format!("load `{}`", model.display()), &e))?;
        let Graph { tokenizer, max_tokens, segments, activation, template, weights_sha256, .. } = graph;
        Ok(Self {
            session: Mutex::new(session),
            tokenizer,
            max_tokens,
            segments,
            batch_tokens: DEFAULT_BATCH_TOKENS,
            activation,
            template,
            weights_sha256,
        })
    }

    /// The same with batches of at most so many tokens, padding included, in place of [`DEFAULT_BATCH_TOKENS`].
    #[must_use]
    pub fn with_batch_tokens(mut self, batch_tokens: usize) -> Self {
        self.batch_tokens = batch_tokens;
        self
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// How a text longer than the window is read.
    pub fn segments(&self) -> Option<&Segments> {
        self.segments.as_ref()
    }

    /// How a pooled logit becomes a weight; the graph does it.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// How a document's fields become the text that is encoded.
    pub fn template(&self) -> &DocumentTemplate {
        &self.template
    }

    /// sha256 of what holds the weights: `model.safetensors` of a model directory, the document encoder's zip of a
    /// package.
    pub fn weights_sha256(&self) -> &str {
        &self.weights_sha256
    }

    /// [`DocumentEncoder::encode`] with progress, which counts texts, and with the number of tokens; `cancel` is
    /// read between batches.
    ///
    /// # Errors
    /// If the tokenizer refuses a text, onnxruntime fails or gives a number that is not finite, or the user asked
    /// to stop.
    pub fn encode_counted<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Encoded> {
        let (windows, tokens) = self.encode_windows(texts, progress, cancel)?;
        Ok(Encoded { vectors: windows.iter().map(|of_text| maximum(of_text)).collect(), tokens })
    }

    /// [`DocumentEncoder::encode_segments`] with progress, and with the number of tokens.
    ///
    /// # Errors
    /// As [`OrtEncoder::encode_counted`].
    pub fn encode_windows<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<(Vec<Vec<SparseVector>>, u64)> {
        let of_text = |text: &T| Ok(self.tokenizer.windows(text.as_ref(), self.max_tokens, self.segments())?.0);
        let windows = Windows::new(texts.par_iter().map(of_text).collect::<Result<_>>()?);
        let lengths: Vec<usize> = windows.windows.iter().map(Vec::len).collect();
        let mut vectors = vec![SparseVector::default(); lengths.len()];
        let mut waiting: Vec<usize> = windows.first.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let task = progress.start("Encoding", texts.len() as u64);
        for places in batches::batches(&lengths, self.batch_tokens) {
            cancel.check()?;
            let batch: Vec<&[TokenId]> = places.iter().map(|&place| windows.windows[place].as_slice()).collect();
            let mut done = 0;
            for (vector, &place) in self.run(&batch)?.into_iter().zip(&places) {
                let text = windows.texts[place];
                vectors[place] = vector.map_err(|(entry, weight)| {
                    let start: String = texts[text].as_ref().chars().take(60).collect();
                    Error::Runtime {
                        message: format!(
                            "onnxruntime gave vocabulary entry {entry} the weight {weight} for the text `{start}…`"
                        ),
                        hint: "the weights are broken: export an earlier checkpoint".to_owned(),
                        fault: Fault::Usage,
                    }
                })?;
                waiting[text] -= 1;
                done += u64::from(waiting[text] == 0);
            }
            task.advance(done);
        }
        Ok((windows.by_text(vectors), windows.tokens()))
    }

    /// One batch, padded to its longest document. A row with a weight that is not finite gives the entry and it.
    fn run(&self, documents: &[&[TokenId]]) -> Result<Vec<std::result::Result<SparseVector, (usize, f32)>>> {
        let longest = documents.iter().map(|d| d.len()).max().unwrap_or_default();
        let shape = [documents.len(), longest];
        let mut ids = vec![i64::from(self.tokenizer.special().pad); documents.len() * longest];
        let mut mask = vec![0i64; ids.len()];
        for (row, document) in documents.iter().enumerate() {
            let start = row * longest;
            for (place, &id) in ids[start..].iter_mut().zip(*document) {
                *place = i64::from(id);
            }
            mask[start..start + document.len()].fill(1);
        }
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let weights = Tensor::from_array((shape, ids))
            .and_then(|ids| Ok((ids, Tensor::from_array((shape, mask))?)))
            .and_then(|(ids, mask)| session.run(ort::inputs![INPUT_IDS => ids, ATTENTION_MASK => mask]))
            .map_err(|e| refused("encode", &e))?;
        let (_, weights) = weights[OUTPUT].try_extract_tensor::<f32>().map_err(|e| refused("encode", &e))?;
        let rows = weights.par_chunks_exact(weights.len() / documents.len());
        Ok(rows
            .map(|row| match row.iter().position(|w| !w.is_finite()) {
                Some(entry) => Err((entry, row[entry])),
                None => Ok(SparseVector::from_dense(row)),
            })
            .collect())
    }
}

impl DocumentEncoder for OrtEncoder {
    fn encode(&self, texts: &[&str]) -> nsparse_core::Result<Vec<SparseVector>> {
        self.encode_counted(texts, &NoProgress, &Cancel::default()).map(|encoded| encoded.vectors).map_err(plain)
    }

    fn encode_segments(&self, texts: &[&str]) -> nsparse_core::Result<Vec<Vec<SparseVector>>> {
        self.encode_windows(texts, &NoProgress, &Cancel::default()).map(|(vectors, _)| vectors).map_err(plain)
    }

    fn vocabulary(&self) -> &[String] {
        self.tokenizer.vocabulary()
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }
}

/// An error as the trait has it.
fn plain(error: Error) -> nsparse_core::Error {
    match error {
        Error::Core(e) => e,
        other => nsparse_core::Error::other(other.fault(), other),
    }
}

/// What onnxruntime refused.
fn refused(what: &str, error: &ort::Error) -> Error {
    Error::Runtime {
        message: format!("onnxruntime failed to {what}: {error}"),
        hint: "try nsparse's own engine (--runtime nsparse), or another version of onnxruntime".to_owned(),
        fault: Fault::World,
    }
}

/// A graph in a file, with what belongs to it.
struct Graph {
    file: PathBuf,
    /// Removed once the session has read it.
    _aside: Option<tempfile::TempDir>,
    tokenizer: TextTokenizer,
    max_tokens: usize,
    segments: Option<Segments>,
    activation: Activation,
    template: DocumentTemplate,
    weights_sha256: String,
}

impl Graph {
    fn find(model: &Path) -> Result<Self> {
        let is_bare = model.extension().is_some_and(|e| e == "onnx") && !model.is_dir();
        let is_manifest = model.file_name().is_some_and(|name| name == MANIFEST);
        if is_bare || is_manifest || model.join(MANIFEST).is_file() {
            return Self::of_package(model, is_bare);
        }
        let side = DocumentSide::load(model, usize::MAX)?;
        let (file, aside) = aside()?;
        side.onnx().save(&file)?;
        Ok(Self {
            file,
            _aside: Some(aside),
            tokenizer: side.tokenizer,
            max_tokens: side.max_tokens,
            segments: side.segments,
            activation: side.activation,
            template: side.template,
            weights_sha256: files::sha256_file(&model.join("model.safetensors"))?.0,
        })
    }

    fn of_package(model: &Path, is_bare: bool) -> Result<Self> {
        let folder = if is_bare { model.parent().unwrap_or(Path::new("")).join(MANIFEST) } else { model.to_path_buf() };
        let package = Package::open(&folder)?;
        let manifest = package.manifest();
        if manifest.model_format != ModelFormat::Onnx {
            return Err(Error::package(
                model,
                "it holds TorchScript, which onnxruntime does not read",
                "export it with --format onnx, or give the model directory",
            ));
        }
        let (file, aside) = if is_bare {
            let found = files::sha256_file(model)?;
            if manifest.onnx.as_ref().is_none_or(|onnx| (&onnx.sha256, onnx.bytes) != (&found.0, found.1)) {
                return Err(Error::package(
                    model,
                    format!("it is not the one that {MANIFEST} beside it describes"),
                    "make the package again with `nsparse export --format onnx`",
                ));
            }
            (model.to_path_buf(), None)
        } else {
            let (file, aside) = aside()?;
            package.extract_model(&file)?;
            (file, Some(aside))
        };
        Ok(Self {
            file,
            _aside: aside,
            // The two zips hold the same tokenizer but for where it cuts.
            tokenizer: package.query_encoder().tokenizer().clone(),
            max_tokens: manifest.max_tokens,
            segments: manifest.segments,
            activation: manifest.activation,
            template: manifest.template.clone(),
            weights_sha256: manifest.document.sha256.clone(),
        })
    }
}

/// A place for a graph in a folder of its own, which goes when it is dropped.
fn aside() -> Result<(PathBuf, tempfile::TempDir)> {
    let folder = tempfile::Builder::new()
        .prefix("nsparse-onnx-")
        .tempdir()
        .map_err(|e| nsparse_core::Error::io("create", &std::env::temp_dir(), e))?;
    Ok((folder.path().join("model.onnx"), folder))
}
