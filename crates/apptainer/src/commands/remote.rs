//! `apptainer remote …` and `apptainer keyserver …`: places with a library and key servers.

use std::fs;

use isles_registry::ClientOptions;
use isles_registry::web::{Web, Wish};

use crate::ask;
use crate::columns::aligned;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::keys::{lock, settings_folder};
use crate::remotes::{Keyserver, Remote, Remotes};

static INSECURE: Flag =
    Flag::switch("insecure", "speak plain HTTP with it").short('i').env(&["ADD_INSECURE"]);
static NO_LOGIN: Flag = Flag::switch("no-login", "do not ask for a token");
static NO_DEFAULT: Flag = Flag::switch("no-default", "do not use it from now on").short('n');
static TOKENFILE: Flag = Flag::text("tokenfile", "path", "the file with the token");
static ORDER: Flag = Flag::number("order", "its place in the list, from 1 on").short('o');

pub static REMOTE: Command = Command {
    usage: "remote",
    short: "Manage remote endpoints, which have a library and key servers",
    commands: &[&ADD, &LIST, &LOGIN, &LOGOUT, &REMOVE, &STATUS, &USE],
    ..Command::EMPTY
};

static ADD: Command = Command {
    usage: "add [add options...] <remote_name> <remote_URI>",
    short: "Add an endpoint",
    examples: "apptainer remote add --no-login mine cloud.example.org",
    flags: &[&[&INSECURE, &NO_DEFAULT, &NO_LOGIN, &TOKENFILE]],
    arity: Arity::Exactly(2),
    interspersed: true,
    run: add,
    ..Command::EMPTY
};

static REMOVE: Command = Command {
    usage: "remove <remote_name>",
    short: "Remove an endpoint",
    arity: Arity::Exactly(1),
    run: |cx| {
        let name = &cx.arguments[0];
        change(|remotes| {
            let (_, remote) = remotes.chosen(Some(name))?;
            if remote.system {
                return Err(Failure::new(format!("{name} is global, and not yours to remove")));
            }
            remotes.all.remove(name);
            if remotes.active == *name {
                remotes.active.clear();
            }
            Ok(())
        })?;
        cx.talk.info(&format!("Remote {name:?} removed."));
        Ok(0)
    },
    ..Command::EMPTY
};

static USE: Command = Command {
    usage: "use <remote_name>",
    short: "Use an endpoint from now on",
    arity: Arity::Exactly(1),
    run: |cx| {
        let name = &cx.arguments[0];
        change(|remotes| {
            remotes.chosen(Some(name))?;
            remotes.active.clone_from(name);
            Ok(())
        })?;
        cx.talk.info(&format!("Remote {name:?} now in use."));
        Ok(0)
    },
    ..Command::EMPTY
};

static LIST: Command = Command {
    usage: "list",
    short: "List the endpoints",
    arity: Arity::Exactly(0),
    run: |cx| {
        let remotes = Remotes::load()?;
        let words = |words: [&str; 6]| words.map(str::to_owned).to_vec();
        let mut lines = vec![words(["NAME", "URI", "DEFAULT?", "GLOBAL?", "EXCLUSIVE?", "SECURE?"])];
        let mark = |yes| if yes { "✓" } else { "" };
        for (name, remote) in &remotes.all {
            let secure = if remote.insecure { "✗!" } else { "✓" };
            let (is_default, exclusive) = (mark(*name == remotes.active), mark(remote.exclusive));
            lines.push(words([name, &remote.uri, is_default, mark(remote.system), exclusive, secure]));
        }
        cx.print(format!("\n{}", aligned(&lines, 2)))?;
        Ok(0)
    },
    ..Command::EMPTY
};

static LOGIN: Command = Command {
    usage: "login [login options...] [remote_name]",
    short: "Keep a token for an endpoint",
    flags: &[&[&TOKENFILE]],
    arity: Arity::Between(0, 1),
    interspersed: true,
    run: |cx| {
        let name = Remotes::load()?.chosen(cx.arguments.first().map(String::as_str))?.0.to_owned();
        let token = token(cx)?;
        change(|remotes| {
            if let Some(remote) = remotes.all.get_mut(&name) {
                remote.token = token;
            }
            Ok(())
        })?;
        cx.talk.info(&format!("The token for {name} is kept; the endpoint checks it when it is used"));
        Ok(0)
    },
    ..Command::EMPTY
};

static LOGOUT: Command = Command {
    usage: "logout [remote_name]",
    short: "Forget the token for an endpoint",
    arity: Arity::Between(0, 1),
    run: |cx| {
        let name = Remotes::load()?.chosen(cx.arguments.first().map(String::as_str))?.0.to_owned();
        change(|remotes| {
            if let Some(remote) = remotes.all.get_mut(&name) {
                remote.token.clear();
            }
            Ok(())
        })?;
        cx.talk.info("Logout succeeded");
        Ok(0)
    },
    ..Command::EMPTY
};

