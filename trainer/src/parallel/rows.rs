//! Document vectors on their way between processes: the entries that are not 0.

/// Rows `[n, vocab]` as bytes: for each its number of entries, their columns, their values; 4 bytes each, least
/// significant byte first.
pub(super) fn pack(rows: &[f32], vocab: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut values = Vec::new();
    for row in rows.chunks_exact(vocab) {
        let place = out.len();
        out.extend_from_slice(&[0; 4]);
        values.clear();
        // What is not a number travels too: it has to show in the loss.
        for (column, value) in row.iter().enumerate().filter(|(_, v)| v.to_bits() != 0) {
            out.extend_from_slice(&(column as u32).to_le_bytes());
            values.extend_from_slice(&value.to_le_bytes());
        }
        let entries = (values.len() / 4) as u32;
        out[place..place + 4].copy_from_slice(&entries.to_le_bytes());
        out.extend_from_slice(&values);
    }
    out
}

/// Appends the rows that [`pack`] made. `None` if the bytes are something else.
pub(super) fn unpack(mut bytes: &[u8], vocab: usize, rows: &mut Vec<f32>) -> Option<()> {
    while !bytes.is_empty() {
        let entries = u32::from_le_bytes(bytes.split_off(..4)?.try_into().ok()?) as usize;
        let columns = bytes.split_off(..entries.checked_mul(4)?)?;
        let values = bytes.split_off(..entries * 4)?;
        let start = rows.len();
        rows.resize(start + vocab, 0.0);
        for (column, value) in columns.chunks_exact(4).zip(values.chunks_exact(4)) {
            let column = u32::from_le_bytes(column.try_into().ok()?) as usize;
            *rows[start..].get_mut(column)? = f32::from_le_bytes(value.try_into().ok()?);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_come_back_bit_for_bit(rows in proptest::collection::vec(prop_oneof![3 => Just(0.0f32), 1 => proptest::num::f32::ANY], 0..60)) {
            let vocab = 5;
            let rows = &rows[..rows.len() / vocab * vocab];
            let mut back = Vec::new();
            prop_assert_eq!(unpack(&pack(rows, vocab), vocab, &mut back), Some(()));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&back), bits(rows));
        }

        #[test]
        fn other_bytes_are_refused_or_read_but_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = unpack(&bytes, 3, &mut Vec::new());
        }
    }
}
