//! The command lines that programs write for `singularity` and `apptainer`: each as its program writes it, run as root
//! and as an ordinary user, and with the real Apptainer where that is installed.
//!
//! From: Galaxy 25 (`singularity_util.py`), Snakemake 9 (`deployment/singularity.py`), Nextflow 19 and 25
//! (`SingularityBuilder`, `ApptainerBuilder`, `SingularityCache`), cwltool 3.1 (`singularity.py`), Cromwell and miniwdl (their
//! documented settings).
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::path::Path;

use desk::{Desk, REAL, Said, both, both_with_registry, installed};

/// A line of a caller, with the home for HERE and a path of an image for IMAGE, and what it prints. All of them have to
/// end with 0 unless they say so themselves.
type Line = (&'static str, &'static str);

const GALAXY: &[Line] = &[
    (
        r#"SINGULARITYENV_GALAXY_SLOTS="2" SINGULARITYENV_HOME="HERE/job/home" SINGULARITYENV__GALAXY_JOB_TMP_DIR="HERE/job/tmp" singularity -s exec --contain --pwd HERE/job/working --cleanenv --ipc --pid --no-mount tmp -B HERE/galaxy:HERE/galaxy:ro -B HERE/job:HERE/job -B HERE/job/outputs:HERE/job/outputs -B "HERE/job/tmp:/tmp" -B "HERE/job/tmp:/var/tmp" --home HERE/job/home:HERE/job/home IMAGE /bin/sh HERE/job/tool_script.sh > HERE/job/outputs/tool_stdout 2> HERE/job/outputs/tool_stderr; code=$?; cat HERE/job/outputs/tool_stdout; echo $code"#,
        "slots 2 home HERE/job/home in HERE/job/working\nread-only\nscratch\n7\n",
    ),
    // As before Galaxy 21.
    (
        r#"SINGULARITYENV_GALAXY_SLOTS="1" singularity -s exec --cleanenv -B HERE/job:HERE/job:rw -B HERE/galaxy:HERE/galaxy:ro --home HERE/job/home:HERE/job/home IMAGE /bin/sh -c 'echo $GALAXY_SLOTS; touch HERE/job/working/x && test -n "$HOME"'"#,
        "1\n",
    ),
    ("singularity -s exec --contain --no-mount tmp IMAGE echo hi", "hi\n"),
];

