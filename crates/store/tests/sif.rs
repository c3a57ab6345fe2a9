//! Images become SIF files and SIF files images.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Path, PathBuf};

use isles_sif::{Arch, FileSystem, Kind, NewObject, NewSif, OCI_CONFIG, Role, Sif};
use isles_spec::image::{ContainerConfig, Descriptor, Index, Manifest, media_type};
use isles_spec::{Platform, Quiet};
use isles_squashfs::{Compression, FileType, Node, Options, Tree};
use isles_store::tar::{Entry, Kind as TarKind};
use isles_store::{Added, Image, NewSifImage, SifSource, Store};
use support::*;

#[test]
fn ordinary_user() {
    again_as_ordinary_user();
}

fn added() -> Vec<(String, Added)> {
    let file = |path: &str, text: &str| {
        (path.to_owned(), Added::File { mode: 0o755, content: text.as_bytes().to_vec() })
    };
    vec![
        ("/etc".to_owned(), Added::Folder { mode: 0o700 }),
        ("/new".to_owned(), Added::Folder { mode: 0o1777 }),
        ("/linked/new".to_owned(), Added::Folder { mode: 0o755 }),
        ("/run".to_owned(), Added::Link { target: ".singularity.d/actions/run".to_owned() }),
        ("/etc/words".to_owned(), Added::Link { target: "nowhere".to_owned() }),
        file("/.singularity.d/actions/run", "#!/bin/sh\n"),
        file("/.singularity.d/runscript", "#!/bin/sh\necho hi\n"),
        file("/.singularity.d/labels.json", r#"{"a":"b"}"#),
    ]
}

fn packing(threads: usize) -> Options {
    Options { compression: Compression::Gzip(6), threads, ..Options::default() }
}

fn new(added: &[(String, Added)]) -> NewSifImage<'_> {
    NewSifImage {
        added,
        definition: "bootstrap: docker\nfrom: app:1\n\n",
        squashfs: packing(1),
        latest: Some(1_600_000_000),
        uuid: [0; 16],
        encryption: None,
    }
}

/// Two layers, the upper of which hides something.
fn app(home: &Home) -> Image {
    let lease = home.lease();
    let below = Tar::new()
        .dir("etc/", 0o755)
        .file("etc/words", "below")
        .file("etc/gone", "x")
        .mode("bin/tool", 0o4755, "tool")
        .hardlink("bin/same", "bin/tool")
        .symlink("linked", "etc")
        .entry(Entry { uid: 7, gid: 8, ..entry("owned", TarKind::File, 0o600) }, b"mine")
        .entry(
            Entry {
                xattrs: vec![(b"user.note".to_vec(), b"hm".to_vec())],
                ..entry("noted", TarKind::File, 0o644)
            },
            b"",
        )
        .done();
    let below = home.store.layer_from_tar(&lease, &mut &below[..]).unwrap();
    let above = Tar::new().file("etc/.wh.gone", "").file("etc/words", "above").done();
    let above = home.store.layer_from_tar(&lease, &mut &above[..]).unwrap();
    let mut config = isles_spec::image::ImageConfig::empty(&Platform::host());
    config.rootfs.diff_ids = vec![below.diff_id.clone(), above.diff_id.clone()];
    config.config = ContainerConfig {
        env: vec!["A=b".into()],
        entrypoint: Some(vec!["/bin/tool".into()]),
        ..ContainerConfig::default()
    };
    home.store.assemble(&lease, &config, &[below.blob, above.blob], &[]).unwrap()
}

const TREE: &str = "\
.singularity.d dir 755
.singularity.d/actions dir 755
.singularity.d/actions/run 755 #!/bin/sh

