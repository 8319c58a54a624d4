//! Documents as lines of JSON: the id found, metadata cut out, the vector's weights checked, nothing else touched. What
//! goes to the cluster are the bytes that came.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::names;

/// Which members of a document mean something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// The id's. `_id` is cut out, since the engine takes it for its own; a member of another name stays.
    pub id: String,
    /// A vector that must be right, as `rank_features` or a list of objects that hold such.
    pub checked: Option<String>,
    /// A member that is cut out: a vector that another is to take the place of.
    pub replaced: Option<String>,
    /// Members that may not come without the checked one: in a change, a text whose vector would be another's.
    pub bound: Vec<String>,
}

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    /// Its id.
    pub id: String,
    /// Why it cannot be indexed, if so: a weight out of range.
    pub fault: Option<String>,
}

/// Reads one line; appends what is to be sent, an object on one line, to `out`.
///
/// # Errors
/// In words, if the line is no JSON object, or has no id.
pub fn read(line: &[u8], members: &Members, out: &mut Vec<u8>) -> Result<Read, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?.trim();
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let found = Document(members).deserialize(&mut deserializer).map_err(|e| in_words(&e))?;
    deserializer.end().map_err(|e| in_words(&e))?;
    let Some(id) = found.id else {
        return Err(format!("no field `{}`; the line has: {}", members.id, found.others.join(", ")));
    };
    let cut: Vec<&str> =
        [(members.id == "_id").then_some("_id"), members.replaced.as_deref()].into_iter().flatten().collect();
    let start = out.len();
    copy_without(text.as_bytes(), &cut, out);
    // A line is a line: what stands on several is set on one. Inside of strings newlines are always escaped.
    let mut at = start;
    while let Some(found) = memchr::memchr2(b'\n', b'\r', &out[at..]) {
        out[at + found] = b' ';
        at += found + 1;
    }
    let fault = found.fault.or_else(|| {
        let (vector, text) = (members.checked.as_deref()?, found.bound?);
        (!found.has_checked)
            .then(|| format!("it changes `{text}` and not `{vector}`, which was made of it: send the whole document"))
    });
    Ok(Read { id, fault })
}

fn in_words(error: &serde_json::Error) -> String {
    if error.is_data() { error.to_string() } else { format!("not JSON: {error}") }
}

#[derive(Default)]
struct Found {
    id: Option<String>,
    fault: Option<String>,
    has_checked: bool,
    /// The last of the members that may not come without the checked one.
    bound: Option<String>,
    /// Names of the other members, for a message.
    others: Vec<String>,
}

struct Document<'a>(&'a Members);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found, A::Error> {
        let mut found = Found::default();
        while let Some(name) = map.next_key_seed(Text)? {
            if *name == self.0.id {
                found.id = Some(map.next_value_seed(Id(&self.0.id))?);
            } else if self.0.checked.as_deref() == Some(&*name) {
                found.has_checked = true;
                map.next_value_seed(Weights { name: "", fault: &mut found.fault })?;
            } else {
                map.next_value::<IgnoredAny>()?;
                if self.0.bound.iter().any(|bound| *bound == *name) {
                    found.bound = Some(name.clone().into_owned());
                }
            }
            if found.id.is_none() {
                found.others.push(name.into_owned());
            }
        }
        Ok(found)
    }
}

/// A string, borrowed where nothing in it is escaped.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// An id: a string that is not empty, or a whole number.
struct Id<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Id<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Id<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a string or a whole number in the id field `{}`", self.0)
    }

    fn visit_str<E: serde::de::Error>(self, id: &str) -> Result<String, E> {
        if id.is_empty() { Err(E::custom(format!("the id field `{}` is empty", self.0))) } else { Ok(id.to_owned()) }
    }

    fn visit_u64<E>(self, id: u64) -> Result<String, E> {
        Ok(id.to_string())
    }

    fn visit_i64<E>(self, id: i64) -> Result<String, E> {
        Ok(id.to_string())
    }
}

/// Weights of features, however deep they lie; `name` is the feature's that is read.
struct Weights<'a> {
    name: &'a str,
    fault: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Weights<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Weights<'_> {
    fn weigh(self, weight: f64) {
        if let Err(reason) = names::check(self.name, weight as f32) {
            self.fault.get_or_insert(reason);
        }
    }
}

