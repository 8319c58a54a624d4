//! What can be typed after `nsparse bench`. The doc comments are the help texts.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use nsparse_core::Pruning;
use serde::Serialize;

use crate::cli::{ClusterArgs, DataArgs};

/// What `share_of_rate` means, for the help.
macro_rules! share_of_rate {
    () => {
        "Executed GFLOP/s are the operations of the f32 matrix products of a round (a multiply-add is two) over the \
         median time of a whole round. The machine's rate is the operations of the same products over the time that \
         they take alone, measured in the same run, every shape counted as often as the round has it. The share is \
         the former over the latter. docs/benchmarks.md has the details."
    };
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) what: Bench,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Time training steps on random weights and tokens
    ///
    /// A step is the training loop's own: forward, `InfoNCE` + FLOPS loss, backward, clipping, `AdamW`. Half of the
    /// documents are positives of one query each, the other half their hard negatives.
    #[command(after_long_help = concat!(
        "Examples:\n  nsparse bench train --layers 6 --hidden 384 --heads 12 --vocab 30522 --docs 16 --tokens 128\n",
        "  nsparse bench train --docs 256 --micro-batch 8 --tokens 64 --rounds 3\n\n", share_of_rate!()))]
    Train(TrainBench),
    /// Time encoding of documents, random ones or a data set's
    ///
    /// Texts become sparse vectors: tokenising, the network, and collecting active entries, batches by length.
    #[command(after_long_help = concat!(
        "Examples:\n  nsparse bench encode --docs 64 --tokens 128\n",
        "  nsparse bench encode --model runs/scifact/model --data scifact --sample 600 --seed 1\n\n", share_of_rate!()))]
    Encode(EncodeBench),
    /// Time searching in the embedded index
    ///
    /// Throughput is that of all queries at once on all threads; latencies are those of single queries.
    #[command(
        after_long_help = "Examples:\n  nsparse bench search --model runs/scifact/model --data scifact\n  nsparse bench search --docs 100000 --active 150 --queries 1000"
    )]
    Search(SearchBench),
    /// Time single queries against an index in a cluster: BM25, sparse, pruned, in two phases
    ///
    /// Every query of the data set is asked once a round in every way, by one client or several that each wait for their
    /// answer; the cluster's request cache is not used. It is load: mind a cluster that serves.
    #[command(
        after_long_help = "Example:\n  nsparse bench queries --beir scifact --model runs/scifact/model --deployment deployment.json --clients 1,8 --prune max_ratio:0.2 --two-phase max_ratio:0.4"
    )]
    Queries(Box<QueriesBench>),
    /// Time the products of a training step alone, shape by shape, on one thread and on all
    #[command(after_long_help = "Example:\n  nsparse bench product --layers 6 --hidden 384 --docs 16 --tokens 128")]
    Product(ProductBench),
}

/// The shape of a network with random weights.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct ShapeArgs {
    /// Encoder layers
    #[arg(long, default_value_t = 6)]
    pub(crate) layers: usize,
    /// Width of a hidden state; the feed-forward layer is four times as wide
    #[arg(long, default_value_t = 384)]
    pub(crate) hidden: usize,
    /// Attention heads
    #[arg(long, default_value_t = 12)]
    pub(crate) heads: usize,
    /// Vocabulary entries
    #[arg(long, default_value_t = 30_522)]
    pub(crate) vocab: usize,
}

/// How it is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct RoundArgs {
    /// Timed rounds
    #[arg(long, default_value_t = 7)]
    pub(crate) rounds: usize,
    /// Rounds before them that are not timed
    #[arg(long, default_value_t = 2)]
    pub(crate) warmup: usize,
    /// Threads on the CPU [default: all cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

/// How many entries of a random model's vectors are above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Active {
    /// Every one: what a random model without a bias nearly has.
    All,
    /// So many a document in the mean.
    Mean(usize),
}

impl FromStr for Active {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "all" => Ok(Self::All),
            _ => s.parse().map(Self::Mean).map_err(|_| "expected a number of entries, or `all`".to_owned()),
        }
    }
}

impl std::fmt::Display for Active {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Mean(n) => write!(f, "{n}"),
        }
    }
}

impl Serialize for Active {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::Mean(n) => serializer.serialize_u64(*n as u64),
        }
    }
}

