//! What a container uses, and its processes: from its control group where a controller counts it, else from its processes in
//! /proc.

use std::collections::BTreeSet;

use isles_sandbox::cgroup::Limits;
use isles_spec::Resources;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::record::{Info, Record, Status, now};

/// Counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Nanoseconds of processor time since the start.
    pub cpu: u64,
    /// Bytes, without what is only cached of files.
    pub memory: u64,
    /// Bytes that it may have: its limit, or what the machine has.
    pub memory_limit: u64,
    /// Bytes since the start; `None` where the network is not the container's own.
    pub network: Option<(u64, u64)>,
    /// Bytes read and written since the start, where they are counted.
    pub block: Option<(u64, u64)>,
    pub processes: u64,
}

/// One process of a container, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub uid: u32,
    /// One letter (proc_pid_stat(5)).
    pub state: char,
    /// Major and minor number of its terminal; 0 for none.
    pub terminal: i32,
    /// Ticks of the processor.
    pub ticks: u64,
    /// Ticks since boot.
    pub began: u64,
    pub threads: u64,
    /// Bytes.
    pub virtual_size: u64,
    pub resident: u64,
    pub name: String,
    pub command: String,
}

/// Ticks in a second, which Linux has for all programs.
pub const TICKS: u64 = 100;

impl Engine {
    /// What a container that runs has used; `None` where it does not run.
    pub fn usage(&self, info: &Info) -> Result<Option<Usage>> {
        let Some(pid) = info.state.pid.filter(|_| matches!(info.status, Status::Running | Status::Paused))
        else {
            return Ok(None);
        };
        let processes = self.processes_of(info)?;
        let stats = self.group(&info.record.id)?.stats();
        let anonymous = || processes.iter().map(|process| anonymous(process.pid)).sum();
        let memory = match (stats.memory, stats.memory_inactive_file) {
            (Some(all), cached) => all.saturating_sub(cached.unwrap_or(0)),
            (None, _) => anonymous(),
        };
        let whole = machine_memory();
        let ticks: u64 = processes.iter().map(|process| process.ticks).sum();
        let block = stats.io.iter().fold((0, 0), |(r, w), io| (r + io.read_bytes, w + io.write_bytes));
        Ok(Some(Usage {
            time: now(),
            cpu: stats.cpu_total.unwrap_or(ticks * (1_000_000_000 / TICKS)),
            memory,
            memory_limit: stats.memory_limit.filter(|limit| *limit < whole).unwrap_or(whole),
            network: network(pid),
            block: (!stats.io.is_empty()).then_some(block),
            processes: stats.pids.unwrap_or(processes.len() as u64),
        }))
    }

    /// The processes of a container, the first one first.
    ///
    /// # Errors
    /// It does not run.
    pub fn processes(&self, name: &str) -> Result<Vec<Process>> {
        let info = self.begun(name)?;
        if !matches!(info.status, Status::Running | Status::Paused) {
            return Err(Error::NotRunning(name.to_owned()));
        }
        self.processes_of(&info)
    }

    /// Those of its control group, or where it has none of its PID namespace, and those that its first process has started.
    fn processes_of(&self, info: &Info) -> Result<Vec<Process>> {
        let group = self.group(&info.record.id)?;
        let mut pids: BTreeSet<i32> = group.processes()?.into_iter().collect();
        let mut more: Vec<i32> = info.state.pid.into_iter().collect();
        if group.is_absent() {
            let all = info.state.pid.map(in_namespace_of).unwrap_or_default();
            // In this process's own namespace are those of everybody.
            let is_own = all.contains(&std::process::id().cast_signed());
            more.extend(all.into_iter().filter(|_| !is_own));
        }
        while let Some(pid) = more.pop() {
            pids.insert(pid);
            more.extend(children(pid).into_iter().filter(|child| !pids.contains(child)));
        }
        // One that has ended meanwhile is none.
        let mut all: Vec<Process> = pids.into_iter().filter_map(process).collect();
        all.sort_by_key(|process| (Some(process.pid) != info.state.pid, process.pid));
        Ok(all)
    }

