//! What can be typed after `nsparse mine`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::{ClusterArgs, DataArgs, Engine};

/// The examples of `nsparse mine --help`.
pub(crate) const EXAMPLES: &str = "Examples:
  nsparse mine --beir scifact --engine local --out rows.jsonl
  nsparse mine --data my-data --engine opensearch --depth 100 --sample 8 --seed 1 --out rows.jsonl

The second stage: what the trained model ranks high, together with BM25's rows:
  nsparse mine --beir scifact --model runs/one/model --depth 200 --sample 30 --merge rows.jsonl --out rows-2.jsonl
  nsparse mine --beir scifact --model runs/one/model --depth 200 --sample 30 --relative-margin 0.05 \\
      --teacher runs/teacher/model --run-out mined.trec --out rows-2.jsonl
  nsparse mine --data my-data --model runs/one/model --engine opensearch --index articles --out rows-2.jsonl

Limits on scores look at the miner's own scores, or at the teacher's where --teacher, --teachers or --denoise names one. With s the
candidate's score and p the positive's, a candidate is left out if s + m > p (--absolute-margin m),
s > p - |p|*r (--relative-margin r), s > max, or s < min.";

#[derive(Debug, Args)]
pub(crate) struct MineArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Where documents are ranked
    #[arg(long, value_enum, default_value_t = Engine::Local)]
    pub(crate) engine: Engine,
    /// Which split's queries: all that have a positive
    #[arg(long, default_value = "train")]
    pub(crate) split: String,
    /// How many documents are fetched for a query
    #[arg(long, default_value_t = 100)]
    pub(crate) depth: usize,
    /// How many of them become negatives
    #[arg(long, default_value_t = 8)]
    pub(crate) sample: usize,
    /// Ranks above this one are left out
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    pub(crate) skip: usize,
    /// Seed of the sample
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
    /// Document template of the rows' texts: {title}, {text} and other fields of the corpus, such as {url} [default: the
    /// model's; for BM25 "{title} {text}"]
    #[arg(long)]
    pub(crate) template: Option<String>,
    /// Most characters of a templated text [default: the model's; for BM25 20000]
    #[arg(long, value_name = "N")]
    pub(crate) max_chars: Option<usize>,
    /// The training rows
    #[arg(long, value_name = "FILE", default_value = "rows.jsonl")]
    pub(crate) out: PathBuf,
    /// Also write the rankings, in TREC's form
    #[arg(long, value_name = "FILE")]
    pub(crate) run_out: Option<PathBuf>,
    /// Rows to join, such as BM25's: one row a query and positive, every negative once; may be repeated
    #[arg(long, value_name = "ROWS")]
    pub(crate) merge: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// What ranks, where it is not BM25.
#[derive(Debug, Args)]
#[command(next_help_heading = "Mining with a trained model")]
pub(crate) struct ModelArgs {
    /// A trained model's directory: its vectors rank in place of BM25. A stopped encoding goes on
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// The documents' vectors, written by `nsparse encode --format binary`: nothing is encoded here
    #[arg(long, value_name = "FILE", requires = "model", conflicts_with_all = ["index", "deployment"])]
    pub(crate) vectors: Option<PathBuf>,
    /// An index in the cluster that has the documents' vectors
    #[arg(long, requires = "model")]
    pub(crate) index: Option<String>,
    /// The same, as `nsparse deploy` wrote it
    #[arg(long, value_name = "FILE", conflicts_with = "index")]
    pub(crate) deployment: Option<PathBuf>,
    /// Field of the vector in --index
    #[arg(long, default_value = "embedding")]
    pub(crate) vector_field: String,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

/// Which candidates are left out by their scores.
#[derive(Debug, Args)]
#[command(next_help_heading = "False negatives")]
pub(crate) struct LimitArgs {
    /// Leave out what scores above the positive's score less this
    #[arg(long, value_name = "SCORE")]
    pub(crate) absolute_margin: Option<f32>,
    /// Leave out what scores above the positive's score less this share of it, such as 0.05
    #[arg(long, value_name = "SHARE")]
    pub(crate) relative_margin: Option<f32>,
    /// Leave out what scores higher
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub(crate) max_score: Option<f32>,
    /// Leave out what scores lower
    #[arg(long, value_name = "SCORE", allow_negative_numbers = true)]
    pub(crate) min_score: Option<f32>,
    /// Which positive a margin is taken from, where a query has several
    #[arg(long, value_enum, default_value_t = Positive::Own)]
    pub(crate) margin_from: Positive,
    /// Judge by this model's scores in place of the miner's: a sparse model directory
    #[arg(long, value_name = "DIR", conflicts_with = "denoise")]
    pub(crate) teacher: Option<PathBuf>,
    /// Judge by another teacher: a YAML file whose section `teachers` names one, as for `nsparse score`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["teacher", "denoise"])]
    pub(crate) teachers: Option<PathBuf>,
    /// Judge by stored scores (TREC form: query Q0 document rank score tag)
    #[arg(long, value_name = "FILE")]
    pub(crate) denoise: Option<PathBuf>,
}

/// One of a query's positives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Positive {
    /// The row's own
    Own,
    /// The one with the lowest score
    Lowest,
}
