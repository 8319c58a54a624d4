//! One HTML page about a run: everything is in it, it asks nothing of the network.

mod chart;
pub(crate) mod curve;
mod curves;
pub(crate) mod html;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nsparse_trainer::held_out::HeldOutQuery;
use nsparse_trainer::run_folder::RunFolder;
use nsparse_trainer::standing::{RunState, Standing};
use nsparse_trainer::survey::Survey;

use self::html::{date, duration, escape, number, section, table};
use self::words::ShownDocument;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// What the model does with texts, where it was asked.
pub(crate) struct Words {
    /// Where the documents come from.
    pub(crate) source: String,
    pub(crate) survey: Survey,
    pub(crate) documents: Vec<ShownDocument>,
    pub(crate) vocabulary: Vec<String>,
}

/// What a page is made of.
pub(crate) struct Content<'a> {
    pub(crate) run: &'a RunFolder,
    pub(crate) held_out: &'a [HeldOutQuery],
    /// Titles of documents by id, as far as they are known.
    pub(crate) titles: BTreeMap<String, String>,
    pub(crate) words: Option<Words>,
    /// Why there are no words; said on the page.
    pub(crate) without_words: String,
}

/// A page, and how many charts are on it.
pub(crate) struct Page {
    pub(crate) html: String,
    pub(crate) charts: usize,
}

/// The page of a run.
pub(crate) fn page(content: &Content<'_>) -> Page {
    let run = content.run;
    let standing = Standing::of(run);
    let mut sections: Vec<(&str, &str, String)> = Vec::new();
    if !run.history.warnings.is_empty() {
        sections.push(("warnings", "Warnings", warnings(run)));
    }
    let mut charts = String::new();
    for group in curves::groups(run) {
        let figures: String = group.charts.iter().map(chart::Chart::figure).collect();
        if !figures.is_empty() {
            let _ = write!(charts, "<h3>{}</h3><div class=\"charts\">{figures}</div>", escape(group.title));
        }
    }
    if charts.is_empty() {
        charts.push_str("<p class=\"soft\">The run has no step yet.</p>");
    }
    sections.push(("curves", "Curves", section("curves", "Curves", &charts)));
    if !run.history.evaluations.is_empty() {
        sections.push(("evaluations", "Evaluations", evaluations(run)));
    }
    if let Some(words) = &content.words {
        sections.push(("tokens", "Tokens", words::survey(&words.survey, &words.source)));
        sections.push(("documents", "Documents", words::documents(&words.documents, &words.vocabulary)));
    } else {
        let said = format!("<p class=\"soft\">{}</p>", escape(&content.without_words));
        sections.push(("tokens", "Tokens", section("tokens", "Tokens and documents", &said)));
    }
    if let (false, Some((_, evaluation))) = (content.held_out.is_empty(), run.history.evaluations.first()) {
        let (list, chart) = words::held_out(content.held_out, &evaluation.metric, &content.titles);
        let body = format!("<div class=\"charts\">{}</div>{list}", chart.figure());
        sections.push(("queries", "Held-out queries", section("queries", "Held-out queries", &body)));
    }
    sections.push(("run", "Run", facts(run, &standing)));

    let name = name(run);
    let mut links = String::new();
    for (id, title, _) in &sections {
        let _ = write!(links, "<a href=\"#{id}\">{title}</a>");
    }
    let body: String = sections.iter().map(|(_, _, html)| html.as_str()).collect();
    let html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{0} · nsparse</title><style>\n{STYLE}</style></head><body><main>\
         <h1>{0}</h1><p class=\"soft\">{1}</p><nav>{links}</nav>{2}\n{body}</main>\
         <script>\n{SCRIPT}</script></body></html>\n",
        escape(&name),
        escape(&headline(run, &standing)),
        tiles(run, &standing),
    );
    let charts = html.matches("<svg class=\"chart\"").count();
    Page { html, charts }
}

