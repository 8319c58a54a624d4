//! Parameters in one flat buffer, sorted by name: what kernels read, the optimizer walks and checkpoints store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::{Error, Result};

/// Tensors by name: shape and values.
pub type TensorMap = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Where one named parameter lies in the flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Hugging Face's name, `bert.encoder.layer.0.attention.self.query.weight`.
    pub name: String,
    /// Its shape; a linear weight is `[out, in]` (y = x Wᵀ + b).
    pub shape: Vec<usize>,
    /// Index of its first value in the buffer.
    pub offset: usize,
}

impl ParamSpec {
    /// How many values it has.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no value.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Biases and norms take no weight decay.
    pub fn decays(&self) -> bool {
        !(self.name.rsplit('.').next() == Some("bias")
            || self.name.contains("LayerNorm")
            || self.name.contains("layer_norm"))
    }
}

/// All parameters of a model as f32, sorted by name.
#[derive(Debug, Clone)]
pub struct Parameters {
    specs: Vec<ParamSpec>,
    data: Vec<f32>,
    version: u64,
}

/// Equal names, shapes and values.
impl PartialEq for Parameters {
    fn eq(&self, other: &Self) -> bool {
        self.specs == other.specs && self.data == other.data
    }
}

/// A number that no other state of any parameters in this process has.
fn next_version() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl Parameters {
    /// From named tensors (shape, values).
    ///
    /// # Errors
    /// If a tensor's shape and number of values disagree.
    pub fn from_tensors(tensors: TensorMap) -> Result<Self> {
        let mut specs = Vec::with_capacity(tensors.len());
        let mut data = Vec::with_capacity(tensors.values().map(|t| t.1.len()).sum());
        for (name, (shape, values)) in tensors {
            let spec = ParamSpec { name, shape, offset: data.len() };
            if spec.len() != values.len() {
                return Err(Error::Model(format!(
                    "tensor `{}` has shape {:?} but {} values",
                    spec.name,
                    spec.shape,
                    values.len()
                )));
            }
            data.extend_from_slice(&values);
            specs.push(spec);
        }
        Ok(Self { specs, data, version: next_version() })
    }

    /// The specs, sorted by name.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// The flat buffer.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// Changes whenever the buffer may have changed: equal versions mean equal values, so a backend can keep
    /// what it derived from them (a copy on a device, packed panels). A clone has its original's version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The flat buffer, to be changed.
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.version = next_version();
        &mut self.data
    }

    /// How many values there are in all.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no parameter.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The spec of a name.
    pub fn spec(&self, name: &str) -> Option<&ParamSpec> {
        self.specs.binary_search_by(|s| s.name.as_str().cmp(name)).ok().map(|i| &self.specs[i])
    }

    /// The values of a parameter.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn get(&self, name: &str) -> Result<&[f32]> {
        let spec = self.spec(name).ok_or_else(|| Error::Model(format!("no parameter is called `{name}`")))?;
        Ok(&self.data[spec.offset..spec.offset + spec.len()])
    }

    /// The values of a parameter, to be changed.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn get_mut(&mut self, name: &str) -> Result<&mut [f32]> {
        let spec = self.spec(name).ok_or_else(|| Error::Model(format!("no parameter is called `{name}`")))?;
        let (offset, len) = (spec.offset, spec.len());
        self.version = next_version();
        Ok(&mut self.data[offset..offset + len])
    }

    /// Reads every floating-point tensor of a safetensors file as f32 (F32, F16, BF16, F64); integer tensors
    /// are left out. Names are as in the file.
    ///
    /// # Errors
    /// If the file cannot be read or is broken.
    pub fn read_tensors(path: &Path) -> Result<TensorMap> {
        let bytes = std::fs::read(path).map_err(|e| nsparse_core::Error::io("read", path, e))?;
        let broken = |e: &dyn std::fmt::Display| nsparse_core::Error::file(path, e.to_string());
        let file = SafeTensors::deserialize(&bytes).map_err(|e| broken(&e))?;
        let mut out = BTreeMap::new();
        for (name, view) in file.tensors() {
            let raw = view.data();
            let values: Vec<f32> = match view.dtype() {
                Dtype::F32 => raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
                Dtype::F64 => raw
                    .chunks_exact(8)
                    .map(|b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32)
                    .collect(),
                Dtype::BF16 => raw.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
                Dtype::F16 => raw.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
                _ => continue,
            };
            out.insert(name, (view.shape().to_vec(), values));
        }
        Ok(out)
    }

    /// Writes all parameters as F32 safetensors, whole or not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Self::save_buffer(&self.specs, &self.data, path)
    }

    /// Writes a buffer laid out like the parameters (a gradient, a moment of the optimizer).
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save_buffer(specs: &[ParamSpec], data: &[f32], path: &Path) -> Result<()> {
        let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        let views = specs
            .iter()
            .map(|s| {
                let view = TensorView::new(Dtype::F32, s.shape.clone(), &bytes[s.offset * 4..(s.offset + s.len()) * 4])
                    .map_err(|e| Error::Model(e.to_string()))?;
                Ok((s.name.as_str(), view))
            })
            .collect::<Result<Vec<_>>>()?;
        let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let out = safetensors::serialize(views, Some(metadata)).map_err(|e| Error::Model(e.to_string()))?;
        nsparse_core::files::write_bytes(path, &out)?;
        Ok(())
    }
}
