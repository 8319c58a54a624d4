//! Teachers that read query and document together: exact, and a pass through the network for each pair.

use std::collections::HashMap;
use std::path::PathBuf;

use nsparse_core::Cancel;
use nsparse_encoder::{CrossEncoder, Device};

use super::cache::{Key, Store, key};
use super::{CHUNK, Member, Request, identity};
use crate::sections::CrossTeacher;
use crate::{Error, Result};

/// A cross-encoder with its cache of scores.
pub(super) struct CrossMember {
    path: PathBuf,
    device: Device,
    max_tokens: Option<usize>,
    model: Option<CrossEncoder>,
    store: Store,
}

impl CrossMember {
    /// What its scores depend on.
    pub(super) fn identity(t: &CrossTeacher) -> Result<String> {
        identity(&t.path, &serde_json::json!({ "kind": "cross_encoder", "max_tokens": t.max_tokens }))
    }

    pub(super) fn new(t: &CrossTeacher, store: Store, device: Device) -> Self {
        Self { path: t.path.clone(), device, max_tokens: t.max_tokens, model: None, store }
    }
}

fn of_pair(request: &Request<'_>, (q, d): (usize, usize)) -> Key {
    key(&[request.queries[q].text, request.documents[d].text])
}

impl Member for CrossMember {
    fn items(&self, request: &Request<'_>) -> Vec<Key> {
        request.pairs().map(|pair| of_pair(request, pair)).collect()
    }

    fn is_kept(&self, item: &Key) -> bool {
        self.store.contains(item)
    }

    fn prepare(&mut self, requests: &[Request<'_>], cancel: &Cancel, done: &mut dyn FnMut(usize)) -> Result<usize> {
        let mut missing: HashMap<Key, (&str, &str)> = HashMap::new();
        for request in requests {
            for (q, d) in request.pairs() {
                let key = of_pair(request, (q, d));
                if !self.store.contains(&key) {
                    missing.insert(key, (request.queries[q].text, request.documents[d].text));
                }
            }
        }
        let mut missing: Vec<(Key, (&str, &str))> = missing.into_iter().collect();
        missing
            .sort_unstable_by_key(|&(key, (query, document))| (std::cmp::Reverse(query.len() + document.len()), key));
        for chunk in missing.chunks(CHUNK) {
            let model = match &mut self.model {
                Some(model) => model,
                None => self.model.insert(CrossEncoder::load(&self.path, self.device, self.max_tokens)?),
            };
            let pairs: Vec<(&str, &str)> = chunk.iter().map(|&(_, pair)| pair).collect();
            let scores = model.score_pairs(&pairs, cancel, |_| ())?;
            self.store.append(chunk.iter().zip(scores).map(|(c, s)| (c.0, s.to_le_bytes().to_vec())).collect())?;
            done(chunk.len());
        }
        Ok(missing.len())
    }

    fn scores(&mut self, request: &Request<'_>) -> Result<Vec<f32>> {
        let mut out = vec![f32::NAN; request.queries.len() * request.documents.len()];
        for (q, d) in request.pairs() {
            let bytes = self.store.get(&of_pair(request, (q, d)))?;
            let bytes: [u8; 4] = bytes
                .and_then(|b| b.try_into().ok())
                .ok_or_else(|| Error::config("a teacher's score was not prepared"))?;
            out[q * request.documents.len() + d] = f32::from_le_bytes(bytes);
        }
        Ok(out)
    }

    fn unload(&mut self) {
        self.model = None;
    }

    fn unit(&self) -> &'static str {
        "pairs"
    }
}
