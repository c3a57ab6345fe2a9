//! The real Apptainer beside ours: each reads and verifies the files of the other, and both make the same images of one
//! definition file.
#![allow(clippy::unwrap_used)]

mod desk;
mod peers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use desk::installed;
use peers::{Peers, kinds};
use serde_json::Value;

/// What both say about a file, of whichever make.
const LOOKS: [&str; 26] = [
    "sif header",
    "sif list",
    "sif info 1",
    "sif info 2",
    "sif info 3",
    "sif dump 1",
    "sif dump 2",
    "inspect",
    "inspect --json",
    "inspect --all",
    "inspect -d",
    "inspect -e",
    "inspect -r",
    "inspect -t",
    "inspect -H",
    "inspect -s",
    "inspect -l -r",
    "inspect -l --json",
    "inspect --list-apps",
    "inspect --list-apps --json",
    "inspect --app foo",
    "inspect --app foo -r -e -H",
    "inspect --app foo -t --json",
    "run-help",
    "run-help --app foo",
    "test",
];

#[test]
fn each_reads_the_files_of_the_other() {
    let Some(peers) = Peers::with_images() else { return };
    // Files that were changed, by one and by the other.
    let mut files = vec!["real.sif".to_owned(), "ours.sif".to_owned()];
    for (maker, name) in [("real", "of-real.sif"), ("ours", "of-ours.sif")] {
        let by = |line: &str| if maker == "real" { peers.real(line) } else { peers.ours(line) };
        let fs = if maker == "real" { 3 } else { 4 };
        by(&format!("cp {maker}.sif {name}")).fine();
        by(&format!("apptainer sif dump {fs} {name} > {name}.squashfs")).fine();
        by(&format!("apptainer sif add --datatype 7 --filename note {name} note")).fine();
        by(&format!(
            "apptainer sif add --datatype 4 --partfs 1 --parttype 1 --partarch 2 {name} {name}.squashfs"
        ))
        .fine();
        by(&format!("apptainer sif setprim {} {name}", fs + 2)).fine();
        by(&format!("apptainer sif del {} {name}", fs + 1)).fine();
        let data = format!(
            "cp {name} d.sif; apptainer sif add --datatype 4 --partfs 1 --parttype 3 --partarch 2 d.sif {name}.squashfs"
        );
        by(&data).fine();
        let (real, ours) = peers.both(&format!("apptainer sif setprim {} d.sif", fs + 1));
        for said in [real, ours] {
            assert!(said.code == Some(1) && said.err.contains("not a system partition"), "{said:?}");
        }
        files.push(name.to_owned());
        // A new file of nothing.
        by(&format!("apptainer sif new new-{name} && apptainer sif add --datatype 7 new-{name} note")).fine();
        for look in ["sif list", "sif header", "sif info 1", "sif dump 1"] {
            let (real, ours) = peers.both(&format!("apptainer {look} new-{name}"));
            assert_eq!(
                (real.code, &real.out),
                (ours.code, &ours.out),
                "{look} new-{name}: {real:?} {ours:?}"
            );
        }
    }
    for file in &files {
        for look in LOOKS {
            let (real, ours) = peers.both(&format!("apptainer {look} {file}"));
            assert_eq!((real.code, &real.out), (Some(0), &ours.out), "{look} {file}: {real:?} {ours:?}");
            assert_eq!(kinds(&real.err), kinds(&ours.err), "{look} {file}: {real:?} {ours:?}");
        }
        for action in ["run", "exec", "test"] {
            let (real, ours) = peers.both(&format!("apptainer {action} {file} cat /opt/note"));
            assert_eq!(real.fine(), ours.fine(), "{action} {file}");
        }
    }
}

