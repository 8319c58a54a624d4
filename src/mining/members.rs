//! A teacher of a recipe's section `teachers` as a judge: dense, cross-encoder, sparse, BM25, or a file of scores.

use std::cell::RefCell;
use std::path::Path;

use nsparse_core::beir::Document;
use nsparse_core::{Cancel, DocumentTemplate, Qrels, SearchQuery};
use nsparse_retrieval::mine::Judge;
use nsparse_trainer::sections::{TeacherSection, TeachersSection};
use nsparse_trainer::teachers::{Request, Surroundings, Teachers, Text};

use crate::failure::usage;
use crate::printer::Printer;
use crate::settings;

/// One teacher, whose vectors and scores are kept in the cache.
pub(crate) struct MemberTeacher {
    teachers: RefCell<Teachers>,
    is_cheap: bool,
}

impl MemberTeacher {
    /// Opens the only member of a file's section, and says what rows call it.
    ///
    /// # Errors
    /// If the file has no such section or several members, or the member cannot be opened.
    pub(crate) fn open(
        file: &Path,
        device: &str,
        documents: &[Document],
        qrels: &Qrels,
        printer: &Printer,
        cancel: &Cancel,
    ) -> anyhow::Result<(Self, String)> {
        let section = TeachersSection::load(file)?;
        let [member] = &section.members[..] else {
            return Err(usage(
                format!("`{}` names {} teachers", file.display(), section.members.len()),
                "limits look at one teacher's scores as they are: name one member",
            ));
        };
        let template = DocumentTemplate::default();
        let templated = || {
            let text = |d: &Document| Document { id: d.id.clone(), text: template.apply(d), ..Document::default() };
            Ok(documents.iter().map(text).collect())
        };
        let progress = printer.progress();
        let around = Surroundings {
            device: settings::device(device)?,
            cache: settings::cache_dir().join("teachers"),
            is_cache_written: true,
            documents: &templated,
            is_asked: &|query| qrels.contains_key(query),
            cancel,
            progress: &progress,
        };
        let teachers = Teachers::open(&section, &around)?;
        let hash: String = teachers.identity().chars().take(super::SHORT).collect();
        let kind = member.name().split(' ').next().unwrap_or_default().to_owned();
        let is_cheap = !matches!(member, TeacherSection::CrossEncoder(_));
        Ok((Self { teachers: RefCell::new(teachers), is_cheap }, format!("{kind}:{hash}")))
    }
}

impl Judge for &MemberTeacher {
    fn scores(&self, query: &SearchQuery, documents: &[(&str, &str)]) -> nsparse_retrieval::Result<Vec<Option<f32>>> {
        let request = Request {
            queries: vec![Text { id: &query.id, text: &query.text }],
            documents: documents.iter().map(|&(id, text)| Text { id, text }).collect(),
            wanted: vec![(0..documents.len()).collect()],
        };
        let failed = |e: nsparse_trainer::Error| nsparse_core::Error::other(e.fault(), e);
        let all = self.teachers.borrow_mut().scores(&request).map_err(failed)?;
        let (_, scores) = &all.teachers[0];
        Ok(scores.iter().map(|&score| (!score.is_nan()).then_some(score)).collect())
    }

    fn is_cheap(&self) -> bool {
        self.is_cheap
    }
}
