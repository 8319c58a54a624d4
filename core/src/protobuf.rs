//! Protobuf's wire form, as far as ONNX files and TensorBoard events need it: fields are written in the order given,
//! nothing is read back. A field is its key (`number << 3 | wire type`) and its value; everything with a length says it
//! first, so a weight can be streamed behind a length that is known from its shape.

/// A varint: integers, booleans, enumerations.
const VARINT: u64 = 0;
/// Eight bytes, little-endian.
const FIXED64: u64 = 1;
/// Four bytes, little-endian.
const FIXED32: u64 = 5;
/// A length and so many bytes: strings, bytes, messages, packed numbers.
const DELIMITED: u64 = 2;

/// The fields of one message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// No field yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An `int32`, `int64` or enumeration.
    #[must_use]
    pub fn int(mut self, field: u64, value: i64) -> Self {
        varint(&mut self.0, field << 3 | VARINT);
        // A negative number is its two's complement in 64 bits, whatever the type's width.
        varint(&mut self.0, value as u64);
        self
    }

    /// A `string`.
    #[must_use]
    pub fn text(mut self, field: u64, value: &str) -> Self {
        self.0.extend(delimited(field, value.len() as u64));
        self.0.extend(value.as_bytes());
        self
    }

    /// A `double`.
    #[must_use]
    pub fn double(mut self, field: u64, value: f64) -> Self {
        varint(&mut self.0, field << 3 | FIXED64);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A `float`.
    #[must_use]
    pub fn float(mut self, field: u64, value: f32) -> Self {
        varint(&mut self.0, field << 3 | FIXED32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A message in this one.
    #[must_use]
    pub fn message(mut self, field: u64, value: &Self) -> Self {
        self.0.extend(delimited(field, value.0.len() as u64));
        self.0.extend(&value.0);
        self
    }

    /// What is written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What stands before so many bytes of a field: its key and the length.
pub fn delimited(field: u64, bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, field << 3 | DELIMITED);
    varint(&mut out, bytes);
    out
}

/// Seven bits a byte, the lowest first; the high bit says that more follow.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of protobuf's own description of its encoding.
    #[test]
    fn known_bytes() {
        assert_eq!(Message::new().int(1, 150).bytes(), [0x08, 0x96, 0x01]);
        let text = Message::new().text(2, "testing");
        assert_eq!(text.bytes(), [0x12, 0x07, b't', b'e', b's', b't', b'i', b'n', b'g']);
        let inner = Message::new().int(1, 150);
        assert_eq!(Message::new().message(3, &inner).bytes(), [0x1a, 0x03, 0x08, 0x96, 0x01]);
        let minus_two = [0x08, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(Message::new().int(1, -2).bytes(), minus_two);
        assert_eq!(delimited(16, 300), [0x82, 0x01, 0xac, 0x02]);
        // Wire types 1 and 5 hold IEEE 754 numbers, lowest byte first.
        assert_eq!(Message::new().double(1, 1.0).bytes(), [0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        assert_eq!(Message::new().float(2, -2.0).bytes(), [0x15, 0, 0, 0, 0xc0]);
    }
}
