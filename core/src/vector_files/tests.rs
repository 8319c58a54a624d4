//! The forms byte by byte and there and back; what is cut off or damaged; parts that go on; shards that become one.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::job::beside;
use super::records::Records;
use super::*;
use crate::beir::FieldNames;
use crate::vector::engine_weight;
use crate::{Cancel, DocumentTemplate, NoProgress, SparseVector, files};

fn words(n: usize) -> Vec<String> {
    (0..n).map(|i| if i == 3 { "\"ü\\".to_owned() } else { format!("w{i}") }).collect()
}

fn job(format: Format, weights: Precision) -> Job {
    Job {
        model: "ab".repeat(32),
        engine: "cpu".to_owned(),
        format,
        weights,
        quantize: (format == Format::Anserini).then_some(100),
        block: 3,
        batch_tokens: 64,
        id_field: "_id".to_owned(),
        title_field: "title".to_owned(),
        text_field: "text".to_owned(),
        shard: None,
    }
}

fn vector(pairs: &[(u32, f32)]) -> SparseVector {
    SparseVector::from_pairs(pairs.to_vec())
}

fn line(layout: &Layout, id: &str, text: &str, vector: &SparseVector) -> String {
    let mut out = Vec::new();
    layout.push(&mut out, id, text, vector).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn lines_of_jsonl_and_of_anserini() {
    let vector = vector(&[(3, 0.125), (1, 1.234_567_9), (0, 0.004), (4, 2.0)]);
    let of = |format, weights| Layout::new(&job(format, weights), &words(5)).unwrap();
    assert_eq!(
        line(&of(Format::Jsonl, Precision::Full), "a\n1", "text", &vector),
        "{\"id\":\"a\\n1\",\"vector\":{\"w0\":0.004,\"w1\":1.2345679,\"\\\"ü\\\\\":0.125,\"w4\":2.0}}\n"
    );
    let stored = line(&of(Format::Jsonl, Precision::Stored), "a", "text", &vector);
    let value: serde_json::Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(value["vector"]["w1"], f64::from(engine_weight(1.234_567_9)));
    assert_eq!(value["vector"]["w4"], 2.0);
    // 0.4 hundredths are no impact; 12.5 goes to the even 12, as NumPy's rint has it.
    assert_eq!(
        line(&of(Format::Anserini, Precision::Full), "a", "a \"text\"", &vector),
        "{\"id\":\"a\",\"contents\":\"a \\\"text\\\"\",\"vector\":{\"w1\":123,\"\\\"ü\\\\\":12,\"w4\":200}}\n"
    );
    assert_eq!(
        line(&of(Format::Jsonl, Precision::Full), "z", "", &SparseVector::default()),
        "{\"id\":\"z\",\"vector\":{}}\n"
    );
}

#[test]
fn what_the_engine_would_refuse_is_named() {
    let layout = Layout::new(&job(Format::Binary, Precision::Full), &words(5)).unwrap();
    for weight in [64.5, f32::INFINITY, f32::NAN, -1.0, 0.0] {
        let vector = SparseVector { ids: vec![2], weights: vec![weight] };
        let error = layout.push(&mut Vec::new(), "d7", "", &vector).unwrap_err().to_string();
        assert!(error.contains("`w2`") && error.contains("`d7`"), "{error}");
    }
    for wrong in [
        Job { quantize: Some(0), ..job(Format::Anserini, Precision::Full) },
        Job { quantize: Some(10), ..job(Format::Jsonl, Precision::Full) },
        job(Format::Anserini, Precision::Stored),
        Job { model: "ab".to_owned(), ..job(Format::Jsonl, Precision::Full) },
    ] {
        assert!(Layout::new(&wrong, &words(5)).is_err(), "{wrong:?}");
    }
}

/// The bytes of a small file as the table in the format's documentation has them, put together by hand.
#[test]
fn the_binary_form_byte_by_byte() {
    let entries = ["ab", "ü", "c"].map(str::to_owned);
    let job = job(Format::Binary, Precision::Stored);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.nsv");
    let vectors = [("x", vector(&[(0, 1.0), (2, 2.5)])), ("", SparseVector::default())];
    let counts = write(&path, &job, &entries, &vectors.map(|(id, v)| (id.to_owned(), v)));
    assert_eq!(counts.active, 2);

    let vocabulary = [2, b'a', b'b', 2, 0xc3, 0xbc, 1, b'c'];
    let mut expected = vec![0x8e, b'N', b'S', b'V', 13, 10, 26, 10, 1, 0, 1, 0, 3, 0, 0, 0];
    expected.extend(hash(&vocabulary));
    expected.extend([0xab; 32]);
    expected.extend(vocabulary);
    // 1.0 is 0x3f80_0000 and 2.5 is 0x4020_0000: without the sign and the lower 15 bits 0x7f00 and 0x8040.
    expected.extend([2, b'x', 2, 0, 1, 0x00, 0x7f, 0x40, 0x80]);
    expected.extend([1, 0]);
    expected.extend([0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend(hash(&expected));
    assert_eq!(std::fs::read(&path).unwrap(), expected);
}

fn hash(bytes: &[u8]) -> Vec<u8> {
    let hex = files::sha256_bytes(bytes);
    (0..32).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// Writes documents as a job does, from an input that has as many lines.
fn write(path: &Path, job: &Job, vocabulary: &[String], documents: &[(String, SparseVector)]) -> Counts {
    let layout = Layout::new(job, vocabulary).unwrap();
    let Opened::Part(mut part) = PartFile::open(path, job, &layout, false).unwrap() else { panic!("a file is there") };
    for block in documents.chunks(job.block as usize) {
        push(&mut part, &layout, block);
        if block.len() as u64 == job.block {
            part.commit(InputPosition::default()).unwrap();
        }
    }
    let input = InputPosition { documents: documents.len() as u64, ..InputPosition::default() };
    part.finish(input, &layout).unwrap().counts
}

fn push(part: &mut PartFile, layout: &Layout, documents: &[(String, SparseVector)]) {
    let mut bytes = Vec::new();
    let mut counts = Counts { documents: documents.len() as u64, ..Counts::default() };
    for (id, vector) in documents {
        counts.active += layout.push(&mut bytes, id, "some text", vector).unwrap() as u64;
    }
    let ids: Vec<String> = documents.iter().map(|(id, _)| id.clone()).collect();
    part.push(&ids, &bytes, &counts).unwrap();
}

/// Documents with unlike ids over a vocabulary of 300 entries.
fn documents() -> impl Strategy<Value = Vec<(String, SparseVector)>> {
    let weight = prop_oneof![1e-6f32..64.0, Just(64.0), Just(f32::MIN_POSITIVE), Just(1.0)];
    let pairs = proptest::collection::vec((0u32..300, weight), 0..40);
    proptest::collection::vec(("[a-z\"\\\\ü\n]{0,3}", pairs), 0..20).prop_map(|drawn| {
        let named = |(n, (id, pairs)): (usize, (String, Vec<(u32, f32)>))| {
            (format!("{id}{n}"), SparseVector::from_pairs(pairs))
        };
        drawn.into_iter().enumerate().map(named).collect()
    })
}

/// A line of jsonl read by `serde_json` alone.
fn plain(line: &str, vocabulary: &[String]) -> (String, SparseVector) {
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    let ids: HashMap<&str, u32> = vocabulary.iter().enumerate().map(|(i, w)| (w.as_str(), i as u32)).collect();
    let pairs = value["vector"].as_object().unwrap().iter().map(|(w, x)| (ids[w.as_str()], x.as_f64().unwrap() as f32));
    (value["id"].as_str().unwrap().to_owned(), SparseVector::from_pairs(pairs.collect()))
}

proptest! {
    // Every case syncs files to the disk.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn there_and_back(documents in documents(), is_stored: bool, block in 1u64..9) {
        let folder = tempfile::tempdir().unwrap();
        let weights = if is_stored { Precision::Stored } else { Precision::Full };
        let expected: Vec<(String, SparseVector)> = documents
            .iter()
            .map(|(id, v)| (id.clone(), if is_stored { v.as_stored() } else { v.clone() }))
            .collect();
        let path = folder.path().join("v");
        let binary = Job { block, ..job(Format::Binary, weights) };
        write(&path, &binary, &words(300), &documents);
        let file = VectorFile::open(&path).unwrap();
        prop_assert_eq!(&file.header().vocabulary, &words(300));
        prop_assert_eq!(file.header().model, [0xab; 32]);
        prop_assert_eq!(file.collect::<crate::Result<Vec<_>>>().unwrap(), expected.clone());

        let path = folder.path().join("v.jsonl");
        let jsonl = Job { block, ..job(Format::Jsonl, weights) };
        write(&path, &jsonl, &words(300), &documents);
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<_> = text.lines().map(|l| plain(l, &words(300))).collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_seen(documents in documents(), at: prop::sample::Index, bit in 0u8..8) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v");
        write(&path, &job(Format::Binary, Precision::Full), &words(300), &documents);
        let good = std::fs::read(&path).unwrap();
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            VectorFile::open(&path).and_then(Iterator::collect::<crate::Result<Vec<_>>>)
        };
        let at = at.index(good.len());
        prop_assert!(read(&good[..at]).is_err(), "cut at {at} of {}", good.len());
        let mut flipped = good.clone();
        flipped[at] ^= 1 << bit;
        prop_assert!(read(&flipped).is_err(), "bit {bit} of byte {at} of {}", good.len());
        let mut longer = good.clone();
        longer.push(0);
        prop_assert!(read(&longer).is_err());
        prop_assert_eq!(read(&good).unwrap(), documents);
    }

    /// Killed at any byte of part and journal, a job ends with the file of one that never stopped.
    #[test]
    fn a_job_goes_on_after_a_kill(
        documents in documents(),
        kind in 0usize..3,
        kills in proptest::collection::vec((0usize..8, 0usize..200, 0usize..200), 0..4),
    ) {
        let formats = [Format::Jsonl, Format::Anserini, Format::Binary];
        let job = job(formats[kind], Precision::Full);
        let folder = tempfile::tempdir().unwrap();
        let (whole, path) = (folder.path().join("whole"), folder.path().join("v"));
        write(&whole, &job, &words(300), &documents);
        let layout = Layout::new(&job, &words(300)).unwrap();
        let mut least = 0;
        for (blocks, part_loss, journal_loss) in kills {
            let Opened::Part(mut part) = PartFile::open(&path, &job, &layout, false).unwrap() else { panic!() };
            let done = part.checkpoint().input.documents as usize;
            prop_assert!(done >= least && done == part.checkpoint().counts.documents as usize);
            let mut ends = vec![size(&path, "part")];
            for (block, rest) in documents[done..].chunks_exact(3).enumerate().take(blocks) {
                push(&mut part, &layout, rest);
                let documents = (done + 3 * (block + 1)) as u64;
                part.commit(InputPosition { documents, ..InputPosition::default() }).unwrap();
                ends.push(size(&path, "part"));
            }
            // A block begun and never noted, then torn; and a torn last line of the journal.
            let torn = documents.iter().take(2).cloned().collect::<Vec<_>>();
            let unlike: Vec<_> = torn.into_iter().map(|(id, v)| (format!("torn-{id}"), v)).collect();
            push(&mut part, &layout, &unlike);
            drop(part);
            let noted = *ends.last().unwrap();
            cut(&path, "part", size(&path, "part").saturating_sub(part_loss as u64).max(noted));
            let journal = std::fs::read(beside(&path, "journal")).unwrap();
            let first = journal.iter().position(|&b| b == b'\n').unwrap() + 1;
            let kept = journal.len().saturating_sub(journal_loss).max(first);
            cut(&path, "journal", kept as u64);
            least = 3 * (journal[first..kept].split(|&b| b == b'\n').count() - 1);
        }
        let Opened::Part(mut part) = PartFile::open(&path, &job, &layout, false).unwrap() else { panic!() };
        let done = part.checkpoint().counts.documents as usize;
        prop_assert_eq!(done, least);
        for block in documents[done..].chunks(3) {
            push(&mut part, &layout, block);
        }
        let input = InputPosition { documents: documents.len() as u64, ..InputPosition::default() };
        let meta = part.finish(input, &layout).unwrap();
        prop_assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&whole).unwrap());
        prop_assert_eq!(&meta, &FileMeta::load(&whole).unwrap());
        prop_assert_eq!(files::sha256_file(&path).unwrap(), (meta.sha256, meta.bytes));
        prop_assert!(!beside(&path, "part").exists() && !beside(&path, "journal").exists());
        prop_assert!(matches!(PartFile::open(&path, &job, &layout, false), Ok(Opened::Finished(_))));
    }

    /// Any number of shards of any block size, given in any order, become the file of one job.
    #[test]
    fn shards_become_the_whole(documents in documents(), kind in 0usize..3, of in 1u64..5, block in 1u64..6) {
        let formats = [Format::Jsonl, Format::Anserini, Format::Binary];
        let folder = tempfile::tempdir().unwrap();
        let whole_job = Job { block, ..job(formats[kind], Precision::Full) };
        let whole = folder.path().join("whole");
        write(&whole, &whole_job, &words(300), &documents);
        let paths = shards(folder.path(), &whole_job, of, &documents);
        let merged = folder.path().join("merged");
        let shuffled: Vec<PathBuf> = paths.iter().rev().cloned().collect();
        let (meta, is_new) = merge(&shuffled, &merged, false, &NoProgress, &Cancel::default()).unwrap();
        prop_assert!(is_new);
        prop_assert_eq!(std::fs::read(&merged).unwrap(), std::fs::read(&whole).unwrap());
        prop_assert_eq!(&meta, &FileMeta::load(&whole).unwrap());
        let (again, is_new) = merge(&paths, &merged, false, &NoProgress, &Cancel::default()).unwrap();
        prop_assert!(!is_new && again == meta);
    }

    #[test]
    fn an_id_that_comes_twice_is_found(ids in proptest::collection::vec("[ab]{0,6}", 0..40), held in 1usize..9) {
        let mut check = IdCheck::holding(held);
        let mut first: HashMap<&str, u64> = HashMap::new();
        let mut expected = None;
        for (place, id) in ids.iter().enumerate() {
            check.push(id, place as u64).unwrap();
            match first.get(id.as_str()) {
                Some(before) if expected.is_none() => expected = Some((*before, place as u64)),
                Some(_) => {}
                None => {
                    first.insert(id, place as u64);
                }
            }
        }
        prop_assert_eq!(check.len(), ids.len() as u64);
        prop_assert_eq!(check.finish().unwrap(), expected);
    }
}