.singularity.d/labels.json 755 {\"a\":\"b\"}
.singularity.d/runscript 755 #!/bin/sh
echo hi

bin dir 755
bin/same 4755 tool
bin/tool 4755 tool
etc dir 755
etc/words 644 above
linked -> etc
new dir 1777
noted 644 
owned 600 mine
run -> .singularity.d/actions/run
";

fn import(store: &Store, path: &Path) -> Result<Image, isles_store::Error> {
    let sif = Sif::open(path).unwrap();
    let lease = store.lease()?;
    store.import_sif(&lease, SifSource::Sif(&sif), &["back:1".parse().unwrap()], &Quiet)
}

fn tree_of(store: &Store, image: &Image) -> String {
    let layers = store.layers_of(image).unwrap();
    assert_eq!(layers.len(), 1);
    tree(&layers[0])
}

#[test]
fn an_image_goes_there_and_back() {
    let home = Home::new();
    let image = app(&home);
    let path = home.dir.path().join("app.sif");
    let added = added();
    home.store.export_sif(&image, &new(&added), &path).unwrap();

    let sif = Sif::open(&path).unwrap();
    let kinds: Vec<_> = sif.objects().iter().map(|o| (o.kind, o.name.as_str())).collect();
    assert_eq!(
        kinds,
        [
            (Kind::Definition, ""),
            (Kind::Json, "inspect-metadata.json"),
            (Kind::Json, "oci-config.json"),
            (Kind::Partition, "")
        ]
    );
    assert_eq!(sif.header().arch.name(), Platform::host().architecture);
    let inspection = sif.read(sif.json("inspect-metadata.json").unwrap(), 1 << 20).unwrap();
    assert_eq!(
        String::from_utf8(inspection).unwrap(),
        r##"{"data":{"attributes":{"labels":{"a":"b"},"runscript":"#!/bin/sh\necho hi"}},"type":"container"}"##
    );

    let again = home.dir.path().join("again.sif");
    home.store.export_sif(&image, &NewSifImage { squashfs: packing(2), ..new(&added) }, &again).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap(), "the same image gives the same file");

    let back = import(&home.store, &path).unwrap();
    assert_eq!(tree_of(&home.store, &back), TREE);
    assert_eq!(back.config.config, image.config.config, "it starts as before");
    assert_eq!(home.store.resolve("back:1", None).unwrap().id(), back.id());
    assert_eq!(import(&home.store, &again).unwrap().id(), back.id(), "and gives the same image");
    let view = isles_store::Merged::open(&home.store.layers_of(&back).unwrap(), ownership()).unwrap();
    let owner = |path: &str| view.lstat(Path::new(path)).map(|stat| (stat.uid, stat.gid)).unwrap();
    assert_eq!((owner("owned"), owner("bin/tool")), ((7, 8), (0, 0)));
    let links = view.lstat(Path::new("bin/tool")).unwrap().links;
    assert_eq!(links, 2, "names of one file stay together");
    if is_root() {
        assert_eq!(view.xattrs(Path::new("noted")).unwrap(), [("user.note".into(), b"hm".to_vec())]);
    }
}

#[test]
fn a_file_with_sections_starts_by_its_runscript() {
    let home = Home::new();
    let image = app(&home);
    let path = home.dir.path().join("app.sif");
    let definition = "bootstrap: docker\nfrom: app:1\n\n%runscript\n  echo hi\n";
    let added = added();
    home.store.export_sif(&image, &NewSifImage { definition, ..new(&added) }, &path).unwrap();
    let config = import(&home.store, &path).unwrap().config.config;
    assert_eq!(config.entrypoint, Some(vec!["/.singularity.d/actions/run".to_owned()]));
    assert_eq!((config.cmd, config.env), (None, vec!["A=b".to_owned()]));
    assert_eq!(config.labels["a"], "b");
}

/// A few files in memory.
struct Files(Vec<(Node, Vec<u8>)>);

impl Tree for Files {
    fn root(&mut self) -> std::io::Result<Node> {
        Ok(Node::new("", FileType::Dir, 0o755))
    }

    fn children(&mut self, path: &[u8]) -> std::io::Result<Vec<Node>> {
        Ok(if path.is_empty() { self.0.iter().map(|(node, _)| node.clone()).collect() } else { Vec::new() })
    }

