//! One page that needs nothing else.

use std::{collections::BTreeSet, fmt::Write};

use anyhow::Result;

use super::{Report, SuiteReport, cell, charts, digits};

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } td { font-variant-numeric: tabular-nums; }
small { opacity: .7; } code { background: var(--soft); padding: .1rem .3rem; }
.note { background: var(--soft); padding: .6rem 1rem; border-left: 4px solid #e08a1e; }
.key span { display: inline-block; margin-right: 1.5rem; }
.key i { display: inline-block; width: .9rem; height: .9rem; margin-right: .4rem; vertical-align: -.1rem; }
svg { max-width: 100%; height: auto; } .worse { color: #d04f4f; } .better { color: #2fa85c; }
";

/// The page.
///
/// # Errors
/// Where a chart cannot be drawn.
pub(super) fn page(report: &Report) -> Result<String> {
    let mut page = String::new();
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <link rel=\"icon\" href=\"data:,\">\
         <title>Hermix: benchmarks</title><style>{STYLE}</style></head><body>\n\
         <h1>Hermix beside other ways to run a program</h1><p>{}, {} s</p>\n\
         <p class=\"note\">{}</p>\n",
        escape(&report.date),
        report.took_s,
        escape(&report.emulation())
    );
    preamble(report, &mut page);
    for suite in report.suites.iter().filter(|suite| !suite.measurements.is_empty()) {
        section(report, suite, &mut page)?;
    }
    if let Some(boot) = &report.boot {
        page += "<h2 id=\"start\">start</h2><p>A static hello under Hermix: where the time goes, and the guest's \
                 instructions until the program's first.</p>\n";
        page += &boot.svg;
    }
    if !report.problems.is_empty() {
        page += "<h2>Not done, or failed</h2><ul>\n";
        for problem in &report.problems {
            let _ = writeln!(page, "<li>{}</li>", escape(problem));
        }
        page += "</ul>\n";
    }
    let host = &report.host;
    let _ =
        write!(page, "<h2>How to repeat</h2><p><code>{}</code></p><ul>", escape(&report.command));
    for (what, is) in [
        ("processor", format!("{}, {} of them", host.processor, host.processors)),
        ("memory", host.memory.clone()),
        ("kernel", host.kernel.clone()),
        ("QEMU", host.qemu.clone()),
        ("compiler", host.compiler.clone()),
        ("Hermix", host.commit.clone()),
        ("load average at the end", host.load.clone()),
    ] {
        let _ = writeln!(page, "<li>{what}: {}</li>", escape(&is));
    }
    page += "</ul></body></html>\n";
    Ok(page)
}

/// Peers, and where Hermix is worst and best.
fn preamble(report: &Report, page: &mut String) {
    *page += "<table><tr><th>peer</th><th style=\"text-align:left\">what it is</th></tr>\n";
    for peer in &report.peers {
        let what = match &peer.not_run {
            Some(why) => format!("not run: {why}"),
            None => peer.description.clone(),
        };
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td style=\"text-align:left\">{}</td></tr>",
            escape(&peer.name),
            escape(&what)
        );
    }
    *page += "</table>\n";
    let ratios = report.by_ratio();
    if ratios.is_empty() {
        return;
    }
    let list = |of: Vec<&(f64, &super::Measurement)>| {
        let items =
            of.iter().map(|(ratio, one)| format!("{} ({})", escape(&one.name), digits(*ratio)));
        items.collect::<Vec<_>>().join(", ")
    };
    let better = ratios.iter().filter(|(ratio, _)| *ratio > 1.0).count();
    let _ = writeln!(
        page,
        "<p>Beside linux-vm, Hermix is better in {better} of {} measurements. Least good: {}. Best: {}.</p>",
        ratios.len(),
        list(ratios.iter().take(3).collect()),
        list(ratios.iter().rev().take(3).collect())
    );
}

fn section(report: &Report, suite: &SuiteReport, page: &mut String) -> Result<()> {
    let peers = report.running();
    let _ = writeln!(
        page,
        "<h2 id=\"{0}\">{0}</h2><p>{1}</p>",
        escape(&suite.name),
        escape(&suite.about)
    );
    *page += "<p class=\"key\">";
    for (at, peer) in peers.iter().enumerate() {
        let plotters::style::RGBColor(r, g, b) = charts::colour(&peers, at);
        let _ = write!(
            page,
            "<span><i style=\"background:rgb({r},{g},{b})\"></i>{}</span>",
            escape(peer)
        );
    }
    *page += "</p>\n";
    let curve = charts::curve(suite, &peers)?;
    if curve.is_empty() || suite.name != "curve" {
        let units: BTreeSet<&str> =
            suite.measurements.iter().map(|one| one.unit.as_str()).collect();
        for unit in units {
            *page += &charts::bars(suite, unit, &peers)?;
        }
    } else {
        *page += &curve;
    }
    *page += "<table><tr><th></th><th>unit</th>";
    for peer in &peers {
        let _ = write!(page, "<th>{}</th>", escape(peer));
    }
    for peer in &peers[..peers.len() - 1] {
        let _ = write!(page, "<th>better than {}</th>", escape(peer));
    }
    *page += "</tr>\n";
    for one in &suite.measurements {
        let _ = write!(page, "<tr><td>{}</td><td>{}</td>", escape(&one.name), escape(&one.unit));
        for peer in &peers {
            let _ = write!(page, "<td>{}</td>", spread(&cell(one.summary(peer).as_ref())));
        }
        for peer in &peers[..peers.len() - 1] {
            let ratio = one.ratio(peer);
            let class = match &ratio {
                Some(ratio) if ratio.median < 1.0 => "worse",
                Some(_) => "better",
                None => "",
            };
            let _ = write!(page, "<td class=\"{class}\">{}</td>", spread(&cell(ratio.as_ref())));
        }
        *page += "</tr>\n";
    }
    *page += "</table>\n<p><small>Medians, with least and most; more than 1 in the last columns: Hermix is \
              better, by the median of the ratios run by run.</small></p>\n";
    Ok(())
}

/// The range in small letters.
fn spread(cell: &str) -> String {
    match cell.split_once(" (") {
        Some((median, range)) => format!("{median} <small>({range}</small>"),
        None => cell.to_owned(),
    }
}

/// A text that is no markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{super::tests::example, *};

    #[test]
    fn the_page_is_complete_and_loads_nothing() {
        let page = page(&example()).unwrap();
        assert!(page.ends_with("</html>\n") && page.contains("emulated by QEMU"));
        assert!(
            page.contains("hx-bench --quick &lt;calls&gt;") && page.contains("<svg>boot</svg>")
        );
        assert!(page.contains("4.00 <small>(2.00 to 6.00)</small>"), "{page}");
        assert!(
            !page.contains("http://")
                || page.matches("http://").count()
                    == page.matches("http://www.w3.org/2000/svg").count()
        );
        assert!(!page.contains("https://") && !page.contains("<script"));
    }
}
