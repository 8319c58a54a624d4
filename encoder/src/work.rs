//! What a pass over the network costs: its matrix products by shape and number, their floating-point operations,
//! and how fast this machine does the same products when it does nothing else.
//!
//! Only products are counted, as the CPU kernels execute them: a multiply-add is two operations, and the
//! attention's scores, which the backward makes again, count again. Element-wise loops, norms and the head's
//! backward (one scaled row for each entry with a gradient) are no products and count nothing. A kernel that finds
//! a way around a part of the head's products still gets all of them counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gemm::Parallelism;
use nsparse_core::{Cancel, Progress};
use serde::Serialize;

use crate::cpu::outputs_per_task;
use crate::{BertConfig, Result};

/// Vocabulary entries of one block of the head.
const HEAD_ENTRIES: usize = 512;
/// Rows of one block of the head: whole documents, so a longer one is a block of its own.
const HEAD_ROWS: usize = 512;
/// Timed rounds of one product.
const ROUNDS: usize = 5;

/// How the operands of a product lie in memory, both row after row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// A `[m, k]` times B `[k, n]`: input gradients, mixing of values.
    Nn,
    /// A `[m, k]` times the transpose of B `[n, k]`: linear layers, attention scores, the head.
    Nt,
    /// The transpose of A `[k, m]` times B `[k, n]`: weight gradients.
    Tn,
}

/// How the threads share products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// All threads work on one product.
    Within,
    /// Each thread works on products of its own.
    Across,
}

/// One shape of product: `[m, k]` times `[k, n]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Product {
    /// Rows of the result.
    pub m: usize,
    /// The inner dimension.
    pub k: usize,
    /// Columns of the result.
    pub n: usize,
    /// How the operands lie.
    pub layout: Layout,
    /// How the threads share it.
    pub spread: Spread,
    /// Whether the product is added to what the destination holds.
    pub adds: bool,
}

impl Product {
    /// Its floating-point operations, 2·m·k·n.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.k as f64 * self.n as f64
    }

    /// The shape that is measured for it: dimensions above 16 rounded to eight steps an octave, so that texts of
    /// nearly one length need one measurement.
    fn representative(self) -> Self {
        let round = |x: usize| {
            if x <= 16 {
                return x;
            }
            let step = 1usize << (x.ilog2() - 3);
            (x + step / 2) / step * step
        };
        Self { m: round(self.m), k: round(self.k), n: round(self.n), ..self }
    }
}

/// Equal products of one part of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Work {
    /// The part: `query, key, value`, `vocabulary head`, …
    pub part: &'static str,
    /// `forward`, `input gradient`, `weight gradient` or `backward`.
    pub pass: &'static str,
    /// The shape.
    pub product: Product,
    /// How often it is computed.
    pub count: usize,
}

/// Operations of all of them.
pub fn total_flops(work: &[Work]) -> f64 {
    work.iter().map(|w| w.product.flops() * w.count as f64).sum()
}

/// The linear layers of an encoder layer.
const LAYER_PARTS: [&str; 4] = ["query, key, value", "attention output", "feed-forward in", "feed-forward out"];
/// The linear layer of the head.
const HEAD_TRANSFORM: &str = "head transform";

/// Equal linear layers.
struct Linears {
    part: &'static str,
    inputs: usize,
    outputs: usize,
    count: usize,
    /// Whether the forward adds to its destination.
    forward_adds: bool,
    /// Whether the input gradient does.
    backward_adds: bool,
}

fn linears(config: &BertConfig) -> [Linears; 5] {
    let (h, wide, layers) = (config.hidden_size, config.intermediate_size, config.num_hidden_layers);
    let of = |part, inputs, outputs, count, forward_adds, backward_adds| Linears {
        part,
        inputs,
        outputs,
        count,
        forward_adds,
        backward_adds,
    };
    let [projections, output, wider, narrower] = LAYER_PARTS;
    [
        of(projections, h, h, 3 * layers, true, true),
        of(output, h, h, layers, false, false),
        of(wider, h, wide, layers, false, true),
        of(narrower, wide, h, layers, false, false),
        of(HEAD_TRANSFORM, h, h, 1, false, false),
    ]
}

