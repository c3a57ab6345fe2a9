//! `isles info`: what is here and on what it runs, under docker's names where docker has one.

use isles_engine::Status;
use isles_sandbox::cgroup::Layout;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::format::Format;

/// Show what is here and on what it runs. `isles doctor` tells what the machine lacks.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles info\n  isles info -f '{{.DockerRootDir}} {{.CgroupVersion}}'")]
pub struct Args {
    /// How to print: table, json, or a template such as '{{.NCPU}}'.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct About {
    server_version: &'static str,
    containers: usize,
    containers_running: usize,
    containers_paused: usize,
    containers_stopped: usize,
    images: usize,
    driver: &'static str,
    logging_driver: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_version: Option<&'static str>,
    security_options: Vec<&'static str>,
    kernel_version: String,
    operating_system: String,
    #[serde(rename = "OSType")]
    os_type: &'static str,
    architecture: String,
    #[serde(rename = "NCPU")]
    ncpu: usize,
    mem_total: u64,
    name: String,
    docker_root_dir: String,
}

pub fn cmd_info(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let containers = engine.containers()?;
    let with = |wanted: &[Status]| containers.iter().filter(|info| wanted.contains(&info.status)).count();
    let (running, paused) = (with(&[Status::Running, Status::Restarting]), with(&[Status::Paused]));
    let host = rustix::system::uname();
    let cgroup = Layout::detect().map_or("none", |layout| layout.kind());
    let root = isles_sandbox::identity::is_real_root();
    let about = About {
        server_version: env!("CARGO_PKG_VERSION"),
        containers: containers.len(),
        containers_running: running,
        containers_paused: paused,
        containers_stopped: containers.len() - running - paused,
        images: engine.store().images()?.len(),
        driver: "overlay",
        logging_driver: "json-file",
        // Docker knows these two; what has both lets limits of the first count.
        cgroup_version: match cgroup {
            "v2" => Some("2"),
            "none" => None,
            _ => Some("1"),
        },
        security_options: [Some("name=seccomp,profile=builtin"), (!root).then_some("name=rootless")]
            .into_iter()
            .flatten()
            .collect(),
        kernel_version: host.release().to_string_lossy().into_owned(),
        operating_system: operating_system(),
        os_type: "linux",
        architecture: host.machine().to_string_lossy().into_owned(),
        ncpu: std::thread::available_parallelism().map_or(1, usize::from),
        mem_total: memory(),
        name: host.nodename().to_string_lossy().into_owned(),
        docker_root_dir: cx.state_dir()?.display().to_string(),
    };
    if args.format != Format::Table {
        cx.ui.object(&args.format, &about)?;
        return Ok(Code::SUCCESS);
    }
    let memory = isles_spec::quantity::human_bytes(about.mem_total);
    for (what, is) in [
        ("Version", about.server_version.to_owned()),
        (
            "Containers",
            format!(
                "{} ({running} running, {paused} paused, {} stopped)",
                about.containers, about.containers_stopped
            ),
        ),
        ("Images", about.images.to_string()),
        ("State", about.docker_root_dir),
        ("Logging driver", about.logging_driver.to_owned()),
        ("Control groups", cgroup.to_owned()),
        ("User", if root { "root" } else { "not root" }.to_owned()),
        ("Kernel", about.kernel_version),
        ("System", format!("{} ({}/{})", about.operating_system, about.os_type, about.architecture)),
        ("Processors", about.ncpu.to_string()),
        ("Memory", memory),
        ("Name", about.name),
    ] {
        cx.ui.line(&format!("{what}: {is}"))?;
    }
    Ok(Code::SUCCESS)
}

/// As os-release(5) names it for people.
fn operating_system() -> String {
    let text =
        ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|p| std::fs::read_to_string(p).ok());
    let text = text.unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches(['"', '\'']).to_owned()
}

/// Bytes of memory that the kernel has (proc_meminfo(5)).
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
