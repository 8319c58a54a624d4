//! What can be typed: every command with its options. The doc comments are the help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use nsparse_core::Pruning;

use crate::bench::args::BenchArgs;
use crate::commands::deploy::DeployArgs;
use crate::commands::prune_models::PruneModelsArgs;
use crate::commands::rollback::RollbackArgs;
use crate::commands::status::StatusArgs;
use crate::commands::switch::SwitchArgs;
use crate::commands::tune_idf::TuneIdfArgs;
use crate::commands::undeploy::UndeployArgs;
pub(crate) use crate::connect::args::ClusterArgs;
use crate::data_args::{DataCommand, RunForm};
use crate::ingest::args::{IngestArgs, ReencodeArgs};
use crate::mining::args::MineArgs;
use crate::searching::{self, QueryArgs};

/// Make, ship and measure doc-only learned sparse retrieval models for OpenSearch.
///
/// A document is encoded by a neural model into weights over a vocabulary; a query is only tokenised and looked
/// up in an idf table, so search stays as quick as BM25.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, after_help = "Start here: nsparse quickstart")]
pub(crate) struct Cli {
    /// Print one JSON object on standard output instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress bars and no notes on standard error
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log what is done on standard error; twice for every request (`NSPARSE_LOG` sets a filter of its own)
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Do the main job on embedded sample data: mine, train, export, rank; no server needed
    #[command(
        after_help = "Examples:\n  nsparse quickstart\n  nsparse quickstart --engine opensearch --url http://localhost:9200"
    )]
    Quickstart(QuickstartArgs),
    /// Start, show or stop a local OpenSearch development node
    #[command(
        after_help = "Examples:\n  nsparse cluster up\n  nsparse cluster up --version 2.16.0 --port 9201 --heap 2g\n  nsparse cluster down"
    )]
    Cluster(ClusterCommandArgs),
    /// Say what would fail on this machine and in a cluster, and mend its settings
    #[command(after_help = crate::commands::doctor::EXAMPLES)]
    Doctor(crate::commands::doctor::DoctorArgs),
    /// Fetch a BEIR data set, prepare MS MARCO, convert judgments and rankings
    #[command(
        after_help = "Examples:\n  nsparse data scifact --out data\n  nsparse data msmarco --sample 2000\n  nsparse data convert --run run.trec --to msmarco --out run.tsv"
    )]
    Data(DataCommandArgs),
    /// Make the idf table of a corpus
    #[command(after_help = "Example:\n  nsparse idf --beir scifact --tokenizer minilm/tokenizer.json --out idf.json")]
    Idf(IdfArgs),
    /// Mine hard negatives for all training queries, by BM25 or by a trained model
    #[command(after_help = crate::mining::args::EXAMPLES)]
    Mine(MineArgs),
    /// Let teachers score training rows
    #[command(
        after_help = "Examples:\n  nsparse score rows.jsonl --teachers configs/kd.yaml --out scored.jsonl\n  nsparse score rows.jsonl --teachers teachers.yaml --beir scifact --out scored.jsonl\n\nRows {query, pos, negs} or {query, docs} become {query, docs, scores}, the positive first, which train.losses.kl:\n{teacher: rows} learns from. The file of teachers is a recipe, or holds its section `teachers` alone:\n  teachers: {members: [{kind: dense, path: models/minilm}, {kind: bm25}], scale: 30, cache: cache}\nWhat models compute is kept in the cache, so a command that was stopped goes on where it was."
    )]
    Score(ScoreArgs),
    /// Give a bare encoder, or a model for another language, its head: masked-language modelling, then pairs from texts
    #[command(
        after_help = "Examples:\n  nsparse pretrain recipe.yaml --check\n  nsparse pretrain recipe.yaml --set mlm.steps=2000 --set run.dir=runs/pretrained\n  nsparse pretrain recipe.yaml --resume\n\nA recipe of its own (docs/pretraining.md). Then: nsparse train RECIPE --set model.path=runs/pretrained/model"
    )]
    Pretrain(PretrainArgs),
    /// Show the recipes that come with the program, and the schema of their keys
    #[command(
        after_help = "Examples:\n  nsparse config list\n  nsparse config show scifact --out my.yaml\n  nsparse config schema --out recipe.schema.json"
    )]
    Config(ConfigCommandArgs),
    /// Train a document encoder as a configuration says
    #[command(
        after_help = "Examples:\n  nsparse train configs/scifact.yaml --check\n  nsparse train configs/scifact.yaml --set train.steps=200 --set run.dir=runs/short\n  nsparse train configs/scifact.yaml --resume\n  nsparse train configs/scifact.yaml --processes 4"
    )]
    Train(TrainArgs),
    /// One of the further processes of `train --processes`, which starts it
    #[command(hide = true)]
    TrainRank,
    /// Train a model's query table further, with documents and their vectors frozen
    #[command(
        after_help = "Examples:\n  nsparse tune-idf --model runs/scifact/model --beir scifact --out tuned\n  nsparse tune-idf --model model --data my-data --vectors vectors.nsv --epochs 20 --learning-rate 0.01 --out tuned\n  nsparse tune-idf --model model --data my-data --engine opensearch --url http://localhost:9200 --index articles --out tuned\n\nThe new folder has the same network; an index stays as it is. Of the held-out queries one half chooses the epoch, the other is measured once."
    )]
    TuneIdf(TuneIdfArgs),
    /// Export a model as TorchScript or ONNX, in packages that ML Commons takes
    #[command(
        after_help = "Examples:\n  nsparse export runs/scifact/model --out package --name my-encoder\n  nsparse export runs/scifact/model --out package --format onnx\n\nWith --format onnx the folder also gets NAME.onnx and tokenizer.json as they are, for onnxruntime itself: inputs input1.input_ids and input1.attention_mask (int64 [B,L]), output [B,V] with one weight a vocabulary entry."
    )]
    Export(ExportArgs),
    /// Register and deploy a package, make pipelines and index; or a new version behind an alias
    #[command(after_help = crate::commands::deploy::EXAMPLES)]
    Deploy(DeployArgs),
    /// Let an alias stand for another version, once that is filled and answers
    #[command(after_help = crate::commands::switch::EXAMPLES)]
    Switch(SwitchArgs),
    /// Let an alias stand for what it stood for before
    #[command(after_help = crate::commands::rollback::EXAMPLES)]
    Rollback(RollbackArgs),
    /// Show how a deployment or an index is doing: models, pipelines, documents, rates, nodes
    #[command(after_help = crate::commands::status::EXAMPLES)]
    Status(StatusArgs),
    /// Take back what a deploy made
    #[command(after_help = crate::commands::undeploy::EXAMPLES)]
    Undeploy(UndeployArgs),
    /// List the models that deploys have left in a cluster, and delete those that nothing uses
    #[command(after_help = crate::commands::prune_models::EXAMPLES)]
    PruneModels(PruneModelsArgs),
    /// Documents into an index: encoded here, by the cluster or before; changed or deleted
    #[command(after_help = crate::ingest::args::EXAMPLES)]
    Ingest(IngestArgs),
    /// The documents of an index into a new one, with a new model's vectors
    #[command(after_help = crate::ingest::args::REENCODE_EXAMPLES)]
    Reencode(ReencodeArgs),
    /// Encode documents into a file of vectors; stopped at any moment, the same command goes on
    #[command(
        after_help = "Examples:\n  nsparse encode --beir scifact --model runs/scifact/model --out vectors.jsonl\n  zcat docs.jsonl.gz | nsparse encode - --id-field id --model model --out vectors.nsv --format binary\n  nsparse encode docs.jsonl --model model --out part-1.nsv --format binary --shard 1/4\n\nShards become one file by `nsparse reduce`."
    )]
    Encode(EncodeArgs),
    /// Make one file of the shards of an encoding
    #[command(after_help = "Example:\n  nsparse reduce part-*.nsv --out vectors.nsv")]
    Reduce(ReduceArgs),
    /// Search an index
    #[command(
        after_help = "Examples:\n  nsparse search \"vitamin D and bone density\" --deployment deployment.json --model runs/scifact/model\n  nsparse search \"shard size\" --engine local --model quickstart/run/model --data quickstart/data --explain\n  nsparse search \"vitamin D\" --deployment deployment.json --filter 'year>=2015' --filter 'journal=Nature' --from 10\n  nsparse search \"vitamin D\" --deployment deployment.json --model runs/scifact/model --two-phase --highlight\n  nsparse search \"vitamin D\" --deployment deployment.json --method hybrid --weights 0.3,0.7"
    )]
    Search(SearchArgs),
    /// Measure rankings: nDCG, MAP, recall, precision, MRR
    #[command(
        after_help = "Examples:\n  nsparse eval --beir scifact --method bm25\n  nsparse eval --beir scifact --method sparse --model runs/scifact/model --engine local\n  nsparse eval --qrels qrels.txt --run run.txt --json\n  nsparse eval --all-checkpoints runs/scifact --beir scifact --split dev"
    )]
    Eval(EvalArgs),
    /// Show a text's vector as document and as query, heaviest terms first
    #[command(after_help = "Example:\n  nsparse inspect \"how large should a shard be\" --model quickstart/run/model")]
    Inspect(InspectArgs),
    /// Watch a training in the terminal, while it goes on or afterwards
    #[command(
        after_help = "Examples:\n  nsparse monitor runs/scifact\n  nsparse monitor runs/scifact --once\n  nsparse monitor runs/scifact --json\n\nq or Ctrl-C ends it; the training goes on."
    )]
    Monitor(MonitorArgs),
    /// Make one HTML page about a training: curves, evaluations, tokens, documents
    #[command(
        after_help = "Examples:\n  nsparse report runs/scifact\n  nsparse report runs/scifact --data scifact --documents 500 --out report.html\n\nThe page holds everything in itself. `nsparse train` writes it without tokens and documents."
    )]
    Report(ReportArgs),
    /// Measure this machine: training steps, encoding, searching, products
    #[command(
        after_help = "Examples:\n  nsparse bench train --layers 6 --hidden 384 --heads 12 --vocab 30522 --docs 16 --tokens 128\n  nsparse bench encode --model runs/scifact/model --data scifact --sample 600"
    )]
    Bench(BenchArgs),
    /// Print a shell's completions
    #[command(after_help = crate::commands::shell::COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Write a man page for every command
    #[command(after_help = crate::commands::shell::MAN_EXAMPLES)]
    Man(ManArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The folder that they go to; it is made
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// Where the documents, queries and judgments come from.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DataArgs {
    /// A BEIR data set by name; fetched if it is not there yet
    #[arg(long, value_name = "NAME", conflicts_with = "data")]
    pub(crate) beir: Option<String>,
    /// Own data: a folder with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where BEIR sets lie: the set's folder or its parent
    #[arg(long, value_name = "DIR", env = "NSPARSE_DATA")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Field of the id in jsonl files
    #[arg(long, value_name = "FIELD", default_value = "_id")]
    pub(crate) id_field: String,
    /// Field of the title in corpus.jsonl
    #[arg(long, value_name = "FIELD", default_value = "title")]
    pub(crate) title_field: String,
    /// Field of the text in jsonl files
    #[arg(long, value_name = "FIELD", default_value = "text")]
    pub(crate) text_field: String,
}