/// The products of one forward pass over a batch of documents with these lengths in tokens.
pub fn forward(config: &BertConfig, lengths: &[usize]) -> Vec<Work> {
    let mut out = encoder_forward(config, lengths);
    out.extend(head_forward(config, lengths));
    out
}

/// As [`forward`], without the head's product with the vocabulary: what is left where a screen replaces it.
pub fn encoder_forward(config: &BertConfig, lengths: &[usize]) -> Vec<Work> {
    let mut out = layers_forward(config, lengths);
    out.extend(linears_forward(config, lengths, &[HEAD_TRANSFORM]));
    out
}

/// The encoder layers alone: what a backward computes again when activations were not kept.
pub fn layers_forward(config: &BertConfig, lengths: &[usize]) -> Vec<Work> {
    let mut out = linears_forward(config, lengths, &LAYER_PARTS);
    for (length, documents) in counted(lengths) {
        let count = documents * config.num_attention_heads * config.num_hidden_layers;
        let mut push = |part, product| out.push(Work { part, pass: "forward", product, count });
        push("attention scores", scores(config, length));
        push("attention mix", mix(config, length, Layout::Nn));
    }
    out
}

fn linears_forward(config: &BertConfig, lengths: &[usize], parts: &[&str]) -> Vec<Work> {
    let m = lengths.iter().sum();
    let (layout, spread) = (Layout::Nt, Spread::Within);
    linears(config)
        .into_iter()
        .filter(|l| parts.contains(&l.part))
        .map(|l| {
            let product = Product { m, k: l.inputs, n: l.outputs, layout, spread, adds: l.forward_adds };
            Work { part: l.part, pass: "forward", product, count: l.count }
        })
        .collect()
}

/// The products of one backward pass, attention scores made again included.
pub fn backward(config: &BertConfig, lengths: &[usize]) -> Vec<Work> {
    let rows = lengths.iter().sum();
    let mut out = Vec::new();
    let spread = Spread::Within;
    for Linears { part, inputs, outputs, count, backward_adds, .. } in linears(config) {
        // Each task has some of the outputs; what is left over is one task more.
        let per_task = outputs_per_task(outputs).min(outputs);
        for (m, tasks) in [(per_task, outputs / per_task), (outputs % per_task, 1)] {
            if m > 0 {
                let (layout, spread) = (Layout::Tn, Spread::Across);
                let product = Product { m, k: rows, n: inputs, layout, spread, adds: true };
                out.push(Work { part, pass: "weight gradient", product, count: count * tasks });
            }
        }
        let product = Product { m: rows, k: outputs, n: inputs, layout: Layout::Nn, spread, adds: backward_adds };
        out.push(Work { part, pass: "input gradient", product, count });
    }
    for (length, documents) in counted(lengths) {
        let count = documents * config.num_attention_heads * config.num_hidden_layers;
        let mut push = |part, product, each| out.push(Work { part, pass: "backward", product, count: each * count });
        // The scores again and the probabilities' gradient; the query's; the key's and the value's.
        push("attention scores", scores(config, length), 2);
        push("attention mix", mix(config, length, Layout::Nn), 1);
        push("attention mix", mix(config, length, Layout::Tn), 2);
    }
    out
}

fn scores(config: &BertConfig, length: usize) -> Product {
    let (layout, spread) = (Layout::Nt, Spread::Across);
    Product { m: length, k: config.head_size(), n: length, layout, spread, adds: false }
}

fn mix(config: &BertConfig, length: usize, layout: Layout) -> Product {
    Product { m: length, k: length, n: config.head_size(), layout, spread: Spread::Across, adds: false }
}

