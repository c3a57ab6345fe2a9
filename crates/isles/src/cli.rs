//! The command line as a whole: the table of commands, and the way from the arguments to an exit code.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::Ui;

mod unsupported;

/// Build an environment from a recipe, keep it as an image, run it anywhere.
#[derive(Debug, Parser)]
#[command(name = "isles", version, propagate_version = false, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = false)]
pub struct Cli {
    /// Where images and containers are kept [default: /var/lib/isles for root, ~/.local/share/isles for others].
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Say nothing but errors and what was asked for.
    #[arg(short, long)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// Every command, in the order in which `--help` lists them.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<commands::run::Args>),
    Build(Box<commands::build::Args>),
    Builder(commands::builder::Args),
    /// Make a container without starting it.
    #[command(after_help = commands::create::EXAMPLES)]
    Create(Box<commands::run::Args>),
    Start(commands::start::Args),
    Stop(commands::stop::Args),
    Restart(commands::restart::Args),
    Kill(commands::kill::Args),
    Pause(commands::pause::Args),
    Unpause(commands::unpause::Args),
    Wait(commands::wait::Args),
    Exec(commands::exec::Args),
    Attach(commands::attach::Args),
    Logs(commands::logs::Args),
    Events(commands::events::Args),
    Stats(commands::stats::Args),
    Top(commands::top::Args),
    Update(commands::update::Args),
    Ps(commands::ps::Args),
    Port(commands::port::Args),
    Rename(commands::rename::Args),
    Rm(commands::rm::Args),
    Cp(commands::cp::Args),
    Diff(commands::diff::Args),
    Commit(commands::commit::Args),
    Export(commands::export::Args),
    Import(commands::import::Args),
    Volume(commands::volume::Args),
    Network(commands::network::Args),
    Pod(commands::pod::Args),
    Images(commands::images::Args),
    Pull(commands::pull::Args),
    Push(commands::push::Args),
    Copy(Box<commands::copy::Args>),
    Search(commands::search::Args),
    Registry(commands::registry::Args),
    Tag(commands::tag::Args),
    Rmi(commands::rmi::Args),
    Save(commands::save::Args),
    Load(commands::load::Args),
    Inspect(commands::inspect::Args),
    History(commands::history::Args),
    Login(commands::login::Args),
    Logout(commands::logout::Args),
    Df(commands::df::Args),
    Prune(commands::prune::Args),
    Verify(commands::verify::Args),
    Cwl(commands::cwl::Args),
    Flow(commands::flow::Args),
    Doctor(commands::doctor::Args),
    Completion(commands::completion::Args),
    Generate(commands::generate::Args),
    Man(commands::man::Args),
    Oci(Box<commands::oci::Args>),
    #[command(visible_alias = "singularity")]
    Apptainer(commands::apptainer::Args),
    Version(commands::version::Args),
}

impl Command {
    fn run(&self, cx: &Context) -> Result<Code, Failure> {
        match self {
            Command::Run(args) => commands::run::cmd_run(cx, args),
            Command::Build(args) => commands::build::cmd_build(cx, args),
            Command::Builder(args) => commands::builder::cmd_builder(cx, args),
            Command::Create(args) => commands::create::cmd_create(cx, args),
            Command::Start(args) => commands::start::cmd_start(cx, args),
            Command::Stop(args) => commands::stop::cmd_stop(cx, args),
            Command::Restart(args) => commands::restart::cmd_restart(cx, args),
            Command::Kill(args) => commands::kill::cmd_kill(cx, args),
            Command::Pause(args) => commands::pause::cmd_pause(cx, args),
            Command::Unpause(args) => commands::unpause::cmd_unpause(cx, args),
            Command::Wait(args) => commands::wait::cmd_wait(cx, args),
            Command::Exec(args) => commands::exec::cmd_exec(cx, args),
            Command::Attach(args) => commands::attach::cmd_attach(cx, args),
            Command::Stats(args) => commands::stats::cmd_stats(cx, args),
            Command::Top(args) => commands::top::cmd_top(cx, args),
            Command::Update(args) => commands::update::cmd_update(cx, args),
            Command::Events(args) => commands::events::cmd_events(cx, args),
            Command::Logs(args) => commands::logs::cmd_logs(cx, args),
            Command::Port(args) => commands::port::cmd_port(cx, args),
            Command::Rename(args) => commands::rename::cmd_rename(cx, args),
            Command::Ps(args) => commands::ps::cmd_ps(cx, args),
            Command::Rm(args) => commands::rm::cmd_rm(cx, args),
            Command::Cp(args) => commands::cp::cmd_cp(cx, args),
            Command::Diff(args) => commands::diff::cmd_diff(cx, args),
            Command::Commit(args) => commands::commit::cmd_commit(cx, args),
            Command::Export(args) => commands::export::cmd_export(cx, args),
            Command::Import(args) => commands::import::cmd_import(cx, args),
            Command::Network(args) => commands::network::cmd_network(cx, args),
            Command::Pod(args) => commands::pod::cmd_pod(cx, args),
            Command::Volume(args) => commands::volume::cmd_volume(cx, args),
            Command::Images(args) => commands::images::cmd_images(cx, args),
            Command::Pull(args) => commands::pull::cmd_pull(cx, args),
            Command::Push(args) => commands::push::cmd_push(cx, args),
            Command::Copy(args) => commands::copy::cmd_copy(cx, args),
            Command::Search(args) => commands::search::cmd_search(cx, args),
            Command::Registry(args) => commands::registry::cmd_registry(cx, args),
            Command::Tag(args) => commands::tag::cmd_tag(cx, args),
            Command::Rmi(args) => commands::rmi::cmd_rmi(cx, args),
            Command::Save(args) => commands::save::cmd_save(cx, args),
            Command::Load(args) => commands::load::cmd_load(cx, args),
            Command::Inspect(args) => commands::inspect::cmd_inspect(cx, args),
            Command::History(args) => commands::history::cmd_history(cx, args),
            Command::Login(args) => commands::login::cmd_login(cx, args),
            Command::Logout(args) => commands::logout::cmd_logout(cx, args),
            Command::Df(args) => commands::df::cmd_df(cx, args),
            Command::Prune(args) => commands::prune::cmd_prune(cx, args),
            Command::Verify(args) => commands::verify::cmd_verify(cx, args),
            Command::Cwl(args) => commands::cwl::cmd_cwl(cx, args),
            Command::Flow(args) => commands::flow::cmd_flow(cx, args),
            Command::Doctor(args) => commands::doctor::cmd_doctor(cx, args),
            Command::Generate(args) => commands::generate::cmd_generate(cx, args),
            Command::Completion(args) => commands::completion::cmd_completion(cx, args),
            Command::Man(args) => commands::man::cmd_man(cx, args),
            Command::Oci(args) => commands::oci::cmd_oci(cx, args),
            Command::Apptainer(args) => commands::apptainer::cmd_apptainer(cx, args),
            Command::Version(args) => commands::version::cmd_version(cx, args),
        }
    }
}

