//! Training sets: every form says the same where it can, sets are mixed batch by batch, a stopped run goes on exactly,
//! and what does not fit is named with file and line.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{recipe, world};
use nsparse_core::{Cancel, NoProgress, Progress, Task, TextTokenizer};
use nsparse_trainer::contrastive::Contrastive;
use nsparse_trainer::data::TrainingData;
use nsparse_trainer::{Error, Hooks, Start, Summary, TrainConfig, check, train};
use serde_json::{Value, json};

fn load(config: &TrainConfig) -> Result<TrainingData, Error> {
    let tokenizer = TextTokenizer::load(config.model.tokenizer.as_ref().unwrap()).unwrap();
    TrainingData::load(config, &tokenizer, &Cancel::default(), &NoProgress)
}

fn run(config: &TrainConfig, start: Start, cancel: &Cancel, progress: &dyn Progress) -> Summary {
    train(config, start, &Hooks { cancel, progress }).unwrap()
}

fn whole(config: &TrainConfig) -> Summary {
    run(config, Start::New, &Cancel::default(), &NoProgress)
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The steps of a run without what depends on the clock.
fn steps(config: &TrainConfig) -> Vec<Value> {
    let mut lines = lines(&config.run.dir.join("metrics.jsonl"));
    for line in &mut lines {
        let object = line.as_object_mut().unwrap();
        object.remove("seconds");
        object.remove("tokens_per_second");
    }
    lines
}

/// The world's rows in every other form.
fn write_forms(world: &Path) {
    let corpus: BTreeMap<String, Value> = lines(&world.join("data/corpus.jsonl"))
        .into_iter()
        .map(|d| (d["_id"].as_str().unwrap().to_owned(), d))
        .collect();
    let (mut jsonl, mut tsv, mut triples, mut tevatron) = (String::new(), String::new(), String::new(), String::new());
    let mut object = Vec::new();
    for row in lines(&world.join("rows.jsonl")) {
        let (query, positive) = (row["query_id"].as_str().unwrap(), row["pos_id"].as_str().unwrap());
        let negatives: Vec<&str> = row["neg_ids"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        writeln!(jsonl, "{}", json!({"query_id": query, "pos_ids": [positive], "neg_ids": negatives})).unwrap();
        writeln!(tsv, "{query}\t{}", negatives.join(",")).unwrap();
        writeln!(triples, "{query}\t{positive}\t{}", negatives.join(",")).unwrap();
        object.push(format!("\"{query}\": {}", json!(negatives)));
        let passage = |id: &str| json!({"docid": id, "title": corpus[id]["title"], "text": corpus[id]["text"]});
        let negatives: Vec<Value> = negatives.into_iter().map(passage).collect();
        let row = json!({"query_id": query, "query": row["query"], "positive_passages": [passage(positive)],
            "negative_passages": negatives});
        writeln!(tevatron, "{row}").unwrap();
    }
    std::fs::write(world.join("lists.jsonl"), jsonl).unwrap();
    std::fs::write(world.join("lists.tsv"), tsv).unwrap();
    std::fs::write(world.join("triples.tsv"), triples).unwrap();
    std::fs::write(world.join("lists.json"), format!("{{{}}}", object.join(", "))).unwrap();
    std::fs::write(world.join("tevatron.jsonl"), tevatron).unwrap();
}

fn with_sets(world: &Path, run: &str, sets: &str, more: &[&str]) -> TrainConfig {
    let sets = format!("data.sets={}", sets.replace("W/", &format!("{}/", world.display())));
    recipe(world, run, &[&["data.rows=null", &sets][..], more].concat())
}

#[test]
fn every_form_of_the_same_rows_trains_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    write_forms(&world);
    let short = ["warm_start.steps=0", "train.steps=5", "checkpoint.every=0", "eval.every=0"];
    let plain = recipe(&world, "plain", &short);
    let expected = load(&plain).unwrap();
    assert_eq!(expected.sets[0].name, "rows");
    whole(&plain);
    for (form, file) in [
        ("rows", "rows.jsonl"),
        ("hard_negatives", "lists.jsonl"),
        ("hard_negatives", "lists.tsv"),
        ("hard_negatives", "triples.tsv"),
        ("hard_negatives", "lists.json"),
        ("tevatron", "tevatron.jsonl"),
    ] {
        let run_name = format!("{form}-{}", file.replace('.', "-"));
        let config = with_sets(&world, &run_name, &format!("[{{{form}: W/{file}}}]"), &short);
        let data = load(&config).unwrap();
        assert!(data.examples == expected.examples, "{file}");
        assert_eq!(data.fingerprint, expected.fingerprint, "{file}");
        assert_eq!((data.sets[0].form, data.sets[0].counts.rows), (form, common::QUERIES));
        let summary = whole(&config);
        assert_eq!((summary.sets[0].batches, summary.sets[0].examples), (5, 16));
        assert_eq!(steps(&config), steps(&plain), "{file}");
    }
}

#[test]
fn the_long_and_the_short_form_of_judged_pairs_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let short = load(&recipe(&world, "a", &["data.rows=null"])).unwrap();
    let long = load(&with_sets(&world, "a", "[{judgments: train}]", &[])).unwrap();
    assert_eq!((short.fingerprint.clone(), short.sets[0].form), (long.fingerprint, "judgments"));
    assert_eq!(short.sets[0].counts.without_negatives, common::QUERIES);
    let error = load(&with_sets(&world, "a", "[{judgments: dev}]", &[])).err().unwrap().to_string();
    assert!(error.contains("no split `dev`"), "{error}");
}