/// Where ranking happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// In OpenSearch
    Opensearch,
    /// In this process: no server
    Local,
}

#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// Where everything is written
    #[arg(long, value_name = "DIR", default_value = "quickstart")]
    pub(crate) out: PathBuf,
    /// Mine and rank in this process, or in a cluster that also gets the deployment
    #[arg(long, value_enum, default_value_t = Engine::Local)]
    pub(crate) engine: Engine,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterCommandArgs {
    #[command(subcommand)]
    pub(crate) command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Start a node and wait until it answers
    Up(ClusterUpArgs),
    /// Show the nodes that `up` started
    Status,
    /// Stop what `up` started
    Down(ClusterDownArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ClusterUpArgs {
    /// OpenSearch's version
    #[arg(long, default_value = "2.16.0")]
    pub(crate) version: String,
    /// Port on the loopback interface
    #[arg(long, default_value_t = 9200)]
    pub(crate) port: u16,
    /// Heap of the node's JVM
    #[arg(long, default_value = "1g")]
    pub(crate) heap: String,
    /// Another image than the official one
    #[arg(long, env = "NSPARSE_OPENSEARCH_IMAGE")]
    pub(crate) image: Option<String>,
    /// Container or assembled from Maven's artifacts
    #[arg(long, value_enum, default_value_t = NodeEngine::Auto)]
    pub(crate) engine: NodeEngine,
}

/// How the local node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NodeEngine {
    /// A container where an engine answers and has the image, else assembled
    Auto,
    /// A container
    Docker,
    /// Assembled through mvn and run with the machine's Java
    Assembled,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterDownArgs {
    /// Which node, by its port [default: all that `up` started]
    #[arg(long)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DataCommandArgs {
    #[command(subcommand)]
    pub(crate) command: Option<DataCommand>,
    /// The data set's BEIR name: scifact, nfcorpus, fiqa, …
    #[arg(required = true)]
    pub(crate) name: Option<String>,
    /// Where the set's folder is put
    #[arg(long, value_name = "DIR", env = "NSPARSE_DATA", default_value = "data")]
    pub(crate) out: PathBuf,
    /// Where the zip comes from
    #[arg(long, value_name = "URL", env = "NSPARSE_BEIR_URL", default_value = crate::commands::data::BEIR_URL)]
    pub(crate) base_url: String,
    /// The zip's md5 [default: what BEIR publishes for the name]
    #[arg(long, value_name = "HEX")]
    pub(crate) md5: Option<String>,
    /// Fetch it even if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct IdfArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// The tokenizer whose vocabulary is weighted: tokenizer.json or a folder with one
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: PathBuf,
    /// bm25: ln(1 + (N − df + 0.5)/(df + 0.5)); smooth: ln((N + 1)/(df + 1)) + 1
    #[arg(long, value_enum, default_value_t = Formula::Bm25)]
    pub(crate) formula: Formula,
    /// Document template: {title}, {text} and other fields of the corpus, such as {url}
    #[arg(long, default_value = "{title} {text}")]
    pub(crate) template: String,
    /// Most characters of a templated text
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) max_chars: usize,
    /// The table; its metadata lie beside it as idf.meta.json
    #[arg(long, value_name = "FILE", default_value = "idf.json")]
    pub(crate) out: PathBuf,
}

/// How an idf is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Formula {
    /// ln(1 + (N − df + 0.5)/(df + 0.5))
    Bm25,
    /// ln((N + 1)/(df + 1)) + 1
    Smooth,
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// The training rows (jsonl)
    pub(crate) rows: PathBuf,
    /// A recipe or another YAML file with a section `teachers`
    #[arg(long, value_name = "FILE")]
    pub(crate) teachers: PathBuf,
    /// The rows with scores
    #[arg(long, value_name = "FILE", default_value = "scored.jsonl")]
    pub(crate) out: PathBuf,
    /// The scores of the only teacher as they are, neither brought to one scale nor multiplied
    #[arg(long)]
    pub(crate) raw: bool,
    /// Where models are computed: cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Document template of the corpus that BM25 counts over; without a corpus it counts the rows' documents
    #[arg(long, default_value = "{title} {text}")]
    pub(crate) template: String,
    /// Most characters of a templated text
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(crate) max_chars: usize,
    #[command(flatten)]
    pub(crate) data: DataArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigCommandArgs {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// All recipes, with the most tokens each may read and what it is for
    List,
    /// A recipe's text, each line explained; with --json also every key with its value
    Show(ConfigShowArgs),
    /// The JSON schema of a recipe, for editors
    Schema(ConfigSchemaArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigShowArgs {
    /// The recipe's name
    pub(crate) name: String,
    /// Write it to a file of your own
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigSchemaArgs {
    /// Of the recipes of `nsparse pretrain`
    #[arg(long)]
    pub(crate) pretrain: bool,
    /// Write it to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// The recipe (YAML)
    pub(crate) config: PathBuf,
    /// Change a key of the recipe: `--set train.steps=200`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Read everything and report counts, lengths, truncation, estimated time and memory; train nothing
    #[arg(long, conflicts_with = "processes")]
    pub(crate) check: bool,
    /// Go on from the run directory's last checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
    /// Remove an earlier run in the run directory and begin anew
    #[arg(long, conflicts_with = "resume")]
    pub(crate) replace: bool,
    /// cpu, cpu-reference, cuda or cuda:N [default: what the recipe says]
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Processes that share each batch, each with its part of the cores; the result is one process's but for
    /// rounding
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) processes: u8,
}

#[derive(Debug, Args)]
pub(crate) struct PretrainArgs {
    /// The recipe (YAML)
    pub(crate) config: PathBuf,
    /// Change a key of the recipe: `--set mlm.steps=2000`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Read everything and report counts, lengths, pairs, estimated time and memory; train nothing
    #[arg(long)]
    pub(crate) check: bool,
    /// Go on from the run directory's last checkpoint
    #[arg(long)]
    pub(crate) resume: bool,
    /// Remove an earlier run in the run directory and begin anew
    #[arg(long, conflicts_with = "resume")]
    pub(crate) replace: bool,
    /// cpu, cpu-reference, cuda or cuda:N [default: what the recipe says]
    #[arg(long)]
    pub(crate) device: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The model directory
    pub(crate) model: PathBuf,
    /// Where the packages are written
    #[arg(long, value_name = "DIR", default_value = "package")]
    pub(crate) out: PathBuf,
    /// The package's name in the cluster
    #[arg(long, default_value = "nsparse-encoder")]
    pub(crate) name: String,
    /// The package's version in the cluster
    #[arg(long, default_value = "1.0.0")]
    pub(crate) package_version: String,
    /// What the document encoder is written for
    #[arg(long, value_enum, default_value_t = GraphFormat::Torchscript)]
    pub(crate) format: GraphFormat,
}

/// The form of an exported graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    /// libtorch, which ML Commons brings
    Torchscript,
    /// onnxruntime, which ML Commons brings too; the .onnx also lies beside the package
    Onnx,
}

/// Which engine computes documents' vectors.
#[derive(Debug, Clone, Args)]
pub(crate) struct RuntimeArgs {
    /// What computes the vectors
    #[arg(long, value_enum, default_value_t = Runtime::Nsparse)]
    pub(crate) runtime: Runtime,
    /// onnxruntime's shared library, or the folder that holds it [default: the one that
    /// scripts/fetch-onnxruntime.sh fetched, or the system's]
    #[arg(long, value_name = "FILE", env = "ORT_DYLIB_PATH", hide_env_values = true)]
    pub(crate) onnxruntime: Option<PathBuf>,
}

/// An engine for documents' vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Runtime {
    /// nsparse's own
    Nsparse,
    /// onnxruntime, loaded when asked for; --model may be a package that holds ONNX
    Onnxruntime,
}

/// Where documents are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EncodeSide {
    /// In the cluster where ML Commons is installed, else here
    Auto,
    /// In the cluster, by its ingest pipeline
    Cluster,
    /// Queries in the cluster, documents here by `nsparse ingest`: for nodes that cannot load libtorch
    Query,
    /// Here, by `nsparse ingest` and `nsparse search`
    Client,
}

