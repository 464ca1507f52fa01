//! Calls that were seen while a program ran, beside those that were found.

use std::{collections::BTreeSet, fmt::Write as _};

use crate::report::number;

/// The names of system calls in a log of `strace`, of `hermit-run --strace`, or of
/// `hermit-run --syscall-summary`.
#[must_use]
pub fn calls(log: &str) -> BTreeSet<String> {
    log.lines().filter_map(call).map(str::to_owned).collect()
}

fn call(line: &str) -> Option<&str> {
    // "1234 openat(AT_FDCWD, …", "[pid 1234] openat(…", "openat(…", "1234 <... read resumed>…"
    if let Some((_, rest)) = line.split_once("<... ") {
        return rest.split_once(" resumed").map(|(name, _)| name).filter(|name| is_call(name));
    }
    if let Some((head, _)) = line.split_once('(') {
        let name = head.rsplit([' ', ']', ':']).next()?;
        if is_call(name) {
            return Some(name);
        }
    }
    // A table's row: the name is the last word.
    line.split_whitespace().next_back().filter(|name| line.contains(' ') && is_call(name))
}

fn is_call(name: &str) -> bool {
    // Linux makes a call that a stop has interrupted go on under this name; programs do not (`man 2 restart_syscall`).
    name != "restart_syscall" && name.parse::<u32>().is_err() && number(name).is_some()
}

/// How a result compares with what was seen.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// Found and seen.
    pub both: BTreeSet<String>,
    /// Found, not seen.
    pub static_only: BTreeSet<String>,
    /// Seen, not found: a defect.
    pub dynamic_only: BTreeSet<String>,
}

impl Comparison {
    /// Compares.
    #[must_use]
    pub fn new(found: &BTreeSet<String>, seen: &BTreeSet<String>) -> Self {
        Self { both: found & seen, static_only: found - seen, dynamic_only: seen - found }
    }

    /// Seen calls that were found, of all seen.
    #[must_use]
    pub fn recall(&self) -> f64 {
        ratio(self.both.len(), self.both.len() + self.dynamic_only.len())
    }

    /// Found calls that were seen, of all found.
    #[must_use]
    pub fn precision(&self) -> f64 {
        ratio(self.both.len(), self.both.len() + self.static_only.len())
    }

    /// The harmonic mean of recall and precision.
    #[must_use]
    pub fn f1(&self) -> f64 {
        ratio(
            2 * self.both.len(),
            2 * self.both.len() + self.dynamic_only.len() + self.static_only.len(),
        )
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (title, names) in [
            ("both", &self.both),
            ("static only", &self.static_only),
            ("DYNAMIC ONLY (missed)", &self.dynamic_only),
        ] {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let _ = writeln!(out, "{title}, {}: {}", names.len(), names.join(" "));
        }
        let _ = writeln!(
            out,
            "recall {:.3}, precision {:.3}, F1 {:.3}",
            self.recall(),
            self.precision(),
            self.f1()
        );
        out
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_every_kind_are_read() {
        let log = "1234 openat(AT_FDCWD, \"x(\") = 3\n[pid 7] read(3, \"\", 1) = 0\n\
                   9 <... futex resumed>) = 0\nwrite(1, \"exit(\", 5) = 5\n\
                   --- SIGCHLD {si_signo=SIGCHLD} ---\n+++ exited with 0 +++\n\
                   100 1.5 ms mmap\nhello world\n";
        let names = calls(log);
        let expected = ["futex", "mmap", "openat", "read", "write"];
        assert_eq!(names, expected.map(str::to_owned).into());
    }

    #[test]
    fn a_missed_call_lowers_recall() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let comparison = Comparison::new(&set(&["read", "open"]), &set(&["read", "write"]));
        assert_eq!(comparison.dynamic_only, set(&["write"]));
        assert!((comparison.recall() - 0.5).abs() < 1e-9 && (comparison.f1() - 0.5).abs() < 1e-9);
    }
}
