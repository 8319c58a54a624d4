//! The framing of a TFRecord file: a record is its length (u64), the length's checksum, the data, the data's
//! checksum, all little-endian. A checksum is CRC-32C, rotated and offset ("masked"), as
//! `tensorflow/core/lib/hash/crc32c.h` and `tensorflow/core/lib/io/record_writer.cc` define them.

/// Castagnoli's polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// What a masked checksum is offset by.
const MASK: u32 = 0xa282_ead8;

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// CRC-32C of some bytes (RFC 3720, section 12.1).
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &b| crc >> 8 ^ TABLE[(crc as u8 ^ b) as usize])
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(MASK)
}

/// A record around some data.
pub fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}

/// The whole records at the beginning of a file: each one's data. What follows a torn or broken record is left out.
pub fn records(mut file: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while let Some((data, rest)) = first(file) {
        out.push(data);
        file = rest;
    }
    out
}

fn first(file: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let (length_check, rest) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (data, rest) = rest.split_at_checked(size)?;
    let (check, rest) = rest.split_first_chunk::<4>()?;
    let whole = u32::from_le_bytes(*length_check) == masked(length) && u32::from_le_bytes(*check) == masked(data);
    whole.then_some((data, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 3720, appendix B.4, and the check value that catalogues of checksums give.
    #[test]
    fn published_checksums() {
        let ascending: Vec<u8> = (0..32).collect();
        let descending: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(&descending), 0x113f_db5c);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn torn_and_broken_records_end_the_file() {
        let file = [frame(b"one"), frame(b""), frame(b"three")].concat();
        assert_eq!(records(&file), [b"one".as_slice(), b"", b"three"]);
        for cut in 1..frame(b"three").len() {
            assert_eq!(records(&file[..file.len() - cut]).len(), 2, "{cut} bytes short");
        }
        let mut broken = file;
        broken[13] ^= 1;
        assert!(records(&broken).is_empty());
    }
}