    fn open(&mut self, path: &[u8]) -> std::io::Result<Box<dyn std::io::Read + '_>> {
        let found = self.0.iter().find(|(node, _)| node.name == path).map(|(_, data)| data.as_slice());
        Ok(Box::new(found.unwrap_or_default()))
    }
}

fn file(name: &str, data: &str) -> (Node, Vec<u8>) {
    let node = Node { size: data.len() as u64, ..Node::new(name, FileType::File, 0o644) };
    (node, data.as_bytes().to_vec())
}

fn squashfs(files: Vec<(Node, Vec<u8>)>) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    isles_squashfs::write(&mut Files(files), &mut out, &Options::default()).unwrap();
    out.into_inner()
}

fn sif(folder: &Path, objects: Vec<NewObject<'_>>) -> PathBuf {
    let path = folder.join("x.sif");
    NewSif::new(objects).create(&path).unwrap();
    path
}

fn primary(file_system: FileSystem, data: &[u8]) -> NewObject<'_> {
    NewObject::partition(file_system, Role::Primary, Arch::from_name("amd64").unwrap(), data)
}

#[test]
fn a_bare_root_file_system_is_an_image_too() {
    let home = Home::new();
    let bytes = squashfs(vec![file("a", "text")]);
    let path = home.dir.path().join("x.squashfs");
    fs::write(&path, &bytes).unwrap();
    let source = File::open(&path).unwrap();
    let lease = home.lease();
    let image =
        home.store.import_sif(&lease, SifSource::Squashfs(&source, "x.squashfs"), &[], &Quiet).unwrap();
    assert_eq!(tree_of(&home.store, &image), "a 644 text\n");
    assert_eq!(image.config.config, ContainerConfig::default());
    let path = sif(home.dir.path(), vec![primary(FileSystem::Squashfs, &bytes)]);
    assert_eq!(tree_of(&home.store, &import(&home.store, &path).unwrap()), "a 644 text\n");
}

