//! Training steps on random weights and tokens, through the trainer's own stage and optimizer.

use nsparse_core::TokenId;
use nsparse_core::model_dir::Activation;
use nsparse_encoder::work::{self, Work};
use nsparse_encoder::{BertConfig, Device, create};
use nsparse_trainer::TrainConfig;
use nsparse_trainer::check::peak_memory;
use nsparse_trainer::contrastive::Contrastive;
use nsparse_trainer::network::Network;
use nsparse_trainer::optimizer::AdamW;
use nsparse_trainer::stage::{StepOutcome, take_step};
use nsparse_trainer::synthetic::RandomData;
use serde::Serialize;

use crate::bench::args::TrainBench;
use crate::bench::{Machine, Rates, Timing, memory, model, rounds, spread};
use crate::failure::usage;
use crate::printer::Printer;
use crate::settings;

/// Special tokens of random data: they carry no weight.
const SPECIAL: [TokenId; 5] = [0, 1, 2, 3, 4];

/// What a training step costs.
#[derive(Debug, Serialize)]
pub(crate) struct TrainReport {
    #[serde(flatten)]
    machine: Machine,
    config: TrainBench,
    parameters: usize,
    /// Tokens of one step.
    tokens: usize,
    tokens_per_second: f64,
    #[serde(flatten)]
    timing: Timing,
    #[serde(flatten)]
    rates: Rates,
    peak_memory_bytes: Option<u64>,
    /// Mean entries of a document that were above zero, over all steps.
    active_dimensions: f64,
    /// As a share of the vocabulary.
    active_share: f64,
    /// The last step's loss.
    loss: f64,
}

pub(crate) fn run(args: &TrainBench, printer: &Printer) -> anyhow::Result<TrainReport> {
    let device = settings::device(&args.device)?;
    if args.docs == 0 || args.docs % 2 == 1 {
        return Err(usage(
            format!("A step of {} documents cannot be put together", args.docs),
            "give an even number: every query brings a positive and a hard negative",
        ));
    }
    let cancel = settings::cancel_on_signal();
    let progress = printer.progress();
    let shape = model::config(&args.shape, args.tokens)?;
    let steps = args.rounds.warmup + args.rounds.rounds;
    let data = RandomData {
        queries: args.docs / 2 * steps.clamp(1, 16),
        tokens: args.tokens,
        vocabulary: args.shape.vocab,
        seed: args.seed,
    }
    .generate()?;
    let windows: Vec<&[TokenId]> = (0..args.docs.min(16)).map(|n| data.documents.window(n)).collect();
    let mut model = model::random(&shape, args.seed, args.active, &windows, device)?;
    let mut backend = create(&shape, device)?;
    backend.checkpoint_activations(args.activation_checkpointing)?;
    let network = Network::with_backend(backend, args.shape.vocab, Activation::Splade, &SPECIAL, args.shape.vocab);

    let recipe = recipe(args);
    let zeroed = network.zeroed.clone();
    let mut stage = Contrastive::new(&recipe, &data, &zeroed)?;
    let rates = &recipe.train.learning_rate;
    let mut optimizer = AdamW::new(model.parameters.specs(), &recipe.optimizer, |spec| {
        if spec.name.starts_with("cls.") { rates.head } else { rates.encoder }
    });
    let mut gradient = vec![0.0f32; model.parameters.len()];
    let mut all = StepOutcome::default();
    let mut loss = 0.0;
    let timing = rounds(&args.rounds, &progress, &cancel, |step| {
        let parameters = &mut model.parameters;
        let (outcome, norm) = take_step(&mut stage, &network, parameters, &mut optimizer, &mut gradient, step, 1.0)?;
        anyhow::ensure!(norm.is_finite(), "the gradient of step {step} is not finite");
        loss = outcome.loss;
        all.add(&outcome, 1.0);
        Ok(())
    })?;
    let peak_memory_bytes = peak_memory();
    // What was only needed for the steps must not stand in the way of what is measured alone.
    drop((network, optimizer, gradient));

    let head_is_screened = model::head_is_screened(&model, &windows, device)?;
    let executed = executed(&shape, args, head_is_screened);
    let lengths = vec![args.tokens; args.docs];
    let network_flops =
        work::total_flops(&work::forward(&shape, &lengths)) + work::total_flops(&work::backward(&shape, &lengths));
    let is_cpu = device == Device::Cpu;
    let seconds = timing.median_seconds;
    let rates = Rates::measure(&executed, network_flops, head_is_screened, seconds, is_cpu, &progress, &cancel)?;
    let tokens = args.docs * args.tokens;
    Ok(TrainReport {
        machine: Machine::new(device),
        config: args.clone(),
        parameters: model.parameters.len(),
        tokens,
        tokens_per_second: tokens as f64 / timing.median_seconds,
        rates,
        timing,
        peak_memory_bytes,
        active_dimensions: all.active_dimensions(),
        active_share: all.active_dimensions() / args.shape.vocab as f64,
        loss,
    })
}

/// The trainer's defaults, with the two terms `InfoNCE` and FLOPS, over whole batches.
fn recipe(args: &TrainBench) -> TrainConfig {
    let mut recipe = TrainConfig::default();
    recipe.run.seed = args.seed;
    recipe.train.batch_queries = args.docs / 2;
    recipe.train.negatives = 1;
    recipe.train.micro_batch = args.micro_batch;
    recipe.train.dropout = args.dropout;
    recipe.train.losses.infonce.weight = 1.0;
    recipe.train.losses.flops.weight = Some(1e-3);
    recipe
}

/// The products of one step, as the trainer and the CPU kernels execute them.
fn executed(shape: &BertConfig, args: &TrainBench, head_is_screened: bool) -> Vec<Work> {
    let is_cached = args.micro_batch > 0 && args.micro_batch < args.docs;
    let lengths = vec![args.tokens; args.docs];
    let mut out = Vec::new();
    for chunk in lengths.chunks(if is_cached { args.micro_batch } else { args.docs }) {
        // With cached gradients vectors come first, and every part is encoded again for its gradient.
        for _ in 0..if is_cached { 2 } else { 1 } {
            out.extend(if head_is_screened {
                work::encoder_forward(shape, chunk)
            } else {
                work::forward(shape, chunk)
            });
        }
        out.extend(work::backward(shape, chunk));
        if args.activation_checkpointing {
            out.extend(work::layers_forward(shape, chunk));
        }
    }
    out
}

pub(crate) fn show(report: &TrainReport, printer: &Printer) {
    let c = &report.config;
    printer.text(format!(
        "training step: {} layers × {}, {} heads, {} entries, {:.1} M parameters; {} documents × {} tokens{}{}; {}, {} threads",
        c.shape.layers,
        c.shape.hidden,
        c.shape.heads,
        c.shape.vocab,
        report.parameters as f64 / 1e6,
        c.docs,
        c.tokens,
        if c.micro_batch > 0 && c.micro_batch < c.docs { format!(", {} at once", c.micro_batch) } else { String::new() },
        if c.activation_checkpointing { ", activations computed again" } else { "" },
        report.machine.device,
        report.machine.threads
    ));
    printer.text(format!("{}: {:.0} tokens/s", spread(&report.timing), report.tokens_per_second));
    printer.text(report.rates.show());
    printer.text(format!(
        "{} active entries a document, {:.1} % of the vocabulary",
        report.active_dimensions.round(),
        report.active_share * 100.0
    ));
    printer.text(memory(report.peak_memory_bytes));
}
