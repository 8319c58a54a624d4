//! A TorchScript archive of the document encoder, written byte by byte.
//!
//! The archive is a zip of stored entries under one root folder, as `torch.jit.save` writes it:
//! `data.pkl` (the module object), `code/__torch__.py` (its class), `constants.pkl`, `version`, and one raw
//! little-endian tensor a file under `data/`, each starting at a multiple of 64 bytes. The class uses only
//! operators that libtorch 1.13 has; attention is written out, because 1.13 lacks the fused operator.
//!
//! Its `forward` takes `Dict[str, Tensor]` with `input_ids` and `attention_mask`, int64 `[B, L]`, and returns
//! one tensor `output`, float32 `[B, V]`: what ML Commons sends and expects.

use std::fmt::Write as _;
use std::io::{Seek, Write};
use std::path::Path;

use nsparse_core::model_dir::Activation;
use nsparse_core::{TokenId, files};
use nsparse_encoder::{BertConfig, Parameters};
use zip::result::ZipResult;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::error::zip_error;
use crate::pickle::{self, Value};
use crate::quiet::Quiet;
use crate::{Error, Result, parts};

/// The folder that all entries lie under.
const ROOT: &str = "encoder";
/// The class of the module.
const CLASS: &str = "SparseEncoder";
/// The buffer that zeroes what never carries weight.
const KEEP: &str = "keep";
/// Tensors start at multiples of this many bytes, so that libtorch may map them.
const ALIGNMENT: u16 = 64;
/// What a hidden position gets before softmax and maximum; far below any logit, and finite, so that a text
/// without any token gives zeros and not NaN.
const HIDDEN: &str = "-1e+30";
/// The archive's size is limited by the 32-bit fields of the zip, and by ML Commons, which takes 4 GB.
const MAX_BYTES: u64 = 4_000_000_000;

/// A document encoder to be written as TorchScript.
#[derive(Debug, Clone, Copy)]
pub struct TorchScript<'a> {
    /// The shape.
    pub config: &'a BertConfig,
    /// Encoder and head by Hugging Face's names; the decoder is tied to the word embeddings.
    pub parameters: &'a Parameters,
    /// Ids whose weight is 0 in every document.
    pub zeroed: &'a [TokenId],
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
}

/// One tensor of the archive: attribute, shape, values.
struct Entry<'a> {
    attribute: String,
    shape: Vec<usize>,
    values: std::borrow::Cow<'a, [f32]>,
}

