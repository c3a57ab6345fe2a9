//! Networks of root's beside docker's, both on a host of their own: what a bridge and a published port cost at a start, with
//! and without many others, and what goes through one.

use std::cell::Cell;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Isles;
use super::floor;
use super::measure::{Case, Sample, interleave, timed};
use super::network::received;
use super::peers::{Docker, Host, busybox_tree, cache, must};
use super::report::{Row, Section, contenders, faster, promises};
use crate::Result;

const ROUNDS: usize = 12;
const OTHERS: usize = 2000;
/// A bridge of the kernel's has 1,024 places.
const IN_ONE: usize = 1000;
const THROUGHPUTS: usize = 5;

pub fn run(isles: &Isles) -> Result<Section> {
    let work = cache().join("bridge");
    let _ = fs::remove_dir_all(&work);
    let tree = work.join("tree");
    busybox_tree(&tree)?;
    std::os::unix::fs::symlink("busybox", tree.join("bin/sleep")).map_err(|e| e.to_string())?;
    // With the libraries of the host's iperf3, which is a part of what is measured.
    let copied = "cp --parents /usr/bin/iperf3 $(ldd /usr/bin/iperf3 | grep -o '/[^ ]*') \"$0\" && mkdir -p \"$0/tmp\"";
    must(Command::new("sh").args(["-c", copied]).arg(&tree))?;
    let tar = work.join("tree.tar");
    must(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."))?;
    let host = Host::new()?;
    let root = work.join("isles-root");
    let ours = || {
        let mut command = host.command(&isles.program);
        command.env("ISLES_ROOT", &root);
        command
    };
    must(ours().arg("import").arg(&tar).arg("bench"))?;
    let docker = Docker::start_with_bridge(&host, &work.join("docker"))?;
    must(docker.command().arg("import").arg(&tar).arg("bench"))?;
    // Docker drops what is forwarded between others' devices.
    must(host.command("iptables").args(["-I", "DOCKER-USER", "-j", "ACCEPT"]))?;
    let theirs = || docker.command();

    let number = Cell::new(0);
    let name = || {
        number.set(number.get() + 1);
        format!("bench-{}", number.get())
    };
    let start = |make: &dyn Fn() -> Command, more: &[&str], name: &str| -> Result<Sample> {
        timed(make().args(["run", "-d", "--name", name]).args(more).args(["bench", "sleep", "100000"]))
    };
    let remove = |make: &dyn Fn() -> Command, name: &str| must(make().args(["rm", "-f", name]));
    let one = |make: &dyn Fn() -> Command, more: &[&str]| -> Result<Sample> {
        let name = name();
        let sample = start(make, more, &name)?;
        remove(make, &name)?;
        Ok(sample)
    };
    must(ours().args(["network", "create", "few"]))?;
    let published = ["-p", "127.0.0.1:15000:80"];
    let with_port = ["--network", "few", "-p", "127.0.0.1:15001:80"];
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let kernel = || timed(host.command(&program).arg(floor::COMMAND).arg(&tree));
    let cases = vec![
        Case::new("isles run -d -p", || one(&ours, &with_port)),
        Case::new("docker run -d -p", || one(&theirs, &published)),
        Case::new("isles run -d on a bridge", || one(&ours, &["--network", "few"])),
        Case::new("docker run -d on a bridge", || one(&theirs, &[])),
        Case::new("isles run -d without a network", || one(&ours, &["--network", "none"])),
        Case::new("the kernel alone", kernel),
    ];
    let starts = interleave(cases, ROUNDS)?;

    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..THROUGHPUTS {
        for (which, rates) in rates.iter_mut().enumerate() {
            let make: &dyn Fn() -> Command = match which {
                0 => &ours,
                1 => &theirs,
                _ => {
                    rates.push(plain(&host, 5201 + round)?);
                    continue;
                }
            };
            let network: &[&str] = if which == 0 { &["--network", "few"] } else { &[] };
            let port = format!("{}", 16_000 + 2 * round + which);
            let name = name();
            let publish = format!("127.0.0.1:{port}:5201");
            let mut server = make();
            server.args(["run", "-d", "--name", &name]).args(network).args(["-p", &publish, "bench"]);
            must(server.args(["/usr/bin/iperf3", "-s"]))?;
            rates.push(rate(&host, &port)?);
            remove(make, &name)?;
        }
    }
    let [own, other, plain] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });

    for (index, network) in ["many-1", "many-2"].iter().enumerate() {
        must(ours().args(["network", "create", network]))?;
        for at in 0..OTHERS.min(IN_ONE) {
            let port = format!("127.0.0.1:{}:80", 20_000 + index * IN_ONE + at);
            start(&ours, &["--network", network, "-p", &port], &name())?;
        }
    }
    let crowded = interleave(
        vec![
            Case::new("isles run -d -p, 2,000 others", || one(&ours, &with_port)),
            Case::new("the kernel alone, 2,000 others", kernel),
        ],
        ROUNDS,
    )?;
    let all = ours().args(["ps", "-aq"]).output().map_err(|e| e.to_string())?;
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    let all: Vec<&str> = all.lines().collect();
    let begin = Instant::now();
    must(ours().args(["rm", "-f"]).args(&all))?;
    let removed = begin.elapsed().as_secs_f64();

    let mut text = String::from(
        "An image of one static busybox, on a host of its own (a network namespace); `run -d`, with one published port and \
         without, and with 2,000 other containers that run and have a published port each. The kernel alone is a process \
         that makes the namespaces, devices and mounts of a container with the same calls, and ends.\n\n",
    );
    let mut outcomes = starts.clone();
    outcomes.extend(crowded.clone());
    text += &contenders(&outcomes, "isles run -d -p");
    text += &format!(
        "\niperf3 into a published port over the host's loopback, one connection, the median of {THROUGHPUTS}: isles \
         {:.1} Gbit/s, docker with its proxy {:.1} Gbit/s; over the loopback alone, without any container, {:.1} Gbit/s, \
         which is {:.2} × docker's.\n\n",
        own / 1e9,
        other / 1e9,
        plain / 1e9,
        plain / other
    );
    let of =
        |name: &str| starts.iter().chain(&crowded).find(|o| o.name == name).map_or(f64::NAN, |o| o.wall());
    let (alone, among) = (of("the kernel alone"), of("the kernel alone, 2,000 others"));
    text += &format!(
        "With the {OTHERS} others the kernel alone takes {:.2} × as long, {:.2} ms more; a start takes {:.2} ms more.\n\n",
        among / alone,
        (among - alone) * 1e3,
        (of("isles run -d -p, 2,000 others") - of("isles run -d -p")) * 1e3
    );
    text += &format!("`rm -f` of the {OTHERS}: {removed:.1} s.\n\n");
    let mut rows = Vec::new();
    rows.extend(faster(&starts, "isles run -d -p", "docker run -d -p", 15.0));
    let ratio = crowded[0].wall() / starts[0].wall();
    let row = |what: &str, value: f64, kept: bool| Row {
        what: what.to_owned(),
        value: format!("{value:.2} ×"),
        promise: String::from(if kept { "kept" } else { "**missed**" }),
    };
    rows.push(row("a start with 2,000 others: at most 1.5 × one without", ratio, ratio <= 1.5));
    rows.push(row("a published port carries at least 2 × docker's", own / other, own >= 2.0 * other));
    text += &promises(&rows);
    drop(docker);
    let _ = fs::remove_dir_all(&work);
    Ok(Section { name: "bridge", title: "Networks of root's", text })
}

/// Bits a second to a server of the host's own, by nothing but the loopback.
fn plain(host: &Host, port: usize) -> Result<f64> {
    let port = port.to_string();
    let mut server = host.command("iperf3");
    server.args(["-s", "-1", "-p", &port]).stdout(Stdio::null());
    let mut server = server.spawn().map_err(|e| format!("iperf3: {e}"))?;
    let measured = rate(host, &port);
    if measured.is_err() {
        let _ = server.kill();
    }
    let _ = server.wait();
    measured
}

/// Bits a second into a published port.
fn rate(host: &Host, port: &str) -> Result<f64> {
    let begin = Instant::now();
    loop {
        let mut client = host.command("iperf3");
        client.args(["-c", "127.0.0.1", "-p", port, "-t", "2", "-J"]).stderr(Stdio::null());
        let output = client.output().map_err(|e| format!("iperf3: {e}"))?;
        match received(&output.stdout) {
            Some(rate) => return Ok(rate),
            None if begin.elapsed() > Duration::from_secs(20) => {
                return Err(format!("iperf3: {}", String::from_utf8_lossy(&output.stdout)));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
