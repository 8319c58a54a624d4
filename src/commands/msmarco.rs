//! `nsparse data msmarco`: MS MARCO as a data set in BEIR's form, with lists of hard negatives.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use nsparse_core::msmarco::{Input, Inputs, NEGATIVES, NegativeInput, Options, Report, SplitInput, prepare};
use nsparse_core::{Cancel, Error, Progress as _, files};
use serde::{Deserialize, Serialize};

use crate::ExitStatus;
use crate::data_args::{Kind, MsMarcoArgs};
use crate::failure::{usage, world};
use crate::printer::Printer;
use crate::{download, settings};

/// Where Microsoft's files lie.
pub(crate) const URL: &str = "https://msmarco.z22.web.core.windows.net/msmarcoranking";

/// What says how a set was made, beside its files.
const RECORD: &str = "msmarco.json";

/// A file to fetch, and its md5 where one is published.
type Published = (&'static str, Option<&'static str>);

const PASSAGES: [Published; 1] = [("collectionandqueries.tar.gz", Some("31644046b18952c1386cd4564ba2ae69"))];
const TRIPLES: Published = ("qidpidtriples.train.full.2.tsv.gz", Some("219083e80a0a751c08b968c2f31a4e0b"));
const DOCUMENTS: [Published; 5] = [
    ("msmarco-docs.tsv.gz", Some("103b19e21ad324d8a5f1ab562425c0b4")),
    ("msmarco-doctrain-queries.tsv.gz", None),
    ("msmarco-doctrain-qrels.tsv.gz", None),
    ("msmarco-docdev-queries.tsv.gz", None),
    ("msmarco-docdev-qrels.tsv.gz", None),
];

/// Names under which a file is looked for, packed or not; the first one found is taken.
const COLLECTION: [&str; 3] = ["collection.tsv", "corpus.tsv", "msmarco-docs.tsv"];
const TRAIN: ([&str; 3], [&str; 2]) = (
    ["queries.train.tsv", "train.query.txt", "msmarco-doctrain-queries.tsv"],
    ["qrels.train.tsv", "msmarco-doctrain-qrels.tsv"],
);
/// Queries and judgments belong together: the small set of 6,980 queries, or all.
const DEV: [(&str, &str); 4] = [
    ("queries.dev.small.tsv", "qrels.dev.small.tsv"),
    ("queries.dev.tsv", "qrels.dev.tsv"),
    ("dev.query.txt", "qrels.dev.tsv"),
    ("msmarco-docdev-queries.tsv", "msmarco-docdev-qrels.tsv"),
];
const TRIPLE_FILES: [&str; 2] = ["qidpidtriples.train.full.2.tsv", "qidpidtriples.train.full.tsv"];
const LISTS: &str = "train.negatives.tsv";
const ARCHIVES: [&str; 3] = ["collectionandqueries.tar.gz", "collection.tar.gz", "queries.tar.gz"];

/// How a set was made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    kind: String,
    options: Options,
    report: Report,
    nsparse_version: String,
}

pub(crate) fn run(args: &MsMarcoArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let (kind, name) = match args.kind {
        Kind::Passages => ("passages", "msmarco"),
        Kind::Documents => ("documents", "msmarco-doc"),
    };
    let options = Options {
        sample: args.sample.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        others: args.others,
        negatives: args.negatives,
        seed: args.seed,
        repair: args.repair,
    };
    let folder = args.out.join(name);
    if let Some(record) = made_before(&folder, kind, &options, args.force)? {
        printer.note(format!("`{}` is there already (--force makes it anew)", folder.display()));
        return show(&folder, &record, printer);
    }
    let cancel = settings::cancel_on_signal();
    std::fs::create_dir_all(&args.out).map_err(|e| Error::io("create", &args.out, e))?;
    let downloads = args.out.join(format!("{name}.download"));
    let unpacked = args.out.join(format!("{name}.unpacked"));
    let mut places = vec![unpacked.clone()];
    match &args.from {
        Some(from) if !from.is_dir() => {
            return Err(usage(format!("`{}` is no folder", from.display()), "--from names the folder with the files"));
        }
        Some(from) => places.push(from.clone()),
        None => {
            fetch(args, &downloads, &cancel, printer)?;
            places.push(downloads.clone());
        }
    }
    unpack(&places, &unpacked, &cancel, printer)?;
    let inputs = inputs(&places, args.negatives > 0, args.from.is_some())?;
    if inputs.negatives.is_none() && args.negatives > 0 {
        printer.note("There are no negatives among the files; `nsparse mine` makes rows with some");
    }

    let making = args.out.join(format!(".{name}.making"));
    remove(&making)?;
    std::fs::create_dir_all(&making).map_err(|e| Error::io("create", &making, e))?;
    let report = prepare(&inputs, &options, &making, &cancel, &printer.progress());
    let report = match report {
        Ok(report) => report,
        Err(e) => {
            remove(&making)?;
            return Err(e.into());
        }
    };
    let record =
        Record { kind: kind.to_owned(), options, report, nsparse_version: env!("CARGO_PKG_VERSION").to_owned() };
    files::write_json(&making.join(RECORD), &record)?;
    remove(&folder)?;
    std::fs::rename(&making, &folder).map_err(|e| Error::io("write", &folder, e))?;
    remove(&unpacked)?;
    if !args.keep_downloads {
        remove(&downloads)?;
    }
    show(&folder, &record, printer)
}

