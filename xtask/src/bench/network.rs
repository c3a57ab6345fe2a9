//! What networks of ordinary users carry: a published port and a way out, beside pasta and slirp4netns.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Isles;
use super::peers::{ORDINARY, cache, must};
use super::report::{Row, Section, promises};
use crate::Result;

const ROUNDS: usize = 5;
/// So long each measurement lasts.
const SECONDS: &str = "2";
/// Becomes the ordinary user where `/dev/net/tun`, which the peers need, is `$0`.
const AS_ORDINARY: &str =
    "mount --bind \"$0\" /dev/net/tun && exec setpriv --reuid 4242 --regid 4242 --clear-groups \"$@\"";

/// One way of bytes, and what carries it.
struct Contender<'a> {
    name: &'static str,
    begin: Box<dyn Fn(u16) -> Command + 'a>,
    /// The client is on the host and comes in by a published port; else it is inside, and asks for the host's loopback.
    published: bool,
    reverse: bool,
}

pub fn run(isles: &Isles) -> Result<Section> {
    let dir = cache().join("network");
    let _ = fs::remove_dir_all(&dir);
    let fail = |e: std::io::Error| format!("{}: {e}", dir.display());
    fs::create_dir_all(&dir).map_err(fail)?;
    let state = dir.join("state");
    fs::create_dir(&state).map_err(fail)?;
    std::os::unix::fs::chown(&state, Some(ORDINARY), Some(ORDINARY)).map_err(fail)?;
    let tun = dir.join("tun");
    must(Command::new("mknod").args(["-m", "666"]).arg(&tun).args(["c", "10", "200"]))?;

    let own = |words: &[&str]| {
        let mut command = as_ordinary(&tun, &isles.program);
        command.env("ISLES_ROOT", &state).env("HOME", &state);
        command.args(["run", "--rm", "--rootfs", "/"]).args(words).arg("--").arg("iperf3");
        command
    };
    let pasta = |words: &[&str]| {
        let mut command = as_ordinary(&tun, Path::new("pasta"));
        command.args(["--config-net", "-q", "-f"]).args(words).args(["--", "iperf3"]);
        command
    };
    let server = |mut command: Command| {
        command.args(["-s", "-1", "-p", "5201"]);
        command
    };
    let mut contenders = Vec::new();
    for (reverse, ours, theirs) in [
        (false, "isles, into a published port", "pasta, into a published port"),
        (true, "isles, out of a published port", "pasta, out of a published port"),
    ] {
        contenders.push(Contender {
            name: ours,
            begin: Box::new(move |port| server(own(&["-p", &format!("127.0.0.1:{port}:5201")]))),
            published: true,
            reverse,
        });
        contenders.push(Contender {
            name: theirs,
            begin: Box::new(move |port| server(pasta(&["-t", &format!("127.0.0.1/{port}:5201")]))),
            published: true,
            reverse,
        });
    }
    for (reverse, ours, theirs) in [
        (false, "isles, an upload", "slirp4netns, an upload"),
        (true, "isles, a download", "slirp4netns, a download"),
    ] {
        contenders.push(Contender {
            name: ours,
            begin: Box::new(move |port| {
                let mut command = own(&["--network", "slirp4netns:allow_host_loopback=true"]);
                command.args(["-c", "host.containers.internal", "-p", &port.to_string()]);
                command
            }),
            published: false,
            reverse,
        });
        let tun = tun.clone();
        contenders.push(Contender {
            name: theirs,
            begin: Box::new(move |port| slirp(&tun, port, reverse)),
            published: false,
            reverse,
        });
    }
    let mut rates: Vec<Vec<f64>> = contenders.iter().map(|_| Vec::new()).collect();
    for round in 0..ROUNDS {
        for (number, contender) in contenders.iter().enumerate() {
            let port = 17_000 + (round * contenders.len() + number) as u16;
            rates[number].push(rate(contender, port)?);
        }
    }
    let mut text = String::from(
        "iperf3, one connection, two seconds, everybody as an ordinary user without subuids. A published port is reached \
         over the host's loopback, where pasta splices; the other way is out to a server on the host's loopback.\n\n\
         | | median | most |\n|---|---|---|\n",
    );
    let mut medians = Vec::new();
    for (contender, rates) in contenders.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let median = rates[rates.len() / 2];
        medians.push(median);
        let most = rates.last().copied().unwrap_or_default();
        text.push_str(&format!(
            "| {} | {:.1} Gbit/s | {:.1} Gbit/s |\n",
            contender.name,
            median / 1e9,
            most / 1e9
        ));
    }
    let against = |ours: usize, times: f64| Row {
        what: format!("{}: at least {times} × {}", contenders[ours].name, contenders[ours + 1].name),
        value: format!("{:.2} ×", medians[ours] / medians[ours + 1]),
        promise: String::from(if medians[ours] >= times * medians[ours + 1] { "kept" } else { "**missed**" }),
    };
    text.push_str(&promises(&[against(0, 1.0), against(2, 1.0), against(4, 1.5), against(6, 1.5)]));
    let _ = fs::remove_dir_all(&dir);
    Ok(Section { name: "network", title: "Networks of ordinary users", text })
}

