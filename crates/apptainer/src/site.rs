//! The settings of a site: `apptainer.conf`, or the older `singularity.conf`, where the machine has one. Read are those
//! that say what a container sees and may do; the rest is about Apptainer's set-uid program and its helpers, of which
//! there are none here.

use std::io;
use std::path::{Path, PathBuf};

use isles_engine::image_file::{self, Form};
use isles_spec::{FileSystemKind, Root};

use crate::control_list::ControlList;
use crate::failure::Failure;
use crate::image::Image;
use crate::text_file;

/// Where the file is looked for; the first that is there counts.
const USUAL: [&str; 4] = [
    "/etc/apptainer/apptainer.conf",
    "/usr/local/etc/apptainer/apptainer.conf",
    "/etc/singularity/singularity.conf",
    "/usr/local/etc/singularity/singularity.conf",
];
/// The largest that is read.
const LIMIT: u64 = 1 << 20;

/// What a directive of the file takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    YesNo,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Megabytes.
    Size,
    /// It may be there several times.
    List,
    /// Nothing here looks at it.
    Unread,
}

/// Every directive, with what it is where the file does not say.
pub const DIRECTIVES: &[(&str, Takes, &str)] = &[
    ("allow container dir", Takes::YesNo, "yes"),
    ("allow container encrypted", Takes::YesNo, "yes"),
    ("allow container extfs", Takes::YesNo, "yes"),
    ("allow container sif", Takes::YesNo, "yes"),
    ("allow container squashfs", Takes::YesNo, "yes"),
    ("allow ipc ns", Takes::YesNo, "yes"),
    ("allow pid ns", Takes::YesNo, "yes"),
    ("allow uts ns", Takes::YesNo, "yes"),
    ("always use nv", Takes::YesNo, "no"),
    ("always use rocm", Takes::YesNo, "no"),
    ("bind path", Takes::List, "/etc/localtime,/etc/hosts"),
    ("config group", Takes::YesNo, "yes"),
    ("config passwd", Takes::YesNo, "yes"),
    ("config resolv_conf", Takes::YesNo, "yes"),
    ("mount dev", Takes::OneOf(&["yes", "no", "minimal"]), "yes"),
    ("mount home", Takes::YesNo, "yes"),
    ("mount proc", Takes::YesNo, "yes"),
    ("mount sys", Takes::YesNo, "yes"),
    ("mount tmp", Takes::YesNo, "yes"),
    ("sessiondir max size", Takes::Size, "64"),
    ("user bind control", Takes::YesNo, "yes"),
    ("allow kernel extfs", Takes::Unread, "no"),
    ("allow kernel squashfs", Takes::Unread, "yes"),
    ("allow net groups", Takes::Unread, ""),
    ("allow net networks", Takes::Unread, ""),
    ("allow net users", Takes::Unread, ""),
    ("allow setuid", Takes::Unread, "yes"),
    ("allow setuid-mount encrypted", Takes::Unread, "yes"),
    ("allow setuid-mount extfs", Takes::Unread, "no"),
    ("allow setuid-mount squashfs", Takes::Unread, "iflimited"),
    ("allow user ns", Takes::Unread, "yes"),
    ("apptheus socket path", Takes::Unread, "/run/apptheus/gateway.sock"),
    ("binary path", Takes::Unread, "$PATH:"),
    ("cni configuration path", Takes::Unread, ""),
    ("cni plugin path", Takes::Unread, ""),
    ("download buffer size", Takes::Unread, "32768"),
    ("download concurrency", Takes::Unread, "3"),
    ("download part size", Takes::Unread, "5242880"),
    ("enable fusemount", Takes::YesNo, "yes"),
    ("enable overlay", Takes::Unread, "yes"),
    ("enable underlay", Takes::Unread, "yes"),
    ("image driver", Takes::Unread, ""),
    ("limit container groups", Takes::Unread, ""),
    ("limit container owners", Takes::Unread, ""),
    ("limit container paths", Takes::Unread, ""),
    ("max loop devices", Takes::Unread, "256"),
    ("memory fs type", Takes::Unread, "tmpfs"),
    ("mksquashfs mem", Takes::Unread, ""),
    ("mksquashfs procs", Takes::Unread, "0"),
    ("mount devpts", Takes::Unread, "yes"),
    ("mount hostfs", Takes::Unread, "no"),
    ("mount slave", Takes::Unread, "yes"),
    ("root default capabilities", Takes::Unread, "full"),
    ("shared loop devices", Takes::Unread, "no"),
    ("squashfuse mount options", Takes::Unread, ""),
    ("systemd cgroups", Takes::Unread, "yes"),
    ("use nvidia-container-cli", Takes::Unread, "no"),
];

