//! An ONNX file of the document encoder, written byte by byte from the schema's field numbers.
//!
//! Opset 14, IR 8: what onnxruntime 1.16 in OpenSearch 2.16 takes. Its inputs are called
//! `input1.input_ids` and `input1.attention_mask`, int64 `[B, L]`, because ML Commons hands tensors over by these
//! names; the one output, `output`, is float32 `[B, V]`. The weights of linear layers are written transposed, and
//! `LayerNorm` and GELU in the operators and the order in which onnxruntime recognises and fuses them.
//!
//! **The head.** A position that the mask hides gets the hidden state of the first one that it shows, so it can
//! never win, and no pass over `B × L × V` is needed to hide it. The vocabulary is cut into strips: a strip's
//! logits are pooled before the next strip's are computed, so that `B × L × STRIP` is the largest thing in memory.
//! The decoder's bias is the same at every position and is added after the maximum.

mod graph;

use std::path::Path;

use nsparse_core::model_dir::Activation;
use nsparse_core::{TokenId, files};
use nsparse_encoder::{BertConfig, Parameters};

use self::graph::{Attribute, BOOL, Dimension, FLOAT, File, Graph, Values};
use crate::{Error, Result, parts};

/// The graph's input of token ids, int64 `[B, L]`.
pub const INPUT_IDS: &str = "input1.input_ids";
/// The graph's input that shows positions (not 0) or hides them (0), int64 `[B, L]`.
pub const ATTENTION_MASK: &str = "input1.attention_mask";
/// The graph's output, float32 `[B, V]`.
pub const OUTPUT: &str = "output";

/// Most vocabulary entries whose logits exist at one time. Strips of 4096 were a tenth slower than any other
/// width from 1018 up to the whole vocabulary: rows a power of two apart share the cache's lines.
const STRIP: usize = 4000;
/// What a hidden position gets before softmax: far below any score, and finite, so that a text without any token
/// gives zeros and not NaN.
const HIDDEN: f32 = -1e30;
/// Protobuf's limit for one message, and so for an ONNX file that holds its weights.
const MAX_BYTES: u64 = (1 << 31) - 1;

/// A document encoder to be written as ONNX.
#[derive(Debug, Clone, Copy)]
pub struct Onnx<'a> {
    /// The shape.
    pub config: &'a BertConfig,
    /// Encoder and head by Hugging Face's names; the decoder is tied to the word embeddings.
    pub parameters: &'a Parameters,
    /// Ids whose weight is 0 in every document.
    pub zeroed: &'a [TokenId],
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
}

