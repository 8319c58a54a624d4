//! Times forward and backward of the CPU kernels on synthetic weights and tokens.
//!
//! `cargo run --release -p nsparse-encoder --example step -- LAYERS HIDDEN HEADS VOCABULARY DOCUMENTS TOKENS`
//! (default 6 384 12 30522 16 128). Prints the fastest of several runs: the machine may have other work.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use nsparse_encoder::cpu::{CpuBackend, Level};
use nsparse_encoder::{Backend, BertConfig, BertMlm, Dropout, TokenBatch};

const RUNS: usize = 7;

fn main() {
    let arguments: Vec<usize> =
        std::env::args().skip(1).map(|a| a.parse().expect("arguments are whole numbers")).collect();
    let argument = |i: usize, default: usize| arguments.get(i).copied().unwrap_or(default);
    let (layers, hidden, heads) = (argument(0, 6), argument(1, 384), argument(2, 12));
    let (vocabulary, documents, tokens) = (argument(3, 30_522), argument(4, 16), argument(5, 128));
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": 4 * hidden, "hidden_act": "gelu",
        "max_position_embeddings": tokens.max(512), "type_vocab_size": 2, "layer_norm_eps": 1e-12
    }))
    .expect("a config");
    let model = BertMlm::random(config.clone(), 1);
    let ids: Vec<Vec<u32>> =
        (0..documents).map(|d| (0..tokens).map(|i| ((d * 7919 + i * 104_729) % vocabulary) as u32).collect()).collect();
    let batch = TokenBatch::new(&ids);
    let backend = CpuBackend::new(&config);
    let dropout = Some(Dropout { hidden: 0.1, attention: 0.1, seed: 1, step: 1 });
    let mut gradient = vec![0.0f32; model.parameters.len()];

    let mut best = [Duration::MAX; 4];
    for _ in 0..RUNS {
        // Inference, then training with a gradient in a twentieth of all entries and in all.
        let start = Instant::now();
        backend.forward(&model.parameters, &batch, None, false).expect("the forward succeeds");
        best[0] = best[0].min(start.elapsed());
        for (slot, every) in [(2, 20), (3, 1)] {
            let start = Instant::now();
            let forward = backend.forward(&model.parameters, &batch, dropout, true).expect("the forward succeeds");
            best[1] = best[1].min(start.elapsed());
            let upstream: Vec<f32> =
                (0..forward.pooled.len()).map(|i| if i % every == 0 { 1e-3 } else { 0.0 }).collect();
            let start = Instant::now();
            backend
                .backward(&model.parameters, &batch, forward, &upstream, &mut gradient)
                .expect("the backward succeeds");
            best[slot] = best[slot].min(start.elapsed());
        }
    }
    let rows = (documents * tokens) as f64;
    // Multiply-adds count as two: linear layers, the scores and mixing of attention, the head.
    let (h, l) = (hidden as f64, tokens as f64);
    let encoder = rows * (layers as f64 * (24.0 * h * h + 4.0 * l * h) + 2.0 * h * h);
    let head = rows * 2.0 * h * vocabulary as f64;
    let line = |what: &str, seconds: f64, gflop: f64| {
        println!(
            "{what:<34} {:>8.1} ms  {:>7.0} tokens/s  {:>6.1} GFLOP/s",
            seconds * 1e3,
            rows / seconds,
            gflop / seconds / 1e9
        );
    };
    let seconds = best.map(|d| d.as_secs_f64());
    println!("{} with {} threads", Level::best(), std::thread::available_parallelism().map_or(1, usize::from));
    line("forward, inference", seconds[0], encoder + head);
    line("forward, training", seconds[1], encoder + head);
    line("backward, 5 % of entries", seconds[2], 2.0 * encoder);
    line("backward, all entries", seconds[3], 2.0 * encoder);
    line("forward and backward, all entries", seconds[1] + seconds[3], 3.0 * encoder + head);
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status.lines().filter(|l| l.starts_with("VmHWM")).for_each(|l| println!("{l}"));
    }
}
