//! What can be typed of `ingest` and `reencode`.

use std::path::PathBuf;

use clap::Args;
use nsparse_core::Pruning;
use nsparse_opensearch::ingest::{IngestOptions, Loading};

use crate::cli::{ClusterArgs, DataArgs, RuntimeArgs, SegmentLayout};

/// Examples in the help text of `ingest`.
pub(crate) const EXAMPLES: &str = "Examples:
  nsparse ingest --deployment deployment.json --model runs/scifact/model --beir scifact
  nsparse ingest docs.jsonl.zst --deployment deployment.json --model runs/scifact/model
  nsparse ingest docs.jsonl --deployment deployment.json --pipeline
  nsparse ingest encoded.jsonl --index articles --ready
  nsparse ingest --index articles --vectors vectors.nsv --data my-data
  tail -f changes.jsonl | nsparse ingest - --deployment deployment.json --model model
  nsparse ingest prices.jsonl --index articles --update
  nsparse ingest --index articles --delete gone.txt

A line of jsonl is a document with an id and any fields; all of them go into the index. What is in already is not sent
again, so the same command goes on where it was stopped.";

/// Examples in the help text of `reencode`.
pub(crate) const REENCODE_EXAMPLES: &str = "Examples:
  nsparse reencode --index articles-1 --to articles-2 --model runs/new/model
  nsparse reencode --index articles-1 --to articles-2 --model model --exclude-vector

Stopped at any moment, the same command goes on: what is in the new index is not encoded again. Documents that came into
the old index meanwhile come with the next run of the same command; deletions there do not.";

#[derive(Debug, Args)]
pub(crate) struct IngestArgs {
    /// The documents: a file of jsonl, as it is, .gz or .zst (or .parquet, if built with it), or `-` for standard
    /// input [or: --data, --beir]
    #[arg(value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// The model directory that encodes
    #[arg(long, value_name = "DIR", group = "way")]
    pub(crate) model: Option<PathBuf>,
    /// Keep a part of each vector's entries alone: `max_ratio:R`, `top_k:N`, `alpha_mass:R` or `abs_value:W` [default: as deployed]
    #[arg(long, value_name = "RULE", requires = "model")]
    pub(crate) prune: Option<Pruning>,
    /// Vectors of these documents, written by `nsparse encode --format binary`: nothing is encoded here
    #[arg(long, value_name = "FILE", group = "way", conflicts_with = "input")]
    pub(crate) vectors: Option<PathBuf>,
    /// The documents hold their vectors already, in the vector field
    #[arg(long, group = "way")]
    pub(crate) ready: bool,
    /// The cluster encodes: documents go through this ingest pipeline, or, without a name, through the index's own
    #[arg(long, value_name = "NAME", group = "way", num_args = 0..=1, default_missing_value = "")]
    pub(crate) pipeline: Option<String>,
    /// Merge the fields given into documents that are there; their texts and vectors stay
    #[arg(long, group = "way", requires = "input")]
    pub(crate) update: bool,
    /// With --update: make documents that are not there
    #[arg(long, requires = "update")]
    pub(crate) upsert: bool,
    /// Delete the documents of these ids: a file, or `-`, with an id or a JSON object a line
    #[arg(long, value_name = "FILE", group = "way", conflicts_with = "input")]
    pub(crate) delete: Option<PathBuf>,
    /// The file that `nsparse deploy` wrote: names the index and the field
    #[arg(long, value_name = "FILE")]
    pub(crate) deployment: Option<PathBuf>,
    /// The index, where there is no deployment
    #[arg(long, conflicts_with = "deployment")]
    pub(crate) index: Option<String>,
    /// Field of the vector, where there is no deployment
    #[arg(long, default_value = "embedding")]
    pub(crate) vector_field: String,
    /// What becomes of a long document's segments [default: what the index's mapping is made for]
    #[arg(long, value_enum, conflicts_with = "vectors")]
    pub(crate) segments: Option<SegmentLayout>,
    #[command(flatten)]
    pub(crate) pace: PaceArgs,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ReencodeArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// The index whose documents are read
    #[arg(long)]
    pub(crate) index: String,
    /// The index that they go to; made like the old one if it is not there
    #[arg(long, value_name = "INDEX")]
    pub(crate) to: String,
    /// The model directory that encodes
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// How fields become the text that is encoded [default: the model's own]
    #[arg(long, value_name = "PATTERN")]
    pub(crate) template: Option<String>,
    /// Field of the template's {title}
    #[arg(long, value_name = "FIELD", default_value = "title")]
    pub(crate) title_field: String,
    /// Field of the template's {text}
    #[arg(long, value_name = "FIELD", default_value = "text")]
    pub(crate) text_field: String,
    /// Field of the vector
    #[arg(long, default_value = "embedding")]
    pub(crate) vector_field: String,
    /// What becomes of a long document's segments
    #[arg(long, value_enum, default_value_t = SegmentLayout::Max)]
    pub(crate) segments: SegmentLayout,
    /// Leave vectors out of the new index's `_source`: less disk once its segments are merged, but updates in place and the
    /// cluster's own reindex need them there
    #[arg(long)]
    pub(crate) exclude_vector: bool,
    /// Keep a part of each vector's entries alone: `max_ratio:R`, `top_k:N`, `alpha_mass:R` or `abs_value:W`
    #[arg(long, value_name = "RULE")]
    pub(crate) prune: Option<Pruning>,
    /// Documents that are read at once
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) page: u32,
    #[command(flatten)]
    pub(crate) pace: PaceArgs,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
}

/// How documents are sent, and what is written down.
#[derive(Debug, Clone, Args)]
pub(crate) struct PaceArgs {
    /// Where it is noted which documents are in [default: in the cache, by cluster and index]
    #[arg(long, value_name = "FILE")]
    pub(crate) journal: Option<PathBuf>,
    /// Where documents that the cluster refuses are written, with the reasons [default: beside the journal]
    #[arg(long, value_name = "FILE")]
    pub(crate) dead_letters: Option<PathBuf>,
    /// Most requests on the way at once; how many there are follows the cluster's answers
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) in_flight: u32,
    /// Largest request in kilobytes; requests begin with half of it and follow the cluster's answers
    #[arg(long, value_name = "KB", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=98_000))]
    pub(crate) request_size: u32,
    /// Most documents in a request
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) request_documents: u32,
    /// Threads that read and check documents
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) workers: u32,
    /// Leave refresh and replicas of a new index as they are while it is loaded
    #[arg(long)]
    pub(crate) keep_settings: bool,
}

impl PaceArgs {
    /// As the library takes them, with the journal at `default` unless one is named.
    pub(crate) fn options(&self, default: PathBuf) -> IngestOptions {
        let journal = self.journal.clone().unwrap_or(default);
        let dead_letters = self.dead_letters.clone().unwrap_or_else(|| {
            let mut name = journal.as_os_str().to_owned();
            name.push(".rejected.jsonl");
            PathBuf::from(name)
        });
        IngestOptions {
            max_bytes: self.request_size as usize * 1024,
            max_documents: self.request_documents as usize,
            in_flight: self.in_flight as usize,
            journal: Some(journal),
            dead_letters: Some(dead_letters),
            loading: if self.keep_settings { Loading::Keep } else { Loading::New },
            ..IngestOptions::default()
        }
    }
}