fn size(path: &Path, ending: &str) -> u64 {
    std::fs::metadata(beside(path, ending)).unwrap().len()
}

fn cut(path: &Path, ending: &str, bytes: u64) {
    std::fs::OpenOptions::new().write(true).open(beside(path, ending)).unwrap().set_len(bytes).unwrap();
}

/// Writes the shards of a job, cut by hand: block `b` goes to shard `b mod of`.
fn shards(folder: &Path, job: &Job, of: u64, documents: &[(String, SparseVector)]) -> Vec<PathBuf> {
    (1..=of)
        .map(|index| {
            let path = folder.join(format!("shard-{index}"));
            let job = Job { shard: Some(Shard { index, of }), ..job.clone() };
            let layout = Layout::new(&job, &words(300)).unwrap();
            let Opened::Part(mut part) = PartFile::open(&path, &job, &layout, false).unwrap() else { panic!() };
            for (number, block) in documents.chunks(job.block as usize).enumerate() {
                if number as u64 % of == index - 1 {
                    push(&mut part, &layout, block);
                }
            }
            let input = InputPosition { documents: documents.len() as u64, ..InputPosition::default() };
            part.finish(input, &layout).unwrap();
            path
        })
        .collect()
}

fn some_documents(n: u32) -> Vec<(String, SparseVector)> {
    (0..n).map(|i| (format!("d{i}"), vector(&[(i % 300, 1.5), ((i * 7 + 1) % 300, 0.25)]))).collect()
}