fn as_ordinary(tun: &Path, program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", AS_ORDINARY]).arg(tun).arg(program);
    command
}

/// A network namespace that slirp4netns serves, in which a client runs. `$0` is the port, `$1` an option of the client's.
const SLIRP: &str = "cd $(mktemp -d) && mkfifo made ready || exit 1
unshare -Urn sh -c 'echo > made; exec sleep 60' & inside=$!
read line < made
slirp4netns --configure --mtu=65520 --ready-fd=3 $inside tap0 > /dev/null 2>&1 3> ready & slirp=$!
head -c 1 ready > /dev/null
nsenter -t $inside -U -n --preserve-credentials iperf3 -c 10.0.2.2 -p $0 -J -t $1 $2
kill $slirp $inside; rm -r $PWD";

fn slirp(tun: &Path, port: u16, reverse: bool) -> Command {
    let mut command = as_ordinary(tun, Path::new("sh"));
    command.args(["-c", SLIRP, &port.to_string(), SECONDS]);
    command.args(if reverse { &["-R"][..] } else { &[] });
    command
}

/// Bits a second, as the receiver has it.
fn rate(contender: &Contender<'_>, port: u16) -> Result<f64> {
    let reverse = if contender.reverse { &["-R"][..] } else { &[] };
    if contender.published {
        let server = Ended((contender.begin)(port).stdout(Stdio::null()).spawn().map_err(|e| e.to_string())?);
        let number = port.to_string();
        let begin = Instant::now();
        loop {
            let mut client = Command::new("iperf3");
            client.args(["-c", "127.0.0.1", "-p", &number, "-t", SECONDS, "-J"]).args(reverse);
            let output = client.output().map_err(|e| format!("iperf3: {e}"))?;
            match received(&output.stdout) {
                Some(rate) => {
                    drop(server);
                    return Ok(rate);
                }
                None if begin.elapsed() > Duration::from_secs(20) => {
                    return Err(format!("{}: {}", contender.name, String::from_utf8_lossy(&output.stdout)));
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
    let number = port.to_string();
    let mut server = Command::new("iperf3");
    server.args(["-s", "-1", "-B", "127.0.0.1", "-p", &number]).stdout(Stdio::null());
    let _server = Ended(server.spawn().map_err(|e| format!("iperf3: {e}"))?);
    while std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut client = (contender.begin)(port);
    if contender.name.starts_with("isles") {
        client.args(["-J", "-t", SECONDS]).args(reverse);
    }
    let output = client.output().map_err(|e| e.to_string())?;
    received(&output.stdout).ok_or_else(|| {
        let said = [output.stdout, output.stderr].concat();
        format!("{}: {}", contender.name, String::from_utf8_lossy(&said))
    })
}

/// What iperf3's report in JSON says of the receiver.
pub fn received(report: &[u8]) -> Option<f64> {
    let text = String::from_utf8_lossy(report);
    let sum = text.rsplit_once("\"sum_received\"")?.1;
    let rate = sum.split_once("\"bits_per_second\":")?.1;
    rate.split([',', '\n', '}']).next()?.trim().parse().ok()
}

/// A process that is ended when this is dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // SAFETY: kill(2) on a child that has not been waited for cannot reach another process.
        unsafe { libc::kill(self.0.id() as libc::pid_t, libc::SIGTERM) };
        let _ = self.0.wait();
    }
}
