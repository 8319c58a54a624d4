//! From typed arguments to what the program works with: data sets, clusters, formulas. Resolved once, at the edge.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nsparse_core::beir::{Dataset, FieldNames};
use nsparse_core::{Cancel, DocumentTemplate, IdfFormula, journal};
use nsparse_opensearch::{Body, Cluster, ClusterConfig, Error, Method, RetryPolicy};

use crate::cli::{ClusterArgs, DataArgs, Formula};
use crate::commands::data;
use crate::connect;
use crate::failure::usage;
use crate::printer::Printer;

/// Where fetched data, assembled nodes and journals lie: `NSPARSE_CACHE`, else the user's cache folder.
pub(crate) fn cache_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("NSPARSE_CACHE") {
        return PathBuf::from(dir);
    }
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME") {
        return PathBuf::from(dir).join("nsparse");
    }
    match std::env::var_os("HOME") {
        Some(home) => PathBuf::from(home).join(".cache/nsparse"),
        None => std::env::temp_dir().join("nsparse-cache"),
    }
}

/// The journal of what goes into one place of a cluster, such as an index: the same command finds it again.
pub(crate) fn journal(cluster: &Cluster, place: &str) -> PathBuf {
    let name = journal::content_hash(format!("{} {place}", cluster.url()).as_bytes());
    cache_dir().join("journals").join(name)
}

/// Work is done by so many threads from now on; by all cores where `None`.
pub(crate) fn limit_threads(threads: Option<u32>) -> anyhow::Result<()> {
    if let Some(threads) = threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build_global()?;
    }
    Ok(())
}

/// The data set that `--beir`, `--data` and `--data-dir` name; a BEIR set that is nowhere is fetched.
pub(crate) fn dataset(args: &DataArgs, printer: &Printer) -> anyhow::Result<Dataset> {
    let fields =
        FieldNames { id: args.id_field.clone(), title: args.title_field.clone(), text: args.text_field.clone() };
    let mut found = match (&args.data, &args.beir) {
        (Some(folder), _) => Dataset::open(folder)?,
        (None, Some(name)) => beir(name, args.data_dir.as_deref(), printer)?,
        (None, None) => {
            return Err(usage("No data is named", "give --beir NAME for a BEIR set or --data DIR for your own"));
        }
    };
    found.fields = fields;
    Ok(found)
}

fn beir(name: &str, data_dir: Option<&Path>, printer: &Printer) -> anyhow::Result<Dataset> {
    if let Some(folder) = data_dir {
        // What the user names is used or refused; nothing is fetched behind their back.
        return Dataset::find(folder, name).ok_or_else(|| {
            usage(
                format!("`{}` holds no data set `{name}`", folder.display()),
                nsparse_core::beir::expected_files(&folder.join(name)),
            )
        });
    }
    let cache = cache_dir().join("data");
    if let Some(found) = [Path::new("data"), cache.as_path()].iter().find_map(|f| {
        let set = f.join(name);
        Dataset::open(&set).ok()
    }) {
        return Ok(found);
    }
    let folder = data::fetch(name, &cache, data::BEIR_URL, None, printer)?;
    Ok(Dataset::open(&folder)?)
}

/// The idf formula typed.
pub(crate) fn formula(formula: Formula) -> IdfFormula {
    match formula {
        Formula::Bm25 => IdfFormula::Bm25,
        Formula::Smooth => IdfFormula::Smooth,
    }
}

/// A document template typed, checked.
pub(crate) fn template(pattern: &str, max_chars: usize) -> anyhow::Result<DocumentTemplate> {
    let template = DocumentTemplate { pattern: pattern.to_owned(), max_chars };
    template.validate()?;
    Ok(template)
}

/// `tokenizer.json` itself or a folder with one.
pub(crate) fn tokenizer_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("tokenizer.json") } else { path.to_path_buf() }
}

/// The compute device typed.
pub(crate) fn device(text: &str) -> anyhow::Result<nsparse_encoder::Device> {
    Ok(text.parse()?)
}

/// A flag that Ctrl-C and SIGTERM set: long jobs stop at their next safe point. A second signal ends at once.
pub(crate) fn cancel_on_signal() -> Cancel {
    // One for the whole program: only the first handler stays.
    static SIGNALLED: OnceLock<Cancel> = OnceLock::new();
    SIGNALLED
        .get_or_init(|| {
            let cancel = Cancel::default();
            let flag = cancel.clone();
            let _ = ctrlc::set_handler(move || {
                if flag.is_cancelled() {
                    std::process::abort();
                }
                flag.cancel();
            });
            cancel
        })
        .clone()
}

/// Connects to the cluster that the settings name (`connect`), or to the node of `nsparse cluster up`.
pub(crate) fn cluster(args: &ClusterArgs) -> anyhow::Result<Cluster> {
    connect(&connect::config(args, local_node_url)?)
}

/// As [`cluster`], with the URL that a deployment names unless the settings name another.
pub(crate) fn cluster_of(args: &ClusterArgs, url: &str) -> anyhow::Result<Cluster> {
    connect(&connect::config(args, || Ok(url.to_owned()))?)
}

/// As [`cluster_of`], or [`cluster`] without a URL, for what is asked again and again: no request is sent twice.
pub(crate) fn cluster_without_retries(args: &ClusterArgs, url: Option<&str>) -> anyhow::Result<Cluster> {
    let config = connect::config(args, || url.map_or_else(local_node_url, |url| Ok(url.to_owned())))?;
    checked(Cluster::connect_with(&config, RetryPolicy { retries: 0, ..RetryPolicy::default() })?)
}

fn connect(config: &ClusterConfig) -> anyhow::Result<Cluster> {
    checked(Cluster::connect(config)?)
}

fn checked(cluster: Cluster) -> anyhow::Result<Cluster> {
    // Asked once: requests are repeated patiently later on, but a wrong address or password shows at once.
    match cluster.request(Method::Get, "/", Body::None) {
        Err(error @ (Error::Unreachable { .. } | Error::Unauthorized { .. })) => Err(error.into()),
        _ => Ok(cluster),
    }
}

/// Where local nodes are kept, if `NSPARSE_CACHE` says so; else the node's own choice.
pub(crate) fn node_dir() -> Option<PathBuf> {
    std::env::var_os("NSPARSE_CACHE").map(PathBuf::from)
}

fn local_node_url() -> anyhow::Result<String> {
    nsparse_opensearch::node::default_url(node_dir().as_deref())?.ok_or_else(|| {
        usage(
            "No cluster is named and no single local node runs",
            "start one with `nsparse cluster up`, or give --url, or rank without a server: --engine local",
        )
    })
}
