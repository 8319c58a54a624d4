//! Wiring of the rankings that `eval`, `search` and `quickstart` share: which searcher, over which vectors.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use nsparse_core::beir::{Dataset, Document, Query};
use nsparse_core::model_dir::ModelDir;
use nsparse_core::segments::maximum;
use nsparse_core::vector_files::{FileMeta, Format, Job, Precision};
use nsparse_core::{
    Cancel, DocumentTemplate, Error, IdfFormula, IdfTable, Pruning, QueryEncoder, Run, SearchQuery, Searcher,
    SparseVector, TextTokenizer, files,
};
use nsparse_encoder::document::DEFAULT_BATCH_TOKENS;
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_opensearch::Cluster;
use nsparse_retrieval::{Bm25Index, FusedSearcher, Fusion, InvertedIndex, LexicalEncoder, LexicalWeight, SegmentIndex};
use serde::{Deserialize, Serialize};

use crate::cli::{Method, Runtime, RuntimeArgs};
use crate::failure::usage;
use crate::printer::Printer;
use crate::queries::Queries;
use crate::searching::QueryArgs;
use crate::{cluster_index, document_encoder, encode_job, settings, stored_vectors};

/// BM25's analyzer in a cluster unless another is asked for; the embedded index has the same.
pub(crate) const ANALYZER: &str = "english";

/// Documents of an encoding that are noted as done together.
const BLOCK: u64 = 1024;

/// What is ranked, and by what.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    /// The documents' set.
    pub(crate) set: &'a Dataset,
    /// Its documents.
    pub(crate) documents: &'a [Document],
    /// How they are ranked.
    pub(crate) method: Method,
    /// The model directory, or a folder with a tokenizer for `idf`.
    pub(crate) model: Option<&'a Path>,
    /// What computes the encoder.
    pub(crate) device: Device,
}

/// Document vectors with the query side that belongs to them.
pub(crate) struct Vectors {
    /// One a document, in the corpus's order.
    pub(crate) documents: Vec<SparseVector>,
    /// Where a document's best segment counts: one a segment; `documents` are their maxima.
    pub(crate) segments: Option<Vec<Vec<SparseVector>>>,
    /// What makes query vectors.
    pub(crate) queries: Queries,
    /// Template of the documents' texts.
    pub(crate) template: DocumentTemplate,
    /// What made them: names the index that holds them.
    pub(crate) key: String,
}

/// A model's query side, and where its vectors lie.
struct ModelSide {
    file: PathBuf,
    queries: Queries,
    template: DocumentTemplate,
    key: String,
}

