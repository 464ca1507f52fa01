//! Charts as SVG that stands inside a page: what is not data has the colour of the page's text.

use std::fmt::Write;

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{SuiteReport, digits};

/// Stands for the colour of the page's text until the drawing is done.
const TEXT: RGBColor = RGBColor(1, 2, 3);
const TEXT_IN_SVG: &str = "#010203";

/// Readable on white and on black.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x7a, 0x85, 0x99),
    RGBColor(0x2b, 0x8c, 0xd8),
    RGBColor(0xe0, 0x8a, 0x1e),
    RGBColor(0x2f, 0xa8, 0x5c),
    RGBColor(0xb0, 0x5c, 0xd0),
    RGBColor(0xd0, 0x4f, 0x4f),
];

/// The colour of a peer: Hermix, the last, always has the same.
pub(super) fn colour(peers: &[&str], at: usize) -> RGBColor {
    if at + 1 == peers.len() {
        COLOURS[3]
    } else {
        [COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[4], COLOURS[5]][at % 5]
    }
}

const WIDTH: u32 = 860;
/// Left of the bars: names.
const LEFT: i32 = 250;
/// Right of them: figures.
const RIGHT: i32 = 90;
const BAR: i32 = 12;
const GAP: i32 = 12;
const AXIS: i32 = 26;
const FONT: i32 = 13;

/// Bars of all measurements of a suite in one unit, on a logarithmic axis; lines for least and most.
///
/// # Errors
/// Where the library fails.
pub(super) fn bars(suite: &SuiteReport, unit: &str, peers: &[&str]) -> Result<String> {
    let rows: Vec<_> = suite.measurements.iter().filter(|one| one.unit == unit).collect();
    let summaries: Vec<Vec<_>> =
        rows.iter().map(|row| peers.iter().map(|peer| row.summary(peer)).collect()).collect();
    let all = || summaries.iter().flatten().flatten();
    let low = all().map(|s| s.least).filter(|least| *least > 0.0).fold(f64::INFINITY, f64::min);
    let high = all().map(|s| s.most).fold(0.0, f64::max);
    if !low.is_finite() || high <= 0.0 {
        return Ok(String::new());
    }
    // Decades, so that the ends are figures that people know.
    let (low, high) = ((low / 1.5).log10().floor(), high.log10().ceil());
    let high = if high <= low { low + 1.0 } else { high };
    let group = peers.len() as i32 * BAR + GAP;
    let height = rows.len() as i32 * group + AXIS + 6;
    draw(height as u32, |area| {
        let span = WIDTH as i32 - LEFT - RIGHT;
        let x = |value: f64| {
            let share = (value.max(10f64.powf(low)).log10() - low) / (high - low);
            LEFT + (share * f64::from(span)).round() as i32
        };
        let bottom = height - AXIS;
        let mut decade = low;
        while decade <= high {
            let at = x(10f64.powf(decade));
            area.draw(&PathElement::new(vec![(at, 0), (at, bottom)], TEXT.mix(0.15)))?;
            let label = short(10f64.powf(decade));
            area.draw(&Text::new(label, (at, bottom + 5), text(HPos::Center, VPos::Top)))?;
            decade += ((high - low) / 6.0).ceil().max(1.0);
        }
        let label = text(HPos::Right, VPos::Top);
        area.draw(&Text::new(unit.to_owned(), (WIDTH as i32 - 4, bottom + 5), label))?;
        for (at, (row, summaries)) in rows.iter().zip(&summaries).enumerate() {
            let top = at as i32 * group + GAP / 2;
            let middle = top + peers.len() as i32 * BAR / 2;
            let name = text(HPos::Right, VPos::Center);
            area.draw(&Text::new(row.name.clone(), (LEFT - 8, middle), name))?;
            for (peer, summary) in summaries.iter().enumerate() {
                let top = top + peer as i32 * BAR;
                let Some(summary) = summary else {
                    let label = text(HPos::Left, VPos::Center);
                    area.draw(&Text::new("-", (LEFT + 4, top + BAR / 2), label))?;
                    continue;
                };
                let fill = colour(peers, peer).filled();
                let corners = [(LEFT, top + 1), (x(summary.median), top + BAR - 1)];
                area.draw(&Rectangle::new(corners, fill))?;
                let (least, most, centre) = (x(summary.least), x(summary.most), top + BAR / 2);
                for line in [
                    vec![(least, centre), (most, centre)],
                    vec![(least, centre - 3), (least, centre + 3)],
                    vec![(most, centre - 3), (most, centre + 3)],
                ] {
                    area.draw(&PathElement::new(line, TEXT.stroke_width(1)))?;
                }
                let label = text(HPos::Left, VPos::Center);
                let figure = (most.max(x(summary.median)) + 6, centre);
                area.draw(&Text::new(digits(summary.median), figure, label))?;
            }
        }
        Ok(())
    })
}

