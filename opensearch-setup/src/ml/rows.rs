//! The rows of the message table: a text of the cluster, what it means, what to do.

use nsparse_core::Fault;

use super::causes::{Cause, Step};

/// One row. The first whose `text` is contained in a reason, at one of its steps, explains it.
#[derive(Debug)]
pub(super) struct Row {
    /// Contained in the cluster's answer.
    pub(super) text: &'static str,
    /// Where the row holds; empty: everywhere.
    pub(super) steps: &'static [Step],
    /// The kind of cause.
    pub(super) cause: Cause,
    /// Whose fault it is.
    pub(super) fault: Fault,
    /// What it means; follows "Failed to … model `x`: ".
    pub(super) says: &'static str,
    /// What to do.
    pub(super) hint: &'static str,
}

const EVERYWHERE: &[Step] = &[];

const fn row(
    text: &'static str,
    steps: &'static [Step],
    cause: Cause,
    fault: Fault,
    says: &'static str,
    hint: &'static str,
) -> Row {
    Row { text, steps, cause, fault, says, hint }
}

/// What is known of an answer with this HTTP status whose words no row knows.
#[derive(Debug)]
pub(super) struct Status {
    pub(super) http: u16,
    pub(super) cause: Cause,
    pub(super) fault: Fault,
    pub(super) hint: &'static str,
}

/// By HTTP status.
pub(super) const STATUSES: &[Status] = &[
    Status {
        http: 401,
        cause: Cause::Denied,
        fault: Fault::Usage,
        hint: "the cluster does not know this user or password: check the user name, the password and the URL",
    },
    Status {
        http: 403,
        cause: Cause::Denied,
        fault: Fault::Usage,
        hint: "this user may not do that: it needs the role ml_full_access, and rights to manage the index and the \
               ingest pipeline",
    },
    Status {
        http: 404,
        cause: Cause::NotFound,
        fault: Fault::World,
        hint: "it is not in this cluster: check the URL and the id",
    },
    Status {
        http: 429,
        cause: Cause::Limit,
        fault: Fault::World,
        hint: "the cluster has too much to do: wait and run the same command again",
    },
];

/// Every other answer.
pub(super) const UNKNOWN: Status = Status {
    http: 0,
    cause: Cause::Unknown,
    fault: Fault::World,
    hint: "nsparse does not know this answer; the log of the OpenSearch node has the whole error",
};

const PACKAGE_HINT: &str = "make the package again with `nsparse export` and deploy that";
const FREE_DISK: &str = "free disk space: below the high watermark the cluster lifts the block by itself; else PUT \
                         /INDEX/_settings {\"index.blocks.read_only_allow_delete\": null}";
const REGISTER_AGAIN: &str = "run `nsparse deploy` again: the package is then registered and uploaded anew";

