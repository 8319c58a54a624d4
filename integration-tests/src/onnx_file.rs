//! ONNX files read back by the schema's field numbers, with nothing of what writes ours; and where onnxruntime is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What an ONNX file says of itself; weights stay where they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnnxFile {
    /// Version of the file's form.
    pub ir_version: u64,
    /// Version of the standard operators.
    pub opset: u64,
    /// The graph's inputs.
    pub inputs: Vec<OnnxValue>,
    /// The graph's outputs.
    pub outputs: Vec<OnnxValue>,
    /// Operator of each node, in order.
    pub operators: Vec<String>,
    /// The constants.
    pub constants: Vec<OnnxConstant>,
}

/// An input or output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnnxValue {
    /// Its name.
    pub name: String,
    /// `TensorProto.DataType`: 1 float32, 7 int64.
    pub kind: u64,
    /// Each dimension: a number, or a name in its place.
    pub shape: Vec<String>,
}

/// A constant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnnxConstant {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// `TensorProto.DataType`: 1 float32, 7 int64.
    pub kind: u64,
    /// Its values, little-endian.
    pub bytes: Vec<u8>,
}

/// A field's value.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl OnnxFile {
    /// Reads a file's bytes.
    ///
    /// # Errors
    /// If they are not protobuf, or hold no graph.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut out = Self::default();
        let mut has_graph = false;
        fields(bytes, &mut |number, field| {
            match (number, field) {
                (1, Field::Number(version)) => out.ir_version = version,
                (8, Field::Bytes(opset)) => fields(opset, &mut |number, field| {
                    if let (2, Field::Number(version)) = (number, field) {
                        out.opset = version;
                    }
                    Ok(())
                })?,
                (7, Field::Bytes(graph)) => {
                    has_graph = true;
                    out.graph(graph)?;
                }
                _ => {}
            }
            Ok(())
        })?;
        if has_graph { Ok(out) } else { Err("it has no graph".to_owned()) }
    }

    fn graph(&mut self, bytes: &[u8]) -> Result<(), String> {
        fields(bytes, &mut |number, field| {
            match (number, field) {
                (1, Field::Bytes(node)) => fields(node, &mut |number, field| {
                    if let (4, Field::Bytes(operator)) = (number, field) {
                        self.operators.push(text(operator)?);
                    }
                    Ok(())
                })?,
                (5, Field::Bytes(tensor)) => self.constants.push(constant(tensor)?),
                (11, Field::Bytes(input)) => self.inputs.push(value(input)?),
                (12, Field::Bytes(output)) => self.outputs.push(value(output)?),
                _ => {}
            }
            Ok(())
        })
    }
}

fn constant(bytes: &[u8]) -> Result<OnnxConstant, String> {
    let mut out = OnnxConstant::default();
    fields(bytes, &mut |number, field| {
        match (number, field) {
            (1, Field::Number(size)) => out.shape.push(size as usize),
            (2, Field::Number(kind)) => out.kind = kind,
            (8, Field::Bytes(name)) => out.name = text(name)?,
            (9, Field::Bytes(raw)) => out.bytes = raw.to_vec(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(out)
}

fn value(bytes: &[u8]) -> Result<OnnxValue, String> {
    let mut out = OnnxValue::default();
    fields(bytes, &mut |number, field| {
        match (number, field) {
            (1, Field::Bytes(name)) => out.name = text(name)?,
            // Its type, of which only tensors are known here: element type and shape.
            (2, Field::Bytes(kind)) => fields(kind, &mut |number, field| match (number, field) {
                (1, Field::Bytes(tensor)) => fields(tensor, &mut |number, field| {
                    match (number, field) {
                        (1, Field::Number(kind)) => out.kind = kind,
                        (2, Field::Bytes(shape)) => out.shape = dimensions(shape)?,
                        _ => {}
                    }
                    Ok(())
                }),
                _ => Err(format!("{} is no tensor", out.name)),
            })?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(out)
}

fn dimensions(bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    fields(bytes, &mut |_, dimension| {
        let Field::Bytes(dimension) = dimension else { return Err("a dimension is no message".to_owned()) };
        fields(dimension, &mut |number, field| {
            match (number, field) {
                (1, Field::Number(size)) => out.push(size.to_string()),
                (2, Field::Bytes(name)) => out.push(text(name)?),
                _ => {}
            }
            Ok(())
        })
    })?;
    Ok(out)
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|e| format!("a name is no UTF-8: {e}"))
}

/// All fields of a message, in order.
fn fields<'a>(mut bytes: &'a [u8], each: &mut dyn FnMut(u64, Field<'a>) -> Result<(), String>) -> Result<(), String> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            2 => {
                let length = varint(&mut bytes)? as usize;
                Field::Bytes(take(&mut bytes, length)?)
            }
            1 => Field::Bytes(take(&mut bytes, 8)?),
            5 => Field::Bytes(take(&mut bytes, 4)?),
            other => return Err(format!("wire type {other}")),
        };
        each(key >> 3, field)?;
    }
    Ok(())
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], String> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or("a field ends behind its message")?;
    *bytes = rest;
    Ok(taken)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut out = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        out |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(out);
        }
    }
    Err("a number does not end".to_owned())
}

/// onnxruntime's shared library: what `ORT_DYLIB_PATH` names, or what `scripts/fetch-onnxruntime.sh` fetches.
///
/// # Panics
/// If it cannot be fetched; the message has what the script said.
pub fn onnxruntime() -> PathBuf {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return PathBuf::from(path);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/fetch-onnxruntime.sh");
    let output = Command::new(&script).output().unwrap_or_else(|e| panic!("{}: {e}", script.display()));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert!(output.status.success(), "{} failed: {}", script.display(), said(&output.stderr));
    PathBuf::from(said(&output.stdout).lines().last().unwrap_or_default())
}
