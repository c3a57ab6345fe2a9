//! `/.singularity.d`: what Apptainer and its kin look for in an image, as a list of files.
//!
//! [`skeleton`] is the same in every image. [`singularity_tree`] is all that an OCI image needs to be one of theirs:
//! its ENTRYPOINT and CMD as a runscript, its ENV as a script, its labels as the file that `inspect` reads. A
//! definition file adds its own sections to that ([`super::execute`]).
//!
//! The image starts by `/.singularity.d/actions/run`, which reads the environment and runs the runscript.

use std::path::{Path, PathBuf};

use isles_spec::image::{ContainerConfig, ImageConfig};

use super::labels::{self, Labels, Origin};
use super::scripts;
use crate::error::Result;
use crate::snapshot::{Build, Scratch, Snapshot, Step, commit};
use crate::upper::{Access, Upper};

pub const ROOT: &str = "/.singularity.d";
/// What the image's ENTRYPOINT is.
pub const RUN: &str = "/.singularity.d/actions/run";
/// A `%post` may add lines here, which are read when the image runs.
pub const POST_ENVIRONMENT: &str = "/.singularity.d/env/91-environment.sh";
/// A `%post` may add `name value` lines here.
pub const POST_LABELS: &str = "/.build.labels";

/// Something that belongs into an image, with its absolute path. All of it is root's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A folder, where there is none yet.
    Folder { path: String, mode: u32 },
    /// A file, in the place of another where there is one.
    File { path: String, mode: u32, text: String },
    /// A symbolic link, where nothing is yet.
    Link { path: String, target: &'static str },
}

impl Entry {
    pub fn folder(path: impl Into<String>) -> Entry {
        Entry::Folder { path: path.into(), mode: 0o755 }
    }

    pub fn script(path: impl Into<String>, text: impl Into<String>) -> Entry {
        Entry::File { path: path.into(), mode: 0o755, text: text.into() }
    }

    pub fn text(path: impl Into<String>, text: impl Into<String>) -> Entry {
        Entry::File { path: path.into(), mode: 0o644, text: text.into() }
    }

    pub fn path(&self) -> &str {
        match self {
            Entry::Folder { path, .. } | Entry::File { path, .. } | Entry::Link { path, .. } => path,
        }
    }
}

/// A path below [`ROOT`].
pub fn below(name: &str) -> String {
    format!("{ROOT}/{name}")
}

/// Whether an image is one that starts by its `/.singularity.d`.
pub fn starts_by_its_runscript(config: &ContainerConfig) -> bool {
    config.entrypoint.as_ref().and_then(|words| words.first()).is_some_and(|word| word == RUN)
}

/// What every image has, whatever else it is. Folders at the top are those that runtimes mount something on. Of all
/// this only what an image does not have is written.
pub fn skeleton() -> Vec<Entry> {
    let mut out: Vec<Entry> = ["/dev", "/proc", "/sys", "/etc", "/home", "/root", "/var"]
        .iter()
        .map(|path| Entry::folder(*path))
        .collect();
    out.extend(["/tmp", "/var/tmp"].map(|path| Entry::Folder { path: path.to_owned(), mode: 0o1777 }));
    // Runtimes mount the host's over these.
    out.extend(["/etc/hosts", "/etc/resolv.conf"].map(|path| Entry::text(path, "")));
    out.push(Entry::folder(below("libs")));
    out.extend(
        scripts::ACTIONS
            .iter()
            .map(|name| Entry::script(below(&format!("actions/{name}")), scripts::action(name))),
    );
    for (name, text) in [
        ("01-base", "#!/bin/sh\n"),
        ("90-environment", "#!/bin/sh\n"),
        ("94-appsbase", ""),
        ("95-apps", scripts::CHOSEN_APP),
        ("99-base", scripts::LIBRARIES),
        ("99-runtimevars", scripts::CALLERS_PATH),
    ] {
        out.push(Entry::script(below(&format!("env/{name}.sh")), text));
    }
    out.push(Entry::script(below("startscript"), "#!/bin/sh\n"));
    for (path, target) in [
        ("/.exec", ".singularity.d/actions/exec"),
        ("/.run", ".singularity.d/actions/run"),
        ("/.shell", ".singularity.d/actions/shell"),
        ("/.test", ".singularity.d/actions/test"),
        ("/environment", ".singularity.d/env/90-environment.sh"),
        ("/singularity", ".singularity.d/runscript"),
    ] {
        out.push(Entry::Link { path: path.to_owned(), target });
    }
    out
}

/// What the configuration of an OCI image comes to: its ENV, and its ENTRYPOINT and CMD as a runscript. Nothing for
/// an image that starts by its runscript already.
pub fn of_config(config: &ContainerConfig) -> Vec<Entry> {
    if starts_by_its_runscript(config) {
        return Vec::new();
    }
    vec![
        Entry::script(below("env/10-docker2singularity.sh"), scripts::image_environment(&config.env)),
        Entry::script(below("runscript"), scripts::of_command(config)),
    ]
}

/// The labels of an OCI image as a file.
pub fn labels_of(image: &ImageConfig, origin: &Origin) -> Labels {
    let mut out = image.config.labels.clone();
    out.extend(labels::of_build(origin, &image.platform(), false));
    out
}