impl Onnx<'_> {
    /// Writes the file, whole or not at all. The same model gives the same bytes.
    ///
    /// # Errors
    /// If a parameter is missing, has another shape than the config says or a value that is not finite, a
    /// zeroed id is not in the vocabulary, the file would pass 2 GiB, or the disk fails.
    pub fn save(&self, path: &Path) -> Result<()> {
        let file = self.file()?;
        check_size(file.bytes())?;
        Ok(files::write_atomic(path, |out| file.write(out).map_err(|e| nsparse_core::Error::io("write", path, e)))?)
    }

    /// The whole graph.
    fn file(&self) -> Result<File<'_>> {
        let parts = parts::parameters(self.config, self.parameters)?;
        let keep = parts::keep(self.config, self.zeroed)?;
        let mut bert = Bert { graph: Graph::new("document-encoder"), config: self.config };
        for (name, shape, values) in parts {
            bert.parameter(&name, &shape, values);
        }
        bert.constants();
        let batch = [Dimension::Named("batch"), Dimension::Named("length")];
        bert.graph.input(INPUT_IDS, &batch);
        bert.graph.input(ATTENTION_MASK, &batch);
        bert.graph.output(OUTPUT, &[Dimension::Named("batch"), Dimension::Fixed(self.config.vocab_size)]);

        let ids = bert.node("Slice", &[INPUT_IDS, "zero_1", "positions", "one_1"]);
        let mask = bert.node("Slice", &[ATTENTION_MASK, "zero_1", "positions", "one_1"]);
        let mask = bert.cast(&mask, BOOL);
        let shape = bert.node("Shape", &[&ids]);
        let mut x = bert.embed(&ids, &shape);
        let bias = bert.attention_bias(&mask);
        for layer in 0..self.config.num_hidden_layers {
            x = bert.layer(&x, &bias, &format!("bert.encoder.layer.{layer}"));
        }
        let (x, any) = bert.show_only_visible(&x, &mask);
        let pooled = bert.head(&x, &shape);
        let mut weights = bert.node("Relu", &[&pooled]);
        let times = match self.activation {
            Activation::Splade => 1,
            Activation::L0 => 2,
        };
        for _ in 0..times {
            let plus_one = bert.node("Add", &[&weights, "one"]);
            weights = bert.node("Log", &[&plus_one]);
        }
        let kept = bert.graph.constant("keep", &[keep.len()], Values::Floats(keep.into()));
        let weights = bert.node("Mul", &[&weights, &kept]);
        bert.graph.node_into("Mul", &[&weights, &any], &[OUTPUT], &[]);
        let activation = match self.activation {
            Activation::Splade => "splade",
            Activation::L0 => "l0",
        };
        Ok(bert.graph.finish(&[("nsparse.activation", activation.to_owned())]))
    }
}

/// Protobuf's limit, before anything is written.
fn check_size(bytes: u64) -> Result<()> {
    if bytes <= MAX_BYTES {
        return Ok(());
    }
    Err(Error::export(
        format!("The model would make an ONNX file of {bytes} bytes; such a file holds at most {MAX_BYTES}"),
        "export a smaller model, or use --format torchscript (weights beside the file are not supported)",
    ))
}

/// The network's parts, in the operators of opset 14.
struct Bert<'a> {
    graph: Graph<'a>,
    config: &'a BertConfig,
}

impl<'a> Bert<'a> {
    /// A parameter under its own name. The weight of a linear layer is `[out, in]` and written as `[in, out]`;
    /// tables stay as they are, and of the token types only the first is used.
    fn parameter(&mut self, name: &str, shape: &[usize], values: &'a [f32]) {
        let hidden = self.config.hidden_size;
        if name.contains("token_type_embeddings") {
            self.graph.constant(name, &[hidden], Values::Floats(values[..hidden].into()));
        } else if shape.len() == 2 && !name.contains("embeddings") {
            self.graph.constant(name, &[shape[1], shape[0]], Values::Turned(values));
        } else {
            self.graph.constant(name, shape, Values::Floats(values.into()));
        }
    }

    /// Numbers that nodes share.
    fn constants(&mut self) {
        let (hidden, heads) = (self.config.hidden_size as i64, self.config.num_attention_heads as i64);
        let graph = &mut self.graph;
        graph.ints("zero_1", &[0]);
        graph.ints("one_1", &[1]);
        graph.ints("two_1", &[2]);
        graph.ints("one_two", &[1, 2]);
        graph.ints("minus_one_1", &[-1]);
        graph.ints("positions", &[self.config.max_position_embeddings as i64]);
        graph.ints("split_heads", &[0, 0, heads, hidden / heads]);
        graph.ints("join_heads", &[0, 0, hidden]);
        graph.ints("rows", &[-1, hidden]);
        graph.float("one", 1.0);
        graph.float("two", 2.0);
        graph.float("half", 0.5);
        graph.float("root_two", std::f32::consts::SQRT_2);
        graph.float("eps", self.config.layer_norm_eps as f32);
        graph.float("root_width", (self.config.head_size() as f32).sqrt());
        graph.float("hidden", HIDDEN);
    }

