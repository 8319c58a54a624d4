//! `nsparse data NAME`: fetches a BEIR data set's zip, checks its md5 and unpacks it.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use nsparse_core::Error;
use nsparse_core::beir::{Dataset, expected_files};

use crate::ExitStatus;
use crate::cli::DataCommandArgs;
use crate::commands::{convert, msmarco, sentences};
use crate::data_args::DataCommand;
use crate::failure::{usage, world};
use crate::printer::Printer;
use crate::{download, settings};

/// Where BEIR's zips lie.
pub(crate) const BEIR_URL: &str = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets";

/// BEIR's names and the md5 of each zip, as BEIR publishes them.
const BEIR_MD5: [(&str, &str); 15] = [
    ("msmarco", "444067daf65d982533ea17ebd59501e4"),
    ("trec-covid", "ce62140cb23feb9becf6270d0d1fe6d1"),
    ("nfcorpus", "a89dba18a62ef92f7d323ec890a0d38d"),
    ("nq", "d4d3d2e48787a744b6f6e691ff534307"),
    ("hotpotqa", "f412724f78b0d91183a0e86805e16114"),
    ("fiqa", "17918ed23cd04fb15047f73e6c3bd9d9"),
    ("arguana", "8ad3e3c2a5867cdced806d6503f29b99"),
    ("webis-touche2020", "46f650ba5a527fc69e0a6521c5a23563"),
    ("cqadupstack", "4e41456d7df8ee7760a7f866133bda78"),
    ("quora", "18fb154900ba42a600f84b839c173167"),
    ("dbpedia-entity", "c2a39eb420a3164af735795df012ac2c"),
    ("scidocs", "38121350fc3a4d2f48850f6aff52e4a9"),
    ("fever", "5a818580227bfb4b35bb6fa46d9b6c03"),
    ("climate-fever", "8b66f0a9126c521bae2bde127b4dc99d"),
    ("scifact", "5f7d1de60b170fc8027bb7898e2efca1"),
];

pub(crate) fn run(args: &DataCommandArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let name = match (&args.command, &args.name) {
        (Some(DataCommand::Msmarco(args)), _) => return msmarco::run(args, printer),
        (Some(DataCommand::Convert(args)), _) => return convert::run(args, printer),
        (Some(DataCommand::Sentences(args)), _) => return sentences::run(args, printer),
        (None, Some(name)) => name,
        (None, None) => return Err(usage("No data set is named", "give the name of a BEIR set, such as scifact")),
    };
    let there = args.out.join(name);
    let folder = if Dataset::open(&there).is_ok() && !args.force {
        printer.note(format!("`{}` is there already (--force fetches it anew)", there.display()));
        there
    } else {
        fetch(name, &args.out, &args.base_url, args.md5.as_deref(), printer)?
    };
    let set = Dataset::open(&folder)?;
    let documents = set.corpus()?.len();
    let queries = set.queries()?.len();
    printer.text(format!(
        "{}: {documents} documents, {queries} queries, splits {}\n{}",
        set.name,
        set.splits().join(", "),
        folder.display()
    ));
    printer.json(&serde_json::json!({
        "name": set.name, "folder": folder, "documents": documents, "queries": queries, "splits": set.splits(),
    }))?;
    Ok(ExitStatus::Success)
}

/// Fetches `name` into `out/name` and returns that folder. `md5` overrides BEIR's own table.
pub(crate) fn fetch(
    name: &str,
    out: &Path,
    base_url: &str,
    md5: Option<&str>,
    printer: &Printer,
) -> anyhow::Result<PathBuf> {
    let expected = match md5 {
        Some(md5) => md5.to_ascii_lowercase(),
        None => BEIR_MD5.iter().find(|(n, _)| *n == name).map(|(_, md5)| (*md5).to_owned()).ok_or_else(|| {
            let names: Vec<&str> = BEIR_MD5.iter().map(|(n, _)| *n).collect();
            usage(format!("BEIR has no data set `{name}` to fetch"), format!("names: {}", names.join(", ")))
        })?,
    };
    let target = out.join(name);
    std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    let aside =
        tempfile::Builder::new().prefix(".nsparse-fetch-").tempdir_in(out).map_err(|e| Error::io("create", out, e))?;
    let url = format!("{}/{name}.zip", base_url.trim_end_matches('/'));
    let zip = aside.path().join("set.zip");
    let hint = format!("without a network, put the set's files there by hand; {}", expected_files(&target));
    download::to_file(&url, &zip, &hint, &settings::cancel_on_signal(), printer)?;
    let found = download::md5_of(&zip)?;
    if found != expected {
        return Err(world(
            format!("`{url}` has md5 {found}, expected {expected}; nothing was kept"),
            "the download was cut or the file changed: run the command again, or give --md5 if you know the change",
        ));
    }
    unpack(&zip, aside.path(), name)?;
    let unpacked = aside.path().join(name);
    Dataset::open(&unpacked)?;
    if target.exists() {
        std::fs::remove_dir_all(&target).map_err(|e| Error::io("write", &target, e))?;
    }
    std::fs::rename(&unpacked, &target).map_err(|e| Error::io("write", &target, e))?;
    Ok(target)
}

/// Unpacks the entries of `name/` below `folder`; an entry that points elsewhere is refused.
fn unpack(zip: &Path, folder: &Path, name: &str) -> anyhow::Result<()> {
    let broken = |e: zip::result::ZipError| Error::file(zip, format!("not a usable zip: {e}"));
    let file = File::open(zip).map_err(|e| Error::io("read", zip, e))?;
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(broken)?;
        let Some(path) = entry.enclosed_name() else {
            return Err(Error::file(zip, format!("entry {index} points outside the archive")).into());
        };
        if entry.is_dir() || !path.starts_with(name) {
            continue;
        }
        let target = folder.join(&path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))?;
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|e| Error::io("read", zip, e))?;
        std::fs::write(&target, &bytes).map_err(|e| Error::io("write", &target, e))?;
    }
    Ok(())
}
