//! How libraries report long work without printing: the binary draws bars, tests pass [`NoProgress`].

/// Opens tasks. `Sync`, so that workers can share it.
pub trait Progress: Send + Sync {
    /// A new task of `total` units (0 where the number is not known), named by what is done: "Encoding".
    fn start(&self, name: &str, total: u64) -> Box<dyn Task>;

    /// Something the user should know while the work goes on. Not said where nothing is shown.
    fn warn(&self, _text: &str) {}
}

/// One running task; it ends when it is dropped.
pub trait Task: Send + Sync {
    /// `units` more are done.
    fn advance(&self, units: u64);
    /// A short text beside the bar: loss, rate, rejected so far.
    fn message(&self, text: &str);
}

/// Reports nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&self, _name: &str, _total: u64) -> Box<dyn Task> {
        Box::new(Self)
    }
}

impl Task for NoProgress {
    fn advance(&self, _units: u64) {}
    fn message(&self, _text: &str) {}
}