impl Plan<'_> {
    /// The folder that `--model` names.
    pub(crate) fn model(&self) -> anyhow::Result<&Path> {
        self.model.ok_or_else(|| {
            usage("No model is named", "give --model DIR: the model directory of a run, `runs/NAME/model`")
        })
    }

    /// A searcher in the cluster, or without one embedded here; and the vectors if it reads some. `analyzer` is
    /// BM25's in a cluster.
    pub(crate) fn searcher(
        &self,
        cluster: Option<&Cluster>,
        analyzer: &str,
        printer: &Printer,
        cancel: &Cancel,
    ) -> anyhow::Result<(Box<dyn Searcher>, Option<Vectors>)> {
        self.searcher_by(&QueryArgs::default(), cluster, analyzer, printer, cancel)
    }

    /// The same, asked as `how` says; its pruning is the queries' own.
    pub(crate) fn searcher_by(
        &self,
        how: &QueryArgs,
        cluster: Option<&Cluster>,
        analyzer: &str,
        printer: &Printer,
        cancel: &Cancel,
    ) -> anyhow::Result<(Box<dyn Searcher>, Option<Vectors>)> {
        let (set, documents) = (self.set, self.documents);
        if self.method == Method::Hybrid {
            let of = |method| Plan { set, documents, method, model: self.model, device: self.device };
            let (bm25, _) = of(Method::Bm25).searcher_by(how, cluster, analyzer, printer, cancel)?;
            let (sparse, vectors) = of(Method::Sparse).searcher_by(how, cluster, analyzer, printer, cancel)?;
            let fusion = how.fusion.map_or(Fusion::ReciprocalRank, Fusion::from);
            let [bm25_weight, sparse_weight] = how.weights;
            let both = FusedSearcher::new(vec![(bm25, bm25_weight), (sparse, sparse_weight)], fusion);
            return Ok((Box::new(both), vectors));
        }
        if self.method == Method::Bm25 {
            let searcher: Box<dyn Searcher> = match cluster {
                Some(cluster) => Box::new(cluster_index::bm25(cluster, set, documents, analyzer, printer, cancel)?),
                None => Box::new(Bm25Index::build(documents, &printer.progress())?),
            };
            return Ok((searcher, None));
        }
        let mut vectors = self.vectors(printer, cancel)?;
        if let Some(pruning) = how.prune_documents {
            vectors.prune(pruning);
        }
        let searcher: Box<dyn Searcher> = if let Some(cluster) = cluster {
            let searcher = cluster_index::sparse(cluster, set, documents, &vectors, printer, cancel)?;
            Box::new(searcher.in_two_phases(how.phases()))
        } else {
            how.check_local()?;
            vectors.index(documents)
        };
        Ok((searcher, Some(vectors)))
    }

    /// The documents' vectors by the method: of the encoder, or lexical ones.
    pub(crate) fn vectors(&self, printer: &Printer, cancel: &Cancel) -> anyhow::Result<Vectors> {
        match self.method {
            Method::Bm25 => anyhow::bail!("BM25 has no vectors"),
            Method::Idf => self.lexical(printer, cancel),
            Method::Sparse | Method::Nested | Method::Hybrid => self.encoded(printer, cancel),
        }
    }

    fn lexical(&self, printer: &Printer, cancel: &Cancel) -> anyhow::Result<Vectors> {
        let folder = self.model()?;
        let tokenizer_file = settings::tokenizer_file(folder);
        let tokenizer = TextTokenizer::load(&tokenizer_file)?;
        let idf_file = tokenizer_file.with_file_name("idf.json");
        let template = match ModelDir::open(folder).and_then(|d| d.facts()) {
            Ok(facts) => facts.template,
            Err(_) => DocumentTemplate::default(),
        };
        let texts: Vec<String> = self.documents.iter().map(|d| template.apply(d)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let idf = if idf_file.is_file() {
            IdfTable::load(&idf_file, &tokenizer)?
        } else {
            printer.note("No idf.json beside the tokenizer: the corpus's own idf is used");
            let formula = IdfFormula::Bm25;
            let progress = printer.progress();
            IdfTable::build(texts.iter().copied(), &tokenizer, formula, &template.pattern, cancel, &progress)?.0
        };
        let (_, documents) =
            LexicalEncoder::fit(tokenizer.clone(), LexicalWeight::BM25, &texts, cancel, &printer.progress())?;
        let key = self.key(&["lexical", &files::sha256_file(&tokenizer_file)?.0, &format!("{template:?}")])?;
        let queries = Queries::Table(Box::new(QueryEncoder::new(tokenizer, idf)?));
        Ok(Vectors { documents, segments: None, queries, template, key })
    }

    fn encoded(&self, printer: &Printer, cancel: &Cancel) -> anyhow::Result<Vectors> {
        if self.method == Method::Nested {
            return self.nested(printer, cancel);
        }
        let read = |file: &Path| Ok(stored_vectors::read(file, self.documents)?.1);
        let (documents, side) = self.with_vectors(printer, cancel, read)?;
        Ok(Vectors { documents, segments: None, queries: side.queries, template: side.template, key: side.key })
    }

    /// One vector a segment.
    fn nested(&self, printer: &Printer, cancel: &Cancel) -> anyhow::Result<Vectors> {
        let side = self.side()?;
        let segments = if let Some(segments) = read_vectors(&side.file, self.documents) {
            printer.note(format!("Vectors of an earlier run are used: {}", side.file.display()));
            segments
        } else {
            side.template.require_fields(self.documents)?;
            let encoder = SparseEncoder::load(self.model()?, self.device)?;
            let texts: Vec<String> = self.documents.iter().map(|d| side.template.apply(d)).collect();
            let segments = encoder.encode_segments_reporting(&texts, &printer.progress(), cancel)?;
            write_vectors(&side.file, self.documents, &segments)?;
            segments
        };
        let documents = segments.iter().map(|of_document| maximum(of_document)).collect();
        let ModelSide { queries, template, key, .. } = side;
        Ok(Vectors { documents, segments: Some(segments), queries, template, key })
    }

    /// The embedded index over the model's vectors, with its query side; the vectors themselves are not kept in memory.
    pub(crate) fn index(&self, printer: &Printer, cancel: &Cancel) -> anyhow::Result<(InvertedIndex, Queries)> {
        let read = |file: &Path| stored_vectors::index(file, self.documents);
        let (index, side) = self.with_vectors(printer, cancel, read)?;
        Ok((index, side.queries))
    }

    /// Where the model's vectors of these documents are kept.
    pub(crate) fn vectors_file(&self) -> anyhow::Result<PathBuf> {
        Ok(self.side()?.file)
    }

    /// Reads the file of the model's vectors, which is made if it is not there; a stopped encoding goes on.
    fn with_vectors<T>(
        &self,
        printer: &Printer,
        cancel: &Cancel,
        read: impl Fn(&Path) -> anyhow::Result<T>,
    ) -> anyhow::Result<(T, ModelSide)> {
        let side = self.side()?;
        let is_there = FileMeta::load(&side.file).is_ok_and(|meta| meta.fits(&side.file));
        if is_there {
            match read(&side.file) {
                Ok(found) => {
                    printer.note(format!("Vectors of an earlier run are used: {}", side.file.display()));
                    return Ok((found, side));
                }
                Err(error) => printer.note(format!("Vectors of an earlier run are made anew: {error}")),
            }
        }
        side.template.require_fields(self.documents)?;
        let args = RuntimeArgs { runtime: Runtime::Nsparse, onnxruntime: None };
        let job = Job {
            model: files::sha256_bytes(side.key.as_bytes()),
            engine: self.device.to_string(),
            format: Format::Binary,
            weights: Precision::Full,
            quantize: None,
            block: BLOCK,
            batch_tokens: DEFAULT_BATCH_TOKENS as u64,
            id_field: self.set.fields.id.clone(),
            title_field: self.set.fields.title.clone(),
            text_field: self.set.fields.text.clone(),
            shard: None,
        };
        let plan = encode_job::Plan {
            job,
            source: encode_job::Source::File(self.set.folder.join("corpus.jsonl")),
            model: document_encoder::open(self.model()?, &args, &self.device.to_string())?,
            out: side.file.clone(),
            force: is_there,
        };
        if !plan.run(printer, cancel)?.is_finished {
            printer.note("The vectors made until now are kept: the same command goes on from there");
            return Err(Error::Cancelled.into());
        }
        Ok((read(&side.file)?, side))
    }

    fn side(&self) -> anyhow::Result<ModelSide> {
        let directory = ModelDir::open(self.model()?)?;
        let facts = directory.facts()?;
        let queries = Queries::open(&directory, self.device)?;
        let weights = files::sha256_file(&directory.file("model.safetensors"))?.0;
        let config = files::sha256_file(&directory.file("config.json"))?.0;
        let tokenizer = files::sha256_file(&directory.file("tokenizer.json"))?.0;
        let mut reading =
            serde_json::to_string(&(facts.activation, facts.max_tokens, &facts.dead_ids, &facts.template))?;
        if let Some(segments) = &facts.segments {
            reading.push_str(&serde_json::to_string(segments)?);
        }
        let is_nested = self.method == Method::Nested;
        let (kind, ending) = if is_nested { ("segments", "jsonl") } else { ("encoded", "nsv") };
        let key = self.key(&[kind, &weights, &config, &tokenizer, &reading])?;
        // Devices agree within rounding, not to the last bit.
        let device = self.device.to_string().replace(':', "-");
        let file = settings::cache_dir().join("vectors").join(format!("{key}-{device}.{ending}"));
        Ok(ModelSide { file, queries, template: facts.template, key })
    }

    /// A short content hash over the corpus and what makes its vectors.
    fn key(&self, parts: &[&str]) -> anyhow::Result<String> {
        let mut all = self.set.corpus_hash()?;
        for part in parts {
            all.push('\n');
            all.push_str(part);
        }
        let mut hash = files::sha256_bytes(all.as_bytes());
        hash.truncate(12);
        Ok(hash)
    }
}

