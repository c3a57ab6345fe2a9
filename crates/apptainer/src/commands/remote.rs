//! `apptainer remote …`: places with a library and key servers.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use isles_registry::ClientOptions;
use isles_registry::web::{Web, Wish};

use crate::ask;
use crate::columns::aligned;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::keys::{lock, settings_folder};
use crate::remotes::{Remote, Remotes, SYSTEM};

use super::registry::{INSECURE as INSECURE_LOGIN, PASSWORD, STDIN, USERNAME};

pub static INSECURE: Flag =
    Flag::switch("insecure", "speak plain HTTP with it").short('i').env(&["ADD_INSECURE"]);
static NO_LOGIN: Flag = Flag::switch("no-login", "do not ask for a token");
static NO_DEFAULT: Flag = Flag::switch("no-default", "do not use it from now on").short('n');
static TOKENFILE: Flag = Flag::text("tokenfile", "path", "the file with the token");
pub static CONFIG: Flag =
    Flag::text("config", "path", "the file of endpoints (default ~/.apptainer/remote.yaml)").short('c');
static GLOBAL: Flag = Flag::switch("global", "change the endpoints of the machine").short('g');
static EXCLUSIVE: Flag =
    Flag::switch("exclusive", "let nobody use another one (root only; means --global)").short('e');

pub static COMMAND: Command = Command {
    usage: "remote",
    short: "Manage remote endpoints, which have a library and key servers",
    flags: &[&[&CONFIG]],
    commands: &[&ADD, &GET_LOGIN_PASSWORD, &LIST, &LOGIN, &LOGOUT, &REMOVE, &STATUS, &USE],
    ..Command::EMPTY
};

static ADD: Command = Command {
    usage: "add [add options...] <remote_name> <remote_URI>",
    short: "Add an endpoint",
    examples: "apptainer remote add --no-login mine cloud.example.org",
    flags: &[&[&GLOBAL, &INSECURE, &NO_DEFAULT, &NO_LOGIN, &TOKENFILE]],
    arity: Arity::Exactly(2),
    interspersed: true,
    run: add,
    ..Command::EMPTY
};

static REMOVE: Command = Command {
    usage: "remove [remove options...] <remote_name>",
    short: "Remove an endpoint",
    flags: &[&[&GLOBAL]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| {
        let name = &cx.arguments[0];
        change(cx, |remotes| {
            let (_, remote) = remotes.chosen(Some(name))?;
            if remote.system && !is_global(cx) {
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
    usage: "use [use options...] <remote_name>",
    short: "Use an endpoint from now on",
    flags: &[&[&EXCLUSIVE, &GLOBAL]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run: |cx| {
        let name = &cx.arguments[0];
        change(cx, |remotes| {
            remotes.chosen(Some(name))?;
            if is_global(cx) {
                let exclusive = cx.values.is(&EXCLUSIVE);
                remotes
                    .all
                    .iter_mut()
                    .for_each(|(other, remote)| remote.exclusive = exclusive && other == name);
            } else if let Some((only, _)) = remotes.all.iter().find(|(_, r)| r.system && r.exclusive)
                && only != name
            {
                return Err(Failure::new(format!(
                    "could not use {name}: remote {only} has been set exclusive"
                ))
                .with_hint(
                    "the administrator of this machine has chosen so, in /etc/apptainer/remote.yaml",
                ));
            }
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
        let remotes = loaded(cx)?;
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
    flags: &[&[&INSECURE_LOGIN, &PASSWORD, &STDIN, &TOKENFILE, &USERNAME]],
    arity: Arity::Between(0, 1),
    interspersed: true,
    run: |cx| {
        if let Some(flag) = [&USERNAME, &PASSWORD, &STDIN].into_iter().find(|flag| cx.values.has(flag)) {
            let instead = "an endpoint takes a token: --tokenfile; registries have `registry login`, key servers `keyserver login`";
            return Err(Failure::unsupported(format!("remote login --{}", flag.name), instead));
        }
        let name = loaded(cx)?.chosen(cx.arguments.first().map(String::as_str))?.0.to_owned();
        let token = token(cx)?;
        change(cx, |remotes| {
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

static GET_LOGIN_PASSWORD: Command = Command {
    usage: "get-login-password",
    short: "Not supported",
    arity: Arity::AtLeast(0),
    run: |_| {
        let instead =
            "it is a password for the registry of one commercial service; log in with `registry login`";
        Err(Failure::unsupported("remote get-login-password", instead))
    },
    ..Command::EMPTY
};

static LOGOUT: Command = Command {
    usage: "logout [remote_name]",
    short: "Forget the token for an endpoint",
    arity: Arity::Between(0, 1),
    run: |cx| {
        let name = loaded(cx)?.chosen(cx.arguments.first().map(String::as_str))?.0.to_owned();
        change(cx, |remotes| {
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
        let remotes = loaded(cx)?;
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

/// Whether the machine's endpoints are meant.
fn is_global(cx: &Context<'_>) -> bool {
    cx.values.is(&GLOBAL) || cx.values.is(&EXCLUSIVE)
}

/// The endpoints, with those of the file that is named.
pub fn loaded(cx: &Context<'_>) -> Result<Remotes, Failure> {
    Remotes::load_with(cx.values.word(&CONFIG).map(Path::new))
}

/// Changes the settings as they are now: the caller's, or with --global the machine's.
pub fn change(
    cx: &Context<'_>,
    how: impl FnOnce(&mut Remotes) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let system = Path::new(SYSTEM);
    let (folder, place) = match (is_global(cx), cx.values.word(&CONFIG)) {
        (true, Some(_)) => return Err(Failure::new("--global and --config exclude each other")),
        (true, None) => (system.parent().map_or_else(PathBuf::new, Path::to_owned), Some(system)),
        (false, None) => (settings_folder()?, None),
        (false, Some(path)) => {
            let folder = Path::new(path).parent().filter(|folder| *folder != Path::new(""));
            (folder.unwrap_or(Path::new(".")).to_owned(), Some(Path::new(path)))
        }
    };
    if is_global(cx) {
        // For everybody to read.
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder);
        made.map_err(|e| Failure::because(format!("cannot make {}", folder.display()), &e))?;
    }
    let _lock = lock(&folder)?;
    let mut remotes = if is_global(cx) { Remotes::of_file(system)? } else { Remotes::load_with(place)? };
    how(&mut remotes)?;
    remotes.save()
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
    change(cx, |remotes| {
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
