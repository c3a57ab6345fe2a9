//! `isles doctor`: what this machine lets us do, each finding with its cure.
//!
//! Nothing is concluded from version numbers that can be tried. What has to be tried in namespaces of its own is
//! tried by a copy of this program ([`probe`]), so that the doctor itself stays where it is; it needs no engine.

mod cgroups;
mod host;
mod ids;
mod network;
mod probe;
mod storage;

use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::Format;

/// Check what this machine allows, and say how to get what is missing.
///
/// The exit code is 1 only where something keeps containers from running.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles doctor
  isles doctor --registry ghcr.io --network")]
pub struct Args {
    /// Also see whether this registry answers.
    #[arg(long, value_name = "HOST[:PORT]")]
    registry: Option<String>,
    /// Also see whether the Debian mirror answers.
    #[arg(long)]
    network: bool,
    /// How to print: table, json, or a template such as '{{.Check}}: {{.Status}}'.
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Try one thing, in namespaces of its own.
    #[arg(long, hide = true, value_enum)]
    probe: Option<probe::Probe>,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Something works less well than it could.
    Note,
    /// Something keeps containers from running.
    Problem,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Finding {
    check: &'static str,
    status: Status,
    finding: String,
    cure: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, finding: impl Into<String>) -> Finding {
        Finding { check, status: Status::Ok, finding: finding.into(), cure: None }
    }

    fn note(check: &'static str, finding: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding { check, status: Status::Note, finding: finding.into(), cure: Some(cure.into()) }
    }

    fn problem(check: &'static str, finding: impl Into<String>, cure: impl Into<String>) -> Finding {
        Finding { check, status: Status::Problem, finding: finding.into(), cure: Some(cure.into()) }
    }
}

pub fn cmd_doctor(cx: &Context, args: &Args) -> Result<Code, Failure> {
    if let Some(probe) = args.probe {
        return probe::run(cx, probe);
    }
    let mut findings = host::findings();
    findings.extend(ids::findings());
    findings.extend(cgroups::findings());
    findings.extend(storage::findings(&cx.state_dir()?));
    findings.extend(network::findings(args.registry.as_deref(), args.network));
    match &args.format {
        Format::Table => cx.ui.bytes(text(&findings).as_bytes())?,
        other => cx.ui.bytes(other.rows(&findings)?.as_bytes())?,
    }
    let problems = findings.iter().filter(|f| f.status == Status::Problem).count();
    Ok(if problems == 0 { Code::SUCCESS } else { Code(1) })
}

/// A line for each finding, with its cure below it.
fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let status = match finding.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Problem => "problem",
        };
        text += &format!("{status:<8} {:<width$}  {}\n", finding.check, finding.finding);
        if let Some(cure) = &finding.cure {
            text += &format!("{:<8} {:<width$}  -> {cure}\n", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cure_stands_below_its_finding() {
        let findings = [Finding::ok("clock", "fine"), Finding::problem("disk", "full", "free some")];
        assert_eq!(
            text(&findings),
            "ok       clock  fine\nproblem  disk   full\n                -> free some\n"
        );
    }
}
