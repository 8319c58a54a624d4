//! What was being done when a cluster refused, and the kinds of reasons it may have.

/// What was being done when the answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// `POST model_groups/_register` and the search before it.
    Group,
    /// `POST models/_register_meta`.
    Register,
    /// `POST models/_register` with a URL.
    RegisterUrl,
    /// `POST models/{id}/upload_chunk/{n}`.
    Upload,
    /// `GET models/{id}`, `GET tasks/{id}`, `POST models/_search`.
    Status,
    /// `POST models/{id}/_deploy` and its task.
    Deploy,
    /// `POST models/{id}/_predict`.
    Predict,
    /// `POST models/{id}/_undeploy`.
    Undeploy,
    /// `DELETE models/{id}`, `DELETE model_groups/{id}`.
    Delete,
    /// Ingest and search pipelines.
    Pipeline,
    /// Making, reading or deleting an index.
    Index,
    /// Indexing documents.
    Ingest,
    /// Searching.
    Search,
}

impl Cause {
    /// All of them, in the order in which they are told.
    pub(super) const ALL: [Self; 13] = [
        Self::SwitchedOff,
        Self::NoMlCommons,
        Self::NoEligibleNode,
        Self::Limit,
        Self::Natives,
        Self::ContentChanged,
        Self::Package,
        Self::State,
        Self::NotFound,
        Self::Exists,
        Self::Denied,
        Self::Request,
        Self::Unknown,
    ];

    /// A heading for its rows.
    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::SwitchedOff => "Switched off in the cluster",
            Self::NoMlCommons => "Plugins that are missing",
            Self::NoEligibleNode => "No node may run models",
            Self::Limit => "Memory, disk and limits",
            Self::Natives => "libtorch on the nodes",
            Self::ContentChanged => "Bytes that are not those registered",
            Self::Package => "The package",
            Self::State => "The model's or group's state",
            Self::NotFound => "Gone, or never there",
            Self::Exists => "There already",
            Self::Denied => "Users and permissions",
            Self::Request => "Requests of other programs",
            Self::Unknown => "Anything else",
        }
    }
}

impl Step {
    /// "Failed to …": the verb of a message.
    pub(super) fn verb(self) -> &'static str {
        match self {
            Self::Group => "set up the group of",
            Self::Register | Self::RegisterUrl => "register",
            Self::Upload => "upload",
            Self::Status => "look up",
            Self::Deploy => "deploy",
            Self::Predict => "predict with",
            Self::Undeploy => "undeploy",
            Self::Delete => "delete",
            Self::Pipeline | Self::Index => "set up",
            Self::Ingest => "index",
            Self::Search => "search",
        }
    }
}

/// Kinds of causes that a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The thing asked for is not there (any more).
    NotFound,
    /// The thing is there already.
    Exists,
    /// The cluster has no ML Commons.
    NoMlCommons,
    /// A cluster setting forbids it.
    SwitchedOff,
    /// No node may run models.
    NoEligibleNode,
    /// A memory, disk or model-count limit is reached.
    Limit,
    /// The bytes in the cluster are not those that were registered.
    ContentChanged,
    /// The package's files are not what the cluster expects.
    Package,
    /// The node has no libtorch and cannot fetch one.
    Natives,
    /// The model is not deployed, or deployed where it must not be.
    State,
    /// The request is wrong.
    Request,
    /// Not allowed, or not known to the cluster as a user.
    Denied,
    /// Answers that no row of the table knows.
    Unknown,
}