#[test]
fn queries_of_the_same_document_stand_in_one_batch_and_bring_no_document() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    // Three more queries for every row's document, without negatives of their own.
    let rows = lines(&world.join("rows.jsonl"));
    let mut more = std::fs::read_to_string(world.join("rows.jsonl")).unwrap();
    for (n, row) in rows.iter().enumerate() {
        for extra in 0..3 {
            let query = format!("{} {}", common::word(n + extra), common::word(2 * n + extra + 1));
            let row = json!({"query": query, "query_id": format!("x{n}-{extra}"), "pos": row["pos"], "pos_id": row["pos_id"]});
            writeln!(more, "{row}").unwrap();
        }
    }
    std::fs::write(world.join("more.jsonl"), more).unwrap();
    let sets = "[{name: mined, rows: W/rows.jsonl, weight: 1}, {name: all, rows: W/more.jsonl, weight: 1}]";
    let config =
        with_sets(&world, "x", sets, &["eval.set=mined", "eval.fraction=0.25", "train.queries_per_document=3"]);
    let data = load(&config).unwrap();
    // Only queries of the named set are held out, and they are trained on in neither.
    assert!(!data.held_out.is_empty() && data.held_out.iter().all(|&q| !data.queries[q].id.starts_with('x')));
    assert!(data.examples.iter().all(|e| !data.held_out.contains(&e.query)));
    let of_positive = |set: usize, document: usize| {
        let examples = &data.examples[data.sets[set].examples.clone()];
        examples.iter().filter(|e| e.positive == Some(document)).map(|e| e.query).collect::<BTreeSet<_>>()
    };
    let mut stage = Contrastive::new(&config, &data, &[]).unwrap();
    let plain_config = with_sets(&world, "x", sets, &["eval.set=mined", "eval.fraction=0.25"]);
    let mut plain = Contrastive::new(&plain_config, &data, &[]).unwrap();
    let (mut sizes, mut drawn) = ([0, 0], BTreeSet::new());
    for place in 0..40 {
        let (batch, without) = (stage.batch(place), plain.batch(place));
        assert_eq!(batch.documents, without.documents);
        assert_eq!(batch.queries[..without.queries.len()], without.queries);
        let set = usize::from(batch.queries.len() > without.queries.len());
        sizes[set] += 1;
        for (column, &document) in batch.documents.iter().enumerate() {
            let queries: Vec<usize> =
                batch.queries.iter().filter(|q| q.positive == Some(column)).map(|q| q.query).collect();
            let known = of_positive(set, document);
            assert!(queries.iter().all(|q| known.contains(q) || set == 0));
            let by_themselves = without.queries.iter().filter(|q| q.positive == Some(column)).count();
            if by_themselves > 0 && set == 1 {
                assert_eq!(queries.len(), by_themselves.max(known.len().min(3)), "{known:?}");
            }
            drawn.extend(queries);
        }
    }
    assert!(sizes.iter().all(|&n| n > 0), "{sizes:?}");
    assert_eq!(drawn.len(), of_set(&data, 1), "over the epochs all queries come round");
    let sets = sets.replace("W/", "");
    let text = format!("model: {{path: m}}\ndata: {{dir: d, sets: {sets}}}\neval: {{set: other}}\n");
    let error = TrainConfig::parse(&text, &[]).unwrap_err().to_string();
    assert!(error.contains("`eval.set`") && error.contains("mined, all"), "{error}");
}

