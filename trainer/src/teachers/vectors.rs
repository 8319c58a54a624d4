//! Teachers that read query and document apart: dense and sparse encoders. A text's vector is computed once and kept
//! with 16-bit floats; a score is the dot product of two such vectors.

use std::collections::HashMap;
use std::path::PathBuf;

use half::f16;
use nsparse_core::model_dir::{Activation, ModelDir};
use nsparse_core::{Cancel, NoProgress, QueryEncoder, SparseVector, TextTokenizer};
use nsparse_encoder::{BertConfig, BertMlm, DenseEncoder, DenseSettings, Device, EncodeSettings, SparseEncoder};

use super::cache::{Key, Store, key};
use super::{CHUNK, Member, Request, identity};
use crate::sections::{DenseTeacher, SparseTeacher, TeacherQuery};
use crate::{Error, Result};

/// A text's vector.
#[derive(Debug, Clone, PartialEq)]
enum Vector {
    Dense(Vec<f32>),
    Sparse(SparseVector),
}

impl Vector {
    fn dot(&self, other: &Self) -> f32 {
        match (self, other) {
            (Self::Dense(a), Self::Dense(b)) => nsparse_encoder::dense::dot(a, b),
            (Self::Sparse(a), Self::Sparse(b)) => a.dot(b) as f32,
            _ => unreachable!("a teacher's vectors are of one form"),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Dense(values) => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::Sparse(vector) => vector
                .iter()
                .flat_map(|(id, w)| {
                    let ([a, b, c, d], [e, f]) = (id.to_le_bytes(), f16::from_f32(w).to_le_bytes());
                    [a, b, c, d, e, f]
                })
                .collect(),
        }
    }
}

/// What the vectors come from.
enum Source {
    Dense { settings: DenseSettings, model: Option<DenseEncoder> },
    Sparse { settings: SparseSettings, model: Option<SparseEncoder> },
}

/// How a sparse teacher's folder is read.
#[derive(Debug, Clone)]
pub(super) struct SparseSettings {
    encode: EncodeSettings,
    query: TeacherQuery,
}

/// A dense or sparse encoder with its cache.
pub(super) struct VectorMember {
    path: PathBuf,
    device: Device,
    prefixes: [String; 2],
    source: Source,
    /// The query side of a doc-only model: cheap, and not kept.
    queries: Option<QueryEncoder>,
    store: Store,
}

impl VectorMember {
    /// A dense teacher's settings and identity.
    pub(super) fn dense_settings(t: &DenseTeacher) -> Result<(DenseSettings, String)> {
        let found = DenseSettings::of_folder(&t.path)?;
        let settings = DenseSettings {
            pooling: t.pooling.unwrap_or(found.pooling),
            normalize: t.normalize.unwrap_or(found.normalize),
            max_tokens: t.max_tokens.unwrap_or(found.max_tokens),
        };
        let about = serde_json::json!({
            "kind": "dense", "pooling": settings.pooling, "normalize": settings.normalize,
            "max_tokens": settings.max_tokens,
        });
        Ok((settings, identity(&t.path, &about)?))
    }

    /// A dense teacher.
    pub(super) fn dense(t: &DenseTeacher, settings: DenseSettings, store: Store, device: Device) -> Self {
        Self {
            path: t.path.clone(),
            device,
            prefixes: [t.query_prefix.clone(), t.document_prefix.clone()],
            source: Source::Dense { settings, model: None },
            queries: None,
            store,
        }
    }

    /// A sparse teacher's settings and identity; `number`: its place among the members, for messages.
    pub(super) fn sparse_settings(t: &SparseTeacher, number: usize) -> Result<(SparseSettings, String)> {
        let folder = ModelDir::open(&t.path)?;
        let mut encode = if folder.file("nsparse.json").is_file() {
            if t.activation.is_some() {
                return Err(Error::config(format!(
                    "`teachers.members[{number}].activation`: `{}` has an nsparse.json, which says it; take the key out",
                    t.path.display()
                )));
            }
            let facts = folder.facts()?;
            let zeroed = folder.zeroed_ids()?;
            EncodeSettings {
                segments: facts.segments,
                ..EncodeSettings::new(facts.activation, facts.max_tokens, zeroed)
            }
        } else {
            let positions = BertConfig::load(&folder.file("config.json"))?.max_position_embeddings;
            let special = folder.tokenizer()?.special().all.clone();
            EncodeSettings::new(t.activation.unwrap_or(Activation::Splade), positions.min(512), special)
        };
        encode.max_tokens = t.max_tokens.unwrap_or(encode.max_tokens);
        let has_idf = folder.file("idf.json").is_file();
        let query = t.query.unwrap_or(if has_idf { TeacherQuery::Idf } else { TeacherQuery::Encoder });
        if query == TeacherQuery::Idf && !has_idf {
            return Err(Error::config(format!(
                "`teachers.members[{number}].query`: `idf` needs an idf.json in `{}`",
                t.path.display()
            )));
        }
        let about = serde_json::json!({
            "kind": "sparse", "activation": encode.activation, "max_tokens": encode.max_tokens,
            "zeroed": encode.zeroed, "segments": encode.segments,
        });
        Ok((SparseSettings { encode, query }, identity(&t.path, &about)?))
    }

