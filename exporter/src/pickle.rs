//! A small writer of Python pickles, protocol 2: just what the object graph of a TorchScript archive needs.
//!
//! Opcodes are those of Python's `pickletools` that libtorch's own unpickler reads. Nothing is memoised: an
//! object that stands twice is written twice.

use std::io::{self, Write};

/// An object to be pickled.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Str(String),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A dict, in this order.
    Dict(Vec<(Value, Value)>),
    /// A class or function by its module and name.
    Global(&'static str, &'static str),
    /// What a callable returns for a tuple of arguments.
    Call(Box<Value>, Vec<Value>),
    /// An object of a class, made without arguments, whose state is then set.
    Object(Box<Value>, Box<Value>),
    /// An object that lies outside of the pickle, by its persistent id.
    Persistent(Box<Value>),
}

impl Value {
    /// A string.
    pub fn str(text: impl Into<String>) -> Self {
        Self::Str(text.into())
    }

    /// A tuple of integers: a shape or strides.
    pub fn ints(values: &[usize]) -> Self {
        Self::Tuple(values.iter().map(|&v| Self::Int(v as i64)).collect())
    }
}

const PROTO: u8 = 0x80;
const STOP: u8 = b'.';
const MARK: u8 = b'(';
const NONE: u8 = b'N';
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;
const BININT: u8 = b'J';
const BININT1: u8 = b'K';
const BININT2: u8 = b'M';
const LONG1: u8 = 0x8a;
const BINFLOAT: u8 = b'G';
const BINUNICODE: u8 = b'X';
const EMPTY_TUPLE: u8 = b')';
const TUPLE: u8 = b't';
const TUPLE1: u8 = 0x85;
const TUPLE2: u8 = 0x86;
const TUPLE3: u8 = 0x87;
const EMPTY_DICT: u8 = b'}';
const SETITEMS: u8 = b'u';
const GLOBAL: u8 = b'c';
const REDUCE: u8 = b'R';
const NEWOBJ: u8 = 0x81;
const BUILD: u8 = b'b';
const BINPERSID: u8 = b'Q';

/// Writes one pickle.
///
/// # Errors
/// If the writer fails, or a string is longer than `u32::MAX` bytes.
pub fn write(out: &mut impl Write, value: &Value) -> io::Result<()> {
    out.write_all(&[PROTO, 2])?;
    write_value(out, value)?;
    out.write_all(&[STOP])
}

fn write_value(out: &mut impl Write, value: &Value) -> io::Result<()> {
    match value {
        Value::None => out.write_all(&[NONE]),
        Value::Bool(true) => out.write_all(&[NEWTRUE]),
        Value::Bool(false) => out.write_all(&[NEWFALSE]),
        Value::Int(v) => write_int(out, *v),
        Value::Float(v) => {
            out.write_all(&[BINFLOAT])?;
            out.write_all(&v.to_be_bytes())
        }
        Value::Str(text) => {
            let length = u32::try_from(text.len()).map_err(io::Error::other)?;
            out.write_all(&[BINUNICODE])?;
            out.write_all(&length.to_le_bytes())?;
            out.write_all(text.as_bytes())
        }
        Value::Tuple(items) => write_tuple(out, items),
        Value::Dict(items) => {
            out.write_all(&[EMPTY_DICT])?;
            if items.is_empty() {
                return Ok(());
            }
            out.write_all(&[MARK])?;
            for (key, value) in items {
                write_value(out, key)?;
                write_value(out, value)?;
            }
            out.write_all(&[SETITEMS])
        }
        Value::Global(module, name) => write!(out, "{}{module}\n{name}\n", GLOBAL as char),
        Value::Call(callable, arguments) => {
            write_value(out, callable)?;
            write_tuple(out, arguments)?;
            out.write_all(&[REDUCE])
        }
        Value::Object(class, state) => {
            write_value(out, class)?;
            out.write_all(&[EMPTY_TUPLE, NEWOBJ])?;
            write_value(out, state)?;
            out.write_all(&[BUILD])
        }
        Value::Persistent(id) => {
            write_value(out, id)?;
            out.write_all(&[BINPERSID])
        }
    }
}