fn head_forward(config: &BertConfig, lengths: &[usize]) -> Vec<Work> {
    let mut groups: Vec<usize> = Vec::new();
    for &length in lengths {
        match groups.last_mut() {
            Some(rows) if *rows + length <= HEAD_ROWS => *rows += length,
            _ => groups.push(length),
        }
    }
    let vocabulary = config.vocab_size;
    let mut out = Vec::new();
    for (rows, groups) in counted(&groups) {
        // Blocks of nearly equal size.
        let blocks = (vocabulary / HEAD_ENTRIES).max(1);
        let larger = vocabulary % blocks;
        for (entries, blocks) in [(vocabulary / blocks, blocks - larger), (vocabulary / blocks + 1, larger)] {
            if entries > 0 && blocks > 0 {
                let (layout, spread) = (Layout::Nt, Spread::Across);
                let product = Product { m: rows, k: config.hidden_size, n: entries, layout, spread, adds: false };
                out.push(Work { part: "vocabulary head", pass: "forward", product, count: groups * blocks });
            }
        }
    }
    out
}

/// Distinct values with how often each occurs.
fn counted(values: &[usize]) -> BTreeMap<usize, usize> {
    let mut out = BTreeMap::new();
    for &value in values {
        *out.entry(value).or_insert(0) += 1;
    }
    out
}

/// Seconds that these products take when nothing else is done: each distinct shape is measured once on the current
/// thread pool, and counts as often as it occurs. So [`total_flops`] over these seconds is the machine's rate on
/// just this mix of products.
///
/// # Errors
/// If the user asked to stop.
pub fn seconds_alone(work: &[Work], budget: Duration, progress: &dyn Progress, cancel: &Cancel) -> Result<f64> {
    let mut flops: BTreeMap<Product, f64> = BTreeMap::new();
    for w in work {
        *flops.entry(w.product.representative()).or_insert(0.0) += w.product.flops() * w.count as f64;
    }
    let task = progress.start("Measuring products", flops.len() as u64);
    let mut seconds = 0.0;
    for (product, flops) in flops {
        cancel.check()?;
        seconds += flops / product.flops() * measure_product(&product, budget);
        task.advance(1);
    }
    Ok(seconds)
}

/// Seconds that one product takes, computed again and again on the current thread pool as the kernels compute it:
/// the median of several rounds that together take about `budget`. With [`Spread::Across`] every thread computes
/// products of its own, and the time is that of one product when all threads are at it: one over the sum of what
/// each of them does in a second.
pub fn measure_product(product: &Product, budget: Duration) -> f64 {
    let round = budget.as_secs_f64() / ROUNDS as f64;
    let timed = |repeats: usize| match product.spread {
        Spread::Within => round_seconds(product, repeats, Parallelism::Rayon(0)),
        Spread::Across => {
            let each = rayon::broadcast(|_| round_seconds(product, repeats, Parallelism::None));
            1.0 / each.into_iter().map(|seconds| 1.0 / seconds).sum::<f64>()
        }
    };
    // How many fill a round: a first guess may be far off, where threads had to wake up.
    let mut repeats = 1;
    loop {
        let took = timed(repeats) * (repeats * threads(product)) as f64;
        if took >= round / 2.0 || repeats >= 1 << 24 {
            break;
        }
        repeats = (repeats as f64 * (round / took.max(1e-9)).clamp(2.0, 100.0)) as usize;
    }
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| timed(repeats)).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// How many of a product are computed at once.
fn threads(product: &Product) -> usize {
    match product.spread {
        Spread::Within => 1,
        Spread::Across => rayon::current_num_threads(),
    }
}

/// Seconds of one product in a loop of them.
fn round_seconds(product: &Product, repeats: usize, parallelism: Parallelism) -> f64 {
    let mut operands = Operands::new(product);
    // The first one touches the buffers.
    operands.multiply(product, parallelism);
    let started = Instant::now();
    for _ in 0..repeats {
        operands.multiply(product, parallelism);
    }
    started.elapsed().as_secs_f64().max(1e-9) / repeats as f64
}

/// Buffers of one product.
struct Operands {
    a: Vec<f32>,
    b: Vec<f32>,
    dst: Vec<f32>,
}

impl Operands {
    fn new(product: &Product) -> Self {
        let filled = |len: usize| (0..len).map(|i| (i % 61) as f32 / 64.0 - 0.47).collect();
        let (m, k, n) = (product.m, product.k, product.n);
        Self { a: filled(m * k), b: filled(k * n), dst: vec![0.0; m * n] }
    }

