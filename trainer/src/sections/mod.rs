//! The sections of a recipe, with their defaults. A key that is not listed here is an error.

mod long_documents;
mod losses;
mod model;
mod penalties;
mod query;
mod sets;
mod stages;
mod teachers;
mod watch;

pub use losses::{
    Candidates, FalseNegativeSection, InfoNceSection, KlSection, LexicalSection, LossSection, MarginMseSection, Teacher,
};
pub use model::{DataSection, IdfSection, ModelSection, RandomModel, RunSection};
pub use penalties::{AntiZeroSection, DfSection, FlopsForm, FlopsSection, L1Section, TargetSection};
pub use query::{QuerySection, Side, TableStart};
pub use sets::{IdSpace, Missing, Mixing, NegativeOrder, SetSection, SetSource, ShortRows};
pub use stages::{CalibrationSection, Decay, LearningRate, OptimizerSection, TrainSection, WarmStartSection, When};
pub use teachers::{
    Bm25Teacher, CrossTeacher, DenseTeacher, MissingScore, ScoresTeacher, SparseTeacher, TeacherQuery, TeacherSection,
    TeachersSection,
};
pub use watch::{CheckpointSection, EvalSection, GuardAction, GuardSection};
