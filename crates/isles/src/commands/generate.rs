//! `isles generate`

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Print files for other programs.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles generate systemd > ~/.config/systemd/user/isles.service && systemctl --user enable isles
  sudo isles generate systemd | sudo tee /etc/systemd/system/isles.service && sudo systemctl enable isles")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// A unit that starts after a reboot what its restart policies want to run, of root or of the user who asks.
    Systemd,
}

/// Prints the file.
pub fn cmd_generate(cx: &Context, args: &Args) -> Result<Code, Failure> {
    match args.what {
        What::Systemd => {
            let program =
                std::env::current_exe().map_err(|e| Failure::because("cannot find this program", &e))?;
            let root = cx.state_dir()?;
            let is_root = isles_sandbox::identity::is_real_root();
            cx.ui.bytes(unit(&quoted(&program)?, &quoted(&root)?, is_root).as_bytes())?;
        }
    }
    Ok(Code::SUCCESS)
}

/// A word of a command line as systemd reads it (systemd.service(5), "Command lines").
fn quoted(path: &std::path::Path) -> Result<String, Failure> {
    let text = path.to_str().filter(|text| !text.contains(|c: char| c.is_control())).ok_or_else(|| {
        Failure::new(format!("'{}' cannot stand in a unit", path.display()))
            .with_hint("use a path of plain text")
    })?;
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    Ok(format!("\"{escaped}\""))
}

/// Monitors are told to end when the machine goes down, and stop their containers then; nobody asked for these to stay away,
/// so the next boot starts them again.
fn unit(program: &str, root: &str, is_root: bool) -> String {
    let (after, target) = match is_root {
        true => (
            "After=network-online.target local-fs.target\nWants=network-online.target\n",
            "multi-user.target",
        ),
        false => ("", "default.target"),
    };
    format!(
        "[Unit]
Description=Containers of Isles whose restart policies want them to run
{after}
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={program} --root {root} start --all-restartable
TimeoutStopSec=90

[Install]
WantedBy={target}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        let text = unit("\"/usr/bin/isles\"", "\"/var/lib/isles\"", true);
        assert!(
            text.contains("ExecStart=\"/usr/bin/isles\" --root \"/var/lib/isles\" start --all-restartable\n")
        );
        assert!(text.contains("WantedBy=multi-user.target\n"));
        assert!(unit("a", "b", false).contains("WantedBy=default.target\n"));
        assert_eq!(quoted("/a \"b\" 5% $x".as_ref()).unwrap(), "\"/a \\\"b\\\" 5%% $$x\"");
        assert!(quoted("/a\nb".as_ref()).is_err());
    }
}
