//! Training runs that are stopped, killed and torn apart: nothing but the steps since the last checkpoint is lost, and
//! what comes out in the end is what an undisturbed run gives, bit for bit.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "where it was killed is shown with --nocapture")]

use std::path::Path;
use std::process::{Child, Stdio};

use nsparse_integration_tests::cli::{Nsparse, signal, wait_until};
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

/// Both stages, dropout, evaluations that write models, many checkpoints.
const RECIPE: &str = r"
run: {seed: 5}
model: {path: model}
data: {dir: set, max_tokens: 32}
calibration: {when: always, active_dimensions: 40, documents: 32}
warm_start: {steps: 12, batch_documents: 8, learning_rate: {encoder: 1e-3, head: 3e-3}, warmup_steps: 2, dropout: 0.1}
train:
  steps: 120
  batch_queries: 6
  learning_rate: {encoder: 1e-3, head: 1e-3}
  warmup_steps: 4
  dropout: 0.1
  losses: {infonce: {temperature: 2.0}, flops: {target: {doc_dims: 35}}, lexical: {weight: 0.1}}
eval: {fraction: 0.2, every: 10, documents: 60}
checkpoint: {every: 4, keep: 2}
";

fn with_recipe() -> Nsparse {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse.write("recipe.yaml", RECIPE);
    nsparse
}

/// `metrics.jsonl` without what depends on the clock.
fn metrics(nsparse: &Nsparse, run: &str) -> Vec<Value> {
    let text = String::from_utf8(nsparse.read(&format!("{run}/metrics.jsonl"))).unwrap();
    text.lines()
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            value.as_object_mut().unwrap().retain(|key, _| key != "seconds" && key != "tokens_per_second");
            value
        })
        .collect()
}

fn log_size(nsparse: &Nsparse, run: &str) -> u64 {
    std::fs::metadata(nsparse.path(run).join("metrics.jsonl")).map_or(0, |m| m.len())
}

/// Two runs gave the same curve, the same models and the same last checkpoint.
fn assert_same(nsparse: &Nsparse, one: &str, other: &str) {
    assert_eq!(metrics(nsparse, one), metrics(nsparse, other));
    for file in [
        "model/model.safetensors",
        "warm-start/model.safetensors",
        "checkpoints/step-0000132/parameters.safetensors",
        "checkpoints/step-0000132/first_moment.safetensors",
        "checkpoints/step-0000132/second_moment.safetensors",
    ] {
        let read = |run: &str| nsparse.read(&format!("{run}/{file}"));
        assert!(read(one) == read(other), "{file}");
    }
    let density = |run: &str| -> Value {
        serde_json::from_slice::<Value>(&nsparse.read(&format!("{run}/summary.json"))).unwrap()["density"].clone()
    };
    assert_eq!(density(one), density(other));
}

