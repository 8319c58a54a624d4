//! `query`: where query weights come from.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What gives a query's tokens their weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The idf table, as it is.
    #[default]
    Idf,
    /// A table with one free weight a token, `relu(x)`, that starts at the idf table.
    TrainedIdf,
    /// A table that is a linear layer over the word embeddings, `ln(1 + relu(w·e + b))`: Li-LSR, arXiv 2505.01452.
    Table,
    /// The document encoder itself: queries are expanded too, and need the network at search time.
    Siamese,
}

/// Where the linear layer of [`Side::Table`] begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableStart {
    /// Fitted to the idf table by ridge regression: `w·e + b ≈ idf`.
    #[default]
    Idf,
    /// Even in ±1/√H, as a new linear layer of PyTorch.
    Random,
}

/// `query`: where query weights come from; all but `side` only where something is learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuerySection {
    /// `idf`, `trained_idf`, `table` or `siamese`.
    pub side: Side,
    /// With `trained_idf` and `table`: peak learning rate of the table, 1e-3 where none is given. It follows the
    /// stage's warmup and decay; weight decay is 0.
    pub learning_rate: Option<f64>,
    /// With `table`: `idf` or `random`.
    pub start: Option<TableStart>,
    /// Weight of FLOPS on the batch's query vectors.
    pub flops: f64,
    /// Weight of L1 on the batch's query vectors.
    pub l1: f64,
    /// Steps of the quadratic ramp of both; 0: the whole weight from the first step on.
    pub ramp_steps: usize,
}

impl QuerySection {
    /// The table's learning rate where none is given.
    pub const LEARNING_RATE: f64 = 1e-3;

    /// Peak learning rate of the table.
    pub fn rate(&self) -> f64 {
        self.learning_rate.unwrap_or(Self::LEARNING_RATE)
    }

    /// Whether a table is learned that search only looks up.
    pub fn learns_table(&self) -> bool {
        matches!(self.side, Side::TrainedIdf | Side::Table)
    }

    /// Checks the section. `trains`: there is a contrastive stage; `matches`: the sparsity target is expected matches.
    ///
    /// # Errors
    /// A value out of range, or a key that would do nothing.
    pub fn validate(&self, trains: bool, matches: bool) -> Result<()> {
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`query.{key}`: {problem}")));
        for (key, value) in [("flops", self.flops), ("l1", self.l1)] {
            if !(value >= 0.0 && value.is_finite()) {
                return bad(key, "a number of at least 0");
            }
        }
        if self.learning_rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
            return bad("learning_rate", "a number above 0");
        }
        if self.learning_rate.is_some() && !self.learns_table() {
            return bad("learning_rate", "only `side: trained_idf` and `side: table` have a table that is learned");
        }
        if self.start.is_some() && self.side != Side::Table {
            return bad("start", "only `side: table` uses it");
        }
        if self.side == Side::Idf && self.flops + self.l1 > 0.0 {
            return bad("flops", "with `side: idf` query weights are fixed, so a penalty on them does nothing");
        }
        if self.ramp_steps > 0 && self.flops + self.l1 == 0.0 {
            return bad("ramp_steps", "there is no penalty whose weight could rise: set `query.flops` or `query.l1`");
        }
        if self.side != Side::Idf && !trains {
            return bad("side", "only the contrastive stage trains the query side, and `train.steps` is 0");
        }
        if self.side == Side::Siamese && matches {
            return bad(
                "side",
                "with `siamese` a query's tokens are not known beforehand: use `train.losses.flops.target.doc_dims`",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use crate::TrainConfig;

    #[test]
    fn keys_that_would_do_nothing_are_refused() {
        for (query, more, key) in [
            ("{learning_rate: 1e-3}", "", "learning_rate"),
            ("{side: siamese, learning_rate: 1e-3}", "", "learning_rate"),
            ("{side: trained_idf, learning_rate: 0}", "", "learning_rate"),
            ("{side: trained_idf, start: idf}", "", "start"),
            ("{flops: 1e-3}", "", "flops"),
            ("{side: table, l1: -1}", "", "l1"),
            ("{side: table, ramp_steps: 5}", "", "ramp_steps"),
            ("{side: table}", "train: {steps: 0}\n", "side"),
            ("{side: siamese}", "train: {losses: {flops: {target: {flops: 2}}}}\n", "side"),
        ] {
            let text = format!("model: {{path: m}}\ndata: {{dir: d}}\nquery: {query}\n{more}");
            let message = TrainConfig::parse(&text, &[]).unwrap_err().to_string();
            assert!(message.contains(&format!("`query.{key}`")), "{query}: {message}");
        }
        for query in
            ["{side: trained_idf, learning_rate: 5e-3, l1: 1e-4, ramp_steps: 9}", "{side: siamese, flops: 1e-4}"]
        {
            let text = format!("model: {{path: m}}\ndata: {{dir: d}}\nquery: {query}\n");
            let config = TrainConfig::parse(&text, &[]).unwrap();
            assert_eq!(TrainConfig::parse(&config.to_yaml().unwrap(), &[]).unwrap(), config);
        }
    }
}