fn of_set(data: &TrainingData, set: usize) -> usize {
    data.examples[data.sets[set].examples.clone()].iter().map(|e| e.query).collect::<BTreeSet<_>>().len()
}

#[test]
fn rows_with_scores_and_rows_with_negatives_are_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    write_forms(&world);
    let scored: Vec<String> = (0..12)
        .map(|q| {
            let docs: Vec<String> =
                (0..4).map(|d| format!("{} {}", common::word(q + 7 * d), common::word(d))).collect();
            json!({"query": common::word(q), "docs": docs, "scores": [3.0, 2.0, 1.0, 0.0]}).to_string()
        })
        .collect();
    std::fs::write(world.join("scored.jsonl"), scored.join("\n")).unwrap();
    let sets = "[{name: mined, tevatron: W/tevatron.jsonl, weight: 3}, {name: kd, rows: W/scored.jsonl, weight: 1}]";
    let more = [
        "train.losses.kl.teacher=rows",
        "train.losses.kl.candidates=own",
        "train.losses.lexical.weight=0",
        "train.steps=64",
        "warm_start.steps=0",
        "checkpoint.every=0",
        "eval.every=0",
    ];
    let config = with_sets(&world, "mixed", sets, &more);
    let report = check(&config, &Cancel::default(), &NoProgress).unwrap();
    let planned: Vec<(&str, usize)> = report.sets.iter().map(|s| (s.name.as_str(), s.batches)).collect();
    assert_eq!(planned, [("mined", 48), ("kd", 16)]);
    let summary = whole(&config);
    assert_eq!(summary.sets, report.sets);
    assert_eq!((summary.sets[1].counts.without_positive, summary.sets[1].counts.short_of_negatives), (12, 0));
    // A batch of one set has one of the two terms, never both: the other one is exactly 0.
    let mut of = [0, 0];
    for step in steps(&config).iter().filter(|l| l["kind"] == "step") {
        let (infonce, kl) = (step["parts"]["infonce"].as_f64().unwrap(), step["parts"]["kl"].as_f64().unwrap());
        assert!((infonce > 0.0) != (kl > 0.0), "{step}");
        of[usize::from(kl > 0.0)] += 1;
    }
    assert_eq!(of, [48, 16]);
}

/// Asks to stop once a number of contrastive steps is done.
struct StopAfter<'a>(&'a Cancel, usize);
struct Counting(Option<AtomicUsize>, Cancel);

impl Progress for StopAfter<'_> {
    fn start(&self, name: &str, _total: u64) -> Box<dyn Task> {
        Box::new(Counting((name == "Training").then(|| AtomicUsize::new(self.1)), self.0.clone()))
    }
}

impl Task for Counting {
    fn advance(&self, units: u64) {
        if let Some(left) = &self.0
            && units > 0
            && left.fetch_sub(1, Ordering::SeqCst) == 1
        {
            self.1.cancel();
        }
    }

    fn message(&self, _text: &str) {}
}