/// Nothing unfinished lies in a run's folder.
fn assert_tidy(nsparse: &Nsparse, run: &str) {
    for folder in [run.to_owned(), format!("{run}/checkpoints")] {
        for entry in std::fs::read_dir(nsparse.path(&folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.'), "{folder}/{name}");
        }
    }
}

/// Numbers that look random, from a seed (splitmix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

#[test]
fn a_run_that_is_killed_at_random_points_ends_as_if_it_never_was() {
    let nsparse = with_recipe();
    nsparse.ok("train recipe.yaml --set run.dir=whole");
    let size = log_size(&nsparse, "whole");
    for seed in [1, 2] {
        let run = format!("killed{seed}");
        let mut draw = Draw(seed);
        let (mut at, mut kills) = (0, 0);
        for round in 0..7 {
            // Beyond the last kill, by up to a sixth of the whole; the log is cut back to the checkpoint meanwhile.
            at = at.max(log_size(&nsparse, &run)) + 1 + draw.below(size / 6);
            if at >= size * 8 / 10 {
                break;
            }
            kills += 1;
            let resume = if round == 0 { "" } else { " --resume" };
            let mut child = nsparse.spawn(&format!("train recipe.yaml --set run.dir={run}{resume}"));
            wait_until(&mut child, "the log to grow", || log_size(&nsparse, &run) >= at);
            signal(&child, "KILL");
            assert_eq!(child.wait().unwrap().code(), None);
            println!("seed {seed}: killed at {} of {size} bytes of the log", log_size(&nsparse, &run));
            // What is there under a checkpoint's or a model's name is whole.
            for name in ["checkpoints", "."] {
                let Ok(entries) = std::fs::read_dir(nsparse.path(&run).join(name)) else { continue };
                for path in entries.map(|e| e.unwrap().path()) {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    let last = match name {
                        "model" | "warm-start" => "nsparse.json",
                        _ if name.starts_with("step-") => "state.json",
                        _ => continue,
                    };
                    assert!(path.join(last).is_file(), "{}", path.display());
                }
            }
        }
        assert!(kills >= 4, "{kills}");
        nsparse.ok(&format!("train recipe.yaml --set run.dir={run} --resume"));
        assert_same(&nsparse, &run, "whole");
        assert_tidy(&nsparse, &run);
    }
}

#[test]
fn a_terminated_run_writes_a_checkpoint_and_says_how_to_go_on() {
    let nsparse = with_recipe();
    nsparse.ok("train recipe.yaml --set run.dir=whole");
    // No checkpoint but the one that the signal brings about.
    let train = "train recipe.yaml --set run.dir=run --set checkpoint.every=0";
    let mut command = nsparse.command(train.split_whitespace());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let size = log_size(&nsparse, "whole");
    wait_until(&mut child, "half of the log", || log_size(&nsparse, "run") > size / 2);
    signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Stopped; go on with: nsparse train recipe.yaml") && said.contains("--resume"), "{said}");
    let summary: Value = serde_json::from_slice(&nsparse.read("run/summary.json")).unwrap();
    assert_eq!((&summary["finished"], &summary["density"]), (&Value::Bool(false), &Value::Null));
    let steps = summary["steps"].as_u64().unwrap();
    assert!(nsparse.path(&format!("run/checkpoints/step-{steps:07}/state.json")).is_file());
    // How often checkpoints are written may differ.
    nsparse.ok("train recipe.yaml --set run.dir=run --resume");
    assert_same(&nsparse, "run", "whole");
}

/// Steps in a run's log.
fn steps(nsparse: &Nsparse, run: &str) -> usize {
    let Ok(text) = std::fs::read_to_string(nsparse.path(run).join("metrics.jsonl")) else { return 0 };
    text.matches("\"kind\":\"step\"").count()
}

/// Starts a run in some processes, its standard error in a file; the numbers of the others once they are there.
fn in_processes(nsparse: &Nsparse, size: usize, run: &str) -> (Child, Vec<u32>) {
    let log = nsparse.path(&format!("{run}.stderr"));
    let train = format!("train recipe.yaml --set run.dir={run} --processes {size}");
    let mut command = nsparse.command(train.split_whitespace());
    let mut child = command.stdout(Stdio::null()).stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    let others = || -> Option<Vec<u32>> {
        let said = std::fs::read_to_string(&log).ok()?;
        let line = said.lines().find(|l| l.contains("processes: this one and "))?;
        line.split(" and ").nth(1)?.split(", ").map(|id| id.parse().ok()).collect()
    };
    wait_until(&mut child, "the other processes", || others().is_some());
    let others = others().unwrap();
    assert_eq!(others.len(), size - 1);
    (child, others)
}

/// Whether a process runs: it is there, and not only as an entry that waits for its parent.
fn runs(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn several_processes_train_what_one_does() {
    let nsparse = with_recipe();
    let one = nsparse.json("train recipe.yaml --set run.dir=one");
    for size in [2, 3] {
        let run = format!("in{size}");
        let several = nsparse.json(&format!("train recipe.yaml --set run.dir={run} --processes {size}"));
        assert_eq!(several["processes"], size);
        let (a, b) = (metrics(&nsparse, "one"), metrics(&nsparse, &run));
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(&b).filter(|(a, _)| a["kind"] == "step") {
            let figure = |line: &Value, key: &str| line[key].as_f64().unwrap();
            for key in ["loss", "active_dimensions"] {
                let (x, y) = (figure(a, key), figure(b, key));
                assert!(
                    (x - y).abs() < 1e-4 * x.abs(),
                    "{size} processes, step {}: {key} {x} and {y}",
                    a["total_step"]
                );
            }
        }
        let density = |summary: &Value| summary["density"]["mean"].as_f64().unwrap();
        assert!(
            (density(&one) / density(&several) - 1.0).abs() < 1e-4,
            "{} and {}",
            one["density"],
            several["density"]
        );
    }
}

#[test]
fn a_killed_process_ends_the_others_with_one_error_and_nothing_is_lost() {
    let nsparse = with_recipe();
    nsparse.ok("train recipe.yaml --set run.dir=whole --processes 3");
    let (mut child, others) = in_processes(&nsparse, 3, "run");
    wait_until(&mut child, "steps of the second stage", || steps(&nsparse, "run") > 20);
    let ended = std::process::Command::new("sh").args(["-c", &format!("kill -KILL {}", others[1])]).status().unwrap();
    assert!(ended.success());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(!others.iter().any(|&id| runs(id)), "all processes have ended");
    let said = String::from_utf8(nsparse.read("run.stderr")).unwrap();
    assert_eq!(said.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{said}");
    let what = format!("error: Process {} of the run (rank 2) is gone: signal: 9 (SIGKILL)", others[1]);
    assert!(said.contains(&what) && said.contains("--resume"), "{said}");
    // In the same number of processes it goes on bit for bit.
    nsparse.ok("train recipe.yaml --set run.dir=run --processes 3 --resume");
    assert_same(&nsparse, "run", "whole");
}

#[test]
fn the_other_processes_end_with_the_first() {
    let nsparse = with_recipe();
    let (mut child, others) = in_processes(&nsparse, 3, "killed");
    wait_until(&mut child, "a step", || steps(&nsparse, "killed") > 0);
    assert!(others.iter().all(|&id| runs(id)));
    signal(&child, "KILL");
    child.wait().unwrap();
    // A process that lives on, so that there is one to ask.
    let mut other = std::process::Command::new("sh").args(["-c", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    wait_until(&mut other, "their end", || !others.iter().any(|&id| runs(id)));
    drop(other.stdin.take());
    other.wait().unwrap();
    // Terminated, the first writes a checkpoint, and all end.
    let (mut child, others) = in_processes(&nsparse, 2, "terminated");
    wait_until(&mut child, "a step", || steps(&nsparse, "terminated") > 0);
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(!others.iter().any(|&id| runs(id)));
    assert!(nsparse.path("terminated/summary.json").is_file());
}

#[test]
fn a_part_of_a_run_is_not_started_by_hand() {
    let nsparse = with_recipe();
    let alone = nsparse.run("train-rank");
    assert_eq!(alone.code, Some(2), "{}", alone.stderr);
    assert!(alone.stderr.contains("nsparse train RECIPE --processes N"), "{}", alone.stderr);
    let wrong = nsparse.run("train recipe.yaml --processes 0");
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    // What is wrong with the recipe or its data is said once.
    let refused = nsparse.run("train recipe.yaml --processes 2 --set data.dir=nowhere");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert_eq!(refused.stderr.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{}", refused.stderr);
}

#[test]
fn a_run_that_the_guard_stops_says_so_through_its_exit_code() {
    let nsparse = with_recipe();
    let broken = "train recipe.yaml --set run.dir=run --set train.losses.flops.weight=300 --set guard.action=stop";
    let stopped = nsparse.run(broken);
    assert_eq!(stopped.code, Some(1), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("warning: contrastive step"), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("full value of 300 from step 0"), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("ramp_steps"), "the mend is named: {}", stopped.stderr);
    assert!(stopped.stderr.contains("The guard ended the run"), "{}", stopped.stderr);
    let summary: Value = serde_json::from_slice(&nsparse.read("run/summary.json")).unwrap();
    assert_eq!((&summary["stopped_by_guard"], &summary["finished"]), (&true.into(), &false.into()));
    // In several processes as well.
    let stopped = nsparse.run(&broken.replace("run.dir=run", "run.dir=two --processes 2"));
    assert_eq!(stopped.code, Some(1), "{}", stopped.stderr);
    assert!(stopped.stderr.contains("full value of 300 from step 0"), "{}", stopped.stderr);
}

#[test]
fn a_run_that_gets_no_better_ends_early_and_goes_on_to_the_same_end() {
    let nsparse = with_recipe();
    // Rates of nothing: no evaluation is better than the first.
    let stale = "--set train.losses.flops.weight=0 --set train.learning_rate.encoder=0 \
                 --set train.learning_rate.head=1e-12 --set train.steps=400 --set eval.every=40 --set eval.patience=3";
    let whole = nsparse.json(&format!("train recipe.yaml --set run.dir=whole {stale}"));
    assert_eq!((&whole["finished"], &whole["stopped_early"]), (&true.into(), &true.into()));
    assert_eq!(whole["steps"], 12 + 120, "the evaluations at steps 40, 80 and 120 were waited for");
    assert_eq!(whole["best"]["step"], 0);
    let said = nsparse.ok(&format!("train recipe.yaml --set run.dir=whole {stale} --resume"));
    assert!(said.stdout.contains("stopped early after 132 steps"), "{}", said.stdout);
    // Stopped while it waits, it does not begin to wait anew.
    let mut child = nsparse.spawn(&format!("train recipe.yaml --set run.dir=run {stale}"));
    wait_until(&mut child, "two evaluations", || {
        let text = std::fs::read_to_string(nsparse.path("run/metrics.jsonl")).unwrap_or_default();
        text.matches("\"kind\":\"evaluation\"").count() == 2
    });
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let resumed = nsparse.json(&format!("train recipe.yaml --set run.dir=run {stale} --resume"));
    assert_eq!((&resumed["steps"], &resumed["stopped_early"]), (&132.into(), &true.into()));
    assert_eq!(metrics(&nsparse, "run"), metrics(&nsparse, "whole"));
}