#[test]
fn shards_that_do_not_belong_together() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(Format::Binary, Precision::Full);
    let paths = shards(folder.path(), &job, 3, &some_documents(20));
    let out = folder.path().join("out");
    let error = |paths: &[PathBuf]| merge(paths, &out, false, &NoProgress, &Cancel::default()).unwrap_err().to_string();
    assert!(error(&paths[..2]).contains("1 of 3 shards are missing: 3/3"));
    assert!(error(&[paths[0].clone(), paths[0].clone(), paths[2].clone()]).contains("Shard 1/3 comes twice"));
    assert!(error(&[paths[0].clone(), folder.path().join("none")]).contains("is no file"));

    // Of another model, of another number of shards, of other documents, of no shard.
    let other = tempfile::tempdir().unwrap();
    let model = shards(other.path(), &Job { model: "cd".repeat(32), ..job.clone() }, 3, &some_documents(20));
    let said = error(&[paths[0].clone(), model[1].clone(), paths[2].clone()]);
    assert!(said.contains("model is abababababab there and cdcdcdcdcdcd here"), "{said}");
    let other = tempfile::tempdir().unwrap();
    let four = shards(other.path(), &job, 4, &some_documents(20));
    let said = error(&[paths[0].clone(), four[1].clone()]);
    assert!(said.contains("shard is 1/3 there and 2/4 here"), "{said}");
    let other = tempfile::tempdir().unwrap();
    let longer = shards(other.path(), &job, 3, &some_documents(21));
    let said = error(&[paths[0].clone(), longer[1].clone(), paths[2].clone()]);
    assert!(said.contains("different documents: 20 and 21"), "{said}");
    let whole = folder.path().join("whole");
    write(&whole, &job, &words(300), &some_documents(20));
    assert!(error(&[whole]).contains("it is no shard"));

    // An id in two shards: blocks of three, so that `d4` stands in the second shard, `d15` in the third.
    let other = tempfile::tempdir().unwrap();
    let mut twice = some_documents(20);
    twice[15].0 = "d4".to_owned();
    let same = shards(other.path(), &job, 3, &twice);
    let said = error(&same);
    assert!(said.contains("The id `d4` comes twice") && said.contains("shard-2") && said.contains("shard-3"), "{said}");

    // Changed since, with the same size.
    let mut bytes = std::fs::read(&paths[1]).unwrap();
    let last = bytes.len() - 60;
    bytes[last] ^= 1;
    std::fs::write(&paths[1], &bytes).unwrap();
    let said = error(&paths);
    assert!(said.contains("shard-2"), "{said}");
    bytes.pop();
    std::fs::write(&paths[1], &bytes).unwrap();
    assert!(error(&paths).contains("it was cut off or changed"));
    // Nothing was left behind by any of these.
    assert!(!out.exists() && !beside(&out, "meta").exists());
}