/// What becomes of a long document's segments in an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SegmentLayout {
    /// One vector a document: the maximum over its segments
    Max,
    /// One nested object a segment: a document scores as its best segment
    Nested,
}

#[derive(Debug, Args)]
pub(crate) struct EncodeArgs {
    /// The documents: a file of jsonl, or `-` for standard input [or: --data, --beir]
    #[arg(value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    /// The model directory that encodes
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// The file of vectors; FILE.meta beside it says what made it
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// The file's form
    #[arg(long, value_enum, default_value_t = VectorFormat::Jsonl)]
    pub(crate) format: VectorFormat,
    /// How exactly weights are written
    #[arg(long, value_enum, default_value_t = WeightBits::Full)]
    pub(crate) weights: WeightBits,
    /// What weights are multiplied by before they are rounded to Anserini's integers [default: 100]
    #[arg(long, value_name = "FACTOR")]
    pub(crate) quantize: Option<u32>,
    /// Keep a part of each vector's entries alone: `max_ratio:R`, `top_k:N`, `alpha_mass:R` or `abs_value:W`
    #[arg(long, value_name = "RULE")]
    pub(crate) prune: Option<Pruning>,
    /// Only the I-th of N parts, counted from 1: blocks of documents go round
    #[arg(long, value_name = "I/N")]
    pub(crate) shard: Option<String>,
    /// Documents that are sorted by length, encoded and noted as done together
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) block: u64,
    /// Most tokens that are computed at once: speed against memory
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) batch_tokens: u64,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) threads: Option<u32>,
    /// Replace a file of another job, and begin anew where one was stopped
    #[arg(long)]
    pub(crate) force: bool,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,
}

