//! A look at a run, drawn on a canvas of any size.

use nsparse_trainer::standing::RunState;

use super::canvas::{Area, Canvas, Look};
use super::view::{Curve, View, spark};
use crate::report::curve::{Axis, Point, smooth, thin};
use crate::report::html::number;

/// Least room of a chart, its frame included.
const CHART: (usize, usize) = (30, 6);

/// Draws all of it.
pub(super) fn draw(view: &View, width: usize, height: usize) -> Canvas {
    let mut canvas = Canvas::new(width, height);
    let look = match view.standing.state {
        RunState::Running | RunState::Waiting => Look::Curve,
        RunState::Finished => Look::Good,
        RunState::Stopped | RunState::StoppedByGuard => Look::Warning,
    };
    let at = canvas.text(0, 0, "● ", look);
    let at = canvas.text(at, 0, &view.state(), Look::Bold);
    canvas.text(at + 2, 0, &view.name, Look::Soft);
    canvas.text(0, 1, &view.how_far(), Look::Plain);
    bar(&mut canvas, view.share(), look);

    // From below: what is said, then the lists, as long as charts have room.
    let mut floor = height;
    if height > 8 {
        floor -= 1;
        canvas.text(0, floor, "q ends the view, the training goes on", Look::Soft);
        let room = list_room(view, width, height);
        floor = listed(&mut canvas, floor, room, "evaluations", &view.evaluations, Look::Plain);
        floor = listed(&mut canvas, floor, room, "warnings", &view.warnings, Look::Warning);
    }
    let top = 3.min(floor);
    curves(&mut canvas, view, Area { x: 0, y: top, width, height: floor - top });
    canvas
}

/// Lines of each list: what charts leave free, or where they have no room a quarter of the height.
fn list_room(view: &View, width: usize, height: usize) -> usize {
    let lists = usize::from(!view.evaluations.is_empty()) + usize::from(!view.warnings.is_empty());
    let charts = view.curves.iter().filter(|c| !c.points.is_empty()).count();
    let taken = 4 + CHART.1 * charts.div_ceil(columns(width, charts)) + lists;
    let free = height.saturating_sub(taken) / lists.max(1);
    if free >= 2 { free } else { (height / 4).max(2) }
}

/// How many charts stand side by side.
fn columns(width: usize, charts: usize) -> usize {
    (width / CHART.0).clamp(1, 3).min(charts.max(1))
}

/// How much of the run is done, as a line over the whole width.
fn bar(canvas: &mut Canvas, share: f64, look: Look) {
    let done = (share * canvas.width as f64).round() as usize;
    let at = canvas.text(0, 2, &"━".repeat(done), look);
    canvas.text(at, 2, &"─".repeat(canvas.width.saturating_sub(done)), Look::Soft);
}

/// A list above `floor`, the newest lines as far as there is room; where it begins.
fn listed(canvas: &mut Canvas, floor: usize, room: usize, name: &str, lines: &[String], look: Look) -> usize {
    if lines.is_empty() {
        return floor;
    }
    let wrapped: Vec<String> = lines.iter().flat_map(|line| wrap(line, canvas.width.saturating_sub(2))).collect();
    let shown = &wrapped[wrapped.len().saturating_sub(room)..];
    let top = floor - shown.len() - 1;
    canvas.text(0, top, name, Look::Soft);
    for (i, line) in shown.iter().enumerate() {
        canvas.text(2, top + 1 + i, line, look);
    }
    top
}

/// Lines of at most `width` characters, broken at spaces where that is possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().map_or(0, |l| l.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Charts side by side where there is room, else a line each.
fn curves(canvas: &mut Canvas, view: &View, area: Area) {
    let shown: Vec<&Curve> = view.curves.iter().filter(|c| !c.points.is_empty()).collect();
    let columns = columns(area.width, shown.len());
    let rows = shown.len().div_ceil(columns).max(1);
    if area.width < CHART.0 || area.height < CHART.1 * rows {
        let width = shown.iter().map(|c| c.title().chars().count()).max().unwrap_or(0);
        for (i, curve) in shown.iter().enumerate().take(area.height) {
            canvas.text(area.x, area.y + i, &curve.title(), Look::Plain);
            let at = area.x + width + 2;
            canvas.text(at, area.y + i, &spark(curve, area.width.saturating_sub(at + 2)), Look::Curve);
        }
        return;
    }
    for (i, curve) in shown.iter().enumerate() {
        let (row, column) = (i / columns, i % columns);
        let part = |whole: usize, parts: usize, at: usize| (whole * at / parts, whole * (at + 1) / parts);
        let (left, right) = part(area.width, columns, column);
        let (top, bottom) = part(area.height, rows, row);
        chart(canvas, curve, Area { x: area.x + left, y: area.y + top, width: right - left, height: bottom - top });
    }
}