#[test]
fn a_stopped_run_over_several_sets_goes_on_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    write_forms(&world);
    let sets = "[{rows: W/rows.jsonl}, {hard_negatives: W/lists.tsv, top: 1}, {judgments: train}]";
    for (mixing, order) in [("weighted", "window"), ("round_robin", "random")] {
        let more = [
            format!("data.mixing={mixing}"),
            format!("train.negative_order={order}"),
            "train.short_rows=fill".to_owned(),
            "warm_start.steps=0".to_owned(),
            "train.accumulation=2".to_owned(),
        ];
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let through = with_sets(&world, &format!("through-{mixing}"), sets, &more);
        whole(&through);
        let stopped = with_sets(&world, &format!("stopped-{mixing}"), sets, &more);
        let cancel = Cancel::default();
        let first = run(&stopped, Start::New, &cancel, &StopAfter(&cancel, 5));
        assert!(!first.finished && first.steps == 5);
        assert_eq!(first.sets.iter().map(|s| s.batches).sum::<usize>(), 10);
        let second = run(&stopped, Start::Continue, &Cancel::default(), &NoProgress);
        assert!(second.finished);
        assert_eq!(second.sets.iter().map(|s| s.batches).sum::<usize>(), 20);
        assert_eq!(steps(&stopped), steps(&through), "{mixing}");
        let model = |c: &TrainConfig| std::fs::read(c.run.dir.join("model/model.safetensors")).unwrap();
        assert!(model(&stopped) == model(&through), "{mixing}");
    }
}

#[test]
fn too_few_negatives_are_taken_filled_or_dropped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    // Every third row has one negative, the others two.
    let rows: Vec<String> = lines(&world.join("rows.jsonl"))
        .into_iter()
        .enumerate()
        .map(|(i, mut row)| {
            if i % 3 == 0 {
                row["negs"].as_array_mut().unwrap().pop();
                row["neg_ids"].as_array_mut().unwrap().pop();
            }
            row.to_string()
        })
        .collect();
    std::fs::write(world.join("rows.jsonl"), rows.join("\n")).unwrap();
    let of = |mode: &str, negatives: &str| {
        let negatives = format!("train.negatives={negatives}");
        recipe(
            &world,
            mode,
            &[
                &format!("train.short_rows={mode}"),
                &negatives,
                "warm_start.steps=0",
                "train.steps=2",
                "eval.fraction=0",
            ],
        )
    };
    for (mode, examples, dropped) in [("take", 20, 0), ("fill", 20, 0), ("drop", 13, 7)] {
        let config = of(mode, "2");
        let report = check(&config, &Cancel::default(), &NoProgress).unwrap();
        assert_eq!((report.examples, report.rows_short_of_negatives), (examples, 7), "{mode}");
        assert_eq!((report.sets[0].counts.dropped, report.sets[0].counts.without_negatives), (dropped, 0), "{mode}");
        assert_eq!(whole(&config).sets, report.sets, "{mode}");
    }
    let error = check(&of("drop", "3"), &Cancel::default(), &NoProgress).unwrap_err();
    assert!(error.to_string().contains("`train.short_rows: drop` left no training example"), "{error}");
}

