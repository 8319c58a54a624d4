//! The messages inside of an event file. Field numbers are those of TensorBoard's `event.proto`, `summary.proto` and
//! `tensor.proto` (<https://github.com/tensorflow/tensorboard/tree/master/tensorboard/compat/proto>).

use nsparse_core::protobuf::Message;

/// What the first record of a file says: the form of all others.
const FILE_VERSION: &str = "brain.Event:2";
/// `DataType.DT_STRING`.
const STRING: i64 = 7;
/// `DataClass.DATA_CLASS_TENSOR`.
const TENSOR_CLASS: i64 = 2;
/// `SessionLog.SessionStatus.START`.
const START: i64 = 1;

/// `Event` as far as all events have it: seconds since 1970, the step.
fn event(wall_time: f64, step: u64) -> Message {
    Message::new().double(1, wall_time).int(2, step as i64)
}

/// The first record of a file.
pub(super) fn version(wall_time: f64) -> Message {
    Message::new().double(1, wall_time).text(3, FILE_VERSION)
}

/// A run goes on: TensorBoard forgets what it has of `step` and all later ones.
pub(super) fn restart(wall_time: f64, step: u64) -> Message {
    event(wall_time, step).message(7, &Message::new().int(1, START))
}

/// Numbers of one step, each under its tag.
pub(super) fn scalars<'a>(wall_time: f64, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Message {
    let summary = values.into_iter().fold(Message::new(), |summary, (tag, value)| {
        // `Summary.Value.simple_value` is a float.
        summary.message(1, &Message::new().text(1, tag).float(2, value as f32))
    });
    event(wall_time, step).message(5, &summary)
}

/// A text (Markdown) of one step.
pub(super) fn text(wall_time: f64, step: u64, tag: &str, text: &str) -> Message {
    let plugin = Message::new().text(1, "text");
    let metadata = Message::new().message(1, &plugin).int(4, TENSOR_CLASS);
    let shape = Message::new().message(2, &Message::new().int(1, 1));
    let tensor = Message::new().int(1, STRING).message(2, &shape).text(8, text);
    let value = Message::new().text(1, tag).message(8, &tensor).message(9, &metadata);
    event(wall_time, step).message(5, &Message::new().message(1, &value))
}

/// Step and tags of an event that this module wrote; `None` where it is none.
pub(super) fn step_and_tags(event: &[u8]) -> Option<(u64, Vec<&str>)> {
    let (mut step, mut tags) = (0, Vec::new());
    for (field, value) in fields(event)? {
        match (field, value) {
            (2, Value::Number(n)) => step = n,
            (5, Value::Bytes(summary)) => {
                for (_, value) in fields(summary)? {
                    let Value::Bytes(value) = value else { return None };
                    for (field, value) in fields(value)? {
                        if let (1, Value::Bytes(tag)) = (field, value) {
                            tags.push(std::str::from_utf8(tag).ok()?);
                        }
                    }
                }
            }
            _ => {}
        }
    }
    Some((step, tags))
}

/// A field's value as it lies in the message.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value<'a> {
    /// A varint.
    Number(u64),
    /// Text, bytes, a message.
    Bytes(&'a [u8]),
    /// Four or eight bytes.
    Fixed,
}

/// The fields of a message in their order; `None` where it is broken.
fn fields(mut message: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut out = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut message)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                Value::Bytes(message.split_off(..length)?)
            }
            wire @ (1 | 5) => {
                message.split_off(..if wire == 1 { 8 } else { 4 })?;
                Value::Fixed
            }
            _ => return None,
        };
        out.push((key >> 3, value));
    }
    Some(out)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use nsparse_core::files::hex;

    use super::*;
    use crate::tensorboard::record::{frame, records};

    const TIME: f64 = 1_764_000_000.5;

    /// What TensorBoard 2.21.0's own classes serialise the same events to, and its `RecordWriter` frames them in.
    #[test]
    fn bytes_are_those_of_tensorboard() {
        assert_eq!(hex(version(TIME).bytes()), "09000020402049da411a0d627261696e2e4576656e743a32");
        assert_eq!(hex(restart(TIME, 13).bytes()), "09000020402049da41100d3a020801");
        let values = [("contrastive/loss", 0.1), ("contrastive/lambda", -2.5)];
        assert_eq!(
            hex(scalars(TIME, 300, values).bytes()),
            "09000020402049da4110ac022a340a170a10636f6e74726173746976652f6c6f737315cdcccc3d\
             0a190a12636f6e74726173746976652f6c616d62646115000020c0"
        );
        assert_eq!(
            hex(text(TIME, 7, "guard/collapse", "né").bytes()),
            "09000020402049da4110072a2d0a2b0a0e67756172642f636f6c6c6170736542\
             0d080712041202080142036ec3a94a0a0a060a04746578742002"
        );
        assert_eq!(
            hex(&frame(version(TIME).bytes())),
            "1800000000000000a37f4b2209000020402049da411a0d627261696e2e4576656e743a32835d4826"
        );
    }

    #[test]
    fn steps_and_tags_are_found_again() {
        let file = [
            frame(version(TIME).bytes()),
            frame(scalars(TIME, 300, [("a", 1.0), ("b/c", 2.0)]).bytes()),
            frame(text(TIME, 7, "t", "text").bytes()),
        ]
        .concat();
        let found: Vec<(u64, Vec<&str>)> = records(&file).into_iter().map(|r| step_and_tags(r).unwrap()).collect();
        assert_eq!(found, [(0, vec![]), (300, vec!["a", "b/c"]), (7, vec!["t"])]);
        assert_eq!(step_and_tags(&[0x0a, 0x7f, 1]), None);
        assert_eq!(step_and_tags(&[0xff; 12]), None);
    }
}
