//! The workspace's layout, checked: which crate may use which (ARCHITECTURE.md), that nobody opens
//! what must stay closed, and that no file has grown out of hand.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::shell::{cargo, read, root};

/// Lines after which a file of code is too long for one room.
const MAX_LINES: usize = 1_200;

/// The table of ARCHITECTURE.md: a crate, and the crates of the workspace that it may use.
const MAY_USE: [(&str, &[&str]); 15] = [
    ("model", &[]),
    ("policies", &["model"]),
    ("protocol", &["model"]),
    ("proto", &["model", "protocol"]),
    ("certs", &["model"]),
    ("ovf", &["model"]),
    ("hypervisor", &["model"]),
    ("transfer-proxy", &["model", "certs"]),
    ("kpi-fs", &[]),
    ("monitoring", &["model"]),
    (
        "node",
        &[
            "model",
            "policies",
            "protocol",
            "proto",
            "certs",
            "ovf",
            "hypervisor",
            "transfer-proxy",
            "monitoring",
        ],
    ),
    ("cli", &["model", "policies", "proto", "certs", "node", "transfer-proxy", "monitoring"]),
    (
        "federation-tests",
        &[
            "model",
            "policies",
            "protocol",
            "proto",
            "certs",
            "ovf",
            "hypervisor",
            "transfer-proxy",
            "kpi-fs",
            "monitoring",
            "node",
            "testbed",
        ],
    ),
    ("testbed", &[]),
    ("xtask", &[]),
];

/// Crates that must never be in the build, and why.
const NEVER: [(&str, &str); 4] = [
    ("ring", "aws-lc-rs is the one cryptographic provider; two make rustls panic at start"),
    ("openssl", "rustls is the one TLS"),
    ("native-tls", "rustls is the one TLS"),
    ("rustls-pemfile", "unmaintained; rustls-pki-types reads PEM"),
];

/// Crates whose rules must not see a clock, a socket or a random source.
const PURE: [&str; 3] = ["model", "policies", "protocol"];
/// What they must not use.
const IMPURE: [&str; 5] = ["tokio", "rand", "quinn", "rusqlite", "tonic"];

/// `cargo xtask tidy`.
pub(crate) fn run() -> Result<()> {
    let mut faults = Vec::new();
    let metadata = read(cargo().args(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let empty = vec![];
    let packages = metadata["packages"].as_array().unwrap_or(&empty);
    let names: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let table: BTreeMap<&str, &[&str]> = MAY_USE.into_iter().collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = table.get(name) else {
            faults.push(format!("crate {name} has no row in the table of xtask/src/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap_or(&empty) {
            let used = dependency["name"].as_str().unwrap_or_default();
            let is_test = dependency["kind"].as_str() == Some("dev");
            if names.contains(&used) && !allowed.contains(&used) && !is_test {
                faults.push(format!("{name} must not use {used}"));
            }
            if PURE.contains(&name) && IMPURE.contains(&used) && !is_test {
                faults.push(format!("{name} is pure and must not use {used}"));
            }
        }
    }
    for name in table.keys().filter(|name| !names.contains(name)) {
        faults.push(format!("the table has a row for {name}, which is no crate"));
    }
    for (never, why) in NEVER {
        let tree = ["tree", "--workspace", "--edges", "normal,build", "--invert", never];
        if let Ok(found) = read(cargo().args(tree))
            && found.starts_with(never)
        {
            faults.push(format!("{never} is in the build: {why}"));
        }
    }
    files(&mut faults)?;
    if faults.is_empty() {
        return Ok(());
    }
    bail!("not tidy:\n  {}", faults.join("\n  "))
}

fn files(faults: &mut Vec<String>) -> Result<()> {
    let listed = read(Command::new("git").args(["ls-files", "*.rs"]).current_dir(root()))?;
    for file in listed.lines().filter(|file| !file.contains("/gen/")) {
        let Ok(text) = std::fs::read_to_string(root().join(file)) else { continue };
        let lines = text.lines().count();
        if lines > MAX_LINES {
            faults.push(format!("{file} has {lines} lines; a room has {MAX_LINES} at most"));
        }
        if file.ends_with("/mod.rs") {
            faults.push(format!("{file}: modules are name.rs beside name/"));
        }
    }
    Ok(())
}
