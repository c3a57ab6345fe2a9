//! The real Apptainer and ours at one desk, with images that each has made of the same definition file.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::desk::{Desk, REAL, Said, installed};

const APPLETS: &str = "sh true false echo cat ls id env pwd wc sort tr head sed grep test sleep mkdir touch rm cp stat \
                       hostname kill find cut chmod chown";

pub const DEFINITION: &str = r#"Bootstrap: localimage
From: tree

%files
    note /opt/note
%environment
    export FROM_ENV="a b"
    export OTHER=$FROM_ENV/c
%post
    echo "export FROM_POST=post" >> $APPTAINER_ENVIRONMENT
    echo "Posted yes" >> $APPTAINER_LABELS
%labels
    Author ada <ada@example.org>
    Version v1.0
%runscript
    echo "run: $FROM_ENV $@"
%startscript
    echo started; exec sleep 1000
%test
    echo tested "$@"
    test -f /opt/note
%help
    This helps.
      Indented.
%apprun foo
    echo "foo runs $SCIF_APPNAME $@"
%appenv foo
    export FOO_ENV=foo
%applabels foo
    Author bob
%apphelp foo
    foo helps
%appinstall foo
    echo installed > installed
%appfiles foo
    note
%apptest foo
    echo foo tested
%appstart foo
    echo foo started; exec sleep 1000
"#;

const STAGES: &str = "Bootstrap: localimage
From: tree
Stage: one
%post
  echo one > /one

Bootstrap: localimage
From: tree
Stage: two
%files from one
  /one /two
%labels
  A b
%runscript
  cat /two; echo \"$@\"
";

/// Both programs at one desk, and images that each has made of the same definition file: `real.sif` and `ours.sif`.
pub struct Peers(pub Desk);

impl Peers {
    /// `None`, with the reason, where the real one is not installed or does not run.
    pub fn new() -> Option<Peers> {
        if !rustix::process::geteuid().is_root() {
            println!("skip: not root, so the real Apptainer has no user here who may build images");
            return None;
        }
        let real = Path::new(REAL).join("apptainer");
        if !installed(real.to_str().unwrap()) || !installed("/bin/busybox") || !installed("mksquashfs") {
            return None;
        }
        let desk = Desk::new(true);
        desk.with_range();
        let peers = Peers(desk);
        peers.tree();
        for (name, text) in [
            ("x.def", DEFINITION),
            ("note", "note\n"),
            ("vars", "A=file\nB=\"q u\"\n# c\nexport C=3\nD=$HOME\n"),
            ("plain", "A=file\nE=other\n"),
            ("with:colon", "colon\n"),
            ("values", "V=file\n"),
            ("wrong.def", "Bootstrap: nope\nFrom: x\n"),
            ("fails.def", "Bootstrap: localimage\nFrom: tree\n%post\n exit 3\n"),
            ("failing-test.def", "Bootstrap: localimage\nFrom: tree\n%test\n exit 3\n"),
            ("lacking.def", "Bootstrap: localimage\nFrom: tree\n%files\n nothere /x\n"),
            (
                "arguments.def",
                "Bootstrap: localimage\nFrom: tree\n%arguments\n V=1\n%runscript\n echo v{{ V }}\n",
            ),
            ("stages.def", STAGES),
            ("other/o", "o\n"),
            ("over/upper/x", "x\n"),
        ] {
            peers.0.file(name, text);
        }
        for name in ["work", "over/work"] {
            peers.0.run(&["mkdir", name]).fine();
        }
        let said = peers.real("apptainer exec tree true");
        if said.code != Some(0) {
            println!("skip: the real Apptainer runs nothing here: {}", said.err);
            return None;
        }
        Some(peers)
    }

    pub fn with_images() -> Option<Peers> {
        let peers = Peers::new()?;
        peers.real("apptainer build real.sif x.def").fine();
        peers.ours("apptainer build ours.sif x.def").fine();
        Some(peers)
    }

    /// A root file system of one busybox.
    fn tree(&self) {
        let tree = self.0.path("home/tree");
        for name in ["bin", "etc", "tmp", "root", "proc", "sys", "dev", "var/tmp", "usr/bin"] {
            fs::create_dir_all(tree.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
        for applet in APPLETS.split_whitespace() {
            symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        for (name, text) in [
            ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
            ("group", "root:x:0:\n"),
            ("resolv.conf", ""),
            ("hosts", ""),
        ] {
            fs::write(tree.join("etc").join(name), text).unwrap();
        }
        fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    }

    pub fn real(&self, line: &str) -> Said {
        let path = format!("{REAL}:/usr/sbin:/usr/bin:/sbin:/bin");
        Said::of(self.0.command(&["sh", "-c", line]).env("PATH", path).output().unwrap())
    }

    pub fn ours(&self, line: &str) -> Said {
        self.0.run(&["sh", "-c", line])
    }

    pub fn both(&self, line: &str) -> (Said, Said) {
        (self.real(line), self.ours(line))
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.path("home").join(name)).unwrap()
    }
}

/// Of the real one only: about this machine, or about helpers that it starts and we have not.
const NOISE: [&str; 7] = [
    "gocryptfs not found",
    "No default remote in use",
    "Instance stats will not be available",
    "Error changing the container working directory",
    "/etc/localtime doesn't exist in container",
    "Cleaning up image",
    "Cleanup error: while stopping driver",
];

/// The kinds of messages: where there is an error, that there is one.
pub fn kinds(text: &str) -> Vec<&'static str> {
    let mut out = Vec::new();
    for line in text.lines().filter(|line| !NOISE.iter().any(|noise| line.contains(noise))) {
        let line = line.trim_start_matches("\u{1b}[33m").trim_start_matches("\u{1b}[31m");
        if ["FATAL:", "ERROR:", "Error for command", "Error:"].iter().any(|start| line.starts_with(start)) {
            return vec!["error"];
        }
        for kind in ["INFO:", "WARNING:"] {
            if line.starts_with(kind) {
                out.push(kind);
            }
        }
    }
    out
}
