//! A store of its own for each test, with a small base image, and recipes in folders.

#![allow(dead_code, clippy::unwrap_used)]

pub mod web;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use isles_build::{BuildOptions, Built, Error};
use isles_engine::Engine;
use isles_registry::{Client, ClientOptions, Credentials};
use isles_spec::image::ImageConfig;
use isles_spec::{Platform, PullPolicy, Quiet};
use isles_store::{CommitOptions, Image, Merged};

pub struct World {
    pub dir: tempfile::TempDir,
    pub engine: Engine,
    pub client: Client,
}

impl World {
    /// A store with the image `base`: a few directories, users, links, and busybox where the machine has it.
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(dir.path().join("state")).unwrap();
        let credentials = Credentials::default();
        let client = Client::new(ClientOptions { credentials, ..ClientOptions::default() });
        std::fs::create_dir(dir.path().join("context")).unwrap();
        let world = World { dir, engine, client };
        world.base_image();
        world
    }

    fn base_image(&self) {
        let tree = self.dir.path().join("base");
        for path in ["bin", "etc", "usr/lib", "data/real", "tmp", "root", "open"] {
            std::fs::create_dir_all(tree.join(path)).unwrap();
        }
        let set = |path: &str, mode| {
            std::fs::set_permissions(tree.join(path), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for path in ["", "bin", "etc", "usr", "usr/lib", "data", "data/real", "root"] {
            set(path, 0o755);
        }
        set("tmp", 0o1777);
        set("open", 0o775);
        std::fs::write(tree.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n")
            .unwrap();
        std::fs::write(tree.join("etc/group"), "root:x:0:\nstaff:x:50:\n").unwrap();
        std::fs::write(tree.join("data/file"), "old").unwrap();
        std::os::unix::fs::symlink("/data/real", tree.join("link")).unwrap();
        std::os::unix::fs::symlink("usr/lib", tree.join("lib")).unwrap();
        std::os::unix::fs::symlink("../../../../data/file", tree.join("data/tofile")).unwrap();
        if let Some(busybox) = busybox() {
            std::fs::copy(busybox, tree.join("bin/busybox")).unwrap();
            set("bin/busybox", 0o755);
            for name in [
                "sh", "cat", "echo", "ls", "mkdir", "touch", "rm", "id", "env", "test", "true", "false",
                "pwd", "stat", "chown", "date",
            ] {
                std::os::unix::fs::symlink("busybox", tree.join("bin").join(name)).unwrap();
            }
        }
        let store = self.engine.store();
        let lease = store.lease().unwrap();
        let options = CommitOptions { clamp_mtime: Some(1_000_000_000), ..CommitOptions::default() };
        let layer = store.layer_from_tree(&lease, &tree, &options).unwrap();
        let mut config = ImageConfig::empty(&Platform::host());
        config.created = Some("2020-01-01T00:00:00Z".into());
        config.config.env = vec!["PATH=/bin".into(), "BASE=1".into()];
        config.config.cmd = Some(vec!["sh".into()]);
        config.rootfs.diff_ids = vec![layer.diff_id.clone()];
        store.assemble(&lease, &config, &[layer.blob], &["base".parse().unwrap()]).unwrap();
    }

    pub fn context(&self) -> PathBuf {
        self.dir.path().join("context")
    }

    /// Writes a file of the context, with the directories above it.
    pub fn write(&self, path: &str, text: &str) -> &Self {
        let path = self.context().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    pub fn options(&self) -> BuildOptions {
        BuildOptions { pull: PullPolicy::Never, quiet: true, ..BuildOptions::default() }
    }

    pub fn build_with(&self, name: &str, text: &str, options: &BuildOptions) -> Result<Built, Error> {
        self.write(name, text);
        let path = self.context().join(name);
        isles_build::image_of_recipe(&self.engine, &self.client, &path, options, &Quiet)
    }

    /// Builds a Dockerfile.
    pub fn build(&self, text: &str) -> Result<Built, Error> {
        self.build_with("Dockerfile", text, &self.options())
    }

    /// Builds a Dockerfile that is fine.
    pub fn image(&self, text: &str) -> Image {
        match self.build(text) {
            Ok(built) => built.image,
            Err(e) => panic!("{text}\n{}", describe(&e)),
        }
    }

    pub fn view(&self, image: &Image) -> Merged {
        let store = self.engine.store();
        Merged::open(&store.layers_of(image).unwrap(), store.ownership()).unwrap()
    }

    /// Everything in an image but what the base has unchanged: path, kind, mode, owner, and text or target.
    pub fn list(&self, image: &Image) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        walk(&self.view(image), Path::new("/"), &mut out);
        out
    }

    pub fn args(&self, pairs: &[(&str, &str)]) -> BuildOptions {
        let build_args = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        BuildOptions { build_args, ..self.options() }
    }

    /// Whether steps can be run here; says so where they cannot.
    pub fn can_run(&self) -> bool {
        if busybox().is_none() {
            println!("skip: no static busybox on this machine");
            return false;
        }
        match self.build("FROM base\nRUN true\n") {
            Ok(_) => true,
            Err(e) => {
                println!("skip: steps cannot be run: {}", describe(&e));
                false
            }
        }
    }
}

pub fn describe(e: &Error) -> String {
    use isles_spec::Hint;
    format!("{e}\nhint: {}", e.hint().unwrap_or_default())
}

pub fn busybox() -> Option<PathBuf> {
    let path = PathBuf::from("/bin/busybox");
    let bytes = std::fs::read(&path).ok()?;
    // A dynamic one names its loader.
    let is_static = !bytes.windows(8).any(|w| w == b"/ld-linu" || w == b"/lib/ld-");
    is_static.then_some(path)
}

fn walk(view: &Merged, path: &Path, out: &mut BTreeMap<String, String>) {
    use isles_store::FileKind;
    for entry in view.read_dir(path).unwrap() {
        let child = path.join(&entry.name);
        let stat = view.lstat(&child).unwrap();
        let what = match stat.kind {
            FileKind::Dir => "dir".to_owned(),
            FileKind::Symlink => format!("-> {}", view.readlink(&child).unwrap().to_string_lossy()),
            FileKind::File if stat.size < 1000 => {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut view.open_file(&child).unwrap(), &mut bytes).unwrap();
                format!("{:?}", String::from_utf8_lossy(&bytes))
            }
            other => format!("{other:?}"),
        };
        let line = match stat.kind {
            FileKind::Symlink => what,
            _ => format!("{:o} {}:{} {what}", stat.mode, stat.uid, stat.gid),
        };
        out.insert(child.display().to_string(), line);
        if stat.kind == FileKind::Dir {
            walk(view, &child, out);
        }
    }
}