    /// Changes the limits of a container, at once where it runs, and for later starts. What is not given stays.
    ///
    /// # Errors
    /// A limit is not possible, or this machine cannot set it.
    pub fn update(&self, name: &str, wanted: &Resources) -> Result<()> {
        let info = self.begun(name)?;
        let container = self.store.container(&info.record.id)?;
        let _names = self.store.lock_names()?;
        let mut record = Record::load(&container)?.ok_or_else(|| Error::NoContainer(name.to_owned()))?;
        let own = &mut record.workload.resources;
        merge(own, wanted);
        if let (Some(memory), Some(both)) = (own.memory, own.memory_swap)
            && both >= 0
            && (both as u64) < memory
        {
            return Err(isles_spec::Error::new("the sum of memory and swap is below the limit of memory")
                .with_hint("give --memory-swap, too")
                .into());
        }
        if matches!(info.status, Status::Running | Status::Paused) {
            let mut group = self.group(&info.record.id)?;
            if group.is_absent() {
                return Err(Error::impossible(
                    format!("changing the limits of container {name}"),
                    "it has no control group; an ordinary user needs one that was delegated",
                ));
            }
            group.update(&Limits::from(wanted), false)?;
        }
        record.save(&container)?;
        self.note(&record, "update", &[]);
        Ok(())
    }
}

fn merge(own: &mut Resources, wanted: &Resources) {
    fn or<T: Clone>(own: &mut Option<T>, wanted: &Option<T>) {
        if wanted.is_some() {
            own.clone_from(wanted);
        }
    }
    or(&mut own.memory, &wanted.memory);
    or(&mut own.memory_swap, &wanted.memory_swap);
    or(&mut own.nano_cpus, &wanted.nano_cpus);
    or(&mut own.cpu_shares, &wanted.cpu_shares);
    or(&mut own.cpuset_cpus, &wanted.cpuset_cpus);
    or(&mut own.cpuset_mems, &wanted.cpuset_mems);
    or(&mut own.pids, &wanted.pids);
    or(&mut own.block_weight, &wanted.block_weight);
}

/// Processes in the PID namespace of another one, whoever has started them; none where that one is gone. What may not be
/// looked into is left out.
pub fn in_namespace_of(pid: i32) -> Vec<i32> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(&pid.to_string()) else { return Vec::new() };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter(|number| namespace(&number.to_string()).as_ref() == Some(&wanted)).collect()
}

/// The children of a process, of all its threads (proc_pid_task_tid_children(5)).
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists =
        threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

fn process(pid: i32) -> Option<Process> {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).ok();
    let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
    let words = String::from_utf8_lossy(&read("cmdline").unwrap_or_default()).replace('\0', " ");
    let status = String::from_utf8_lossy(&read("status")?).into_owned();
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_whitespace().next()?.parse().ok()?;
    parse(pid, uid, &stat, words.trim_end())
}

fn parse(pid: i32, uid: u32, stat: &str, words: &str) -> Option<Process> {
    const PAGE: u64 = 4096;
    let (before, rest) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    // The state is the third field.
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        uid,
        state: fields.first()?.chars().next()?,
        terminal: fields.get(4)?.parse().ok()?,
        ticks: number(14)? + number(15)?,
        began: number(22)?,
        threads: number(20)?,
        virtual_size: number(23)?,
        resident: number(24)? * PAGE,
        // A thread of the kernel, or one that has ended, has no words.
        command: if words.is_empty() { format!("[{name}]") } else { words.to_owned() },
        name,
    })
}

/// Bytes that are in no file.
fn anonymous(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    };
    (of("RssAnon:").unwrap_or(0) + of("RssShmem:").unwrap_or(0)) << 10
}

fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    total.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Bytes that a process's network namespace has received and sent, but for its loopback; `None` where that is ours.
fn network(pid: i32) -> Option<(u64, u64)> {
    let space = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/net")).ok();
    if space(&pid.to_string())? == space("self")? {
        return None;
    }
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    let mut sum = (0, 0);
    for line in text.lines().skip(2) {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        if name.trim() != "lo" && numbers.len() > 8 {
            sum = (sum.0 + numbers[0], sum.1 + numbers[8]);
        }
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat() {
        let stat = "42 (a) b) S 7 42 42 34816 42 4194560 100 0 0 0 150 50 0 0 20 0 3 0 9000 1048576 256 18446744073709551615";
        let found = parse(42, 1000, stat, "a b").unwrap();
        assert_eq!((found.name.as_str(), found.parent, found.state), ("a) b", 7, 'S'));
        assert_eq!((found.ticks, found.threads, found.began), (200, 3, 9000));
        assert_eq!((found.virtual_size, found.resident), (1 << 20, 1 << 20));
        assert_eq!(parse(42, 0, stat, "").unwrap().command, "[a) b]");
        for bad in ["", "42", "42 (a)", "42 (a) S"] {
            assert_eq!(parse(42, 0, bad, ""), None, "{bad}");
        }
    }

    #[test]
    fn this_process_has_numbers() {
        let own = std::process::id() as i32;
        let found = process(own).unwrap();
        assert!(found.resident > 0 && anonymous(own) > 0 && machine_memory() > 1 << 20);
        assert_eq!(network(own), None, "it is ours");
    }
}
