//! Which curves a run has.

use nsparse_trainer::metrics_log::StepRecord;
use nsparse_trainer::run_folder::RunFolder;

use super::chart::{Chart, Style};
use super::curve::Point;

/// The points of a value of the steps.
type Reading<'a> = dyn Fn(&dyn Fn(&StepRecord) -> Option<f64>) -> Vec<Point> + 'a;

/// Charts under a heading.
pub(crate) struct Group {
    pub(crate) title: &'static str,
    pub(crate) charts: Vec<Chart>,
}

/// All charts of a run; those without a value are left out when they are drawn.
pub(crate) fn groups(run: &RunFolder) -> Vec<Group> {
    let steps = &run.history.steps;
    let stages = stage_begins(steps);
    let marked = |chart: Chart| Chart { stages: stages.clone(), ..chart };
    let of = |value: &dyn Fn(&StepRecord) -> Option<f64>| -> Vec<Point> {
        steps.iter().filter_map(|s| Some((s.total_step as f64, value(s)?))).collect()
    };
    let any = |points: Vec<Point>| if points.iter().any(|p| p.1 != 0.0) { points } else { Vec::new() };
    let whole = |title: &str, value: &dyn Fn(&StepRecord) -> Option<f64>| {
        marked(Chart::new(title).with(title, Style::Noisy, of(value)))
    };
    let quality = vec![evaluation(run), marked(active_dimensions(run, &of)), marked(steered(run, &of))];
    let training = vec![
        Chart {
            // A ramp is a line; a loop moves the weight by factors.
            linear: steps.iter().all(|s| s.steering.is_none()),
            ..marked(Chart::new("λ, weight of the sparsity penalty").with("λ", Style::Plain, of(&|s| s.lambda)))
        },
        whole("Gradient norm before clipping", &|s| Some(s.gradient_norm)),
        Chart {
            linear: true,
            ..marked(Chart::new("Learning rate").with("learning rate", Style::Plain, of(&|s| Some(s.learning_rate))))
        },
        whole("Tokens a second", &|s| Some(s.tokens_per_second)),
        marked(Chart::new("Documents without an active dimension").with(
            "documents",
            Style::Plain,
            any(of(&|s| Some(s.zero_vectors as f64))),
        )),
        marked(Chart::new("Candidates masked by a teacher").with(
            "candidates",
            Style::Noisy,
            any(of(&|s| Some(s.masked_candidates as f64))),
        )),
    ];
    vec![
        Group { title: "Quality and density", charts: quality },
        Group { title: "Loss", charts: losses(steps) },
        Group { title: "Training", charts: training },
    ]
}

/// Where each stage begins, with its name, if there are several.
fn stage_begins(steps: &[StepRecord]) -> Vec<(f64, String)> {
    let begins: Vec<(f64, String)> = steps
        .chunk_by(|a, b| a.stage == b.stage)
        .map(|stage| ((stage[0].total_step - stage[0].step.min(stage[0].total_step)) as f64, title(&stage[0].stage)))
        .collect();
    if begins.len() > 1 { begins } else { Vec::new() }
}

/// A stage's name as people read it.
pub(crate) fn title(stage: &str) -> String {
    stage.replace('_', " ")
}

fn evaluation(run: &RunFolder) -> Chart {
    let evaluations = &run.history.evaluations;
    let Some((_, first)) = evaluations.first() else { return Chart::default() };
    let points: Vec<Point> = evaluations.iter().map(|(at, e)| (*at as f64, e.value)).collect();
    let mut chart = Chart::new(format!("{} of held-out queries", first.metric));
    if let Some(reference) = run.summary.as_ref().and_then(|s| s.lexical_reference) {
        let ends = [points[0].0, points[points.len() - 1].0];
        chart = chart.with("trained", Style::Dots, points).with(
            "lexical reference",
            Style::Level,
            ends.map(|at| (at, reference)).to_vec(),
        );
    } else {
        chart = chart.with("trained", Style::Dots, points);
    }
    chart.mark = run.history.best().map(|(at, e)| ((*at as f64, e.value), format!("best {:.4}", e.value)));
    chart
}

fn active_dimensions(run: &RunFolder, of: &Reading<'_>) -> Chart {
    let evaluated = run.history.evaluations.iter().map(|(at, e)| (*at as f64, e.active_dimensions)).collect();
    let wanted = run.config.as_ref().and_then(|c| c.train.losses.flops.target?.doc_dims);
    let aimed = of(&|s| s.steering.and(wanted));
    Chart::new("Active dimensions of a document")
        .with("a step's documents", Style::Noisy, of(&|s| Some(s.active_dimensions)))
        .with("target", Style::Level, aimed)
        .with("evaluated documents", Style::Dots, evaluated)
}

/// What the loop that steers the penalty's weight sees.
fn steered(run: &RunFolder, of: &Reading<'_>) -> Chart {
    let flops = run.config.as_ref().and_then(|c| c.train.losses.flops.target?.flops);
    let unit = if flops.is_some() { "expected matches with a query" } else { "active dimensions" };
    Chart::new(format!("Steered density: {unit}"))
        .with("measured", Style::Plain, of(&|s| Some(s.steering?.measured)))
        .with("target", Style::Level, of(&|s| Some(s.steering?.target)))
        .with("documents of the corpus", Style::Dots, of(&|s| s.steering?.corpus))
}

/// The loss of each stage by itself, for their sizes do not compare; then its terms.
fn losses(steps: &[StepRecord]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for stage in steps.chunk_by(|a, b| a.stage == b.stage) {
        let name = title(&stage[0].stage);
        let of = |value: &dyn Fn(&StepRecord) -> Option<f64>| -> Vec<Point> {
            stage.iter().filter_map(|s| Some((s.total_step as f64, value(s)?))).collect()
        };
        charts.push(Chart::new(format!("Loss, {name}")).with("loss", Style::Noisy, of(&|s| Some(s.loss))));
        let mut parts: Vec<&String> = stage.iter().flat_map(|s| s.parts.keys()).collect();
        parts.sort();
        parts.dedup();
        if let [only] = parts[..]
            && stage.iter().all(|s| s.parts.get(only) == Some(&s.loss))
        {
            continue;
        }
        for part in parts {
            let points = of(&|s| s.parts.get(part).copied());
            let is_used = points.iter().any(|p| p.1 != 0.0);
            if is_used {
                charts.push(Chart::new(format!("{part}, {name}")).with(part, Style::Noisy, points));
            }
        }
    }
    charts
}
