//! A run as people see it: its page, its view in the terminal, and what programs get.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;
use std::path::Path;

use nsparse_integration_tests::cli::Nsparse;
use nsparse_integration_tests::random_model::{Shape, write};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

fn nsparse() -> Nsparse {
    Nsparse::new(env!("CARGO_BIN_EXE_nsparse"))
}

/// A small training on the sample collection, in `run`.
fn trained() -> Nsparse {
    let nsparse = nsparse();
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse.write(
        "recipe.yaml",
        "run: {dir: run}\nmodel: {path: model}\ndata: {dir: set, max_tokens: 24}\n\
         calibration: {when: always, active_dimensions: 30, documents: 16}\n\
         warm_start: {steps: 6, batch_documents: 8, learning_rate: {encoder: 1e-3, head: 1e-3}}\n\
         train: {steps: 8, batch_queries: 4, losses: {flops: {target: {doc_dims: 25}}}}\n\
         eval: {every: 4, documents: 40}\nguard: {max_density: 0.01}\n",
    );
    nsparse.ok("train recipe.yaml");
    nsparse
}

/// A run that was killed long before its end, by its lines.
fn killed(nsparse: &Nsparse, steps: usize) {
    let mut lines = String::new();
    for step in 1..=steps {
        let (loss, norm) = (5.0 / (step as f64).sqrt(), 1.0 + (step % 7) as f64);
        writeln!(
            lines,
            "{{\"kind\":\"step\",\"stage\":\"contrastive\",\"step\":{step},\"total_step\":{step},\"loss\":{loss},\
             \"parts\":{{\"infonce\":{loss},\"<b>&\":1.5}},\"learning_rate\":2e-5,\"lambda\":1e-3,\"zero_vectors\":0,\
             \"masked_candidates\":0,\"active_dimensions\":150.5,\"gradient_norm\":{norm},\"tokens\":100,\
             \"tokens_per_second\":1000.0,\"seconds\":0.5}}"
        )
        .unwrap();
    }
    lines.push_str(
        "{\"kind\":\"warning\",\"finding\":\"loss_spike\",\"stage\":\"contrastive\",\"step\":3,\"total_step\":3,\
         \"cause\":\"the loss is <script>alert(1)</script>\",\"mend\":\"lower it\"}\n{\"kind\":\"st",
    );
    nsparse.write("killed/metrics.jsonl", &lines);
    nsparse.write(
        "killed/config.yaml",
        "model: {path: m}\ndata: {dir: nowhere}\nwarm_start: {steps: 0}\ntrain: {steps: 8000}\n",
    );
}

fn page(nsparse: &Nsparse, path: &str) -> String {
    String::from_utf8(nsparse.read(path)).unwrap()
}

