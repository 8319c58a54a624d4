//! Several ranks, here threads that are connected by sockets: sums against a plain sum, and runs against one process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;

use common::{recipe, sample, sample_recipe, world};
use nsparse_core::{Cancel, NoProgress};
use nsparse_trainer::parallel::{AllReduce, Meeting, Sockets, Team, join};
use nsparse_trainer::{Error, Hooks, Start, Summary, TrainConfig, follow, train_together};
use proptest::prelude::*;

/// Connected ranks, rank 0 first.
fn ranks(size: usize) -> Vec<Sockets> {
    let meeting = Meeting::open().unwrap();
    let invitation = meeting.invitation().clone();
    // The last one joins first: the order of coming does not matter.
    let joined: Vec<_> = (1..size)
        .rev()
        .map(|rank| {
            let invitation = invitation.clone();
            std::thread::spawn(move || join(&invitation, rank, size).unwrap())
        })
        .collect();
    let mut all = vec![meeting.wait(size, || Ok(())).unwrap()];
    let mut others: Vec<Sockets> = joined.into_iter().map(|t| t.join().unwrap()).collect();
    others.reverse();
    all.append(&mut others);
    all
}

/// The same work on every rank at once; the results by rank.
fn on_each<T: Send>(ranks: &mut [Sockets], work: impl Fn(&mut Sockets) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks.iter_mut().map(|rank| scope.spawn(|| work(rank))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Sums are those of a plain loop in the order of the ranks, bit for bit and on every rank; so are gathered
    /// bytes and broadcasts.
    #[test]
    fn what_comes_out_is_a_plain_sum(size in 1usize..5, len in 0usize..3000, seed in any::<u32>()) {
        let value = |rank: usize, i: usize| {
            let mixed = (seed as usize ^ (rank * 7919 + i * 104_729)).wrapping_mul(2_654_435_761) % 20_011;
            (mixed as f32 - 10_000.0) / 37.0
        };
        let mut ranks = ranks(size);
        let results = on_each(&mut ranks, |rank| {
            let own = rank.rank();
            let mut values: Vec<f32> = (0..len).map(|i| value(own, i)).collect();
            rank.sum(&mut values).unwrap();
            let gathered = rank.gather(&vec![own as u8; own * 3]).unwrap();
            let mut told = vec![own as u8 + 7; 5];
            rank.broadcast(&mut told).unwrap();
            (values, gathered, told)
        });
        for (values, gathered, told) in &results {
            for (i, got) in values.iter().enumerate() {
                let plain = (1..size).fold(value(0, i), |sum, rank| sum + value(rank, i));
                prop_assert_eq!(got.to_bits(), plain.to_bits());
            }
            let expected: Vec<Vec<u8>> = (0..size).map(|rank| vec![rank as u8; rank * 3]).collect();
            prop_assert_eq!(gathered, &expected);
            prop_assert_eq!(told, &vec![7u8; 5]);
        }
    }
}

#[test]
fn more_than_fits_into_a_socket_is_summed() {
    let len = 3_000_000;
    let sums = on_each(&mut ranks(3), |rank| {
        let mut values = vec![rank.rank() as f32 + 0.5; len];
        rank.sum(&mut values).unwrap();
        values
    });
    assert!(sums.iter().all(|s| s.len() == len && s.iter().all(|v| v.to_bits() == 4.5f32.to_bits())));
}

#[test]
fn who_does_not_know_the_token_is_not_let_in() {
    let meeting = Meeting::open().unwrap();
    let invitation = meeting.invitation().clone();
    assert!(invitation.token.len() == 64 && invitation.address.ip().is_loopback());
    assert_ne!(invitation.token, Meeting::open().unwrap().invitation().token);
    let mut wrong = invitation.clone();
    wrong.token = "0".repeat(64);
    let visitors = std::thread::spawn(move || {
        let refused = join(&wrong, 1, 2).unwrap_err();
        // A stranger that speaks another language.
        let mut stranger = TcpStream::connect(invitation.address).unwrap();
        stranger.write_all(&[b'G'; 200]).unwrap();
        let answered = stranger.read(&mut [0; 8]).unwrap_or(0);
        (refused, answered, join(&invitation, 1, 2).is_ok())
    });
    let link = meeting.wait(2, || Ok(())).unwrap();
    assert_eq!((link.rank(), link.size()), (0, 2));
    let (refused, answered, joined) = visitors.join().unwrap();
    assert!(matches!(refused, Error::Rank { rank: 0, is_gone: true, .. }), "{refused}");
    assert!(answered == 0 && joined);
}

#[test]
fn a_rank_that_is_gone_or_elsewhere_is_named() {
    let mut all = ranks(3);
    drop(all.pop());
    let errors = on_each(&mut all, |rank| rank.sum(&mut [1.0; 8]).unwrap_err().to_string());
    assert!(errors[0].contains("Rank 2 of the run is gone"), "{errors:?}");
    assert!(errors[1].contains("Rank 0 of the run is gone"), "it does not wait for ever: {errors:?}");
    // Rank 1 waits for a sum that does not come.
    let mut all = ranks(2);
    let errors = on_each(&mut all, |rank| match rank.rank() {
        0 => rank.gather(&[1]).map(|_| ()).unwrap_err().to_string(),
        _ => rank.sum(&mut [1.0]).map_or_else(|e| e.to_string(), |()| String::new()),
    });
    assert!(errors[0].contains("Rank 1 of the run is out of step"), "{errors:?}");
    assert!(errors[1].contains("Rank 0 of the run is gone"), "{errors:?}");
    let mut all = ranks(2);
    drop(all.remove(0));
    let error = all[0].sum(&mut [1.0]).unwrap_err();
    assert!(matches!(error, Error::Rank { rank: 0, is_gone: true, .. }) && error.hint().is_some(), "{error}");
}

/// A run in `size` ranks, each a thread.
fn run(config: &TrainConfig, start: Start, size: usize, cancel: &Cancel) -> Summary {
    let mut ranks: Vec<Option<Sockets>> = ranks(size).into_iter().map(Some).collect();
    let team = |link: &mut Option<Sockets>| Team::new(Box::new(link.take().unwrap()));
    let hooks = Hooks { cancel, progress: &NoProgress };
    let never = Cancel::default();
    std::thread::scope(|scope| {
        for link in &mut ranks[1..] {
            let team = team(link);
            let never = &never;
            scope.spawn(move || follow(team, &Hooks { cancel: never, progress: &NoProgress }).unwrap());
        }
        train_together(config, start, &hooks, team(&mut ranks[0])).unwrap()
    })
}

fn steps(dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).filter(|l: &serde_json::Value| l["kind"] == "step").collect()
}

