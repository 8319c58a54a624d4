//! Two packages, a folder for deployment files, and clients, for the tests of versions behind an alias.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::path::PathBuf;
use std::time::Duration;

use nsparse_core::{Cancel, NoProgress};
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_integration_tests::random_model::{Shape, write};
use nsparse_integration_tests::standin::{EncodeText, StandIn, encode_with};
use nsparse_opensearch::ml::{DeployOptions, Deployment, Poll, deploy};
use nsparse_opensearch::{Cluster, ClusterConfig, Error, RetryPolicy};
use tempfile::TempDir;

/// Two small models with their packages.
pub(crate) struct Fixture {
    folder: TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        for (number, name) in [("", "tiny"), ("2", "tiny2")] {
            let model = fixture.path(&format!("model{number}"));
            write(&model, &Shape::small(), 5 + number.len() as u64).unwrap();
            nsparse_exporter::export(&model, &fixture.path(&format!("package{number}")), name, "1.0.0").unwrap();
        }
        fixture
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub(crate) fn package(&self, name: &str) -> PathBuf {
        self.path(name)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.path("deployment.json")
    }

    pub(crate) fn load(&self) -> Deployment {
        Deployment::load(&self.file()).unwrap()
    }

    /// For the stand-in's document models.
    pub(crate) fn encode(&self) -> EncodeText {
        let model = self.path("model");
        encode_with(move || SparseEncoder::load(&model, Device::Cpu).unwrap())
    }

    pub(crate) fn deploy(
        &self,
        package: &str,
        cluster: &Cluster,
        options: &DeployOptions,
    ) -> Result<Deployment, Error> {
        deploy(cluster, &self.package(package), options, &never(), &NoProgress)
    }
}

/// A client that tries a second time and then gives up.
pub(crate) fn cluster(standin: &StandIn) -> Cluster {
    at(standin.url())
}

pub(crate) fn at(url: &str) -> Cluster {
    let retry = RetryPolicy { min_delay: Duration::from_millis(1), retries: 1, ..RetryPolicy::default() };
    Cluster::connect_with(&ClusterConfig::new(url), retry).unwrap()
}

pub(crate) fn fast() -> Poll {
    Poll { interval: Duration::from_millis(1), deadline: Duration::from_secs(20) }
}

pub(crate) fn never() -> Cancel {
    Cancel::default()
}
