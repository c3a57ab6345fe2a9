//! What stages of definition files begin with: files of every format, libraries and registries, other recipes.

#![allow(clippy::unwrap_used)]

#[path = "../../registry/tests/fake/mod.rs"]
mod fake;
mod support;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use fake::{Fake, Reply};
use isles_build::BuildOptions;
use isles_build::definition::DefinitionOptions;
use isles_openpgp::Certificate;
use isles_sif::{Arch, Editor, FileSystem, Kind, NewObject, NewSif, Role, Signer};
use isles_spec::Platform;
use sha2::{Digest as _, Sha256};
use support::{World, describe};

fn build(world: &World, text: &str) -> isles_build::Built {
    match world.build_with("x.def", text, &world.options()) {
        Ok(built) => built,
        Err(e) => panic!("{text}\n{}", describe(&e)),
    }
}

fn fails(world: &World, text: &str, parts: &[&str]) {
    let shown = describe(&world.build_with("x.def", text, &world.options()).expect_err(text));
    for part in parts {
        assert!(shown.contains(part), "{text}: '{part}' is missing in {shown}");
    }
}

/// A small image as Apptainer's, as a SquashFS image in the context.
fn squashfs(world: &World) -> std::path::PathBuf {
    let (tree, path) = (world.context().join("tree"), world.context().join("x.squashfs"));
    if path.exists() {
        return path;
    }
    for path in ["etc", ".singularity.d/env", "data"] {
        std::fs::create_dir_all(tree.join(path)).unwrap();
    }
    let write = |path: &str, text: &str| std::fs::write(tree.join(path), text).unwrap();
    write("etc/passwd", "root:x:0:0::/:/bin/sh\n");
    write(".singularity.d/runscript", "#!/bin/sh\necho of the base\n");
    write(".singularity.d/labels.json", r#"{"Own":"label","org.label-schema.build-arch":"other"}"#);
    write(".singularity.d/env/90-environment.sh", "#!/bin/sh\nexport A=base\n");
    write("data/large", &"0123456789abcdef".repeat(40_000));
    std::fs::hard_link(tree.join("data/large"), tree.join("data/again")).unwrap();
    std::os::unix::fs::symlink("large", tree.join("data/link")).unwrap();
    let mut folder = isles_squashfs::Folder::open(&tree).unwrap();
    let mut out = File::create(&path).unwrap();
    isles_squashfs::write(&mut folder, &mut out, &isles_squashfs::Options::default()).unwrap();
    path
}

fn host_arch() -> Arch {
    Arch::from_name(&Platform::host().architecture).unwrap()
}

fn sif(world: &World, name: &str, arch: Arch, file_system: FileSystem) -> std::path::PathBuf {
    let image = squashfs(world);
    let partition = NewObject::partition(file_system, Role::Primary, arch, File::open(image).unwrap());
    let path = world.context().join(name);
    NewSif::new(vec![NewObject::new(Kind::Definition, &b"x"[..]), partition]).create(&path).unwrap();
    path
}

/// The same tree in an ext3 image, and that in a SIF file; false, with the reason, where it cannot be made.
fn ext3(world: &World) -> bool {
    let (tree, image) = (world.context().join("tree"), world.context().join("x.ext3"));
    let mut command = std::process::Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext3", "-d"]).arg(tree).arg(&image).arg("8m");
    if !command.env("PATH", "/usr/sbin:/sbin").status().is_ok_and(|status| status.success()) {
        println!("skip: mke2fs (package e2fsprogs) is missing");
        return false;
    }
    let partition =
        NewObject::partition(FileSystem::Ext3, Role::Primary, host_arch(), File::open(image).unwrap());
    NewSif::new(vec![partition]).create(&world.context().join("ext.sif")).unwrap();
    true
}

fn has_the_tree(world: &World, image: &isles_store::Image) {
    let list = world.list(image);
    assert!(list["/.singularity.d/runscript"].contains("of the base"));
    assert_eq!(list["/data/link"], "-> large");
    let view = world.view(image);
    let large = view.lstat(Path::new("data/large")).unwrap();
    assert_eq!((large.size, large.links), (640_000, 2));
    assert_eq!(large.inode, view.lstat(Path::new("data/again")).unwrap().inode);
    let config = &image.config.config;
    assert_eq!(config.entrypoint.as_ref().unwrap(), &["/.singularity.d/actions/run"]);
    assert_eq!(config.labels["Own"], "label");
    assert!(!config.labels.contains_key("org.label-schema.build-arch"));
}

#[test]
fn sif_files_and_squashfs_images() {
    let world = World::new();
    sif(&world, "x.sif", host_arch(), FileSystem::Squashfs);
    let with_launch_line = |from: &str, to: &str| {
        let mut old = b"#!/usr/bin/env run-singularity\n".to_vec();
        old.extend(std::fs::read(world.context().join(from)).unwrap());
        std::fs::write(world.context().join(to), old).unwrap();
    };
    with_launch_line("x.squashfs", "old.img");
    let mut all = vec!["x.sif", "x.squashfs", "old.img"];
    if ext3(&world) {
        with_launch_line("x.ext3", "old-ext.img");
        all.extend(["x.ext3", "ext.sif", "old-ext.img"]);
    }
    for from in all {
        let text = format!("Bootstrap: localimage\nFrom: {from}\n%environment\nexport B=own\n");
        let built = build(&world, &text);
        has_the_tree(&world, &built.image);
        let environment = &world.list(&built.image)["/.singularity.d/env/90-environment.sh"];
        assert!(environment.contains("A=base\\nexport B=own"), "{environment}");
        assert!(build(&world, &text).cached, "{from}");
    }
    let other = if host_arch() == Arch::from_name("s390x").unwrap() { "amd64" } else { "s390x" };
    sif(&world, "other.sif", Arch::from_name(other).unwrap(), FileSystem::Squashfs);
    fails(&world, "Bootstrap: localimage\nFrom: other.sif\n", &["x.def:2:7: ", "is for", other]);
    sif(&world, "no-ext.sif", host_arch(), FileSystem::Ext3);
    fails(&world, "Bootstrap: localimage\nFrom: no-ext.sif\n", &["x.def:2:7: ", "the ext image"]);
    sif(&world, "locked.sif", host_arch(), FileSystem::EncryptedSquashfs);
    fails(
        &world,
        "Bootstrap: localimage\nFrom: locked.sif\n",
        &["x.def:2:7: ", "is encrypted", "APPTAINER_ENCRYPTION_PASSPHRASE"],
    );
    NewSif::new(vec![NewObject::new(Kind::Generic, &b"x"[..])])
        .create(&world.context().join("no.sif"))
        .unwrap();
    fails(&world, "Bootstrap: localimage\nFrom: no.sif\n", &["no.sif", "root file system"]);
    // A name that would remove a file of another layer.
    std::fs::create_dir(world.context().join("odd")).unwrap();
    std::fs::write(world.context().join("odd/.wh.passwd"), "").unwrap();
    let mut folder = isles_squashfs::Folder::open(&world.context().join("odd")).unwrap();
    let mut out = File::create(world.context().join("odd.img")).unwrap();
    isles_squashfs::write(&mut folder, &mut out, &isles_squashfs::Options::default()).unwrap();
    fails(&world, "Bootstrap: localimage\nFrom: odd.img\n", &["x.def:2:7: ", "'.wh.passwd'"]);
    // Damage is an error with the name of the file, wherever it is.
    let good = std::fs::read(world.context().join("x.sif")).unwrap();
    for cut in [36_000, 33_000, 5000, 100] {
        std::fs::write(world.context().join("cut.sif"), &good[..cut]).unwrap();
        fails(&world, "Bootstrap: localimage\nFrom: cut.sif\n", &["x.def:2:7: ", "cut.sif"]);
    }
    for at in (32_768..good.len()).step_by(good.len() / 37) {
        let mut bad = good.clone();
        bad[at..(at + 40).min(good.len())].fill(0xa5);
        std::fs::write(world.context().join("bad.sif"), bad).unwrap();
        // Whatever it gives, it is no panic, and no hang.
        let _ = world.build_with("x.def", "Bootstrap: localimage\nFrom: bad.sif\n", &world.options());
    }
}

#[test]
fn an_oci_image_in_a_sif_file() {
    let world = World::new();
    let store = world.engine.store();
    let base = store.resolve("base", None).unwrap();
    let blob = |digest: &isles_spec::Digest| NewObject::new(Kind::OciBlob, store.open_blob(digest).unwrap());
    let mut objects = vec![blob(&base.manifest_digest), blob(base.id())];
    objects.extend(base.manifest.layers.iter().map(|layer| blob(&layer.digest)));
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [base.descriptor(store)] }).to_string();
    objects.push(NewObject::new(Kind::OciRootIndex, std::io::Cursor::new(index)));
    NewSif::new(objects).create(&world.context().join("oci.sif")).unwrap();
    let image = build(&world, "Bootstrap: localimage\nFrom: oci.sif\n%labels\nA b\n").image;
    let list = world.list(&image);
    assert!(list.contains_key("/etc/passwd") && list["/.singularity.d/runscript"].contains("set -- 'sh'"));
    assert_eq!(image.config.config.cmd, base.config.config.cmd);
}