#[test]
fn each_verifies_what_the_other_signed() {
    let Some(peers) = Peers::with_images() else { return };
    if !installed("openssl") {
        return;
    }
    peers
        .0
        .script(
            "openssl ecparam -name prime256v1 -genkey -noout -out ec.pem; openssl genpkey -algorithm ed25519 -out ed.pem\n\
             openssl genrsa -out rsa.pem 2048; for k in ec ed rsa; do openssl pkey -in $k.pem -pubout -out $k.pub; done",
        )
        .fine();
    // Both have the same keyring: a key that the one made signs for the other.
    let pair =
        "apptainer key newpair --name NAME --email a@example.org --comment '' --password '' --push=false";
    peers.real(&pair.replace("NAME", "Real")).fine();
    let list = peers.both("apptainer key list");
    assert_eq!(list.0.fine(), list.1.fine());
    let tampered = |name: &str| {
        let mut bytes = peers.read(name);
        let at = bytes.windows(4).position(|w| w == b"hsqs").unwrap();
        bytes[at + 300] ^= 1;
        peers.0.file("tampered.sif", bytes);
    };
    for (flags, verify) in [
        ("", ""),
        ("--key ec.pem", "--key ec.pub"),
        ("--key ed.pem", "--key ed.pub"),
        ("--key rsa.pem", "--key rsa.pub"),
    ] {
        for signer in ["real", "ours"] {
            let line = format!("cp ours.sif s.sif && apptainer sign {flags} s.sif");
            let said = if signer == "real" { peers.real(&line) } else { peers.ours(&line) };
            said.fine();
            for flags in ["", "--all ", "--json "] {
                let (real, ours) = peers.both(&format!("apptainer verify {flags}{verify} s.sif"));
                assert_eq!(kinds(&real.err), kinds(&ours.err), "{signer} {flags}{verify}: {real:?} {ours:?}");
                let (real, ours) = (real.fine(), ours.fine());
                if flags == "--json " {
                    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
                    assert_eq!(json(&real), json(&ours), "{signer} {verify}");
                } else {
                    assert_eq!(real, ours, "{signer} {flags}{verify}");
                }
            }
            let (real, ours) = peers.both("apptainer sif list s.sif");
            assert_eq!(real.fine(), ours.fine());
            tampered("s.sif");
            let (real, ours) = peers.both(&format!("apptainer verify {verify} tampered.sif"));
            assert_eq!((real.code, ours.code), (Some(255), Some(255)), "{signer}: {real:?} {ours:?}");
            if !verify.is_empty() {
                let other = if verify.contains("ec") { "rsa.pub" } else { "ec.pub" };
                let (real, ours) = peers.both(&format!("apptainer verify --key {other} s.sif"));
                assert_eq!((real.code, ours.code), (Some(255), Some(255)), "{signer}: {real:?} {ours:?}");
            }
        }
    }
    // A key of ours signs for the real one.
    peers.0.script("rm -r .apptainer/keys").fine();
    peers.ours(&pair.replace("NAME", "Ours")).fine();
    // The real one counts a byte of the key's form.
    let (real, ours) = peers.both("apptainer key list");
    assert_eq!(real.fine().replace("(in bits):  263", "(in bits):  256"), ours.fine());
    peers.real("cp real.sif s.sif && apptainer sign s.sif").fine();
    let (real, ours) = peers.both("apptainer verify s.sif");
    assert_eq!(real.fine(), ours.fine());
    // And an RSA key, as the real one makes them.
    peers.0.script("rm -r .apptainer/keys").fine();
    peers.ours(&format!("{} --bit-length 2048", pair.replace("NAME", "Ours"))).fine();
    let (real, ours) = peers.both("apptainer key list");
    assert_eq!(real.fine(), ours.fine());
    for signer in ["real", "ours"] {
        let line = "cp real.sif s.sif && apptainer sign s.sif";
        if signer == "real" { peers.real(line) } else { peers.ours(line) }.fine();
        let (real, ours) = peers.both("apptainer verify s.sif");
        assert_eq!(real.fine(), ours.fine(), "{signer}");
    }
}

/// Paths below a folder with their modes, and where links point.
fn walk(root: &Path, at: &Path, out: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        let shown = path.strip_prefix(root).unwrap().display().to_string();
        let what = match meta.is_symlink() {
            true => format!("-> {}", fs::read_link(&path).unwrap().display()),
            false => format!("{:o}", meta.permissions().mode()),
        };
        out.insert(shown, what);
        if meta.is_dir() {
            walk(root, &path, out);
        }
    }
}

/// Without blank lines and comments, which mean nothing in scripts.
fn lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    text.lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty() && (!line.starts_with('#') || line.starts_with("#!")))
        .map(str::to_owned)
        .collect()
}

