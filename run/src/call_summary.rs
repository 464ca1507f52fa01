//! `--syscall-summary`: the calls that a program has made, as a table like that of `strace -c`.

use std::{collections::BTreeSet, fmt::Write as _};

use hx_abi::link::CallCount;
use hx_analyze::report::name;

/// The table; `reachable` are the calls that the analysis has found, where it has an answer.
/// `hx-analyze --trace` reads it.
pub(crate) fn table(counts: &[CallCount], reachable: Option<&BTreeSet<String>>) -> String {
    let total: u64 = counts.iter().map(|count| count.nanoseconds).sum();
    let mut sorted = counts.to_vec();
    sorted.sort_by_key(|count| (u64::MAX - count.nanoseconds, count.number));
    let mut out = String::from("% time     seconds  usecs/call     calls    errors syscall\n");
    let rule = "------ ----------- ----------- --------- --------- ----------------\n";
    out += rule;
    for CallCount { number, calls, errors, nanoseconds } in &sorted {
        let share = *nanoseconds as f64 * 100.0 / total.max(1) as f64;
        let seconds = *nanoseconds as f64 / 1e9;
        let each = nanoseconds / 1000 / calls.max(&1);
        let errors = if *errors == 0 { String::new() } else { errors.to_string() };
        let name = name(*number);
        let _ = writeln!(out, "{share:6.2} {seconds:11.6} {each:11} {calls:9} {errors:>9} {name}");
    }
    let calls: u64 = counts.iter().map(|count| count.calls).sum();
    let errors: u64 = counts.iter().map(|count| count.errors).sum();
    out += rule;
    let seconds = total as f64 / 1e9;
    let _ = writeln!(out, "100.00 {seconds:11.6} {:>11} {calls:9} {errors:>9} total", "");
    match reachable {
        Some(reachable) => {
            let made: BTreeSet<String> = counts.iter().map(|count| name(count.number)).collect();
            let rest: Vec<&str> = reachable.difference(&made).map(String::as_str).collect();
            let _ = writeln!(
                out,
                "hermit-run: {} calls can be reached; not made: {}.",
                reachable.len(),
                rest.join(", ")
            );
        }
        None => out += "hermit-run: any call may be reached.\n",
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_what_was_made_and_what_might_have_been() {
        let count =
            |number, calls, errors, nanoseconds| CallCount { number, calls, errors, nanoseconds };
        let counts = [count(0, 3, 1, 1_000_000), count(1, 10, 0, 3_000_000)];
        let reachable = ["read", "write", "openat"].map(str::to_owned).into();
        let text = table(&counts, Some(&reachable));
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[2], ["75.00", "0.003000", "300", "10", "write"]);
        assert_eq!(lines[3], ["25.00", "0.001000", "333", "3", "1", "read"]);
        assert_eq!(lines[5], ["100.00", "0.004000", "13", "1", "total"]);
        assert!(text.contains("3 calls can be reached; not made: openat.\n"), "{text}");
        let seen = hx_analyze::trace::calls(&text);
        assert_eq!(seen, ["read", "write"].map(str::to_owned).into());
        assert!(table(&counts, None).ends_with("any call may be reached.\n"));
    }
}