#[test]
fn fingerprints_are_demanded_of_sif_files() {
    let world = World::new();
    let path = sif(&world, "x.sif", host_arch(), FileSystem::Squashfs);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let make = |user: &str| Certificate::generate(user, None, now - 60).unwrap();
    let (ann, ben) = (make("Ann <a@example.org>"), make("Ben <b@example.org>"));
    let keyring = world.context().join("keys");
    std::fs::write(&keyring, [ann.to_public().to_bytes(), ben.to_public().to_bytes()].concat()).unwrap();
    let hex = |c: &Certificate| isles_sif::fingerprint_text(&c.fingerprint());
    let definition = DefinitionOptions { keyring: Some(keyring.clone()), ..DefinitionOptions::default() };
    let options = BuildOptions { definition, ..world.options() };
    let result = |fingerprints: &str| {
        let text = format!("Bootstrap: localimage\nFrom: x.sif\nFingerprints: {fingerprints}\n");
        world.build_with("x.def", &text, &options).map_err(|e| describe(&e))
    };
    assert!(result(&hex(&ann)).unwrap_err().contains("signature not found"));
    let sign = |who: &Certificate| {
        let key = who.open(None).unwrap();
        let signer = Signer::OpenPgp { key: &key, now };
        isles_sif::sign(&mut Editor::open(&path).unwrap(), &signer, &Default::default()).unwrap();
    };
    sign(&ann);
    has_the_tree(&world, &result(&hex(&ann)).unwrap().image);
    assert!(result(&format!("{},{}", hex(&ann), hex(&ben))).unwrap_err().contains("did not sign it"));
    sign(&ben);
    assert!(result(&format!("{} , {}", hex(&ann), hex(&ben))).is_ok());
    // A file that was changed after it was signed.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[33_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(result(&hex(&ann)).unwrap_err().contains("integrity"));
    for (from, part) in [
        ("tree", "a folder, which nobody can sign"),
        ("x.squashfs", "no SIF file"),
        ("base", "no signatures"),
    ] {
        let text = format!("Bootstrap: localimage\nFrom: {from}\nFingerprints: {}\n", hex(&ann));
        let shown = describe(&world.build_with("x.def", &text, &options).unwrap_err());
        assert!(shown.contains(part), "{from}: {shown}");
    }
    std::fs::write(&keyring, "no keys").unwrap();
    assert!(result(&hex(&ann)).unwrap_err().contains("is no keyring"));
}