#[test]
fn what_cannot_become_an_image_is_refused() {
    let home = Home::new();
    let cases: [(Vec<NewObject<'_>>, &str); 6] = [
        (Vec::new(), "it has no partition with a root file system"),
        (vec![primary(FileSystem::Ext3, b"x")], "the ext image"),
        (vec![primary(FileSystem::EncryptedSquashfs, b"x")], "an encrypted partition"),
        (vec![primary(FileSystem::Squashfs, b"x")], "not a squashfs image"),
        (vec![NewObject::new(Kind::OciRootIndex, &b"{}"[..])], "is not valid"),
        (
            vec![NewObject::new(Kind::OciRootIndex, &br#"{"schemaVersion":2,"manifests":[]}"#[..])],
            "its index names 0 images",
        ),
    ];
    for (objects, why) in cases {
        let path = sif(home.dir.path(), objects);
        let error = import(&home.store, &path).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("x.sif"), "{error}");
    }
    let bytes = squashfs(vec![file(".wh.passwd", "")]);
    let path = sif(home.dir.path(), vec![primary(FileSystem::Squashfs, &bytes)]);
    let error = import(&home.store, &path).unwrap_err().to_string();
    assert!(error.contains("'.wh.passwd' would hide a file"), "{error}");
    // A configuration that is none does not stop anybody.
    let bytes = squashfs(vec![file("a", "text")]);
    let odd = NewObject::json(OCI_CONFIG, &b"[1]"[..]);
    let path = sif(home.dir.path(), vec![odd, primary(FileSystem::Squashfs, &bytes)]);
    import(&home.store, &path).unwrap();
}

/// As SingularityCE writes it, with one layer in either form.
#[test]
fn oci_images_in_a_file_are_images() {
    let home = Home::new();
    let below = gzip(&Tar::new().dir("d/", 0o755).file("d/a", "a").file("gone", "g").done());
    let hidden = Node { device: (0, 0), ..Node::new("gone", FileType::CharDevice, 0) };
    let above = squashfs(vec![file("b", "b"), (hidden, Vec::new())]);
    let mut config = isles_spec::image::ImageConfig::empty(&Platform::host());
    let diff_id = sha256(&Tar::new().dir("d/", 0o755).file("d/a", "a").file("gone", "g").done());
    config.rootfs.diff_ids = vec![diff_id, sha256(&above)];
    config.config.cmd = Some(vec!["b".into()]);
    let config = serde_json::to_vec(&config).unwrap();
    let described = |kind: &str, bytes: &[u8]| Descriptor::new(kind, sha256(bytes), bytes.len() as u64);
    let manifest = serde_json::to_vec(&Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.into()),
        artifact_type: None,
        config: described(media_type::OCI_CONFIG, &config),
        layers: vec![
            described(media_type::OCI_LAYER_GZIP, &below),
            described("application/vnd.sylabs.image.layer.v1.squashfs", &above),
        ],
        subject: None,
        annotations: Default::default(),
    })
    .unwrap();
    let index = serde_json::to_vec(&Index {
        schema_version: 2,
        media_type: None,
        artifact_type: None,
        manifests: vec![described(media_type::OCI_MANIFEST, &manifest)],
        subject: None,
        annotations: Default::default(),
    })
    .unwrap();
    let blobs = [&manifest, &config, &below, &above];
    let objects = |skip: usize| {
        let blobs = blobs.iter().enumerate().filter(move |(n, _)| *n != skip);
        let mut all: Vec<_> = blobs.map(|(_, blob)| NewObject::new(Kind::OciBlob, blob.as_slice())).collect();
        all.push(NewObject::new(Kind::OciRootIndex, index.as_slice()));
        all
    };
    let image = import(&home.store, &sif(home.dir.path(), objects(9))).unwrap();
    assert_eq!(image.config.config.cmd, Some(vec!["b".to_owned()]));
    let view = isles_store::Merged::open(&home.store.layers_of(&image).unwrap(), ownership()).unwrap();
    let names: Vec<_> = view.read_dir(Path::new("/")).unwrap().into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["b", "d"], "the upper layer hides a file of the lower one");
    for skip in 0..4 {
        let other = Home::new();
        let error = import(&other.store, &sif(home.dir.path(), objects(skip))).unwrap_err().to_string();
        assert!(error.contains("is not in it"), "{error}");
    }
    // A blob that is not what its digest says.
    let path = sif(home.dir.path(), objects(9));
    let mut bytes = fs::read(&path).unwrap();
    let at = Sif::open(&path).unwrap().objects()[3].offset as usize;
    bytes[at + 100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let other = Home::new();
    let error = import(&other.store, &path).unwrap_err().to_string();
    assert!(error.contains("has digest"), "{error}");
}

#[test]
fn an_image_goes_there_and_back_as_an_oci_image() {
    let home = Home::new();
    let image = app(&home);
    let path = home.dir.path().join("app.sif");
    home.store.export_oci_sif(&image, &new(&[]), &path).unwrap();
    let again = home.dir.path().join("again.sif");
    home.store.export_oci_sif(&image, &NewSifImage { squashfs: packing(2), ..new(&[]) }, &again).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap(), "the same image gives the same file");
    let sif = Sif::open(&path).unwrap();
    let kinds: Vec<_> = sif.objects().iter().map(|o| o.kind).collect();
    assert_eq!(kinds, [Kind::OciBlob, Kind::OciBlob, Kind::OciBlob, Kind::OciRootIndex]);
    let back = import(&home.store, &path).unwrap();
    assert_eq!(back.config.config, image.config.config);
    let own: String =
        TREE.lines().filter(|line| !line.contains("singularity.d") && !line.starts_with("new ")).fold(
            String::new(),
            |text, line| {
                if line.is_empty() || line == "echo hi" { text } else { text + line + "\n" }
            },
        );
    assert_eq!(tree_of(&home.store, &back), own);
}
