//! Line charts as inline SVG. Colours come from the page's style, so that they follow light and dark.

use std::fmt::Write as _;

use super::curve::{Axis, Point, smooth, thin};
use super::html::{escape, number};

/// Size of a chart in its own units; a page shows it about as large in pixels.
const SIZE: (f64, f64) = (420.0, 190.0);
/// What is left free: left, right, top, bottom.
const MARGIN: (f64, f64, f64, f64) = (46.0, 10.0, 8.0, 22.0);
/// Points of a line at most.
const POINTS: usize = 400;

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A faint line with a smooth one over it.
    Noisy,
    /// One line.
    Plain,
    /// A dashed line: what is aimed at or compared with.
    Level,
    /// A dot each, joined by a thin line.
    Dots,
}

/// Values over steps.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) style: Style,
    pub(crate) points: Vec<Point>,
}

/// One chart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) series: Vec<Series>,
    /// Steps at which a stage begins, with its name.
    pub(crate) stages: Vec<(f64, String)>,
    /// A point that is marked, with what is said about it.
    pub(crate) mark: Option<(Point, String)>,
    /// Whether the values keep to a scale without logarithms, however far apart they are.
    pub(crate) linear: bool,
}

impl Chart {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, style: Style, points: Vec<Point>) -> Self {
        if points.iter().any(|p| p.1.is_finite()) {
            self.series.push(Series { name: name.to_owned(), style, points });
        }
        self
    }

    /// The chart as a figure; nothing where there is no value.
    pub(crate) fn figure(&self) -> String {
        if self.series.is_empty() {
            return String::new();
        }
        let all = || self.series.iter().flat_map(|s| s.points.iter());
        let (left, right, top, bottom) = MARGIN;
        let steps = all().map(|p| p.0);
        let (first, last) = (steps.clone().fold(f64::INFINITY, f64::min), steps.fold(0.0, f64::max));
        let x = Axis { low: first, high: last.max(first + 1.0), logarithmic: false, ticks: Vec::new() };
        let y = if self.linear {
            let finite = all().map(|p| p.1).filter(|v| v.is_finite());
            Axis::linear(finite.clone().fold(f64::INFINITY, f64::min), finite.fold(f64::NEG_INFINITY, f64::max), 4)
        } else {
            Axis::of(all().map(|p| p.1), 4)
        };
        let place = |p: &Point| {
            let (width, height) = (SIZE.0 - left - right, SIZE.1 - top - bottom);
            (left + width * x.place(p.0), top + height * (1.0 - y.place(p.1)))
        };
        let mut body = self.frame(&x, &y, &place);
        for (i, series) in self.series.iter().enumerate() {
            draw(&mut body, series, i + 1, &place);
        }
        if let Some((point, text)) = &self.mark {
            let (px, py) = place(point);
            let _ = write!(body, "<circle class=\"mark\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"6\"/>");
            let anchor = if px > SIZE.0 * 0.6 { "end" } else { "start" };
            let below = if py < top + 24.0 { 20.0 } else { -11.0 };
            let _ = write!(
                body,
                "<text class=\"said\" x=\"{px:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                py + below,
                escape(text)
            );
        }
        let keys: String = if self.series.len() > 1 {
            let key = |(i, s): (usize, &Series)| {
                let kind = if s.style == Style::Level { " level" } else { "" };
                format!("<span class=\"key c{}{kind}\">{}</span>", i + 1, escape(&s.name))
            };
            format!("<div class=\"keys\">{}</div>", self.series.iter().enumerate().map(key).collect::<String>())
        } else {
            String::new()
        };
        let title = escape(&self.title);
        format!(
            "<figure><figcaption>{title}<output></output></figcaption>{keys}<svg class=\"chart\" role=\"img\" \
             aria-label=\"{title}\" viewBox=\"0 0 {} {}\" data-x=\"{left} {} {} {}\" data-y=\"{top} {} {} {} {}\">{body}\
             <line class=\"hair\" y1=\"{top}\" y2=\"{}\" x1=\"-9\" x2=\"-9\"/></svg></figure>",
            SIZE.0,
            SIZE.1,
            SIZE.0 - right,
            x.low,
            x.high,
            SIZE.1 - bottom,
            y.low,
            y.high,
            u8::from(y.logarithmic),
            SIZE.1 - bottom,
        )
    }

    /// Grid, numbers at the axes, and where stages begin.
    fn frame(&self, x: &Axis, y: &Axis, place: &dyn Fn(&Point) -> (f64, f64)) -> String {
        let (left, right, top, bottom) = MARGIN;
        let mut out = String::new();
        for &tick in &y.ticks {
            let at = place(&(x.low, tick)).1;
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{left}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                SIZE.0 - right,
                left - 5.0,
                at + 3.5,
                number(tick)
            );
        }
        let steps = Axis::linear(x.low, x.high, 5).ticks;
        let floor = SIZE.1 - bottom;
        for tick in steps.into_iter().filter(|t| (x.low..=x.high).contains(t) && t.fract() == 0.0) {
            let at = place(&(tick, y.low)).0;
            let _ = write!(
                out,
                "<line class=\"tick\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{floor}\" y2=\"{}\"/>\
                 <text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>",
                floor + 3.0,
                SIZE.1 - 6.0
            );
        }
        for (step, name) in self.stages.iter().filter(|(s, _)| x.low < *s && *s < x.high) {
            let at = place(&(*step, y.low)).0;
            let (beside, anchor) = if at > SIZE.0 * 0.7 { (-4.0, "end") } else { (4.0, "start") };
            let _ = write!(
                out,
                "<line class=\"stage\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{floor}\"/>\
                 <text class=\"stage\" x=\"{:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
                at + beside,
                top + 10.0,
                escape(name)
            );
        }
        out
    }
}

fn draw(out: &mut String, series: &Series, number: usize, place: &dyn Fn(&Point) -> (f64, f64)) {
    let line = |out: &mut String, class: &str, points: &[Point], named: bool| {
        let _ = write!(out, "<polyline class=\"c{number} {class}\"");
        if named {
            let _ = write!(out, " data-name=\"{}\"", escape(&series.name));
        }
        out.push_str(" points=\"");
        for point in points {
            let (x, y) = place(point);
            let _ = write!(out, "{x:.1},{y:.2} ");
        }
        out.push_str("\"/>");
    };
    let thinned = thin(&series.points, POINTS);
    match series.style {
        Style::Noisy if series.points.len() >= 40 => {
            line(out, "raw", &thinned, true);
            line(out, "line", &thin(&smooth(&series.points), POINTS), false);
        }
        Style::Noisy | Style::Plain => line(out, "line", &thinned, true),
        Style::Level => line(out, "level", &thinned, true),
        Style::Dots => {
            line(out, "raw", &thinned, true);
            for point in &thinned {
                let (x, y) = place(point);
                let _ = write!(out, "<circle class=\"c{number}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\"/>");
            }
        }
    }
}
