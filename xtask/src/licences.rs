//! Licences and origins of what Hermix is built from, against `deny.toml`.
//!
//! `cargo deny` reads the same file and checks more; this needs neither network nor another tool.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::repository;

/// Checks every package of `Cargo.lock` that is built on any platform.
///
/// # Errors
/// The packages whose licence or origin `deny.toml` does not allow.
pub(crate) fn check() -> Result<()> {
    let allowed = allowed_licences(&fs::read_to_string(repository().join("deny.toml"))?)?;
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .current_dir(repository())
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo metadata: {}", complaint.trim());
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let problems: Vec<String> =
        packages.iter().filter_map(|package| problem(package, &allowed)).collect();
    if !problems.is_empty() {
        bail!("packages that deny.toml does not allow:\n{}", problems.join("\n"));
    }
    println!("licences: {} packages are in order", packages.len());
    Ok(())
}

fn allowed_licences(deny: &str) -> Result<BTreeSet<String>> {
    let deny: toml::Table = deny.parse().context("deny.toml")?;
    let allow = deny.get("licenses").and_then(|table| table.get("allow")?.as_array());
    let allow = allow.context("deny.toml has no licenses.allow")?;
    Ok(allow.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
}

/// What is wrong with one package of `cargo metadata`.
fn problem(package: &Value, allowed: &BTreeSet<String>) -> Option<String> {
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
    let accepted = expression.evaluate(|requirement| allowed.contains(&requirement.to_string()));
    (!accepted).then(|| format!("{name}: licence {licence}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judge(package: Value) -> Option<String> {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
        problem(&package, &allowed.into_iter().map(str::to_owned).collect())
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
