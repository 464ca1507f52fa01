//! `--boot-chart`: where the time and the instructions go, from the start of hermit-run to the program's
//! first instruction, and on to the end of all.
//!
//! Times are those of the run itself: hermit-run's own, and the guest's by its time stamp counter. The
//! instructions of the guest's start are counted by a second machine, under `-icount`, which ends in place
//! of the program's first instruction: there the counter counts instructions, exactly.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use hx_abi::link::Moment;
use serde::Serialize;

/// A stretch of time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Step {
    /// Who: `hermit-run`, `QEMU`, `kernel` or `program`.
    who: &'static str,
    /// What is done.
    what: String,
    /// When it begins, in microseconds since the start of hermit-run.
    start_us: f64,
    /// How long it takes.
    us: f64,
    /// Instructions of the guest, where they were counted.
    instructions: Option<u64>,
}

/// When hermit-run saw what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watch {
    /// It began.
    pub(crate) begin: Instant,
    /// The image was there.
    pub(crate) image: Instant,
    /// QEMU was started.
    pub(crate) start: Instant,
    /// The guest's moments came, just before the program's first instruction.
    pub(crate) first: Instant,
    /// The program had ended.
    pub(crate) exit: Instant,
    /// So had QEMU.
    pub(crate) end: Instant,
}

/// All steps, in order; `counted` has the moments of the machine that counts.
pub(crate) fn steps(watch: &Watch, moments: &[Moment], counted: Option<&[Moment]>) -> Vec<Step> {
    let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
    let since = |moment: Instant| micros(moment.saturating_duration_since(watch.begin));
    let start = since(watch.start);
    let guest_us = moments.last().map_or(0.0, |last| last.nanoseconds as f64 / 1e3);
    // The kernel cannot have begun before QEMU.
    let entry = (since(watch.first) - guest_us).max(start);
    let step = |who, what: &str, from: f64, to: f64, instructions| Step {
        who,
        what: what.into(),
        start_us: from,
        us: (to - from).max(0.0),
        instructions,
    };
    let mut steps = vec![
        step("hermit-run", "program, libraries, image", 0.0, since(watch.image), None),
        step("hermit-run", "configuration, boot archive", since(watch.image), start, None),
        step("QEMU", "machine, until the kernel's entry", start, entry, None),
    ];
    let (mut from_ns, mut from_ticks) = (0, 0);
    for (index, moment) in moments.iter().enumerate() {
        let ticks = counted.and_then(|counted| Some(counted.get(index)?.ticks));
        let instructions = ticks.map(|ticks| ticks.saturating_sub(from_ticks));
        let at = |ns: u64| entry + ns as f64 / 1e3;
        let (from, to) = (at(from_ns), at(moment.nanoseconds));
        steps.push(step("kernel", &moment.done, from, to, instructions));
        from_ns = moment.nanoseconds;
        from_ticks = ticks.unwrap_or(from_ticks);
    }
    let first = steps.last().map_or(entry, |last| last.start_us + last.us);
    steps.push(step(
        "program",
        "from its first instruction to its end",
        first,
        since(watch.exit),
        None,
    ));
    steps.push(step("QEMU", "end of the machine", since(watch.exit), since(watch.end), None));
    steps
}

const WIDTH: f64 = 1000.0;
/// Left of the bars: what is done.
const LEFT: f64 = 300.0;
/// Right of them: figures.
const RIGHT: f64 = 220.0;
const ROW: f64 = 22.0;
const TOP: f64 = 50.0;

/// A row for each step: its bar where it lies in time, its microseconds and instructions.
pub(crate) fn svg(steps: &[Step], command: &str) -> String {
    let end = steps.iter().map(|step| step.start_us + step.us).fold(1.0, f64::max);
    let height = TOP + steps.len() as f64 * ROW + 40.0;
    let x = |us: f64| LEFT + us / end * (WIDTH - LEFT - RIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <style>:root {{ color: #222; background: #fff }} text {{ fill: currentColor }}\n\
         @media (prefers-color-scheme: dark) {{ :root {{ color: #ddd; background: #161616 }} }}</style>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">{}</text>\n\
         <text x=\"{}\" y=\"40\" text-anchor=\"end\">microseconds</text>\n\
         <text x=\"{}\" y=\"40\" text-anchor=\"end\">instructions</text>\n",
        escape(command),
        WIDTH - 110.0,
        WIDTH - 8.0
    );
    for (row, Step { who, what, start_us, us, instructions }) in steps.iter().enumerate() {
        let top = TOP + row as f64 * ROW;
        let colour = match *who {
            "hermit-run" => "#2b8cd8",
            "QEMU" => "#e08a1e",
            "kernel" => "#2fa85c",
            _ => "#b05cd0",
        };
        let (from, to) = (x(*start_us), x(start_us + us));
        let counted = instructions.map_or("-".into(), |count| count.to_string());
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{who}: {}</text>\
             <rect x=\"{from:.1}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"{1}\" text-anchor=\"end\">{us:.0}</text>\
             <text x=\"{}\" y=\"{1}\" text-anchor=\"end\">{counted}</text>",
            LEFT - 10.0,
            top + 15.0,
            escape(what),
            top + 3.0,
            (to - from).max(1.0),
            ROW - 6.0,
            WIDTH - 110.0,
            WIDTH - 8.0
        );
    }
    let counted: u64 = steps.iter().filter_map(|step| step.instructions).sum();
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">all</text>\
         <text x=\"{}\" y=\"{1}\" text-anchor=\"end\">{end:.0}</text>\
         <text x=\"{}\" y=\"{1}\" text-anchor=\"end\">{counted}</text>\n</svg>",
        LEFT - 10.0,
        height - 16.0,
        WIDTH - 110.0,
        WIDTH - 8.0
    );
    svg
}

/// A text that is no markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(done: &str, ticks: u64, nanoseconds: u64) -> Moment {
        Moment { done: done.into(), ticks, nanoseconds }
    }

    #[test]
    fn steps_follow_each_other_without_gaps() {
        let begin = Instant::now();
        let at = |us: u64| begin + Duration::from_micros(us);
        let watch = Watch {
            begin,
            image: at(100),
            start: at(150),
            first: at(1000),
            exit: at(1200),
            end: at(1250),
        };
        let moments = [moment("a", 2000, 100_000), moment("b", 9000, 300_000)];
        let counted = [moment("a", 50, 50), moment("b", 70, 70)];
        let steps = steps(&watch, &moments, Some(&counted));
        let ends: Vec<_> = steps.iter().map(|step| (step.start_us + step.us).round()).collect();
        assert_eq!(ends, [100.0, 150.0, 700.0, 800.0, 1000.0, 1200.0, 1250.0]);
        for pair in steps.windows(2) {
            assert!((pair[0].start_us + pair[0].us - pair[1].start_us).abs() < 1e-6, "{pair:?}");
        }
        let counts: Vec<_> = steps.iter().map(|step| step.instructions).collect();
        assert_eq!(counts, [None, None, None, Some(50), Some(20), None, None]);
        let svg = svg(&steps, "hermit-run <x>");
        assert!(svg.contains("hermit-run &lt;x&gt;") && svg.contains(">70</text>"), "{svg}");
        assert!(svg.ends_with("</svg>\n") && svg.matches("<rect").count() == 7);
    }
}
