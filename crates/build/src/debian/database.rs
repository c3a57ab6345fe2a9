//! What dpkg knows about the packages that were unpacked for it: `/var/lib/dpkg` (dpkg(1), "FILES";
//! deb-triggers(5)). Afterwards dpkg finds them as if it had just unpacked them itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use super::control::fields;
use super::deb::Control;
use super::tree::{Tree, Unpacked};

const DIR: &str = "var/lib/dpkg";

/// A package that is unpacked, with what its archive says.
pub struct Installed<'a> {
    pub name: &'a str,
    pub architecture: &'a str,
    pub control: &'a Control,
    pub unpacked: &'a Unpacked,
}

impl Installed<'_> {
    /// How the files in `info/` begin: packages that may be there for several architectures at once
    /// have theirs in the name.
    fn stem(&self) -> String {
        let same = self
            .control
            .text("control")
            .is_some_and(|c| super::control::field(&c, "Multi-Arch").is_some_and(|v| v == "same"));
        if same { format!("{}:{}", self.name, self.architecture) } else { self.name.to_owned() }
    }

    /// The script of that name with its path in the tree.
    pub fn script(&self, name: &str) -> Option<String> {
        self.control.files.contains_key(name).then(|| format!("/{DIR}/info/{}.{name}", self.stem()))
    }
}

/// Writes the database for `packages`, sorted by name.
pub fn write(tree: &Tree, packages: &[Installed<'_>]) -> io::Result<()> {
    for dir in ["info", "triggers", "updates", "alternatives", "parts"] {
        tree.directory(format!("{DIR}/{dir}").as_bytes())?;
    }
    tree.write(&format!("{DIR}/info/format"), 0o644, b"1\n")?;
    let mut status = String::new();
    let mut triggers = Triggers::default();
    for package in packages {
        write_info(tree, package)?;
        write_stanza(&mut status, package);
        if let Some(text) = package.control.text("triggers") {
            triggers.add(package, &text);
        }
    }
    tree.write(&format!("{DIR}/status"), 0o644, status.as_bytes())?;
    for empty in ["available", "diversions", "lock", "lock-frontend", "triggers/Unincorp", "triggers/Lock"] {
        let mode = if empty.contains("ock") && !empty.contains('/') { 0o640 } else { 0o644 };
        let mode = if empty == "triggers/Lock" { 0o600 } else { mode };
        tree.write(&format!("{DIR}/{empty}"), mode, b"")?;
    }
    triggers.write(tree)
}

fn write_info(tree: &Tree, package: &Installed<'_>) -> io::Result<()> {
    let stem = package.stem();
    let mut list = String::new();
    for path in &package.unpacked.paths {
        list.push_str(path);
        list.push('\n');
    }
    tree.write(&format!("{DIR}/info/{stem}.list"), 0o644, list.as_bytes())?;
    for (name, (mode, content)) in &package.control.files {
        if name != "control" {
            let mode = if mode & 0o111 != 0 { 0o755 } else { 0o644 };
            tree.write(&format!("{DIR}/info/{stem}.{name}"), mode, content)?;
        }
    }
    if !package.control.files.contains_key("md5sums") {
        let mut sums = String::new();
        for (path, sum) in &package.unpacked.sums {
            let _ = writeln!(sums, "{sum}  {path}");
        }
        tree.write(&format!("{DIR}/info/{stem}.md5sums"), 0o644, sums.as_bytes())?;
    }
    Ok(())
}

/// The paragraph of the control file, with the state `unpacked` and the hashes of configuration files.
fn write_stanza(status: &mut String, package: &Installed<'_>) {
    let control = package.control.text("control").unwrap_or_default();
    for (name, value) in fields(&control) {
        if matches!(name, "Status" | "Conffiles" | "Config-Version") {
            continue;
        }
        let _ = writeln!(status, "{name}: {value}");
        if name == "Package" {
            status.push_str("Status: install ok unpacked\n");
        }
    }
    let conffiles = package.control.text("conffiles").unwrap_or_default();
    let mut heading = "Conffiles:\n";
    for line in conffiles.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let path = line.strip_prefix("remove-on-upgrade ").unwrap_or(line);
        let flag = if path == line { "" } else { " remove-on-upgrade" };
        let hash = package.unpacked.conffiles.get(path).map_or("newconffile", String::as_str);
        let _ = writeln!(status, "{} {path} {hash}{flag}", std::mem::take(&mut heading));
    }
    status.push('\n');
}

/// The paths of a package's configuration files.
pub fn conffiles(control: &Control) -> impl Iterator<Item = String> {
    let text = control.text("conffiles").unwrap_or_default().into_owned();
    let paths: Vec<String> =
        text.lines().map(str::trim).filter(|l| l.starts_with('/')).map(str::to_owned).collect();
    paths.into_iter()
}

/// Who is interested in which trigger: by path in one file, by name in a file each.
#[derive(Default)]
struct Triggers {
    paths: Vec<String>,
    names: BTreeMap<String, Vec<String>>,
}

impl Triggers {
    fn add(&mut self, package: &Installed<'_>, text: &str) {
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let (Some(directive), Some(trigger)) = (words.next(), words.next()) else { continue };
            let suffix = match directive {
                "interest" | "interest-await" => "",
                "interest-noawait" => "/noawait",
                _ => continue,
            };
            // The name as dpkg tells instances apart, which has the architecture like the files in `info/`.
            let interested = format!("{}{suffix}", package.stem());
            if trigger.starts_with('/') {
                self.paths.push(format!("{trigger} {interested}"));
            } else if trigger.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
                self.names.entry(trigger.to_owned()).or_default().push(interested);
            }
        }
    }

    fn write(&self, tree: &Tree) -> io::Result<()> {
        if !self.paths.is_empty() {
            let mut lines = self.paths.clone();
            lines.sort();
            tree.write(&format!("{DIR}/triggers/File"), 0o644, (lines.join("\n") + "\n").as_bytes())?;
        }
        for (name, interested) in &self.names {
            tree.write(&format!("{DIR}/triggers/{name}"), 0o644, (interested.join("\n") + "\n").as_bytes())?;
        }
        Ok(())
    }
}
