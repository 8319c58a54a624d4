//! Encoding of documents: those of a data set by a trained model, or random ones by random weights.

use std::io::Write as _;
use std::path::Path;

use nsparse_core::beir::Document;
use nsparse_core::model_dir::{Activation, ModelDir};
use nsparse_core::{Error, NoProgress, SparseVector, TokenId, files};
use nsparse_encoder::document::DEFAULT_BATCH_TOKENS;
use nsparse_encoder::work::{self, Work};
use nsparse_encoder::{BertConfig, BertMlm, Device, EncodeSettings, SparseEncoder};
use nsparse_trainer::check::peak_memory;
use nsparse_trainer::synthetic;
use serde::Serialize;

use crate::bench::args::EncodeBench;
use crate::bench::{Machine, Rates, Timing, memory, model, rounds, spread};
use crate::failure::usage;
use crate::printer::Printer;
use crate::settings;

/// What encoding costs.
#[derive(Debug, Serialize)]
pub(crate) struct EncodeReport {
    #[serde(flatten)]
    machine: Machine,
    config: serde_json::Value,
    documents: usize,
    /// Tokens of all documents, special ones included.
    tokens: usize,
    mean_tokens: f64,
    tokens_per_second: f64,
    documents_per_second: f64,
    #[serde(flatten)]
    timing: Timing,
    #[serde(flatten)]
    rates: Rates,
    peak_memory_bytes: Option<u64>,
    /// Mean entries of a document above zero.
    active_dimensions: f64,
}

/// What is encoded, and by what.
struct Task {
    encoder: SparseEncoder,
    /// Ids and texts.
    texts: Vec<(String, String)>,
    shape: BertConfig,
    config: serde_json::Value,
}

pub(crate) fn run(args: &EncodeBench, printer: &Printer) -> anyhow::Result<EncodeReport> {
    let device = settings::device(&args.device)?;
    let cancel = settings::cancel_on_signal();
    let progress = printer.progress();
    let task = match &args.model {
        Some(folder) => trained(args, folder, device, printer)?,
        None => random(args, device)?,
    };
    if let Some(path) = &args.save_texts {
        save(path, &task.texts)?;
    }
    let texts: Vec<&str> = task.texts.iter().map(|(_, text)| text.as_str()).collect();
    let mut vectors: Vec<SparseVector> = Vec::new();
    let timing = rounds(&args.rounds, &progress, &cancel, |_| {
        vectors = task.encoder.encode_reporting(&texts, &NoProgress, &cancel)?;
        Ok(())
    })?;
    let peak_memory_bytes = peak_memory();

    let tokenizer = task.encoder.tokenizer();
    let most = task.encoder.settings().max_tokens;
    let windows =
        texts.iter().map(|text| Ok(tokenizer.window(text, most)?.0)).collect::<anyhow::Result<Vec<Vec<TokenId>>>>()?;
    let shape = &task.shape;
    // The folder's weights again, or the random ones: only to see whether its head is screened.
    let first: Vec<&[TokenId]> = windows.iter().take(8).map(Vec::as_slice).collect();
    let screened = match &args.model {
        Some(folder) => model::head_is_screened(&BertMlm::load(folder, 0)?, &first, device)?,
        None => {
            model::head_is_screened(&model::random(shape, args.seed, args.active, &first, device)?, &first, device)?
        }
    };
    let mut lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let network_flops = work::total_flops(&products(shape, &lengths, false));
    let executed = products(shape, &lengths, screened);
    let is_cpu = device == Device::Cpu;
    let seconds = timing.median_seconds;
    let rates = Rates::measure(&executed, network_flops, screened, seconds, is_cpu, &progress, &cancel)?;
    let tokens: usize = lengths.iter().sum();
    Ok(EncodeReport {
        machine: Machine::new(device),
        config: task.config,
        documents: texts.len(),
        tokens,
        mean_tokens: tokens as f64 / texts.len() as f64,
        tokens_per_second: tokens as f64 / timing.median_seconds,
        documents_per_second: texts.len() as f64 / timing.median_seconds,
        rates,
        timing,
        peak_memory_bytes,
        active_dimensions: vectors.iter().map(SparseVector::len).sum::<usize>() as f64 / vectors.len() as f64,
    })
}

/// The products of all batches; the longest documents come first, as the encoder takes them.
fn products(shape: &BertConfig, lengths: &[usize], head_is_screened: bool) -> Vec<Work> {
    let mut out = Vec::new();
    let mut rest = lengths;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|&&len| {
            tokens += len;
            tokens <= DEFAULT_BATCH_TOKENS
        });
        let (batch, others) = rest.split_at(fits.count().max(1));
        out.extend(if head_is_screened { work::encoder_forward(shape, batch) } else { work::forward(shape, batch) });
        rest = others;
    }
    out
}

