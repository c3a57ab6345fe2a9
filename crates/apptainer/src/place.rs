//! Where the caller is: their home and their current folder, and what becomes of both in the container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::action_flags as flags;
use crate::caller::Caller;
use crate::command::Context;
use crate::failure::Failure;
use crate::parse::Values;
use crate::settings::Settings;

/// What is at the home of the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Home {
    /// Nothing of ours: whatever the image has there.
    OfImage,
    /// A folder of the host.
    Bound(PathBuf),
    /// An empty folder.
    Empty,
}

#[derive(Debug, Clone)]
pub struct Place {
    /// HOME in the container.
    pub home: PathBuf,
    pub at_home: Home,
    /// `None` where it was removed, or cannot be read.
    pub cwd: Option<PathBuf>,
}

impl Place {
    pub fn find(cx: &Context<'_>, settings: &Settings, caller: &Caller) -> Result<Place, Failure> {
        let mut custom = cx.values.text(&flags::HOME).filter(|_| cx.values.has(&flags::HOME));
        if custom.is_some() && !settings.site.is("user bind control") {
            cx.talk.warning(
                "Not mounting user requested home: user bind control disabled by system administrator",
            );
            custom = None;
        }
        let cwd = current_folder(std::env::var_os("PWD").map(PathBuf::from));
        if cwd.is_none() {
            cx.talk.warning("can't determine current working directory: it is not there any more");
        }
        let root_inside = settings.fakeroot || caller.uid == 0 && settings.uid.is_none();
        let (source, home) = match custom {
            Some(spec) => custom_home(spec, cwd.as_deref())?,
            None => {
                let own = caller.home.clone().unwrap_or_else(|| "/".into());
                let home = if root_inside { "/root".into() } else { own.clone() };
                (own, home)
            }
        };
        let unwanted = cx.values.is(&flags::NO_HOME) || settings.without("home");
        let at_home = if unwanted {
            Home::OfImage
        } else if home == Path::new("/") {
            cx.talk.warning("Skipping impossible home directory mount to '/'");
            Home::OfImage
        } else if settings.contain && custom.is_none() || !source.is_dir() {
            Home::Empty
        } else {
            Home::Bound(source)
        };
        Ok(Place { home, at_home, cwd })
    }

    /// Where the program starts, and where else if that is not there. A folder that was asked for has to be there.
    pub fn working_dirs(&self, settings: &Settings, values: &Values) -> (PathBuf, Vec<PathBuf>) {
        let asked = values.word(&flags::CWD).or(values.word(&flags::PWD));
        if let Some(dir) = asked {
            return (dir.into(), Vec::new());
        }
        let root = PathBuf::from("/");
        match &self.cwd {
            Some(cwd) if !settings.contain => (cwd.clone(), vec![self.home.clone(), root]),
            _ => (self.home.clone(), vec![root]),
        }
    }
}

/// By the name that the caller knows it by (`PWD`), where that is right.
fn current_folder(said: Option<PathBuf>) -> Option<PathBuf> {
    let real = std::env::current_dir().ok().filter(|dir| dir.is_absolute() && dir.is_dir())?;
    let said = said.filter(|dir| dir.is_absolute() && !dir.components().any(|c| c.as_os_str() == ".."));
    let same = |a: &Path, b: &Path| match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    Some(said.filter(|said| same(said, &real)).unwrap_or(real))
}

/// `SOURCE`, or `SOURCE:DESTINATION`.
fn custom_home(spec: &str, cwd: Option<&Path>) -> Result<(PathBuf, PathBuf), Failure> {
    let parts: Vec<&str> = spec.split(':').collect();
    let absolute = |path: &str| -> Result<PathBuf, Failure> {
        let path = Path::new(path);
        match (path.is_absolute(), cwd) {
            (true, _) => Ok(isles_path(path)),
            (false, Some(cwd)) => Ok(isles_path(&cwd.join(path))),
            (false, None) => Err(Failure::new(format!("the home '{}' is not absolute", path.display()))),
        }
    };
    match parts[..] {
        [source] => Ok((absolute(source)?, absolute(source)?)),
        [_, destination] if !destination.starts_with('/') => {
            Err(Failure::new(format!("the home '{destination}' of the container is not an absolute path")))
        }
        [source, destination] => Ok((absolute(source)?, absolute(destination)?)),
        _ => Err(Failure::new(format!("home argument has incorrect number of elements: {}", parts.len()))),
    }
}

/// Without `.` and `..`, as text.
pub fn isles_path(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => out.push(name),
            std::path::Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_of_the_callers_choice() {
        let here = Some(Path::new("/here"));
        for (spec, source, home) in
            [("/a", "/a", "/a"), ("/a/:/b/../c", "/a", "/c"), ("x:/b", "/here/x", "/b")]
        {
            assert_eq!(custom_home(spec, here).unwrap(), (source.into(), home.into()), "{spec}");
        }
        assert!(custom_home("a:b:c", here).unwrap_err().message.contains("elements: 3"));
        assert!(custom_home("x:y", here).unwrap_err().message.contains("'y'"));
        assert!(custom_home("x", None).is_err());
    }

    #[test]
    fn the_current_folder_by_the_callers_name() {
        let real = std::env::current_dir().unwrap();
        assert_eq!(current_folder(None).unwrap(), real);
        assert_eq!(current_folder(Some("/proc".into())).unwrap(), real, "another folder");
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(current_folder(Some(link.clone())).unwrap(), link);
    }

    #[test]
    fn where_programs_start() {
        let place = Place { home: "/home/me".into(), at_home: Home::Empty, cwd: Some("/data".into()) };
        let open = Settings::default();
        let closed = Settings { contain: true, ..Settings::default() };
        let none = Values::default();
        let path = |text: &str| PathBuf::from(text);
        assert_eq!(place.working_dirs(&open, &none), (path("/data"), vec![path("/home/me"), path("/")]));
        assert_eq!(place.working_dirs(&closed, &none), (path("/home/me"), vec![path("/")]));
        let mut asked = Values::default();
        asked.set(&flags::PWD, "/x").unwrap();
        assert_eq!(place.working_dirs(&open, &asked), (path("/x"), vec![]));
        let gone = Place { cwd: None, ..place };
        assert_eq!(gone.working_dirs(&open, &none), (path("/home/me"), vec![path("/")]));
    }
}
