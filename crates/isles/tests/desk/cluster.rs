//! Slurm on this machine alone.

use std::fs;
use std::path::Path;

use super::{Desk, Said, installed};

/// Whether there is what a cluster of one node needs.
pub fn has_slurm() -> bool {
    let all = ["slurmctld", "slurmd", "munged", "srun"].into_iter().all(installed);
    if all && !rustix::process::geteuid().is_root() {
        println!("skip: Slurm's daemons need root");
        return false;
    }
    all
}

/// Slurm on this machine alone: one controller, one node.
pub struct Cluster<'a> {
    desk: &'a Desk,
    pub folder: std::path::PathBuf,
    nodes: Vec<String>,
}

impl Cluster<'_> {
    /// One node with two processors.
    pub fn start(desk: &Desk) -> Cluster<'_> {
        Cluster::of(desk, 1, 2)
    }

    /// Several nodes, all of which are this machine, with a daemon each.
    pub fn of(desk: &Desk, nodes: usize, cpus: usize) -> Cluster<'_> {
        let folder = desk.path("slurm");
        for name in ["state", "spool"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let at = folder.display();
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let name = name.trim().split('.').next().unwrap().to_owned();
        let port = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let controller = port();
        let names: Vec<String> = (1..=nodes).map(|n| format!("{name}{n}")).collect();
        let lines: String = names
            .iter()
            .map(|node| {
                let port = port();
                fs::create_dir_all(folder.join("spool").join(node)).unwrap();
                format!("NodeName={node} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} State=UNKNOWN\n")
            })
            .collect();
        let list = names.join(",");
        fs::write(
            folder.join("slurm.conf"),
            format!(
                "ClusterName=desk\nSlurmctldHost={name}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\nAuthType=auth/munge\n\
                 AuthInfo=socket={at}/munge.socket\nCredType=cred/munge\nStateSaveLocation={at}/state\n\
                 SlurmdSpoolDir={at}/spool/%n\nSlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/%n.pid\n\
                 SlurmctldPort={controller}\nProctrackType=proctrack/linuxproc\n\
                 TaskPlugin=task/none\nSchedulerType=sched/builtin\nSelectType=select/cons_tres\n\
                 AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none\n\
                 MpiDefault=none\nReturnToService=2\nKillWait=2\n{lines}PartitionName=all Nodes={list} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE\n"
            ),
        )
        .unwrap();
        let cluster = Cluster { desk, folder, nodes: names };
        let script = "cd $0; head -c 1024 /dev/urandom > key; chmod 600 key; \
                      munged --force --key-file=$0/key --socket=$0/munge.socket --pid-file=$0/munged.pid \
                      --log-file=$0/munged.log --seed-file=$0/seed; \
                      slurmctld -c -L $0/slurmctld.log; \
                      for node; do slurmd -N $node -L $0/slurmd.log; done; \
                      until [ \"$(sinfo -h -N -t idle -o %N | sort -u | wc -l)\" = $# ]; do sleep 0.1; done";
        let mut start = desk.daemon(&["timeout", "25", "sh", "-ec", script]);
        start.env("SLURM_CONF", cluster.folder.join("slurm.conf")).arg(&cluster.folder).args(&cluster.nodes);
        let said = Said::of(start.output().unwrap());
        let log = |name: &str| fs::read_to_string(cluster.folder.join(name)).unwrap_or_default();
        assert_eq!(said.code, Some(0), "{said:?}\n{}\n{}", log("slurmctld.log"), log("slurmd.log"));
        cluster
    }

    pub fn command(&self, words: &[&str]) -> std::process::Command {
        let mut command = self.desk.command(words);
        command.env("SLURM_CONF", self.folder.join("slurm.conf"));
        command
    }

    pub fn srun(&self, words: &[&str]) -> Said {
        Said::of(self.command(&[&["timeout", "20", "srun"], words].concat()).output().unwrap())
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        let of_nodes = self.nodes.iter().map(String::as_str);
        for name in of_nodes.chain(["slurmctld", "munged"]) {
            let file = self.folder.join(format!("{name}.pid"));
            let pid = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                while Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists() {
                    std::thread::yield_now();
                }
            }
        }
    }
}