impl TorchScript<'_> {
    /// Writes the archive as a file, whole or not at all. The same model gives the same bytes.
    ///
    /// # Errors
    /// If a parameter is missing, has another shape than the config says or a value that is not finite, a
    /// zeroed id is not in the vocabulary, the archive would pass 4 GB, or the disk fails.
    pub fn save(&self, path: &Path) -> Result<()> {
        let entries = self.entries()?;
        Ok(files::write_atomic(path, |out| self.write(&entries, out).map_err(|e| zip_error(path, e)))?)
    }

    /// Writes the zip.
    fn write(&self, entries: &[Entry<'_>], out: impl Write + Seek) -> ZipResult<()> {
        let mut zip = ZipWriter::new(Quiet::new(out));
        zip.start_file(format!("{ROOT}/data.pkl"), stored(1))?;
        pickle::write(&mut zip, &module(entries))?;
        zip.start_file(format!("{ROOT}/code/__torch__.py"), stored(1))?;
        zip.write_all(self.source(entries).as_bytes())?;
        zip.start_file(format!("{ROOT}/constants.pkl"), stored(1))?;
        pickle::write(&mut zip, &Value::Tuple(Vec::new()))?;
        for (key, entry) in entries.iter().enumerate() {
            zip.start_file(format!("{ROOT}/data/{key}"), stored(ALIGNMENT))?;
            write_values(&mut zip, &entry.values)?;
        }
        zip.start_file(format!("{ROOT}/version"), stored(1))?;
        zip.write_all(b"3\n")?;
        zip.finish()?;
        Ok(())
    }

    /// All tensors in the order of their attributes, checked.
    fn entries(&self) -> Result<Vec<Entry<'_>>> {
        let mut entries: Vec<Entry<'_>> = parts::parameters(self.config, self.parameters)?
            .into_iter()
            .map(|(name, shape, values)| Entry { attribute: attribute(&name), shape, values: values.into() })
            .collect();
        let keep = parts::keep(self.config, self.zeroed)?;
        entries.push(Entry { attribute: KEEP.to_owned(), shape: vec![keep.len()], values: keep.into() });
        let bytes: u64 = entries.iter().map(|e| e.values.len() as u64 * 4).sum();
        if bytes > MAX_BYTES {
            return Err(Error::export(
                format!("The model has {bytes} bytes of weights; ML Commons takes at most {MAX_BYTES}"),
                "export a smaller model",
            ));
        }
        Ok(entries)
    }

    /// The class as TorchScript source.
    fn source(&self, entries: &[Entry<'_>]) -> String {
        let config = self.config;
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let norm = |x: &str, name: &str| {
            let (weight, bias) = (weight(name), bias(name));
            format!("torch.layer_norm({x}, [{hidden}], {weight}, {bias}, {eps:e})")
        };
        let linear = |x: &str, name: &str| format!("torch.linear({x}, {}, {})", weight(name), bias(name));

        let mut body = Vec::new();
        let positions = config.max_position_embeddings;
        body.push(format!("ids = torch.slice(input[\"input_ids\"], 1, 0, {positions})"));
        body.push(format!("mask = torch.slice(input[\"attention_mask\"], 1, 0, {positions})"));
        body.push("batch = torch.size(ids, 0)".into());
        body.push("length = torch.size(ids, 1)".into());
        body.push("hidden = torch.eq(mask, 0)".into());
        body.push(format!("bias = torch.mul(torch.to(hidden, 6), {HIDDEN})"));
        body.push("bias0 = torch.unsqueeze(torch.unsqueeze(bias, 1), 1)".into());

        let embeddings = "bert.embeddings";
        let words = weight(&format!("{embeddings}.word_embeddings"));
        let types = weight(&format!("{embeddings}.token_type_embeddings"));
        let places = weight(&format!("{embeddings}.position_embeddings"));
        body.push(format!("words = torch.embedding({words}, ids)"));
        body.push(format!("typed = torch.add(words, torch.select({types}, 0, 0))"));
        body.push(format!("placed = torch.add(typed, torch.slice({places}, 0, 0, length))"));
        body.push(format!("x = {}", norm("placed", &format!("{embeddings}.LayerNorm"))));

        let (heads, width) = (config.num_attention_heads, config.head_size());
        let scale = 1.0 / (width as f64).sqrt();
        for layer in 0..config.num_hidden_layers {
            let layer = format!("bert.encoder.layer.{layer}");
            for (short, name) in [("q", "query"), ("k", "key"), ("v", "value")] {
                let flat = linear("x", &format!("{layer}.attention.self.{name}"));
                body.push(format!(
                    "{short} = torch.transpose(torch.view({flat}, [batch, length, {heads}, {width}]), 1, 2)"
                ));
            }
            body.push(format!("scores = torch.mul(torch.matmul(q, torch.transpose(k, 2, 3)), {scale:e})"));
            body.push("attention = torch.softmax(torch.add(scores, bias0), 3)".into());
            body.push("context = torch.transpose(torch.matmul(attention, v), 1, 2)".into());
            body.push(format!("joined = torch.reshape(context, [batch, length, {hidden}])"));
            let output = linear("joined", &format!("{layer}.attention.output.dense"));
            let name = format!("{layer}.attention.output.LayerNorm");
            body.push(format!("y = {}", norm(&format!("torch.add({output}, x)"), &name)));
            let inner = linear("y", &format!("{layer}.intermediate.dense"));
            let output = linear(&format!("torch.gelu({inner})"), &format!("{layer}.output.dense"));
            let name = format!("{layer}.output.LayerNorm");
            body.push(format!("x = {}", norm(&format!("torch.add({output}, y)"), &name)));
        }

        let dense = linear("x", "cls.predictions.transform.dense");
        let transform = norm(&format!("torch.gelu({dense})"), "cls.predictions.transform.LayerNorm");
        body.push(format!("transformed = {transform}"));
        body.push(format!("logits = torch.linear(transformed, {words}, {})", bias("cls.predictions")));
        body.push(format!("visible = torch.masked_fill_(logits, torch.unsqueeze(hidden, 2), {HIDDEN})"));
        body.push("pooled = torch.amax(visible, [1])".into());
        body.push("weights = torch.log1p(torch.relu(pooled))".into());
        let weights = match self.activation {
            Activation::Splade => "weights",
            Activation::L0 => "torch.log1p(weights)",
        };
        body.push(format!("return {{\"output\": torch.mul({weights}, self.{KEEP})}}"));

        let mut out = format!("class {CLASS}(Module):\n");
        let names: String = entries.iter().fold(String::new(), |mut names, e| {
            if e.attribute != KEEP {
                let _ = write!(names, "\"{}\", ", e.attribute);
            }
            names
        });
        let _ = writeln!(out, "  __parameters__ = [{names}]");
        let _ = writeln!(out, "  __buffers__ = [\"{KEEP}\", ]");
        for entry in entries {
            let _ = writeln!(out, "  {} : Tensor", entry.attribute);
        }
        out.push_str("  training : bool\n  _is_full_backward_hook : Optional[bool]\n");
        let _ = writeln!(out, "  def forward(self: __torch__.{CLASS},");
        out.push_str("    input: Dict[str, Tensor]) -> Dict[str, Tensor]:\n");
        for line in body {
            let _ = writeln!(out, "    {line}");
        }
        out
    }
}