/// Lines over sizes: the measurements' names end with the size, `4K` or `16M`.
///
/// # Errors
/// Where the library fails.
pub(super) fn curve(suite: &SuiteReport, peers: &[&str]) -> Result<String> {
    let points: Vec<(f64, &super::Measurement)> =
        suite.measurements.iter().filter_map(|one| Some((size_at_end(&one.name)?, one))).collect();
    let lines: Vec<Vec<(f64, f64)>> = peers
        .iter()
        .map(|peer| {
            let of =
                |(size, one): &(f64, &super::Measurement)| Some((*size, one.summary(peer)?.median));
            points.iter().filter_map(of).collect()
        })
        .collect();
    let all = || lines.iter().flatten();
    let (least, most) = all().fold((f64::INFINITY, 0f64), |(a, b), p| (a.min(p.1), b.max(p.1)));
    let (first, last) = all().fold((f64::INFINITY, 0f64), |(a, b), p| (a.min(p.0), b.max(p.0)));
    if !(least > 0.0 && least.is_finite() && first < last) {
        return Ok(String::new());
    }
    draw(340, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(60)
            .build_cartesian_2d((first..last).log_scale(), (least / 1.5..most * 1.5).log_scale())?;
        chart
            .configure_mesh()
            .label_style(text(HPos::Left, VPos::Top))
            .axis_style(TEXT.mix(0.5))
            .bold_line_style(TEXT.mix(0.15))
            .light_line_style(TRANSPARENT)
            .x_desc("bytes walked")
            .y_desc("ns for a load")
            .x_label_formatter(&|size| short(*size))
            .y_label_formatter(&|ns| digits(*ns))
            .draw()?;
        for (at, line) in lines.iter().enumerate() {
            let style = colour(peers, at).stroke_width(2);
            chart.draw_series(LineSeries::new(line.iter().copied(), style))?;
            let dots = line.iter().map(|point| Circle::new(*point, 3, colour(peers, at).filled()));
            chart.draw_series(dots)?;
        }
        Ok(())
    })
}

/// Bytes that a name's last word means.
fn size_at_end(name: &str) -> Option<f64> {
    let word = name.rsplit(' ').next()?;
    let scale = match word.chars().last()? {
        'K' => 1024.0,
        'M' => 1024.0 * 1024.0,
        _ => return None,
    };
    Some(word[..word.len() - 1].parse::<f64>().ok()? * scale)
}

/// A figure for an axis: 1000 is 1k.
fn short(value: f64) -> String {
    match value {
        big if big >= 1e9 => format!("{}G", digits_only(big / 1e9)),
        big if big >= 1e6 => format!("{}M", digits_only(big / 1e6)),
        big if big >= 1e3 => format!("{}k", digits_only(big / 1e3)),
        small => digits_only(small),
    }
}

fn digits_only(value: f64) -> String {
    format!("{}", (value * 1000.0).round() / 1000.0)
}

fn text(h: HPos, v: VPos) -> TextStyle<'static> {
    ("sans-serif", FONT).into_font().color(&TEXT).pos(Pos::new(h, v))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// An SVG of this height.
fn draw(height: u32, body: impl for<'a> FnOnce(&Area<'a>) -> Drawn<'a>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        body(&area).map_err(|error| anyhow!("cannot draw a chart: {error}"))?;
        area.present().map_err(|error| anyhow!("cannot draw a chart: {error}"))?;
    }
    let mut scaled = String::new();
    let _ = write!(scaled, "<svg role=\"img\" viewBox=\"0 0 {WIDTH} {height}\" ");
    Ok(svg.replace(TEXT_IN_SVG, "currentColor").replacen("<svg ", &scaled, 1))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::example, *};

    #[test]
    fn a_chart_has_the_names_and_no_colour_of_its_own_for_text() {
        let report = example();
        let svg = bars(&report.suites[0], "ns", &report.running()).unwrap();
        assert!(svg.contains("null") && svg.contains("currentColor"), "{svg}");
        assert!(!svg.contains(TEXT_IN_SVG) && !svg.contains("bw_pipe"));
    }

    #[test]
    fn a_curve_is_drawn_from_the_sizes_in_names() {
        assert_eq!(size_at_end("lat_mem_rd 16M"), Some(16.0 * 1048576.0));
        assert_eq!(size_at_end("lat_mem_rd"), None);
        let report = example();
        assert!(curve(&report.suites[1], &report.running()).unwrap().contains("polyline"));
        assert_eq!(curve(&report.suites[0], &report.running()).unwrap(), "");
    }

    #[test]
    fn figures_of_axes_are_short() {
        assert_eq!(
            (short(1000.0), short(1e7), short(0.1)),
            ("1k".into(), "10M".into(), "0.1".into())
        );
    }
}