/// The record of a set that is there and was made in the same way.
fn made_before(folder: &Path, kind: &str, options: &Options, force: bool) -> anyhow::Result<Option<Record>> {
    if force || !folder.exists() {
        return Ok(None);
    }
    let file = folder.join(RECORD);
    let in_the_way = |what: &str| {
        usage(format!("`{}` {what}", folder.display()), "make it anew with --force, or elsewhere: --out DIR")
    };
    if !file.is_file() {
        return Err(in_the_way("is there already, and was not made by this command"));
    }
    let record: Record = files::read_json(&file)?;
    if record.kind == kind && &record.options == options {
        Ok(Some(record))
    } else {
        Err(in_the_way("was made with other options"))
    }
}

fn show(folder: &Path, record: &Record, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let r = &record.report;
    printer.text(format!("{} of {} documents, {} queries", r.documents, r.collection, r.queries));
    for (split, queries, judgments) in &r.splits {
        printer.text(format!("{split}: {queries} queries with {judgments} judgments"));
    }
    if r.lists > 0 {
        printer.text(format!(
            "{NEGATIVES}: {} negatives of {} queries; {} queries have none",
            r.negatives, r.lists, r.without_negatives
        ));
    }
    printer.text(folder.display().to_string());
    if r.lists > 0 {
        printer.text(format!(
            "\nIn a recipe:\n  data:\n    dir: {}\n    sets: [{{hard_negatives: {}}}]",
            folder.display(),
            folder.join(NEGATIVES).display()
        ));
    }
    printer
        .json(&serde_json::json!({ "folder": folder, "kind": record.kind, "options": record.options, "report": r }))?;
    Ok(ExitStatus::Success)
}

/// Fetches what is not there yet, each file checked where its md5 is known.
fn fetch(args: &MsMarcoArgs, folder: &Path, cancel: &Cancel, printer: &Printer) -> anyhow::Result<()> {
    let mut given = HashMap::new();
    for item in &args.md5 {
        let (file, md5) =
            item.split_once('=').ok_or_else(|| usage(format!("`--md5 {item}` has no `=`"), "write --md5 FILE=HEX"))?;
        given.insert(file, md5.to_ascii_lowercase());
    }
    let mut wanted = match args.kind {
        Kind::Passages => PASSAGES.to_vec(),
        Kind::Documents => DOCUMENTS.to_vec(),
    };
    if args.kind == Kind::Passages && args.negatives > 0 {
        wanted.push(TRIPLES);
    }
    if let Some(other) = given.keys().find(|f| wanted.iter().all(|w| w.0 != **f)) {
        let names: Vec<&str> = wanted.iter().map(|w| w.0).collect();
        return Err(usage(
            format!("`--md5 {other}=…`: no such file is fetched"),
            format!("files: {}", names.join(", ")),
        ));
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    for (name, published) in wanted {
        let file = folder.join(name);
        if file.is_file() {
            printer.note(format!("`{}` is there already", file.display()));
            continue;
        }
        let url = format!("{}/{name}", args.base_url.trim_end_matches('/'));
        printer.note(format!("Fetching {url}"));
        let hint = "run the same command again: it goes on where it was; without a network, give the folder with \
                    files fetched elsewhere: --from DIR";
        let aside = folder.join(format!("{name}.unchecked"));
        download::to_file(&url, &aside, hint, cancel, printer)?;
        let found = download::md5_of(&aside)?;
        match given.get(name).map(String::as_str).or(published) {
            Some(expected) if found != expected => {
                remove(&aside)?;
                return Err(world(
                    format!("`{url}` has md5 {found}, expected {expected}; it was not kept"),
                    "run the command again; if you know the change, give --md5 FILE=HEX",
                ));
            }
            Some(_) => {}
            None => printer.note(format!("{name} has md5 {found}; none is published to compare with")),
        }
        std::fs::rename(&aside, &file).map_err(|e| Error::io("write", &file, e))?;
    }
    Ok(())
}

/// Unpacks archives, where a file that they bring is missing.
fn unpack(places: &[PathBuf], target: &Path, cancel: &Cancel, printer: &Printer) -> anyhow::Result<()> {
    let wanted: Vec<&str> =
        COLLECTION.into_iter().chain(TRAIN.0).chain(TRAIN.1).chain(DEV.iter().flat_map(|d| [d.0, d.1])).collect();
    for archive in ARCHIVES.iter().filter_map(|name| places.iter().map(|p| p.join(name)).find(|p| p.is_file())) {
        let done = target.join(format!("{}.done", archive.file_name().unwrap_or_default().to_string_lossy()));
        if done.is_file() {
            continue;
        }
        let broken = |e: std::io::Error| Error::file(&archive, format!("not a usable tar.gz: {e}"));
        let file = File::open(&archive).map_err(|e| Error::io("read", &archive, e))?;
        let task = printer.progress().start("Unpacking (bytes)", file.metadata().map_or(0, |m| m.len()));
        let counted = Counted { inner: BufReader::with_capacity(1 << 18, file), task: task.as_ref() };
        let mut entries = tar::Archive::new(MultiGzDecoder::new(counted));
        for entry in entries.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let path = entry.path().map_err(broken)?.into_owned();
            let Some(name) = path.file_name().and_then(|n| n.to_str()).filter(|n| wanted.contains(n)) else { continue };
            let out = target.join(name);
            files::write_atomic(&out, |file| {
                let mut buffer = vec![0; 1 << 20];
                loop {
                    cancel.check()?;
                    let n = entry.read(&mut buffer).map_err(broken)?;
                    if n == 0 {
                        return Ok(());
                    }
                    file.write_all(&buffer[..n]).map_err(|e| Error::io("write", &out, e))?;
                }
            })?;
        }
        files::write_bytes(&done, b"")?;
    }
    Ok(())
}