    /// A sparse teacher.
    pub(super) fn sparse(t: &SparseTeacher, settings: SparseSettings, store: Store, device: Device) -> Result<Self> {
        let queries = match settings.query {
            TeacherQuery::Idf => Some(ModelDir::open(&t.path)?.query_encoder()?),
            TeacherQuery::Encoder => None,
        };
        Ok(Self {
            path: t.path.clone(),
            device,
            prefixes: [String::new(), String::new()],
            source: Source::Sparse { settings, model: None },
            queries,
            store,
        })
    }

    /// The texts that a request's vectors are made of, with their keys.
    fn texts(&self, request: &Request<'_>) -> Vec<(Key, String)> {
        let [of_query, of_document] = &self.prefixes;
        let queries =
            request.queries.iter().filter(|_| self.queries.is_none()).map(|t| format!("{of_query}{}", t.text));
        let documents = request.documents.iter().map(|t| format!("{of_document}{}", t.text));
        queries.chain(documents).map(|text| (key(&[&text]), text)).collect()
    }

    fn compute(&mut self, texts: &[&str], cancel: &Cancel) -> Result<Vec<Vector>> {
        match &mut self.source {
            Source::Dense { settings, model } => {
                let model = match model {
                    Some(model) => model,
                    None => model.insert(DenseEncoder::load(&self.path, self.device, *settings)?),
                };
                Ok(model.encode(texts, cancel, |_| ())?.into_iter().map(Vector::Dense).collect())
            }
            Source::Sparse { settings, model } => {
                let model = if let Some(model) = model {
                    model
                } else {
                    let bert = BertMlm::load(&self.path, 0)?;
                    if bert.head_is_new {
                        return Err(nsparse_core::Error::file(
                            &self.path.join("model.safetensors"),
                            "it has no masked-language-model head (`cls.predictions.…`), so it is no sparse encoder",
                        )
                        .into());
                    }
                    let tokenizer = TextTokenizer::load(&self.path.join("tokenizer.json"))?;
                    model.insert(SparseEncoder::new(bert, self.device, tokenizer, settings.encode.clone())?)
                };
                let vectors = model.encode_reporting(texts, &NoProgress, cancel)?;
                Ok(vectors.into_iter().map(Vector::Sparse).collect())
            }
        }
    }

    /// A kept vector.
    fn kept(&self, key: &Key) -> Result<Vector> {
        let bytes = self.store.get(key)?.ok_or_else(|| Error::config("a teacher's vector was not prepared"))?;
        Ok(match &self.source {
            Source::Dense { .. } => {
                Vector::Dense(bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
            }
            Source::Sparse { .. } => {
                let mut vector = SparseVector::default();
                for b in bytes.chunks_exact(6) {
                    vector.ids.push(u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                    vector.weights.push(f16::from_le_bytes([b[4], b[5]]).to_f32());
                }
                Vector::Sparse(vector)
            }
        })
    }
}

impl Member for VectorMember {
    fn items(&self, request: &Request<'_>) -> Vec<Key> {
        self.texts(request).into_iter().map(|(key, _)| key).collect()
    }

    fn is_kept(&self, item: &Key) -> bool {
        self.store.contains(item)
    }

    fn prepare(&mut self, requests: &[Request<'_>], cancel: &Cancel, done: &mut dyn FnMut(usize)) -> Result<usize> {
        let mut missing: HashMap<Key, String> = HashMap::new();
        for (key, text) in requests.iter().flat_map(|request| self.texts(request)) {
            if !self.store.contains(&key) {
                missing.insert(key, text);
            }
        }
        // Texts of like length are computed together; the key makes the order one of its own.
        let mut missing: Vec<(Key, String)> = missing.into_iter().collect();
        missing.sort_unstable_by(|a, b| b.1.len().cmp(&a.1.len()).then(a.0.cmp(&b.0)));
        for chunk in missing.chunks(CHUNK) {
            let texts: Vec<&str> = chunk.iter().map(|(_, text)| text.as_str()).collect();
            let vectors = self.compute(&texts, cancel)?;
            let records = chunk.iter().zip(vectors).map(|((key, _), vector)| (*key, vector.to_bytes())).collect();
            self.store.append(records)?;
            done(chunk.len());
        }
        Ok(missing.len())
    }

    fn scores(&mut self, request: &Request<'_>) -> Result<Vec<f32>> {
        let [of_query, of_document] = &self.prefixes;
        let queries: Vec<Vector> = match &self.queries {
            Some(encoder) => {
                request.queries.iter().map(|t| Ok(Vector::Sparse(encoder.encode(t.text)?))).collect::<Result<_>>()?
            }
            None => request
                .queries
                .iter()
                .map(|t| self.kept(&key(&[&format!("{of_query}{}", t.text)])))
                .collect::<Result<_>>()?,
        };
        let documents: Vec<Vector> = request
            .documents
            .iter()
            .map(|t| self.kept(&key(&[&format!("{of_document}{}", t.text)])))
            .collect::<Result<_>>()?;
        let mut out = vec![f32::NAN; queries.len() * documents.len()];
        for (q, d) in request.pairs() {
            out[q * documents.len() + d] = queries[q].dot(&documents[d]);
        }
        Ok(out)
    }

    fn unload(&mut self) {
        match &mut self.source {
            Source::Dense { model, .. } => *model = None,
            Source::Sparse { model, .. } => *model = None,
        }
    }
}
