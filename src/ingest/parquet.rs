//! Documents from Parquet: a row is a document, its columns are the fields; a column of maps from strings to floats may hold
//! vectors.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nsparse_core::Error;
use nsparse_opensearch::ingest::documents::{Block, Documents, Next};
use nsparse_opensearch::ingest::ready::Members;
use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;

/// Rows that are read together.
const BLOCK: usize = 1000;

/// The rows of a file, one after another.
pub(crate) struct Rows {
    name: PathBuf,
    members: Members,
    iterator: RowIter<'static>,
    read: usize,
}

impl Rows {
    /// Reads the file's end, which says where its rows are.
    ///
    /// # Errors
    /// If it cannot be read, or is no Parquet.
    pub(crate) fn open(path: &Path, members: &Members) -> anyhow::Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let reader = SerializedFileReader::new(file).map_err(|e| Error::file(path, e.to_string()))?;
        let iterator = RowIter::from_file_into(Box::new(reader));
        Ok(Self { name: path.to_path_buf(), members: members.clone(), iterator, read: 0 })
    }
}

impl Documents for Rows {
    fn next(&mut self, _patience: Duration) -> nsparse_opensearch::Result<Next> {
        let mut block = Block::default();
        for row in self.iterator.by_ref().take(BLOCK) {
            self.read += 1;
            let row = row.map_err(|e| Error::line(&self.name, self.read, e.to_string()))?;
            block.push(&self.name, self.read, row.to_json_value().to_string().as_bytes(), &self.members)?;
        }
        Ok(if block.is_empty() { Next::End } else { Next::Block(block) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::sync::Arc;

    use parquet::column::writer::ColumnWriter;
    use parquet::data_type::ByteArray;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    #[test]
    fn rows_become_documents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docs.parquet");
        let schema =
            "message doc { REQUIRED BYTE_ARRAY id (UTF8); OPTIONAL BYTE_ARRAY text (UTF8); REQUIRED INT64 n; }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut writer = SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::default()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        while let Some(mut column) = group.next_column().unwrap() {
            let strings = |range: std::ops::Range<usize>, name: &str| -> Vec<ByteArray> {
                range.map(|i| ByteArray::from(format!("{name}{i}").into_bytes())).collect()
            };
            match column.untyped() {
                ColumnWriter::ByteArrayColumnWriter(w) if w.get_descriptor().name() == "id" => {
                    w.write_batch(&strings(0..1500, "d"), None, None).unwrap();
                }
                // The last has no text.
                ColumnWriter::ByteArrayColumnWriter(w) => {
                    let levels: Vec<i16> = (0..1500).map(|i| i16::from(i < 1499)).collect();
                    w.write_batch(&strings(0..1499, "text "), Some(&levels), None).unwrap();
                }
                ColumnWriter::Int64ColumnWriter(w) => {
                    w.write_batch(&(0..1500).collect::<Vec<i64>>(), None, None).unwrap();
                }
                _ => unreachable!("the schema has no other columns"),
            }
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();

        let members = Members { id: "id".to_owned(), checked: None, replaced: None, bound: Vec::new() };
        let mut rows = Rows::open(&path, &members).unwrap();
        let mut found = Vec::new();
        while let Next::Block(block) = rows.next(Duration::ZERO).unwrap() {
            found.extend(
                block
                    .entries()
                    .iter()
                    .map(|e| (e.id.clone(), serde_json::from_slice::<serde_json::Value>(block.json(e)).unwrap())),
            );
        }
        assert_eq!(found.len(), 1500);
        assert_eq!(found[7], ("d7".to_owned(), serde_json::json!({ "id": "d7", "text": "text 7", "n": 7 })));
        assert!(found[1499].1["text"].is_null());
        assert!(Rows::open(&folder.path().join("none"), &members).is_err());
    }
}
