//! A terminal's cells: text, frames, and curves out of Braille dots.

use unicode_width::UnicodeWidthChar as _;

/// How a cell looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Look {
    #[default]
    Plain,
    /// Said softly: frames, axes, places.
    Soft,
    Bold,
    /// A curve.
    Curve,
    /// What a curve aims at; a warning.
    Warning,
    /// Done.
    Good,
}

impl Look {
    /// The terminal's code for it (ECMA-48, "select graphic rendition").
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "\x1b[0m",
            Self::Soft => "\x1b[0;90m",
            Self::Bold => "\x1b[0;1m",
            Self::Curve => "\x1b[0;36m",
            Self::Warning => "\x1b[0;33m",
            Self::Good => "\x1b[0;32m",
        }
    }
}

/// A part of the canvas, in cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) x: usize,
    pub(super) y: usize,
    pub(super) width: usize,
    pub(super) height: usize,
}

/// The cells of a terminal. What does not fit is cut.
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Row by row; `None` is the second half of a wide character.
    cells: Vec<(Option<char>, Look)>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self { width, height, cells: vec![(Some(' '), Look::Plain); width * height] }
    }

    /// Writes a line of text; the column after it.
    pub(super) fn text(&mut self, x: usize, y: usize, text: &str, look: Look) -> usize {
        let mut at = x;
        for c in text.chars() {
            let c = if c.is_control() { ' ' } else { c };
            let width = c.width().unwrap_or(0);
            if width == 0 || y >= self.height {
                continue;
            }
            if at + width > self.width {
                break;
            }
            self.cells[y * self.width + at] = (Some(c), look);
            if width == 2 {
                self.cells[y * self.width + at + 1] = (None, look);
            }
            at += width;
        }
        at
    }

    /// A frame with a title in its upper edge.
    pub(super) fn frame(&mut self, area: Area, title: &str) {
        let Area { x, y, width, height } = area;
        let edge = |left: char, right: char| format!("{left}{}{right}", "─".repeat(width.saturating_sub(2)));
        self.text(x, y, &edge('┌', '┐'), Look::Soft);
        for row in y + 1..y + height - 1 {
            self.text(x, row, "│", Look::Soft);
            self.text(x + width - 1, row, "│", Look::Soft);
        }
        self.text(x, y + height - 1, &edge('└', '┘'), Look::Soft);
        let title: String = title.chars().take(width.saturating_sub(4)).collect();
        self.text(x + 2, y, &title, Look::Plain);
    }

    /// A curve through points with both coordinates in `[0, 1]`, in dots of half a column and a quarter of a row.
    /// Where two curves meet, the later one's look stays.
    pub(super) fn curve(&mut self, area: Area, points: &[(f64, f64)], look: Look) {
        let (columns, rows) = (area.width * 2, area.height * 4);
        if columns == 0 || rows == 0 {
            return;
        }
        let place = |(x, y): (f64, f64)| (x * (columns - 1) as f64, (1.0 - y) * (rows - 1) as f64);
        let mut dot = |x: f64, y: f64| self.dot(area, x.round() as usize, y.round() as usize, look);
        for (i, &point) in points.iter().enumerate() {
            let (x, y) = place(point);
            let (from_x, from_y) = place(points[i.saturating_sub(1)]);
            let steps = (x - from_x).abs().max((y - from_y).abs()).ceil();
            for step in 0..=steps as usize {
                let share = if steps > 0.0 { step as f64 / steps } else { 0.0 };
                dot(from_x + share * (x - from_x), from_y + share * (y - from_y));
            }
        }
    }

    fn dot(&mut self, area: Area, x: usize, y: usize, look: Look) {
        // Bits of the eight dots of a Braille character, row by row.
        const BITS: [[u32; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        const BLANK: u32 = 0x2800;
        let (column, row) = (area.x + x / 2, area.y + y / 4);
        if column >= self.width || row >= self.height || x >= area.width * 2 || y >= area.height * 4 {
            return;
        }
        let cell = &mut self.cells[row * self.width + column];
        let there = cell.0.map_or(0, u32::from);
        let there = if (BLANK..BLANK + 0x100).contains(&there) { there } else { BLANK };
        *cell = (char::from_u32(there | BITS[y % 4][x % 2]), look);
    }

    /// The canvas as a terminal takes it, from its upper left corner on.
    pub(super) fn to_terminal(&self) -> String {
        let mut out = String::from("\x1b[H");
        for (number, row) in self.cells.chunks(self.width.max(1)).enumerate() {
            if number > 0 {
                out.push_str("\r\n");
            }
            let mut now = None;
            for (c, look) in row {
                if now != Some(*look) {
                    out.push_str(look.code());
                    now = Some(*look);
                }
                out.extend(c);
            }
        }
        out.push_str(Look::Plain.code());
        out
    }

    /// The characters alone.
    #[cfg(test)]
    pub(super) fn to_text(&self) -> String {
        let rows = self.cells.chunks(self.width.max(1));
        let lines = rows.map(|row| row.iter().filter_map(|(c, _)| *c).collect::<String>().trim_end().to_owned());
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_and_wide_characters_take_two_cells() {
        let mut canvas = Canvas::new(8, 2);
        assert_eq!(canvas.text(0, 0, "日本語\tabc", Look::Plain), 8);
        assert_eq!(canvas.text(6, 1, "語語", Look::Bold), 8);
        canvas.text(0, 9, "nowhere", Look::Plain);
        assert_eq!(canvas.to_text(), "日本語 a\n      語");
        assert_eq!(canvas.to_terminal(), "\x1b[H\x1b[0m日本語 a\r\n\x1b[0m      \x1b[0;1m語\x1b[0m");
    }

    #[test]
    fn curves_are_dots() {
        let mut canvas = Canvas::new(6, 4);
        let inside = Area { x: 1, y: 1, width: 4, height: 2 };
        canvas.frame(Area { x: 0, y: 0, width: 6, height: 4 }, "name");
        canvas.curve(inside, &[(0.0, 0.0), (1.0, 1.0)], Look::Curve);
        assert_eq!(canvas.to_text(), "┌─na─┐\n│  ⡠⠊│\n│⡠⠊  │\n└────┘");
        let mut canvas = Canvas::new(4, 2);
        canvas.curve(Area { x: 0, y: 0, width: 4, height: 2 }, &[(0.5, 1.0)], Look::Curve);
        canvas.curve(Area { x: 0, y: 0, width: 4, height: 2 }, &[], Look::Curve);
        assert_eq!(canvas.to_text().chars().filter(|c| ('\u{2801}'..'\u{2900}').contains(c)).count(), 1);
        Canvas::new(0, 0).curve(Area { x: 0, y: 0, width: 3, height: 3 }, &[(0.0, 0.0)], Look::Curve);
    }
}