const SNAKEMAKE: &[Line] = &[
    (
        r#" apptainer  exec --home 'HERE'  IMAGE bash -c 'set -euo pipefail;  cat in.txt > out.txt; echo $HOME'; cat out.txt"#,
        "HERE\nin\n",
    ),
    (
        r#"SINGULARITYENV_A=1 SINGULARITYENV_B=two apptainer --quiet --silent exec --home 'HERE'  --bind 'HERE/galaxy':'/mnt/snakemake_searchpaths/item_0' --bind 'HERE/job' IMAGE sh -c 'echo $A $B; ls /mnt/snakemake_searchpaths/item_0; cat HERE/job/tool_script.sh | wc -l'"#,
        "1 two\nreference\n5\n",
    ),
    // `--apptainer-args`, and a folder of the container.
    (
        r#"apptainer  exec --home 'HERE' --cleanenv --bind HERE/job:/job --pwd '/job' IMAGE sh -c 'pwd; ls'"#,
        "/job\nhome\noutputs\ntmp\ntool_script.sh\nworking\n",
    ),
    (
        r#"apptainer  exec --home 'HERE' --no-home --contain  IMAGE sh -c 'echo '\''quoted '\'' "$1"' sh a"#,
        "quoted  a\n",
    ),
    (r#" apptainer  exec --home 'HERE'  IMAGE bash -c 'set -euo pipefail;  exit 3' || echo $?"#, "3\n"),
];

const NEXTFLOW: &[Line] = &[
    (
        r#"TMP=/t NXF_TASK_WORKDIR="HERE/work/ab/cdef"; cd $NXF_TASK_WORKDIR; set +u; env - PATH="$PATH" HOME="$HOME" ${TMP:+SINGULARITYENV_TMP="$TMP"} ${TMPDIR:+SINGULARITYENV_TMPDIR="$TMPDIR"} ${NXF_TASK_WORKDIR:+SINGULARITYENV_NXF_TASK_WORKDIR="$NXF_TASK_WORKDIR"} SINGULARITYENV_NXF_DEBUG="${NXF_DEBUG:=0}" singularity exec --no-home --pid -B HERE/work IMAGE /bin/bash -c "cd $NXF_TASK_WORKDIR; eval true; /bin/bash -ue HERE/work/ab/cdef/.command.sh""#,
        "task in HERE/work/ab/cdef\n",
    ),
    (
        r#"NXF_TASK_WORKDIR="HERE/work/ab/cdef"; set +u; env - PATH="$PATH" HOME="$HOME" ${TMP:+APPTAINERENV_TMP="$TMP"} ${TMPDIR:+APPTAINERENV_TMPDIR="$TMPDIR"} ${NXF_TASK_WORKDIR:+APPTAINERENV_NXF_TASK_WORKDIR="$NXF_TASK_WORKDIR"} apptainer exec --no-home --pid -B HERE/work IMAGE /bin/bash -c "cd $NXF_TASK_WORKDIR; /bin/bash -ue HERE/work/ab/cdef/.command.sh""#,
        "task in HERE/work/ab/cdef\n",
    ),
    // Nextflow 19: no option of its own; `singularity.runOptions` and `engineOptions`.
    (
        r#"set +u; env - PATH="$PATH" HOME="$HOME" SINGULARITYENV_TMP="$TMP" SINGULARITYENV_TMPDIR="$TMPDIR" singularity -q exec -B HERE/work -B "$PWD" --cleanenv IMAGE /bin/bash -c "cd $PWD/work/ab/cdef; /bin/bash -ue HERE/work/ab/cdef/.command.sh""#,
        "task in HERE/work/ab/cdef\n",
    ),
    // The task's own script gets its input on the standard input, and its end is the task's end.
    (
        r#"printf 'abc' | singularity exec --no-home --pid -B HERE/work IMAGE /bin/bash -ue -c 'tr a-c x-z; exit 4'; echo " $?""#,
        "xyz 4\n",
    ),
];

const CWLTOOL: &[Line] = &[
    (
        r#"cd job/outputs; SINGULARITYENV_TMPDIR=/tmp singularity --quiet run --contain --ipc --cleanenv --no-eval --userns --home HERE/job/outputs:/abcdef --mount=type=bind,source=HERE/job/tmp,target=/tmp --mount=type=bind,source=HERE/in.txt,target=/var/lib/cwl/stg1/in.txt,readonly --pwd /abcdef --net --network none IMAGE /bin/sh -c 'cat "$1"; echo x > made; pwd; echo $HOME $TMPDIR; touch "$1" 2> /dev/null || echo kept' sh /var/lib/cwl/stg1/in.txt < /dev/null; cat HERE/job/outputs/made"#,
        "in\n/abcdef\n/abcdef /tmp\nkept\nx\n",
    ),
    (
        r#"singularity --quiet run --contain --ipc --cleanenv --no-eval --pid --home HERE/job/outputs:/abcdef '--mount=type=bind,"source=HERE/a,b",target=/var/lib/cwl/stg2,readonly' --pwd /abcdef IMAGE ls /var/lib/cwl/stg2"#,
        "c\n",
    ),
    (r#"singularity exec --userns HERE/empty true 2>&1 | grep -c 'executable file not found in'"#, "1\n"),
    (r#"singularity inspect --json IMAGE | grep -c '"attributes"'"#, "1\n"),
    (r#"singularity inspect --json HERE/sandbox | grep -c '"labels"'"#, "1\n"),
];

const OTHERS: &[Line] = &[
    // Cromwell, as its documentation sets it up.
    (
        r#"singularity exec --containall --bind HERE/work:/cromwell IMAGE /bin/bash /cromwell/ab/cdef/.command.sh"#,
        "task in\n",
    ),
    // miniwdl.
    (
        r#"SINGULARITYENV_X=1 singularity --verbose run --pwd /mnt/work --containall --no-mount tmp --bind HERE/job/tmp:/tmp --mount type=bind,source=HERE/work,destination=/mnt/work --fakeroot IMAGE /bin/bash -c 'id -u; ls; echo $X' 2> /dev/null"#,
        "0\nab\n1\n",
    ),
];

/// Lines that fetch an image of docker.io, which a registry on loopback stands for; what they have to leave behind.
const FETCHING: [(&str, &str); 8] = [
    ("apptainer pull --name 3a5d.simg docker://busybox:1.30.1", "3a5d.simg"),
    (
        "singularity pull  --name busybox-1.30.1.img.pulling.1700000000000 docker://busybox:1.30.1 > /dev/null",
        "busybox-1.30.1.img.pulling.1700000000000",
    ),
    ("apptainer pull --no-https --name n.img docker://busybox:1.30.1 > /dev/null", "n.img"),
    ("singularity pull --nohttps --name o.img docker://busybox:1.30.1 > /dev/null", "o.img"),
    ("singularity build cache/busybox:1.30.1 docker://busybox:1.30.1", "cache/busybox:1.30.1"),
    ("singularity pull --force --name busybox:1.30.1.sif docker://busybox:1.30.1", "busybox:1.30.1.sif"),
    ("singularity build loaded.sif docker-archive://HERE/b.tar", "loaded.sif"),
    ("singularity pull --force --name busybox:1.30.1.sif docker://busybox:1.30.1", "busybox:1.30.1.sif"),
];

fn lay_out(desk: &Desk) {
    for (name, text) in [
        ("in.txt", "in\n"),
        ("a,b/c", ""),
        ("galaxy/reference", ""),
        ("job/outputs/.keep", ""),
        ("job/tmp/of_job", ""),
        ("job/home/.keep", ""),
        ("job/working/.keep", ""),
        ("empty/dev/.keep", ""),
        (
            "job/tool_script.sh",
            "echo slots $GALAXY_SLOTS home $HOME in $PWD\ntouch HERE/galaxy/x 2> /dev/null || echo read-only\n\
             test -e /tmp/of_job && touch /var/tmp/x && echo scratch\n\nexit 7\n",
        ),
        (
            "work/ab/cdef/.command.sh",
            "echo task in ${NXF_TASK_WORKDIR-}$(test ${NXF_TASK_WORKDIR-x} != x || test \
             $PWD = /cromwell || { test -e /cromwell || pwd; })\n",
        ),
    ] {
        desk.file(name, text.replace("HERE", desk.path("home").to_str().unwrap()));
    }
}

#[test]
fn lines_of_galaxy_snakemake_nextflow_and_cwltool() {
    if !installed("/bin/busybox") {
        return;
    }
    both(|desk| {
        desk.busybox(&[]);
        lay_out(desk);
        desk.run(&["isles", "save", "-o", "b.tar", "busybox:desk"]).fine();
        desk.run(&["apptainer", "build", "b.sif", "docker-archive:b.tar"]).fine();
        desk.run(&["apptainer", "build", "--sandbox", "sandbox", "b.sif"]).fine();
        let home = desk.path("home");
        let home = home.to_str().unwrap();
        let real = Path::new(REAL).join("apptainer");
        let mut programs = vec![("ours", None)];
        if desk.ordinary && installed(real.to_str().unwrap()) {
            // Under the older name it is the same program.
            let path = desk.path("real");
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::symlink(&real, path.join("singularity")).unwrap();
            desk.with_range();
            programs.push(("real", Some(format!("{}:{REAL}:/usr/sbin:/usr/bin:/sbin:/bin", path.display()))));
        }
        let mut wrong = String::new();
        for (name, path) in programs {
            let run = |text: &str| {
                let mut command = desk.command(&["bash", "-c", text]);
                if let Some(path) = &path {
                    command.env("PATH", path);
                }
                Said::of(command.output().unwrap())
            };
            if name == "real" && run("apptainer exec b.sif true").code != Some(0) {
                println!("skip: the real Apptainer runs nothing here");
                continue;
            }
            for (text, said) in [GALAXY, SNAKEMAKE, NEXTFLOW, CWLTOOL, OTHERS].into_iter().flatten() {
                for image in ["b.sif", "sandbox"] {
                    let text = text.replace("IMAGE", &format!("{home}/{image}")).replace("HERE", home);
                    let answer = run(&text);
                    if answer.code != Some(0) || answer.out != said.replace("HERE", home) {
                        wrong.push_str(&format!("\n{name}: {text}\n  {answer:?}\n"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong}");
    });
}

#[test]
fn lines_that_fetch_images() {
    if !installed("/bin/busybox") {
        return;
    }
    both_with_registry(|desk| {
        let name = format!("{}/hub/library/busybox:1.30.1", desk.address());
        desk.busybox(&[&name]);
        desk.run(&["isles", "save", "-o", "b.tar", "busybox:desk"]).fine();
        desk.run(&["mkdir", "cache"]).fine();
        for (text, file) in FETCHING {
            let text = text.replace("HERE", desk.path("home").to_str().unwrap());
            desk.script(&text).fine();
            let answer = desk.run(&["singularity", "exec", file, "echo", "runs"]);
            assert_eq!(answer.fine(), "runs\n", "{text}");
        }
        // What is there is not fetched over in silence.
        let again = desk.script("apptainer pull --name 3a5d.simg docker://busybox:1.30.1");
        assert!(again.code == Some(255) && again.err.contains("already exists"), "{again:?}");
    });
}

/// How callers find out what they speak with.
#[test]
fn callers_know_the_version() {
    let desk = Desk::new(true);
    for program in ["singularity", "apptainer"] {
        assert_eq!(desk.run(&[program, "--version"]).fine(), "apptainer version 1.4.5\n");
        assert_eq!(desk.run(&[program, "version"]).fine(), "1.4.5\n");
    }
}
