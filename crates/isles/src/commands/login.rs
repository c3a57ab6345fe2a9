//! `isles login`

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};

use isles_registry::{Credentials, Login};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::registry::Connection;

/// Sign in to a registry, and keep the login where docker and podman look for it too.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles login ghcr.io
  isles login -u me --password-stdin localhost:5000 < token")]
pub struct Args {
    /// Host and port of the registry.
    #[arg(value_name = "REGISTRY", default_value = "docker.io")]
    registry: String,
    /// The user's name.
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// The password or access token; others on this machine may see it here.
    #[arg(short, long, value_name = "PASSWORD")]
    password: Option<String>,
    /// Read the password from standard input.
    #[arg(long, conflicts_with = "password")]
    password_stdin: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Longer passwords are a mistake.
const PASSWORD: u64 = 64 << 10;

pub fn cmd_login(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let user = match &args.username {
        Some(user) => user.clone(),
        None if args.password_stdin => {
            return Err(Failure::new("--password-stdin needs a name").with_hint("give it with --username"));
        }
        None => ask("Username: ", false)?,
    };
    let password = match &args.password {
        Some(password) => {
            cx.ui.warning("other users may see a password on the command line; use --password-stdin");
            password.clone()
        }
        None if args.password_stdin => {
            let mut text = String::new();
            let input = io::stdin().lock().take(PASSWORD).read_to_string(&mut text);
            input.map_err(|e| Failure::because("cannot read the password", &e))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => ask("Password: ", true)?,
    };
    if user.is_empty() || password.is_empty() {
        return Err(Failure::new("a name and a password are needed"));
    }
    let login = Login::Password { user, password };
    args.connection.client().check_login(&args.registry, &login)?;
    let place = Credentials::from_environment().save(&args.registry, &login)?;
    cx.ui.note(&format!("the login is kept in {place}"));
    cx.ui.line("Login Succeeded")?;
    Ok(Code::SUCCESS)
}

/// Asks on the terminal, whatever standard input is.
fn ask(question: &str, secret: bool) -> Result<String, Failure> {
    let failed = |e: io::Error| Failure::because("cannot ask on the terminal", &e);
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let terminal = match terminal {
        Ok(terminal) if terminal.is_terminal() => terminal,
        _ => {
            return Err(Failure::new("there is no terminal to ask for name and password on")
                .with_hint("give them with --username and --password-stdin"));
        }
    };
    // Before the question, so that nothing that is typed as soon as it appears is shown or lost.
    let hidden = if secret { Some(Hidden::new(&terminal)?) } else { None };
    (&terminal).write_all(question.as_bytes()).map_err(failed)?;
    let mut line = String::new();
    let read = BufReader::new((&terminal).take(PASSWORD)).read_line(&mut line);
    if hidden.is_some() {
        (&terminal).write_all(b"\n").map_err(failed)?;
    }
    drop(hidden);
    read.map_err(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// A terminal that does not show what is typed, until this is dropped.
struct Hidden<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn new(terminal: &'a File) -> Result<Self, Failure> {
        let failed = |e: rustix::io::Errno| Failure::because("cannot hide the password", &io::Error::from(e));
        let before = termios::tcgetattr(terminal).map_err(failed)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(terminal, OptionalActions::Flush, &hidden).map_err(failed)?;
        Ok(Hidden { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}
