//! Times forward and backward of the CPU kernels on synthetic weights and tokens.
//!
//! `cargo run --release -p nsparse-encoder --example step -- LAYERS HIDDEN HEADS VOCABULARY DOCUMENTS TOKENS`
//! (default 6 384 12 30522 16 128). Prints the fastest of several runs, and the mean processor time
//! of all of them, which says more where the machine has other work.
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
    let mut processor = [0.0; 4];
    for _ in 0..RUNS {
        // Inference, then training with a gradient in a twentieth of all entries and in all.
        let mut timed = |slot: usize, work: &mut dyn FnMut()| {
            let (start, before) = (Instant::now(), processor_seconds());
            work();
            best[slot] = best[slot].min(start.elapsed());
            processor[slot] += processor_seconds() - before;
        };
        timed(0, &mut || drop(backend.forward(&model.parameters, &batch, None, false).expect("the forward succeeds")));
        for (slot, every) in [(2, 20), (3, 1)] {
            let mut forward = None;
            timed(1, &mut || {
                forward =
                    Some(backend.forward(&model.parameters, &batch, dropout, true).expect("the forward succeeds"));
            });
            let upstream: Vec<f32> =
                (0..documents * vocabulary).map(|i| if i % every == 0 { 1e-3 } else { 0.0 }).collect();
            timed(slot, &mut || {
                let forward = forward.take().expect("the forward was run");
                backend
                    .backward(&model.parameters, &batch, forward, &upstream, &mut gradient)
                    .expect("the backward succeeds");
            });
        }
    }
    let rows = (documents * tokens) as f64;
    // Multiply-adds count as two: linear layers, the scores and mixing of attention, the head.
    let (h, l) = (hidden as f64, tokens as f64);
    let encoder = rows * (layers as f64 * (24.0 * h * h + 4.0 * l * h) + 2.0 * h * h);
    let head = rows * 2.0 * h * vocabulary as f64;
    let line = |what: &str, seconds: f64, processor: f64, flop: f64| {
        println!(
            "{what:<34} {:>8.1} ms  {:>7.0} tokens/s  {:>6.1} GFLOP/s; processor {:>8.1} ms, {:>6.1} GFLOP/s a core",
            seconds * 1e3,
            rows / seconds,
            flop / seconds / 1e9,
            processor * 1e3,
            flop / processor / 1e9,
        );
    };
    let seconds = best.map(|d| d.as_secs_f64());
    let runs = RUNS as f64;
    let processor = [processor[0] / runs, processor[1] / runs / 2.0, processor[2] / runs, processor[3] / runs];
    println!("{} with {} threads", Level::best(), std::thread::available_parallelism().map_or(1, usize::from));
    line("forward, inference", seconds[0], processor[0], encoder + head);
    line("forward, training", seconds[1], processor[1], encoder + head);
    line("backward, 5 % of entries", seconds[2], processor[2], 2.0 * encoder);
    line("backward, all entries", seconds[3], processor[3], 2.0 * encoder);
    let step = (seconds[1] + seconds[3], processor[1] + processor[3]);
    line("forward and backward, all entries", step.0, step.1, 3.0 * encoder + head);
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status.lines().filter(|l| l.starts_with("VmHWM")).for_each(|l| println!("{l}"));
    }
}

/// Processor time of all threads so far; 0 where the system does not tell. Steps of 10 ms.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    // After the name: user time is the 12th field, system time the 13th, in hundredths of a second.
    let field = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (field(11) + field(12)) / 100.0
}