fn chart(canvas: &mut Canvas, curve: &Curve, area: Area) {
    canvas.frame(area, &format!(" {} ", curve.title()));
    let line = if curve.noisy { smooth(&curve.points) } else { curve.points.clone() };
    // Single spikes of a noisy curve do not set the scale: of its values a twentieth may lie beyond either end.
    let mut values: Vec<f64> = curve.points.iter().map(|p| p.1).filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let beyond = if curve.noisy { values.len() / 20 } else { 0 };
    let usual = values.get(beyond..values.len() - beyond).unwrap_or_default().iter().copied();
    let scale = Axis::of(usual.chain(line.iter().map(|p| p.1)).chain(curve.target), 3);
    let (high, low) = (number(scale.high), number(scale.low));
    let labels = high.chars().count().max(low.chars().count());
    let inside =
        Area { x: area.x + labels + 2, y: area.y + 1, width: area.width - labels - 3, height: area.height - 2 };
    canvas.text(area.x + 1, inside.y, &format!("{high:>labels$}"), Look::Soft);
    canvas.text(area.x + 1, inside.y + inside.height - 1, &format!("{low:>labels$}"), Look::Soft);
    let (first, last) = (curve.points[0].0, curve.points[curve.points.len() - 1].0);
    let (from, to) = (format!(" {first} "), format!(" {last} "));
    let bottom = area.y + area.height - 1;
    canvas.text(inside.x, bottom, &from, Look::Soft);
    canvas.text(area.x + area.width - 2 - to.len(), bottom, &to, Look::Soft);
    let span = (last - first).max(1.0);
    let placed = |points: &[Point]| -> Vec<Point> {
        thin(points, inside.width * 4).into_iter().map(|(x, y)| ((x - first) / span, scale.place(y))).collect()
    };
    if curve.noisy {
        canvas.curve(inside, &placed(&curve.points), Look::Soft);
    }
    if let Some(target) = curve.target {
        canvas.curve(inside, &[(0.0, scale.place(target)), (1.0, scale.place(target))], Look::Warning);
    }
    canvas.curve(inside, &placed(&line), Look::Curve);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::fmt::Write as _;

    use nsparse_trainer::run_folder::RunFolder;

    use super::*;

    /// A contrastive stage of 80 steps under control, 60 of them done, with evaluations and a warning.
    fn view() -> View {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = String::new();
        for step in 0..=60 {
            if step % 20 == 0 {
                let value = 0.8 + f64::from(step % 50) / 1000.0;
                writeln!(
                    lines,
                    r#"{{"kind":"evaluation","stage":"contrastive","step":{step},"metric":"ndcg@10","value":{value},"active_dimensions":150.0,"queries":9,"documents":99,"seconds":2.0}}"#
                )
                .unwrap();
            }
            let (step, done) = (step + 1, f64::from(step) / 60.0);
            if step > 60 {
                break;
            }
            let (loss, density) = (2.0 + 3.0 * (1.0 - done).powi(3), 400.0 - 240.0 * done);
            writeln!(
                lines,
                r#"{{"kind":"step","stage":"contrastive","step":{step},"total_step":{step},"loss":{loss},"parts":{{}},"learning_rate":1e-5,"lambda":{},"steering":{{"target":150.0,"measured":{density}}},"active_dimensions":{density},"gradient_norm":{},"tokens":10,"tokens_per_second":2000.0,"seconds":0.5}}"#,
                1e-3 * (1.0 + done),
                1.0 + f64::from(step % 3)
            )
            .unwrap();
        }
        lines.push_str(r#"{"kind":"warning","finding":"off_target","stage":"contrastive","step":60,"total_step":60,"cause":"documents have 160 active dimensions, the target is 150","mend":"train longer"}"#);
        lines.push('\n');
        std::fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
        std::fs::write(
            folder.path().join("config.yaml"),
            "model: {path: m}\ndata: {dir: d}\nwarm_start: {steps: 0}\ntrain: {steps: 80, losses: {flops: {target: {doc_dims: 150}}}}\neval: {every: 20}\n",
        )
        .unwrap();
        let mut view = View::of(&RunFolder::open(folder.path()).unwrap(), Some(12.4));
        "runs/sample".clone_into(&mut view.name);
        view
    }

    #[test]
    fn a_usual_terminal() {
        insta::assert_snapshot!(draw(&view(), 100, 32).to_text());
    }

    #[test]
    fn a_small_terminal() {
        insta::assert_snapshot!(draw(&view(), 60, 14).to_text());
    }

    #[test]
    fn no_size_is_too_small() {
        let view = view();
        for (width, height) in [(0, 0), (1, 1), (3, 200), (200, 3), (29, 12), (31, 9), (400, 120)] {
            assert_eq!(draw(&view, width, height).to_terminal().matches("\r\n").count(), height.saturating_sub(1));
        }
        let nothing = View::of(&RunFolder::open(tempfile::tempdir().unwrap().path()).unwrap(), None);
        assert!(draw(&nothing, 80, 24).to_text().contains("nothing written yet"));
    }
}
