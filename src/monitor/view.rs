//! What a look at a run shows, and its plain form for logs and programs.

use std::fmt::Write as _;

use nsparse_trainer::metrics_log::StepRecord;
use nsparse_trainer::run_folder::RunFolder;
use nsparse_trainer::standing::{RunState, Standing};

use crate::report::curve::{Point, smooth, thin};
use crate::report::html::{duration, number};

/// Width of a curve in a line of text.
const SPARK: usize = 40;
/// Evaluations and warnings that are listed.
const LISTED: usize = 4;

/// A named curve over the steps of the stage (evaluations: of the run), with the level that it aims at.
pub(super) struct Curve {
    pub(super) name: &'static str,
    pub(super) points: Vec<Point>,
    pub(super) target: Option<f64>,
    /// Whether a smooth line says more than the single steps.
    pub(super) noisy: bool,
}

impl Curve {
    /// The newest value.
    pub(super) fn last(&self) -> Option<f64> {
        self.points.last().map(|p| p.1)
    }

    /// Name, newest value and target.
    pub(super) fn title(&self) -> String {
        let target = self.target.map_or(String::new(), |t| format!(" (target {})", number(t)));
        format!("{} {}{target}", self.name, self.last().map_or_else(|| "—".to_owned(), number))
    }
}

/// One look.
pub(super) struct View {
    pub(super) name: String,
    pub(super) standing: Standing,
    /// Seconds since the run last wrote something.
    pub(super) since: Option<f64>,
    pub(super) curves: Vec<Curve>,
    /// The last evaluations, newest last, each as a line.
    pub(super) evaluations: Vec<String>,
    /// The last warnings, newest last.
    pub(super) warnings: Vec<String>,
}

impl View {
    pub(super) fn of(run: &RunFolder, since: Option<f64>) -> Self {
        let standing = Standing::of(run);
        let history = &run.history;
        let stage: Vec<&StepRecord> =
            history.steps.iter().filter(|s| Some(&s.stage) == standing.stage.as_ref()).collect();
        let of = |value: &dyn Fn(&StepRecord) -> Option<f64>| -> Vec<Point> {
            stage.iter().filter_map(|s| Some((s.step as f64, value(s)?))).collect()
        };
        let curve = |name, noisy, points| Curve { name, points, target: None, noisy };
        let steering = stage.last().and_then(|s| s.steering);
        let mut curves = vec![curve("loss", true, of(&|s| Some(s.loss)))];
        curves.push(match steering {
            Some(steering) => Curve {
                name: "density",
                points: of(&|s| Some(s.steering?.measured)),
                target: Some(steering.target),
                noisy: false,
            },
            None => curve("active dimensions", true, of(&|s| Some(s.active_dimensions))),
        });
        curves.push(curve("lambda", false, of(&|s| s.lambda)));
        curves.push(curve("gradient norm", true, of(&|s| Some(s.gradient_norm))));
        curves.push(curve("tokens/s", true, of(&|s| Some(s.tokens_per_second))));
        let evaluated = history.evaluations.iter().map(|(at, e)| (*at as f64, e.value)).collect();
        curves.push(curve("evaluation", false, evaluated));
        let best = history.best().map(|(at, e)| (*at, e.step));
        let evaluations = last(&history.evaluations)
            .map(|(at, e)| {
                format!(
                    "{} step {}: {} {:.4}, {} active dimensions{}",
                    e.stage,
                    e.step,
                    e.metric,
                    e.value,
                    number(e.active_dimensions),
                    if best == Some((*at, e.step)) { ", best" } else { "" }
                )
            })
            .collect();
        let warnings = last(&history.warnings).map(ToString::to_string).collect();
        let path = run.dir().canonicalize().unwrap_or_else(|_| run.dir().to_path_buf());
        let name = path.display().to_string();
        Self { name, standing, since, curves, evaluations, warnings }
    }

    /// What the run is doing.
    pub(super) fn state(&self) -> String {
        let since = self.since.map(|s| format!(", last line {} ago", duration(s))).unwrap_or_default();
        match self.standing.state {
            RunState::Waiting => "nothing written yet: a run writes once its data is read".to_owned(),
            RunState::Running => format!("running{since}"),
            RunState::Finished => "finished".to_owned(),
            RunState::Stopped => "stopped, can go on with --resume".to_owned(),
            RunState::StoppedByGuard => "stopped by the guard".to_owned(),
        }
    }

    /// How far it is, in words.
    pub(super) fn how_far(&self) -> String {
        let s = &self.standing;
        let of = |done: usize, all: Option<usize>| all.map_or(format!("{done}"), |all| format!("{done} of {all}"));
        let Some(stage) = &s.stage else {
            let steps = s.total_steps.map_or(String::new(), |n| format!(" of {n}"));
            return format!("no step{steps} yet");
        };
        let mut out = format!("{stage} step {}, run {}", of(s.step, s.steps), of(s.total_step, s.total_steps));
        if let Some(left) = s.stage_seconds_left {
            let _ = write!(out, ", {} left in the stage", duration(left));
        }
        let later: Vec<String> = s.later.iter().map(|l| format!("{} ({} steps)", l.name, l.steps)).collect();
        if !later.is_empty() && s.state == RunState::Running {
            let _ = write!(out, ", then {}", later.join(", "));
        }
        out
    }

    /// The share of the run that is done.
    pub(super) fn share(&self) -> f64 {
        let total = self.standing.total_steps.unwrap_or(0);
        if total == 0 { 0.0 } else { (self.standing.total_step as f64 / total as f64).min(1.0) }
    }

    /// All of it as text.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![format!("{}: {}", self.name, self.state()), self.how_far()];
        let curves: Vec<&Curve> = self.curves.iter().filter(|c| !c.points.is_empty()).collect();
        let width = curves.iter().map(|c| c.title().chars().count()).max().unwrap_or(0);
        lines.extend(curves.iter().map(|c| {
            let title = c.title();
            let gap = " ".repeat(width - title.chars().count());
            format!("  {title}{gap}  {}", spark(c, SPARK))
        }));
        lines.extend(self.evaluations.iter().map(|e| format!("  {e}")));
        lines.extend(self.warnings.iter().map(|w| format!("  warning, {w}")));
        lines.join("\n")
    }

    /// The newest figures in one line, for a log.
    pub(super) fn line(&self) -> String {
        let figures: Vec<String> = self.curves.iter().filter(|c| !c.points.is_empty()).map(Curve::title).collect();
        format!("{}: {}", self.how_far(), figures.join(", "))
    }
}

fn last<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all[all.len().saturating_sub(LISTED)..].iter()
}

/// A curve as a row of blocks, from its least to its greatest value.
pub(super) fn spark(curve: &Curve, width: usize) -> String {
    let line = if curve.noisy { smooth(&curve.points) } else { curve.points.clone() };
    let points = thin(&line, width);
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let blocks = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    points
        .iter()
        .map(|p| {
            let share = if high > low { (p.1 - low) / (high - low) } else { 0.0 };
            blocks[(share * 7.0).round() as usize]
        })
        .collect()
}