/// The shortest form that holds the value, as Python chooses it.
fn write_int(out: &mut impl Write, value: i64) -> io::Result<()> {
    if let Ok(v) = u8::try_from(value) {
        return out.write_all(&[BININT1, v]);
    }
    if let Ok(v) = u16::try_from(value) {
        out.write_all(&[BININT2])?;
        return out.write_all(&v.to_le_bytes());
    }
    if let Ok(v) = i32::try_from(value) {
        out.write_all(&[BININT])?;
        return out.write_all(&v.to_le_bytes());
    }
    out.write_all(&[LONG1, 8])?;
    out.write_all(&value.to_le_bytes())
}

fn write_tuple(out: &mut impl Write, items: &[Value]) -> io::Result<()> {
    let end = match items.len() {
        0 => return out.write_all(&[EMPTY_TUPLE]),
        1 => TUPLE1,
        2 => TUPLE2,
        3 => TUPLE3,
        _ => {
            out.write_all(&[MARK])?;
            TUPLE
        }
    };
    for item in items {
        write_value(out, item)?;
    }
    out.write_all(&[end])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, value).unwrap();
        out
    }

    // The expected bytes are what CPython 3.11's `pickletools.optimize(pickle.dumps(x, protocol=2))` gives.
    #[test]
    fn plain_values_are_cpythons_bytes() {
        for (value, expected) in [
            (Value::None, &b"\x80\x02N."[..]),
            (Value::Bool(true), b"\x80\x02\x88."),
            (Value::Bool(false), b"\x80\x02\x89."),
            (Value::Int(0), b"\x80\x02K\x00."),
            (Value::Int(255), b"\x80\x02K\xff."),
            (Value::Int(256), b"\x80\x02M\x00\x01."),
            (Value::Int(65_535), b"\x80\x02M\xff\xff."),
            (Value::Int(65_536), b"\x80\x02J\x00\x00\x01\x00."),
            (Value::Int(-1), b"\x80\x02J\xff\xff\xff\xff."),
            (Value::Int(i64::from(i32::MAX)), b"\x80\x02J\xff\xff\xff\x7f."),
            (Value::Float(1.5), b"\x80\x02G?\xf8\x00\x00\x00\x00\x00\x00."),
            (Value::str("h\u{e9}"), b"\x80\x02X\x03\x00\x00\x00h\xc3\xa9."),
            (Value::Tuple(vec![]), b"\x80\x02)."),
            (Value::ints(&[1]), b"\x80\x02K\x01\x85."),
            (Value::ints(&[1, 2]), b"\x80\x02K\x01K\x02\x86."),
            (Value::ints(&[1, 2, 3]), b"\x80\x02K\x01K\x02K\x03\x87."),
            (Value::ints(&[1, 2, 3, 4]), b"\x80\x02(K\x01K\x02K\x03K\x04t."),
            (Value::Dict(vec![]), b"\x80\x02}."),
            (
                Value::Dict(vec![(Value::str("a"), Value::Int(1)), (Value::str("b"), Value::Int(2))]),
                b"\x80\x02}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bK\x02u.",
            ),
        ] {
            assert_eq!(bytes(&value), expected, "{value:?}");
        }
    }

    #[test]
    fn an_integer_beyond_32_bits_is_a_long_of_eight_bytes() {
        assert_eq!(bytes(&Value::Int(1 << 40)), b"\x80\x02\x8a\x08\x00\x00\x00\x00\x00\x01\x00\x00.");
    }

    #[test]
    fn objects_calls_and_persistent_ids() {
        let class = Value::Global("__torch__", "Model");
        let object = Value::Object(Box::new(class), Box::new(Value::Dict(vec![])));
        assert_eq!(bytes(&object), b"\x80\x02c__torch__\nModel\n)\x81}b.");
        let call = Value::Call(Box::new(Value::Global("collections", "OrderedDict")), vec![]);
        assert_eq!(bytes(&call), b"\x80\x02ccollections\nOrderedDict\n)R.");
        let persistent = Value::Persistent(Box::new(Value::ints(&[7])));
        assert_eq!(bytes(&persistent), b"\x80\x02K\x07\x85Q.");
    }
}