/// The directive of this name.
pub fn directive(name: &str) -> Option<(Takes, &'static str)> {
    DIRECTIVES.iter().find(|(known, ..)| *known == name).map(|(_, takes, usual)| (*takes, *usual))
}

impl Takes {
    /// Whether a value is one; `Err` says what would be.
    pub fn check(self, value: &str) -> Result<(), String> {
        let fine = match self {
            Takes::YesNo => matches!(value, "yes" | "no"),
            Takes::OneOf(words) => words.contains(&value),
            Takes::Size => value.parse::<u32>().is_ok_and(|n| n > 0),
            Takes::List => !value.is_empty(),
            Takes::Unread => true,
        };
        let known = match self {
            _ if fine => return Ok(()),
            Takes::YesNo => "yes or no".to_owned(),
            Takes::OneOf(words) => words.join(", "),
            Takes::Size => "a number of megabytes".to_owned(),
            Takes::List | Takes::Unread => "a value".to_owned(),
        };
        Err(format!("it takes {known}, not '{value}'"))
    }
}

/// What a site says, as far as it differs from what is usual.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Site {
    /// Name and value, in the order of the file.
    said: Vec<(String, String)>,
    control_list: Option<ControlList>,
}

/// The file that counts: the one that is named, or the first of the usual ones that is there.
pub fn file(named: Option<&Path>) -> Option<PathBuf> {
    match named {
        Some(path) => Some(path.to_owned()),
        None => USUAL.iter().map(PathBuf::from).find(|path| path.exists()),
    }
}

/// Where a site's file is made that has none.
pub fn usual_file() -> PathBuf {
    USUAL[0].into()
}

/// The text of a file; nothing where there is none and none is named.
pub fn read(named: Option<&Path>) -> Result<(PathBuf, String), Failure> {
    let Some(path) = file(named) else { return Ok((usual_file(), String::new())) };
    const WHAT: &str = "while parsing configuration file";
    let text = text_file::read(&path, LIMIT, WHAT)?.ok_or_else(|| {
        Failure::because(format!("{WHAT} {}", path.display()), &io::Error::from(rustix::io::Errno::NOENT))
    })?;
    Ok((path, text))
}

/// Name and value of a line; `None` for one that says nothing.
pub fn line(text: &str) -> Option<(&str, &str)> {
    let text = text.trim();
    if text.starts_with('#') {
        return None;
    }
    let (name, value) = text.split_once('=')?;
    Some((name.trim(), value.trim()))
}

impl Site {
    /// The settings of the machine, or of the file that is named.
    pub fn load(named: Option<&Path>) -> Result<Site, Failure> {
        let (path, text) = read(named)?;
        let site = Site::parse(&text).map_err(|why| {
            Failure::new(format!("while parsing configuration file {}: {why}", path.display()))
        })?;
        // It lies beside the file with the settings.
        let list = path.parent().map(|folder| ControlList::load(&folder.join("ecl.toml"))).transpose()?;
        Ok(Site { control_list: list.flatten(), ..site })
    }

    fn parse(text: &str) -> Result<Site, String> {
        let mut said = Vec::new();
        for (number, (name, value)) in (1..).zip(text.lines()).filter_map(|(n, l)| Some((n, line(l)?))) {
            // What a later release has more is about it.
            let Some((takes, _)) = directive(name) else { continue };
            // An entry without a value is none.
            if value.is_empty() {
                continue;
            }
            takes.check(value).map_err(|why| format!("line {number}: '{name}': {why}"))?;
            said.push((name.to_owned(), value.to_owned()));
        }
        Ok(Site { said, control_list: None })
    }

    /// What is said of a directive: several values of a list, of others the last one.
    pub fn values(&self, name: &str) -> Vec<&str> {
        let said = self.said.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let said: Vec<&str> = said.collect();
        match directive(name) {
            Some((Takes::List, usual)) if said.is_empty() => usual.split(',').collect(),
            Some((Takes::List, _)) => said,
            Some((_, usual)) => vec![said.last().copied().unwrap_or(usual)],
            None => said,
        }
    }

