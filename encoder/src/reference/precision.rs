//! In which numbers a backend of tensor operations multiplies matrices.

use candle_core::{DType, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The numbers of matrix products. Parameters, gradients, `LayerNorm`, softmax, GELU, residual sums, the head's
/// maximum and losses are f32 with either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision; TF32 stays off.
    F32,
    /// Operands and result are rounded to bfloat16 (8 significant bits), sums in f32. Like PyTorch's autocast, but
    /// for GELU and bias, which are f32 here.
    Bf16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    /// `f32` or `bf16`.
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(nsparse_core::Error::invalid_with_hint(
                format!("`{s}` is no precision"),
                "use f32, or bf16 for matrix products on cuda",
            )
            .into()),
        }
    }
}

impl Precision {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// A tensor as an operand of products; contiguous, as products of batches need it.
    pub(super) fn operand(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(tensor.to_dtype(self.dtype())?.contiguous()?)
    }

    /// a · b as f32.
    pub(super) fn product(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(self.operand(a)?.matmul(&self.operand(b)?)?.to_dtype(DType::F32)?)
    }

    /// a · bᵀ as f32.
    pub(super) fn product_transposed(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(self.operand(a)?.matmul(&self.operand(b)?.t()?)?.to_dtype(DType::F32)?)
    }

    /// aᵀ · b as f32.
    pub(super) fn transposed_product(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok(self.operand(a)?.t()?.matmul(&self.operand(b)?)?.to_dtype(DType::F32)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use candle_core::Device;

    use super::*;

    #[test]
    fn precisions_have_names() {
        for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
            assert_eq!(name.parse::<Precision>().unwrap(), precision);
            assert_eq!(precision.to_string(), name);
            assert_eq!(serde_json::to_value(precision).unwrap(), name);
        }
        assert!("fp16".parse::<Precision>().unwrap_err().hint().unwrap().contains("bf16"));
    }

    #[test]
    fn bf16_rounds_operands_and_result_but_not_the_sum() {
        let one = |values: &[f32]| Tensor::from_slice(values, (1, values.len()), &Device::Cpu).unwrap();
        let dot = |p: Precision, a: &[f32], b: &[f32]| {
            p.product_transposed(&one(a), &one(b)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
        };
        // 257 needs nine bits: as an operand it becomes 256.
        assert_eq!(dot(Precision::F32, &[257.0], &[1.0]).to_bits(), 257f32.to_bits());
        assert_eq!(dot(Precision::Bf16, &[257.0], &[1.0]).to_bits(), 256f32.to_bits());
        // 256 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 is 264 in an f32 sum; a sum in bf16 would stay at 256.
        assert_eq!(
            dot(Precision::Bf16, &[256.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], &[1.0; 9]).to_bits(),
            264f32.to_bits()
        );
    }
}
