//! Steps in an allocation of Slurm: one worker for each node, started by one srun, which stays until the run ends.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use isles_flow::pool::Limits;
use isles_flow::remote::{Remote, Worker};
use isles_flow::step::{Executor, ImageSource, Outcome, Step};

use crate::context::Context;
use crate::failure::Failure;

/// The nodes of an allocation.
pub struct Slurm {
    remote: Remote,
    pilots: Mutex<Vec<Child>>,
    limits: Limits,
}

/// What a node has for us.
#[derive(Debug, Clone, PartialEq)]
struct Node {
    name: String,
    cores: u32,
    mebibytes: u64,
}

impl Slurm {
    /// Starts the workers. `images` makes images ready on this machine.
    pub fn start(cx: &Context, containers: bool, images: Arc<dyn Executor>) -> Result<Slurm, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let outside = || {
            Failure::new("there is no allocation of Slurm here, in which steps could run")
                .with_hint("run this command in a batch script, or as `salloc [options] isles cwl run …`")
        };
        let list = variable("SLURM_JOB_NODELIST").ok_or_else(outside)?;
        let cores = variable("SLURM_JOB_CPUS_PER_NODE").ok_or_else(outside)?;
        let said = Command::new("scontrol").args(["show", "hostnames", &list]).output();
        let said =
            said.map_err(|e| Failure::because("cannot ask scontrol for the nodes of the allocation", &e))?;
        if !said.status.success() {
            let text = String::from_utf8_lossy(&said.stderr).trim().to_owned();
            return Err(Failure::new(format!("scontrol does not know the nodes {list}: {text}")));
        }
        let names: Vec<String> =
            String::from_utf8_lossy(&said.stdout).split_whitespace().map(str::to_owned).collect();
        let whole = Limits::of_this_machine().mebibytes;
        let memory = (variable("SLURM_MEM_PER_NODE"), variable("SLURM_MEM_PER_CPU"));
        let nodes =
            nodes(&names, &cores, (memory.0.as_deref(), memory.1.as_deref()), whole).ok_or_else(|| {
                Failure::new(format!("SLURM_JOB_CPUS_PER_NODE is '{cores}', for the nodes {list}"))
            })?;
        let program =
            std::env::current_exe().map_err(|e| Failure::because("cannot find this program", &e))?;
        let mut pilots = Vec::new();
        let mut workers = Vec::new();
        for node in &nodes {
            let mut srun = Command::new("srun");
            srun.args([
                "--nodes=1",
                "--ntasks=1",
                "--overlap",
                "--cpu-bind=none",
                "--mpi=none",
                "--unbuffered",
            ])
            .args(["--input=all", "--export=ALL", "--mem=0"])
            .arg(format!("--nodelist={}", node.name))
            .arg(format!("--cpus-per-task={}", node.cores))
            .arg(&program);
            if let Some(root) = &cx.root {
                srun.arg("--root").arg(root);
            }
            srun.args(["flow", "worker"]).args(containers.then_some("--containers"));
            // Signals of the terminal are for this program, which ends the workers by their input.
            srun.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut pilot = srun
                .spawn()
                .map_err(|e| Failure::because("cannot start srun, which starts the workers", &e))?;
            if let (Some(input), Some(output)) = (pilot.stdin.take(), pilot.stdout.take()) {
                workers.push(Worker {
                    name: node.name.clone(),
                    cores: f64::from(node.cores),
                    mebibytes: node.mebibytes,
                    input: Box::new(input),
                    output: Box::new(output),
                });
            }
            pilots.push(pilot);
        }
        let limits = Limits {
            cores: nodes.iter().map(|node| f64::from(node.cores)).sum(),
            mebibytes: nodes.iter().map(|node| node.mebibytes).sum(),
            slots: Limits::of_this_machine().slots,
        };
        Ok(Slurm { remote: Remote::new(workers, images), pilots: Mutex::new(pilots), limits })
    }

    /// All nodes together.
    pub fn limits(&self) -> Limits {
        self.limits
    }
}

impl Executor for Slurm {
    fn image(&self, source: &ImageSource) -> Result<String, String> {
        self.remote.image(source)
    }

    fn run(&self, step: Step, talk: &mut dyn FnMut(&[u8])) -> Result<Outcome, String> {
        self.remote.run(step, talk)
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.remote.dismiss();
        for pilot in self.pilots.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            let _ = pilot.wait();
        }
    }
}

/// `2(x3),4`: three nodes with two processors, and one with four. Memory is given for each node or each processor, in MiB;
/// where Slurm does not share it out, all that a machine has.
fn nodes(
    names: &[String],
    cores: &str,
    (per_node, per_cpu): (Option<&str>, Option<&str>),
    whole: u64,
) -> Option<Vec<Node>> {
    let mut counts = Vec::new();
    for part in cores.split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse().ok()?),
            None => (part, 1usize),
        };
        let count: u32 = count.parse().ok().filter(|count| *count > 0)?;
        counts.extend(std::iter::repeat_n(count, times.min(names.len())));
    }
    if counts.len() != names.len() {
        return None;
    }
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok()).filter(|n| *n > 0);
    let memory = |cores: u32| match (number(per_node), number(per_cpu)) {
        (Some(all), _) => all,
        (None, Some(each)) => each.saturating_mul(cores.into()),
        (None, None) => whole,
    };
    let node = |(name, cores): (&String, u32)| Node { name: name.clone(), cores, mebibytes: memory(cores) };
    Some(names.iter().zip(counts).map(node).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_slurm_says_of_its_nodes() {
        let names: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let of = |cores: &str, memory| nodes(&names, cores, memory, 7);
        let found = of("2(x2),4", (None, Some("100"))).unwrap();
        let found: Vec<_> = found.iter().map(|node| (&*node.name, node.cores, node.mebibytes)).collect();
        assert_eq!(found, [("a", 2, 200), ("b", 2, 200), ("c", 4, 400)]);
        assert_eq!(of("8(x3)", (Some("5"), Some("9"))).unwrap()[2].mebibytes, 5);
        assert_eq!(of("8(x3)", (Some("0"), None)).unwrap()[2].mebibytes, 7);
        for wrong in ["", "2", "2(x4),1", "2(x", "0(x3)", "2(x99999999999999999999)", "a(x3)"] {
            assert_eq!(of(wrong, (None, None)), None, "{wrong}");
        }
    }
}