#[test]
fn a_file_of_another_job_is_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let job = job(Format::Jsonl, Precision::Full);
    let error = |job: &Job| {
        let layout = Layout::new(job, &words(300)).unwrap();
        PartFile::open(&path, job, &layout, false).err().unwrap().to_string()
    };
    let other = Job { format: Format::Binary, block: 7, ..job.clone() };
    write(&path, &job, &words(300), &some_documents(5));
    let said = error(&other);
    assert!(said.contains("block is 3 there and 7 here; format is jsonl there and binary here"), "{said}");
    assert!(!beside(&path, "journal").exists() && !beside(&path, "part").exists());
    // A part of another job; the finished file stays.
    let layout = Layout::new(&other, &words(300)).unwrap();
    let before = std::fs::read(&path).unwrap();
    let opened = PartFile::open(&path, &other, &layout, true).unwrap();
    assert!(error(&other).contains("Another process is writing"));
    drop(opened);
    assert!(error(&job).contains("format is binary there and jsonl here"));
    assert_eq!(std::fs::read(&path).unwrap(), before);
    // Something else has written to the part.
    let Opened::Part(mut part) = PartFile::open(&path, &other, &layout, false).unwrap() else { panic!() };
    push(&mut part, &layout, &some_documents(7));
    part.commit(InputPosition { documents: 7, ..InputPosition::default() }).unwrap();
    drop(part);
    let part = beside(&path, "part");
    let mut bytes = std::fs::read(&part).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    assert!(error(&other).contains("is not what its journal says"));
    // Without its journal.
    std::fs::remove_file(beside(&path, "journal")).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(error(&other).contains("no journal that says how far it is good"));
    std::fs::remove_file(&part).unwrap();
    std::fs::remove_file(beside(&path, "meta")).unwrap();
    std::fs::write(&path, "mine").unwrap();
    assert!(error(&job).contains("nothing says what made it"));
    std::fs::remove_file(&path).unwrap();
    write(&path, &job, &words(300), &some_documents(5));
    std::fs::write(&path, "shorter").unwrap();
    assert!(error(&job).contains("has not the size"));
}

