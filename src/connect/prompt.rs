//! A password typed at the terminal: nothing of it is shown.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

/// Asks on the process's terminal; `None` where nobody sits there, or where the user gave up (Ctrl-C, Ctrl-D).
pub(crate) fn ask(question: &str) -> Option<String> {
    // A job whose input comes from elsewhere must not wait for a person, even where a terminal could be found.
    if !io::stdin().is_terminal() {
        return None;
    }
    let mut tty = File::options().read(true).write(true).open("/dev/tty").ok()?;
    let quiet = Quiet::new(&tty).ok()?;
    write!(tty, "{question}: ").and_then(|()| tty.flush()).ok()?;
    let typed = read_line(&mut tty);
    let _ = writeln!(tty);
    drop(quiet);
    typed.ok().flatten()
}

/// The terminal without echo, and with Ctrl-C as a key, so that it is always put back.
struct Quiet {
    tty: File,
    before: Termios,
}

impl Quiet {
    fn new(tty: &File) -> io::Result<Self> {
        let tty = tty.try_clone()?;
        let before = tcgetattr(&tty)?;
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        // What was typed before the question is no answer to it.
        tcsetattr(&tty, OptionalActions::Flush, &silent)?;
        Ok(Self { tty, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // Nothing is to be done about a terminal that has gone.
        let _ = tcsetattr(&self.tty, OptionalActions::Flush, &self.before);
    }
}

/// Keys up to Enter; backspace takes one back, Ctrl-U all. `None` after Ctrl-C, Ctrl-D or the end.
fn read_line(keys: &mut impl Read) -> io::Result<Option<String>> {
    let mut typed = Vec::new();
    let mut key = [0];
    loop {
        if keys.read(&mut key)? == 0 {
            return Ok(None);
        }
        match key[0] {
            b'\r' | b'\n' => return Ok(String::from_utf8(typed).ok()),
            3 | 4 => return Ok(None),
            21 => typed.clear(),
            8 | 127 => {
                // A character may have several bytes.
                while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            other => typed.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    #[test]
    fn keys_become_a_password() {
        let typed = |keys: &str| read_line(&mut keys.as_bytes()).unwrap();
        assert_eq!(typed("secret\n"), Some("secret".into()));
        assert_eq!(typed("secrx\u{7f}et\r"), Some("secret".into()));
        assert_eq!(typed("pé\u{7f}a\n"), Some("pa".into()));
        assert_eq!(typed("wrong\u{15}right\n"), Some("right".into()));
        assert_eq!(typed("half\u{3}\n"), None);
        assert_eq!(typed("half"), None);
    }
}
