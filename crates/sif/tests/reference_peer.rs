//! The format's own library verifies what we sign, and we what it signs. It is Debian's golang-github-sylabs-sif-dev;
//! without it and a Go compiler this test says so and passes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use isles_openpgp::Certificate;
use isles_sif::{
    Arch, Deletion, Editor, FileSystem, Kind, Kinds, NewObject, NewSif, Role, Selection, Sif, Signer, Trust,
    sign, verify,
};

const SOURCES: &str = "/usr/share/gocode";

struct Reference {
    folder: tempfile::TempDir,
}

impl Reference {
    fn build() -> Option<Reference> {
        let library = Path::new(SOURCES).join("src/github.com/sylabs/sif");
        let versions =
            fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path().join("bin/go"));
        let go = std::iter::once(PathBuf::from("/usr/bin/go")).chain(versions).find(|go| go.is_file());
        let (Some(go), true) = (go, library.is_dir()) else {
            println!("skip: no golang-github-sylabs-sif-dev with a compiler");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        // Debian has the library without its version in the path.
        let own = folder.path().join("go/src/github.com/sylabs/sif");
        fs::create_dir_all(&own).unwrap();
        std::os::unix::fs::symlink(library, own.join("v2")).unwrap();
        let built = Command::new(go)
            .args(["build", "-o"])
            .arg(folder.path().join("reference"))
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reference/main.go"))
            .env("GO111MODULE", "off")
            .env("GOFLAGS", "")
            .env("GOPATH", format!("{}:{SOURCES}", folder.path().join("go").display()))
            .env("GOCACHE", folder.path().join("cache"))
            .output()
            .unwrap();
        if !built.status.success() {
            println!("skip: the reference does not build: {}", String::from_utf8_lossy(&built.stderr));
            return None;
        }
        Some(Reference { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, what: &str, file: &Path, keys: &Path) -> Output {
        Command::new(self.path("reference")).arg(what).args([file, keys]).output().unwrap()
    }
}

#[test]
fn each_verifies_what_the_other_signs() {
    let Some(reference) = Reference::build() else { return };
    let rsa =
        fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../openpgp/tests/data/rsa2048-secret.asc")).unwrap();
    let rsa = Certificate::read(&rsa).unwrap().remove(0).relock(Some("secret"), None).unwrap();
    let ed25519 = Certificate::generate("Ada <ada@example.org>", None, 1_600_000_000).unwrap();
    for certificate in [ed25519, rsa] {
        let (public, secret) = (reference.path("public"), reference.path("secret"));
        fs::write(&public, certificate.to_public().to_bytes()).unwrap();
        fs::write(&secret, certificate.to_bytes()).unwrap();
        let path = reference.path("image.sif");
        let amd64 = Arch::from_name("amd64").unwrap();
        NewSif::new(vec![
            NewObject::new(Kind::Definition, &b"bootstrap: scratch\n"[..]),
            NewObject::partition(FileSystem::Squashfs, Role::Primary, amd64, &b"root"[..]),
            NewObject { group: 2, ..NewObject::json("more", &b"{}"[..]) },
        ])
        .create(&path)
        .unwrap();
        let key = certificate.open(None).unwrap();
        let mut editor = Editor::open(&path).unwrap();
        let ours = sign(
            &mut editor,
            &Signer::OpenPgp { key: &key, now: certificate.created() + 1 },
            &Selection::default(),
        );
        let ours = ours.unwrap();
        let told = reference.run("verify", &path, &public);
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.status.success(), "{text}");
        assert_eq!(text, "signature 4: 2 verified, <nil>\nsignature 5: 1 verified, <nil>\n");

        for id in ours {
            editor.delete(id, Deletion { zero: true, compact: true }).unwrap();
        }
        drop(editor);
        assert!(reference.run("sign", &path, &secret).status.success());
        let keyring = certificate.keys().unwrap();
        let trust = Trust { keyring: Some(&keyring), keys: &[], now: u64::MAX };
        let report = verify(&Sif::open(&path).unwrap(), &Selection::default(), Kinds::Usual, &trust).unwrap();
        assert_eq!((report.problem, report.checked.len()), (None, 2));

        // Both find the same byte.
        let mut bytes = fs::read(&path).unwrap();
        bytes[32_180] ^= 1;
        fs::write(&path, bytes).unwrap();
        let told = reference.run("verify", &path, &public);
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        let report = verify(&Sif::open(&path).unwrap(), &Selection::default(), Kinds::Usual, &trust).unwrap();
        let problem = report.problem.unwrap().to_string();
        assert!(!told.status.success() && text.contains(&problem), "{problem}: {text}");
    }
}