#[test]
fn an_id_twice_in_one_job_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let job = job(Format::Binary, Precision::Full);
    let layout = Layout::new(&job, &words(300)).unwrap();
    let path = folder.path().join("v");
    let mut documents = some_documents(8);
    documents[6].0 = "d1".to_owned();
    let Opened::Part(mut part) = PartFile::open(&path, &job, &layout, false).unwrap() else { panic!() };
    push(&mut part, &layout, &documents[..3]);
    part.commit(InputPosition { documents: 3, ..InputPosition::default() }).unwrap();
    drop(part);
    // The first is in the part already, the second comes after a kill.
    let Opened::Part(mut part) = PartFile::open(&path, &job, &layout, false).unwrap() else { panic!() };
    push(&mut part, &layout, &documents[3..]);
    let error = part.finish(InputPosition::default(), &layout).unwrap_err().to_string();
    assert!(error.contains("The id `d1` comes twice: documents 2 and 7"), "{error}");
    assert!(!path.exists());
}

#[test]
fn records_of_a_file_of_lines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let job = job(Format::Jsonl, Precision::Full);
    write(&path, &job, &words(300), &[("a\"\n".to_owned(), SparseVector::default())]);
    let mut records = Records::open(&path, Format::Jsonl).unwrap();
    assert_eq!(records.next_record().unwrap().unwrap().0, "a\"\n");
    assert!(records.next_record().unwrap().is_none());
    assert_eq!(records.digest().1, files::sha256_file(&path).unwrap().0);
    std::fs::write(&path, "{\"id\":\"a\",\"vector\":{}}\n{\"id\":\"b\",\"vec").unwrap();
    let mut records = Records::open(&path, Format::Jsonl).unwrap();
    records.next_record().unwrap();
    let error = records.next_record().unwrap_err().to_string();
    assert!(error.contains("line 2 is cut off"), "{error}");
}

