//! What `nsparse data` takes beside the name of a BEIR set.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use nsparse_core::trec::Form;

use crate::cli::DataArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Prepare MS MARCO: corpus, queries, judgments and lists of hard negatives, fetched or from files at hand
    #[command(
        after_help = "Examples:\n  nsparse data msmarco\n  nsparse data msmarco --sample 2000 --others 20000 --seed 1\n  nsparse data msmarco --from marco --negatives 30\n  nsparse data msmarco --kind documents\n\nFetched are 2.9 GB (passages) or 8 GB (documents); with the unpacked and the prepared files it takes 10 GB and 32 GB\nof disk. --from DIR takes the same files, packed or not, under the names that Microsoft or tevatron gives them:\n  collection.tsv | corpus.tsv | msmarco-docs.tsv, or collectionandqueries.tar.gz\n  queries.train.tsv | train.query.txt | msmarco-doctrain-queries.tsv\n  qrels.train.tsv | msmarco-doctrain-qrels.tsv\n  queries.dev.small.tsv | queries.dev.tsv | dev.query.txt | msmarco-docdev-queries.tsv, and their qrels: may be missing\n  qidpidtriples.train.full.2.tsv | train.negatives.tsv: may be missing\n\nMS MARCO may be used for non-commercial research only: see its terms."
    )]
    Msmarco(MsMarcoArgs),
    /// Make training rows out of documents alone: sentences are the queries that the rest of their document answers
    #[command(
        after_help = "Examples:\n  nsparse data sentences --beir scifact --out sentences.jsonl\n  nsparse data sentences --data my-data --per-document 2 --titles 0 --negatives 0 --out sentences.jsonl\n\nIn a recipe, beside judged rows or alone:\n  data: {dir: my-data, sets: [{rows: sentences.jsonl}]}\n  train: {queries_per_document: 4}"
    )]
    Sentences(SentencesArgs),
    /// Write judgments or a ranking in another form
    #[command(
        after_help = "Examples:\n  nsparse data convert --qrels qrels.dev.small.tsv --to beir --out qrels/dev.tsv\n  nsparse data convert --run run.trec --to msmarco --out run.tsv\n\nWhat form a file has follows from its columns."
    )]
    Convert(ConvertArgs),
}

/// Which of the two collections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// 8.8 million passages
    Passages,
    /// 3.2 million documents with url, title and body
    Documents,
}

#[derive(Debug, Args)]
pub(crate) struct MsMarcoArgs {
    /// Where the set's folder, `msmarco` or `msmarco-doc`, is put
    #[arg(long, value_name = "DIR", env = "NSPARSE_DATA", default_value = "data")]
    pub(crate) out: PathBuf,
    /// Files at hand: nothing is fetched
    #[arg(long, value_name = "DIR")]
    pub(crate) from: Option<PathBuf>,
    /// Passages or documents
    #[arg(long, value_enum, default_value_t = Kind::Passages)]
    pub(crate) kind: Kind,
    /// Only so many queries of each split, drawn by the seed; the corpus is what judgments and negatives name
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) sample: Option<u64>,
    /// With --sample: so many other documents in the corpus; figures on a small corpus are higher than on all of it
    #[arg(long, value_name = "N", default_value_t = 0, requires = "sample")]
    pub(crate) others: usize,
    /// Hard negatives that are kept for a query, drawn by the seed; 0: none are read
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) negatives: usize,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Mend texts whose UTF-8 was once read as Latin-1
    #[arg(long)]
    pub(crate) repair: bool,
    /// Where the files come from
    #[arg(long, value_name = "URL", default_value = crate::commands::msmarco::URL, conflicts_with = "from")]
    pub(crate) base_url: String,
    /// A file's md5, where it is another than the published one
    #[arg(long, value_name = "FILE=HEX", conflicts_with = "from")]
    pub(crate) md5: Vec<String>,
    /// Leave the fetched files where they are, beside the set's folder
    #[arg(long, conflicts_with = "from")]
    pub(crate) keep_downloads: bool,
    /// Make it anew even if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SentencesArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Most sentences that are taken out of a document
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) per_document: usize,
    /// Share of a document's sentences that is taken out; one at least, and one at least stays
    #[arg(long, value_name = "SHARE", default_value_t = 0.4)]
    pub(crate) share: f64,
    /// How often the title is a query as well, and leaves the document
    #[arg(long, value_name = "SHARE", default_value_t = 0.4)]
    pub(crate) titles: f64,
    /// Fewest characters of a sentence that is a query
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub(crate) min_chars: usize,
    /// Most characters of a sentence that is a query
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub(crate) max_chars: usize,
    /// How often each document is taken apart, each time elsewhere
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) variants: usize,
    /// Negatives of each query, drawn from BM25's hits
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) negatives: usize,
    /// Hits that negatives are drawn from
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub(crate) depth: usize,
    /// Document template of the rows' texts
    #[arg(long, default_value = "{title} {text}")]
    pub(crate) template: String,
    /// Seed of everything that is drawn
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// The training rows
    #[arg(long, value_name = "FILE", default_value = "sentences.jsonl")]
    pub(crate) out: PathBuf,
}

/// The form of a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileForm {
    /// Judgments `query 0 document grade`; rankings `query Q0 document rank score tag`
    Trec,
    /// Judgments `query 0 document grade`, rankings `query document rank`, tabs between
    Msmarco,
    /// Judgments `query-id corpus-id score` under a header
    Beir,
}

impl From<FileForm> for Form {
    fn from(form: FileForm) -> Self {
        match form {
            FileForm::Trec => Self::Trec,
            FileForm::Msmarco => Self::MsMarco,
            FileForm::Beir => Self::Beir,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Judgments
    #[arg(long, value_name = "FILE", required_unless_present = "run", conflicts_with = "run")]
    pub(crate) qrels: Option<PathBuf>,
    /// A ranking
    #[arg(long, value_name = "FILE")]
    pub(crate) run: Option<PathBuf>,
    /// The form that is written
    #[arg(long, value_enum)]
    pub(crate) to: FileForm,
    /// The last column of a ranking in TREC's form
    #[arg(long, default_value = "nsparse")]
    pub(crate) tag: String,
    /// The written file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

/// The form of a written ranking.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RunForm {
    /// `query Q0 document rank score tag` in run.trec
    Trec,
    /// `query document rank`, tabs between, in run.tsv
    Msmarco,
}
