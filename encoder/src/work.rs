//! What a pass over the network costs: its matrix products by shape and number, their floating-point operations,
//! and how fast this machine does the same products when it does nothing else.
//!
//! Only products are counted, as the CPU kernels execute them: a multiply-add is two operations, and the
//! attention's scores, which the backward makes again, count again. Element-wise loops, norms and the head's
//! backward (one scaled row for each entry with a gradient) are no products and count nothing. A kernel that finds
//! a way around a part of the head's products still gets all of them counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gemm::Parallelism;
use nsparse_core::{Cancel, Progress};
use serde::Serialize;

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

/// The linear layers of one encoder layer and of the head: part, inputs, outputs, how many, and whether forward and
/// input gradient are added to their destinations.
fn linears(config: &BertConfig) -> [(&'static str, usize, usize, usize, bool, bool); 5] {
    let (h, wide, layers) = (config.hidden_size, config.intermediate_size, config.num_hidden_layers);
    [
        ("query, key, value", h, h, 3 * layers, true, true),
        ("attention output", h, h, layers, false, false),
        ("feed-forward in", h, wide, layers, false, true),
        ("feed-forward out", wide, h, layers, false, false),
        ("head transform", h, h, 1, false, false),
    ]
}

/// The products of one forward pass over a batch of documents with these lengths in tokens.
pub fn forward(config: &BertConfig, lengths: &[usize]) -> Vec<Work> {
    let mut out = encoder_forward(config, lengths);
    out.extend(head_forward(config, lengths));
    out
}

/// As [`forward`], without the head's vocabulary product: what recomputed activations cost.
pub fn encoder_forward(config: &BertConfig, lengths: &[usize]) -> Vec<Work> {
    let rows = lengths.iter().sum();
    let mut out = Vec::new();
    for (part, from, to, count, adds, _) in linears(config) {
        let product = Product { m: rows, k: from, n: to, layout: Layout::Nt, spread: Spread::Within, adds };
        out.push(Work { part, pass: "forward", product, count });
    }
    for (length, documents) in counted(lengths) {
        let count = documents * config.num_attention_heads * config.num_hidden_layers;
        let mut push = |part, product| out.push(Work { part, pass: "forward", product, count });
        push("attention scores", scores(config, length));
        push("attention mix", mix(config, length, Layout::Nn));
    }
    out
}

/// The products of one backward pass, attention scores made again included.
pub fn backward(config: &BertConfig, lengths: &[usize]) -> Vec<Work> {
    let rows = lengths.iter().sum();
    let mut out = Vec::new();
    for (part, from, to, count, _, adds) in linears(config) {
        let product = Product { m: to, k: rows, n: from, layout: Layout::Tn, spread: Spread::Within, adds: true };
        out.push(Work { part, pass: "weight gradient", product, count });
        let product = Product { m: rows, k: to, n: from, layout: Layout::Nn, spread: Spread::Within, adds };
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
        for (entries, blocks) in [(HEAD_ENTRIES, vocabulary / HEAD_ENTRIES), (vocabulary % HEAD_ENTRIES, 1)] {
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
/// products of its own, and a product's share of the time is given.
pub fn measure_product(product: &Product, budget: Duration) -> f64 {
    let threads = match product.spread {
        Spread::Within => 1,
        Spread::Across => rayon::current_num_threads(),
    };
    let operands: Vec<Mutex<Operands>> = (0..threads).map(|_| Mutex::new(Operands::new(product))).collect();
    let timed = |repeats: usize| {
        let started = Instant::now();
        let work = |thread: usize, parallelism: Parallelism| {
            let mut operands = operands[thread].lock().unwrap_or_else(PoisonError::into_inner);
            for _ in 0..repeats {
                operands.multiply(product, parallelism);
            }
        };
        match product.spread {
            Spread::Within => work(0, Parallelism::Rayon(0)),
            Spread::Across => drop(rayon::broadcast(|context| work(context.index(), Parallelism::None))),
        }
        started.elapsed().as_secs_f64() / (threads * repeats) as f64
    };
    // The first touches the buffers, the second tells how many fill a round.
    timed(1);
    let once = timed(1) * threads as f64;
    let repeats = (budget.as_secs_f64() / ROUNDS as f64 / once.max(1e-9)).clamp(1.0, 1e6) as usize;
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| timed(repeats)).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
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
        // Each linear layer has two products of its forward's size; attention has five in place of two.
        let attention_backward = 2 * 5 * (3 * 3 * 4 + 5 * 5 * 4 + 3 * 3 * 4);
        let expected = 2 * (2 * (2 * layer_forward + attention_backward) + 2 * transform);
        assert_eq!(total_flops(&backward(&config, &lengths)) as usize, expected);
    }

    #[test]
    fn blocks_of_the_head_cover_all_entries_and_rows() {
        let config = config(1, 8, 2, 32, 30_522);
        // 512 rows fit one block; the document of 600 is one of its own.
        let work = head_forward(&config, &[128, 128, 256, 600, 10, 20]);
        let blocks: Vec<(usize, usize, usize)> = work.iter().map(|w| (w.product.m, w.product.n, w.count)).collect();
        assert_eq!(blocks, [(30, 512, 59), (30, 314, 1), (512, 512, 59), (512, 314, 1), (600, 512, 59), (600, 314, 1)]);
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
        assert_eq!(shape(335, 384, 1536).representative(), shape(336, 384, 1536).representative());
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
