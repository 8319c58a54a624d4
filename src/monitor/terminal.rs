//! The terminal while it is drawn on: its second screen, no echo, keys that are heard at once; all put back at the end.

use std::fs::File;
use std::io::{self, Read as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// To the second screen, cursor hidden, lines not wrapped; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The terminal of this process.
pub(super) struct Terminal {
    tty: File,
    before: Termios,
}

impl Terminal {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn open() -> io::Result<Self> {
        let tty = File::options().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&tty)?;
        let mut while_drawn = before.clone();
        while_drawn.local_modes -= LocalModes::ECHO | LocalModes::ICANON;
        // A read waits a tenth of a second for a key; Ctrl-C stays a signal.
        while_drawn.special_codes[SpecialCodeIndex::VMIN] = 0;
        while_drawn.special_codes[SpecialCodeIndex::VTIME] = 1;
        tcsetattr(&tty, OptionalActions::Now, &while_drawn)?;
        let mut terminal = Self { tty, before };
        terminal.write(ENTER)?;
        Ok(terminal)
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(&self.tty).ok().filter(|s| s.ws_col > 0 && s.ws_row > 0);
        size.map_or((80, 24), |s| (usize::from(s.ws_col), usize::from(s.ws_row)))
    }

    pub(super) fn write(&mut self, text: &str) -> io::Result<()> {
        self.tty.write_all(text.as_bytes())?;
        self.tty.flush()
    }

    /// Keys that were pressed; waits a tenth of a second for one.
    pub(super) fn keys(&mut self) -> io::Result<Vec<u8>> {
        let mut keys = [0; 64];
        match self.tty.read(&mut keys) {
            Ok(count) => Ok(keys[..count].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Vec::new()),
            Err(e) => Err(e),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing is to be done about a terminal that has gone.
        let _ = self.write(LEAVE);
        let _ = tcsetattr(&self.tty, OptionalActions::Now, &self.before);
    }
}