const LINES: &str = "{\"_id\":\"a\",\"title\":\"One\",\"text\":\"first\"}\n\n{\"_id\":2,\"text\":\"second\"}\n\
    {\"_id\":\"c\",\"text\":\"third\"}\n{\"_id\":\"d\",\"text\":\"fourth\"}";

fn stream(text: &str) -> DocumentStream<&[u8]> {
    DocumentStream::new(text.as_bytes(), Path::new("input"), &FieldNames::default())
}

#[test]
fn documents_come_in_blocks() {
    let template = DocumentTemplate::default();
    let taken = |block: u64, shard: Option<Shard>| {
        let job = Job { block, shard, ..job(Format::Jsonl, Precision::Full) };
        let mut blocks = Blocks::new(stream(LINES), &job, &template);
        let mut out = Vec::new();
        while let Some(block) = blocks.next_block().unwrap() {
            assert!(block.texts.len() as u64 <= job.block && block.ids.len() == block.texts.len());
            out.push((block.ids.join(" "), block.end.lines, block.is_full));
        }
        let end = blocks.position();
        assert_eq!((end.documents, end.lines, end.bytes), (4, 5, LINES.len() as u64));
        assert_eq!(end.sha256, files::sha256_bytes(LINES.as_bytes()));
        out
    };
    let of = |ids: &str, lines, is_full| (ids.to_owned(), lines, is_full);
    assert_eq!(taken(3, None), [of("a 2 c", 4, true), of("d", 5, false)]);
    assert_eq!(taken(2, None), [of("a 2", 3, true), of("c d", 5, true)]);
    assert_eq!(taken(1, Some(Shard { index: 2, of: 3 })), [of("2", 3, true)]);
    assert_eq!(taken(1, Some(Shard { index: 1, of: 3 })), [of("a", 1, true), of("d", 5, true)]);
    assert_eq!(taken(9, Some(Shard { index: 2, of: 2 })), []);
    let job = job(Format::Jsonl, Precision::Full);
    let block = Blocks::new(stream(LINES), &job, &template).next_block().unwrap().unwrap();
    assert_eq!(block.texts, ["One first", "second", "third"]);
}