impl<'de> Visitor<'de> for Weights<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("weights by token")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key_seed(Text)? {
            map.next_value_seed(Weights { name: &name, fault: &mut *self.fault })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Weights { name: self.name, fault: &mut *self.fault })?.is_some() {}
        Ok(())
    }

    fn visit_f64<E>(self, weight: f64) -> Result<(), E> {
        self.weigh(weight);
        Ok(())
    }

    fn visit_u64<E>(self, weight: u64) -> Result<(), E> {
        self.weigh(weight as f64);
        Ok(())
    }

    fn visit_i64<E>(self, weight: i64) -> Result<(), E> {
        self.weigh(weight as f64);
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.fault.get_or_insert(format!("the weight of token `{}` is the text `{text}`", self.name));
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.fault.get_or_insert(format!("the weight of token `{}` is no number", self.name));
        Ok(())
    }

    // A document without a vector is one that no query finds by it.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Copies a JSON object that is known to be one, without the members of these names.
fn copy_without(object: &[u8], names: &[&str], out: &mut Vec<u8>) {
    if names.is_empty() {
        out.extend_from_slice(object);
        return;
    }
    out.push(b'{');
    let mut is_first = true;
    let mut from = 1;
    // Members that stay are copied in runs: the vector is large, and most objects lose one member at most.
    let mut run: Option<Range<usize>> = None;
    let mut left = names.len();
    while left > 0 {
        let Some(member) = next_member(object, from) else { break };
        from = member.end;
        if names.iter().any(|name| is_named(&object[member.clone()], name)) {
            left -= 1;
            flush(object, run.take(), &mut is_first, out);
        } else {
            run = Some(run.map_or(member.start, |r| r.start)..member.end);
        }
    }
    let start = run.map_or_else(|| next_start(object, from), |r| Some(r.start));
    if let Some(start) = start {
        // To the closing brace, which stays.
        if !is_first {
            out.push(b',');
        }
        out.extend_from_slice(&object[start..]);
        return;
    }
    out.push(b'}');
}

fn flush(object: &[u8], run: Option<Range<usize>>, is_first: &mut bool, out: &mut Vec<u8>) {
    let Some(run) = run else { return };
    if !std::mem::replace(is_first, false) {
        out.push(b',');
    }
    out.extend_from_slice(&object[run]);
}

