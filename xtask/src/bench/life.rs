//! Containers that live in the background: started, entered, removed, and what their monitors keep in memory, beside docker.

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::Isles;
use super::measure::{Case, Outcome, Sample, interleave, timed};
use super::peers::{Docker, busybox_tree, cache, must};
use super::report::{Section, bound, contenders, faster, promises};
use crate::Result;

const ROUNDS: usize = 12;
const MANY: usize = 100;

pub fn run(isles: &Isles) -> Result<Section> {
    let work = cache().join("life");
    let _ = fs::remove_dir_all(&work);
    let tree = work.join("tree");
    busybox_tree(&tree)?;
    std::os::unix::fs::symlink("busybox", tree.join("bin/sleep")).map_err(|e| e.to_string())?;
    let tar = work.join("tree.tar");
    must(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."))?;
    let root = work.join("isles-root");
    must(isles.command(&root).arg("import").arg(&tar).arg("bench"))?;
    let docker = Docker::start(&work.join("docker"), &[])?;
    must(docker.command().arg("import").arg(&tar).arg("bench"))?;

    let ours = || isles.command(&root);
    let theirs = || docker.command();
    let engines: [(&str, &dyn Fn() -> Command); 2] = [("isles", &ours), ("docker", &theirs)];
    let number = Cell::new(0);
    let started = |make: &dyn Fn() -> Command, name: &str| -> Result<Sample> {
        let mut command = make();
        command.args(["run", "-d", "--network", "none", "--name", name, "bench", "sleep", "100000"]);
        timed(&mut command)
    };
    let name = || {
        number.set(number.get() + 1);
        format!("bench-{}", number.get())
    };
    let removed =
        |make: &dyn Fn() -> Command, name: &str| -> Result<Sample> { timed(make().args(["rm", "-f", name])) };
    let cases = |what: &str, go: &dyn Fn(&dyn Fn() -> Command) -> Result<Sample>| -> Result<Vec<Outcome>> {
        let all = engines.iter().map(|(engine, make)| Case::new(&format!("{engine} {what}"), || go(*make)));
        interleave(all.collect(), ROUNDS)
    };
    let starts = cases("run -d", &|make| {
        let name = name();
        let sample = started(make, &name)?;
        removed(make, &name)?;
        Ok(sample)
    })?;
    let removals = cases("rm -f", &|make| {
        let name = name();
        started(make, &name)?;
        removed(make, &name)
    })?;
    for (_, make) in &engines {
        started(*make, "entered")?;
    }
    let entered = cases("exec true", &|make| timed(make().args(["exec", "entered", "true"])))?;
    let many = interleave(
        engines
            .iter()
            .map(|(engine, make)| {
                Case::new(&format!("{engine}: {MANY} × run -d"), || {
                    let names: Vec<String> = (0..MANY).map(|_| name()).collect();
                    let begin = Instant::now();
                    let mut sum = Sample::default();
                    for name in &names {
                        sum.cpu += started(*make, name)?.cpu;
                    }
                    sum.wall = begin.elapsed().as_secs_f64();
                    must(make().args(["rm", "-f"]).args(&names))?;
                    Ok(sum)
                })
            })
            .collect(),
        1,
    )?;
    // A program that obeys at once.
    const OBEYS: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
    let stops = cases("stop", &|make| {
        let name = name();
        must(make().args(["run", "-d", "--network", "none", "--name", &name, "bench", "sh", "-c", OBEYS]))?;
        // It listens a moment after it has begun.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let sample = timed(make().args(["stop", &name]))?;
        removed(make, &name)?;
        Ok(sample)
    })?;
    const LINE: &str = "0123456789 0123456789 0123456789 0123456789 0123456789";
    let prints = format!("busybox yes '{LINE}' | busybox head -c 104857600");
    for (_, make) in &engines {
        let mut command = make();
        command.args(["run", "-d", "--network", "none", "--name", "loud", "--log-opt", "max-size=1g"]);
        must(command.args(["bench", "sh", "-c", &prints]))?;
        must(make().args(["wait", "loud"]))?;
    }
    let logs = interleave(
        engines
            .iter()
            .map(|(engine, make)| {
                Case::new(&format!("{engine} logs of 100 MiB"), || {
                    let mut command = make();
                    timed(command.args(["logs", "loud"]).stdout(std::process::Stdio::null()))
                })
            })
            .collect(),
        3,
    )?;
    for (_, make) in &engines {
        let mut command = make();
        command.args(["create", "--network", "none", "--log-driver", "none", "--name", "spoken"]);
        must(command.args(["bench", "busybox", "dd", "if=/dev/zero", "bs=65536", "count=4096"]))?;
    }
    let attached = interleave(
        engines
            .iter()
            .map(|(engine, make)| {
                Case::new(&format!("{engine} start -a, 256 MiB"), || {
                    let mut command = make();
                    let command = command.args(["start", "-a", "spoken"]);
                    timed(command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()))
                })
            })
            .collect(),
        5,
    )?;
    for (_, make) in &engines {
        must(make().args(["rm", "-f", "loud", "spoken"]))?;
    }
    let memory = monitor_memory(&root)?;
    for (_, make) in &engines {
        must(make().args(["rm", "-f", "entered"]))?;
    }

    let mut text = String::from(
        "An image of one static busybox; `run -d … sleep` without a network, `exec true` in such a container, `rm -f` \
         of it, and a hundred of them one after the other.\n\n",
    );
    for outcomes in [&starts, &entered, &removals, &many, &stops, &logs, &attached] {
        let first = outcomes.first().map(|outcome| outcome.name.clone()).unwrap_or_default();
        text += &contenders(outcomes, &first);
        text += "\n";
    }
    let mut rows = Vec::new();
    rows.extend(faster(&starts, "isles run -d", "docker run -d", 15.0));
    rows.extend(faster(&entered, "isles exec true", "docker exec true", 10.0));
    rows.extend(faster(&removals, "isles rm -f", "docker rm -f", 10.0));
    rows.extend(faster(&many, &format!("isles: {MANY} × run -d"), &format!("docker: {MANY} × run -d"), 10.0));
    rows.push(bound("stop of a program that obeys", stops[0].wall() * 1000.0, 20.0, "ms"));
    rows.extend(faster(&logs, "isles logs of 100 MiB", "docker logs of 100 MiB", 20.0));
    rows.extend(faster(&attached, "isles start -a, 256 MiB", "docker start -a, 256 MiB", 5.0));
    rows.push(bound("private dirty memory of a monitor", memory as f64, 300.0, "KiB"));
    text += &promises(&rows);
    Ok(Section { name: "life", title: "Containers in the background", text })
}

/// Private dirty memory of the monitor of the only container that runs, in KiB.
fn monitor_memory(root: &Path) -> Result<u64> {
    let containers = root.join("containers");
    let fail = |e: std::io::Error| format!("{}: {e}", containers.display());
    for entry in fs::read_dir(&containers).map_err(fail)? {
        let Ok(text) = fs::read(entry.map_err(fail)?.path().join("state.json")) else { continue };
        let state: serde_json::Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
        let Some(monitor) = state["monitor"][0].as_i64() else { continue };
        let Ok(text) = fs::read_to_string(format!("/proc/{monitor}/smaps_rollup")) else { continue };
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
        if let Some(number) = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()) {
            return Ok(number);
        }
    }
    Err("no monitor runs".into())
}
