//! Commands of Apptainer that have nothing to do here, each refused by name, with what to do instead; and what there is
//! to say about them.

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;

/// A command that cannot be. Its flags are known, so that it is refused and not they.
const fn refused(
    usage: &'static str,
    flags: &'static [&'static [&'static Flag]],
    run: fn(&Context<'_>) -> Result<u8, Failure>,
) -> Command {
    let arity = Arity::AtLeast(0);
    Command { usage, short: "Not supported", flags, arity, interspersed: true, run, ..Command::EMPTY }
}

static OUT: Flag = Flag::text("out", "path", "of the plugin").short('o');

pub static PLUGIN: Command = Command {
    usage: "plugin",
    short: "Plugins of Apptainer, of which there are none",
    commands: &[
        &PLUGIN_COMPILE,
        &PLUGIN_CREATE,
        &PLUGIN_DISABLE,
        &PLUGIN_ENABLE,
        &PLUGIN_INSPECT,
        &PLUGIN_INSTALL,
        &PLUGIN_LIST,
        &PLUGIN_UNINSTALL,
    ],
    ..Command::EMPTY
};

static PLUGIN_LIST: Command = Command {
    usage: "list",
    short: "List the plugins, of which there are none",
    arity: Arity::Exactly(0),
    run: |cx| cx.print("There are no plugins installed.\n").map(|()| 0),
    ..Command::EMPTY
};

static PLUGIN_COMPILE: Command = refused("compile", &[&[&OUT]], no_plugins);
static PLUGIN_CREATE: Command = refused_whole("create", no_plugins);
static PLUGIN_DISABLE: Command = refused_whole("disable", no_plugins);
static PLUGIN_ENABLE: Command = refused_whole("enable", no_plugins);
static PLUGIN_INSPECT: Command = refused_whole("inspect", no_plugins);
static PLUGIN_INSTALL: Command = refused_whole("install", no_plugins);
static PLUGIN_UNINSTALL: Command = refused_whole("uninstall", no_plugins);

fn no_plugins(_: &Context<'_>) -> Result<u8, Failure> {
    let instead = "plugins are parts of Apptainer's own program, written in Go; this is another program";
    Err(Failure::unsupported("a plugin", instead))
}

/// A group of commands, or one whose flags are nobody's here: what comes behind its name is not looked at.
const fn refused_whole(usage: &'static str, run: fn(&Context<'_>) -> Result<u8, Failure>) -> Command {
    Command { interspersed: false, ..refused(usage, &[], run) }
}

pub static CHECKPOINT: Command = refused_whole("checkpoint", |_| {
    let instead = "run DMTCP inside the container, with its files bound or installed there";
    Err(Failure::unsupported("apptainer checkpoint", instead))
});