fn trained(args: &EncodeBench, folder: &Path, device: Device, printer: &Printer) -> anyhow::Result<Task> {
    let facts = ModelDir::open(folder)?.facts()?;
    let set = settings::dataset(&args.data, printer)?;
    let documents = sample(set.corpus()?, args.sample, args.seed);
    let texts: Vec<(String, String)> = documents.iter().map(|d| (d.id.clone(), facts.template.apply(d))).collect();
    Ok(Task {
        encoder: SparseEncoder::load(folder, device)?,
        texts,
        shape: BertConfig::load(&folder.join("config.json"))?,
        config: serde_json::json!({ "data": set.name, "sample": args.sample, "seed": args.seed }),
    })
}

/// So many documents, by the order of the seed's hashes of their ids, in their own order.
fn sample(mut documents: Vec<Document>, count: Option<usize>, seed: u64) -> Vec<Document> {
    let Some(count) = count.filter(|&n| n < documents.len()) else { return documents };
    let key = |d: &Document| files::sha256_bytes(format!("{seed}\n{}", d.id).as_bytes());
    let mut keys: Vec<String> = documents.iter().map(key).collect();
    keys.sort_unstable();
    let last = keys.get(count).cloned().unwrap_or_default();
    documents.retain(|d| key(d) < last);
    documents
}

fn random(args: &EncodeBench, device: Device) -> anyhow::Result<Task> {
    let given = &args.data;
    if given.data.is_some() || given.beir.is_some() {
        return Err(usage("A data set is named, but no model to encode it", "give --model DIR"));
    }
    if args.docs == 0 || args.tokens < 3 {
        return Err(usage("Nothing is to be encoded", "give at least --docs 1 and --tokens 3"));
    }
    let shape = model::config(&args.shape, args.tokens)?;
    let data = synthetic::RandomData {
        queries: args.docs.div_ceil(2),
        tokens: args.tokens,
        vocabulary: args.shape.vocab,
        seed: args.seed,
    }
    .generate()?;
    let tokenizer = synthetic::tokenizer(args.shape.vocab)?;
    let text = |number: usize| {
        let window = data.documents.window(number);
        let words: Vec<String> = window[1..window.len() - 1].iter().map(|id| format!("t{id}")).collect();
        (number.to_string(), words.join(" "))
    };
    let windows: Vec<&[TokenId]> = (0..args.docs.min(16)).map(|n| data.documents.window(n)).collect();
    let model = model::random(&shape, args.seed, args.active, &windows, device)?;
    let settings = EncodeSettings::new(Activation::Splade, args.tokens, tokenizer.weightless());
    Ok(Task {
        texts: (0..args.docs).map(text).collect(),
        encoder: SparseEncoder::new(model, device, tokenizer, settings)?,
        shape,
        config: serde_json::json!({
            "layers": args.shape.layers, "hidden": args.shape.hidden, "heads": args.shape.heads,
            "vocab": args.shape.vocab, "docs": args.docs, "tokens": args.tokens, "active": args.active,
            "seed": args.seed,
        }),
    })
}

fn save(path: &Path, texts: &[(String, String)]) -> anyhow::Result<()> {
    files::write_atomic(path, |out| {
        for (id, text) in texts {
            let line = serde_json::json!({ "id": id, "text": text });
            writeln!(out, "{line}").map_err(|e| Error::io("write", path, e))?;
        }
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn show(report: &EncodeReport, printer: &Printer) {
    printer.text(format!(
        "encoding {} documents of {:.0} tokens in the mean; {}, {} threads",
        report.documents, report.mean_tokens, report.machine.device, report.machine.threads
    ));
    printer.text(format!(
        "{}: {:.0} tokens/s, {:.1} documents/s",
        spread(&report.timing),
        report.tokens_per_second,
        report.documents_per_second
    ));
    printer.text(report.rates.show());
    printer.text(format!("{:.0} active entries a document", report.active_dimensions));
    printer.text(memory(report.peak_memory_bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_follow_their_seed_and_keep_the_order() {
        let all: Vec<Document> = (0..50).map(|n| Document { id: format!("d{n:02}"), ..Document::default() }).collect();
        let ids = |count, seed| -> Vec<String> { sample(all.clone(), count, seed).into_iter().map(|d| d.id).collect() };
        assert_eq!(ids(Some(7), 1).len(), 7);
        assert_eq!(ids(Some(7), 1), ids(Some(7), 1));
        assert_ne!(ids(Some(7), 1), ids(Some(7), 2));
        assert!(ids(Some(7), 1).is_sorted());
        assert_eq!(ids(None, 1).len(), 50);
        assert_eq!(ids(Some(99), 1).len(), 50);
    }
}
