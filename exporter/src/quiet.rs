//! What a zip is written into. The zip library's writer tries again when it is dropped, and prints on standard
//! error what it then meets; behind this it meets nothing, and the first error is the only one.

use std::io::{ErrorKind, Result, Seek, SeekFrom, Write};

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
            self.failed_at = Some(self.position);
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
        assert_eq!(out.stream_position().unwrap(), 95);
        assert_eq!(out.seek(SeekFrom::Start(7)).unwrap(), 7);
        out.flush().unwrap();
        assert_eq!(small.0.into_inner(), [1; 90]);
    }

    /// Wherever the disk ends, the zip fails with that error.
    #[test]
    fn a_zip_on_a_full_disk() {
        let write = |bytes| -> zip::result::ZipResult<()> {
            let mut zip = zip::ZipWriter::new(Quiet::new(Small(std::io::Cursor::default(), bytes)));
            zip.start_file("a", zip::write::SimpleFileOptions::default())?;
            zip.write_all(&[7; 50])?;
            zip.finish().map(|_| ())
        };
        let needed = (0..1000).find(|&bytes| write(bytes).is_ok()).unwrap();
        for bytes in 0..needed {
            let Err(zip::result::ZipError::Io(error)) = write(bytes) else { panic!("{bytes} bytes") };
            assert_eq!(error.kind(), ErrorKind::StorageFull);
        }
    }
}
