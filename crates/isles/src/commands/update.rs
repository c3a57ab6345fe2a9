//! `isles update`

use isles_spec::quantity::{parse_bytes, parse_cpus};
use isles_spec::{BlockWeight, Resources, RestartPolicy};

use crate::commands::each::each;
use crate::context::Context;
use crate::failure::{Code, Failure};

/// Change limits and the restart policy of containers.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles update --memory 512m --cpus 2 worker\n  isles update --restart unless-stopped web"
)]
pub struct Args {
    /// Bytes of memory.
    #[arg(short, long, value_name = "BYTES")]
    memory: Option<String>,
    /// Bytes of memory and swap; -1 for no limit on swap.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Processors, also parts of one.
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Its weight beside others; 1024 is usual.
    #[arg(short, long, value_name = "NUMBER")]
    cpu_shares: Option<u64>,
    /// Which processors: 0-3,6.
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Which nodes of memory: 0-1.
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Processes.
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<i64>,
    /// Its weight beside others at block devices, 10 to 1000.
    #[arg(long, value_name = "NUMBER")]
    blkio_weight: Option<i64>,
    /// When it starts again after it has ended: no, on-failure[:MAX-RETRIES], always or unless-stopped.
    #[arg(long, value_name = "POLICY")]
    restart: Option<String>,
    /// Names or IDs.
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Changes them, one after the other.
pub fn cmd_update(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let swap = |text: &String| match text.as_str() {
        "-1" => Ok(-1),
        text => parse_bytes(text).map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
    };
    let wanted = Resources {
        memory: args.memory.as_deref().map(parse_bytes).transpose()?,
        memory_swap: args.memory_swap.as_ref().map(swap).transpose()?,
        nano_cpus: args.cpus.as_deref().map(parse_cpus).transpose()?,
        cpu_shares: args.cpu_shares,
        cpuset_cpus: args.cpuset_cpus.clone(),
        cpuset_mems: args.cpuset_mems.clone(),
        pids: args.pids_limit.filter(|n| *n > 0),
        block_weight: args.blkio_weight.filter(|n| *n != 0).map(BlockWeight::weight).transpose()?,
        ..Resources::default()
    };
    let policy = args.restart.as_deref().map(RestartPolicy::parse).transpose()?;
    if wanted == Resources::default() && policy.is_none() {
        return Err(Failure::new("there is nothing to change").with_hint("give a limit, or --restart"));
    }
    let engine = cx.engine()?;
    each(cx, &args.containers, |name| {
        if wanted != Resources::default() {
            engine.update(name, &wanted)?;
        }
        policy.map_or(Ok(()), |policy| engine.set_restart_policy(name, policy))
    })
}