/// Mean active dimensions of documents and queries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dimensions {
    /// Of a document.
    pub(crate) document_mean: f64,
    /// Share of a document's active dimensions that are not word pieces of its text, over all documents.
    pub(crate) expansion_share: f64,
    /// Of a query.
    pub(crate) query_mean: f64,
}

impl Vectors {
    /// Keeps what the rule keeps of each document, or of each of its segments.
    fn prune(&mut self, pruning: Pruning) {
        match &mut self.segments {
            None => self.documents.iter_mut().for_each(|vector| *vector = pruning.prune(vector)),
            Some(of_documents) => {
                of_documents.iter_mut().flatten().for_each(|vector| *vector = pruning.prune(vector));
                self.documents = of_documents.iter().map(|segments| maximum(segments)).collect();
            }
        }
        self.key = format!("{} {pruning}", self.key);
    }

    /// The embedded index over them.
    fn index(&self, documents: &[Document]) -> Box<dyn Searcher> {
        let ids = documents.iter().map(|d| d.id.clone());
        match &self.segments {
            None => Box::new(InvertedIndex::build(ids.zip(self.documents.iter().cloned()))),
            Some(segments) => Box::new(SegmentIndex::build(ids.zip(segments.iter().cloned()))),
        }
    }

    /// How dense documents and queries are.
    pub(crate) fn dimensions(&self, documents: &[Document], queries: &[SearchQuery]) -> anyhow::Result<Dimensions> {
        let (mut active, mut added) = (0, 0);
        for (document, vector) in documents.iter().zip(&self.documents) {
            let mut pieces = self.queries.tokenizer().pieces(&self.template.apply(document))?;
            pieces.sort_unstable();
            active += vector.len();
            added += vector.ids.iter().filter(|id| pieces.binary_search(id).is_err()).count();
        }
        let query_active: usize = queries.iter().map(|q| q.vector.len()).sum();
        Ok(Dimensions {
            document_mean: active as f64 / documents.len().max(1) as f64,
            expansion_share: added as f64 / active.max(1) as f64,
            query_mean: query_active as f64 / queries.len().max(1) as f64,
        })
    }
}