/// Every logged figure of two runs but the times agrees to a relative 1e-4.
fn assert_same_curve(one: &Path, other: &Path, what: &str) {
    let (one, other) = (steps(one), steps(other));
    assert_eq!(one.len(), other.len());
    assert!(!one.is_empty());
    for (a, b) in one.iter().zip(&other) {
        for key in ["loss", "gradient_norm", "active_dimensions", "lambda", "tokens", "zero_vectors"] {
            let (x, y) = (a[key].as_f64(), b[key].as_f64());
            assert_eq!(x.is_some(), y.is_some(), "{what}: {key}");
            let (x, y) = (x.unwrap_or(0.0), y.unwrap_or(0.0));
            assert!((x - y).abs() <= 1e-4 * x.abs().max(1e-3), "{what}, step {}: {key} {x} and {y}", a["total_step"]);
        }
    }
}

#[test]
fn two_and_three_ranks_train_what_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    // Both stages, dropout, in one piece, in pieces with the gradient cached, and accumulated; more ranks than
    // documents in a batch.
    let whole: &[&str] = &[];
    let parts = ["train.micro_batch=3", "warm_start.micro_batch=2"];
    let accumulated = ["train.accumulation=2", "train.losses.flops.form=df"];
    let single = [
        "train.batch_queries=1",
        "train.negatives=0",
        "train.losses.flops.form=grouped",
        "warm_start.batch_documents=2",
    ];
    // What the query side learns.
    let free = ["query={side: trained_idf, learning_rate: 0.02, l1: 1e-3}"];
    let (projection, siamese) = (["query.side=table"], ["query={side: siamese, flops: 1e-3}"]);
    for (name, keys) in [
        ("whole", whole),
        ("parts", &parts),
        ("accumulated", &accumulated),
        ("single", &single),
        ("free", &free),
        ("projection", &projection),
        ("siamese", &siamese),
    ] {
        let config = |size: usize| recipe(&world, &format!("{name} {size}"), keys);
        let one = run(&config(1), Start::New, 1, &Cancel::default());
        for size in [2, 3] {
            let several = run(&config(size), Start::New, size, &Cancel::default());
            assert_same_curve(&config(1).run.dir, &config(size).run.dir, &format!("{name}, {size} ranks"));
            assert!(several.finished && several.processes == size);
            let (a, b) = (one.density.as_ref().unwrap(), several.density.as_ref().unwrap());
            assert!((a.mean - b.mean).abs() < 1e-9, "{name}, {size} ranks: {a:?} and {b:?}");
            let values = |s: &Summary| s.evaluations.iter().map(|e| (e.step, e.value)).collect::<Vec<_>>();
            assert_eq!(values(&one), values(&several), "{name}, {size} ranks");
        }
    }
}

