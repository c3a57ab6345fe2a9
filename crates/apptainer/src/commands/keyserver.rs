//! `apptainer keyserver …`: the key servers of endpoints, and logins at them.

use isles_registry::{ClientOptions, KeyServer};

use crate::ask;
use crate::columns::aligned;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::remotes::{Credential, Keyserver};

use super::registry::{PASSWORD, STDIN, USERNAME, password};
use super::remote::{CONFIG, INSECURE, change, loaded};

static ORDER: Flag = Flag::number("order", "its place in the list, from 1 on").short('o');

pub static COMMAND: Command = Command {
    usage: "keyserver",
    short: "Manage the key servers of remote endpoints",
    flags: &[&[&CONFIG]],
    commands: &[&ADD, &LIST, &LOGIN, &LOGOUT, &REMOVE],
    ..Command::EMPTY
};

static ADD: Command = Command {
    usage: "add [add options...] [remote_name] <keyserver_url>",
    short: "Ask a key server, too",
    flags: &[&[&INSECURE, &ORDER]],
    arity: Arity::Between(1, 2),
    interspersed: true,
    run: |cx| {
        let (remote, uri) = named(cx)?;
        let (insecure, order) = (cx.values.is(&INSECURE), cx.values.number(&ORDER));
        with_servers(cx, remote, |servers| {
            if servers.iter().any(|server| server.uri == uri && !server.skip) {
                return Err(Failure::new(format!("{uri} is there already")));
            }
            servers.retain(|server| server.uri != uri);
            let place = match order {
                None => servers.len(),
                Some(order) => usize::try_from(order - 1)
                    .ok()
                    .filter(|place| *place <= servers.len())
                    .ok_or_else(|| {
                        Failure::new(format!("--order {order} is no place from 1 to {}", servers.len() + 1))
                    })?,
            };
            servers.insert(place, Keyserver { uri: uri.to_owned(), skip: false, external: true, insecure });
            Ok(())
        })?;
        Ok(0)
    },
    ..Command::EMPTY
};

static REMOVE: Command = Command {
    usage: "remove [remote_name] <keyserver_url>",
    short: "Do not ask a key server any more",
    arity: Arity::Between(1, 2),
    run: |cx| {
        let (remote, uri) = named(cx)?;
        with_servers(cx, remote, |servers| {
            let before = servers.len();
            servers.retain(|server| server.uri != uri);
            match servers.len() {
                0 => {
                    Err(Failure::new(format!("{uri} is the only key server"))
                        .with_hint("add another one first"))
                }
                after if after == before => Err(Failure::new(format!("{uri} is not among the key servers"))
                    .with_hint("`keyserver list` shows them")),
                _ => Ok(()),
            }
        })?;
        Ok(0)
    },
    ..Command::EMPTY
};

static LIST: Command = Command {
    usage: "list [remote_name]",
    short: "List key servers",
    arity: Arity::Between(0, 1),
    run: |cx| {
        let remotes = loaded(cx)?;
        let only = cx.arguments.first();
        if let Some(name) = only {
            remotes.chosen(Some(name))?;
        }
        let mut text = String::new();
        for (name, remote) in remotes.all.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
            let system = if remote.system { "*" } else { "" };
            let default = if *name == remotes.active { "^" } else { "" };
            text.push_str(&format!("\n{name} {system}{default}\n"));
            let servers = remote.keyservers.iter().filter(|server| !server.skip);
            let lines: Vec<Vec<String>> = (1..)
                .zip(servers)
                .map(|(n, server)| {
                    let secure = if server.insecure { "" } else { "🔒" };
                    vec![" ".to_owned(), format!("#{n}"), server.uri.clone(), secure.to_owned()]
                })
                .collect();
            text.push_str(&aligned(&lines, 2));
        }
        cx.print(text + "\n(* = system endpoint, ^ = default endpoint)\n")?;
        Ok(0)
    },
    ..Command::EMPTY
};

static LOGIN: Command = Command {
    usage: "login [login options...] <keyserver_url>",
    short: "Log in at a key server",
    long: "The login is kept in ~/.apptainer/remote.yaml, and only this server gets to see it. Without a name the password is\n\
           a token.",
    examples: "apptainer keyserver login --username me https://keys.example.org",
    flags: &[&[&PASSWORD, &STDIN, &USERNAME]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: login,
    ..Command::EMPTY
};

static LOGOUT: Command = Command {
    usage: "logout <keyserver_url>",
    short: "Forget the login at a key server",
    arity: Arity::Exactly(1),
    run: |cx| {
        let uri = server(&cx.arguments[0])?;
        change(cx, |remotes| {
            let before = remotes.credentials.len();
            remotes.credentials.retain(|known| known.uri.trim_end_matches('/') != uri);
            if remotes.credentials.len() == before {
                return Err(Failure::new(format!("{uri} is not configured")));
            }
            Ok(())
        })?;
        cx.talk.info("Logout succeeded");
        Ok(0)
    },
    ..Command::EMPTY
};

fn login(cx: &Context<'_>) -> Result<u8, Failure> {
    let uri = server(&cx.arguments[0])?;
    let user = match cx.values.text(&USERNAME) {
        Some(user) => user.to_owned(),
        // A token comes without a name.
        None if cx.values.has(&PASSWORD) || cx.values.is(&STDIN) => String::new(),
        None => ask::line("Username: ")?,
    };
    let password = password(cx)?;
    if password.is_empty() || password.contains(char::is_control) {
        return Err(Failure::new("a password or a token is needed, which is one line"));
    }
    let auth = KeyServer::authorization(&user, &password);
    KeyServer::new(&ClientOptions::default(), uri)?.with_authorization(&auth)?.check_login()?;
    change(cx, |remotes| {
        remotes.credentials.retain(|known| known.uri.trim_end_matches('/') != uri);
        let insecure = uri.starts_with("http://");
        remotes.credentials.push(Credential { uri: uri.to_owned(), auth, insecure });
        Ok(())
    })?;
    cx.talk.info("Token stored in remote.yaml");
    Ok(0)
}

/// The URL of a key server, as it is kept.
fn server(uri: &str) -> Result<&str, Failure> {
    KeyServer::new(&ClientOptions::default(), uri)?;
    Ok(uri.trim_end_matches('/'))
}

fn with_servers(
    cx: &Context<'_>,
    remote: Option<&str>,
    how: impl FnOnce(&mut Vec<Keyserver>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    change(cx, |remotes| {
        let name = remotes.chosen(remote)?.0.to_owned();
        remotes.all.get_mut(&name).map_or(Ok(()), |remote| how(&mut remote.keyservers))
    })
}

/// An endpoint, where one is named, and a key server.
fn named<'a>(cx: &'a Context<'_>) -> Result<(Option<&'a str>, &'a str), Failure> {
    let (remote, uri) = match cx.arguments {
        [uri] => (None, uri),
        [remote, uri] => (Some(remote.as_str()), uri),
        _ => return Err(Failure::usage("accepts between 1 and 2 arg(s)")),
    };
    KeyServer::new(&ClientOptions::default(), uri)?;
    Ok((remote, uri.trim_end_matches('/')))
}
