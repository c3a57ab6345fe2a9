//! `apptainer registry …`: logins at registries, kept where docker, podman and `isles login` have them too.

use std::io::{self, Read};

use isles_registry::{Client, ClientOptions, Credentials, Login};

use crate::ask;
use crate::columns::aligned;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::reach;

pub static USERNAME: Flag =
    Flag::text("username", "name", "the user's name").short('u').env(&["LOGIN_USERNAME"]);
pub static PASSWORD: Flag =
    Flag::text("password", "word", "the password or token").short('p').env(&["LOGIN_PASSWORD"]);
pub static STDIN: Flag = Flag::switch("password-stdin", "read the password from standard input");
pub static INSECURE: Flag = Flag::switch("insecure", "without TLS, or without a trusted certificate")
    .short('i')
    .env(&["LOGIN_INSECURE"]);
static AUTHFILE: Flag = Flag::text("authfile", "path", "keep the login in this file").env(&["AUTH_FILE"]);
static CONFIG: Flag = Flag::text("config", "path", "the same as --authfile").short('c');

pub static COMMAND: Command = Command {
    usage: "registry",
    short: "Manage logins at registries",
    flags: &[&[&CONFIG]],
    commands: &[&LIST, &LOGIN, &LOGOUT],
    ..Command::EMPTY
};

static LOGIN: Command = Command {
    usage: "login [login options...] <registry_uri>",
    short: "Log in at a registry",
    examples: "apptainer registry login --username me docker://docker.io\napptainer registry login oras://localhost:5000",
    flags: &[&[&AUTHFILE, &INSECURE, &PASSWORD, &STDIN, &USERNAME]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: login,
    ..Command::EMPTY
};

static LOGOUT: Command = Command {
    usage: "logout [logout options...] <registry_uri>",
    short: "Forget the login at a registry",
    examples: "apptainer registry logout docker://docker.io",
    flags: &[&[&AUTHFILE]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| {
        let registry = host(&cx.arguments[0])?;
        if !credentials(cx).erase(registry)? {
            return Err(Failure::new(format!("{} is not configured", cx.arguments[0]))
                .with_hint("`registry list` shows where you are logged in"));
        }
        cx.talk.info("Logout succeeded");
        Ok(0)
    },
    ..Command::EMPTY
};

static LIST: Command = Command {
    usage: "list [list options...]",
    short: "List the registries with a login",
    examples: "apptainer registry list",
    flags: &[&[&AUTHFILE]],
    arity: Arity::Exactly(0),
    run: |cx| {
        let mut lines = vec![vec!["URI".to_owned(), "SECURE?".to_owned()]];
        for registry in credentials(cx).registries()? {
            lines.push(vec![format!("docker://{registry}"), "✓".to_owned()]);
        }
        cx.print(format!("\n{}", aligned(&lines, 2)))?;
        Ok(0)
    },
    ..Command::EMPTY
};

fn credentials(cx: &Context<'_>) -> Credentials {
    let named = cx.values.word(&AUTHFILE).or_else(|| cx.values.word(&CONFIG));
    named.map_or_else(Credentials::from_environment, Credentials::file)
}

/// The host in a URI such as `docker://docker.io` or `oras://localhost:5000`.
fn host(uri: &str) -> Result<&str, Failure> {
    let host = match reach::split(uri) {
        Some(("docker" | "oras", host)) => host,
        // A host with its port looks like a scheme.
        _ if !uri.contains("://") => uri,
        _ => {
            return Err(Failure::new(format!("unsupported transport in {uri}"))
                .with_hint("registries are docker:// and oras://; key servers have `keyserver login`"));
        }
    };
    let host = host.trim_end_matches('/');
    if host.is_empty() || host.contains('/') {
        return Err(
            Failure::new(format!("'{uri}' names no registry")).with_hint("write docker://HOST[:PORT]")
        );
    }
    Ok(host)
}

/// The password that is given, comes in, or is typed.
pub fn password(cx: &Context<'_>) -> Result<String, Failure> {
    match cx.values.text(&PASSWORD) {
        Some(password) => Ok(password.to_owned()),
        None if cx.values.is(&STDIN) => {
            let mut text = String::new();
            let read = io::stdin().lock().take(64 << 10).read_to_string(&mut text);
            read.map_err(|e| Failure::because("cannot read the password", &e))?;
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        }
        None => ask::secret("Password / Token: "),
    }
}

fn login(cx: &Context<'_>) -> Result<u8, Failure> {
    let registry = host(&cx.arguments[0])?;
    let user = match cx.values.text(&USERNAME) {
        Some(user) => user.to_owned(),
        None if cx.values.is(&STDIN) => {
            return Err(Failure::new("--password-stdin needs a name").with_hint("give it with --username"));
        }
        None => ask::line("Username: ")?,
    };
    let password = password(cx)?;
    if user.is_empty() || password.is_empty() {
        return Err(Failure::new("a name and a password are needed"));
    }
    let login = Login::Password { user, password };
    let options = ClientOptions { tls_verify: !cx.values.is(&INSECURE), ..ClientOptions::default() };
    Client::new(options).check_login(registry, &login)?;
    let place = credentials(cx).save(registry, &login)?;
    cx.talk.info(&format!("Token stored in {place}"));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (uri, expected) in [
            ("docker://docker.io", Some("docker.io")),
            ("oras://localhost:5000/", Some("localhost:5000")),
            ("localhost:5000", Some("localhost:5000")),
            ("https://keys.example", None),
            ("docker://", None),
            ("docker://a/b", None),
        ] {
            assert_eq!(host(uri).ok(), expected, "{uri}");
        }
    }
}