#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct TrainBench {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// Documents a step; an even number
    #[arg(long, default_value_t = 16)]
    pub(crate) docs: usize,
    /// Tokens of each document, special ones included
    #[arg(long, default_value_t = 128)]
    pub(crate) tokens: usize,
    /// Documents in memory at once; 0: all. With fewer, vectors come first and gradients second (gradient cache)
    #[arg(long, value_name = "DOCS", default_value_t = 0)]
    pub(crate) micro_batch: usize,
    /// Keep only each layer's input, and compute the rest again in the backward
    #[arg(long)]
    pub(crate) activation_checkpointing: bool,
    /// Entries of a document that are above zero at the start, by the decoder's bias: a number, or `all`
    #[arg(long, default_value_t = Active::Mean(150))]
    pub(crate) active: Active,
    /// Dropout rate
    #[arg(long, default_value_t = 0.1)]
    pub(crate) dropout: f32,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    #[serde(skip)]
    pub(crate) device: String,
    /// What weights and tokens are drawn from
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    #[serde(skip)]
    pub(crate) rounds: RoundArgs,
}

#[derive(Debug, Args)]
pub(crate) struct EncodeBench {
    /// A model directory that encodes the data's documents [default: random weights and random tokens]
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// So many documents of the data, drawn by the seed [default: all]
    #[arg(long, value_name = "DOCS", requires = "model")]
    pub(crate) sample: Option<usize>,
    /// Write the encoded texts to a file, one JSON object with `id` and `text` a line: for another program
    #[arg(long, value_name = "FILE")]
    pub(crate) save_texts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// Random documents
    #[arg(long, default_value_t = 64, conflicts_with = "model")]
    pub(crate) docs: usize,
    /// Tokens of each random document, special ones included
    #[arg(long, default_value_t = 128, conflicts_with = "model")]
    pub(crate) tokens: usize,
    /// Entries of a document of the random model that are above zero: a number, or `all`
    #[arg(long, default_value_t = Active::Mean(150), conflicts_with = "model")]
    pub(crate) active: Active,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// What the sample, weights and tokens are drawn from
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) rounds: RoundArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SearchBench {
    /// A model directory whose vectors are searched [default: random vectors]
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// Random documents
    #[arg(long, default_value_t = 100_000, conflicts_with = "model")]
    pub(crate) docs: usize,
    /// Active entries of a random document
    #[arg(long, default_value_t = 150, conflicts_with = "model")]
    pub(crate) active: usize,
    /// Vocabulary entries of random vectors
    #[arg(long, default_value_t = 30_522, conflicts_with = "model")]
    pub(crate) vocab: usize,
    /// Random queries
    #[arg(long, default_value_t = 1000, conflicts_with = "model")]
    pub(crate) queries: usize,
    /// Tokens of a random query
    #[arg(long, default_value_t = 8, conflicts_with = "model")]
    pub(crate) query_tokens: usize,
    /// How many documents a query gets
    #[arg(long, default_value_t = 10)]
    pub(crate) depth: usize,
    /// cpu, cpu-reference, cuda or cuda:N, for encoding
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// What random vectors are drawn from
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) rounds: RoundArgs,
}

#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct ProductBench {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,
    /// Documents a step
    #[arg(long, default_value_t = 16)]
    pub(crate) docs: usize,
    /// Tokens of each document
    #[arg(long, default_value_t = 128)]
    pub(crate) tokens: usize,
    /// Seconds for each shape and number of threads
    #[arg(long, default_value_t = 0.3)]
    pub(crate) seconds: f64,
    /// Threads beside one [default: all cores]
    #[arg(long)]
    #[serde(skip)]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct QueriesBench {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// The model directory: its tokenizer and idf table make the queries
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// The file that `nsparse deploy` wrote
    #[arg(long, value_name = "FILE")]
    pub(crate) deployment: Option<PathBuf>,
    /// The index, where there is no deployment
    #[arg(long, conflicts_with = "deployment")]
    pub(crate) index: Option<String>,
    /// How many documents are asked for
    #[arg(long, short, default_value_t = 10)]
    pub(crate) k: usize,
    /// How many clients ask at once; several numbers, one after the other
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8", value_parser = clients)]
    pub(crate) clients: Vec<usize>,
    /// Timed rounds, after one that is not
    #[arg(long, default_value_t = 3, value_parser = clients)]
    pub(crate) rounds: usize,
    /// Also with queries pruned by this rule; several are several ways
    #[arg(long, value_name = "RULE")]
    pub(crate) prune: Vec<Pruning>,
    /// Also in two phases, split by this rule; several are several ways
    #[arg(long, value_name = "RULE")]
    pub(crate) two_phase: Vec<Pruning>,
}

fn clients(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=256).contains(n)).ok_or_else(|| format!("`{text}` is no number from 1 to 256"))
}
