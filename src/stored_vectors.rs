//! Files of vectors (`nsparse encode --format binary`) against the documents that they should be of.

use std::collections::HashMap;
use std::path::Path;

use nsparse_core::SparseVector;
use nsparse_core::beir::Document;
use nsparse_core::vector_files::VectorFile;
use nsparse_retrieval::InvertedIndex;

use crate::failure::usage;

/// The documents' vectors in their order, with the vocabulary.
pub(crate) fn read(path: &Path, documents: &[Document]) -> anyhow::Result<(Vec<String>, Vec<SparseVector>)> {
    let file = VectorFile::open(path)?;
    let vocabulary = file.header().vocabulary.clone();
    let mut places = Places::new(path, documents);
    let mut vectors = vec![SparseVector::default(); documents.len()];
    for item in file {
        let (id, vector) = item?;
        vectors[places.take(&id)?] = vector;
    }
    places.check_all()?;
    Ok((vocabulary, vectors))
}

/// The embedded index over them, in the documents' order; only the index is held in memory.
pub(crate) fn index(path: &Path, documents: &[Document]) -> anyhow::Result<InvertedIndex> {
    let mut places = Places::new(path, documents);
    let mut failed = None;
    let mut in_order = true;
    let mut next = 0;
    let vectors = VectorFile::open(path)?.map_while(|item| {
        let item = item.map_err(anyhow::Error::from).and_then(|(id, vector)| {
            in_order &= places.take(&id)? == next;
            next += 1;
            Ok((id, vector))
        });
        item.map_err(|error| failed = Some(error)).ok()
    });
    let index = InvertedIndex::build(vectors);
    if let Some(error) = failed {
        return Err(error);
    }
    places.check_all()?;
    if in_order {
        return Ok(index);
    }
    // Ties stand in the order of the index, so it has to be the corpus's.
    let (_, vectors) = read(path, documents)?;
    Ok(InvertedIndex::build(documents.iter().map(|d| d.id.clone()).zip(vectors)))
}

/// Which documents have got their vector.
struct Places<'a> {
    path: &'a Path,
    documents: &'a [Document],
    by_id: HashMap<&'a str, usize>,
    seen: Vec<bool>,
}

impl<'a> Places<'a> {
    fn new(path: &'a Path, documents: &'a [Document]) -> Self {
        let by_id = documents.iter().enumerate().map(|(i, d)| (d.id.as_str(), i)).collect();
        Self { path, documents, by_id, seen: vec![false; documents.len()] }
    }

    fn take(&mut self, id: &str) -> anyhow::Result<usize> {
        let Some(&place) = self.by_id.get(id) else {
            return Err(usage(
                format!("`{}` has a vector of `{id}`, which is none of these documents", self.path.display()),
                "name the documents that were encoded",
            ));
        };
        self.seen[place] = true;
        Ok(place)
    }

    fn check_all(&self) -> anyhow::Result<()> {
        let Some(first) = self.seen.iter().position(|seen| !seen) else { return Ok(()) };
        let without = self.seen.iter().filter(|seen| !**seen).count();
        let id = &self.documents[first].id;
        Err(usage(
            format!("{without} documents have no vector in `{}`, the first is `{id}`", self.path.display()),
            "encode all of them; shards are put together by `nsparse reduce`",
        ))
    }
}