/// More specific texts stand before those that they contain.
pub(super) const ROWS: &[Row] = &[
    // Switched off, forbidden, absent.
    row(
        "allow_registering_model_via_local_file",
        EVERYWHERE,
        Cause::SwitchedOff,
        Fault::World,
        "this cluster does not take uploaded models",
        "an administrator can allow it: PUT /_cluster/settings {\"persistent\": \
         {\"plugins.ml_commons.allow_registering_model_via_local_file\": true}}; or deploy with `--side client`, \
         which needs no model in the cluster",
    ),
    row(
        "allow_registering_model_via_url",
        EVERYWHERE,
        Cause::SwitchedOff,
        Fault::World,
        "this cluster does not take models by URL",
        "deploy with `nsparse deploy`, which uploads the package in chunks, or set \
         plugins.ml_commons.allow_registering_model_via_url to true",
    ),
    row(
        "Local Model is currently disabled",
        EVERYWHERE,
        Cause::SwitchedOff,
        Fault::World,
        "this cluster runs no models of its own",
        "an administrator can allow it: PUT /_cluster/settings {\"persistent\": \
         {\"plugins.ml_commons.local_model.enabled\": true}}; or deploy with `--side client`, which needs no model in the \
         cluster",
    ),
    row(
        "have privilege to perform this operation on this model",
        EVERYWHERE,
        Cause::Denied,
        Fault::Usage,
        "model access control is on, and this user may not use the model's group",
        "work as the user who deployed, or have an administrator (role ml_full_access) share the group with this user's \
         backend roles",
    ),
    row(
        "have permissions to perform this operation on this model",
        EVERYWHERE,
        Cause::Denied,
        Fault::Usage,
        "model access control is on, and this user may not use the model's group",
        "work as the user who deployed, or have an administrator (role ml_full_access) share the group with this user's \
         backend roles",
    ),
    row(
        "no permissions for [",
        EVERYWHERE,
        Cause::Denied,
        Fault::Usage,
        "the security plugin does not let this user do it",
        "have an administrator give the user a role with the permission named: ml_full_access for models, and rights to \
         manage the index, its aliases and pipelines",
    ),
    row(
        "no handler found for uri",
        EVERYWHERE,
        Cause::NoMlCommons,
        Fault::World,
        "the cluster has no such interface: ML Commons is not installed there",
        "deploy with `--side client`: documents and queries are then encoded by nsparse and no plugin is needed",
    ),
    row(
        "no eligible node found",
        EVERYWHERE,
        Cause::NoEligibleNode,
        Fault::World,
        "only nodes with the role `ml` may run models here, and the cluster has none",
        "add a node with the role `ml`, or let data nodes run models: PUT /_cluster/settings {\"persistent\": \
         {\"plugins.ml_commons.only_run_on_ml_node\": false}}; or deploy with `--side client`",
    ),
    // Limits.
    row(
        "Native Memory Circuit Breaker is open",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the machine of the node is short of memory, so ML Commons refuses work",
        "free memory on that machine, undeploy models that nobody uses, or raise \
         plugins.ml_commons.native_memory_threshold (100 switches the check off)",
    ),
    row(
        "Disk Circuit Breaker is open",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the disk of the node is nearly full, so ML Commons refuses work",
        "free disk space on the node (plugins.ml_commons.disk_free_space_threshold is 5 GB by default)",
    ),
    row(
        "Memory Circuit Breaker is open",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the Java heap of the node is too full, so ML Commons refuses work",
        "give the node a larger heap, undeploy models that nobody uses, or raise \
         plugins.ml_commons.jvm_heap_memory_threshold (85 by default, 100 switches the check off)",
    ),
    row(
        "Exceed max local model per node limit",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the node runs as many models as it may",
        "undeploy models that nobody uses, or raise plugins.ml_commons.max_model_on_node (10 by default)",
    ),
    row(
        "exceed max running task limit",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the node runs as many ML tasks as it may",
        "wait for the other tasks and run the same command again, or raise \
         plugins.ml_commons.max_deploy_model_tasks_per_node and max_ml_task_per_node",
    ),
    row(
        "Failed to Validate Access for ModelId",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the cluster could not look the model up; it says so too when a memory circuit breaker is open",
        "look at the nodes' memory with `nsparse status`; free memory or undeploy models that nobody uses, then run the \
         same command again",
    ),
    // Blocks: what a cluster or an operator has switched off for an index or for all.
    row(
        "read-only-allow-delete block",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "a node's disk is fuller than the flood-stage watermark, so the index can only be read and deleted",
        FREE_DISK,
    ),
    row(
        "index read-only / allow delete (api)",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the index can only be read and deleted, usually because a node's disk is nearly full",
        FREE_DISK,
    ),
    row(
        "cluster create-index blocked",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the cluster makes no new index: the disks of all nodes are nearly full, or an operator has switched it off",
        "free disk space or add nodes; where it was switched off by hand: PUT /_cluster/settings {\"persistent\": \
         {\"cluster.blocks.create_index\": null}}",
    ),
    row(
        "cluster read-only",
        EVERYWHERE,
        Cause::SwitchedOff,
        Fault::World,
        "the whole cluster is read-only",
        "an administrator can lift it: PUT /_cluster/settings {\"persistent\": {\"cluster.blocks.read_only\": null, \
         \"cluster.blocks.read_only_allow_delete\": null}}; see why it was set first",
    ),
    row(
        "index read-only (api)",
        EVERYWHERE,
        Cause::SwitchedOff,
        Fault::World,
        "an operator has made the index read-only",
        "lift it, if that is right: PUT /INDEX/_settings {\"index.blocks.read_only\": null}",
    ),
    row(
        "index write (api)",
        EVERYWHERE,
        Cause::SwitchedOff,
        Fault::World,
        "writing to the index is switched off, as before a shrink or a copy",
        "lift it, if that is right: PUT /INDEX/_settings {\"index.blocks.write\": null}",
    ),
    row(
        "state not recovered / initialized",
        EVERYWHERE,
        Cause::Limit,
        Fault::World,
        "the cluster is starting, or too few of its nodes are there",
        "wait until `nsparse doctor` finds the cluster ready, and run the same command again",
    ),
    row(
        "blocked by: [",
        EVERYWHERE,
        Cause::SwitchedOff,
        Fault::World,
        "a block of the index or the cluster forbids it",
        "see `index.blocks.*` of the index and `cluster.blocks.*`: GET /INDEX/_settings, GET /_cluster/settings",
    ),
    // The model's content.
    row(
        "model content changed",
        &[Step::RegisterUrl],
        Cause::ContentChanged,
        Fault::Usage,
        "the zip behind the URL has another sha256 than the register body names",
        PACKAGE_HINT,
    ),
    row(
        "model content changed",
        EVERYWHERE,
        Cause::ContentChanged,
        Fault::World,
        "the bytes that the node put together have another sha256 than was registered; a node that died during an \
         earlier deploy leaves such a file behind, and so does a broken upload",
        REGISTER_AGAIN,
    ),
    row(
        "model content hash can't match",
        EVERYWHERE,
        Cause::ContentChanged,
        Fault::World,
        "the bytes that the node put together have another sha256 than was registered",
        REGISTER_AGAIN,
    ),
    row(
        "Fail to find model chunk",
        EVERYWHERE,
        Cause::ContentChanged,
        Fault::World,
        "a chunk of the model is missing in the cluster",
        REGISTER_AGAIN,
    ),
    row(
        "Failed to deploy model",
        &[Step::Deploy],
        Cause::ContentChanged,
        Fault::World,
        "the node could not put the model together from its chunks: one is missing or cannot be read",
        REGISTER_AGAIN,
    ),
    row(
        "Tokenizer file not exits",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the package has no tokenizer.json at its root",
        PACKAGE_HINT,
    ),
    row(
        "No tokenizer file",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the package has no tokenizer.json at its root",
        PACKAGE_HINT,
    ),
    row(
        ".pt file not found in",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the package has no TorchScript archive (.pt), although it is registered as a document encoder",
        PACKAGE_HINT,
    ),
    row(
        "Can't find model file",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the package has neither a .pt nor an .onnx file",
        PACKAGE_HINT,
    ),
    row(
        "found multiple models",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the package has several model files; exactly one .pt or .onnx is allowed",
        PACKAGE_HINT,
    ),
    row(
        "Find multiple model files",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the package has several model files; exactly one .pt or .onnx is allowed",
        PACKAGE_HINT,
    ),
    row(
        "PytorchStreamReader failed",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the .pt file in the package is no TorchScript archive",
        PACKAGE_HINT,
    ),
    row(
        "Unknown builtin op",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the archive uses an operator that the node's libtorch does not have (OpenSearch 2.16 to 2.19 run 1.13)",
        "export with `nsparse export`, which writes only operators of libtorch 1.13; a file traced by a newer \
         PyTorch does not run there",
    ),
    row(
        "Invalid input tensor name",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the inputs of the ONNX graph are not named as ML Commons feeds them",
        "the graph's inputs must be named input1.input_ids and input1.attention_mask; TorchScript needs no such names",
    ),
    row(
        "Archive is not a ZIP archive",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "the uploaded file is no zip",
        PACKAGE_HINT,
    ),
    row("Bad zip entry", EVERYWHERE, Cause::Package, Fault::Usage, "a path in the zip leaves the zip", PACKAGE_HINT),
    row(
        "Model missing. at line",
        EVERYWHERE,
        Cause::Package,
        Fault::Usage,
        "tokenizer.json in the package is not a Hugging Face tokenizer",
        PACKAGE_HINT,
    ),
    row(
        "For input string",
        &[Step::Upload],
        Cause::Request,
        Fault::Usage,
        "the chunk's number is not a number",
        "number the chunks 0, 1, 2, … in the path",
    ),
    row(
        "For input string",
        &[Step::Deploy],
        Cause::Package,
        Fault::Usage,
        "idf.json in the package holds a value that is no number",
        PACKAGE_HINT,
    ),
    row(
        "Duplicate key",
        &[Step::Predict, Step::Search],
        Cause::Package,
        Fault::Usage,
        "two ids of the tokenizer decode to the same string, which this version cannot tell apart",
        "use a WordPiece vocabulary without such doubles",
    ),
    // libtorch on the node.
    row(
        "Offline model is enabled",
        EVERYWHERE,
        Cause::Natives,
        Fault::World,
        "the node has no libtorch and may not fetch one",
        "put libtorch and DJL's JNI library into data/ml_cache/pytorch on every node, or deploy with \
         `--side query`: documents are then encoded by nsparse, and only the query tokenizer runs in the cluster",
    ),
    row(
        "publish.djl.ai",
        EVERYWHERE,
        Cause::Natives,
        Fault::World,
        "the node has no libtorch and could not fetch it from publish.djl.ai",
        "let the node reach publish.djl.ai once, put libtorch into data/ml_cache/pytorch on every node, or deploy \
         with `--side client`",
    ),
    row(
        "Failed to load PyTorch native library",
        EVERYWHERE,
        Cause::Natives,
        Fault::World,
        "the node's libtorch cannot be loaded",
        "remove data/ml_cache/pytorch on that node and deploy again, so that it is fetched anew; the node's log has \
         the linker's message",
    ),
    // States.
    row(
        "Model cannot be deleted in deploying or deployed state",
        EVERYWHERE,
        Cause::State,
        Fault::Usage,
        "it is still deployed",
        "undeploy it first: `nsparse undeploy` does both",
    ),
    row(
        "Cannot delete the model group when it has associated model versions",
        EVERYWHERE,
        Cause::State,
        Fault::Usage,
        "the group still has models",
        "delete its models first, or leave the group: an empty group costs nothing",
    ),
    row(
        "Model not ready yet",
        EVERYWHERE,
        Cause::State,
        Fault::Usage,
        "it is registered, but not deployed",
        "deploy it first with `nsparse deploy`",
    ),
    row(
        "Fail to find task",
        EVERYWHERE,
        Cause::NotFound,
        Fault::World,
        "the cluster has no such task",
        "check that the URL is the cluster that the task was started on",
    ),
    row(
        "Failed to find model group",
        EVERYWHERE,
        Cause::NotFound,
        Fault::World,
        "the cluster has no such model group",
        "deploy again: the group is made anew",
    ),
    row(
        "Failed to find model",
        EVERYWHERE,
        Cause::NotFound,
        Fault::World,
        "the cluster has no such model",
        "check the URL and the id in deployment.json; if the model was deleted there, deploy again",
    ),
    row(
        "is already being used by",
        &[Step::Group, Step::Register],
        Cause::Exists,
        Fault::Usage,
        "another model group has this name",
        "choose another name with `--index`",
    ),
    // Requests.
    row(
        "model format is null",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the register body has no `model_format`",
        PACKAGE_HINT,
    ),
    row(
        "Wrong function name",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the register body's `function_name` is none that this version knows",
        "use SPARSE_ENCODING for the document encoder and SPARSE_TOKENIZE for the query side",
    ),
    row(
        "Wrong model format",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the register body's `model_format` is none that this version knows",
        "use TORCH_SCRIPT or ONNX",
    ),
    row(
        "total chunks field is null",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the register body has no `total_chunks`",
        "give the number of chunks: the zip's size divided by 10,000,000, rounded up",
    ),
    row(
        "model content hash value is null",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the register body has no `model_content_hash_value`",
        "give the zip's sha256 in hex; `nsparse export` writes it",
    ),
    row(
        "Model content Hash code need to be provided",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the register body has no `model_content_hash_value`",
        "give the zip's sha256 in hex; `nsparse export` writes it",
    ),
    row(
        "embedding dimension is null",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the register body has a `model_config`, which ML Commons reads as that of a dense model",
        "leave `model_config` out: sparse models need none",
    ),
    row(
        "URL can't match trusted url regex",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the cluster does not trust this URL",
        "use a URL that matches plugins.ml_commons.trusted_url_regex, or upload with `nsparse deploy`",
    ),
    row(
        "http",
        &[Step::RegisterUrl],
        Cause::NotFound,
        Fault::World,
        "the node could not read the zip behind the URL",
        "check that the node, not only this machine, can fetch the URL; or upload with `nsparse deploy`",
    ),
    row(
        "Chunk number exceeds total chunks",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "more chunks were sent than registered",
        REGISTER_AGAIN,
    ),
    row(
        "Chunk size exceeds 10MB",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "a chunk is larger than 10,000,000 bytes",
        "send chunks of at most 10,000,000 bytes",
    ),
    row(
        "Chunk size either 0 or null",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "a chunk is empty",
        "check that the zip in the package is not empty",
    ),
    row(
        "Empty text docs",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "there is no text",
        "give at least one text; an empty string is allowed",
    ),
    // Pipelines, documents, searches.
    row(
        "doesn't support one or more provided configuration parameters",
        &[Step::Pipeline],
        Cause::Request,
        Fault::World,
        "this version's processor does not know one of the options",
        "sparse_encoding takes a batch size (`--batch-size`) from OpenSearch 2.16 on, pruning (`--prune`) from 2.19 on: leave \
         them out here",
    ),
    row(
        "No processor type exists with name [sparse_encoding]",
        EVERYWHERE,
        Cause::NoMlCommons,
        Fault::World,
        "the cluster has no neural-search plugin",
        "deploy with `--side client`: nsparse then encodes the documents itself",
    ),
    row(
        "two_phase_parameter.prune_ratio must be within",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the two-phase prune ratio is out of its range",
        "give a prune_ratio between 0 and 1",
    ),
    row(
        "featureValue must be a positive normal float",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "a weight in the document's vector is not above zero",
        "leave out tokens whose weight is not positive and finite",
    ),
    row(
        "[rank_features] fields take hashes",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the document's vector is not an object from token to weight",
        "give the vector as {\"token\": weight, …}",
    ),
    row(
        "weight must be in (0, 64.0]",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "a query token's weight is outside (0, 64]",
        "keep the weights of idf.json within (0, 64]; `nsparse idf` does",
    ),
    row(
        "query_text and model_id cannot be null",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the query names no model",
        "give `model_id` (the query model in deployment.json) or `query_tokens`",
    ),
    row(
        "query_text field can not be empty",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the query text is empty",
        "give a query with at least one word",
    ),
    row(
        "[neural_sparse] query only works on [rank_features] fields",
        EVERYWHERE,
        Cause::Request,
        Fault::Usage,
        "the field searched is not a rank_features field of this index",
        "check the vector field's name in deployment.json and the index's mapping",
    ),
    row(
        "maxClauseCount is set to",
        EVERYWHERE,
        Cause::Limit,
        Fault::Usage,
        "the query has more tokens than the engine allows clauses",
        "shorten the query, or raise indices.query.bool.max_clause_count (1024 by default)",
    ),
    row(
        "an index exists with the same name as the alias",
        EVERYWHERE,
        Cause::Exists,
        Fault::Usage,
        "an index has the alias's name",
        "choose another name with `--alias`, or delete that index",
    ),
    row(
        "is not defined",
        &[Step::Search],
        Cause::NotFound,
        Fault::World,
        "the search pipeline that the index names is gone",
        "run the same `nsparse deploy` again: it makes the pipeline anew",
    ),
    row(
        "pipeline with id [",
        &[Step::Ingest],
        Cause::NotFound,
        Fault::World,
        "the ingest pipeline that the index names is gone",
        "run the same `nsparse deploy` again: it makes the pipeline anew",
    ),
    row(
        "] already exists",
        EVERYWHERE,
        Cause::Exists,
        Fault::Usage,
        "it is there already",
        "choose another name, or delete what is there",
    ),
    row(
        "no such index",
        EVERYWHERE,
        Cause::NotFound,
        Fault::World,
        "the cluster has no such index",
        "check the URL and the index name; `nsparse deploy` makes the index",
    ),
];