#[test]
fn both_make_the_same_image_of_a_definition_file() {
    let Some(peers) = Peers::new() else { return };
    peers.0.run(&["mkdir", "real", "ours"]).fine();
    let real = peers.real("apptainer build --sandbox real/img x.def");
    let ours = peers.ours("apptainer build --sandbox ours/img x.def");
    for said in [&real, &ours] {
        assert!(said.err.contains("+ echo 'export FROM_POST=post'"), "{said:?}");
    }
    let tree = |who: &str| {
        let root = peers.0.path("home").join(who).join("img");
        let mut out = BTreeMap::new();
        walk(&root, &root, &mut out);
        out
    };
    assert_eq!(tree("real"), tree("ours"));

    let own = |path: &str| {
        // What comes of these is looked at below: the texts are each program's own.
        path.starts_with(".singularity.d/actions/")
            || path.ends_with("/01-base.sh")
            || path.starts_with(".singularity.d/env/") && !path.ends_with("-environment.sh")
            || path.ends_with("labels.json")
    };
    for (path, what) in tree("real") {
        let of_build = path.starts_with(".singularity.d/") || path.starts_with("scif/");
        if of_build && what.starts_with("100") && !own(&path) {
            let (real, ours) =
                (peers.read(&format!("real/img/{path}")), peers.read(&format!("ours/img/{path}")));
            assert_eq!(lines(&real), lines(&ours), "{path}");
        }
    }
    for path in [".singularity.d/labels.json", "scif/apps/foo/scif/labels.json"] {
        let labels = |who: &str| -> BTreeMap<String, String> {
            let mut labels: BTreeMap<String, String> =
                serde_json::from_slice(&peers.read(&format!("{who}/img/{path}"))).unwrap();
            labels.remove("org.label-schema.build-date");
            // Which program it was.
            for program in ["apptainer", "isles"] {
                labels.remove(&format!("org.label-schema.usage.{program}.version"));
            }
            labels
        };
        let keys = |who: &str| labels(who).into_keys().collect::<BTreeSet<_>>();
        assert_eq!(keys("real"), keys("ours"), "{path}");
        assert_eq!(labels("real"), labels("ours"), "{path}");
    }

    // What comes of it: the same with each program, in each image.
    for line in [
        "apptainer exec -e WHO/img sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'",
        "apptainer exec -e --app foo WHO/img sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort; pwd'",
        "apptainer run WHO/img a 'b c'",
        "apptainer run --app foo WHO/img a",
        "apptainer test WHO/img a",
        "apptainer test --app foo WHO/img",
        "apptainer run-help WHO/img",
        "apptainer inspect -r -e -t -H -s -d WHO/img",
        "cd WHO && apptainer exec -w img sh -c 'for a in exec run shell test; do /.singularity.d/actions/$a echo $a; done < /dev/null'",
    ] {
        let mut outputs = Vec::new();
        for who in ["real", "ours"] {
            let (real, ours) = peers.both(&line.replace("WHO", who));
            for said in [real, ours] {
                let here = format!("/{who}/img");
                let out = said.fine().replace(&here, "/img");
                // A name that was left over where Singularity became Apptainer, and an empty folder.
                let out = out.replace(":/scif/apps/singularity:", ":").replace("::", ":");
                outputs.push(lines(out.as_bytes()));
            }
        }
        for pair in outputs.windows(2) {
            assert_eq!(pair[0], pair[1], "{line}");
        }
    }

    // Each builds from the other's, and as a SIF file.
    peers.0.file("on.def", "Bootstrap: localimage\nFrom: BASE\n%runscript\ncat /opt/note; echo $FROM_POST\n");
    for (base, name) in [("ours/img", "a"), ("real/img", "b")] {
        let line = format!("sed s,BASE,{base}, on.def > {name}.def && apptainer build NAME {name}.def");
        peers.real(&line.replace("NAME", &format!("real-{name}.sif"))).fine();
        peers.ours(&line.replace("NAME", &format!("ours-{name}.sif"))).fine();
        for maker in ["real", "ours"] {
            let (real, ours) = peers.both(&format!("apptainer run {maker}-{name}.sif"));
            assert_eq!((real.fine().as_str(), ours.fine().as_str()), ("note\npost\n", "note\npost\n"));
        }
    }
    // A file of one becomes a folder of the other, and back; what is written down about it is the same.
    for (maker, other) in [("real", "ours"), ("ours", "real")] {
        let by = |who: &str, line: &str| if who == "real" { peers.real(line) } else { peers.ours(line) };
        by(maker, &format!("mkdir b-{maker} && cd b-{maker} && cp ../{other}-a.sif a.sif && apptainer build --sandbox back a.sif")).fine();
        by(maker, &format!("cd b-{maker} && apptainer build back.sif back")).fine();
        let (real, ours) = peers.both(&format!("apptainer run b-{maker}/back.sif"));
        assert_eq!((real.fine().as_str(), ours.fine().as_str()), ("note\npost\n", "note\npost\n"));
    }
    for look in
        ["inspect -d back.sif", "inspect back.sif", "inspect -d back", "inspect back", "run-help back.sif"]
    {
        let seen = |maker: &str| {
            let (real, ours) = peers.both(&format!("cd b-{maker} && apptainer {look}"));
            let (real, ours) = (lines(real.fine().as_bytes()), lines(ours.fine().as_bytes()));
            assert_eq!(real, ours, "{look} in what {maker} made");
            let volatile = ["build-date", "apptainer.version", "isles.version"];
            real.into_iter().filter(|line| !volatile.iter().any(|v| line.contains(v))).collect::<Vec<_>>()
        };
        assert_eq!(seen("real"), seen("ours"), "{look}");
    }
}
