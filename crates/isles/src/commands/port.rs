//! `isles port`

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use isles_spec::Port;

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Print which ports of the host lead to a container.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  isles port web\n  isles port web 80/tcp")]
pub struct Args {
    /// Its name or ID.
    container: String,
    /// Only that of this port of the container: PORT[/udp].
    port: Option<String>,
}

/// Prints them.
pub fn cmd_port(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let found = engine.find(&args.container)?;
    let ports = if found.is_running() { found.state.ports } else { Vec::new() };
    let asked = args.port.as_deref().map(Port::parse).transpose()?;
    let mut any = false;
    for port in &ports {
        let same = |asked: &Port| (asked.container, asked.protocol) == (port.container, port.protocol);
        if asked.as_ref().is_some_and(|asked| !asked.iter().any(same)) {
            continue;
        }
        any = true;
        for address in addresses(port) {
            let host = std::net::SocketAddr::new(address, port.host);
            match args.port {
                Some(_) => cx.ui.line(&host.to_string())?,
                None => cx.ui.line(&format!("{}/{} -> {host}", port.container, port.protocol))?,
            }
        }
    }
    if let (Some(asked), false) = (&args.port, any) {
        return Err(Failure::new(format!("no public port '{asked}' published for {}", args.container))
            .with_hint("'isles port CONTAINER' lists those that there are")
            .with_code(1));
    }
    Ok(Code::SUCCESS)
}

/// The addresses of the host that a port is at: all of both kinds, where none is given.
pub fn addresses(port: &Port) -> Vec<IpAddr> {
    let both = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    port.address.map_or(both.to_vec(), |address| vec![address])
}