/// The run's name: its folder's, with the one above it where it says little by itself.
fn name(run: &RunFolder) -> String {
    let path = run.dir().canonicalize().unwrap_or_else(|_| run.dir().to_path_buf());
    let last = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    match path.parent().and_then(|p| p.file_name()) {
        Some(above) if last == "run" => format!("{}/{last}", above.to_string_lossy()),
        _ => last,
    }
}

fn headline(run: &RunFolder, standing: &Standing) -> String {
    let state = state(standing.state);
    let begun = run.sittings.first().map(|s| format!(", begun {}", date(s.started))).unwrap_or_default();
    format!("Training run of nsparse, {state}{begun}")
}

fn state(state: RunState) -> &'static str {
    match state {
        RunState::Waiting => "not begun",
        RunState::Running => "not ended so far",
        RunState::Finished => "finished",
        RunState::Stopped => "stopped before its end",
        RunState::StoppedByGuard => "stopped by the guard",
    }
}

/// The figures that are looked for first.
fn tiles(run: &RunFolder, standing: &Standing) -> String {
    let mut out = String::from("<div class=\"tiles\">");
    let mut tile = |value: &str, said: &str| {
        let _ = write!(out, "<div class=\"tile\"><b>{}</b><span>{}</span></div>", escape(value), escape(said));
    };
    if let Some((_, best)) = run.history.best() {
        tile(&format!("{:.4}", best.value), &format!("{}, best of {}", best.metric, run.history.evaluations.len()));
        if let Some(reference) = run.summary.as_ref().and_then(|s| s.lexical_reference) {
            tile(&format!("{:+.4}", best.value - reference), "against the lexical reference");
        }
        tile(&number(best.active_dimensions), "active dimensions at the best");
    }
    if let Some(last) = run.history.steps.last() {
        tile(&number(last.loss), "last loss");
        let steps = standing.total_steps.map_or(String::new(), |n| format!(" of {n}"));
        tile(&format!("{}{steps}", standing.total_step), "steps");
    }
    let seconds: f64 = run.history.steps.iter().map(|s| s.seconds).sum();
    if let Some(summary) = &run.summary {
        let seconds: f64 = summary.stages.iter().map(|s| s.seconds).sum();
        tile(&duration(seconds), "training");
    } else if seconds > 0.0 {
        tile(&duration(seconds), "in logged steps");
    }
    if !run.history.warnings.is_empty() {
        tile(&run.history.warnings.len().to_string(), "warnings");
    }
    out.push_str("</div>");
    out
}

fn warnings(run: &RunFolder) -> String {
    let mut out = String::new();
    for warning in &run.history.warnings {
        let place = match warning.step {
            0 => "before the first step".to_owned(),
            step => format!("{} step {step}", curves::title(&warning.stage)),
        };
        let _ = write!(
            out,
            "<div class=\"warning\"><b>{}</b>, {}: {}.<br>Mend: {}.</div>",
            escape(&curves::title(&warning.finding.name())),
            escape(&place),
            escape(&warning.cause),
            escape(&warning.mend)
        );
    }
    section("warnings", "Warnings", &out)
}

fn evaluations(run: &RunFolder) -> String {
    let best = run.history.best().map(|(at, e)| (*at, e.step));
    let reference = run.summary.as_ref().and_then(|s| s.lexical_reference);
    let history = &run.history.evaluations;
    let mut rows = Vec::new();
    for (at, e) in history {
        let is_best = best == Some((*at, e.step));
        let value = format!("{:.4}", e.value);
        rows.push(vec![
            format!("{}, step {}{}", escape(&curves::title(&e.stage)), e.step, if is_best { " (kept)" } else { "" }),
            if is_best { format!("<span class=\"best\">{value}</span>") } else { value },
            reference.map_or_else(|| "—".to_owned(), |r| format!("{:+.4}", e.value - r)),
            number(e.active_dimensions),
            e.queries.to_string(),
            e.documents.to_string(),
            duration(e.seconds),
        ]);
    }
    if let Some(reference) = reference {
        let mut row = vec!["lexical reference".to_owned(), format!("{reference:.4}")];
        row.resize(7, String::new());
        rows.push(row);
    }
    let metric = history.first().map_or("metric", |(_, e)| e.metric.as_str());
    let head = ["", metric, "against the reference", "active dimensions", "queries", "documents", "time"];
    let said = "<p class=\"soft\">Held-out training queries, ranked over a part of the corpus: good for comparing steps \
                of this run, not for figures to publish. The lexical reference weights documents by BM25's tf part.</p>";
    section("evaluations", "Evaluations", &format!("{}{said}", table(&head, &rows)))
}