#[test]
fn a_stream_goes_on_where_it_was_or_says_that_it_has_changed() {
    let mut first = stream(LINES);
    first.next_document().unwrap();
    first.next_document().unwrap();
    let position = first.position();
    assert_eq!((position.documents, position.lines), (2, 3));
    let mut second = stream(LINES);
    second.skip_to(&position).unwrap();
    assert_eq!(second.next_document().unwrap().unwrap().id, "c");
    assert_eq!(second.next_document().unwrap().unwrap().id, "d");
    assert!(second.next_document().unwrap().is_none());
    first.next_document().unwrap();
    first.next_document().unwrap();
    assert_eq!(first.position(), second.position());
    for other in [&LINES[..30], &LINES.replace("first", "FIRST")] {
        let error = stream(other).skip_to(&position).unwrap_err().to_string();
        assert!(error.contains("first 3 lines") && error.contains("have changed"), "{error}");
    }
    // What follows may be another.
    let changed = LINES.replace("fourth", "4");
    let mut grown = stream(&changed);
    grown.skip_to(&position).unwrap();
    let error = stream("{\"_id\":1,\"text\":\"\"}\n{\"_id\":2}").next_documents().unwrap_err().to_string();
    assert_eq!(error, "Broken line input:2: no field `text`; the line has: _id");
    let bytes: &[u8] = b"{\"_id\":1,\"text\":\"\"}\n\xff\n";
    let error = DocumentStream::new(bytes, Path::new("input"), &FieldNames::default()).next_documents().unwrap_err();
    assert!(error.to_string().contains("input:2: it is not UTF-8"), "{error}");
}

impl<R: std::io::Read> DocumentStream<R> {
    /// All that are left, or the first error.
    fn next_documents(&mut self) -> crate::Result<usize> {
        let mut count = 0;
        while self.next_document()?.is_some() {
            count += 1;
        }
        Ok(count)
    }
}

#[test]
fn a_file_is_looked_through_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("docs.jsonl");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        check_documents(&path, &FieldNames::default(), &NoProgress, &Cancel::default())
    };
    let end = check(LINES).unwrap();
    assert_eq!((end.documents, end.sha256), (4, files::sha256_bytes(LINES.as_bytes())));
    let twice = check(&LINES.replace("\"d\"", "\"2\"")).unwrap_err().to_string();
    assert!(twice.contains("docs.jsonl:5: the id `2` stands in line 3 already"), "{twice}");
    assert!(check("\n").unwrap_err().to_string().contains("it has no document"));
    assert!(check(&LINES.replace("{\"_id\":\"c\"", "{\"_id\"")).unwrap_err().to_string().contains("docs.jsonl:4: not"));
    let cancel = Cancel::default();
    cancel.cancel();
    std::fs::write(&path, "{\"_id\":1,\"text\":\"\"}\n".repeat(3000)).unwrap();
    let stopped = check_documents(&path, &FieldNames::default(), &NoProgress, &cancel);
    assert!(matches!(stopped, Err(crate::Error::Cancelled)), "{stopped:?}");
}

#[test]
fn shares_of_shards() {
    for (documents, block, of) in [(0, 3, 2), (1, 3, 2), (7, 3, 2), (12, 3, 4), (1000, 7, 5), (5, 100, 3)] {
        let plain = |index| (0..documents).filter(|d| d / block % of == index - 1).count() as u64;
        for index in 1..=of {
            assert_eq!(Shard { index, of }.share(documents, block), plain(index), "{documents} {block} {index}/{of}");
        }
    }
    assert_eq!("2/4".parse::<Shard>().unwrap(), Shard { index: 2, of: 4 });
    for wrong in ["0/4", "5/4", "1", "/", "a/b", "1/0", "-1/2"] {
        assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
    }
}