fn hex(bytes: &[u8]) -> String {
    isles_spec::digest::hex(&Sha256::digest(bytes))
}

#[test]
fn images_of_a_library() {
    let world = World::new();
    let bytes = std::fs::read(sif(&world, "x.sif", host_arch(), FileSystem::Squashfs)).unwrap();
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = fetched.clone();
    let architecture = Platform::host().architecture;
    let fake = Fake::start(move |r| {
        let (path, query) = r.target.split_once('?').unwrap();
        assert_eq!(query, format!("arch={architecture}"));
        match path {
            "/v1/images/u/c/x:1" => {
                let image = serde_json::json!({
                    "hash": format!("sha256.{}", hex(&bytes)), "size": bytes.len(), "uploaded": true,
                });
                Reply::new(200, serde_json::json!({ "data": image }).to_string())
            }
            "/v1/imagefile/u/c/x:1" => {
                count.fetch_add(1, Ordering::Relaxed);
                Reply::new(200, bytes.clone())
            }
            _ => Reply::new(404, "{}"),
        }
    });
    let server = format!("http://{}", fake.address);
    let text = format!("Bootstrap: library\nFrom: library://u/c/x:1\nLibrary: {server}\n");
    let first = build(&world, &text).image;
    has_the_tree(&world, &first);
    let again = build(&world, &text);
    assert!(again.cached && again.image.id() == first.id());
    assert_eq!(fetched.load(Ordering::Relaxed), 1, "what has the same digest is not fetched again");
    // By option, where the recipe names none.
    let definition = DefinitionOptions { library: Some(server), ..DefinitionOptions::default() };
    let options = BuildOptions { definition, ..world.options() };
    assert!(world.build_with("x.def", "Bootstrap: library\nFrom: u/c/x:1\n", &options).is_ok());
    let error = world.build_with("x.def", "Bootstrap: library\nFrom: u/c/y:1\n", &options).unwrap_err();
    assert!(describe(&error).contains("x.def:2:7: "), "{}", describe(&error));
}

