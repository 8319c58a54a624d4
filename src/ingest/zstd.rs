//! Zstandard as a stream: frames one after another, as `zstd`, `pzstd` and concatenation make them, each with its checksum.

use std::io::{BufRead, Error, Read, Result};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Bytes that are decoded at once, about.
const STEP: usize = 1 << 20;

/// What is in a compressed stream.
pub(crate) struct Decoder<R> {
    input: R,
    frame: FrameDecoder,
    /// Whether a frame's checksum is still to be compared.
    is_open: bool,
}

impl<R: BufRead> Decoder<R> {
    pub(crate) fn new(input: R) -> Self {
        let mut frame = FrameDecoder::new();
        // What `zstd --long=31` makes, and no more.
        frame.set_max_window_size(1 << 31);
        Self { input, frame, is_open: false }
    }

    /// Begins the next frame; whether there is one.
    fn next_frame(&mut self) -> Result<bool> {
        if std::mem::take(&mut self.is_open)
            && let (Some(stored), Some(computed)) =
                (self.frame.get_checksum_from_data(), self.frame.get_calculated_checksum())
            && stored != computed
        {
            return Err(Error::other("the zstd checksum does not agree: the file is damaged"));
        }
        loop {
            if self.input.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.frame.init(&mut self.input) {
                Ok(()) => {
                    self.is_open = true;
                    return Ok(true);
                }
                // Frames that hold no data: seek tables, for instance.
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = std::io::copy(&mut (&mut self.input).take(u64::from(length)), &mut std::io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(Error::other("the zstd stream ends within a frame"));
                    }
                }
                Err(e) => return Err(Error::other(format!("no zstd frame: {e}"))),
            }
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            if self.frame.can_collect() > 0 {
                return self.frame.read(buffer);
            }
            if self.frame.is_finished() {
                if !self.next_frame()? {
                    return Ok(0);
                }
                continue;
            }
            self.frame
                .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBytes(STEP))
                .map_err(|e| Error::other(format!("the zstd stream is damaged or cut: {e}")))?;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn decoded(bytes: &[u8]) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(bytes).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn frames_one_after_another() {
        let text: Vec<u8> = (0..300_000u32).flat_map(|i| format!("{} ", i % 977).into_bytes()).collect();
        let one = compress_to_vec(text.as_slice(), CompressionLevel::Fastest);
        assert!(one.len() < text.len());
        assert!(decoded(&one).unwrap() == text);
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
        let joined = [&one[..], &skippable, &one].concat();
        assert!(decoded(&joined).unwrap() == [&text[..], &text].concat());
        assert!(decoded(&[]).unwrap().is_empty());
    }

    #[test]
    fn damage_is_an_error() {
        let text = b"some text, some more text, and more of the text".repeat(50);
        let one = compress_to_vec(text.as_slice(), CompressionLevel::Fastest);
        assert!(decoded(&one[..one.len() - 6]).is_err(), "cut");
        assert!(decoded(b"no zstd at all").is_err());
        let mut skip = vec![0x50, 0x2a, 0x4d, 0x18, 200, 0, 0, 0];
        skip.extend([1; 10]);
        assert!(decoded(&skip).is_err(), "cut in a skippable frame");
    }

    /// `printf 'one\ntwo\n' | zstd -c --check | od -An -tx1`, by version 1.5.4.
    #[test]
    fn what_the_reference_tool_wrote() {
        let mut bytes = [
            0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58, 0x41, 0x00, 0x00, 0x6f, 0x6e, 0x65, 0x0a, 0x74, 0x77, 0x6f, 0x0a, 0xe6,
            0xa6, 0x0e, 0x40,
        ];
        assert_eq!(decoded(&bytes).unwrap(), b"one\ntwo\n");
        bytes[18] ^= 1;
        assert!(decoded(&bytes).unwrap_err().to_string().contains("checksum"));
    }
}
