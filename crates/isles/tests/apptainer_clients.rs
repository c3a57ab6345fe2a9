//! Programs that call `singularity` or `apptainer`, none of which knows of Isles.
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;

use desk::cluster::{Cluster, has_slurm};
use desk::{Desk, both, installed};

/// A desk with a registry that has docker.io's busybox.
fn with_busybox(ordinary: bool) -> Option<Desk> {
    let mut desk = Desk::new(ordinary);
    if !installed("/bin/busybox") || !desk.with_registry() {
        return None;
    }
    let name = format!("{}/hub/library/busybox:1.30.1", desk.address());
    desk.busybox(&[&name]);
    Some(desk)
}

#[test]
fn cwltool_runs_a_workflow() {
    if !installed("cwltool") {
        return;
    }
    let Some(desk) = with_busybox(true) else { return };
    desk.file(
        "upper.cwl",
        "cwlVersion: v1.2\nclass: CommandLineTool\nrequirements:\n  DockerRequirement:\n    dockerPull: busybox:1.30.1\n  \
         InlineJavascriptRequirement: {}\n\
         baseCommand: [sh, -c]\narguments:\n  - valueFrom: 'tr a-z A-Z < $(inputs.text.path); echo \"$PWD $HOME\" >&2; \
         touch $(inputs.text.path) && exit 1; test -w \"$HOME\"'\ninputs:\n  text: File\noutputs:\n  upper: stdout\n\
         stdout: upper.txt\nstderr: places.txt\n",
    );
    desk.file(
        "count.cwl",
        "cwlVersion: v1.2\nclass: CommandLineTool\nrequirements:\n  DockerRequirement:\n    dockerPull: busybox:1.30.1\n\
         baseCommand: [wc, -c]\ninputs:\n  text:\n    type: File\n    inputBinding: {position: 1}\noutputs:\n  number: \
         stdout\nstdout: number.txt\n",
    );
    desk.file(
        "both.cwl",
        "cwlVersion: v1.2\nclass: Workflow\ninputs:\n  text: File\noutputs:\n  upper:\n    type: File\n    outputSource: \
         upper/upper\n  number:\n    type: File\n    outputSource: count/number\nsteps:\n  upper:\n    run: upper.cwl\n    \
         in: {text: text}\n    out: [upper]\n  count:\n    run: count.cwl\n    in: {text: upper/upper}\n    out: [number]\n",
    );
    desk.file("text.txt", "hello, isles\n");
    let said = desk.run(&["cwltool", "--singularity", "--outdir", "out", "both.cwl", "--text", "text.txt"]);
    println!("{}", said.err);
    said.fine();
    let read = |name: &str| fs::read_to_string(desk.path("home/out").join(name)).unwrap();
    assert_eq!(read("upper.txt"), "HELLO, ISLES\n");
    assert!(read("number.txt").starts_with("13 "), "{}", read("number.txt"));
}

#[test]
fn snakemake_runs_rules_in_containers() {
    if !installed("snakemake") {
        return;
    }
    let Some(desk) = with_busybox(true) else { return };
    desk.run(&["apptainer", "pull", "local.sif", "docker://busybox:1.30.1"]).fine();
    desk.file(
        "Snakefile",
        "rule all:\n    input: 'both.txt'\n\nrule first:\n    output: 'first.txt'\n    container: \
         'docker://busybox:1.30.1'\n    shell: 'busybox > /dev/null; echo $APPTAINER_NAME > {output}'\n\n\
         rule second:\n    input: 'first.txt'\n    output: 'both.txt'\n    container: 'local.sif'\n    shell: \
         'cat {input} > {output}; echo $SINGULARITY_NAME >> {output}'\n",
    );
    let said = desk.run(&["snakemake", "--cores", "1", "--sdm", "apptainer"]);
    println!("{}", said.err);
    said.fine();
    let text = fs::read_to_string(desk.path("home/both.txt")).unwrap();
    assert!(text.lines().nth(1).is_some_and(|name| name == "local.sif"), "{text}");
}