#[test]
fn sif_files_of_a_registry() {
    let world = World::new();
    let path = sif(&world, "x.sif", host_arch(), FileSystem::Squashfs);
    let kept: Arc<Mutex<std::collections::HashMap<String, Vec<u8>>>> = Arc::default();
    let shelf = kept.clone();
    let fake = Fake::start(move |r| {
        let mut kept = shelf.lock().unwrap();
        let (path, query) = r.target.split_once('?').unwrap_or((&r.target, ""));
        let name = path.rsplit('/').next().unwrap().to_owned();
        match (r.method.as_str(), query.strip_prefix("digest=")) {
            ("POST", _) => Reply::new(202, "").with("Location", "/v2/a/b/blobs/uploads/1"),
            ("PUT", digest) => {
                kept.insert(digest.map_or(name, str::to_owned), r.body.clone());
                Reply::new(201, "")
            }
            _ => kept.get(&name).map_or(Reply::new(404, ""), |bytes| Reply::new(200, bytes.clone())),
        }
    });
    let name = fake.name("a/b:1");
    let target = name.parse().unwrap();
    world.client.push_sif(world.engine.store(), &path, &target, &isles_spec::Quiet).unwrap();
    for from in [format!("oras://{name}"), name.clone()] {
        let text = format!("Bootstrap: oras\nFrom: {from}\n");
        has_the_tree(&world, &build(&world, &text).image);
    }
    let blob = |r: &fake::Request| r.method == "GET" && r.target.contains("/blobs/");
    assert_eq!(fake.requests().iter().filter(|r| blob(r)).count(), 1);
    let nothing = format!("Bootstrap: oras\nFrom: {}\n", fake.name("a/b:2"));
    fails(&world, &nothing, &["x.def:2:7: ", "has no"]);
}

#[test]
fn dockerfiles_are_stages() {
    let world = World::new();
    world
        .write("app/Dockerfile", "ARG V=0\nFROM base AS one\nARG V\nLABEL v=$V\nCOPY f /copied\nCMD [\"one\"]\nFROM one\nCMD [\"two\"]\n")
        .write("app/other.Dockerfile", "FROM base\nENV X=other\n")
        .write("app/f", "x");
    let image = |text: &str| build(&world, text).image;
    for agent in ["dockerfile", "buildkit"] {
        let made =
            image(&format!("Bootstrap: {agent}\nFrom: app\nTarget: one\nBuildArgs: V=7\n%labels\nA b\n"));
        assert_eq!((&*made.config.config.labels["v"], &*made.config.config.labels["A"]), ("7", "b"));
        let list = world.list(&made);
        assert!(list["/copied"].contains('x') && list["/.singularity.d/runscript"].contains("'one'"));
    }
    let made = image("Bootstrap: dockerfile\nFrom: app\nFilename: other.Dockerfile\n");
    assert!(world.list(&made)["/.singularity.d/env/10-docker2singularity.sh"].contains("export X"));
    for (text, part) in [
        ("Bootstrap: dockerfile\nFrom: nothing\n", "x.def:2:7: "),
        ("Bootstrap: dockerfile\nFrom: app\nTarget: three\n", "three"),
        ("Bootstrap: dockerfile\nFrom: app\nFilename: f\n", "unknown instruction"),
    ] {
        fails(&world, text, &[part]);
    }
}

#[test]
fn busybox_is_one_file() {
    let world = World::new();
    if !world.can_run() {
        return;
    }
    let fake = Fake::start(|r| match r.target.as_str() {
        "/busybox" => Reply::new(200, std::fs::read("/bin/busybox").unwrap()),
        "/page" => Reply::new(200, "<html>"),
        _ => Reply::new(404, ""),
    });
    let at = |path: &str| format!("Bootstrap: busybox\nMirrorURL: http://{}/{path}\n", fake.address);
    let text = at("busybox") + "%post\necho works > /made\n";
    let list = world.list(&build(&world, &text).image);
    assert!(list["/made"].contains("works") && list["/etc/passwd"].contains("root"));
    assert_eq!(list["/bin/ls"], "-> /bin/busybox");
    assert!(build(&world, &text).cached);
    assert_eq!(fake.requests().len(), 1);
    fails(&world, &at("page"), &["x.def:2:12: ", "is no program"]);
    fails(&world, &at("nothing"), &["x.def:2:12: ", "404"]);
}
