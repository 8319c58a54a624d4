//! The part of a page that shows what a model does with texts: tokens, documents, held-out queries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use nsparse_core::SparseVector;
use nsparse_trainer::held_out::HeldOutQuery;
use nsparse_trainer::survey::{Survey, TokenUse};

use super::chart::{Chart, Style};
use super::html::{escape, number, section, table};

/// Characters of a document that are shown.
const SHOWN_CHARACTERS: usize = 1200;
/// Expansion terms that are shown of a document.
const SHOWN_TERMS: usize = 40;
/// Queries that are shown, and hits of each.
const SHOWN_QUERIES: usize = 10;
const SHOWN_HITS: usize = 5;

/// A word piece with the bytes of the text that it stands for.
pub(crate) type PlacedPiece = (u32, std::ops::Range<usize>);

/// A document as a page shows it.
pub(crate) struct ShownDocument {
    pub(crate) id: String,
    pub(crate) text: String,
    pub(crate) vector: SparseVector,
    /// The text's word pieces with their bytes.
    pub(crate) pieces: Vec<PlacedPiece>,
    /// How many of them the model reads.
    pub(crate) read: usize,
}

/// Tokens in use, tokens out of use.
pub(crate) fn survey(survey: &Survey, source: &str) -> String {
    let share = |part: usize, whole: usize| format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64);
    let [least, low, median, high, most] = survey.active;
    let mut out = format!(
        "<p>Over {} documents drawn from {}: {:.0} active dimensions on average (median {median}, nine tenths within \
         {low} to {high}, all within {least} to {most}), {:.0} % of them no word pieces of the document's text. {}</p>",
        survey.documents,
        escape(source),
        survey.active_mean,
        survey.expansion_share * 100.0,
        match survey.empty {
            0 => "No document is empty.".to_owned(),
            n => format!("<b>{n} documents have no active dimension.</b>"),
        }
    );
    let rows = |tokens: &[TokenUse], value: &dyn Fn(&TokenUse) -> (f64, String)| -> Vec<Vec<String>> {
        let largest = tokens.iter().map(|t| value(t).0).fold(f64::MIN_POSITIVE, f64::max);
        tokens
            .iter()
            .map(|t| {
                let (size, said) = value(t);
                vec![
                    format!("<code>{}</code>", escape(&t.token)),
                    format!("<span class=\"bar\" style=\"width:{:.1}em\"></span>{said}", 5.0 * size / largest),
                    share(t.documents, survey.documents),
                    share(t.in_texts, survey.documents),
                    number(t.mean_weight),
                ]
            })
            .collect()
    };
    let by_documents = rows(&survey.most_documents, &|t| (t.documents as f64, t.documents.to_string()));
    let by_weight = rows(&survey.heaviest, &|t| (t.weight_share, format!("{:.2} %", 100.0 * t.weight_share)));
    out.push_str("<div class=\"columns\"><div><h3>Active in most documents</h3>");
    out.push_str(&table(&["token", "documents", "share", "in their texts", "mean weight"], &by_documents));
    out.push_str("</div><div><h3>Heaviest over all documents</h3>");
    out.push_str(&table(&["token", "share of all weight", "documents", "in their texts", "mean weight"], &by_weight));
    out.push_str("</div><div><h3>Never active</h3>");
    let _ = write!(
        out,
        "<p>{} of {} vocabulary entries that may carry weight are active in none of these documents ({}); of a small \
         sample most are. Those below stand in its texts and still get no weight:</p>",
        survey.never_active,
        survey.vocabulary,
        share(survey.never_active, survey.vocabulary)
    );
    if survey.dead_in_texts.is_empty() {
        out.push_str("<p class=\"soft\">none</p>");
    } else {
        let dead: Vec<Vec<String>> = survey
            .dead_in_texts
            .iter()
            .map(|t| vec![format!("<code>{}</code>", escape(&t.token)), share(t.in_texts, survey.documents)])
            .collect();
        out.push_str(&table(&["token", "documents whose text has it"], &dead));
    }
    out.push_str("</div></div>");
    section("tokens", "Tokens", &out)
}