/// Everything that is written over the root file system of an OCI image to make it one that Apptainer, and whoever
/// reads SIF files, understands: what `apptainer build x.sif docker://IMAGE` adds. Arguments of a run take the place
/// of CMD, and are never read by a shell.
///
/// `has` tells whether the image has something at an absolute path, a link itself counts: what such an image brings
/// already stays as it is. The same image and origin give the same files.
pub fn singularity_tree(image: &ImageConfig, origin: &Origin, has: &dyn Fn(&str) -> bool) -> Vec<Entry> {
    let own = starts_by_its_runscript(&image.config);
    let mut out = skeleton();
    out.retain(|entry| !has(entry.path()));
    out.extend(of_config(&image.config));
    let definition: String = origin.header.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    let definition = Entry::text(below("Singularity"), definition + "\n");
    let labels = Entry::text(below("labels.json"), labels::file(&labels_of(image, origin)));
    out.extend([definition, labels].into_iter().filter(|entry| !(own && has(entry.path()))));
    out
}

/// Adds a layer with these entries, and without what `gone` names in the layers below.
pub fn write(
    build: &Build<'_>,
    snapshot: &mut Snapshot,
    title: &str,
    entries: &[Entry],
    gone: &[&str],
) -> Result<()> {
    let mut key = snapshot.key("files of the recipe", build).with_list("gone", gone);
    for entry in entries {
        match entry {
            Entry::Folder { path, mode } => {
                key.add("folder", path);
                key.add("mode", mode.to_le_bytes());
            }
            Entry::File { path, mode, text } => {
                key.add("file", path);
                key.add("mode", mode.to_le_bytes());
                key.add("text", text);
            }
            Entry::Link { path, target } => {
                key.add("link", path);
                key.add("target", target);
            }
        }
    }
    let step = Step { title, key: key.finish(), shortcut: None, created_by: title.to_owned() };
    build.add(snapshot, step, |snapshot, _| {
        let scratch = Scratch::new(build.store)?;
        let folder = scratch.folder("upper")?;
        let view = snapshot.view(build.store)?;
        let mut upper = Upper::new(&folder, &view, build.store.ownership())?;
        let root = |mode| Access { mode, uid: 0, gid: 0 };
        let now = (build.seconds(), 0);
        for path in gone {
            upper.hide(Path::new(path.trim_start_matches('/')))?;
        }
        for entry in entries {
            match entry {
                Entry::Folder { path, mode } => {
                    let path = upper.resolve(Path::new(path))?;
                    if upper.kind(&path)?.is_none() {
                        upper.ensure_parents(&path, root(0o755))?;
                        upper.directory(&path, root(*mode))?;
                    }
                }
                Entry::File { path, mode, text } => {
                    let path = upper.resolve(Path::new(path))?;
                    upper.ensure_parents(&path, root(0o755))?;
                    upper.bytes(&path, root(*mode), now, text.as_bytes())?;
                }
                Entry::Link { path, target } => {
                    let path = PathBuf::from(path.trim_start_matches('/'));
                    if upper.kind(&path)?.is_none() {
                        upper.symlink(&path, root(0o777), target.as_ref(), now)?;
                    }
                }
            }
        }
        commit(build, upper)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use isles_spec::Platform;

    #[test]
    fn an_oci_image_gets_all_that_is_looked_for() {
        let mut image = ImageConfig::empty(&Platform::new("linux", "amd64", None));
        image.config.env = vec!["PATH=/bin".into(), "A=b".into()];
        image.config.cmd = Some(vec!["sh".into()]);
        image.config.labels.insert("own".into(), "label".into());
        let origin = Origin::of_image("docker", "debian:12", 0);
        let tree = singularity_tree(&image, &origin, &|path| path == "/tmp" || path == "/.exec");
        let paths: Vec<&str> = tree.iter().map(Entry::path).collect();
        for path in [
            "Singularity",
            "actions/exec",
            "actions/run",
            "actions/shell",
            "actions/start",
            "actions/test",
            "env/01-base.sh",
            "env/10-docker2singularity.sh",
            "env/90-environment.sh",
            "env/94-appsbase.sh",
            "env/95-apps.sh",
            "env/99-base.sh",
            "env/99-runtimevars.sh",
            "labels.json",
            "libs",
            "runscript",
            "startscript",
        ] {
            assert!(paths.contains(&below(path).as_str()), "{path}");
        }
        for path in ["/.run", "/.shell", "/.test", "/environment", "/singularity", "/dev", "/var/tmp"] {
            assert!(paths.contains(&path), "{path}");
        }
        assert!(!paths.contains(&"/tmp") && !paths.contains(&"/.exec"), "what is there stays");
        let text = |name: &str| {
            tree.iter().find_map(|e| match e {
                Entry::File { path, text, .. } if *path == below(name) => Some(text.as_str()),
                _ => None,
            })
        };
        assert_eq!(text("Singularity"), Some("bootstrap: docker\nfrom: debian:12\n\n"));
        assert!(text("labels.json").unwrap().contains("\"own\": \"label\""));
        assert_eq!(tree, singularity_tree(&image, &origin, &|path| path == "/tmp" || path == "/.exec"));
        // One that a definition file made keeps what it has, and does not run itself.
        image.config.entrypoint = Some(vec![RUN.into()]);
        let again = singularity_tree(&image, &origin, &|path| paths.contains(&path) || path == "/tmp");
        assert_eq!(again.iter().map(Entry::path).collect::<Vec<_>>(), ["/.exec"]);
    }
}