/// The form of a file of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VectorFormat {
    /// {"id", "vector": {token: weight}} a line, as a `rank_features` field takes it
    Jsonl,
    /// {"id", "contents", "vector": {token: integer}} a line: Anserini's `JsonVectorCollection`
    Anserini,
    /// Token ids and weights, a fifth as large; knows its vocabulary and whether it is whole
    Binary,
}

/// How exactly weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightBits {
    /// As computed
    Full,
    /// Cut to the 9 significant bits that the engine keeps
    Stored,
}

#[derive(Debug, Args)]
pub(crate) struct ReduceArgs {
    /// The files of all shards, in any order
    #[arg(required = true, value_name = "SHARDS")]
    pub(crate) shards: Vec<PathBuf>,
    /// The file of all vectors
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Replace a file of another job
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// What is looked for
    pub(crate) query: String,
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// How documents are ranked
    #[arg(long, value_enum, default_value_t = Method::Sparse)]
    pub(crate) method: Method,
    /// Where ranking happens
    #[arg(long, value_enum, default_value_t = Engine::Opensearch)]
    pub(crate) engine: Engine,
    /// The model directory: its tokenizer and idf table make the query
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// The file that `nsparse deploy` wrote
    #[arg(long, value_name = "FILE")]
    pub(crate) deployment: Option<PathBuf>,
    /// The index, where there is no deployment
    #[arg(long, conflicts_with = "deployment")]
    pub(crate) index: Option<String>,
    /// How many documents are shown
    #[arg(long, short, default_value_t = 10)]
    pub(crate) k: usize,
    /// How many of the best documents are passed over first: the next page
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) from: usize,
    /// Only documents that match: field=value (all its words), field!=value, field>=value, or a clause in JSON; several
    /// must all match
    #[arg(long, value_name = "FILTER", value_parser = searching::filter)]
    pub(crate) filter: Vec<serde_json::Value>,
    /// Mark the query's words in titles and texts
    #[arg(long)]
    pub(crate) highlight: bool,
    /// Show which terms gave how much, the heaviest N of each document
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "10")]
    pub(crate) explain: Option<usize>,
    #[command(flatten)]
    pub(crate) how: QueryArgs,
}

