//! An ONNX graph under construction, and the file it becomes. Field numbers are those of `onnx.proto`
//! (<https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>); weights are streamed, never copied into a message.

use std::borrow::Cow;
use std::io::{self, Write};

use nsparse_core::protobuf::{Message, delimited};

/// Version of the file's form; onnxruntime 1.13 and newer read it.
const IR_VERSION: i64 = 8;
/// Version of the operators.
const OPSET: i64 = 14;
/// `TensorProto.DataType`.
pub(super) const FLOAT: i64 = 1;
pub(super) const INT64: i64 = 7;
pub(super) const BOOL: i64 = 9;
/// `AttributeProto.AttributeType`.
const ATTRIBUTE_INT: i64 = 2;
const ATTRIBUTE_INTS: i64 = 7;
/// Rows that are turned at once: a cache line of floats.
const TURNED: usize = 16;

/// The values of a constant.
#[derive(Debug, Clone)]
pub(super) enum Values<'a> {
    /// As they lie.
    Floats(Cow<'a, [f32]>),
    /// A matrix `[shape[1], shape[0]]` as it lies, written as its transpose.
    Turned(&'a [f32]),
    /// Shapes and indices.
    Ints(Vec<i64>),
}

/// A constant of the graph.
#[derive(Debug, Clone)]
struct Initializer<'a> {
    shape: Vec<usize>,
    values: Values<'a>,
    /// Its message without the values.
    head: Message,
}

impl Initializer<'_> {
    fn bytes(&self) -> u64 {
        let (count, width) = match &self.values {
            Values::Floats(values) => (values.len(), 4),
            Values::Turned(values) => (values.len(), 4),
            Values::Ints(values) => (values.len(), 8),
        };
        count as u64 * width
    }

    /// What stands before its values: the graph's field, the head, the field of the raw bytes.
    fn before(&self) -> Vec<u8> {
        let raw = delimited(9, self.bytes());
        let whole = self.head.bytes().len() as u64 + raw.len() as u64 + self.bytes();
        [&delimited(5, whole), self.head.bytes(), &raw].concat()
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.before())?;
        match &self.values {
            Values::Floats(values) => write_floats(out, values),
            Values::Turned(values) => {
                let (rows, columns) = (self.shape[1], self.shape[0]);
                let mut block = vec![0.0; TURNED.min(columns) * rows];
                for first in (0..columns).step_by(TURNED) {
                    let width = TURNED.min(columns - first);
                    for row in 0..rows {
                        for column in 0..width {
                            block[column * rows + row] = values[row * columns + first + column];
                        }
                    }
                    write_floats(out, &block[..width * rows])?;
                }
                Ok(())
            }
            Values::Ints(values) => values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes())),
        }
    }
}

/// Values as little-endian bytes, a block at a time.
fn write_floats(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut block = Vec::with_capacity(1 << 16);
    for part in values.chunks(1 << 14) {
        block.clear();
        block.extend(part.iter().flat_map(|v| v.to_le_bytes()));
        out.write_all(&block)?;
    }
    Ok(())
}

/// An attribute of a node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attribute<'a> {
    Int(&'a str, i64),
    Ints(&'a str, &'a [i64]),
}

impl Attribute<'_> {
    fn message(self) -> Message {
        match self {
            Self::Int(name, value) => Message::new().text(1, name).int(3, value).int(20, ATTRIBUTE_INT),
            Self::Ints(name, values) => {
                let message = values.iter().fold(Message::new().text(1, name), |m, &v| m.int(8, v));
                message.int(20, ATTRIBUTE_INTS)
            }
        }
    }
}

/// A dimension of an input or output.
#[derive(Debug, Clone, Copy)]
pub(super) enum Dimension {
    /// Known only when the graph runs.
    Named(&'static str),
    /// Always this.
    Fixed(usize),
}

/// Nodes, constants, inputs and outputs. Values go by name; each is made once.
#[derive(Debug, Default)]
pub(super) struct Graph<'a> {
    /// The finished fields of the message but for the constants.
    fields: Message,
    nodes: usize,
    initializers: Vec<Initializer<'a>>,
}

impl<'a> Graph<'a> {
    /// A graph of this name.
    pub(super) fn new(name: &str) -> Self {
        Self { fields: Message::new().text(2, name), ..Self::default() }
    }

    /// An input of 64-bit integers.
    pub(super) fn input(&mut self, name: &str, shape: &[Dimension]) {
        self.field(11, &value_info(name, INT64, shape));
    }

    /// An output of floats.
    pub(super) fn output(&mut self, name: &str, shape: &[Dimension]) {
        self.field(12, &value_info(name, FLOAT, shape));
    }