#[test]
fn a_steered_density_is_the_whole_batchs() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    let steer = "train.losses.flops={target: {doc_dims: 45}}";
    let config = |size: usize| {
        sample_recipe(folder.path(), &data, &format!("{size}"), &["train.steps=24", "warm_start.steps=4", steer])
    };
    for size in [1, 2] {
        run(&config(size), Start::New, size, &Cancel::default());
    }
    assert_same_curve(&config(1).run.dir, &config(2).run.dir, "steered");
    assert!(steps(&config(2).run.dir).iter().any(|l| l["steering"]["corpus"].is_f64()));
}

#[test]
fn a_run_goes_on_in_several_ranks_bit_for_bit_and_in_another_number() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let whole = recipe(&world, "whole", &[]);
    run(&whole, Start::New, 2, &Cancel::default());
    let without_clock = |dir: &Path| -> Vec<serde_json::Value> {
        let mut lines = steps(dir);
        for line in &mut lines {
            line.as_object_mut().unwrap().retain(|key, _| key != "seconds" && key != "tokens_per_second");
        }
        lines
    };
    for (name, ranks) in [("same", 2), ("other", 3)] {
        let config = recipe(&world, name, &[]);
        // Asked to stop before the first step: a checkpoint, and all ranks end.
        let cancel = Cancel::default();
        let stop = recipe(&world, name, &["eval.fraction=0.2"]);
        let stopped = {
            let stop_after = common::StopAfter { cancel: &cancel, bar: "Training", steps: 4 };
            run_watched(&stop, 2, &cancel, &stop_after)
        };
        assert!(!stopped.finished && stopped.steps == 16, "{}", stopped.steps);
        assert!(run(&config, Start::Continue, ranks, &Cancel::default()).finished);
        if ranks == 2 {
            assert_eq!(without_clock(&config.run.dir), without_clock(&whole.run.dir));
            let model = |dir: &Path| std::fs::read(dir.join("model/model.safetensors")).unwrap();
            assert!(model(&config.run.dir) == model(&whole.run.dir));
        }
        assert_same_curve(&whole.run.dir, &config.run.dir, name);
    }
}

fn run_watched(config: &TrainConfig, size: usize, cancel: &Cancel, progress: &dyn nsparse_core::Progress) -> Summary {
    let mut all = ranks(size);
    let never = Cancel::default();
    std::thread::scope(|scope| {
        for link in all.drain(1..) {
            let never = &never;
            scope.spawn(move || {
                let hooks = Hooks { cancel: never, progress: &NoProgress };
                follow(Team::new(Box::new(link)), &hooks).unwrap();
            });
        }
        let team = Team::new(Box::new(all.remove(0)));
        train_together(config, Start::New, &Hooks { cancel, progress }, team).unwrap()
    })
}

#[test]
fn a_rank_with_other_data_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = recipe(&world, "run", &[]);
    let mut all = ranks(2);
    let link = all.pop().unwrap();
    // It says that it has something else.
    let other = std::thread::spawn(move || {
        let team = Team::new(Box::new(link));
        let yaml: String = team.tell(String::new()).unwrap();
        assert!(yaml.contains("batch_queries: 4"), "{yaml}");
        team.require_same("the data", "something else").unwrap_err()
    });
    let hooks = Hooks { cancel: &Cancel::default(), progress: &NoProgress };
    let error = train_together(&config, Start::New, &hooks, Team::new(Box::new(all.remove(0)))).unwrap_err();
    assert!(error.to_string().contains("Rank 1 of the run is out of step: the data"), "{error}");
    other.join().unwrap();
}