    pub fn one(&self, name: &str) -> &str {
        self.values(name).last().copied().unwrap_or_default()
    }

    /// Whether something is on.
    pub fn is(&self, name: &str) -> bool {
        self.one(name) == "yes"
    }

    /// Files and folders that every container shows: of the host, and in the container.
    pub fn bind_paths(&self) -> Vec<(&str, &str)> {
        let both =
            |path: &'_ str| -> (usize, usize) { path.find(':').map_or((path.len(), 0), |at| (at, at + 1)) };
        let paths = self.values("bind path");
        paths.into_iter().map(|path| (&path[..both(path).0], &path[both(path).1..])).collect()
    }

    /// How much a folder in memory holds, in bytes, where the site says it.
    pub fn session_size(&self) -> Option<u64> {
        let said = self.said.iter().any(|(name, _)| name == "sessiondir max size");
        said.then(|| self.one("sessiondir max size").parse::<u64>().ok().map(|mega| mega << 20)).flatten()
    }

    /// Whether an image may run: the control list is for everybody, kinds of images for users other than root.
    ///
    /// # Errors
    /// It may not.
    pub fn check(&self, image: &Image, root: bool) -> Result<(), Failure> {
        if let Some(list) = &self.control_list {
            list.check(image)?;
        }
        let form = || image.file.as_ref().and_then(|file| image_file::form(file).ok().flatten());
        let (kind, name) = match &image.root {
            Root::Directory(_) => ("dir", "sandbox"),
            Root::File(file) if file.kind.is_encrypted() => ("encrypted", "encrypted SIF"),
            Root::File(_) => match form() {
                Some(Form::Bare(FileSystemKind::Squashfs)) => ("squashfs", "squashfs"),
                Some(Form::Bare(FileSystemKind::Ext)) => ("extfs", "extfs"),
                _ => ("sif", "SIF"),
            },
            // Apptainer would have made a SIF file of it first.
            Root::Image { .. } => ("sif", "SIF"),
        };
        if root || self.is(&format!("allow container {kind}")) {
            return Ok(());
        }
        Err(Failure::new(format!("configuration disallows users from running {name} based containers"))
            .with_hint("the administrator of this machine has chosen so, in apptainer.conf"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says() {
        let text = "# MOUNT HOME: [BOOL]\nmount home = no\n\nbind path = /etc/hosts\n bind path=/a:/b\n\
                    #bind path = /c\nmemory fs type = ramfs\nnew in 2.0 = maybe\nmount dev = minimal\n\
                    sessiondir max size = 16\nlimit container owners =\n";
        let site = Site::parse(text).unwrap();
        assert!(!site.is("mount home") && site.is("mount tmp") && !site.is("always use nv"));
        assert_eq!(site.bind_paths(), [("/etc/hosts", "/etc/hosts"), ("/a", "/b")]);
        assert_eq!((site.one("mount dev"), site.session_size()), ("minimal", Some(16 << 20)));
        let usual = Site::default();
        assert_eq!(usual.bind_paths().len(), 2);
        assert_eq!((usual.one("mount dev"), usual.session_size()), ("yes", None));
        for (text, word) in [
            ("mount home = maybe", "line 1: 'mount home': it takes yes or no, not 'maybe'"),
            ("\nmount dev = tiny", "line 2"),
            ("sessiondir max size = 0", "megabytes"),
        ] {
            assert!(Site::parse(text).unwrap_err().contains(word), "{text}");
        }
    }

    #[test]
    fn the_table_is_sound() {
        for (name, takes, usual) in DIRECTIVES {
            assert!(usual.split(',').all(|word| takes.check(word).is_ok()), "{name}");
            assert_eq!(DIRECTIVES.iter().filter(|(other, ..)| other == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn images_that_users_may_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let image = crate::image::on_disk(dir.path()).unwrap();
        let site = Site::parse("allow container dir = no\n").unwrap();
        assert!(site.check(&image, false).unwrap_err().message.contains("sandbox"));
        assert!(site.check(&image, true).is_ok() && Site::default().check(&image, false).is_ok());
    }
}
