//! Tests that are known to fail: `tests/expected-failures.txt`, one test name a line, with a reason
//! after `#`. The aim is an empty file. A listed test that passes is an error, and so is a name
//! that no test has; so the list cannot outlive its reasons.

use std::collections::BTreeMap;

use libtest_mimic::{Failed, Trial};

/// Names and reasons.
#[derive(Clone, Debug, Default)]
pub struct ExpectedFailures(BTreeMap<String, String>);

impl ExpectedFailures {
    /// Reads the list.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        Self(
            lines
                .map(|line| {
                    let (name, reason) = line.split_once('#').unwrap_or((line, ""));
                    (name.trim().to_owned(), reason.trim().to_owned())
                })
                .collect(),
        )
    }

    /// Whether `name` is listed.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Listed names that are not among `names`.
    #[must_use]
    pub fn unknown<'a>(&'a self, names: &[String]) -> Vec<&'a str> {
        self.0.keys().map(String::as_str).filter(|name| !names.iter().any(|n| n == name)).collect()
    }

    /// A test that runs `body`; where it is listed, it must fail.
    pub fn trial(
        &self,
        name: String,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> Trial {
        let expected = self.contains(&name);
        Trial::test(name, move || verdict(body(), expected).map_err(Failed::from))
            .with_kind(if expected { "fails" } else { "" })
    }
}

fn verdict(outcome: Result<(), String>, expected_to_fail: bool) -> Result<(), String> {
    match (outcome, expected_to_fail) {
        (Ok(()), true) => {
            Err("passes: take it off the list in tests/expected-failures.txt".to_owned())
        }
        (Err(_), true) => Ok(()),
        (outcome, false) => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_test_must_fail_and_another_must_not() {
        assert_eq!(verdict(Ok(()), false), Ok(()));
        assert_eq!(verdict(Err("x".to_owned()), false), Err("x".to_owned()));
        assert_eq!(verdict(Err("x".to_owned()), true), Ok(()));
        assert!(verdict(Ok(()), true).is_err());
    }

    #[test]
    fn the_list_has_comments_and_reasons() {
        let list = ExpectedFailures::parse("# about\n\na::b::gcc # why\nc\n");
        assert!(list.contains("a::b::gcc") && list.contains("c") && !list.contains("why"));
        assert_eq!(list.unknown(&["c".to_owned()]), ["a::b::gcc"]);
    }
}