    fn multiply(&mut self, product: &Product, parallelism: Parallelism) {
        let Product { m, k, n, layout, adds, .. } = *product;
        // Strides from column to column and from row to row.
        let (a_strides, b_strides) = match layout {
            Layout::Nn => ((1, k), (1, n)),
            Layout::Nt => ((1, k), (k, 1)),
            Layout::Tn => ((m, 1), (1, n)),
        };
        assert!(self.a.len() >= m * k && self.b.len() >= k * n && self.dst.len() >= m * n, "operands of another shape");
        // SAFETY: with these strides every element lies in its buffer, whose length was checked, and `dst` is
        // borrowed exclusively.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                self.dst.as_mut_ptr(),
                1,
                n as isize,
                adds,
                self.a.as_ptr(),
                a_strides.0 as isize,
                a_strides.1 as isize,
                self.b.as_ptr(),
                b_strides.0 as isize,
                b_strides.1 as isize,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use nsparse_core::NoProgress;

    use super::*;

    fn config(layers: usize, hidden: usize, heads: usize, wide: usize, vocabulary: usize) -> BertConfig {
        serde_json::from_value(serde_json::json!({
            "model_type": "bert", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
            "num_attention_heads": heads, "intermediate_size": wide, "hidden_act": "gelu",
            "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12
        }))
        .unwrap()
    }

    /// Written out product by product: 2 layers, hidden 8 in 2 heads of 4, feed-forward 32, 1000 entries; documents
    /// of 3, 5 and 3 tokens, so 11 rows.
    #[test]
    fn a_small_network_counted_by_hand() {
        let config = config(2, 8, 2, 32, 1000);
        let lengths = [3, 5, 3];
        let layer_forward = 3 * (11 * 8 * 8) + 11 * 8 * 8 + 11 * 8 * 32 + 11 * 32 * 8;
        // Scores and mixing: two products of L × L × 4 for each head of each document.
        let attention_forward = 2 * 2 * (3 * 3 * 4 + 5 * 5 * 4 + 3 * 3 * 4);
        let transform = 11 * 8 * 8;
        let head = 11 * 8 * 1000;
        let expected = 2 * (2 * (layer_forward + attention_forward) + transform + head);
        assert_eq!(total_flops(&forward(&config, &lengths)) as usize, expected);
        assert_eq!(total_flops(&encoder_forward(&config, &lengths)) as usize, expected - 2 * head);
        let layers = 2 * 2 * (layer_forward + attention_forward);
        assert_eq!(total_flops(&layers_forward(&config, &lengths)) as usize, layers);
        // Each linear layer has two products of its forward's size; attention has five in place of two.
        let attention_backward = 2 * 5 * (3 * 3 * 4 + 5 * 5 * 4 + 3 * 3 * 4);
        let expected = 2 * (2 * (2 * layer_forward + attention_backward) + 2 * transform);
        assert_eq!(total_flops(&backward(&config, &lengths)) as usize, expected);
    }

    /// Against `torch.utils.flop_counter` of PyTorch 2.15 on `BertForMaskedLM` of transformers 5.23 with the loss of
    /// `benches/peer/train_step.py` (`--count-flops --layers 2 --hidden 64 --heads 4 --vocab 1000 --docs 4 --tokens 16`).
    #[test]
    fn the_same_as_torch_counts() {
        let (torch_forward, torch_both) = (21_839_488, 65_502_464);
        let config = config(2, 64, 4, 256, 1000);
        let lengths = [16; 4];
        // Two dense queries against four documents: in torch's forward, and once in its backward.
        let scores = 2 * 2 * 4 * 1000;
        assert_eq!(total_flops(&forward(&config, &lengths)) as usize, torch_forward - scores);
        // Torch's backward has the head's two dense products, which ours does without; ours has the attention's
        // scores again.
        let head = 2 * 64 * 64 * 1000;
        let scores_again = 2 * (2 * 4 * 4 * 16 * 16 * 16);
        let torch_backward = torch_both - torch_forward - scores;
        assert_eq!(total_flops(&backward(&config, &lengths)) as usize, torch_backward - 2 * head + scores_again);
    }

    #[test]
    fn tasks_of_a_weight_gradient_cover_all_outputs() {
        let work = backward(&config(1, 300, 2, 1200, 600), &[64, 64]);
        for (part, outputs) in [("attention output", 300), ("feed-forward in", 1200)] {
            let tasks = work.iter().filter(|w| w.part == part && w.pass == "weight gradient");
            assert_eq!(tasks.map(|w| w.product.m * w.count).sum::<usize>(), outputs);
        }
    }

    #[test]
    fn blocks_of_the_head_cover_all_entries_and_rows() {
        let config = config(1, 8, 2, 32, 30_522);
        // 512 rows fit one block; the document of 600 is one of its own.
        let work = head_forward(&config, &[128, 128, 256, 600, 10, 20]);
        let blocks: Vec<(usize, usize, usize)> = work.iter().map(|w| (w.product.m, w.product.n, w.count)).collect();
        assert_eq!(
            blocks,
            [(30, 517, 40), (30, 518, 19), (512, 517, 40), (512, 518, 19), (600, 517, 40), (600, 518, 19)]
        );
    }

    /// The measured product is the product: against three loops, in every layout, alone and added.
    #[test]
    fn layouts_multiply_what_they_say() {
        let (m, k, n) = (5, 7, 3);
        for (layout, adds) in [(Layout::Nn, false), (Layout::Nt, true), (Layout::Tn, false)] {
            let product = Product { m, k, n, layout, spread: Spread::Within, adds };
            let mut operands = Operands::new(&product);
            operands.dst.fill(2.0);
            operands.multiply(&product, Parallelism::None);
            for i in 0..m {
                for j in 0..n {
                    let a = |l: usize| if layout == Layout::Tn { operands.a[l * m + i] } else { operands.a[i * k + l] };
                    let b = |l: usize| if layout == Layout::Nt { operands.b[j * k + l] } else { operands.b[l * n + j] };
                    let sum: f32 = (0..k).map(|l| a(l) * b(l)).sum::<f32>() + if adds { 2.0 } else { 0.0 };
                    assert!((operands.dst[i * n + j] - sum).abs() < 1e-5, "{layout:?} at {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn shapes_of_nearly_one_size_are_measured_once() {
        let shape = |m, k, n| Product { m, k, n, layout: Layout::Nt, spread: Spread::Within, adds: false };
        assert_eq!(shape(335, 384, 1536).representative(), shape(320, 384, 1536));
        assert_eq!(shape(336, 384, 1536).representative(), shape(352, 384, 1536));
        assert_eq!(shape(2048, 32, 30_522).representative(), shape(2048, 32, 30_720));
        assert_eq!(shape(3, 16, 15).representative(), shape(3, 16, 15));
        // Never more than a sixteenth off.
        for x in 1..5000 {
            let rounded = shape(x, 1, 1).representative().m;
            assert!(rounded.abs_diff(x) * 16 <= x, "{x} became {rounded}");
        }
    }

    #[test]
    fn time_alone_grows_with_the_number_of_products() {
        let config = config(1, 16, 2, 64, 600);
        let one = forward(&config, &[8, 8]);
        let many: Vec<Work> = one.iter().map(|w| Work { count: 1000 * w.count, ..*w }).collect();
        let budget = Duration::from_millis(5);
        let seconds = |work: &[Work]| seconds_alone(work, budget, &NoProgress, &Cancel::default()).unwrap();
        let (one, many) = (seconds(&one), seconds(&many));
        assert!(one > 0.0 && many > 50.0 * one, "{one} and {many}");
    }

    #[test]
    fn a_stop_is_heard() {
        let cancel = Cancel::default();
        cancel.cancel();
        let work = forward(&config(1, 16, 2, 64, 600), &[8]);
        assert!(seconds_alone(&work, Duration::from_millis(1), &NoProgress, &cancel).is_err());
    }
}