static STATUS: Command = Command {
    usage: "status [remote_name]",
    short: "Ask the services of an endpoint whether they are there",
    arity: Arity::Between(0, 1),
    run: |cx| {
        let remotes = Remotes::load()?;
        let (name, remote) = remotes.chosen(cx.arguments.first().map(String::as_str))?;
        cx.talk.info("Checking status of remote.");
        let services = remote.services()?;
        let mut lines = vec![["SERVICE", "STATUS", "URI"].map(str::to_owned).to_vec()];
        let web = Web::new(&ClientOptions::default());
        for (service, uri) in services.iter() {
            let answer = web.get(&format!("{}/version", uri.trim_end_matches('/')), Wish::default());
            let status = if answer.is_ok_and(|answer| answer.status == 200) { "OK" } else { "N/A" };
            lines.push([service, status, uri].map(str::to_owned).to_vec());
        }
        let login = if remote.token.is_empty() { "No authentication token set." } else { "A token is set." };
        cx.print(format!("{name}\n{}\n{login}\n", aligned(&lines, 2)))?;
        Ok(0)
    },
    ..Command::EMPTY
};

pub static KEYSERVER: Command = Command {
    usage: "keyserver",
    short: "Manage the key servers of remote endpoints",
    commands: &[&KEYSERVER_ADD, &KEYSERVER_LIST, &KEYSERVER_LOGIN, &KEYSERVER_LOGOUT, &KEYSERVER_REMOVE],
    ..Command::EMPTY
};

static KEYSERVER_ADD: Command = Command {
    usage: "add [add options...] [remote_name] <keyserver_url>",
    short: "Ask a key server, too",
    flags: &[&[&INSECURE, &ORDER]],
    arity: Arity::Between(1, 2),
    interspersed: true,
    run: |cx| {
        let (remote, uri) = named(cx)?;
        let (insecure, order) = (cx.values.is(&INSECURE), cx.values.number(&ORDER));
        with_servers(remote, |servers| {
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

static KEYSERVER_REMOVE: Command = Command {
    usage: "remove [remote_name] <keyserver_url>",
    short: "Do not ask a key server any more",
    arity: Arity::Between(1, 2),
    run: |cx| {
        let (remote, uri) = named(cx)?;
        with_servers(remote, |servers| {
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

static KEYSERVER_LIST: Command = Command {
    usage: "list [remote_name]",
    short: "List key servers",
    arity: Arity::Between(0, 1),
    run: |cx| {
        let remotes = Remotes::load()?;
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

static KEYSERVER_LOGIN: Command = Command {
    usage: "login <keyserver_url>",
    short: "Not supported",
    arity: Arity::AtLeast(0),
    run: no_login,
    ..Command::EMPTY
};

static KEYSERVER_LOGOUT: Command = Command {
    usage: "logout <keyserver_url>",
    short: "Not supported",
    arity: Arity::AtLeast(0),
    run: no_login,
    ..Command::EMPTY
};

fn no_login(_: &Context<'_>) -> Result<u8, Failure> {
    Err(Failure::unsupported(
        "a login at a key server",
        "key servers of the HKP kind take and give keys without one",
    ))
}

/// Changes the settings as they are now.
fn change(how: impl FnOnce(&mut Remotes) -> Result<(), Failure>) -> Result<(), Failure> {
    let _lock = lock(&settings_folder()?)?;
    let mut remotes = Remotes::load()?;
    how(&mut remotes)?;
    remotes.save()
}

fn with_servers(
    remote: Option<&str>,
    how: impl FnOnce(&mut Vec<Keyserver>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    change(|remotes| {
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
    isles_registry::KeyServer::new(&ClientOptions::default(), uri)?;
    Ok((remote, uri.trim_end_matches('/')))
}

fn add(cx: &Context<'_>) -> Result<u8, Failure> {
    let [name, uri] = cx.arguments else { return Err(Failure::usage("accepts 2 arg(s)")) };
    let (insecure, host) = match uri.split_once("://") {
        Some(("https", host)) => (false, host),
        Some(("http", host)) => (true, host),
        Some(_) => return Err(Failure::new(format!("'{uri}' is neither http:// nor https://"))),
        None => (cx.values.is(&INSECURE), uri.as_str()),
    };
    let host = host.trim_end_matches('/');
    if name.trim().is_empty() || host.is_empty() {
        return Err(Failure::new("an endpoint needs a name and a URI"));
    }
    if insecure && !cx.values.is(&INSECURE) {
        return Err(Failure::new("http URI requires --insecure").with_hint("or write https://"));
    }
    let token = if cx.values.is(&NO_LOGIN) { String::new() } else { token(cx)? };
    change(|remotes| {
        if remotes.all.contains_key(name) {
            return Err(Failure::new(format!("{name} is already a remote")));
        }
        let remote = Remote { uri: host.to_owned(), insecure, token, ..Remote::default() };
        remotes.all.insert(name.clone(), remote);
        if !cx.values.is(&NO_DEFAULT) {
            remotes.active.clone_from(name);
        }
        Ok(())
    })?;
    cx.talk.info(&format!("Remote {name:?} added."));
    Ok(0)
}

/// The token in the file that is named, or the one that is typed.
fn token(cx: &Context<'_>) -> Result<String, Failure> {
    let token = match cx.values.word(&TOKENFILE) {
        Some(path) => {
            let text = fs::read_to_string(path);
            text.map_err(|e| Failure::because(format!("cannot read {path}"), &e))?
        }
        None => ask::secret("Paste Token HERE: ")?,
    };
    let token = token.trim().to_owned();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(Failure::new("a token is needed, which is one word").with_hint("--no-login does without"));
    }
    Ok(token)
}