/// Program names that stand for commands of `isles`, so that a link is enough to be that program.
const PERSONALITIES: [(&str, &[&str]); 3] =
    [("isles-oci", &["oci"]), ("isles-runtime", &["oci"]), ("cwl-runner", &["cwl", "run"])];

/// Exit code of `isles run` and of the OCI runtime when Isles itself fails, as docker has it.
pub const OWN_FAILURE: u8 = 125;

/// Runs the program with `argv` and says how it ended.
pub fn main(mut argv: Vec<OsString>) -> ExitCode {
    if let [_, word, handed] = argv.as_slice()
        && word == isles_engine::monitor::WORD
    {
        return ExitCode::from(isles_engine::monitor::main(&handed.to_string_lossy()));
    }
    if argv.first().is_some_and(|name| isles_apptainer::is_name(name.as_ref())) {
        return commands::apptainer::main(&Context::new(Ui::new(false), None), argv);
    }
    if let Some(command) = argv.first().and_then(|name| personality(name.as_ref())) {
        argv.splice(1..1, command.iter().map(Into::into));
    }
    let own_failure = if command_of(&argv).is_some_and(|c| c == "run") { OWN_FAILURE } else { 1 };
    let parsed = Cli::command().try_get_matches_from(&argv).and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(failure) = unsupported::failure(&argv, &error) {
                Ui::new(false).error(&failure);
                return ExitCode::from(if own_failure == OWN_FAILURE { OWN_FAILURE } else { 2 });
            }
            return usage(&error, own_failure);
        }
    };
    let of_command = matches!(&cli.command, Command::Run(args) | Command::Create(args) if args.quiet);
    let cx = Context::new(Ui::new(cli.quiet || of_command), cli.root.clone());
    match cli.command.run(&cx) {
        Ok(Code(code)) => ExitCode::from(code),
        Err(failure) => {
            cx.ui.error(&failure);
            ExitCode::from(failure.code.unwrap_or(own_failure))
        }
    }
}

/// The word that names the command, past the options of the whole program.
fn command_of(argv: &[OsString]) -> Option<&OsString> {
    let mut words = argv.iter().skip(1);
    loop {
        let word = words.next()?;
        if word == "--root" {
            words.next();
        } else if !word.as_encoded_bytes().starts_with(b"-") {
            return Some(word);
        }
    }
}

pub fn personality(program: &Path) -> Option<&'static [&'static str]> {
    let name = program.file_name()?.to_str()?;
    PERSONALITIES.iter().find(|(program, _)| *program == name).map(|(_, command)| *command)
}

/// Prints what clap has to say: help and version are data, the rest is talk. A value that one of our nouns does
/// not accept is said in the noun's own words, with its hint.
fn usage(error: &clap::Error, own_failure: u8) -> ExitCode {
    match error.source().and_then(|e| e.downcast_ref::<isles_spec::Error>()) {
        Some(spelling) => Ui::new(false).error(&spelling.clone().into()),
        // Nothing can be said where the output is closed.
        None => drop(error.print()),
    }
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ if own_failure == OWN_FAILURE => ExitCode::from(OWN_FAILURE),
        _ => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_is_found_past_options() {
        for (line, command) in [
            ("isles run --root x", Some("run")),
            ("isles --root run -q ps", Some("ps")),
            ("isles --root=/x run ps", Some("run")),
            ("isles -q", None),
            ("isles --root", None),
        ] {
            let argv: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
            assert_eq!(command_of(&argv).and_then(|c| c.to_str()), command, "{line}");
        }
    }

    #[test]
    fn program_names() {
        assert_eq!(personality(Path::new("/usr/bin/isles-oci")), Some(&["oci"][..]));
        assert_eq!(personality(Path::new("cwl-runner")), Some(&["cwl", "run"][..]));
        assert_eq!(personality(Path::new("isles")), None);
    }
}