/// `self.` and the attribute of a layer's weight.
fn weight(layer: &str) -> String {
    format!("self.{}", attribute(&format!("{layer}.weight")))
}

/// `self.` and the attribute of a layer's bias.
fn bias(layer: &str) -> String {
    format!("self.{}", attribute(&format!("{layer}.bias")))
}

/// A parameter's name as one identifier.
fn attribute(name: &str) -> String {
    name.replace('.', "_")
}

/// The module object: every tensor by its attribute, then what every module has.
fn module(entries: &[Entry<'_>]) -> Value {
    let mut state: Vec<(Value, Value)> = entries
        .iter()
        .enumerate()
        .map(|(key, entry)| (Value::str(&entry.attribute), tensor(key, &entry.shape)))
        .collect();
    state.push((Value::str("training"), Value::Bool(false)));
    state.push((Value::str("_is_full_backward_hook"), Value::None));
    Value::Object(Box::new(Value::Global("__torch__", CLASS)), Box::new(Value::Dict(state)))
}

/// A contiguous float32 tensor over the whole storage `data/<key>`.
fn tensor(key: usize, shape: &[usize]) -> Value {
    let values: usize = shape.iter().product();
    let storage = Value::Tuple(vec![
        Value::str("storage"),
        Value::Global("torch", "FloatStorage"),
        Value::str(key.to_string()),
        Value::str("cpu"),
        Value::Int(values as i64),
    ]);
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    Value::Call(
        Box::new(Value::Global("torch._utils", "_rebuild_tensor_v2")),
        vec![
            Value::Persistent(Box::new(storage)),
            Value::Int(0),
            Value::ints(shape),
            Value::ints(&strides),
            Value::Bool(false),
            Value::Call(Box::new(Value::Global("collections", "OrderedDict")), Vec::new()),
        ],
    )
}

/// Options of a stored entry with a fixed time, so that the same model gives the same bytes.
fn stored(alignment: u16) -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
        .with_alignment(alignment)
}

/// Values as little-endian bytes, a block at a time.
fn write_values(out: &mut impl Write, values: &[f32]) -> std::io::Result<()> {
    let mut block = Vec::with_capacity(1 << 16);
    for part in values.chunks(1 << 14) {
        block.clear();
        block.extend(part.iter().flat_map(|v| v.to_le_bytes()));
        out.write_all(&block)?;
    }
    Ok(())
}