#[test]
fn the_tests_of_spython_pass() {
    if !installed("pytest") {
        return;
    }
    let Some(desk) = with_busybox(true) else { return };
    desk.run(&["singularity", "pull", "ci.sif", "docker://busybox:1.30.1"]).fine();
    let artefact = format!("oras://{}/ghcr/singularityhub/github-ci:latest", desk.address());
    desk.run(&["singularity", "push", "ci.sif", &artefact]).fine();
    let said = desk.run(&["pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "spython.tests"]);
    println!("{}", said.out);
    let summary = said.fine();
    let passed = summary.lines().last().unwrap_or_default().to_owned();
    assert!(passed.contains(" passed") && !passed.contains("failed"), "{passed}");
}

/// Adds up the ranks and says who it is.
const RANKS: &str = r#"
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv) {
    int rank, size, sum = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int mine = rank + 1;
    MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    /* Large enough to leave the eager protocol for shared memory or process_vm_readv(2). */
    static char large[4 << 20];
    if (rank == 0) { large[sizeof large - 1] = 'x'; MPI_Send(large, sizeof large, MPI_CHAR, 1, 0, MPI_COMM_WORLD); }
    if (rank == 1) MPI_Recv(large, sizeof large, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    printf("rank %d of %d, sum %d, last %c\n", rank, size, sum, rank < 2 ? large[sizeof large - 1] : '-');
    MPI_Finalize();
    return 0;
}
"#;

/// The folders of the host in which a program of the host finds all that it needs.
const HOST: &str = "/usr,/lib,/lib64,/etc";

#[test]
fn two_ranks_of_open_mpi_find_each_other() {
    if !installed("mpirun") || !installed("mpicc") {
        return;
    }
    both(|desk| {
        desk.busybox(&[]);
        desk.file("ranks.c", RANKS);
        desk.run(&["mpicc", "-o", "ranks", "ranks.c"]).fine();
        desk.run(&["isles", "save", "-o", "b.tar", "busybox:desk"]).fine();
        desk.run(&["apptainer", "build", "b.sif", "docker-archive:b.tar"]).fine();
        let mut words = vec!["timeout", "30", "mpirun", "-n", "2", "--oversubscribe"];
        if !desk.ordinary {
            words.push("--allow-run-as-root");
        }
        words.extend(["apptainer", "exec", "-B", HOST, "b.sif", "./ranks"]);
        let mut lines: Vec<String> = desk.run(&words).fine().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["rank 0 of 2, sum 3, last x", "rank 1 of 2, sum 3, last x"]);
    });
}

/// The first words that a program says to PMI-2, and the answer of Slurm.
const PMI2: &str = "printf 'cmd=init pmi_version=2 pmi_subversion=0\\n' >&$PMI_FD; eval \"read answer <&$PMI_FD\"; \
                    echo \"$PMI_RANK $answer\"";

#[test]
fn slurm_runs_steps_in_containers() {
    if !has_slurm() {
        return;
    }
    both(|desk| {
        desk.busybox(&[]);
        desk.run(&["isles", "save", "-o", "b.tar", "busybox:desk"]).fine();
        desk.run(&["apptainer", "build", "b.sif", "docker-archive:b.tar"]).fine();
        let cluster = Cluster::start(desk);
        let sorted = |words: &[&str]| -> Vec<String> {
            let mut lines: Vec<String> = cluster.srun(words).fine().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let script = "echo rank $SLURM_PROCID of $SLURM_NTASKS";
        let ranks = ["-n2", "apptainer", "exec", "b.sif", "sh", "-c", script];
        assert_eq!(sorted(&ranks), ["rank 0 of 2", "rank 1 of 2"]);
        let failed = cluster.srun(&["-n1", "apptainer", "exec", "b.sif", "sh", "-c", "exit 7"]);
        assert_eq!(failed.code, Some(7), "{failed:?}");
        let clean = ["--cleanenv", "--mpi", "b.sif", "sh", "-c", PMI2];
        let pmi2 = sorted(&[&["-n2", "--mpi=pmi2", "apptainer", "exec"][..], &clean].concat());
        assert!(pmi2.len() == 2, "{pmi2:?}");
        for (rank, line) in pmi2.iter().enumerate() {
            assert!(line.starts_with(&format!("{rank} cmd=response_to_init")), "{line}");
        }
        if !installed("mpicc") {
            return;
        }
        desk.file("ranks.c", RANKS);
        desk.run(&["mpicc", "-o", "ranks", "ranks.c"]).fine();
        let bare = cluster.srun(&["-n2", "--mpi=pmix", "./ranks"]);
        if bare.code != Some(0) {
            println!(
                "skip: this Open MPI and this Slurm do not meet without containers either: {}",
                bare.err
            );
            return;
        }
        let hybrid = ["-n2", "--mpi=pmix", "apptainer", "exec", "-B", HOST, "b.sif", "./ranks"];
        assert_eq!(sorted(&hybrid), ["rank 0 of 2, sum 3, last x", "rank 1 of 2, sum 3, last x"]);
    });
}

#[test]
fn a_cancelled_job_takes_its_container_along() {
    if !has_slurm() {
        return;
    }
    both(|desk| {
        desk.busybox(&[]);
        desk.run(&["isles", "save", "-o", "b.tar", "busybox:desk"]).fine();
        desk.run(&["apptainer", "build", "b.sif", "docker-archive:b.tar"]).fine();
        let cluster = Cluster::start(desk);
        for (way, end) in [
            ("scancel", "scancel --me"),
            // The process that stays with the container is the parent of its program.
            ("kill -9", "kill -9 $(sed -n 's/^PPid:\\t//p' /proc/$0/status)"),
        ] {
            let marker = format!("{}{:07}", if desk.ordinary { 4 } else { 5 }, std::process::id());
            let words = ["timeout", "25", "srun", "-n1", "apptainer", "exec", "b.sif", "sleep", &marker];
            let mut job = cluster.command(&words).spawn().unwrap();
            let program = loop {
                if let Some(pid) = sleepers(&marker).first() {
                    break pid.to_string();
                }
                assert!(job.try_wait().unwrap().is_none(), "{way}: the job ended by itself");
                std::thread::yield_now();
            };
            desk::Said::of(cluster.command(&["sh", "-c", end, &program]).output().unwrap()).fine();
            assert!(!job.wait().unwrap().success(), "{way}");
            let soon = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while !sleepers(&marker).is_empty() {
                assert!(std::time::Instant::now() < soon, "{way}: the program still runs");
                std::thread::yield_now();
            }
            // What a monitor that was killed could not remove, the next one does.
            desk.run(&["apptainer", "exec", "b.sif", "true"]).fine();
            let state = if desk.ordinary { "home/.local/share/isles" } else { "home/state" };
            let left = fs::read_dir(desk.path(state).join("containers")).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{way}");
        }
    });
}

#[test]
fn slurm_runs_bundles() {
    if !has_slurm() {
        return;
    }
    let desk = Desk::new(false);
    if !installed("/bin/busybox") {
        return;
    }
    let rootfs = desk.path("home/bundle/rootfs");
    for name in ["bin", "proc", "dev", "sys"] {
        fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", rootfs.join("bin/sh")).unwrap();
    desk.run(&["isles", "oci", "spec", "--bundle", "bundle"]).fine();
    let cluster = Cluster::start(&desk);
    let runtime = format!("{} oci --root {}", desk.path("bin/isles").display(), desk.path("oci").display());
    let name = "%n.%u.%j.%s.%t";
    fs::write(
        cluster.folder.join("oci.conf"),
        format!(
            "RunTimeQuery=\"{runtime} state {name}\"\nRunTimeRun=\"{runtime} run --bundle %b {name}\"\n\
             RunTimeKill=\"{runtime} kill --all {name} KILL\"\nRunTimeDelete=\"{runtime} delete --force {name}\"\n"
        ),
    )
    .unwrap();
    let bundle = format!("--container={}", desk.path("home/bundle").display());
    let script = "echo job $SLURM_JOB_ID; test -e /etc && echo of the host; exit 3";
    let said = cluster.srun(&["-n1", &bundle, "/bin/sh", "-c", script]);
    assert_eq!((said.code, said.out.as_str()), (Some(3), "job 1\n"), "{}", said.err);
    let left = fs::read_dir(desk.path("oci")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

/// The processes that sleep so long.
fn sleepers(marker: &str) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|p| p.file_name().to_str()?.parse().ok());
    let sleeps = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"sleep\0") && line.ends_with(format!("\0{marker}\0").as_bytes())
    };
    numbers.filter(sleeps).collect()
}