fn facts(run: &RunFolder, standing: &Standing) -> String {
    let mut list: Vec<(&str, String)> = vec![
        ("folder", format!("<code>{}</code>", escape(&run.dir().display().to_string()))),
        ("state", state(standing.state).to_owned()),
    ];
    let code = |text: &str| format!("<code>{}</code>", escape(text));
    if let Some(sitting) = run.sittings.last() {
        list.push(("recipe's hash", code(&sitting.config_hash)));
        let machine = &sitting.machine;
        let memory =
            machine.memory_bytes.map_or(String::new(), |b| format!(", {:.0} GiB", b as f64 / f64::from(1 << 30)));
        let cpu = machine.cpu.as_deref().unwrap_or("processor not known");
        list.push((
            "machine",
            escape(&format!("{cpu}, {} threads{memory}, device {}", machine.threads, machine.device)),
        ));
        list.push(("nsparse", escape(&sitting.nsparse_version)));
        let sittings: Vec<String> = run
            .sittings
            .iter()
            .map(|s| {
                if s.total_step == 0 {
                    date(s.started)
                } else {
                    format!("{} from step {}", date(s.started), s.total_step)
                }
            })
            .collect();
        list.push(("sittings", escape(&sittings.join("; "))));
    }
    if let Some(config) = &run.config {
        if let Some(model) = &config.model.path {
            list.push(("base model", code(&model.display().to_string())));
        }
        for (name, path) in [("data", &config.data.dir), ("rows", &config.data.rows)] {
            if let Some(path) = path {
                list.push((name, code(&path.display().to_string())));
            }
        }
    }
    if let Some(c) = &run.history.calibration {
        let said = format!(
            "{} active dimensions before, {} after, {} wanted, on {} documents",
            number(c.active_before),
            number(c.active_after),
            number(c.active_wanted),
            c.documents
        );
        list.push(("calibration", said));
    }
    let mut stages = String::new();
    if let Some(summary) = &run.summary {
        list.push(("parameters", number(summary.parameters as f64)));
        list.push(("preparing", duration(summary.preparing_seconds)));
        list.push(("evaluating", duration(summary.evaluation_seconds)));
        let rows: Vec<Vec<String>> = summary
            .stages
            .iter()
            .map(|s| {
                vec![
                    escape(&curves::title(&s.name)),
                    s.steps.to_string(),
                    s.documents.to_string(),
                    s.tokens.to_string(),
                    duration(s.seconds),
                    format!("{:.0}", s.tokens_per_second),
                ]
            })
            .collect();
        stages = table(&["stage", "steps", "documents", "tokens", "time", "tokens/s"], &rows);
    }
    if run.history.unreadable > 0 {
        list.push(("lines not read", format!("{} of metrics.jsonl", run.history.unreadable)));
    }
    let mut facts = String::new();
    for (name, value) in &list {
        let _ = write!(facts, "<dt>{name}</dt><dd>{value}</dd>");
    }
    let recipe = if run.recipe.is_empty() {
        String::new()
    } else {
        format!("<details><summary>Recipe, every key</summary><pre>{}</pre></details>", escape(&run.recipe))
    };
    section("run", "Run", &format!("<dl class=\"facts\">{facts}</dl><p></p>{stages}<p></p>{recipe}"))
}
