//! Images whose root file system is encrypted: made, run, and refused; by us and by the real Apptainer.
//!
//! The real one takes the device mapper to read what root made (LUKS2), so it is asked about the form of ordinary users
//! only. That cryptsetup opens ours of LUKS2, and we what it makes, is shown in `crates/crypt`.
#![allow(clippy::unwrap_used)]

mod desk;
mod peers;

use std::fs;

use desk::{Desk, both, installed};
use peers::Peers;

/// A root file system of one busybox, RSA keys, and what is encrypted with each.
fn prepare(desk: &Desk) -> bool {
    if !installed("/bin/busybox") {
        return false;
    }
    let tree = "mkdir -p tree/bin tree/etc tree/tmp tree/dev tree/proc tree/sys; cp /bin/busybox tree/bin; \
                for a in sh cat echo id; do ln -s busybox tree/bin/$a; done; \
                echo root:x:0:0::/root:/bin/sh > tree/etc/passwd; echo root:x:0: > tree/etc/group";
    desk.script(tree).fine();
    keys(desk);
    desk.file("tool.def", "Bootstrap: localimage\nFrom: tree\n%runscript\n  echo \"runs $@\"\n");
    true
}

fn keys(desk: &Desk) {
    let keys = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../sif/tests/keys");
    for name in ["rsa.pem", "rsa-pkcs1.pem", "rsa-public.pem", "rsa-public-pkcs1.pem"] {
        desk.file(name, fs::read(keys.join(name)).unwrap());
    }
    desk.file("empty", "");
}

const BY_PASSPHRASE: &str = "APPTAINER_ENCRYPTION_PASSPHRASE='a secret'";

#[test]
fn images_are_encrypted_and_run() {
    both(|desk| {
        if !desk.opens_fuse() || !prepare(desk) {
            return;
        }
        desk.script(&format!("{BY_PASSPHRASE} apptainer -q build -e pass.sif tool.def")).fine();
        desk.script("apptainer -q build --pem-path rsa-public.pem key.sif tool.def").fine();
        desk.script("echo typed | apptainer -q build --passphrase typed.sif tool.def").fine();
        let kind =
            if desk.ordinary { "FS (Gocryptfs squashfs/*System/" } else { "FS (Encrypted squashfs/*System/" };
        for (name, messages) in [("pass.sif", 0), ("key.sif", 1), ("typed.sif", 0)] {
            let list = desk.run(&["apptainer", "sif", "list", name]).fine();
            assert!(list.contains(kind), "{list}");
            assert_eq!(list.matches("|4       |").count(), messages, "{list}");
            assert_eq!(list.matches("Cryptographic Message (PEM/RSA-OAEP)").count(), messages, "{list}");
            let bytes = fs::read(desk.path("home").join(name)).unwrap();
            assert!(!bytes.windows(8).any(|part| part == b"BusyBox "), "{name} lies open");
        }
        for (line, out) in [
            (format!("{BY_PASSPHRASE} apptainer exec pass.sif echo a"), "a\n"),
            (
                "SINGULARITY_ENCRYPTION_PASSPHRASE='a secret' singularity -q exec pass.sif echo b".to_owned(),
                "b\n",
            ),
            (format!("{BY_PASSPHRASE} apptainer run pass.sif x y"), "runs x y\n"),
            (format!("echo echo c | {BY_PASSPHRASE} apptainer shell pass.sif"), "c\n"),
            (
                format!(
                    "{BY_PASSPHRASE} apptainer exec -C pass.sif sh -c 'echo $APPTAINER_ENCRYPTION_PASSPHRASE'"
                ),
                "\n",
            ),
            (
                "echo 'a secret' | apptainer exec --passphrase pass.sif echo d".to_owned(),
                "Enter encryption passphrase: d\n",
            ),
            (
                "echo typed | apptainer exec --passphrase typed.sif echo e".to_owned(),
                "Enter encryption passphrase: e\n",
            ),
            ("apptainer run --pem-path rsa-pkcs1.pem key.sif f".to_owned(), "runs f\n"),
            ("APPTAINER_ENCRYPTION_PEM_PATH=rsa.pem apptainer exec key.sif echo g".to_owned(), "g\n"),
            (
                "APPTAINER_ENCRYPTION_PEM_DATA=\"$(cat rsa.pem)\" apptainer exec key.sif echo h".to_owned(),
                "h\n",
            ),
            // A flag wins over variables, and a key over a passphrase.
            (format!("{BY_PASSPHRASE} apptainer exec --pem-path rsa.pem key.sif echo i"), "i\n"),
            (
                format!(
                    "{BY_PASSPHRASE} APPTAINER_ENCRYPTION_PEM_PATH=rsa.pem apptainer exec key.sif echo j"
                ),
                "j\n",
            ),
            (
                format!(
                    "{BY_PASSPHRASE} apptainer exec --writable-tmpfs pass.sif sh -c 'echo k > /x; cat /x'"
                ),
                "k\n",
            ),
            (
                format!(
                    "{BY_PASSPHRASE} apptainer -q instance start pass.sif one; apptainer exec instance://one echo l; \
                     apptainer -q instance stop one"
                ),
                "l\n",
            ),
            (format!("{BY_PASSPHRASE} isles run --rm pass.sif echo m"), "m\n"),
            (
                "APPTAINER_ENCRYPTION_PEM_PATH=rsa.pem isles run --rm --read-only key.sif echo n".to_owned(),
                "n\n",
            ),
            ("apptainer inspect -r pass.sif".to_owned(), "#!/bin/sh\n  echo \"runs $@\"\n"),
        ] {
            assert_eq!(desk.script(&line).fine(), out, "{line}");
        }
    });
}

