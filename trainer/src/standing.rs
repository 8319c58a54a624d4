//! How far a run is, from what it has written down.

use serde::Serialize;

use crate::metrics_log::StepRecord;
use crate::run_folder::RunFolder;
use crate::run_log::PlannedStage;

/// Steps whose pace is taken for the steps to come.
const PACE_STEPS: usize = 50;

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It has written nothing yet: it reads its data.
    Waiting,
    /// It goes on, or was killed: nothing says that it has ended.
    Running,
    /// All stages are done.
    Finished,
    /// It was asked to stop and can go on.
    Stopped,
    /// The guard ended it.
    StoppedByGuard,
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    /// What it is doing.
    pub state: RunState,
    /// The stage of the last step.
    pub stage: Option<String>,
    /// Steps of that stage that are done.
    pub step: usize,
    /// Steps of that stage, where they are known.
    pub steps: Option<usize>,
    /// Steps of the run that are done.
    pub total_step: usize,
    /// Steps of the run, where they are known.
    pub total_steps: Option<usize>,
    /// Seconds that the rest of the stage takes at the pace of the last steps, evaluations included; only of a run
    /// that goes on.
    pub stage_seconds_left: Option<f64>,
    /// The stages that follow.
    pub later: Vec<PlannedStage>,
}

impl Standing {
    /// Of a run as it was last read.
    pub fn of(run: &RunFolder) -> Self {
        let plan = run.plan();
        let last = run.history.steps.last();
        let total_step = last.map_or(0, |s| s.total_step);
        let state = match &run.summary {
            Some(summary) if summary.finished => RunState::Finished,
            Some(summary) if summary.stopped_by_guard => RunState::StoppedByGuard,
            Some(_) => RunState::Stopped,
            None if run.last_written.is_none() => RunState::Waiting,
            None => RunState::Running,
        };
        let stage = last.map(|s| s.stage.clone());
        let place = |name: &str| plan.as_ref()?.iter().position(|p| p.name == name);
        let at = stage.as_deref().and_then(place);
        let steps = at.and_then(|at| Some(plan.as_ref()?[at].steps));
        let step = last.map_or(0, |s| s.step);
        let later = match (&plan, at) {
            (Some(plan), Some(at)) => plan[at + 1..].to_vec(),
            (Some(plan), None) => plan.clone(),
            (None, _) => Vec::new(),
        };
        let goes_on = state == RunState::Running;
        let stage_seconds_left = match (steps, goes_on) {
            (Some(steps), true) => seconds_left(run, stage.as_deref().unwrap_or_default(), step, steps),
            _ => None,
        };
        let total_steps = plan.as_ref().map(|plan| plan.iter().map(|p| p.steps).sum());
        Self { state, stage, step, steps, total_step, total_steps, stage_seconds_left, later }
    }
}

fn seconds_left(run: &RunFolder, stage: &str, step: usize, steps: usize) -> Option<f64> {
    let of_stage = run.history.steps.iter().rev().take_while(|s| s.stage == stage).take(PACE_STEPS);
    let pace = median(of_stage.map(|s: &StepRecord| s.seconds).collect())?;
    let last_evaluation = run.history.evaluations.last().filter(|(_, e)| e.stage == stage);
    let evaluations = match (&run.config, last_evaluation) {
        (Some(config), Some((_, last))) => {
            // Those within the stage, and the one at its end.
            let until = |step: usize| step.checked_div(config.eval.every).unwrap_or(0);
            let between = until(steps.saturating_sub(1)).saturating_sub(until(step));
            (between + usize::from(step < steps)) as f64 * last.seconds
        }
        _ => 0.0,
    };
    Some(pace * steps.saturating_sub(step) as f64 + evaluations)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn line(stage: &str, step: usize, total_step: usize) -> String {
        format!(
            r#"{{"kind":"step","stage":"{stage}","step":{step},"total_step":{total_step},"loss":1.0,"parts":{{}},"seconds":2.0}}"#
        ) + "\n"
    }

    #[test]
    fn how_far_a_run_is() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let mut run = RunFolder::open(folder.path()).unwrap();
        assert_eq!(Standing::of(&run).state, RunState::Waiting);
        assert!(RunFolder::open_begun(folder.path()).is_err());

        write(
            "config.yaml",
            "model: {path: m}\ndata: {dir: d}\nwarm_start: {steps: 3}\ntrain: {steps: 10}\neval: {every: 4}\n",
        );
        let mut text = line("warm_start", 1, 1);
        write("metrics.jsonl", &text);
        run.refresh().unwrap();
        let standing = Standing::of(&run);
        assert_eq!((standing.state, standing.step, standing.steps), (RunState::Running, 1, Some(3)));
        assert_eq!((standing.total_step, standing.total_steps, standing.later.len()), (1, Some(13), 1));
        assert_eq!(standing.stage_seconds_left, Some(4.0));

        // Two more evaluations come: after step 8 and after the last one.
        text += &(line("warm_start", 2, 2) + &line("warm_start", 3, 3));
        text += r#"{"kind":"evaluation","stage":"contrastive","step":0,"metric":"mrr","value":0.5,"active_dimensions":1.0,"queries":1,"documents":1,"seconds":7.0}"#;
        text += "\n";
        text += &(4..=8).map(|t| line("contrastive", t - 3, t)).collect::<String>();
        write("metrics.jsonl", &text);
        run.refresh().unwrap();
        let standing = Standing::of(&run);
        assert_eq!((standing.step, standing.later.len()), (5, 0));
        assert_eq!(standing.stage_seconds_left, Some(5.0 * 2.0 + 2.0 * 7.0));
        assert_eq!(run.history.evaluations[0].0, 3);

        // What the run wrote at its end says the rest; a sitting's plan goes before the recipe's.
        write("sittings.jsonl", "{\"stages\":[{\"name\":\"contrastive\",\"steps\":5}]}\n{\"torn");
        write(
            "summary.json",
            r#"{"finished":false,"run_dir":"r","model_dir":null,"warm_start_dir":null,"parameters":1,"calibration":null,"stages":[],"steps":8,"best":null,"stopped_by_guard":true,"evaluations":[],"lexical_reference":null,"preparing_seconds":1.0,"evaluation_seconds":7.0}"#,
        );
        run.refresh().unwrap();
        let standing = Standing::of(&run);
        assert_eq!((standing.state, standing.steps), (RunState::StoppedByGuard, Some(5)));
        assert_eq!(standing.stage_seconds_left, None);
    }
}
