//! `nsparse inspect`: a text's vector as document and as query, heaviest terms first.

use std::fmt::Write as _;

use nsparse_core::model_dir::ModelDir;
use nsparse_core::{DocumentEncoder as _, SparseVector};
use nsparse_encoder::SparseEncoder;
use serde::Serialize;

use crate::ExitStatus;
use crate::cli::InspectArgs;
use crate::printer::{Printer, table};
use crate::queries::Queries;
use crate::settings;

/// One term of a vector.
#[derive(Debug, Serialize)]
struct Term {
    token: String,
    weight: f32,
    /// Whether the text does not hold the token: the model added it.
    expansion: bool,
}

pub(crate) fn run(args: &InspectArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let directory = ModelDir::open(&args.model)?;
    let device = settings::device(&args.device)?;
    let queries = Queries::open(&directory, device)?;
    let encoder = SparseEncoder::load(&args.model, device)?;
    let document = encoder.encode(&[args.text.as_str()])?.remove(0);
    let segments = encoder.segments_of(&args.text)?;
    let query = queries.encode(&[&args.text])?.pop().unwrap_or_default();
    let tokenizer = queries.tokenizer();
    let mut own = tokenizer.pieces(&args.text)?;
    let pieces = own.len();
    own.sort_unstable();
    own.dedup();
    let terms = |vector: &SparseVector| -> Vec<Term> {
        vector
            .heaviest_first()
            .into_iter()
            .map(|(id, weight)| Term {
                token: tokenizer.vocabulary()[id as usize].clone(),
                weight,
                expansion: own.binary_search(&id).is_err(),
            })
            .collect()
    };
    let (document_terms, query_terms) = (terms(&document), terms(&query));
    let added = document_terms.iter().filter(|t| t.expansion).count();
    printer.text(format!(
        "as document: {} active dimensions, {added} of them not in the text (marked +); {pieces} word pieces",
        document_terms.len()
    ));
    if segments > 1 {
        printer.text(format!("read in {segments} segments: the vector is the maximum over them"));
    }
    printer.text(show(&document_terms, args.k));
    printer.text(match &queries {
        Queries::Table(_) => format!("\nas query: {} tokens, idf", query_terms.len()),
        Queries::Network(_) => format!("\nas query: {} active dimensions, by the network", query_terms.len()),
    });
    printer.text(show(&query_terms, args.k));
    printer.json(&serde_json::json!({
        "text": args.text,
        "word_pieces": pieces,
        "segments": segments,
        "document": { "active_dimensions": document_terms.len(), "expansion": added, "terms": document_terms },
        "query": { "active_dimensions": query_terms.len(), "terms": query_terms },
    }))?;
    Ok(ExitStatus::Success)
}

/// The heaviest terms with a bar each: people look rather than read.
fn show(terms: &[Term], k: usize) -> String {
    let heaviest = terms.first().map_or(1.0, |t| t.weight);
    let rows: Vec<Vec<String>> = terms
        .iter()
        .take(k)
        .map(|t| {
            let bar = "█".repeat(((t.weight / heaviest * 24.0).round() as usize).max(1));
            vec![
                format!("{} {}", if t.expansion { "+" } else { " " }, t.token),
                format!("{:.3}", t.weight),
                format!("{bar:<24}"),
            ]
        })
        .collect();
    let mut out = table(&["  term", "weight", "                        "], &rows);
    if terms.len() > k {
        let _ = write!(out, "\n  … {} more (-k shows more)", terms.len() - k);
    }
    out
}
