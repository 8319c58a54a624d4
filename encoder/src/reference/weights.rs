//! The parameters on the device, and the gradients that come back from it.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use rayon::prelude::*;

use crate::{Error, Parameters, Result};

/// The parameters as f32 variables of the autograd, on the device.
pub(super) struct Weights {
    /// [`Parameters::version`] of what they were made from.
    pub(super) version: u64,
    vars: BTreeMap<String, Var>,
}

impl Weights {
    pub(super) fn new(parameters: &Parameters, device: &Device) -> Result<Self> {
        let mut vars = BTreeMap::new();
        for spec in parameters.specs() {
            let values = parameters.get(&spec.name)?;
            vars.insert(spec.name.clone(), Var::from_slice(values, spec.shape.as_slice(), device)?);
        }
        Ok(Self { version: parameters.version(), vars })
    }

    /// A parameter: tracked by the autograd, or a plain tensor.
    pub(super) fn get(&self, name: &str, tracked: bool) -> Result<Tensor> {
        let var = self.vars.get(name).ok_or_else(|| Error::Model(format!("no parameter is called `{name}`")))?;
        Ok(if tracked { var.as_tensor().clone() } else { var.as_detached_tensor() })
    }
}

/// Gradients by parameter, summed on the device in f32.
#[derive(Default)]
pub(super) struct Sums(BTreeMap<String, Tensor>);

impl Sums {
    /// Adds what one backward gave; what it left for other tensors than parameters is not kept.
    pub(super) fn collect(&mut self, weights: &Weights, gradients: &GradStore) -> Result<()> {
        for (name, var) in &weights.vars {
            if let Some(gradient) = gradients.get(var) {
                self.add(name, gradient)?;
            }
        }
        Ok(())
    }

    /// Adds to one parameter's gradient.
    pub(super) fn add(&mut self, name: &str, gradient: &Tensor) -> Result<()> {
        let sum = match self.0.get(name) {
            Some(sum) => (sum + gradient)?,
            None => gradient.detach(),
        };
        self.0.insert(name.to_owned(), sum);
        Ok(())
    }

    /// Adds all to a host's buffer that is laid out like the parameters.
    pub(super) fn add_to(self, parameters: &Parameters, buffer: &mut [f32]) -> Result<()> {
        for (name, gradient) in self.0 {
            add(place(parameters, &name, buffer)?, &host(&gradient)?);
        }
        Ok(())
    }
}

/// A parameter's part of a buffer that is laid out like the parameters.
pub(super) fn place<'a>(parameters: &Parameters, name: &str, buffer: &'a mut [f32]) -> Result<&'a mut [f32]> {
    let spec = parameters.spec(name).ok_or_else(|| Error::Model(format!("no parameter is called `{name}`")))?;
    Ok(&mut buffer[spec.offset..spec.offset + spec.len()])
}

/// A tensor's values on the host.
pub(super) fn host(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Values that one thread adds at a time.
const PART: usize = 1 << 16;

/// Adds values of one length.
pub(super) fn add(sum: &mut [f32], values: &[f32]) {
    debug_assert_eq!(sum.len(), values.len());
    sum.par_chunks_mut(PART).zip(values.par_chunks(PART)).for_each(|(sum, values)| {
        sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    });
}

/// Adds row `i` of `values` (`[rows, width]`) to row `places[i]` of `sum`.
pub(super) fn add_rows(sum: &mut [f32], places: &[u32], values: &[f32], width: usize) {
    for (&place, row) in places.iter().zip(values.chunks_exact(width)) {
        let start = place as usize * width;
        sum[start..start + width].iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
}