#[test]
fn what_is_encrypted_is_built_on() {
    both(|desk| {
        if !desk.opens_fuse() || !prepare(desk) {
            return;
        }
        desk.script(&format!("{BY_PASSPHRASE} apptainer -q build -e pass.sif tool.def")).fine();
        desk.script("apptainer -q build --pem-path rsa-public.pem key.sif tool.def").fine();
        for name in ["pass", "key"] {
            let text = format!("Bootstrap: localimage\nFrom: {name}.sif\n%runscript\n  echo \"more $@\"\n");
            desk.file(&format!("{name}.def"), text);
        }
        let by_key = "APPTAINER_ENCRYPTION_PEM_PATH=rsa.pem";
        for (line, out) in [
            // The result is open, where nobody asks for another.
            (
                format!("{BY_PASSPHRASE} apptainer -q build a.sif pass.def && apptainer run a.sif x"),
                "more x\n",
            ),
            (format!("{by_key} apptainer -q build b.sif key.def && apptainer run b.sif x"), "more x\n"),
            (
                format!(
                    "{BY_PASSPHRASE} isles build -q -o type=sif,dest=c.sif -f pass.def . >&2 && apptainer run c.sif x"
                ),
                "more x\n",
            ),
            (
                format!("{BY_PASSPHRASE} apptainer -q build --sandbox d pass.sif && apptainer exec d echo y"),
                "y\n",
            ),
            // What opens the base closes what is built on it, and is asked for once.
            (
                format!(
                    "echo 'a secret' | apptainer -q build --passphrase e.sif pass.def >&2 && {BY_PASSPHRASE} apptainer run e.sif z"
                ),
                "more z\n",
            ),
        ] {
            let said = desk.script(&line);
            assert_eq!(said.out, out, "{line}: {said:?}");
        }
        assert!(desk.run(&["apptainer", "exec", "e.sif", "true"]).err.contains("is encrypted"));
        // Also when it was opened before.
        for (line, word) in [
            ("apptainer build --force f.sif pass.def".to_owned(), "is encrypted"),
            ("APPTAINER_ENCRYPTION_PASSPHRASE=wrong apptainer build f.sif pass.def".to_owned(), "passphrase"),
            (format!("{BY_PASSPHRASE} apptainer build f.sif key.def"), "passphrase"),
            ("isles build -q -f pass.def .".to_owned(), "is encrypted"),
        ] {
            let said = desk.script(&line);
            assert!(said.code != Some(0) && said.err.contains(word), "{line}: {said:?}");
        }
    });
}