    /// A constant; gives its name back.
    pub(super) fn constant(&mut self, name: &str, shape: &[usize], values: Values<'a>) -> String {
        let kind = if matches!(values, Values::Ints(_)) { INT64 } else { FLOAT };
        let head = shape.iter().fold(Message::new(), |m, &d| m.int(1, d as i64)).int(2, kind).text(8, name);
        self.initializers.push(Initializer { shape: shape.to_vec(), values, head });
        name.to_owned()
    }

    /// A list of integers: shapes, axes.
    pub(super) fn ints(&mut self, name: &str, values: &[i64]) -> String {
        self.constant(name, &[values.len()], Values::Ints(values.to_vec()))
    }

    /// A single float.
    pub(super) fn float(&mut self, name: &str, value: f32) -> String {
        self.constant(name, &[], Values::Floats(vec![value].into()))
    }

    /// A node with one output; gives the output's name.
    pub(super) fn node(&mut self, operator: &str, inputs: &[&str], attributes: &[Attribute<'_>]) -> String {
        let output = format!("{operator}_{}", self.nodes);
        self.node_into(operator, inputs, &[&output], attributes);
        output
    }

    /// A node whose outputs have these names.
    pub(super) fn node_into(
        &mut self,
        operator: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: &[Attribute<'_>],
    ) {
        let mut node = inputs.iter().fold(Message::new(), |m, name| m.text(1, name));
        node = outputs.iter().fold(node, |m, name| m.text(2, name));
        node = node.text(3, &format!("node_{}", self.nodes)).text(4, operator);
        node = attributes.iter().fold(node, |m, attribute| m.message(5, &attribute.message()));
        self.nodes += 1;
        self.field(1, &node);
    }

    fn field(&mut self, number: u64, message: &Message) {
        self.fields = std::mem::take(&mut self.fields).message(number, message);
    }

    /// The file around the graph.
    pub(super) fn finish(self, metadata: &[(&str, String)]) -> File<'a> {
        let opset = Message::new().text(1, "").int(2, OPSET);
        let mut head = Message::new().int(1, IR_VERSION).text(2, "nsparse").text(3, env!("CARGO_PKG_VERSION"));
        head = head.message(8, &opset);
        for (key, value) in metadata {
            head = head.message(14, &Message::new().text(1, key).text(2, value));
        }
        let initializers: u64 = self.initializers.iter().map(|i| i.before().len() as u64 + i.bytes()).sum();
        let graph = delimited(7, self.fields.bytes().len() as u64 + initializers);
        File { head, graph, fields: self.fields, initializers: self.initializers }
    }
}

/// `ValueInfoProto` of a tensor.
fn value_info(name: &str, kind: i64, shape: &[Dimension]) -> Message {
    let shape = shape.iter().fold(Message::new(), |m, dimension| {
        let dimension = match *dimension {
            Dimension::Named(name) => Message::new().text(2, name),
            Dimension::Fixed(size) => Message::new().int(1, size as i64),
        };
        m.message(1, &dimension)
    });
    let tensor = Message::new().int(1, kind).message(2, &shape);
    Message::new().text(1, name).message(2, &Message::new().message(1, &tensor))
}

/// A whole file, not yet written.
#[derive(Debug)]
pub(super) struct File<'a> {
    head: Message,
    /// Key and length of the graph.
    graph: Vec<u8>,
    fields: Message,
    initializers: Vec<Initializer<'a>>,
}

impl File<'_> {
    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        let fixed = self.head.bytes().len() + self.graph.len() + self.fields.bytes().len();
        fixed as u64 + self.initializers.iter().map(|i| i.before().len() as u64 + i.bytes()).sum::<u64>()
    }

    /// Writes it.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(self.head.bytes())?;
        out.write_all(&self.graph)?;
        out.write_all(self.fields.bytes())?;
        self.initializers.iter().try_for_each(|initializer| initializer.write(out))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_known_beforehand_and_a_matrix_can_be_turned() {
        let (rows, columns) = (3, 37);
        let matrix: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
        let mut graph = Graph::new("g");
        graph.constant("turned", &[columns, rows], Values::Turned(&matrix));
        graph.ints("shape", &[-1, 300]);
        graph.node("Add", &["a", "b"], &[Attribute::Int("axis", 1), Attribute::Ints("axes", &[1, -1])]);
        let file = graph.finish(&[("key", "value".to_owned())]);
        let mut bytes = Vec::new();
        file.write(&mut bytes).unwrap();
        assert_eq!(file.bytes(), bytes.len() as u64);
        let turned: Vec<u8> = (0..columns)
            .flat_map(|column| (0..rows).map(move |row| row * columns + column))
            .flat_map(|at| matrix[at].to_le_bytes())
            .collect();
        assert!(bytes.windows(turned.len()).any(|part| part == turned));
    }
}