/// Queries as a searcher takes them: with vectors where there is a query side.
pub(crate) fn search_queries(queries: &[Query], encoder: Option<&Queries>) -> anyhow::Result<Vec<SearchQuery>> {
    let texts: Vec<&str> = queries.iter().map(|q| q.text.as_str()).collect();
    let vectors = match encoder {
        Some(encoder) => encoder.encode(&texts)?,
        None => vec![SparseVector::default(); queries.len()],
    };
    let pairs = queries.iter().zip(vectors);
    Ok(pairs.map(|(q, vector)| SearchQuery { id: q.id.clone(), text: q.text.clone(), vector }).collect())
}

/// Ranks queries in blocks, so that progress is seen and a stop is heard.
pub(crate) fn run(
    searcher: &dyn Searcher,
    queries: &[SearchQuery],
    depth: usize,
    progress: &dyn nsparse_core::Progress,
    cancel: &Cancel,
) -> anyhow::Result<Run> {
    let task = progress.start("Searching", queries.len() as u64);
    let mut out = Run::new();
    for block in queries.chunks(64) {
        cancel.check()?;
        for (query, hits) in block.iter().zip(searcher.search(block, depth)?) {
            out.insert(query.id.clone(), hits);
        }
        task.advance(block.len() as u64);
    }
    Ok(out)
}

/// A cached vector; a document's segments stand one after the other.
#[derive(Serialize, Deserialize)]
struct CachedVector {
    id: String,
    #[serde(flatten)]
    vector: SparseVector,
}

/// Cached vectors, if the file is whole and belongs to these documents in this order.
fn read_vectors(path: &Path, documents: &[Document]) -> Option<Vec<Vec<SparseVector>>> {
    let file = BufReader::new(std::fs::File::open(path).ok()?);
    let mut out: Vec<Vec<SparseVector>> = Vec::with_capacity(documents.len());
    for line in file.lines() {
        let cached: CachedVector = serde_json::from_str(&line.ok()?).ok()?;
        let done = out.len();
        if done > 0 && documents[done - 1].id == cached.id {
            out[done - 1].push(cached.vector);
        } else if documents.get(done)?.id == cached.id {
            out.push(vec![cached.vector]);
        } else {
            return None;
        }
    }
    (out.len() == documents.len()).then_some(out)
}

fn write_vectors(path: &Path, documents: &[Document], vectors: &[Vec<SparseVector>]) -> anyhow::Result<PathBuf> {
    files::write_atomic(path, |out| {
        for (document, segments) in documents.iter().zip(vectors) {
            for vector in segments {
                let line = CachedVector { id: document.id.clone(), vector: vector.clone() };
                serde_json::to_writer(&mut *out, &line).map_err(|e| Error::json(path, e))?;
                out.write_all(b"\n").map_err(|e| Error::io("write", path, e))?;
            }
        }
        Ok(())
    })?;
    Ok(path.to_path_buf())
}