#[test]
fn what_opens_nothing_is_said() {
    both(|desk| {
        if !desk.opens_fuse() || !prepare(desk) {
            return;
        }
        desk.script(&format!("{BY_PASSPHRASE} apptainer -q build -e pass.sif tool.def")).fine();
        desk.script("apptainer -q build --pem-path rsa-public.pem key.sif tool.def").fine();
        for (line, words) in [
            ("apptainer exec pass.sif id", "required option --passphrase or --pem-path missing"),
            (
                "APPTAINER_ENCRYPTION_PASSPHRASE=x apptainer exec pass.sif id",
                "no key is there for this passphrase",
            ),
            ("apptainer exec --passphrase pass.sif id < empty", "empty passphrase"),
            (
                "apptainer exec --pem-path rsa.pem pass.sif id",
                "no key of its root file system for an RSA key",
            ),
            ("apptainer exec --pem-path rsa-public.pem key.sif id", "it is a public key"),
            ("apptainer exec --pem-path none.pem key.sif id", "PEM file none.pem does not exist"),
            ("apptainer exec --pem-path tool.def key.sif id", "none in PEM form"),
            (
                "APPTAINER_ENCRYPTION_PASSPHRASE=x apptainer exec key.sif id",
                "no key is there for this passphrase",
            ),
            ("apptainer build -F -e x.sif tool.def", "Missing encryption info"),
            ("apptainer build -F --pem-path rsa.pem x.sif tool.def", "it is a private key"),
            ("apptainer build -F --sandbox --pem-path rsa-public.pem x tool.def", "--encrypt with --sandbox"),
            ("apptainer build -F x.sif pass.sif", "is encrypted: no passphrase and no key is given"),
            ("isles run pass.sif id", "no passphrase or key for it is given"),
            (
                "APPTAINER_ENCRYPTION_PASSPHRASE=x isles run pass.sif id",
                "no key is there for this passphrase",
            ),
            (
                "APPTAINER_ENCRYPTION_PASSPHRASE='a secret' isles run --image-mount kernel pass.sif id",
                "it is encrypted",
            ),
        ] {
            let said = desk.script(line);
            assert!(said.code != Some(0) && said.err.contains(words), "{line}: {said:?}");
        }
        let said = desk.script(&format!("{BY_PASSPHRASE} apptainer build -F x.sif tool.def"));
        assert!(said.err.contains("NOT encrypting container"), "{said:?}");
        desk.script("apptainer exec x.sif id").fine();
    });
}

#[test]
fn an_ordinary_user_runs_what_root_made() {
    if !rustix::process::geteuid().is_root() {
        println!("skip: not root");
        return;
    }
    let (root, user) = (Desk::new(false), Desk::new(true));
    if !prepare(&root) {
        return;
    }
    root.script("apptainer -q build --pem-path rsa-public.pem key.sif tool.def").fine();
    keys(&user);
    user.file("key.sif", fs::read(root.path("home/key.sif")).unwrap());
    let said = user.script("apptainer run --pem-path rsa.pem key.sif by root");
    assert_eq!(said.fine(), "runs by root\n");
}

#[test]
fn the_real_apptainer_reads_ours_and_we_its() {
    let Some(peers) = Peers::new() else { return };
    if !installed("gocryptfs") {
        return;
    }
    keys(&peers.0);
    let build = [
        ("pass", format!("{BY_PASSPHRASE} apptainer build -e")),
        ("key", "apptainer build --pem-path rsa-public-pkcs1.pem".to_owned()),
    ];
    for (name, line) in &build {
        peers.real(&format!("{line} real-{name}.sif x.def")).fine();
        peers.ours(&format!("{line} ours-{name}.sif x.def")).fine();
    }
    for whose in ["real", "ours"] {
        for (name, with) in [
            ("pass", format!("{BY_PASSPHRASE} apptainer")),
            ("key", "APPTAINER_ENCRYPTION_PEM_PATH=rsa-pkcs1.pem apptainer".to_owned()),
        ] {
            let line = format!("{with} exec {whose}-{name}.sif sh -c 'cat /opt/note; echo $FROM_ENV'");
            assert_eq!(peers.real(&line).fine(), "note\na b\n", "the real one: {line}");
            assert_eq!(peers.ours(&line).fine(), "note\na b\n", "ours: {line}");
        }
    }
    for line in ["apptainer exec real-pass.sif true", "apptainer exec ours-key.sif true"] {
        assert_eq!((peers.real(line).code, peers.ours(line).code), (Some(255), Some(255)), "{line}");
    }
}