    fn node(&mut self, operator: &str, inputs: &[&str]) -> String {
        self.graph.node(operator, inputs, &[])
    }

    fn cast(&mut self, x: &str, to: i64) -> String {
        self.graph.node("Cast", &[x], &[Attribute::Int("to", to)])
    }

    fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.graph.node("Transpose", &[x], &[Attribute::Ints("perm", order)])
    }

    /// `x W + b`.
    fn linear(&mut self, x: &str, name: &str) -> String {
        let product = self.node("MatMul", &[x, &format!("{name}.weight")]);
        self.node("Add", &[&product, &format!("{name}.bias")])
    }

    /// `(x − mean) / √(variance + eps) · w + b` over the last axis.
    fn norm(&mut self, x: &str, name: &str) -> String {
        let over_last = [Attribute::Ints("axes", &[-1])];
        let mean = self.graph.node("ReduceMean", &[x], &over_last);
        let centred = self.node("Sub", &[x, &mean]);
        let square = self.node("Pow", &[&centred, "two"]);
        let variance = self.graph.node("ReduceMean", &[&square], &over_last);
        let variance = self.node("Add", &[&variance, "eps"]);
        let deviation = self.node("Sqrt", &[&variance]);
        let unit = self.node("Div", &[&centred, &deviation]);
        let scaled = self.node("Mul", &[&unit, &format!("{name}.weight")]);
        self.node("Add", &[&scaled, &format!("{name}.bias")])
    }

    /// The exact GELU: `x · (1 + erf(x / √2)) · ½`.
    fn gelu(&mut self, x: &str) -> String {
        let scaled = self.node("Div", &[x, "root_two"]);
        let erf = self.node("Erf", &[&scaled]);
        let plus_one = self.node("Add", &[&erf, "one"]);
        let product = self.node("Mul", &[x, &plus_one]);
        self.node("Mul", &[&product, "half"])
    }

    /// Words, the first token type and positions, normed: `[B, L, H]`.
    fn embed(&mut self, ids: &str, shape: &str) -> String {
        let name = |part: &str| format!("bert.embeddings.{part}");
        let words = self.node("Gather", &[&name("word_embeddings.weight"), ids]);
        let typed = self.node("Add", &[&words, &name("token_type_embeddings.weight")]);
        let length = self.node("Slice", &[shape, "one_1", "two_1"]);
        let places = self.node("Slice", &[&name("position_embeddings.weight"), "zero_1", &length, "zero_1"]);
        let placed = self.node("Add", &[&typed, &places]);
        self.norm(&placed, &name("LayerNorm"))
    }

    /// `[B, 1, 1, L]`: 0 where a position is shown, far below every score where it is hidden.
    fn attention_bias(&mut self, mask: &str) -> String {
        let hidden = self.node("Not", &[mask]);
        let hidden = self.cast(&hidden, FLOAT);
        let hidden = self.node("Unsqueeze", &[&hidden, "one_two"]);
        self.node("Mul", &[&hidden, "hidden"])
    }

    /// One encoder layer.
    fn layer(&mut self, x: &str, bias: &str, name: &str) -> String {
        let mut split = |part: &str, order: &[i64]| {
            let flat = self.linear(x, &format!("{name}.attention.self.{part}"));
            let heads = self.node("Reshape", &[&flat, "split_heads"]);
            self.transpose(&heads, order)
        };
        let query = split("query", &[0, 2, 1, 3]);
        let key = split("key", &[0, 2, 3, 1]);
        let value = split("value", &[0, 2, 1, 3]);
        let scores = self.node("MatMul", &[&query, &key]);
        let scores = self.node("Div", &[&scores, "root_width"]);
        let scores = self.node("Add", &[&scores, bias]);
        let attention = self.graph.node("Softmax", &[&scores], &[Attribute::Int("axis", -1)]);
        let context = self.node("MatMul", &[&attention, &value]);
        let context = self.transpose(&context, &[0, 2, 1, 3]);
        let context = self.node("Reshape", &[&context, "join_heads"]);
        let output = self.linear(&context, &format!("{name}.attention.output.dense"));
        let sum = self.node("Add", &[&output, x]);
        let y = self.norm(&sum, &format!("{name}.attention.output.LayerNorm"));
        let inner = self.linear(&y, &format!("{name}.intermediate.dense"));
        let inner = self.gelu(&inner);
        let output = self.linear(&inner, &format!("{name}.output.dense"));
        let sum = self.node("Add", &[&output, &y]);
        self.norm(&sum, &format!("{name}.output.LayerNorm"))
    }

    /// The hidden states with every hidden position replaced by the first shown one, and `[B, 1]`: 1, or 0 for a
    /// text of which nothing is shown.
    fn show_only_visible(&mut self, x: &str, mask: &str) -> (String, String) {
        let shown = self.cast(mask, FLOAT);
        let first = self.graph.node("ArgMax", &[&shown], &[Attribute::Int("axis", 1), Attribute::Int("keepdims", 1)]);
        let state = self.graph.node("GatherND", &[x, &first], &[Attribute::Int("batch_dims", 1)]);
        let state = self.node("Unsqueeze", &[&state, "one_1"]);
        let wide = self.node("Unsqueeze", &[mask, "two_1"]);
        let visible = self.node("Where", &[&wide, x, &state]);
        let axis = [Attribute::Ints("axes", &[1]), Attribute::Int("keepdims", 1)];
        let any = self.graph.node("ReduceMax", &[&shown], &axis);
        (visible, any)
    }

    /// The largest logit over the positions: `[B, V]`, strip by strip of the vocabulary.
    fn head(&mut self, x: &str, shape: &str) -> String {
        let dense = self.linear(x, "cls.predictions.transform.dense");
        let active = self.gelu(&dense);
        let transformed = self.norm(&active, "cls.predictions.transform.LayerNorm");
        let rows = self.node("Reshape", &[&transformed, "rows"]);
        let by_text = self.graph.node("Concat", &[shape, "minus_one_1"], &[Attribute::Int("axis", 0)]);

        let vocabulary = self.config.vocab_size;
        let width = vocabulary.div_ceil(vocabulary.div_ceil(STRIP));
        let sizes: Vec<i64> = (0..vocabulary).step_by(width).map(|at| width.min(vocabulary - at) as i64).collect();
        let strips: Vec<String> = (0..sizes.len()).map(|n| format!("words_{n}")).collect();
        let sizes = self.graph.ints("strips", &sizes);
        let outputs: Vec<&str> = strips.iter().map(String::as_str).collect();
        // A constant of constants: onnxruntime cuts the table once, when it loads the file.
        let table = "bert.embeddings.word_embeddings.weight";
        self.graph.node_into("Split", &[table, &sizes], &outputs, &[Attribute::Int("axis", 0)]);
        let pooled: Vec<String> = strips
            .iter()
            .map(|words| {
                let logits = self.graph.node("Gemm", &[&rows, words], &[Attribute::Int("transB", 1)]);
                let logits = self.node("Reshape", &[&logits, &by_text]);
                let axis = [Attribute::Ints("axes", &[1]), Attribute::Int("keepdims", 0)];
                self.graph.node("ReduceMax", &[&logits], &axis)
            })
            .collect();
        let pooled: Vec<&str> = pooled.iter().map(String::as_str).collect();
        let pooled = self.graph.node("Concat", &pooled, &[Attribute::Int("axis", 1)]);
        self.node("Add", &[&pooled, "cls.predictions.bias"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_two_gibibytes_is_refused() {
        assert!(check_size(MAX_BYTES).is_ok());
        let refused = check_size(1 << 31);
        assert!(refused.is_err_and(|e| e.to_string().contains("2147483648 bytes") && e.hint().is_some()));
    }
}
