//! The root file system as the options of `isles run` spell it: how image files are mounted, what lies over them, and
//! what they run.

use std::path::{Path, PathBuf};

use isles_engine::image_file;
use isles_spec::{FileSystemKind, ImageMount, Overlay, Workload, Writable};

use crate::failure::Failure;

/// What a file or a folder runs where the caller says nothing: no configuration comes with it, but SIF images and
/// sandboxes bring their runscript.
pub fn default_command(workload: &mut Workload) {
    if workload.command.is_empty() && workload.entrypoint.as_ref().is_none_or(Vec::is_empty) {
        workload.command = vec!["/.singularity.d/runscript".into()];
    }
}

fn too_many(overlay: &str) -> Failure {
    Failure::new(format!("the overlay '{overlay}' is one too many to write to"))
        .with_hint("add :ro to those that are only read, and leave out --writable-tmpfs")
}

/// What is unpacked is one file system: a SIF file with others over it is not the same without them.
pub fn refuse_partitions(path: &Path) -> Result<(), Failure> {
    if image_file::overlays(path, &image_file::open(path)?)?.is_empty() {
        return Ok(());
    }
    let what =
        format!("'{}' has partitions over its root file system, and those are not unpacked", path.display());
    Err(Failure::new(what).with_hint("it can be mounted: --image-mount fuse, which needs /dev/fuse"))
}

/// Overlays, and where what is written goes: to the one of them that is not read-only.
pub fn overlays(words: &[String], in_memory: bool) -> Result<(Vec<Overlay>, Writable), Failure> {
    let mut overlays = Vec::new();
    let mut writable = if in_memory { Writable::Memory { size: None } } else { Writable::Usual };
    for word in words {
        let (path, read_only) = match word.rsplit_once(':') {
            Some((path, "ro")) => (path, true),
            Some((path, "rw")) => (path, false),
            _ => (word.as_str(), false),
        };
        let path = PathBuf::from(path);
        if path.is_file() {
            let mut found = image_file::find(&path, &image_file::open(&path)?)?;
            found.path = path.canonicalize().unwrap_or(path);
            if read_only || found.kind != FileSystemKind::Ext {
                overlays.push(Overlay::File(found));
            } else if writable == Writable::Usual {
                writable = Writable::File(found);
            } else {
                return Err(too_many(word));
            }
        } else if read_only {
            overlays.push(Overlay::Folder(path));
        } else if writable == Writable::Usual {
            writable = Writable::Folder(path);
        } else {
            return Err(too_many(word));
        }
    }
    Ok((overlays, writable))
}

/// How image files are mounted: as the option says, or else the variable.
pub fn image_mount(option: Option<String>) -> Result<ImageMount, Failure> {
    let of_caller = std::env::var("ISLES_IMAGE_MOUNT").ok();
    match option.or(of_caller).filter(|word| !word.is_empty()) {
        Some(word) => Ok(ImageMount::parse(&word)?),
        None => Ok(ImageMount::Auto),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_and_what_is_written() {
        let folder = |path: &str| Overlay::Folder(path.into());
        let memory = || Writable::Memory { size: None };
        for (line, in_memory, expected, writable) in [
            ("", false, vec![], Writable::Usual),
            ("", true, vec![], memory()),
            ("/a", false, vec![], Writable::Folder("/a".into())),
            ("/a:ro /b", false, vec![folder("/a")], Writable::Folder("/b".into())),
            ("/a:ro", true, vec![folder("/a")], memory()),
        ] {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(overlays(&words, in_memory).unwrap(), (expected, writable), "{line}");
        }
        for (words, in_memory, named) in [(vec!["/a", "/b"], false, "'/b'"), (vec!["/b:rw"], true, "'/b:rw'")]
        {
            let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
            assert!(overlays(&words, in_memory).unwrap_err().message.contains(named));
        }
    }

    #[test]
    fn a_file_runs_its_script_unless_something_else_is_said() {
        let mut workload = Workload::default();
        default_command(&mut workload);
        assert_eq!(workload.command, ["/.singularity.d/runscript"]);
        workload.command = vec!["ls".into()];
        default_command(&mut workload);
        assert_eq!(workload.command, ["ls"]);
        let mut own = Workload { entrypoint: Some(vec!["sh".into()]), ..Workload::default() };
        default_command(&mut own);
        assert!(own.command.is_empty());
    }
}