/// Documents with their own terms coloured, expansion terms listed.
pub(crate) fn documents(documents: &[ShownDocument], vocabulary: &[String]) -> String {
    let mut out = String::from(
        "<p>Words of the text are coloured by their weight, relative to the document's heaviest term. Below each text \
         stand the terms that the model added, with their weights. In a score each weight is multiplied with the \
         query token's idf, so frequent words count for less than they look.</p>",
    );
    for document in documents {
        let heaviest = document.vector.weights.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        let weights: BTreeMap<u32, f32> = document.vector.iter().collect();
        let own: BTreeSet<u32> = document.pieces[..document.read].iter().map(|(id, _)| *id).collect();
        let mut added: Vec<(u32, f32)> = document.vector.iter().filter(|(id, _)| !own.contains(id)).collect();
        added.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let _ = write!(
            out,
            "<article><h3>{}</h3><p class=\"soft\">{} active dimensions, {} of them added</p><p class=\"text\">{}</p>",
            escape(&document.id),
            document.vector.len(),
            added.len(),
            coloured(document, &weights, heaviest)
        );
        out.push_str("<ul class=\"terms\">");
        for (id, weight) in added.iter().take(SHOWN_TERMS) {
            let token = vocabulary.get(*id as usize).map_or("", String::as_str);
            let _ = write!(
                out,
                "<li style=\"--w:{:.2}\">{}<small>{weight:.2}</small></li>",
                0.45 * weight / heaviest,
                escape(token)
            );
        }
        if added.len() > SHOWN_TERMS {
            let _ = write!(out, "<li style=\"--w:0\" class=\"soft\">… {} more</li>", added.len() - SHOWN_TERMS);
        }
        out.push_str("</ul></article>");
    }
    section("documents", "Documents", &out)
}

/// The text with each word piece that carries weight in its colour; what lies past the window is dimmed.
fn coloured(document: &ShownDocument, weights: &BTreeMap<u32, f32>, heaviest: f32) -> String {
    let text = &document.text;
    let end = text.char_indices().nth(SHOWN_CHARACTERS).map_or(text.len(), |(at, _)| at);
    let read_to = document.pieces[..document.read].last().map_or(0, |(_, place)| place.end);
    let mut out = String::new();
    let mut at = 0;
    for (id, place) in document.pieces[..document.read].iter().take_while(|(_, place)| place.end <= end) {
        // A normaliser may give two pieces the same bytes.
        let Some(before) = text.get(at..place.start) else { continue };
        let Some(piece) = text.get(place.clone()) else { continue };
        out.push_str(&escape(before));
        match weights.get(id) {
            Some(weight) => {
                let share = 0.05 + 0.6 * (weight / heaviest).powf(1.5);
                let _ = write!(out, "<i style=\"--w:{share:.2}\" title=\"{weight:.2}\">{}</i>", escape(piece));
            }
            None => out.push_str(&escape(piece)),
        }
        at = place.end;
    }
    let read = text.get(at..read_to.clamp(at, end.max(at))).unwrap_or_default();
    out.push_str(&escape(read));
    let rest = text.get(read_to.max(at)..end).unwrap_or_default();
    if !rest.trim().is_empty() && document.read < document.pieces.len() {
        let _ = write!(out, "<span class=\"unread\" title=\"past the window of the model\">{}</span>", escape(rest));
    } else {
        out.push_str(&escape(rest));
    }
    if end < text.len() {
        out.push_str(" …");
    }
    out
}

/// Held-out queries from the worst to the best, with their hits; `titles`: what is known of documents by id.
pub(crate) fn held_out(queries: &[HeldOutQuery], metric: &str, titles: &BTreeMap<String, String>) -> (String, Chart) {
    let mut sorted: Vec<&HeldOutQuery> = queries.iter().collect();
    sorted.sort_by(|a, b| a.value.total_cmp(&b.value).then_with(|| a.id.cmp(&b.id)));
    let shown = SHOWN_QUERIES.min(sorted.len());
    let none = sorted.iter().filter(|q| q.first_relevant.is_none()).count();
    let first = sorted.iter().filter(|q| q.first_relevant == Some(1)).count();
    let mut out = format!(
        "<p>Of {} queries {first} have a relevant document in the first place and {none} have none at all among their \
         hits. {shown} of them, evenly from the worst to the best:</p>",
        sorted.len()
    );
    for i in 0..shown {
        let query = sorted[if shown > 1 { i * (sorted.len() - 1) / (shown - 1) } else { 0 }];
        let rank = query
            .first_relevant
            .map_or("no relevant document found".to_owned(), |r| format!("first relevant document at {r}"));
        let _ = write!(
            out,
            "<article><h3>{}</h3><p class=\"soft\">{} {:.4}, {rank}</p><ol class=\"hits\">",
            escape(&query.query),
            escape(metric),
            query.value
        );
        for hit in query.hits.iter().take(SHOWN_HITS) {
            let (class, said) = match hit.grade {
                Some(grade) if grade > 0 => (" class=\"relevant\"", ", relevant"),
                _ => ("", ""),
            };
            let title = titles.get(&hit.id).map_or(hit.id.as_str(), String::as_str);
            let _ = write!(out, "<li{class}>{} <small>{:.2}{said}</small></li>", escape(title), hit.score);
        }
        out.push_str("</ol></article>");
    }
    let values = sorted.iter().enumerate().map(|(i, q)| ((i + 1) as f64, q.value)).collect();
    let chart = Chart::new(format!("{metric} of each query, sorted")).with("query", Style::Plain, values);
    (out, chart)
}
