//! The products of a training step alone: each shape on one thread and on all.

use std::time::Duration;

use nsparse_core::Progress as _;
use nsparse_encoder::work::{self, Work, measure_product};
use serde::Serialize;

use crate::bench::args::ProductBench;
use crate::bench::{Machine, model};
use crate::failure::usage;
use crate::printer::{Printer, table};
use crate::settings;

/// How fast the shapes are.
#[derive(Debug, Serialize)]
pub(crate) struct ProductReport {
    #[serde(flatten)]
    machine: Machine,
    config: ProductBench,
    products: Vec<Measured>,
    /// Operations of the step's products.
    flops: f64,
    /// Over the time that all of them take, on all threads.
    gflops_per_second: f64,
    /// The same on one thread.
    one_thread_gflops_per_second: f64,
}

/// One shape.
#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    work: Work,
    /// Operations of all of them in a step.
    flops: f64,
    gflops_per_second: f64,
    one_thread_gflops_per_second: f64,
}

pub(crate) fn run(args: &ProductBench, printer: &Printer) -> anyhow::Result<ProductReport> {
    if args.docs == 0 || args.tokens == 0 || !(args.seconds > 0.0 && args.seconds < 1e4) {
        return Err(usage("There is nothing to measure", "give --docs, --tokens and --seconds above 0"));
    }
    let cancel = settings::cancel_on_signal();
    let shape = model::config(&args.shape, args.tokens)?;
    let lengths = vec![args.tokens; args.docs];
    let mut step = work::forward(&shape, &lengths);
    step.extend(work::backward(&shape, &lengths));
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let budget = Duration::from_secs_f64(args.seconds);
    let task = printer.progress().start("Measuring products", 2 * step.len() as u64);
    let mut products = Vec::with_capacity(step.len());
    let (mut seconds, mut one_thread_seconds) = (0.0, 0.0);
    for work in step {
        cancel.check()?;
        let one = one_thread.install(|| measure_product(&work.product, budget));
        task.advance(1);
        let all = measure_product(&work.product, budget);
        task.advance(1);
        one_thread_seconds += one * work.count as f64;
        seconds += all * work.count as f64;
        products.push(Measured {
            work,
            flops: work.product.flops() * work.count as f64,
            gflops_per_second: work.product.flops() / all / 1e9,
            one_thread_gflops_per_second: work.product.flops() / one / 1e9,
        });
    }
    let flops: f64 = products.iter().map(|p| p.flops).sum();
    Ok(ProductReport {
        machine: Machine::new("cpu"),
        config: args.clone(),
        products,
        flops,
        gflops_per_second: flops / seconds / 1e9,
        one_thread_gflops_per_second: flops / one_thread_seconds / 1e9,
    })
}

pub(crate) fn show(report: &ProductReport, printer: &Printer) {
    let all = format!("{} threads", report.machine.threads);
    let head = ["product", "m × k × n", "a step", "GFLOP", "1 thread", &all];
    let mut rows: Vec<Vec<String>> = report
        .products
        .iter()
        .map(|p| {
            let shape = p.work.product;
            vec![
                format!("{}, {}", p.work.part, p.work.pass),
                format!("{} × {} × {}", shape.m, shape.k, shape.n),
                p.work.count.to_string(),
                format!("{:.2}", p.flops / 1e9),
                format!("{:.1}", p.one_thread_gflops_per_second),
                format!("{:.1}", p.gflops_per_second),
            ]
        })
        .collect();
    rows.push(vec![
        "all of a step".to_owned(),
        String::new(),
        String::new(),
        format!("{:.2}", report.flops / 1e9),
        format!("{:.1}", report.one_thread_gflops_per_second),
        format!("{:.1}", report.gflops_per_second),
    ]);
    printer.text(table(&head, &rows));
    printer.text("\nGFLOP/s; attention and the head give each thread products of its own");
}
