//! What a zip is written into. The zip library's writer tries again when it is dropped, and prints on standard
//! error what it then meets; behind this it meets nothing, and the first error is the only one.

use std::io::{ErrorKind, Result, Seek, SeekFrom, Write};

/// More than any header of a zip: after a failure it stands this much further on, so that the zip writer, which was
/// stopped inside a header, does not find itself before that header's end.
const BEYOND: u64 = 1 << 18;

/// Gives the first error to whoever writes; from then on it takes everything and keeps nothing.
#[derive(Debug)]
pub(crate) struct Quiet<W> {
    inner: W,
    /// Where it would be, once it has failed.
    failed_at: Option<u64>,
    position: u64,
}

impl<W: Write + Seek> Quiet<W> {
    /// Around a writer that stands at its beginning.
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, failed_at: None, position: 0 }
    }

    fn noted<T>(&mut self, result: Result<T>) -> Result<T> {
        // An interrupted call is made again by the caller.
        if result.as_ref().is_err_and(|e| e.kind() != ErrorKind::Interrupted) {
            self.failed_at = Some(self.position + BEYOND);
        }
        result
    }
}

impl<W: Write + Seek> Write for Quiet<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        if let Some(at) = &mut self.failed_at {
            *at += bytes.len() as u64;
            return Ok(bytes.len());
        }
        let written = self.inner.write(bytes);
        let written = self.noted(written)?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        if self.failed_at.is_some() {
            return Ok(());
        }
        let flushed = self.inner.flush();
        self.noted(flushed)
    }
}

impl<W: Write + Seek> Seek for Quiet<W> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        if let Some(at) = &mut self.failed_at {
            *at = match to {
                SeekFrom::Start(place) => place,
                SeekFrom::Current(by) | SeekFrom::End(by) => at.saturating_add_signed(by),
            };
            return Ok(*at);
        }
        let place = self.inner.seek(to);
        self.position = self.noted(place)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    /// Takes so many bytes.
    struct Small(std::io::Cursor<Vec<u8>>, usize);

    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            if self.0.get_ref().len() + bytes.len() > self.1 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.0.write(bytes)
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    impl Seek for Small {
        fn seek(&mut self, to: SeekFrom) -> Result<u64> {
            self.0.seek(to)
        }
    }

    #[test]
    fn the_first_error_is_the_only_one() {
        let mut small = Small(std::io::Cursor::default(), 100);
        let mut out = Quiet::new(&mut small);
        out.write_all(&[1; 90]).unwrap();
        assert_eq!(out.write_all(&[2; 20]).unwrap_err().kind(), ErrorKind::StorageFull);
        out.write_all(&[3; 5]).unwrap();
        assert_eq!(out.stream_position().unwrap(), 95 + BEYOND);
        assert_eq!(out.seek(SeekFrom::Start(7)).unwrap(), 7);
        out.flush().unwrap();
        assert_eq!(small.0.into_inner(), [1; 90]);
    }

    /// Wherever the disk ends, the zip fails with that error once; what its drop does then succeeds.
    #[test]
    fn a_zip_on_a_full_disk() {
        let write = |bytes| -> zip::result::ZipResult<()> {
            let mut zip = zip::ZipWriter::new(Quiet::new(Small(std::io::Cursor::default(), bytes)));
            let options = zip::write::SimpleFileOptions::default();
            let written = ["a", "b"].iter().try_for_each(|name| {
                zip.start_file(*name, options)?;
                Ok(zip.write_all(&[7; 50])?)
            });
            let finished = zip.finish().map(|_| ());
            // A writer that has closed itself does nothing more.
            if let (Err(_), Err(zip::result::ZipError::Io(error))) = (&written, &finished) {
                assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            }
            written.and(finished)
        };
        let needed = (0..1000).find(|&bytes| write(bytes).is_ok()).unwrap();
        for bytes in 0..needed {
            let Err(zip::result::ZipError::Io(error)) = write(bytes) else { panic!("{bytes} bytes") };
            assert_eq!(error.kind(), ErrorKind::StorageFull);
        }
    }
}