/// Where the next member begins, if there is one.
fn next_start(object: &[u8], from: usize) -> Option<usize> {
    let skipped = object[from..].iter().position(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n' | b','))?;
    (object[from + skipped] != b'}').then_some(from + skipped)
}

/// The next member's bytes, from its name's quote to its value's end.
fn next_member(object: &[u8], from: usize) -> Option<Range<usize>> {
    let start = next_start(object, from)?;
    let (mut depth, mut in_string, mut at) = (0usize, false, start);
    while at < object.len() {
        match object[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' if depth == 0 => return Some(start..at),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    Some(start..at)
}

fn is_named(member: &[u8], name: &str) -> bool {
    let mut deserializer = serde_json::Deserializer::from_slice(member);
    Text.deserialize(&mut deserializer).is_ok_and(|found| found == name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::{Map, Value, json};

    fn members(id: &str, checked: Option<&str>, replaced: Option<&str>) -> Members {
        Members {
            id: id.to_owned(),
            checked: checked.map(str::to_owned),
            replaced: replaced.map(str::to_owned),
            bound: Vec::new(),
        }
    }

    fn sent(line: &str, members: &Members) -> (Read, String) {
        let mut out = b"before".to_vec();
        let read = read(line.as_bytes(), members, &mut out).unwrap();
        (read, String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned())
    }

    #[test]
    fn the_bytes_stay_and_the_id_goes() {
        let members = members("_id", Some("v"), None);
        let line = r#" {"_id": "a\"b", "x" : {"_id": [1, "}"]}, "v": {"a": 1.50, "b": 64}} "#;
        let (read, text) = sent(line, &members);
        assert_eq!((read.id.as_str(), read.fault), ("a\"b", None));
        assert_eq!(text, r#"{"x" : {"_id": [1, "}"]}, "v": {"a": 1.50, "b": 64}}"#);
        assert_eq!(sent(r#"{"x": 1, "_id": 7}"#, &members).1, r#"{"x": 1}"#);
        assert_eq!(sent(r#"{"_id": 7}"#, &members).1, "{}");
        assert_eq!(sent(r#"{"x": 1 , "\u005fid": "7", "y": 2}"#, &members).1, r#"{"x": 1 ,"y": 2}"#);
    }

    #[test]
    fn another_id_stays_in_and_a_vector_is_replaced() {
        let (read, text) = sent(r#"{"id": -3, "v": {"a": 99}, "z": null}"#, &members("id", None, Some("v")));
        assert_eq!((read.id.as_str(), read.fault), ("-3", None));
        assert_eq!(text, r#"{"id": -3,"z": null}"#);
    }

    #[test]
    fn weights_are_checked_wherever_they_are() {
        let members = members("_id", Some("v"), None);
        let fault = |vector: &str| sent(&format!(r#"{{"_id":"1","v":{vector}}}"#), &members).0.fault;
        for fine in ["{}", "null", "[]", r#"{"a":0.1}"#, r#"[{"s":{"a":1}},{"s":{"b":64.0}}]"#] {
            assert_eq!(fault(fine), None, "{fine}");
        }
        let range = "is not in (0, 64]";
        assert_eq!(fault(r#"{"a":1,"b":0}"#).unwrap(), format!("the weight 0 of token `b` {range}"));
        assert_eq!(fault(r#"{"a":-1}"#).unwrap(), format!("the weight -1 of token `a` {range}"));
        assert_eq!(fault(r#"[{"s":{"a":1}},{"s":{"b":65}}]"#).unwrap(), format!("the weight 65 of token `b` {range}"));
        assert_eq!(fault(r#"{"a":"1"}"#).unwrap(), "the weight of token `a` is the text `1`");
        assert_eq!(fault(r#"{"a":true}"#).unwrap(), "the weight of token `a` is no number");
    }

    #[test]
    fn a_text_is_not_changed_without_its_vector() {
        let members = Members { bound: vec!["text".to_owned()], ..members("_id", Some("v"), None) };
        let fault = |line: &str| sent(line, &members).0.fault;
        assert_eq!(fault(r#"{"_id":"1","price":3}"#), None);
        assert_eq!(fault(r#"{"_id":"1","text":"new","v":{"a":1}}"#), None);
        let said = fault(r#"{"_id":"1","text":"new"}"#).unwrap();
        assert_eq!(said, "it changes `text` and not `v`, which was made of it: send the whole document");
    }

    #[test]
    fn broken_lines_in_words() {
        let members = members("_id", None, None);
        let wrong = |line: &str| read(line.as_bytes(), &members, &mut Vec::new()).unwrap_err();
        assert_eq!(wrong(r#"{"id":"a","t":1}"#), "no field `_id`; the line has: id, t");
        assert!(wrong(r#"{"_id":"a""#).starts_with("not JSON: EOF"), "{}", wrong(r#"{"_id":"a""#));
        assert!(wrong(r#"{"_id":"a"} x"#).starts_with("not JSON: trailing characters"));
        assert!(wrong("[1]").contains("expected a JSON object"), "{}", wrong("[1]"));
        assert!(wrong(r#"{"_id":{}}"#).contains("a whole number in the id field `_id`"));
        assert!(wrong(r#"{"_id":""}"#).contains("the id field `_id` is empty"));
        assert_eq!(read(b"\xff", &members, &mut Vec::new()).unwrap_err(), "it is not UTF-8");
    }

    /// The plain twin: parse, remove, print.
    #[test]
    fn cutting_equals_removing_for_random_objects() {
        let mut state = 5u64;
        let mut next = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let values = [
            json!(1),
            json!("a,}\"]\\"),
            json!({ "_id": { "v": [] } }),
            json!([[], {}, "{"]),
            json!(null),
            json!("\\\\"),
        ];
        for _ in 0..2000 {
            let mut object = Map::new();
            for name in ["_id", "a", "v", "b\"", "c"] {
                if next(3) > 0 {
                    object.insert(name.to_owned(), values[next(values.len() as u64) as usize].clone());
                }
            }
            let text = if next(2) == 0 { json!(object).to_string() } else { format!("{:#}", json!(object)) };
            let mut out = Vec::new();
            copy_without(text.as_bytes(), &["_id", "v"], &mut out);
            object.remove("_id");
            object.remove("v");
            assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), Value::Object(object), "{text}");
        }
    }
}