#[test]
fn ids_that_nobody_has_are_named_or_counted() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let write = |text: &str| std::fs::write(world.join("x.tsv"), text).unwrap();
    let problem = |more: &str| {
        let config = with_sets(&world, "x", &format!("[{{hard_negatives: W/x.tsv{more}}}]"), &[]);
        load(&config).err().map_or_else(String::new, |e| e.to_string())
    };
    for (text, parts) in [
        ("q0\td1\nq1\td1,d99,d2\n", ["x.tsv:2", "corpus.jsonl` has no document `d99`"]),
        ("q0\td1\nq77\td1\n", ["x.tsv:2", "queries.jsonl` has no query `q77`"]),
        ("q0\td1\td99\n", ["x.tsv:1", "no document `d99`"]),
        (
            "{\"query\": \"unheard of\", \"neg_ids\": [\"d1\"]}\n",
            ["x.tsv:1", "nothing answers the query \"unheard of\""],
        ),
        ("q0\td1\td2\td3\n", ["x.tsv:1", "4 tab-separated columns"]),
    ] {
        write(text);
        let message = problem("");
        assert!(parts.iter().all(|p| message.contains(p)), "{text}: {message}");
    }
    write("q0\td1,d99\nq77\td1\nq1\td98\td2\nq2\td4,d5\n");
    assert_eq!(problem(", missing: skip"), "");
    let config = with_sets(&world, "x", "[{hard_negatives: W/x.tsv, missing: skip}]", &["eval.fraction=0"]);
    let data = load(&config).unwrap();
    let counts = data.sets[0].counts;
    assert_eq!((counts.rows, counts.unknown_queries, counts.unknown_documents, counts.unjudged), (4, 1, 2, 1));
    // q2's positive is d4: a list that holds it does not make it a negative.
    assert_eq!(data.examples.iter().map(|e| e.others.len()).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn broken_rows_of_each_form_name_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    write_forms(&world);
    let good = std::fs::read_to_string(world.join("tevatron.jsonl")).unwrap();
    let second = good.lines().next().unwrap().to_owned()
        + "\n"
        + "{\"query\": [1, 2], \"positives\": [[3]], \"negatives\": []}\n";
    std::fs::write(world.join("ids.jsonl"), second).unwrap();
    for (sets, parts) in [
        ("[{tevatron: W/ids.jsonl}]", ["ids.jsonl:2", "tokenised already"]),
        ("[{tevatron: W/rows.jsonl}]", ["rows.jsonl:1", "no field `positive_passages`"]),
        ("[{rows: W/tevatron.jsonl}]", ["tevatron.jsonl:1", "read as `tevatron`"]),
        ("[{rows: W/lists.jsonl}]", ["lists.jsonl:1", "read as `hard_negatives`"]),
        ("[{hard_negatives: W/rows.jsonl}]", ["rows.jsonl:1", "not a list of hard negatives"]),
        ("[{rows: W/nowhere.jsonl}]", ["nowhere.jsonl", "Failed to read"]),
    ] {
        let message = load(&with_sets(&world, "x", sets, &[])).err().unwrap().to_string();
        assert!(parts.iter().all(|p| message.contains(p)), "{sets}: {message}");
    }
}

#[test]
fn rows_of_another_collection_keep_their_texts() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let passage = |id: &str, text: &str| json!({"docid": id, "title": "", "text": text});
    let row = json!({"query": "elsewhere", "positive_passages": [passage("d1", "wab wac")], "negative_passages": [passage("d2", "wad")]});
    std::fs::write(world.join("other.jsonl"), format!("{row}\n")).unwrap();
    let joined = load(&with_sets(&world, "x", "[{tevatron: W/other.jsonl}]", &[])).unwrap();
    assert_eq!((joined.documents.len(), joined.sets[0].counts.other_texts), (common::DOCUMENTS, 2));
    let own = load(&with_sets(&world, "x", "[{tevatron: W/other.jsonl, ids: own}]", &[])).unwrap();
    assert_eq!((own.documents.len(), own.sets[0].counts.other_texts), (common::DOCUMENTS + 2, 0));
    assert_eq!(own.documents.id(common::DOCUMENTS), "other:d1");
}

#[test]
fn the_template_takes_any_field_of_the_corpus() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let corpus = world.join("data/corpus.jsonl");
    let with_url: Vec<String> = lines(&corpus)
        .into_iter()
        .enumerate()
        .map(|(i, mut d)| {
            if i > 0 {
                d["url"] = common::word(i).into();
            }
            d.to_string()
        })
        .collect();
    std::fs::write(&corpus, with_url.join("\n")).unwrap();
    let load_with = |pattern: &str, max_chars: usize| {
        let template = format!("data.template={{pattern: '{pattern}', max_chars: {max_chars}}}");
        load(&recipe(&world, "x", &["data.rows=null", &template]))
    };
    let plain = load_with("{title} {text}", 10_000).unwrap();
    let more = load_with("{url} {title} {body}", 10_000).unwrap();
    assert_eq!(plain.documents.window(0), more.documents.window(0));
    for number in 1..common::DOCUMENTS {
        assert_eq!(more.documents.length(number), plain.documents.length(number) + 1);
        assert_eq!(more.documents.window(number)[2..], plain.documents.window(number)[1..]);
    }
    // Words are three letters and a space: eleven characters hold three of them.
    assert!((0..common::DOCUMENTS).all(|n| load_with("{text}", 11).unwrap().documents.length(n) == 3));
    let error = load_with("{urll} {text}", 10).err().unwrap();
    assert!(error.to_string().contains("`data.template` asks for `urll`"), "{error}");
    assert!(error.hint().is_some());
}
