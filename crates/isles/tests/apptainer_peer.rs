//! The real Apptainer beside ours: the same command lines in the same home, each reading the files of the other, and
//! images that both make of one definition file.
//!
//! Exit codes and standard output are compared as they are, messages by their kind: their words are our own. What
//! differs on purpose stands in the tables, with the reason.
#![allow(clippy::unwrap_used)]

mod desk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use desk::{Desk, REAL, Said, installed};
use serde_json::Value;

const APPLETS: &str = "sh true false echo cat ls id env pwd wc sort tr head sed grep test sleep mkdir touch rm cp stat \
                       hostname kill find cut chmod chown";

const DEFINITION: &str = r#"Bootstrap: localimage
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
struct Peers(Desk);

impl Peers {
    /// `None`, with the reason, where the real one is not installed or does not run.
    fn new() -> Option<Peers> {
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

    fn with_images() -> Option<Peers> {
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

    fn real(&self, line: &str) -> Said {
        let path = format!("{REAL}:/usr/sbin:/usr/bin:/sbin:/bin");
        Said::of(self.0.command(&["sh", "-c", line]).env("PATH", path).output().unwrap())
    }

    fn ours(&self, line: &str) -> Said {
        self.0.run(&["sh", "-c", line])
    }

    fn both(&self, line: &str) -> (Said, Said) {
        (self.real(line), self.ours(line))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.path("home").join(name)).unwrap()
    }

    /// Runs a table with one program, then with the other, and compares.
    fn compare(&self, rows: &[Row]) {
        let real: Vec<Said> = rows.iter().map(|row| self.real(row.line)).collect();
        let ours: Vec<Said> = rows.iter().map(|row| self.ours(row.line)).collect();
        let mut differences = String::new();
        for (row, (real, ours)) in rows.iter().zip(real.iter().zip(&ours)) {
            let mut what = Vec::new();
            let is = |exempt: &[Aspect]| exempt.iter().any(|aspect| row.except.contains(aspect));
            if real.code != ours.code && !is(&[Aspect::Code]) {
                what.push("the exit code");
            }
            // Usage that follows an error is talk: ours stands on standard error, beside it.
            let usage = ["Usage:", "Options for "].iter().any(|start| real.out.starts_with(start));
            if real.out != ours.out
                && !(usage && real.code != Some(0))
                && !is(&[Aspect::Code, Aspect::Output])
            {
                what.push("the output");
            }
            if kinds(&real.err) != kinds(&ours.err) && !is(&[Aspect::Code, Aspect::Messages]) {
                what.push("the messages");
            }
            if !what.is_empty() {
                let what = what.join(" and ");
                differences.push_str(&format!(
                    "\n=== {what} of: {}\n--- real {real:?}\n--- ours {ours:?}\n",
                    row.line
                ));
            }
        }
        assert!(differences.is_empty(), "{differences}");
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aspect {
    /// And all that depends on whether it works.
    Code,
    Output,
    Messages,
}
use Aspect::{Code, Messages, Output};

/// A command line, and what of it need not be the same.
struct Row {
    line: &'static str,
    except: &'static [Aspect],
}

const fn same(line: &'static str) -> Row {
    Row { line, except: &[] }
}

/// The last word is why.
const fn but(line: &'static str, except: &'static [Aspect], _why: &'static str) -> Row {
    Row { line, except }
}

/// Of the real one only: about this machine, or about helpers that it starts and we have not.
const NOISE: [&str; 6] = [
    "gocryptfs not found",
    "No default remote in use",
    "Instance stats will not be available",
    "Error changing the container working directory",
    "/etc/localtime doesn't exist in container",
    "Cleaning up image",
];

/// The kinds of messages: where there is an error, that there is one.
fn kinds(text: &str) -> Vec<&'static str> {
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

const ACTIONS: &[Row] = &[
    same("apptainer exec real.sif true"),
    same("apptainer exec real.sif false"),
    same("apptainer exec real.sif sh -c 'exit 7'"),
    same("apptainer exec real.sif sh -c 'kill -TERM $$'"),
    same("apptainer exec real.sif sh -c 'kill -KILL $$'"),
    same("apptainer exec real.sif nothere"),
    same("apptainer exec real.sif /etc/passwd"),
    same("apptainer exec real.sif /nowhere/x"),
    same("apptainer exec real.sif"),
    same("apptainer exec"),
    same("apptainer exec none.sif true"),
    same("apptainer exec note true"),
    same("apptainer exec tree cat /etc/passwd"),
    same("apptainer exec $PWD/tree true"),
    same("apptainer exec ours.sif cat /etc/group /opt/note"),
    same("apptainer run real.sif a 'b c'"),
    same("apptainer run ours.sif a 'b c'"),
    same("./real.sif x 2> /dev/null || apptainer run real.sif x"),
    same("apptainer run --app foo real.sif x"),
    same("apptainer run --app foo ours.sif x"),
    same("apptainer run --app nope real.sif x"),
    same("apptainer run tree < /dev/null"),
    same("apptainer exec --app foo real.sif sh -c 'echo $SCIF_APPNAME $FOO_ENV; pwd'"),
    same("apptainer shell real.sif < /dev/null"),
    same("echo 'echo in $0; exit 3' | apptainer shell real.sif"),
    same("apptainer shell real.sif -c 'echo ignored'"),
    same("echo 'echo in; exit 3' | apptainer shell --shell /bin/sh real.sif"),
    same("echo 'echo in' | apptainer shell --shell /bin/nope real.sif"),
    same("echo 'echo in' | APPTAINER_SHELL=/bin/sh apptainer shell real.sif"),
    same("echo 'cat note' | apptainer exec real.sif sh"),
    same("apptainer test real.sif"),
    same("apptainer test ours.sif x y"),
    same("apptainer test --app foo real.sif"),
    same("apptainer run-help real.sif"),
    same("apptainer run-help --app foo ours.sif"),
    same("apptainer run-help note"),
    same("apptainer exec --nope real.sif true"),
    same("apptainer exec -Z real.sif true"),
    same("apptainer exec --vm real.sif true"),
    same("apptainer exec --bind"),
    same("apptainer run --nope"),
    same("apptainer nope"),
    same("apptainer --nope"),
    same("apptainer instance"),
    same("apptainer key"),
    same("apptainer -s exec -B nowhere:/mnt real.sif true"),
    same("apptainer -q exec -B nowhere:/mnt real.sif true"),
    same("apptainer -q exec none.sif true"),
    same("apptainer -s exec none.sif true"),
    same("APPTAINER_SILENT=1 apptainer exec real.sif true"),
    same("apptainer exec docker:// true"),
    same("apptainer exec foo://x true"),
    same("apptainer exec oci:none true"),
    same("apptainer exec oci-archive:none.tar true"),
    same("apptainer exec instance://none true"),
    but(
        "apptainer exec docker://127.0.0.1:1/none true",
        &[Messages],
        "ours says what it does before it fails",
    ),
    same("apptainer version"),
    same("apptainer --version"),
    same("apptainer version x"),
    but("apptainer help nope", &[Code], "the real one says that there is no such topic, and succeeds"),
    but("apptainer sif nope", &[Code], "the real one shows the help, and succeeds"),
];

/// A shell of ours reads the image's scripts, and counts itself in SHLVL.
const VARIABLES: &[Row] = &[
    same("apptainer exec real.sif sh -c 'env | cut -d= -f1 | sort'"),
    same("apptainer exec -e real.sif sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'"),
    same("apptainer exec -e ours.sif sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'"),
    same("apptainer exec -C real.sif sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'"),
    same("apptainer exec --app foo real.sif sh -c 'env | grep -v -e ^SHLVL= -e ^USER_PATH= | sort'"),
    same("apptainer run --app foo real.sif"),
    same("apptainer exec real.sif sh -c 'echo ${USER_PATH#*:/sbin:/bin:}'"),
    same("apptainer exec --env A=1,B=2 real.sif sh -c 'echo $A $B'"),
    same("apptainer exec --env A='x y' --env B='$HOME' real.sif sh -c 'echo $A $B'"),
    same("apptainer exec --env 'A=a,b' real.sif sh -c 'echo \"$A\"'"),
    same("apptainer exec --env A real.sif true"),
    same("apptainer exec --env-file vars real.sif sh -c 'echo \"$A|$B|$C|$D\"'"),
    same("apptainer exec --env-file vars --env A=flag real.sif sh -c 'echo \"$A|$B\"'"),
    same("apptainer exec --env-file plain --env A=flag real.sif sh -c 'echo \"$A|$E\"'"),
    same("APPTAINERENV_D=5 apptainer exec --env-file vars real.sif sh -c 'echo $D'"),
    same("APPTAINERENV_E=5 apptainer exec --env-file plain real.sif sh -c 'echo $E'"),
    same("apptainer exec --env-file none real.sif true"),
    same("apptainer exec --env LD_LIBRARY_PATH=/x real.sif sh -c 'echo $LD_LIBRARY_PATH'"),
    same("apptainer exec --env PATH=/x:/bin real.sif sh -c 'echo $PATH'"),
    same("apptainer exec --env PREPEND_PATH=/x real.sif sh -c 'echo $PATH'"),
    same("apptainer exec real.sif sh -c 'echo $PATH $LD_LIBRARY_PATH $PS1'"),
    same("A=host apptainer exec real.sif sh -c 'echo $A'"),
    same("A=host apptainer exec -e real.sif sh -c 'echo $A'"),
    same("A='a`b\"c$d' apptainer exec real.sif sh -c 'echo \"$A\"'"),
    same("APPTAINERENV_A=1 apptainer exec -e real.sif sh -c 'echo $A'"),
    same("SINGULARITYENV_A=1 apptainer exec -e real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A=1 SINGULARITYENV_A=2 apptainer exec real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A=1 SINGULARITYENV_A=1 apptainer exec real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A=1 apptainer exec --env A=2 real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A=1 apptainer exec --env-file vars real.sif sh -c 'echo $A'"),
    same("APPTAINERENV_A='$(echo sub)' apptainer exec real.sif sh -c 'echo \"$A\"'"),
    same("APPTAINERENV_A='$(echo sub)' apptainer exec --no-eval real.sif sh -c 'echo \"$A\"'"),
    but(
        "APPTAINERENV_A='a`b' apptainer exec real.sif sh -c 'echo \"$A\"'",
        &[Code],
        "the real one leaves the variable out; ours says that it is broken, and stops",
    ),
    same("APPTAINERENV_PREPEND_PATH=/p apptainer exec real.sif sh -c 'echo $PATH'"),
    same("APPTAINERENV_APPEND_PATH=/p apptainer exec real.sif sh -c 'echo $PATH'"),
    same("APPTAINERENV_PATH=/p:/bin apptainer exec real.sif sh -c 'echo $PATH'"),
    same("APPTAINERENV_HOME=/x apptainer exec real.sif sh -c 'echo $HOME'"),
    same("APPTAINERENV_LD_LIBRARY_PATH=/l apptainer exec real.sif sh -c 'echo $LD_LIBRARY_PATH'"),
    same("LD_LIBRARY_PATH=/l apptainer exec real.sif sh -c 'echo $LD_LIBRARY_PATH'"),
    same("APPTAINERENV_FROM_ENV=x apptainer exec real.sif sh -c 'echo $FROM_ENV $OTHER'"),
    same("FROM_ENV=x apptainer exec real.sif sh -c 'echo $FROM_ENV'"),
    same("FROM_ENV=x apptainer exec --no-eval real.sif sh -c 'echo $FROM_ENV'"),
    same("APPTAINER_BIND=note:/mnt/note apptainer exec real.sif cat /mnt/note"),
    same("APPTAINER_BINDPATH=note:/mnt/note apptainer exec real.sif cat /mnt/note"),
    same("SINGULARITY_BIND=note:/mnt/note apptainer exec real.sif cat /mnt/note"),
    same("APPTAINER_BIND=note:/mnt/a SINGULARITY_BIND=note:/mnt/b apptainer exec real.sif ls /mnt"),
    same("APPTAINER_CONTAIN=1 apptainer exec real.sif ls /tmp"),
    same("APPTAINER_CLEANENV=yes apptainer exec real.sif true"),
    same("APPTAINER_CLEANENV=1 A=1 apptainer exec real.sif sh -c 'echo ?$A'"),
    same("SINGULARITY_CLEANENV=1 A=1 apptainer exec real.sif sh -c 'echo ?$A'"),
    same("APPTAINER_NO_HOME=1 apptainer exec real.sif sh -c 'test -e $HOME/note'"),
    same("APPTAINER_PWD=/usr apptainer exec real.sif pwd"),
    same("APPTAINER_CWD=/usr apptainer exec real.sif pwd"),
    same("SINGULARITY_PWD=/usr apptainer exec real.sif pwd"),
    same("APPTAINER_WRITABLE_TMPFS=true apptainer exec real.sif touch /new"),
];

const PLACES: &[Row] = &[
    same("apptainer exec real.sif sh -c 'pwd; id; echo $HOME; cat /etc/passwd /etc/group'"),
    same("apptainer exec -B note:/mnt/note real.sif cat /mnt/note"),
    same("apptainer exec -B note:/mnt/note:ro real.sif sh -c 'echo x > /mnt/note'"),
    same("apptainer exec -B note:/mnt/note:rw real.sif test -w /mnt/note"),
    same("apptainer exec -B note:/mnt/note:foo real.sif true"),
    same("apptainer exec -B note:/mnt/a,vars:/mnt/b real.sif cat /mnt/a /mnt/b"),
    same("apptainer exec -B note:/mnt/a:ro,vars:/mnt/b:rw real.sif cat /mnt/a /mnt/b"),
    same("apptainer exec -B /usr/share real.sif test -d /usr/share"),
    same("apptainer exec -B nowhere:/mnt real.sif true"),
    same("apptainer exec -B note: real.sif true"),
    same("apptainer exec -B note:/mnt/x: real.sif true"),
    same("apptainer exec -B note::ro real.sif true"),
    same("apptainer exec -B :/mnt real.sif true"),
    same("apptainer exec -B '' real.sif true"),
    same("apptainer exec -B note:mnt real.sif true"),
    same("apptainer exec -B a:b:c:d real.sif true"),
    but("apptainer exec -B other real.sif true", &[Code], "ours takes the absolute path for the place, too"),
    same("apptainer exec -B other:/opt real.sif ls /opt"),
    same("apptainer exec -B 'with\\:colon:/mnt/c' real.sif cat /mnt/c"),
    same("apptainer exec -B note:/bin/new real.sif cat /bin/new"),
    same("apptainer exec -B note:/etc/passwd real.sif cat /etc/passwd"),
    same("apptainer exec --mount type=bind,source=note,destination=/mnt/note real.sif cat /mnt/note"),
    same("apptainer exec --mount type=bind,src=note,dst=/mnt/note,ro real.sif sh -c 'echo x > /mnt/note'"),
    same("apptainer exec --mount type=bind,src=note,target=/mnt/note real.sif cat /mnt/note"),
    same("apptainer exec --mount type=tmpfs,dst=/mnt real.sif true"),
    same("apptainer exec --mount src=note real.sif true"),
    same("apptainer exec --mount src=note,dst=mnt real.sif true"),
    same("apptainer exec --mount type=bind,src=note,dst=/m,zzz real.sif true"),
    same("apptainer exec --mount type=bind,src=nowhere,dst=/m real.sif true"),
    same("apptainer exec --mount '\"type=bind\",\"src=note\",\"dst=/m,x\"' real.sif cat /m,x"),
    same("apptainer exec --no-home real.sif sh -c 'echo $HOME; pwd'"),
    same("apptainer exec --home $PWD/other real.sif sh -c 'echo $HOME; ls $HOME; pwd'"),
    same("apptainer exec --home other:/srv real.sif sh -c 'echo $HOME; ls $HOME; pwd'"),
    same("apptainer exec -H /nowhere real.sif sh -c 'echo $HOME; pwd'"),
    same("apptainer exec --home x:y real.sif true"),
    same("apptainer exec --home /a:/b:/c real.sif true"),
    same("apptainer exec -c real.sif sh -c 'echo $HOME; ls ~; pwd; test -e ~/note'"),
    but("apptainer exec -c real.sif ls /dev", &[Output], "ours has full and mqueue besides"),
    same("apptainer exec -C real.sif sh -c 'echo $HOME; ls ~; pwd'"),
    same("apptainer exec --contain --home $PWD/other real.sif sh -c 'ls ~; pwd'"),
    same("apptainer exec -c -W work real.sif sh -c 'touch /tmp/a /var/tmp/b ~/c; ls ~'"),
    same("apptainer exec -c -W work real.sif ls /tmp /var/tmp"),
    same("apptainer exec -c -W nowhere real.sif true"),
    same("apptainer exec -W nowhere real.sif true"),
    same("apptainer exec -S /scratch real.sif sh -c 'touch /scratch/x && ls /scratch'"),
    same("apptainer exec -S /a,/b real.sif ls -d /a /b"),
    same("apptainer exec -S /scratch -W work real.sif sh -c 'touch /scratch/x; ls /scratch'"),
    same("apptainer exec -S relative real.sif true"),
    same("apptainer exec --pwd /usr real.sif pwd"),
    same("apptainer exec --cwd /usr real.sif pwd"),
    same("apptainer exec --pwd /nowhere real.sif pwd"),
    same("apptainer exec --cwd usr real.sif pwd"),
    same("apptainer exec --pwd note real.sif pwd"),
    same("apptainer exec --pwd '' real.sif pwd"),
    same("apptainer exec -c --pwd $PWD real.sif pwd"),
    same("apptainer exec --writable-tmpfs real.sif sh -c 'echo x > /new && cat /new'"),
    same("apptainer exec --writable-tmpfs tree sh -c 'echo x > /q; cat /q'"),
    same("apptainer exec real.sif sh -c 'echo x > /new'"),
    same("apptainer exec tree sh -c 'echo x > /new'"),
    same("apptainer exec -w real.sif true"),
    same("apptainer exec -w tree sh -c 'echo x > /new && cat /new; rm /new'"),
    same("apptainer exec -w --writable-tmpfs tree true"),
    but(
        "cp -r tree t; apptainer exec -w -B note:/mnt/n t cat /mnt/n; rm -r t",
        &[Output, Messages],
        "ours makes the place",
    ),
    same("apptainer exec --overlay over real.sif cat /x"),
    same("apptainer exec --overlay over real.sif sh -c 'echo y > /y && cat /y'"),
    same("apptainer exec --overlay over:ro real.sif sh -c 'cat /x; echo y > /z'"),
    same("apptainer exec --overlay nowhere real.sif true"),
    same("apptainer exec --overlay note real.sif true"),
    same("apptainer exec --writable-tmpfs --overlay over real.sif true"),
    same("apptainer exec --no-mount tmp real.sif ls /tmp"),
    same("apptainer exec --no-mount home,cwd,tmp real.sif sh -c 'pwd; ls /tmp'"),
    but(
        "apptainer exec --no-mount proc real.sif ls /proc",
        &[Messages],
        "the real one misses its own program",
    ),
    same("apptainer exec --no-mount sys real.sif ls /sys"),
    same("apptainer exec --no-mount dev real.sif ls /dev"),
    same("apptainer exec --no-mount cwd real.sif pwd"),
    same("apptainer exec --no-mount bind-paths real.sif test -e /etc/localtime"),
    same("apptainer exec --no-mount /etc/hosts real.sif cat /etc/hosts"),
    same("apptainer exec --no-mount zzz real.sif true"),
    same("apptainer exec --no-mount hostfs,devpts real.sif true"),
];

const ISOLATION: &[Row] = &[
    same("apptainer exec --pid real.sif sh -c 'test -d /proc/1 && test $$ -lt 100'"),
    same("apptainer exec --pid --no-init real.sif true"),
    same("apptainer exec --ipc real.sif true"),
    same("apptainer exec --uts --hostname isle real.sif hostname"),
    same("apptainer exec --hostname isle real.sif hostname"),
    same("apptainer exec --uts real.sif hostname"),
    same("apptainer exec --userns real.sif id -u"),
    same("apptainer exec --net --network none real.sif cat /proc/net/dev"),
    same("apptainer exec --net --network nope real.sif true"),
    same("apptainer exec --network none real.sif true"),
    same("apptainer exec -n real.sif true"),
    same("apptainer exec -f real.sif id"),
    same("apptainer exec -f --net real.sif true"),
    same("apptainer exec --fakeroot real.sif sh -c 'echo $HOME; pwd; cat /etc/passwd'"),
    same("apptainer exec --fakeroot real.sif sh -c 'touch ~/ff; stat -c %u ~/ff; rm ~/ff'"),
    same("apptainer exec --fakeroot -c real.sif sh -c 'echo $HOME; pwd; ls -a ~'"),
    same("apptainer exec -f --writable-tmpfs real.sif sh -c 'touch /n && chown 5:5 /n && stat -c %u:%g /n'"),
    same("apptainer exec -f -w tree sh -c 'touch /n && chown 7:7 /n; stat -c %u /n; rm /n'"),
    same("apptainer exec --compat real.sif sh -c 'pwd; ls ~; echo x > /new; cat /new'"),
    same("apptainer exec --dns 1.2.3.4 real.sif cat /etc/resolv.conf"),
    same("apptainer exec --security uid:1 real.sif true"),
    same("apptainer exec --add-caps CAP_NET_RAW real.sif true"),
    same("apptainer exec --add-caps net_raw,CAP_NOPE,bar real.sif true"),
    same("apptainer exec --drop-caps nope real.sif true"),
    same("apptainer exec --drop-caps CAP_NET_RAW real.sif true"),
    same("apptainer exec --keep-privs real.sif true"),
    same("apptainer exec --no-privs real.sif true"),
    same("apptainer exec --underlay -B note:/mnt/n real.sif cat /mnt/n"),
    same("apptainer exec --unsquash real.sif true"),
    same("umask 027; apptainer exec real.sif sh -c umask"),
    same("umask 027; apptainer exec --no-umask real.sif sh -c umask"),
    same("apptainer exec --cpus x real.sif true"),
    same("apptainer exec --memory x real.sif true"),
    same("apptainer exec --apply-cgroups none real.sif true"),
    same("apptainer exec --fusemount x real.sif true"),
    same("apptainer exec --netns-path /x real.sif true"),
    but("apptainer exec --device x real.sif true", &[Code], "a flag of later releases"),
    but(
        "apptainer exec --nv real.sif true",
        &[Messages],
        "the real one takes libraries of other drivers for NVIDIA's",
    ),
];

const MANAGEMENT: &[Row] = &[
    same("apptainer inspect none.sif"),
    same("apptainer inspect note"),
    same("apptainer inspect tree"),
    same("apptainer inspect"),
    same("apptainer inspect -r tree"),
    same("apptainer inspect -d tree"),
    same("apptainer inspect --app nope real.sif"),
    same("apptainer inspect --nope real.sif"),
    same("apptainer inspect --list-apps tree"),
    same("apptainer sif list"),
    same("apptainer sif list none.sif"),
    same("apptainer sif list note"),
    same("apptainer sif info 99 real.sif"),
    same("apptainer sif info x real.sif"),
    same("apptainer sif dump 99 real.sif"),
    same("apptainer sif header tree"),
    same("apptainer sif del 99 real.sif"),
    same("apptainer sif add real.sif"),
    same("apptainer sif setprim 1 real.sif"),
    same("apptainer sif new"),
    same("apptainer verify none.sif"),
    same("apptainer verify note"),
    same("apptainer verify tree"),
    same("apptainer verify -i 99 real.sif"),
    same("apptainer verify -g 9 real.sif"),
    same("apptainer verify --all real.sif"),
    same("apptainer verify --key none.pem real.sif"),
    same("apptainer sign none.sif"),
    same("apptainer sign note"),
    same("apptainer sign --key none.pem real.sif"),
    same("apptainer key list"),
    same("apptainer key export nope.asc"),
    same("apptainer key import none.asc"),
    same("apptainer key newpair --nope"),
    same("apptainer cache list --nope"),
    same("apptainer pull"),
    same("apptainer pull foo://x"),
    same("apptainer build"),
    same("apptainer build x.sif"),
    same("apptainer build x.sif none.def"),
    same("apptainer build --nope x.sif x.def"),
    same("apptainer build nodir/x.sif tree 2> /dev/null"),
    // What a build says as it goes is each program's own, and the output of scripts is talk of ours.
    same("apptainer build -F f.sif wrong.def 2> /dev/null"),
    same("apptainer build -F f.sif fails.def > /dev/null 2>&1"),
    same("apptainer build -F f.sif failing-test.def > /dev/null 2>&1"),
    same("apptainer build -F --notest f.sif failing-test.def > /dev/null 2>&1"),
    same("apptainer build -F f.sif lacking.def > /dev/null 2>&1"),
    same("apptainer build -F f.sif arguments.def 2> /dev/null && apptainer run f.sif"),
    same("apptainer build -F --build-arg V=2 f.sif arguments.def 2> /dev/null && apptainer run f.sif"),
    same(
        "apptainer build -F --build-arg-file values f.sif arguments.def 2> /dev/null && apptainer run f.sif",
    ),
    same("apptainer build -F --build-arg W=2 f.sif arguments.def > /dev/null 2>&1"),
    same(
        "apptainer build -F f.sif stages.def > /dev/null 2>&1 && apptainer run f.sif a && apptainer inspect -d f.sif",
    ),
    same("apptainer push real.sif"),
    same("apptainer push real.sif foo://x"),
    same("apptainer overlay create"),
    same("apptainer overlay"),
    same("apptainer cache"),
    same("apptainer plugin list"),
    same("apptainer registry list"),
];

const INSTANCES: &[Row] = &[
    same("apptainer instance list"),
    same("apptainer instance list -j"),
    same("apptainer instance list nope"),
    same("apptainer instance list --nope"),
    same("apptainer instance start real.sif"),
    same("apptainer instance start real.sif bad/name"),
    same("apptainer instance start none.sif i1"),
    same("apptainer instance start real.sif i1"),
    same("apptainer instance start real.sif i1"),
    // How wide the column is depends on how many digits the process ID happens to have.
    same("apptainer instance list | sed 's/ [0-9][0-9]* / N /; s/PID  */PID /'"),
    same("apptainer exec instance://i1 true"),
    same("apptainer exec instance://i1 sh -c 'echo $APPTAINER_NAME; pwd; exit 4'"),
    same("apptainer run instance://i1 arg"),
    same("echo 'echo in' | apptainer shell instance://i1"),
    same("apptainer exec --env A=5 instance://i1 sh -c 'echo $A'"),
    same("apptainer instance stats nope"),
    same("apptainer instance stop nope"),
    same("apptainer instance stop i1 2> /dev/null"),
    same("apptainer instance stop i1"),
    same("apptainer instance stop -a"),
    same("apptainer instance stop"),
    same("apptainer instance run real.sif i2 x"),
    same("apptainer instance stop --signal NOPE i2"),
    same("apptainer instance start --app foo ours.sif i3"),
    same("apptainer instance stop -s KILL i3"),
    same("apptainer instance stop -a 2> /dev/null; apptainer instance list"),
    same("apptainer instance nope"),
];

#[test]
fn actions_and_how_they_end() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(ACTIONS);
    // Whoever starts it without a shell sees the signal itself.
    for (signal, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10)] {
        for program in [format!("{REAL}/apptainer"), "apptainer".to_owned()] {
            let script = format!("kill -{signal} $$");
            let words = [program.as_str(), "exec", "real.sif", "sh", "-c", &script];
            let status = peers.0.command(&words).output().unwrap().status;
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(number), "{words:?}");
        }
    }
}

#[test]
fn variables_into_the_container() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(VARIABLES);
}

#[test]
fn binds_homes_and_layers() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(PLACES);
}

#[test]
fn what_is_set_apart() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(ISOLATION);
}

#[test]
fn files_keys_and_caches() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(MANAGEMENT);
}

#[test]
fn instances_from_start_to_stop() {
    let Some(peers) = Peers::with_images() else { return };
    peers.compare(INSTANCES);
}

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