/// Reads and reports how far it is.
struct Counted<'a, R> {
    inner: R,
    task: &'a dyn nsparse_core::Task,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.task.advance(n as u64);
        Ok(n)
    }
}

fn inputs(places: &[PathBuf], negatives: bool, is_local: bool) -> anyhow::Result<Inputs> {
    let find = |names: &[&str]| -> Option<PathBuf> {
        names
            .iter()
            .flat_map(|name| [(*name).to_owned(), format!("{name}.gz")])
            .find_map(|name| places.iter().map(|p| p.join(&name)).find(|p| p.is_file()))
    };
    let need = |names: &[&str]| -> anyhow::Result<Input> {
        find(names).map(input).ok_or_else(|| {
            let place = places.last().map_or_else(String::new, |p| p.display().to_string());
            let message = format!("`{place}` has none of {}, packed or not", names.join(", "));
            if is_local {
                usage(message, "`nsparse data msmarco --help` lists the files")
            } else {
                world(message, "the archive that was fetched does not hold it: look at --base-url")
            }
        })
    };
    let collection = need(&COLLECTION)?;
    let mut splits = vec![SplitInput { name: "train".to_owned(), queries: need(&TRAIN.0)?, qrels: need(&TRAIN.1)? }];
    if let Some((queries, qrels)) = DEV.iter().find_map(|(queries, qrels)| Some((find(&[queries])?, find(&[qrels])?))) {
        splits.push(SplitInput { name: "dev".to_owned(), queries: input(queries), qrels: input(qrels) });
    }
    let negatives = if negatives {
        let lists = || places.iter().map(|p| p.join(LISTS)).find(|p| p.is_file());
        find(&TRIPLE_FILES)
            .map(|path| NegativeInput::Triples(input(path)))
            .or_else(|| lists().map(NegativeInput::Lists))
    } else {
        None
    };
    Ok(Inputs { collection, splits, negatives })
}

/// A file that is opened as it is or unpacked on the way: its first two bytes say which.
fn input(path: PathBuf) -> Input {
    let open = path.clone();
    let open = Box::new(move || -> nsparse_core::Result<Box<dyn BufRead>> {
        let file = File::open(&open).map_err(|e| Error::io("read", &open, e))?;
        let mut plain = BufReader::with_capacity(1 << 18, file);
        let is_packed = plain.fill_buf().map_err(|e| Error::io("read", &open, e))?.starts_with(&[0x1f, 0x8b]);
        Ok(if is_packed {
            Box::new(BufReader::with_capacity(1 << 18, MultiGzDecoder::new(plain)))
        } else {
            Box::new(plain)
        })
    });
    Input { path, open }
}

/// Removes a file or folder, if it is there.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e).into()),
        _ => Ok(()),
    }
}