/// How documents are ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// BM25 over title and text
    Bm25,
    /// Word pieces by BM25's tf part and the idf table: the model without its network
    Idf,
    /// The trained document encoder
    Sparse,
    /// The trained document encoder, each segment of a long document for itself: the best one counts
    Nested,
    /// BM25 and the trained document encoder together
    Hybrid,
}

#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    #[command(flatten)]
    pub(crate) data: DataArgs,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// How documents are ranked
    #[arg(long, value_enum, default_value_t = Method::Sparse)]
    pub(crate) method: Method,
    /// Where ranking happens [default: opensearch]
    #[arg(long, value_enum)]
    pub(crate) engine: Option<Engine>,
    #[command(flatten)]
    pub(crate) query: QueryArgs,
    /// Which split is judged
    #[arg(long, default_value = "test")]
    pub(crate) split: String,
    /// The model directory (sparse), or a folder with tokenizer.json and, if there is one, idf.json (idf)
    #[arg(long, value_name = "DIR")]
    pub(crate) model: Option<PathBuf>,
    /// Measure every checkpoint that a run has kept, its warm start and its model, in this process
    #[arg(long, value_name = "RUN", conflicts_with_all = ["model", "qrels", "run", "baseline", "out", "clean"])]
    pub(crate) all_checkpoints: Option<PathBuf>,
    /// What --all-checkpoints is sorted out by
    #[arg(long, default_value = "ndcg@10", requires = "all_checkpoints")]
    pub(crate) metric: String,
    /// Which one the others are compared with
    #[arg(long, value_enum, default_value_t = Against::First, requires = "all_checkpoints")]
    pub(crate) against: Against,
    /// Analyzer of BM25's fields in OpenSearch
    #[arg(long, default_value = "english")]
    pub(crate) analyzer: String,
    /// Judgments of a ranking on files alone
    #[arg(long, value_name = "FILE", requires = "run")]
    pub(crate) qrels: Option<PathBuf>,
    /// The ranking that is judged (TREC or MS MARCO form); several, such as one a seed: each query's mean over them
    #[arg(long, value_name = "FILE", requires = "qrels", value_delimiter = ',')]
    pub(crate) run: Vec<PathBuf>,
    /// A second ranking of the same queries: the difference is shown with its paired interval; several as with --run
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    pub(crate) baseline: Vec<PathBuf>,
    /// Cut-offs beside 1, 3, 5, 10, 100 and 1000
    #[arg(long, value_name = "K", value_delimiter = ',')]
    pub(crate) k: Vec<usize>,
    /// Smallest grade that counts as relevant
    #[arg(long, value_name = "GRADE", default_value_t = 1)]
    pub(crate) level: i64,
    /// How many documents are ranked for a query
    #[arg(long, default_value_t = 1000)]
    pub(crate) depth: usize,
    /// Folder for the ranking, per-query.jsonl and summary.json
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The written ranking's form: run.trec, or MS MARCO's in run.tsv
    #[arg(long, value_enum, default_value_t = RunForm::Trec, requires = "out")]
    pub(crate) run_format: RunForm,
    /// Remove the indexes that eval made in the cluster for this data, and stop
    #[arg(long)]
    pub(crate) clean: bool,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

/// Which checkpoint the others are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Against {
    /// The one with the fewest steps
    First,
    /// The best
    Best,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// The text
    pub(crate) text: String,
    /// The model directory
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    /// How many terms are shown
    #[arg(long, short, default_value_t = 30)]
    pub(crate) k: usize,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

#[derive(Debug, Args)]
pub(crate) struct MonitorArgs {
    /// The run directory
    pub(crate) run: PathBuf,
    /// Print one snapshot and stop
    #[arg(long)]
    pub(crate) once: bool,
    /// Seconds between two looks [default: 1; 30 where there is no terminal]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) every: Option<f64>,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// The run directory
    pub(crate) run: PathBuf,
    /// Data sets that documents are drawn from [default: what the recipe trains on]
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub(crate) data: Vec<PathBuf>,
    /// The page [default: report.html in the run directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// How many documents are encoded with the run's model; 0: none
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub(crate) documents: usize,
    /// cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}