/// Nothing of the page comes from elsewhere, and no text has become markup.
fn holds_everything(html: &str) {
    for forbidden in ["http:", "https:", "src=", "@import", "url(", "<link", "<iframe", "<script>alert"] {
        // The one address that is no request: none at all.
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert!(html.contains("default-src 'none'"));
    assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
    for tag in ["section", "figure", "svg", "table", "article", "div", "p", "span", "main"] {
        let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn a_page_about_a_run() {
    let nsparse = trained();
    // The training left a page without what needs the model.
    let first = page(&nsparse, "run/report.html");
    holds_everything(&first);
    assert!(first.contains("Not asked for at the end of a training") && !first.contains("id=\"documents\""));

    let report = nsparse.json("report run --documents 30");
    let html = page(&nsparse, "run/report.html");
    holds_everything(&html);
    let charts = html.matches("<svg class=\"chart\"").count();
    assert_eq!(report["charts"].as_u64().unwrap() as usize, charts);
    // Held-out metric, density, steering; two losses and their terms; λ, norm, rate, tokens/s; the queries.
    assert!(charts >= 11, "{charts}");
    for said in [
        "ndcg@10 of held-out queries",
        "Steered density: active dimensions",
        "Loss, warm start",
        "infonce, contrastive",
        "Gradient norm",
        "lexical reference",
        "(kept)",
        "dense start",
        "Mend: calibrate",
        "Active in most documents",
        "Recipe, every key",
        "batch_queries: 4",
    ] {
        assert!(html.contains(said), "{said}");
    }
    let survey = &report["survey"];
    assert_eq!(survey["documents"], 30);
    let use_of = &survey["most_documents"][0];
    assert!(use_of["documents"].as_u64().unwrap() > 0 && use_of["documents"].as_u64().unwrap() <= 30);
    assert_eq!(html.matches("class=\"text\"").count(), 10);
    let queries = page(&nsparse, "run/held-out.jsonl").lines().count();
    assert_eq!(html.matches("class=\"hits\"").count(), queries.min(10));
    // The same command gives the same sample.
    let again = nsparse.json("report run --documents 30 --out again.html");
    assert_eq!(&again["survey"], survey);

    // Another corpus, with texts that look like markup.
    nsparse.write(
        "evil/corpus.jsonl",
        "{\"_id\":\"<i>1\",\"title\":\"a </p><script>alert(1)</script>\",\"text\":\"search & \\\"rank\\\" \\u0007\"}\n\
         {\"_id\":\"2\",\"title\":\"\",\"text\":\"日本 query\"}\n",
    );
    let report = nsparse.json("report run --data evil set --documents 8 --out evil.html");
    assert_eq!(report["survey"]["documents"], 6);
    let html = page(&nsparse, "evil.html");
    holds_everything(&html);
    assert!(html.contains("&lt;i&gt;1") && html.contains('日'));
}

#[test]
fn a_page_about_a_run_without_model_and_with_thousands_of_steps() {
    let nsparse = nsparse();
    killed(&nsparse, 6000);
    let report = nsparse.json("report killed");
    let html = page(&nsparse, "killed/report.html");
    holds_everything(&html);
    assert!(html.contains("not ended so far") && html.contains("The data that the recipe names is not here"));
    assert!(html.contains("&lt;b&gt;&amp;, contrastive") && html.contains("6000 of 8000"));
    // A curve has a few hundred points, however long the run was.
    assert!(report["bytes"].as_u64().unwrap() < 200_000, "{}", report["bytes"]);
    assert_eq!(report["survey"], serde_json::Value::Null);
    let refused = nsparse.run("report nowhere");
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("`nowhere` is no run directory"), "{}", refused.stderr);
    nsparse.write("empty/other", "");
    assert!(nsparse.run("report empty").stderr.contains("it has no metrics.jsonl"));
    assert!(nsparse.run("report killed --data empty").stderr.contains("is no data set"));
}

#[test]
fn a_run_is_watched_without_a_terminal() {
    let nsparse = nsparse();
    killed(&nsparse, 40);
    let seen = nsparse.json("monitor killed");
    assert_eq!((&seen["state"], &seen["stage"]), (&"running".into(), &"contrastive".into()));
    assert_eq!((&seen["step"], &seen["steps"], &seen["total_steps"]), (&40.into(), &8000.into(), &8000.into()));
    assert!((seen["stage_seconds_left"].as_f64().unwrap() - 7960.0 * 0.5).abs() < 1e-9);
    assert_eq!(seen["last_step"]["tokens_per_second"], 1000.0);
    assert_eq!(seen["warnings"][0]["finding"], "loss_spike");
    let text = nsparse.ok("monitor killed --once").stdout;
    for said in ["contrastive step 40 of 8000", "1 h 06 min left", "lambda 0.001", "█", "warning, contrastive step 3"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains('\u{1b}'));
    // A run that has ended is shown once, without a terminal too.
    nsparse.write(
        "killed/summary.json",
        "{\"finished\":true,\"run_dir\":\"killed\",\"model_dir\":null,\"warm_start_dir\":null,\"parameters\":1,\
         \"calibration\":null,\"stages\":[],\"steps\":40,\"best\":null,\"evaluations\":[],\"lexical_reference\":null,\
         \"preparing_seconds\":1.0,\"evaluation_seconds\":0.0}",
    );
    assert!(nsparse.ok("monitor killed").stdout.trim_end().ends_with("finished"));
    let refused = nsparse.run("monitor killed --every 0");
    assert_eq!(refused.code, Some(2));
    assert_eq!(nsparse.run("monitor nowhere --once").code, Some(2));
}

/// The page in a browser: its script runs, reads every chart, and nothing is complained about.
#[cfg(feature = "test-browser")]
#[test]
fn a_browser_shows_the_page() {
    use std::process::Command;

    let nsparse = trained();
    let report = nsparse.json("report run --documents 20");
    let mut browser = Command::new("chromium");
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"])
        .arg(format!("--user-data-dir={}", nsparse.path("browser").display()))
        .args(["--timeout=30000", "--dump-dom"])
        .arg(format!("file://{}", nsparse.path("run/report.html").display()));
    let shown = nsparse_integration_tests::cli::finish(browser);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert!(shown.stdout.contains(&format!("data-charts=\"{}\"", report["charts"])), "{}", &shown.stdout[..500]);
    // What the page's script or its policy complains about is written as a line of the console.
    assert!(!shown.stderr.contains("CONSOLE"), "{}", shown.stderr);
}
