//! Licences and origins of what Hermix is built from, against `deny.toml`.
//!
//! `cargo deny` reads the same file and checks more; this needs neither network nor another tool.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::repository;

/// Checks every package of `Cargo.lock` that is built on any platform.
///
/// # Errors
/// The packages whose licence or origin `deny.toml` does not allow.
pub(crate) fn check() -> Result<()> {
    let policy = Policy::read(&fs::read_to_string(repository().join("deny.toml"))?)?;
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .current_dir(repository())
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {}", complaint.trim());
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let problems: Vec<String> =
        packages.iter().filter_map(|package| problem(package, &policy)).collect();
    if !problems.is_empty() {
        bail!("packages that deny.toml does not allow:\n{}", problems.join("\n"));
    }
    println!("licences: {} packages are in order", packages.len());
    Ok(())
}

/// What `deny.toml` allows.
struct Policy {
    /// For all packages.
    allowed: BTreeSet<String>,
    /// Besides, for a package of this name.
    exceptions: BTreeMap<String, BTreeSet<String>>,
}

impl Policy {
    fn read(deny: &str) -> Result<Self> {
        let deny: toml::Table = deny.parse().context("deny.toml")?;
        let licenses = deny.get("licenses").context("deny.toml has no licenses")?;
        let names = |table: &toml::Value| -> Option<BTreeSet<String>> {
            let allow = table.get("allow")?.as_array()?;
            Some(allow.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
        };
        let allowed = names(licenses).context("deny.toml has no licenses.allow")?;
        let mut exceptions = BTreeMap::new();
        let all = licenses.get("exceptions").and_then(toml::Value::as_array);
        for exception in all.into_iter().flatten() {
            let name = exception.get("name").and_then(toml::Value::as_str);
            let (name, names) = name.zip(names(exception)).context("a malformed exception")?;
            exceptions.insert(name.to_owned(), names);
        }
        Ok(Self { allowed, exceptions })
    }
}

/// What is wrong with one package of `cargo metadata`.
fn problem(package: &Value, policy: &Policy) -> Option<String> {
    let exceptions = policy.exceptions.get(package["name"].as_str()?);
    let name = format!("{} {}", package["name"].as_str()?, package["version"].as_str()?);
    match package["source"].as_str() {
        None => {}
        Some(source) if source.starts_with("registry+") => {}
        Some(source) => return Some(format!("{name}: from {source}, not from a registry")),
    }
    let Some(licence) = package["license"].as_str() else {
        return Some(format!("{name}: names no licence"));
    };
    let expression = match spdx::Expression::parse_mode(licence, spdx::ParseMode::LAX) {
        Ok(expression) => expression,
        Err(error) => return Some(format!("{name}: licence {licence:?}: {}", error.reason)),
    };
    let accepted = expression.evaluate(|requirement| {
        let licence = requirement.to_string();
        policy.allowed.contains(&licence) || exceptions.is_some_and(|more| more.contains(&licence))
    });
    (!accepted).then(|| format!("{name}: licence {licence}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(package: Value) -> Option<String> {
        let deny = r#"
            [licenses]
            allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
            [[licenses.exceptions]]
            name = "odd"
            allow = ["CDDL-1.0"]
        "#;
        problem(&package, &Policy::read(deny).unwrap())
    }

    #[test]
    fn exceptions_are_for_one_package() {
        let package = |name| json!({"name": name, "version": "1.0.0", "license": "CDDL-1.0"});
        assert_eq!(judge(package("odd")), None);
        assert!(judge(package("a")).is_some());
    }

    #[test]
    fn licences_are_expressions() {
        let package = |licence| json!({"name": "a", "version": "1.0.0", "license": licence});
        for fine in
            ["MIT", "MIT OR GPL-3.0", "Apache-2.0/MIT", "MIT AND Apache-2.0 WITH LLVM-exception"]
        {
            assert_eq!(judge(package(fine)), None);
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "not a licence"] {
            assert!(judge(package(bad)).is_some(), "{bad}");
        }
        assert!(judge(json!({"name": "a", "version": "1.0.0", "license": null})).is_some());
    }

    #[test]
    fn sources_are_registries() {
        let package =
            |source| json!({"name": "a", "version": "1.0.0", "license": "MIT", "source": source});
        assert_eq!(judge(package("registry+https://example.org/index")), None);
        assert!(judge(package("git+https://example.org/a")).is_some());
    }
}
